import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import (
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    LLAMA,
    Snapshot,
    logits,
    lora_host,
    shake,
    small,
)
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import CheckpointError, PeftError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Init, Linear, Parameter, Skeleton, Transformer
from tinygrad_peft.peft import PeftModel, count_recipe, get_peft_model, inspect_path
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import LoraConfig, LoraLinear, ResidualLora
from tinygrad_peft_lora.norms import Norms

LEAVING_RESIDUAL = ["pissa", "olora"]
X = np.random.default_rng(0).normal(size=(3, 4, 5))
FILES = ("adapter_config.json", "adapter_model.safetensors")


def frozen() -> Linear:
    rng = np.random.default_rng(1)
    weight = Parameter(rng.normal(size=(6, 5)), requires_grad=False)
    return Linear.of(weight, Parameter(rng.normal(size=6), requires_grad=False))


def residual(start: str, **settings: float) -> ResidualLora:
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=start, **settings)  # type: ignore[arg-type]
    return ResidualLora(frozen(), config, "layer", Init(3, np.float64))


def moved(start: str, **settings: float) -> ResidualLora:
    made = residual(start, **settings)
    rng = np.random.default_rng(2)
    for parameter in (made.lora_A.weight, made.lora_B.weight):
        parameter.data = parameter.data + rng.normal(size=parameter.shape)
    return made


def product(a: Parameter, b: Parameter) -> Array:
    return np.asarray(1.5 * b.data @ a.data)


# ---------- where A and B start ----------


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4"])
def test_pissa_starts_at_the_largest_singular_values(start: str) -> None:
    made = residual(start)
    u, s, vt = np.linalg.svd(frozen().weight.data)
    part = product(made.lora_A.weight, made.lora_B.weight)
    np.testing.assert_allclose(part, (u[:, :2] * s[:2]) @ vt[:2], rtol=1e-10)
    np.testing.assert_allclose(  # each factor has the root of the singular values
        np.linalg.norm(made.lora_A.weight.data, axis=1),
        np.linalg.norm(made.lora_B.weight.data, axis=0),
    )


def test_olora_starts_at_the_first_columns_of_q() -> None:
    made = residual("olora")
    q, r = np.linalg.qr(frozen().weight.data)
    np.testing.assert_array_equal(made.lora_A.weight.data, r[:2])
    np.testing.assert_array_equal(made.lora_B.weight.data, q[:, :2])


def test_orthogonal_initialisation_has_a_zero_update_of_nonzero_factors() -> None:
    config = LoraConfig(r=6, init_lora_weights="orthogonal")
    made = LoraLinear(Linear(400, 300), config, "layer", Init(3, np.float64))
    assert np.abs(made.delta()).max() < 1e-15
    for factor in (made.lora_A.weight.data, made.lora_B.weight.data):
        assert np.linalg.matrix_rank(factor) == 3
        assert factor.std() == pytest.approx(0.1 / np.sqrt(2), rel=0.1)


def test_a_rank_above_the_weights_is_refused() -> None:
    config = LoraConfig(r=20, init_lora_weights="pissa", target_modules=["c_attn"])
    model = small(GPT2)
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=r"at most 16 for a weight \(48, 16\), got 20"):
        get_peft_model(model, config, host=lora_host())
    before.assert_unchanged(model)


# ---------- the layer ----------


@pytest.mark.parametrize("start", LEAVING_RESIDUAL)
def test_the_layer_is_its_formula(start: str) -> None:
    made = moved(start)
    change = product(made.lora_A.weight, made.lora_B.weight)
    change = change - product(made.start_A, made.start_B)
    shift = frozen().bias
    assert shift is not None
    expected = X @ (frozen().weight.data + change).T + shift.data
    np.testing.assert_allclose(made(Tensor(X)).data, expected)
    np.testing.assert_allclose(made.delta(), change)
    merged = made.merge()
    assert isinstance(merged, Linear)
    np.testing.assert_allclose(merged(Tensor(X)).data, expected)


