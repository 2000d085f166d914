"""Prefixes and prompts that are written here act alike in PEFT, and the other way round."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import IDS, logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model
from tinygrad_peft.peft import VirtualConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptEncoderConfig, PromptTuningConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

KINDS: dict[str, tuple[type[VirtualConfig], Any]] = {
    "prefix": (PrefixTuningConfig, hf.PrefixTuningConfig),
    "prompt": (PromptTuningConfig, hf.PromptTuningConfig),
    "p-tuning": (PromptEncoderConfig, hf.PromptEncoderConfig),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "prefix": {},
    "prefix, long": {"num_virtual_tokens": 9},
    "prefix, zero": {"init_weights": "zero"},
    "prefix, projected": {"prefix_projection": True},
    "prefix, projected narrowly": {"prefix_projection": True, "encoder_hidden_size": 6},
    "prompt": {},
    "prompt, long": {"num_virtual_tokens": 9},
    "prompt, sampled": {"prompt_tuning_init": "SAMPLE_VOCAB"},
    "p-tuning": {},
    "p-tuning, narrow": {"encoder_hidden_size": 6},
}
READ_ONLY: dict[str, dict[str, Any]] = {
    "p-tuning, LSTM": {"encoder_reparameterization_type": "LSTM", "encoder_num_layers": 1},
}
MASKS = {
    "no padding": None,
    "padding on the right": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "padding on the left": np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
}
# What PEFT's prompt encoders call the parameters.
THEIRS = {
    "prompt_embeddings": "embedding.weight",
    "embedding": "embedding.weight",
    "up_proj": "transform.0",
    "down_proj": "transform.2",
    "layers.0": "mlp_head.0",
    "layers.1": "mlp_head.2",
    "layers.2": "mlp_head.4",
}


@pytest.fixture(params=["gpt2", "llama", "bert"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    peer(family).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(option: str) -> dict[str, Any]:
    return {"num_virtual_tokens": 3, **(OPTIONS | READ_ONLY)[option]}


def adapted(base: Path, family: str, option: str) -> PeftModel:
    kind, _ = KINDS[option.partition(",")[0]]
    saved: dict[str, Any] = {"modules_to_save": ["classifier"]} if family == "bert" else {}
    return shaken(get_peft_model(own(base), kind(**settings(option), **saved)))


def adapted_peer(family: str, option: str) -> Any:  # noqa: ANN401 - PEFT's models have no common type
    _, kind = KINDS[option.partition(",")[0]]
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    peft = hf.get_peft_model(peer(family), kind(task_type=task, **settings(option)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft.eval()


def pairs(ours: PeftModel, theirs: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Each trained parameter here with the one there."""
    named = dict(theirs.named_parameters())
    found = []
    for path, parameter in ours.record.named_parameters(0).items():
        _, place, name = path.partition("prompt." if ".prompt." in path else "prefix.")
        if not place:
            head = (
                f"base_model.{path.replace('classifier.', 'classifier.modules_to_save.default.')}"
            )
            found.append((parameter, named[head]))
            continue
        known = next(known for known in THEIRS if name == known or name.startswith(f"{known}."))
        found.append(
            (parameter, named[f"prompt_encoder.default.{THEIRS[known]}{name[len(known) :]}"])
        )
    assert len(found) == sum(p.requires_grad for p in theirs.parameters())
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_peft_reads_our_files(family: str, option: str, base: Path, tmp_path: Path) -> None:
    peft = adapted(base, family, option)
    peft.save_pretrained(tmp_path / "adapter")
    loaded = hf.PeftModel.from_pretrained(peer(family), tmp_path / "adapter").eval()
    expected = peer_logits(loaded)
    plain = peer_logits(peer(family))
    assert np.abs(expected[..., -5:, :] - plain).max() > 1e-3
    np.testing.assert_allclose(logits(peft), expected, atol=1e-4)


@pytest.mark.parametrize("option", [*OPTIONS, *READ_ONLY])
def test_what_peft_writes_is_read_here(
    family: str, option: str, base: Path, tmp_path: Path
) -> None:
    theirs = adapted_peer(family, option)
    theirs.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(own(base), tmp_path / "adapter", is_trainable=True)
    np.testing.assert_allclose(logits(loaded), peer_logits(theirs), atol=1e-4)
    assert sum(p.ndim == 2 for p in loaded.trainable_parameters()) == 1 + (family == "bert")


@pytest.mark.parametrize("option", OPTIONS)
def test_both_write_the_same_tensors_and_count_the_same(
    family: str, option: str, base: Path, tmp_path: Path
) -> None:
    ours, theirs = adapted(base, family, option), adapted_peer(family, option)
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    shapes = [
        {k: tuple(v.shape) for k, v in hf.load_peft_weights(str(tmp_path / name)).items()}
        for name in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]
    written, read = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    )
    assert written.keys() <= read.keys()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("padding", MASKS)
def test_the_loss_and_its_gradients_are_the_same(
    family: str, option: str, padding: str, base: Path
) -> None:
    ours, theirs = adapted(base, family, option), adapted_peer(family, option)
    matched = pairs(ours, theirs)
    with torch.no_grad():
        for own_parameter, their_parameter in matched:
            their_parameter.copy_(torch.from_numpy(own_parameter.data))
    mask = MASKS[padding]
    labels = np.array([2, 0])
    if family != "bert":
        labels = np.where(np.ones_like(IDS) if mask is None else mask, IDS, -100)
    loss = ours.loss(IDS, labels, mask)
    loss.backward()
    expected = theirs(
        input_ids=torch.from_numpy(IDS),
        attention_mask=None if mask is None else torch.from_numpy(mask),
        labels=torch.from_numpy(labels),
    ).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for own_parameter, their_parameter in matched:
        grad = their_parameter.grad.numpy()
        np.testing.assert_allclose(own_parameter.grad, grad, atol=1e-4 * np.abs(grad).max())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("option", ["prefix", "prompt", "p-tuning, narrow"])
def test_both_continue_a_text_alike(family: str, option: str, base: Path, tmp_path: Path) -> None:
    peft = adapted(base, family, option)
    peft.save_pretrained(tmp_path / "adapter")
    loaded = hf.PeftModel.from_pretrained(peer(family), tmp_path / "adapter").eval()
    expected = loaded.generate(
        input_ids=torch.from_numpy(IDS),
        attention_mask=torch.ones(IDS.shape, dtype=torch.long),
        max_new_tokens=8,
        min_new_tokens=8,
        eos_token_id=None,
        do_sample=False,
    ).numpy()
    np.testing.assert_array_equal(peft.generate(IDS, max_new_tokens=8), expected)
