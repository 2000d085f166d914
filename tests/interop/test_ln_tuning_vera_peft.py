"""LN tuning and VeRA: what is written here gives the same in PEFT, and the other way round."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch
from safetensors.torch import save_file

from tests.interop.tiny import IDS, logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, get_peft_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_vera import VeraConfig, VeraLinear

# PEFT warns of Conv1D, of norms, of matrices that are not saved, and of names that it will change.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

FAMILIES = ("gpt2", "llama", "bert")
METHODS: dict[str, tuple[type[PeftConfig], Any]] = {
    "ln_tuning": (LNTuningConfig, hf.LNTuningConfig),
    "vera": (VeraConfig, hf.VeraConfig),
}
TARGETS = {
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value", "intermediate.dense"],
}
NORMS = {"gpt2": ["ln_1", "ln_f"], "llama": ["input_layernorm", "norm"], "bert": ["LayerNorm"]}
HEADS = {"gpt2": "wpe", "llama": "lm_head", "bert": "classifier"}
USUAL: dict[str, Any] = {"target_modules": None}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "ln_tuning": {
        "plain": {},
        "usual targets": USUAL,
        "a regular expression": {"target_modules": r".*\.1\..*(ln_\d|norm|Norm)"},
        "exclusions": {"exclude_modules": r".*\.0\..*"},
        "a module saved": {"modules_to_save": HEADS},
    },
    "vera": {
        "plain": {"r": 4, "projection_prng_key": 2**33 + 17},
        "usual targets": {"r": 256, "d_initial": 0.1, **USUAL},
        "all-linear": {"r": 3, "target_modules": "all-linear"},
        "a regular expression": {"r": 2, "target_modules": r".*\.1\..*(c_attn|v_proj|value)"},
        "one layer": {"r": 2, "layers_to_transform": [1]},
        "not saved": {"r": 5, "save_projection": False, "projection_prng_key": -3},
        "biases of targets": {"r": 2, "bias": "vera_only"},
        "all biases": {"r": 2, "bias": "all", "save_projection": False},
        "a module saved": {"r": 2, "modules_to_save": HEADS},
    },
}
CASES = [
    (method, option, family)
    for method, options in OPTIONS.items()
    for option in options
    for family in FAMILIES
]


def settings(method: str, option: str, family: str) -> dict[str, Any]:
    """Choose the settings of PEFT's config and of ours."""
    usual: dict[str, Any] = {"target_modules": NORMS[family]}
    if method == "vera":  # which at PEFT's own start has an effect too small to compare
        usual = {"target_modules": TARGETS[family], "d_initial": 1.0}
    chosen = {**usual, **OPTIONS[method][option]}
    if "modules_to_save" in chosen:
        chosen["modules_to_save"] = [chosen["modules_to_save"][family]]
    if family == "bert":
        chosen["modules_to_save"] = ["classifier"]  # which PEFT adds for any classifier
    return chosen


def peers(method: str, option: str, family: str) -> dict[str, Any]:
    """Choose PEFT's settings: it has no usual norms of BERT."""
    chosen = settings(method, option, family)
    unknown = (method, option, family) == ("ln_tuning", "usual targets", "bert")
    return chosen | ({"target_modules": ["LayerNorm"]} if unknown else {})


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


@dataclass(frozen=True)
class Written:
    """An adapter that PEFT made, moved and wrote, and what it gives when PEFT reads it."""

    method: str
    family: str
    config: PeftConfig
    base: Path
    folder: Path
    made: Any
    read: Any
    logits: Array


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def written(
    request: pytest.FixtureRequest, bases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    method, option, family = request.param
    ours, theirs = METHODS[method]
    folder = tmp_path_factory.mktemp("written")
    task = "SEQ_CLS" if family == "bert" else "CAUSAL_LM"
    made = shaken_peer(family, theirs(task_type=task, **peers(method, option, family)))
    made.save_pretrained(folder)
    read = hf.PeftModel.from_pretrained(peer(family), folder, is_trainable=True).eval()
    config = ours(**settings(method, option, family))
    return Written(method, family, config, bases / family, folder, made, read, peer_logits(read))


def shaken_peer(family: str, config: Any) -> Any:  # noqa: ANN401
    peft = hf.get_peft_model(peer(family), config)
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
        np.testing.assert_allclose(own_gradient, gradient, atol=bound, rtol=0, err_msg=name)


def gradients(model: Any) -> dict[str, Array]:  # noqa: ANN401
    """PEFT's, by the parameters' names in a file; it trains a module's original beside its copy."""
    named = {name: p for name, p in model.named_parameters() if ".original_module." not in name}
    return {stored_name(n): p.grad.numpy() for n, p in named.items() if p.requires_grad}


def stored_name(name: str) -> str:
    for part in (".modules_to_save.default", ".default"):
        name = name.replace(part, "")
    return name


def test_a_merged_adapter_gives_the_same_in_transformers(written: Written, tmp_path: Path) -> None:
    merged = PeftModel.from_pretrained(own(written.base), written.folder).merge_and_unload()
    np.testing.assert_allclose(logits(merged), written.logits, atol=1e-4)
    save_model(merged, tmp_path)
    opened = type(peer(written.family)).from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(peer_logits(opened), written.logits, atol=1e-4)


def test_peft_reads_our_files(written: Written, tmp_path: Path) -> None:
    ours = shaken(get_peft_model(own(written.base), written.config))
    ours.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer(written.family), tmp_path).eval()
    expected = peer_logits(read)
    assert np.abs(expected - peer_logits(peer(written.family))).max() > 1e-3
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)