def test_dropout_spares_the_subtracted_part() -> None:
    made = moved("pissa", lora_dropout=0.4)
    made.dropout.rng = np.random.default_rng(7)
    keep = made.dropout.keep(X.shape)
    assert keep is not None
    made.dropout.rng = np.random.default_rng(7)
    rest = frozen().weight.data - product(made.start_A, made.start_B)
    shift = frozen().bias
    assert shift is not None
    low = product(made.lora_A.weight, made.lora_B.weight)
    expected = X @ rest.T + shift.data + (X * keep / 0.6) @ low.T
    np.testing.assert_allclose(made(Tensor(X)).data, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradients_are_the_differences_and_the_start_has_none(dropout: float) -> None:
    made = moved("pissa", lora_dropout=dropout)
    factors = [made.lora_A.weight, made.lora_B.weight]

    def function(x: Tensor, *_: Tensor) -> Tensor:
        made.dropout.rng = np.random.default_rng(7)
        return made(x)

    assert check_gradients(function, [Tensor(X, requires_grad=True), *factors]) < 1e-6
    made(Tensor(X)).sum().backward()
    assert made.start_A.grad is None
    assert made.start_B.grad is None


# ---------- in a model ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", LEAVING_RESIDUAL)
def test_the_base_is_never_touched(family: str, start: str) -> None:
    model = small(FAMILIES[family])
    before, output = Snapshot.of(model), logits(model)
    config = LoraConfig(r=2, init_lora_weights=start, target_modules="all-linear")
    peft = get_peft_model(model, config, host=lora_host())
    np.testing.assert_allclose(logits(peft), output, atol=2e-6)
    assert count_recipe(FAMILIES[family], config, lora_host()) == peft.get_nb_trainable_parameters()
    shake(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(logits(peft), output)
    peft.unload()
    before.assert_unchanged(model)


OPTIONS = {
    "plain": LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa"),
    "olora": LoraConfig(r=2, lora_alpha=3, init_lora_weights="olora"),
    "rslora": LoraConfig(r=2, lora_alpha=3, init_lora_weights="pissa", use_rslora=True),
    "patterns": LoraConfig(
        r=2,
        init_lora_weights="olora",
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={r"0\..*": 3},
        alpha_pattern={r"1\..*": 5, ".*": 2},
    ),
    "biases": LoraConfig(r=2, init_lora_weights="pissa", bias="all"),
    "saved modules": LoraConfig(
        r=2, init_lora_weights="pissa", modules_to_save=["classifier"], target_modules=["query"]
    ),
    "tokens": LoraConfig(r=2, init_lora_weights="pissa", trainable_token_indices=[3, 9]),
}


def trained(option: str) -> PeftModel:
    peft = get_peft_model(small(BERT_CLASSIFIER), OPTIONS[option], host=lora_host())
    shake(peft)
    return peft


def load(folder: Path, *, is_trainable: bool = False) -> PeftModel:
    return PeftModel.from_pretrained(
        small(BERT_CLASSIFIER), folder, host=lora_host(), is_trainable=is_trainable
    )


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("flatten", [False, True])
def test_a_plain_lora_of_twice_the_rank_is_saved(
    option: str, flatten: bool, tmp_path: Path
) -> None:
    peft = trained(option)
    peft.save_pretrained(tmp_path / "whole", flatten=flatten)
    (tmp_path / "plain").mkdir()
    for name in FILES:
        (tmp_path / "plain" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    plain = load(tmp_path / "plain")
    (config,) = plain.recipe
    assert isinstance(config, LoraConfig)
    assert config.init_lora_weights is True
    targets = config.target_modules  # written by name
    assert config == replace(OPTIONS[option].flattened(), target_modules=targets)
    np.testing.assert_array_equal(logits(plain), logits(peft))


@pytest.mark.parametrize("option", OPTIONS)
def test_training_continues_from_a_saved_adapter(option: str, tmp_path: Path) -> None:
    peft = trained(option)
    peft.save_pretrained(tmp_path)
    again = load(tmp_path, is_trainable=True)
    assert again.recipe == peft.recipe
    assert again.get_nb_trainable_parameters() == peft.get_nb_trainable_parameters()
    np.testing.assert_array_equal(logits(again), logits(peft))
    assert not any(p.requires_grad for p in load(tmp_path).base_model.parameters())


def test_the_scaling_is_the_same_at_every_path() -> None:
    for config in OPTIONS.values():
        plain = config.flattened()
        for path in ("encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense", "x"):
            assert plain.scaling(path) == pytest.approx(config.scaling(path), rel=1e-15)
            assert plain.rank(path) == 2 * config.rank(path)
        assert plain.flattened() is plain


def test_saving_over_it_leaves_no_residual_files(tmp_path: Path) -> None:
    trained("plain").save_pretrained(tmp_path)
    assert (tmp_path / "reparameterization.json").exists()
    trained("plain").save_pretrained(tmp_path, flatten=True)
    assert {p.name for p in tmp_path.iterdir()} == {*FILES, "recipe.json"}


def test_the_metadata_alone_asks_for_nothing(tmp_path: Path) -> None:
    peft = trained("plain")
    peft.save_pretrained(tmp_path)
    (tmp_path / "reparameterization.safetensors").unlink()
    np.testing.assert_array_equal(logits(load(tmp_path)), logits(peft))


# ---------- folders that PEFT has not converted ----------


def unconverted(folder: Path, start: str) -> PeftModel:
    """Write a folder with the trained A and B, and the settings of their initialisation."""
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=start)
    peft = get_peft_model(small(LLAMA), config, host=lora_host())
    shake(peft)
    peft.save_pretrained(folder)
    origin = load_file(folder / "reparameterization.safetensors")
    trained = {name: array for name, array in origin.items() if ".start_" not in name}
    save_file(trained, folder / FILES[1], metadata={"format": "pt"})
    (folder / "reparameterization.json").replace(folder / FILES[0])
    for name in ("reparameterization.safetensors", "recipe.json"):
        (folder / name).unlink()
    return peft


@pytest.mark.parametrize("start", LEAVING_RESIDUAL)
def test_an_unconverted_folder_is_read_with_the_start_of_this_base(
    start: str, tmp_path: Path
) -> None:
    peft = unconverted(tmp_path, start)
    loaded = PeftModel.from_pretrained(small(LLAMA), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    (config,) = peft.recipe
    assert isinstance(config, LoraConfig)
    assert loaded.recipe == (replace(config, target_modules=["q_proj", "v_proj"]),)


def test_missing_and_unexpected_tensors_of_an_unconverted_folder_are_named(
    tmp_path: Path,
) -> None:
    unconverted(tmp_path, "pissa")
    tensors = load_file(tmp_path / FILES[1])
    name = min(tensors)
    tensors["extra"] = tensors.pop(name)
    save_file(tensors, tmp_path / FILES[1])
    with pytest.raises(CheckpointError) as caught:
        PeftModel.from_pretrained(small(LLAMA), tmp_path, host=lora_host())
    assert f"missing: {name} (2, 16)" in str(caught.value)
    assert "unexpected: extra (2, 16)" in str(caught.value)
    assert "start_" not in str(caught.value)


def test_the_settings_on_disk_are_the_plain_ones(tmp_path: Path) -> None:
    trained("rslora").save_pretrained(tmp_path)
    written = json.loads((tmp_path / FILES[0]).read_text())
    assert (written["r"], written["init_lora_weights"]) == (4, True)
    assert written["lora_alpha"] == pytest.approx(3 * np.sqrt(2))


# ---------- a base without weights ----------


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shapes of the matrices that SVD and QR decompose."""
    shapes: list[tuple[int, ...]] = []

    def counted(decompose: Callable[..., object]) -> Callable[..., object]:
        def call(matrix: Array, *more: object, **settings: object) -> object:
            shapes.append(matrix.shape)
            return decompose(matrix, *more, **settings)

        return call

    for name in ("svd", "qr"):
        monkeypatch.setattr(np.linalg, name, counted(getattr(np.linalg, name)))
    return shapes


@pytest.mark.parametrize("start", LEAVING_RESIDUAL)
def test_nothing_is_decomposed_where_the_base_has_no_weights(
    start: str, tmp_path: Path, decompositions: list[tuple[int, ...]]
) -> None:
    unconverted(tmp_path, start)
    assert len(decompositions) == 6, "a base with weights is decomposed at each target"
    decompositions.clear()
    assert inspect_path(tmp_path, lora_host(), base=LLAMA).problems == []
    config = LoraConfig(r=2, init_lora_weights=start, target_modules=["q_proj"])
    skeleton = get_peft_model(Transformer(LLAMA, Skeleton()), config, host=lora_host())
    assert not any(p.data.any() for p in skeleton.trainable_parameters())
    with pytest.raises(PeftError, match=f"{start}: expected a rank of at most 16"):
        get_peft_model(Transformer(LLAMA, Skeleton()), replace(config, r=99), host=lora_host())
    assert decompositions == []


@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens"]])
def test_doras_norms_are_not_computed_where_a_folder_has_the_magnitudes(
    targets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoraConfig(r=2, use_dora=True, target_modules=targets)
    peft = get_peft_model(small(LLAMA), config, host=lora_host())
    shake(peft)
    peft.save_pretrained(tmp_path)
    expected = logits(peft)
    with monkeypatch.context() as patch:
        patch.setattr(Norms, "__call__", lambda *_: pytest.fail("the norms are computed"))
        assert inspect_path(tmp_path, lora_host(), base=LLAMA).problems == []
        loaded = PeftModel.from_pretrained(small(LLAMA), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(loaded), expected)
