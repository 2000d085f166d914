from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT_CLASSIFIER, GPT2, LLAMA, Snapshot, logits, lora_host, shake, small
from tinygrad_peft.arrays import Array
from tinygrad_peft.errors import AdapterWarning, CheckpointError, PeftError, TargetError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import Embedding, Init, TransformerConfig
from tinygrad_peft.peft import PeftModel, count_recipe, get_peft_model
from tinygrad_peft.tensor import Tensor
from tinygrad_peft_lora import DoraEmbedding, LoraConfig, LoraEmbedding

IDS = np.array([[1, 4, 1], [0, 6, 6]])
PLAIN, DORA = LoraConfig(r=2, lora_alpha=3), LoraConfig(r=2, lora_alpha=3, use_dora=True)
MODELS = {
    "llama": (LLAMA, ["embed_tokens", "q_proj"]),
    "bert": (BERT_CLASSIFIER, ["word_embeddings", "position_embeddings", "query"]),
}


def table() -> Embedding:
    made = Embedding(7, 4, init=Init(1, np.float64))
    made.freeze()
    return made


def moved(kind: type[LoraEmbedding], config: LoraConfig) -> LoraEmbedding:
    made = kind(table(), config, "embed_tokens", Init(3, np.float64))
    rng = np.random.default_rng(2)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.1 * rng.normal(size=parameter.shape)
    return made


def weight(made: LoraEmbedding) -> Array:
    """Build the adapted layer's whole table."""
    total = table().weight.data + 1.5 * (made.lora_embedding_B.data @ made.lora_embedding_A.data).T
    if not isinstance(made, DoraEmbedding):
        return np.asarray(total)
    return np.asarray(made.lora_magnitude_vector.data * total / np.linalg.norm(total, axis=0))


KINDS = {"lora": (LoraEmbedding, PLAIN), "dora": (DoraEmbedding, DORA)}


@pytest.mark.parametrize("name", KINDS)
def test_the_layer_is_its_formula_and_merges(name: str) -> None:
    made = moved(*KINDS[name])
    np.testing.assert_allclose(made(IDS).data, weight(made)[IDS], rtol=1e-12)
    merged = made.merge()
    assert isinstance(merged, Embedding)
    np.testing.assert_allclose(merged.weight.data, weight(made), rtol=1e-12)
    assert LoraEmbedding(made, PLAIN, "embed_tokens", Init()).merge() is None


@pytest.mark.parametrize("name", KINDS)
def test_the_gradients_are_the_differences(name: str) -> None:
    made = moved(*KINDS[name])
    if isinstance(made, DoraEmbedding):
        norms = made.norms()
        made.norms = lambda: norms  # type: ignore[method-assign]

    def function(*_: Tensor) -> Tensor:
        return made(IDS)

    inputs = [p for p in made.parameters() if p.requires_grad]
    assert len(inputs) == 2 + (name == "dora")
    assert check_gradients(function, inputs) < 1e-6


def test_a_starts_at_zero_and_b_normal() -> None:
    made = LoraEmbedding(Embedding(50, 400), LoraConfig(r=20), "embed_tokens", Init())
    assert not made.lora_embedding_A.data.any()
    assert made.lora_embedding_A.shape == (20, 50)
    assert made.lora_embedding_B.shape == (400, 20)
    assert abs(made.lora_embedding_B.data.std() - 1) < 0.03
    both = LoraConfig(r=20, init_lora_weights=False)
    drawn = LoraEmbedding(Embedding(50, 400), both, "embed_tokens", Init())
    assert abs(drawn.lora_embedding_A.data.std() - 1) < 0.05


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_model_is_adapted_counted_saved_loaded_and_merged(
    family: str, use_dora: bool, tmp_path: Path
) -> None:
    shape, targets = MODELS[family]
    config = LoraConfig(r=2, target_modules=targets, use_dora=use_dora)
    model = small(shape)
    before = logits(model)
    peft = get_peft_model(model, config, host=lora_host())
    np.testing.assert_allclose(logits(peft), before, atol=2e-6)
    assert count_recipe(shape, config, lora_host()) == peft.get_nb_trainable_parameters()
    shake(peft)
    expected = logits(peft)
    peft.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(small(shape), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(loaded), expected)
    np.testing.assert_allclose(logits(peft.merge_and_unload()), expected, atol=2e-6)


