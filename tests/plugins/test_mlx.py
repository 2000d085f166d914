"""mlx-lm's LoRA: what it wrote and computed, and what is written for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT, FAMILIES, LLAMA, Snapshot, logits, shake, small
from tinygrad_peft.errors import ConfigError, TinygradPeftError
from tinygrad_peft.models import load_model
from tinygrad_peft.models.inspection import Report
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(GOLDEN.glob("mlx-*"))
CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
LORA = LoraConfig(r=2, lora_alpha=3)


@cache
def host() -> Host:
    """What is installed; asking for it takes longer than most of the tests."""
    return Host.installed()


def read(model: Transformer, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(model, folder, host=host())


def adapt(model: Transformer, recipe: PeftConfig | Sequence[PeftConfig]) -> PeftModel:
    return get_peft_model(model, recipe, host=host())


def inspect(path: Path, base: TransformerConfig | None = None) -> Report:
    return inspect_path(path, host(), base=base)


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def settings(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    return values


def base(folder: Path) -> Transformer:
    return load_model(GOLDEN / str(settings(folder)["model"]))


def assert_logits(model: PeftModel | Transformer, folder: Path) -> None:
    with np.load(folder / "expected.npz") as wanted, no_grad():
        assert np.abs(model(wanted["input_ids"]).data - wanted["logits"]).max() < 1e-5


def saved(folder: Path, config: LoraConfig = LORA, family: str = "llama") -> PeftModel:
    peft = adapt(small(FAMILIES[family]), config)
    shake(peft)
    peft.save_pretrained(folder, layout="mlx-lm")
    return peft


def edit(folder: Path, parameters: Mapping[str, object] | None = None, **values: object) -> None:
    """Change what the settings hold; None takes a key out."""
    whole = {**settings(folder), **values}
    whole["lora_parameters"] = {**whole["lora_parameters"], **(parameters or {})}
    for part in (whole, whole["lora_parameters"]):
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    (folder / CONFIG).write_text(json.dumps(whole))


def refused(folder: Path, *parts: str, model: Transformer | None = None) -> str:
    """Loading raises one error with all parts, and the model is what it was."""
    model = small() if model is None else model
    before = Snapshot.of(model)
    with pytest.raises(TinygradPeftError) as caught:
        read(model, folder)
    before.assert_unchanged(model)
    for part in parts:
        assert part in str(caught.value)
    return str(caught.value)


# ---------- what mlx-lm wrote ----------


def test_the_logits_are_those_of_mlx_lm(folder: Path) -> None:
    peft = read(base(folder), folder)
    assert not peft.trainable_parameters()
    assert_logits(peft, folder)
    assert_logits(peft.merge_and_unload(), folder)


def test_what_is_read_is_written_again(folder: Path, tmp_path: Path) -> None:
    peft = read(base(folder), folder)
    peft.save_pretrained(tmp_path, layout="mlx-lm")
    written, before = load_file(tmp_path / WEIGHTS), load_file(folder / WEIGHTS)
    assert written.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(written[name], array)
    told, told_before = settings(tmp_path), settings(folder)
    assert told.keys() == {"fine_tune_type", "num_layers", "lora_parameters", "model"}
    assert Path(told["model"]).name == told_before["model"]
    assert told["fine_tune_type"] == told_before["fine_tune_type"]
    for name in ("rank", "scale", "dropout"):
        assert told["lora_parameters"][name] == told_before["lora_parameters"][name]
    assert_logits(read(base(folder), tmp_path), folder)


def test_in_hugging_face_pefts_manner_it_is_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    read(base(folder), folder).save_pretrained(tmp_path)
    assert_logits(read(base(folder), tmp_path), folder)


def test_inspect_tells_of_it_with_its_model_and_without(folder: Path) -> None:
    alone = inspect(folder)
    assert (alone.sound, alone.facts["format"], alone.facts["method"]) == (True, "mlx-lm", "lora")
    held = inspect(folder, base=base(folder).config)
    assert held.sound
    assert held.facts["ranks"] == [2]


# ---------- what is written ----------


CONFIGS = {
    "usual": LORA,
    "dora": replace(LORA, use_dora=True, target_modules="all-linear"),
    "last": replace(LORA, layers_to_transform=1),
    "first": replace(LORA, layers_to_transform=0),
    "rsLoRA": replace(LORA, use_rslora=True, lora_dropout=0.1),
    "one rank by a pattern": replace(LORA, r=5, rank_pattern={".*": 2}),
    "taken out": replace(LORA, init_lora_weights="pissa"),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(name: str, family: str, tmp_path: Path) -> None:
    peft = saved(tmp_path, CONFIGS[name], family)
    again = read(small(FAMILIES[family]), tmp_path)
    if name == "taken out":
        np.testing.assert_allclose(logits(again), logits(peft), rtol=1e-4, atol=1e-5)
        assert settings(tmp_path)["lora_parameters"]["rank"] == 4
    else:
        np.testing.assert_array_equal(logits(again), logits(peft))
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again.save_pretrained(tmp_path, layout="mlx-lm")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_its_matrices_are_transposed_and_its_scale_is_the_whole_factor(tmp_path: Path) -> None:
    peft = saved(tmp_path, replace(LORA, lora_alpha=7, target_modules=["k_proj"]))
    tensors, name = load_file(tmp_path / WEIGHTS), "model.layers.2.self_attn.k_proj"
    values = settings(tmp_path)
    assert values == {
        "fine_tune_type": "lora",
        "num_layers": 3,
        "lora_parameters": {
            "rank": 2,
            "scale": 3.5,
            "dropout": 0.0,
            "keys": ["self_attn.k_proj"],
        },
    }
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    low = x @ tensors[f"{name}.lora_a"]  # (4, r)
    expected = values["lora_parameters"]["scale"] * (low @ tensors[f"{name}.lora_b"])
    delta = peft.record.rewrites[-1].after.delta()  # type: ignore[attr-defined]
    np.testing.assert_allclose(x @ delta.T, expected, rtol=1e-4, atol=1e-6)


def test_layers_that_are_not_the_last_are_named_by_their_whole_paths(tmp_path: Path) -> None:
    saved(tmp_path, replace(LORA, layers_to_transform=[0, 2], target_modules=["q_proj"]))
    assert settings(tmp_path)["num_layers"] == 3
    assert settings(tmp_path)["lora_parameters"]["keys"] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
    ]
    saved(tmp_path, replace(LORA, layers_to_transform=[1, 2], target_modules=["q_proj"]))
    assert settings(tmp_path)["num_layers"] == 2
    assert settings(tmp_path)["lora_parameters"]["keys"] == ["self_attn.q_proj"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(LORA, bias="lora_only", target_modules=["c_attn"]), "bias='lora_only': it trains"),
        (replace(LORA, lora_bias=True), "lora_bias: it has no biases"),
        (
            replace(LORA, trainable_token_indices=[3]),
            "trainable_token_indices: it trains no tokens",
        ),
        (replace(LORA, modules_to_save=["ln_f"]), "modules_to_save: it trains no modules whole"),
        (
            replace(LORA, rank_pattern={r"h\.0\..*": 4}, alpha_pattern={r"h\.0\..*": 6}),
            "ranks [2, 4]: it has one rank",
        ),
        (replace(LORA, alpha_pattern={r"h\.0\..*": 4}), "scalings [1.5, 2.0]: it has one scale"),
        (
            replace(LORA, target_modules=["wpe"], use_dora=True),
            "use_dora on an embedding: its magnitudes are others there",
        ),
        (BottleneckAdapterConfig(), "no installed plugin writes adapter in it"),
    ],
)
def test_what_it_cannot_hold_is_refused_and_nothing_written(
    config: PeftConfig, reason: str, tmp_path: Path
) -> None:
    peft = adapt(small(FAMILIES["gpt2"]), config)
    with pytest.raises(ConfigError) as caught:
        peft.save_pretrained(tmp_path / "new", layout="mlx-lm")
    assert str(caught.value).startswith("mlx-lm's layout cannot hold 'default':\n  - ")
    assert reason in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_its_models_have_no_classifier_and_gpt2_no_head_of_its_own(tmp_path: Path) -> None:
    headed = replace(LLAMA, head="classification", num_labels=3)
    untied = replace(FAMILIES["gpt2"], tie_word_embeddings=False)
    for config, target in ((headed, "score"), (untied, "lm_head")):
        peft = adapt(small(config), replace(LORA, target_modules=[target]))
        with pytest.raises(ConfigError, match=f"{target}: its model has no such place"):
            peft.save_pretrained(tmp_path, layout="mlx-lm")


def test_it_has_no_bert(tmp_path: Path) -> None:
    peft = adapt(small(FAMILIES["bert"]), LORA)
    with pytest.raises(ConfigError, match="mlx-lm has no bert: gpt2, llama"):
        peft.save_pretrained(tmp_path, layout="mlx-lm")
    saved(tmp_path)
    refused(tmp_path, "mlx-lm has no bert: gpt2, llama", model=small(BERT))


# ---------- strictness ----------


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "full": (
        {"fine_tune_type": "full"},
        "fine_tune_type 'full' is all of a model's weights, and no adapter",
    ),
    "kind": ({"fine_tune_type": "lroa"}, "fine_tune_type 'lroa' is none of lora, dora, full"),
    "unknown": (
        {"parameters": {"alpha": 16}},
        "lora_parameters has the unknown alpha = 16",
    ),
    "misspelt": (
        {"parameters": {"dropuot": 0.5}},
        "lora_parameters has the unknown dropuot = 0.5; did you mean 'dropout'",
    ),
    "no scale": ({"parameters": {"scale": None}}, "missing required field `scale`"),
    "scale": ({"parameters": {"scale": 0}}, "lora_parameters.scale=0 must be a number other than"),
    "no layers": ({"num_layers": None}, "missing required field `num_layers`"),
    "no keys": ({"parameters": {"keys": []}}, "lora_parameters.keys is empty"),
    "rank": ({"parameters": {"rank": 0}}, "the rank r=0 must be at least 1"),
    "embedding": (
        {"fine_tune_type": "dora", "parameters": {"keys": ["model.embed_tokens"]}},
        "fine_tune_type 'dora' on an embedding: its magnitudes are others here",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_without_an_equal_is_refused(case: str, tmp_path: Path) -> None:
    saved(tmp_path)
    values, reason = WRONG[case]
    edit(tmp_path, **values)
    refused(tmp_path, f"{tmp_path / CONFIG} (of mlx-lm):", reason)


def test_all_that_is_wrong_with_the_settings_is_one_error(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, {"alpha": 16, "keys": []}, fine_tune_type="qlora")
    assert refused(tmp_path).count("\n  - ") == 3


def test_what_tells_of_the_training_run_is_passed_over(tmp_path: Path) -> None:
    peft = saved(tmp_path)
    edit(tmp_path, {"later": False}, optimizer="adam", iters=1000, whatever=[1])
    np.testing.assert_array_equal(logits(read(small(), tmp_path)), logits(peft))


@pytest.mark.parametrize("layers", [0, -1, 3, 16])
def test_all_layers_are_the_last_ones_too(layers: int, tmp_path: Path) -> None:
    peft = saved(tmp_path)
    edit(tmp_path, num_layers=layers)
    np.testing.assert_array_equal(logits(read(small(), tmp_path)), logits(peft))


def test_layers_without_their_tensors_and_tensors_of_other_layers_are_told(tmp_path: Path) -> None:
    saved(tmp_path, replace(LORA, layers_to_transform=[1, 2], target_modules=["q_proj"]))
    name = "model.layers.{}.self_attn.q_proj.lora_a (16, 2)"
    edit(tmp_path, num_layers=3)
    refused(tmp_path, f"missing: {name.format(0)}")
    edit(tmp_path, num_layers=1)
    refused(tmp_path, f"unexpected: {name.format(1)}")
    edit(tmp_path, num_layers=2)
    refused(
        tmp_path, f"missing: {name.format(3)}", model=small(replace(LLAMA, num_hidden_layers=4))
    )


Q = "model.layers.{}.self_attn.q_proj"
ALONE: Mapping[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "without its half": ({}, {Q.format(1) + ".lora_b": None}, [f"missing: {Q.format(1)}.lora_b"]),
    "without magnitudes": (
        {"fine_tune_type": "dora"},
        {},
        [f"missing: {Q.format(n)}.m" for n in range(3)],
    ),
    "other tensors": (
        {},
        {Q.format(0) + ".m": np.ones(16, np.float32)},
        [f"unexpected: {Q.format(0)}.m"],
    ),
    "no floats": (
        {},
        {Q.format(0) + ".lora_a": np.ones((16, 2), np.int8)},
        [f"wrong dtype: {Q.format(0)}.lora_a is I8, expected one of F64, F32, F16, BF16"],
    ),
    "another rank": (
        {},
        {Q.format(0) + ".lora_b": np.ones((3, 16), np.float32)},
        [f"{Q.format(0)}.lora_b is (3, 16), and the settings give it the rank 2"],
    ),
    "a key without tensors": (
        {"parameters": {"keys": ["self_attn.q_proj", "mlp.gate"]}},
        {},
        ["lora_parameters.keys: no tensor is of 'mlp.gate'"],
    ),
    "tensors without a key": (
        {"parameters": {"keys": [Q.format(0), Q.format(2)]}},
        {},
        [f"{Q.format(1)} has weights, and none of lora_parameters.keys names it"],
    ),
    "more layers": (
        {"num_layers": 2},
        {},
        ["self_attn.q_proj has weights in the layers 0, 1, 2, and num_layers=2 asks for 1 to 2"],
    ),
    "a layer is missing": (
        {},
        {Q.format(1) + ".lora_a": None, Q.format(1) + ".lora_b": None},
        ["self_attn.q_proj has weights in the layers 0, 2, and num_layers=3 asks for 0 to 2"],
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_contradicts_the_settings_is_told_without_the_model(case: str, tmp_path: Path) -> None:
    saved(tmp_path, replace(LORA, target_modules=["q_proj"]))
    values, tensors, told = ALONE[case]
    edit(tmp_path, **values)
    held = {**load_file(tmp_path / WEIGHTS), **tensors}
    save_file({k: v for k, v in held.items() if v is not None}, tmp_path / WEIGHTS)
    report = inspect(tmp_path)
    assert report.problems == told
    assert report.facts["method"] == "lora"
    assert not inspect(tmp_path, base=LLAMA).sound


def test_shapes_are_told_as_they_are_in_the_file(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.lora_a"
    tensors[name] = tensors[name].T.copy()
    save_file(tensors, tmp_path / WEIGHTS)
    refused(tmp_path, f"wrong shape: {name} is (2, 16), expected (16, 2)")
    (told,) = inspect(tmp_path).problems
    assert told.endswith(f"{name} is (2, 16), and the settings give it the rank 2")


def test_hugging_face_pefts_names_in_its_file_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    adapt(small(), LORA).save_pretrained(tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / WEIGHTS)
    refused(
        tmp_path, "expected names of mlx-lm's layout, got those of Hugging Face PEFT", "missing: "
    )


def test_its_names_in_hugging_face_pefts_file_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    adapt(small(), LORA).save_pretrained(tmp_path / "peft")
    (tmp_path / WEIGHTS).rename(tmp_path / "peft" / "adapter_model.safetensors")
    refused(
        tmp_path / "peft",
        "expected names of Hugging Face PEFT's layout, got those of mlx-lm",
        "missing: ",
    )


def test_weights_in_numpys_format_are_told(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapters.npz")
    refused(tmp_path, "adapters.npz is not read: save it as safetensors, with a current mlx-lm")


def test_a_tied_embedding_is_not_adapted_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, {"keys": ["model.embed_tokens"]})
    tied = small(replace(LLAMA, tie_word_embeddings=True))
    refused(tmp_path, "shares its weight with lm_head", model=tied)
