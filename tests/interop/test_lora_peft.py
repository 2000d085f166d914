"""Adapters that are written here give the same logits in PEFT, and the other way round."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.lora_cases import CASES, TAKEN_OUT, settings
from tests.interop.tiny import IDS, logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import LoraConfig, LoraEmbedding, LoraLinear

# PEFT warns of Conv1D, and of names that it means to change.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for family in ("gpt2", "llama", "bert"):
        peer(family).save_pretrained(folder / family)
    return folder


@dataclass(frozen=True)
class Written:
    """An adapter that PEFT made, moved and wrote, and what it gives when PEFT reads it."""

    family: str
    option: str
    base: Path
    folder: Path
    made: Any
    read: Any
    logits: Array

    @property
    def settings(self) -> dict[str, Any]:
        return settings(self.family, self.option)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def written(
    request: pytest.FixtureRequest, bases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    family, option = request.param
    folder = tmp_path_factory.mktemp("written")
    made = shaken_peer(family, **settings(family, option))
    made.save_pretrained(folder)
    # PEFT sorts the patterns when it writes them, so what it reads may differ from what it wrote.
    read = hf.PeftModel.from_pretrained(peer(family), folder, is_trainable=True).eval()
    return Written(family, option, bases / family, folder, made, read, peer_logits(read))


def shaken_peer(family: str, **config: Any) -> Any:  # noqa: ANN401
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    peft = hf.get_peft_model(peer(family), hf.LoraConfig(task_type=task, **config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft.eval()


def test_what_peft_writes_is_read_here(written: Written) -> None:
    assert np.abs(written.logits - peer_logits(peer(written.family))).max() > 1e-3
    loaded = PeftModel.from_pretrained(own(written.base), written.folder)
    np.testing.assert_allclose(logits(loaded), written.logits, atol=1e-4)


def test_the_loss_and_the_gradients_are_the_same(written: Written) -> None:
    ours = PeftModel.from_pretrained(own(written.base), written.folder, is_trainable=True)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = np.array([2, 0]) if written.family == "bert" else np.where(mask, IDS, -100)
    batch = {"input_ids": IDS, "attention_mask": mask, "labels": labels}
    expected = written.read(**{name: torch.from_numpy(a) for name, a in batch.items()}).loss
    expected.backward()
    loss = ours.loss(IDS, labels, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    found = {name: p.grad for name, p in ours.record.trained_parameters(0).items()}
    wanted = gradients(written.read)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        bound = 1e-4 * max(float(np.abs(gradient).max()), 1e-3)
        own_gradient = found[name]
        assert own_gradient is not None
        if name in ours.record.transposed(0):
            own_gradient = own_gradient.T
        np.testing.assert_allclose(own_gradient, gradient, atol=bound, rtol=0, err_msg=name)


def gradients(model: Any) -> dict[str, Array]:  # noqa: ANN401
    """PEFT's, by the parameters' names in a file; it trains a module's original beside its copy."""
    named = {name: p for name, p in model.named_parameters() if ".original_module." not in name}
    return {stored_name(n): p.grad.numpy() for n, p in named.items() if p.requires_grad}


def stored_name(name: str) -> str:
    for part in (".modules_to_save.default", ".default"):
        name = name.replace(part, "")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def test_a_merged_adapter_gives_the_same_in_transformers(written: Written, tmp_path: Path) -> None:
    loaded = PeftModel.from_pretrained(own(written.base), written.folder)
    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(logits(merged), written.logits, atol=1e-4)
    save_model(merged, tmp_path)
    opened = type(peer(written.family)).from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(peer_logits(opened), written.logits, atol=1e-4)


def test_peft_reads_our_files(written: Written, tmp_path: Path) -> None:
    ours = shaken(get_peft_model(own(written.base), LoraConfig(**written.settings)))
    ours.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(written.family), tmp_path).eval()
    expected = peer_logits(read)
    assert np.abs(expected - peer_logits(peer(written.family))).max() > 1e-3
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)


def test_both_adapt_the_same_modules_and_write_the_same_tensors(
    written: Written, tmp_path: Path
) -> None:
    ours = get_peft_model(own(written.base), LoraConfig(**written.settings))
    wrapped = [r for r in ours.record.rewrites if isinstance(r.after, LoraLinear | LoraEmbedding)]
    assert {r.seam.path for r in wrapped} == set(written.made.targeted_module_names)
    ours.save_pretrained(tmp_path)
    found, expected = (
        {name: tuple(tensor.shape) for name, tensor in hf.load_peft_weights(str(folder)).items()}
        for folder in (tmp_path, written.folder)
    )
    # PEFT writes an embedding's base as well, and with bias="all" a saved module twice more.
    more = (".modules_to_save.", ".original_module.", ".base_layer.weight")
    expected = {n: shape for n, shape in expected.items() if not any(m in n for m in more)}
    if written.option in TAKEN_OUT:  # what is written is a plain LoRA of twice the rank
        assert found.keys() == expected.keys()
    else:
        assert found == expected
    keys = [json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, written.folder)]
    assert keys[0].keys() <= keys[1].keys()


def test_both_count_the_same(written: Written) -> None:
    ours = get_peft_model(own(written.base), LoraConfig(**written.settings))
    (trained, total), expected = (
        model.get_nb_trainable_parameters() for model in (ours, written.made)
    )
    # What PEFT takes out of the base is kept beside it here, frozen.
    kept = sum(p.size for p in ours.record.parameters() if not p.requires_grad)
    assert bool(kept) == (written.option in TAKEN_OUT)
    assert (trained, total - kept) == expected


def test_pissa_by_iterations_approaches_the_exact_one(bases: Path, tmp_path: Path) -> None:
    model = peer("llama")
    with torch.no_grad():
        for layer in model.model.layers:  # singular values that soon fall off
            weight = layer.self_attn.q_proj.weight
            u, _, vt = torch.linalg.svd(weight)
            weight.copy_(u @ torch.diag(0.2 ** torch.arange(16.0)) @ vt)
    model.save_pretrained(tmp_path / "base")
    config = hf.LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights="pissa_niter_8")
    theirs = hf.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = PeftModel.from_pretrained(own(tmp_path / "base"), tmp_path / "adapter")
    np.testing.assert_allclose(logits(ours), peer_logits(theirs), atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=str)
def test_dropout_is_in_the_same_place_as_in_peft(
    more: dict[str, Any], bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = np.random.default_rng(0).random((2, 5, 16)) >= 0.5
    kept = torch.from_numpy(keep)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x * kept / 0.5)
    x = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    chosen: dict[str, Any] = {"r": 2, "lora_dropout": 0.5, "target_modules": ["q_proj"], **more}
    theirs = shaken_peer("llama", **chosen)
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    layer.train()
    ours = get_peft_model(own(bases / "llama"), LoraConfig(**chosen)).record.rewrites[0].after
    assert isinstance(ours, LoraLinear)
    ours.train()
    values = {stored_name(name): p.detach().numpy() for name, p in layer.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name in values and "lora_" in name:
            parameter.data = values[name]
    expected = layer(torch.from_numpy(x)).detach().numpy()
    monkeypatch.setattr(ours.dropout, "keep", lambda _: keep)
    np.testing.assert_allclose(ours(Tensor(x)).data, expected, atol=1e-5)