def test_both_count_and_write_the_same(written: Written, tmp_path: Path) -> None:
    ours = get_peft_model(own(written.base), written.config)
    trained, total = ours.get_nb_trainable_parameters()
    # PEFT does not count VeRA's matrices as parameters, though it may write them.
    matrices = sum(p.size for p in ours.record.parameters() if not p.requires_grad)
    assert (trained, total - matrices) == written.made.get_nb_trainable_parameters()
    ours.save_pretrained(tmp_path)
    found, expected = (hf.load_peft_weights(str(f)) for f in (tmp_path, written.folder))
    # With bias="all" PEFT writes a saved module's bias twice more.
    expected = {n: t for n, t in expected.items() if ".modules_to_save." not in n}
    expected = {n: t for n, t in expected.items() if ".original_module." not in n}
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    for name in found.keys() & {"base_model.vera_A", "base_model.vera_B"}:
        assert torch.equal(found[name], expected[name])
    keys = [json.loads((f / "adapter_config.json").read_text()) for f in (tmp_path, written.folder)]
    assert keys[0].keys() <= keys[1].keys()


def test_matrices_that_are_not_saved_are_the_ones_that_peft_computes_with(bases: Path) -> None:
    chosen: dict[str, Any] = {"r": 7, "save_projection": False, "projection_prng_key": 11}
    theirs = hf.get_peft_model(peer("llama"), hf.VeraConfig(**chosen, target_modules="all-linear"))
    ours = get_peft_model(own(bases / "llama"), VeraConfig(**chosen, target_modules="all-linear"))
    after = ours.record.rewrites[0].after
    assert isinstance(after, VeraLinear)
    inner = theirs.base_model
    for drawn, expected in zip(
        after.projection.matrices, (inner.vera_A, inner.vera_B), strict=True
    ):
        np.testing.assert_array_equal(drawn, expected["default"].numpy())


def test_dropout_is_in_the_same_place_as_in_peft(
    bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = np.random.default_rng(0).random((2, 5, 16)) >= 0.5
    kept = torch.from_numpy(keep)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x * kept / 0.5)
    x = np.random.default_rng(1).normal(size=(2, 5, 16)).astype(np.float32)
    chosen: dict[str, Any] = {"r": 2, "vera_dropout": 0.5, "target_modules": ["q_proj"]}
    theirs = shaken_peer("llama", hf.VeraConfig(**chosen))
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    layer.train()
    ours = get_peft_model(own(bases / "llama"), VeraConfig(**chosen)).record.rewrites[0].after
    assert isinstance(ours, VeraLinear)
    ours.train()
    ours.vera_lambda_b.data = layer.vera_lambda_b["default"].detach().numpy()
    ours.vera_lambda_d.data = layer.vera_lambda_d["default"].detach().numpy()
    monkeypatch.setattr(ours.dropout, "keep", lambda _: keep)
    expected = layer(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(Tensor(x)).data, expected, atol=1e-5)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("excluded", [["down_proj"], r".*\.down_proj"])
def test_excluded_modules_are_not_written_as_vera_targets(
    bases: Path,
    tmp_path: Path,
    save: bool,
    layers: int | None,
    excluded: str | list[str],
) -> None:
    config = VeraConfig(
        r=4,
        d_initial=1.0,
        save_projection=save,
        target_modules=TARGETS["llama"],
        exclude_modules=excluded,
        layers_to_transform=layers,
    )
    ours = shaken(get_peft_model(own(bases / "llama"), config))
    ours.save_pretrained(tmp_path)
    read = hf.PeftModel.from_pretrained(peer("llama"), tmp_path).eval()
    expected = peer_logits(read)
    assert np.abs(expected - peer_logits(peer("llama"))).max() > 1e-3
    np.testing.assert_allclose(logits(ours), expected, atol=1e-4)
    loaded = PeftModel.from_pretrained(own(bases / "llama"), tmp_path)
    assert loaded.recipe == (config,)
    np.testing.assert_array_equal(logits(loaded), logits(ours))


# ---------- defects of PEFT 0.21.2; tests/plugins tests the right behaviour ----------


def test_ln_tuning_ignores_a_misspelt_target_silently() -> None:
    theirs = hf.get_peft_model(peer("llama"), hf.LNTuningConfig(target_modules=["norm", "nrom"]))
    assert theirs.targeted_module_names == ["model.norm"]


def test_ln_tuning_trains_a_linear_layer() -> None:
    theirs = hf.get_peft_model(peer("llama"), hf.LNTuningConfig(target_modules=["q_proj"]))
    assert theirs.get_nb_trainable_parameters()[0] == 2 * 16 * 16


def test_ln_tuning_of_two_adapters_fails_when_it_runs() -> None:
    theirs = hf.get_peft_model(peer("llama"), hf.LNTuningConfig(), adapter_name="a")
    theirs.add_adapter("b", hf.LNTuningConfig())
    theirs.base_model.set_adapter(["a", "b"])
    with pytest.raises(ValueError, match="2 active adapters"):
        peer_logits(theirs)


def test_a_second_veras_matrices_overwrite_the_firsts(tmp_path: Path) -> None:
    config: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"]}
    shaken_peer("llama", hf.VeraConfig(**config)).save_pretrained(tmp_path)
    weights = hf.load_peft_weights(str(tmp_path))
    weights["base_model.vera_A"] *= 2  # as another version of PyTorch may draw it
    save_file(weights, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    first = shaken_peer("llama", hf.VeraConfig(**config))
    before = peer_logits(first)
    first.load_adapter(str(tmp_path), "second")
    first.set_adapter("default")
    assert np.abs(peer_logits(first) - before).max() > 1e-4


def test_a_second_vera_of_wider_targets_is_refused() -> None:
    theirs = hf.get_peft_model(peer("llama"), hf.VeraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"vera_A has a size of 16 but 24 or greater"):
        theirs.add_adapter("other", hf.VeraConfig(r=4, target_modules=["down_proj"]))
