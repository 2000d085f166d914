"""AdaLoRA: read both ways, and trained side by side with PEFT."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model, load_model
from tinygrad_peft.train import Encoded, EncodedData, Stepper, TrainConfig, make_batch, train
from tinygrad_peft_adalora import AdaLoraConfig, AdaLoraLinear

# PEFT warns of Conv1D, and that it ignores its own rank_pattern, which it does not.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

FAMILIES = ("gpt2", "llama", "bert")
TARGETS = {
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value", "intermediate.dense"],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "usual targets": {"target_modules": None},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 30},
    "a regular expression": {"target_modules": r".*\.1\..*(c_attn|v_proj|value)"},
    "an exclusion": {"exclude_modules": r".*\.0\..*"},
    "one layer": {"layers_to_transform": [1]},
    "biases of targets": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a module saved": {
        "modules_to_save": {"gpt2": "wpe", "llama": "lm_head", "bert": "classifier"}
    },
}


def settings(option: str, family: str) -> dict[str, Any]:
    """What PEFT's config and ours are made with."""
    usual = {"init_r": 4, "target_r": 2, "total_step": 8, "lora_alpha": 64}
    chosen = {**usual, "target_modules": TARGETS[family], **OPTIONS[option]}
    if "modules_to_save" in chosen:
        chosen["modules_to_save"] = [chosen["modules_to_save"][family]]
    if family == "bert":
        chosen["modules_to_save"] = ["classifier"]  # which PEFT adds for any classifier
    return chosen


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        peer(family).save_pretrained(folder / family)
    return folder


def made(family: str, **chosen: Any) -> Any:  # noqa: ANN401 - PEFT's models have no common type
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    return hf.get_peft_model(peer(family), hf.AdaLoraConfig(task_type=task, **chosen))


def moved(peft: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_peft_writes_is_read_here(
    option: str, family: str, bases: Path, tmp_path: Path
) -> None:
    peft = moved(made(family, **settings(option, family)))
    peft.save_pretrained(tmp_path)
    assert np.abs(peer_logits(peft) - peer_logits(peer(family))).max() > 1e-3
    loaded = PeftModel.from_pretrained(own(bases / family), tmp_path)
    np.testing.assert_allclose(logits(loaded), peer_logits(peft), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_written_here_is_read_by_peft(
    option: str, family: str, bases: Path, tmp_path: Path
) -> None:
    ours = get_peft_model(own(bases / family), AdaLoraConfig(**settings(option, family)))
    shaken(ours).save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(family), tmp_path).eval()
    assert np.abs(logits(ours) - peer_logits(peer(family))).max() > 1e-3
    np.testing.assert_allclose(peer_logits(read), logits(ours), atol=1e-4)


# ---------- training ----------

STEPS = 14
BUDGET: dict[str, Any] = {
    "init_r": 6,
    "target_r": 2,
    "tinit": 2,
    "tfinal": 4,
    "deltaT": 2,
    "total_step": STEPS,
    "beta1": 0.8,
    "beta2": 0.7,
    "lora_alpha": 12,
}
RATE = 0.02


def batch(step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(step).integers(3, 59, (3, 7))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, **_: object) -> torch.Tensor:
    """In float64, as transformers' own is not."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train_theirs(peft: Any, steps: int) -> list[int]:  # noqa: ANN401
    """PEFT's own loop: the triplets whose values are not zero after each step."""
    peft.get_base_model().loss_function = cross_entropy
    trained = [p for p in peft.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    left = []
    for step in range(1, steps + 1):
        ids = torch.tensor(batch(step))
        peft(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        peft.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        left.append(sum(int((p != 0).sum()) for n, p in peft.named_parameters() if "lora_E" in n))
    return left


def train_ours(peft: PeftModel, steps: int) -> list[int]:
    config = TrainConfig(lr=RATE, warmup=0, schedule="constant", weight_decay=0, max_grad_norm=None)
    stepper, left = Stepper(peft, config, total_steps=STEPS), []
    layers = [m for _, m in peft.named_modules() if isinstance(m, AdaLoraLinear)]
    for step in range(1, steps + 1):
        rows = [Encoded(tuple(ids), tuple(ids)) for ids in batch(step).tolist()]
        stepper.step(make_batch(EncodedData(rows, pad_id=0)))
        left.append(sum(int(np.count_nonzero(layer.lora_E.data)) for layer in layers))
    return left


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_training_is_pefts(family: str, weight: float, bases: Path, tmp_path: Path) -> None:
    """To the end without the penalty; with it, to the last allocation.

    Here the triplets that are pruned are gone then, and PEFT goes on penalising them.
    """
    steps = STEPS - (BUDGET["tfinal"] if weight else 0)
    none = {"gpt2": {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}, "llama": {}}[family]
    base = peer(family, **none)
    base.save_pretrained(tmp_path / "base")
    chosen = {**BUDGET, "orth_reg_weight": weight, "target_modules": TARGETS[family]}
    theirs = hf.get_peft_model(base, hf.AdaLoraConfig(task_type="CAUSAL_LM", **chosen))
    theirs = theirs.double().eval()
    ours = get_peft_model(load_model(tmp_path / "base", dtype=np.float64), AdaLoraConfig(**chosen))
    stored = ours.record.stored_parameters(0)
    start = dict(theirs.named_parameters())
    for name, parameter in stored.items():
        parameter.data = start[f"{name}.default"].detach().numpy().copy()
    left = train_theirs(theirs, steps)
    assert train_ours(ours, steps) == left
    assert left[-1] == 2 * 6
    theirs.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_model(tmp_path / "base"), tmp_path)
    (read,), (written,) = loaded.recipe, ours.recipe
    assert isinstance(read, AdaLoraConfig)
    assert replace(read, target_modules=TARGETS[family]) == written  # PEFT has them as a set
    tolerance = 1e-4 if family == "llama" else 1e-8  # transformers' norm is in float32
    for name, parameter in stored.items():
        path, _, own_name = name.removeprefix("base_model.model.").rpartition(".")
        mask = np.array(read.kept(path))
        expected = start[f"{name}.default"].detach().numpy()
        expected = expected[:, mask] if own_name == "lora_B" else expected[mask]
        np.testing.assert_allclose(parameter.data, expected, atol=tolerance)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_that_was_pruned_here_is_read_by_peft(
    family: str, bases: Path, tmp_path: Path
) -> None:
    config = AdaLoraConfig(**{**BUDGET, "total_step": None}, target_modules=TARGETS[family])
    ours = get_peft_model(own(bases / family), config)
    rows = [Encoded(tuple(ids), tuple(ids)) for step in range(14) for ids in batch(step).tolist()]
    train(ours, EncodedData(rows, pad_id=0), None, TrainConfig(batch_size=3, epochs=1))
    ours.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(family), tmp_path).eval()
    values = {n: p for n, p in read.named_parameters() if "lora_E" in n}
    assert sum(p.numel() for p in values.values()) == 2 * 6
    np.testing.assert_allclose(peer_logits(read), logits(ours), atol=1e-4)
    merged = read.merge_and_unload()
    np.testing.assert_allclose(peer_logits(merged), logits(ours.merge_and_unload()), atol=1e-4)
