"""(IA)³ that is written here gives the same logits in PEFT, and the other way round."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import IDS, logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft_ia3 import IA3Config, IA3Linear

# PEFT warns of Conv1D.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Names:
    """The names of a family's values, both ends of its feed-forward network, and a norm."""

    value: str
    inner: str
    outer: str
    norm: str


FAMILIES = {
    "gpt2": Names("c_attn", "c_fc", "mlp.c_proj", "ln_f"),
    "llama": Names("v_proj", "up_proj", "down_proj", "model.norm"),
    "bert": Names("value", "intermediate.dense", "output.dense", "embeddings.LayerNorm"),
}


def options(of: Names) -> dict[str, dict[str, Any]]:
    """The keyword arguments of PEFT's IA3Config and of ours."""
    both = [of.value, of.outer]
    expression = rf".*\.1\..*({of.value}|{of.inner}|{of.outer})"
    return {
        "usual": {},
        "one of the usual": {"target_modules": [of.value]},
        "inputs": {"target_modules": both, "feedforward_modules": both},
        "other inputs": {"target_modules": [of.value, of.inner], "feedforward_modules": [of.inner]},
        "all-linear": {"target_modules": "all-linear"},
        "all-linear outputs": {"target_modules": "all-linear", "feedforward_modules": []},
        "expressions": {
            "target_modules": expression,
            "feedforward_modules": rf".*({of.inner}|{of.outer})",
        },
        "an expression and names": {
            "target_modules": expression,
            "feedforward_modules": [of.inner, of.outer],
        },
        "excluded": {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
        "drawn": {"init_ia3_weights": False},
        "a saved norm": {"modules_to_save": [of.norm]},
    }


HEAD = {"target_modules": ["k_proj", "lm_head"], "feedforward_modules": ["lm_head"]}
CASES = [*((f, o) for f, names in FAMILIES.items() for o in options(names)), ("llama", "head")]


def settings(family: str, option: str) -> dict[str, Any]:
    chosen = {**options(FAMILIES[family]), "head": HEAD}[option]
    if family == "bert":  # PEFT adds the head of any classifier
        return {**chosen, "modules_to_save": ["classifier", *chosen.get("modules_to_save", ())]}
    return chosen


@dataclass(frozen=True)
class Written:
    """An adapter that PEFT made, moved and wrote, and what it gives."""

    family: str
    option: str
    base: Path
    folder: Path
    made: Any
    logits: Array

    def ours(self) -> PeftModel:
        config = IA3Config(**settings(self.family, self.option))
        return get_peft_model(own(self.base), config)


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


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def written(
    request: pytest.FixtureRequest, bases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    family, option = request.param
    folder = tmp_path_factory.mktemp("written")
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    config = hf.IA3Config(task_type=task, **settings(family, option))
    made: Any = hf.get_peft_model(peer(family), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.eval()
    made.save_pretrained(folder)
    return Written(family, option, bases / family, folder, made, peer_logits(made))


def test_what_peft_writes_is_read_here(written: Written) -> None:
    assert np.abs(written.logits - peer_logits(peer(written.family))).max() > 1e-3
    loaded = PeftModel.from_pretrained(own(written.base), written.folder)
    np.testing.assert_allclose(logits(loaded), written.logits, atol=1e-4)


def test_the_loss_and_the_gradients_are_the_same(written: Written) -> None:
    ours = PeftModel.from_pretrained(own(written.base), written.folder, is_trainable=True)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = np.array([2, 0]) if written.family == "bert" else np.where(mask, IDS, -100)
    batch = {"input_ids": IDS, "attention_mask": mask, "labels": labels}
    expected = written.made(**{name: torch.from_numpy(a) for name, a in batch.items()}).loss
    expected.backward()
    loss = ours.loss(IDS, labels, mask)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    found = {name: p.grad for name, p in ours.record.trained_parameters(0).items()}
    wanted = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): p.grad.numpy()
        for name, p in written.made.named_parameters()
        if p.requires_grad
    }
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        own_gradient = found[name]
        assert own_gradient is not None
        bound = 1e-4 * max(float(np.abs(gradient).max()), 1e-3)
        np.testing.assert_allclose(own_gradient, gradient, atol=bound, rtol=0, err_msg=name)


def test_a_merged_adapter_gives_the_same_in_transformers(written: Written, tmp_path: Path) -> None:
    loaded = PeftModel.from_pretrained(own(written.base), written.folder)
    merged = loaded.merge_and_unload()
    np.testing.assert_allclose(logits(merged), written.logits, atol=1e-4)
    save_model(merged, tmp_path)
    opened = type(peer(written.family)).from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(peer_logits(opened), written.logits, atol=1e-4)


def test_peft_reads_our_files(written: Written, tmp_path: Path) -> None:
    ours = shaken(written.ours())
    ours.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(written.family), tmp_path).eval()
    expected = peer_logits(read)
    assert np.abs(expected - peer_logits(peer(written.family))).max() > 1e-3
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)


def test_peft_reads_our_copy_of_its_files(written: Written, tmp_path: Path) -> None:
    loaded = PeftModel.from_pretrained(own(written.base), written.folder)
    loaded.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(written.family), tmp_path).eval()
    np.testing.assert_allclose(peer_logits(read), written.logits, atol=1e-4)


def test_both_adapt_the_same_modules_and_write_the_same_tensors(
    written: Written, tmp_path: Path
) -> None:
    ours = written.ours()
    wrapped = [r.seam.path for r in ours.record.rewrites if isinstance(r.after, IA3Linear)]
    assert set(wrapped) == set(written.made.targeted_module_names)
    ours.save_pretrained(tmp_path)
    found, expected = (
        {name: tuple(tensor.shape) for name, tensor in hf.load_peft_weights(str(folder)).items()}
        for folder in (tmp_path, written.folder)
    )
    # PEFT writes an adapted output layer's base as well.
    assert found == {n: shape for n, shape in expected.items() if ".base_layer." not in n}
    keys = [json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, written.folder)]
    assert keys[0].keys() <= keys[1].keys()


def test_both_count_the_same(written: Written) -> None:
    assert written.ours().get_nb_trainable_parameters() == (
        written.made.get_nb_trainable_parameters()
    )


def test_weights_that_sum_to_one_give_pefts_weighted_adapter(bases: Path, tmp_path: Path) -> None:
    theirs: Any = hf.get_peft_model(peer("llama"), hf.IA3Config(), adapter_name="a")
    theirs.add_adapter("b", hf.IA3Config())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ia3_l" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.add_weighted_adapter(["a", "b"], [0.3, 0.7], "sum")
    theirs.save_pretrained(tmp_path)
    theirs.set_adapter("sum")
    ours = PeftModel.from_pretrained(own(bases / "llama"), tmp_path / "a", adapter_name="a")
    ours.load_adapter(tmp_path / "b", "b")
    ours.add_weighted_adapter(["a", "b"], [0.3, 0.7], "sum")
    ours.set_adapter("sum")
    np.testing.assert_allclose(logits(ours), peer_logits(theirs.eval()), atol=1e-5)
    loaded = PeftModel.from_pretrained(own(bases / "llama"), tmp_path / "sum")
    np.testing.assert_allclose(logits(loaded), logits(ours), atol=1e-5)