def test_the_keys_are_pefts_and_the_base_is_not_written(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["embed_tokens"], use_dora=True)
    get_peft_model(small(), config, host=lora_host()).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {k: v.shape for k, v in stored.items()} == {
        "base_model.model.model.embed_tokens.lora_embedding_A": (2, 50),
        "base_model.model.model.embed_tokens.lora_embedding_B": (16, 2),
        "base_model.model.model.embed_tokens.lora_magnitude_vector": (16,),
    }


# ---------- the base's own weight in a file of PEFT's ----------

BASE = "base_model.model.model.embed_tokens.base_layer.weight"


def with_base(folder: Path, weight: Array) -> Path:
    """Write a folder as PEFT does, with the base's whole table in it."""
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])
    get_peft_model(small(), config, host=lora_host()).save_pretrained(folder)
    (folder / "recipe.json").unlink()
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), BASE: weight}, file, metadata={"format": "pt"})
    return folder


def own_table() -> Array:
    embedding = small().embed_tokens
    assert isinstance(embedding, Embedding)
    return embedding.weight.data


def test_the_bases_own_table_in_a_file_is_ignored(tmp_path: Path) -> None:
    PeftModel.from_pretrained(small(), with_base(tmp_path, own_table()), host=lora_host())


@pytest.mark.parametrize("change", [2e-7, 1e-4])
def test_a_table_with_other_values_is_used_and_named(change: float, tmp_path: Path) -> None:
    other = own_table() + np.float32(change)
    with pytest.warns(AdapterWarning, match=r"model\.embed_tokens: .* with other values"):
        peft = PeftModel.from_pretrained(small(), with_base(tmp_path, other), host=lora_host())
    np.testing.assert_array_equal(
        peft.merge_and_unload().state_dict()["embed_tokens.weight"], other
    )


@pytest.mark.parametrize(
    ("change", "message"), [("shape", "51 tokens, 1 more than"), ("not a number", "1 NaN of 800")]
)
def test_a_table_that_cannot_be_used_is_refused(change: str, message: str, tmp_path: Path) -> None:
    other = own_table().copy()
    if change == "shape":
        other = np.concatenate([other, other[:1]])
    else:
        other[0, 0] = np.nan
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(model, with_base(tmp_path, other), host=lora_host())
    before.assert_unchanged(model)


# ---------- what is refused ----------


@pytest.mark.parametrize(("shape", "name"), [(GPT2, "wte"), (GPT2, "lm_head")])
def test_adapting_one_of_two_tied_modules_is_refused(shape: TransformerConfig, name: str) -> None:
    with pytest.raises(TargetError, match=r"shares its weight with .* would untie them"):
        get_peft_model(small(shape), LoraConfig(target_modules=[name]), host=lora_host())


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (LoraConfig(lora_bias=True), "lora_bias"),
        (LoraConfig(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (LoraConfig(init_lora_weights="olora"), "init_lora_weights='olora'"),
    ],
)
def test_setting_of_affine_layers_is_refused_for_an_embedding(
    config: LoraConfig, setting: str
) -> None:
    values = {**vars(config), "target_modules": ["embed_tokens"]}
    model = small()
    before = Snapshot.of(model)
    with pytest.raises(PeftError, match=rf"model\.embed_tokens: {setting} needs an affine layer"):
        get_peft_model(model, LoraConfig(**values), host=lora_host())
    before.assert_unchanged(model)
