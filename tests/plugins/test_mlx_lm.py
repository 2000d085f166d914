"""LoRAs written by mlx-lm, its outputs for them, and files written for it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT, FAMILIES, LLAMA, logits, shake, small
from tests.plugins.foreign_folders import (
    CONFIG,
    GOLDEN,
    adapt,
    inspect,
    read,
    refused,
    settings,
)
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig, PeftModel
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig

FOLDERS = sorted(GOLDEN.glob("mlx-*"))
WEIGHTS = "adapters.safetensors"
LORA = LoraConfig(r=2, lora_alpha=3)


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


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
    """Change settings; None removes a key."""
    whole = {**settings(folder), **values}
    whole["lora_parameters"] = {**whole["lora_parameters"], **(parameters or {})}
    for part in (whole, whole["lora_parameters"]):
        for key in [key for key, value in part.items() if value is None]:
            del part[key]
    (folder / CONFIG).write_text(json.dumps(whole))


# ---------- what mlx-lm wrote ----------


def test_logits_match_mlx_lm(folder: Path) -> None:
    peft = read(base(folder), folder)
    assert not peft.trainable_parameters()
    assert_logits(peft, folder)
    assert_logits(peft.merge_and_unload(), folder)


def test_a_folder_that_was_read_is_written_again(folder: Path, tmp_path: Path) -> None:
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


def test_the_peft_layout_holds_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    read(base(folder), folder).save_pretrained(tmp_path)
    assert_logits(read(base(folder), tmp_path), folder)


def test_inspect_reports_the_adapter_with_and_without_its_base(folder: Path) -> None:
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
def test_a_written_folder_is_read_back(name: str, family: str, tmp_path: Path) -> None:
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


def test_matrices_are_transposed_and_the_scale_is_not_divided_by_the_rank(tmp_path: Path) -> None:
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


def test_layers_other_than_the_last_are_named_by_their_whole_paths(tmp_path: Path) -> None:
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
        (replace(LORA, bias="lora_only", target_modules=["c_attn"]), "trains no biases"),
        (replace(LORA, lora_bias=True), "lora_bias: mlx-lm's B has no bias"),
        (
            replace(LORA, trainable_token_indices=[3]),
            "trainable_token_indices: mlx-lm trains no single tokens",
        ),
        (replace(LORA, modules_to_save=["ln_f"]), "mlx-lm trains no whole modules"),
        (
            replace(LORA, rank_pattern={r"h\.0\..*": 4}, alpha_pattern={r"h\.0\..*": 6}),
            "ranks [2, 4]: mlx-lm has one rank",
        ),
        (replace(LORA, alpha_pattern={r"h\.0\..*": 4}), "mlx-lm has one scale for all"),
        (
            replace(LORA, target_modules=["wpe"], use_dora=True),
            "use_dora on an embedding: mlx-lm's magnitudes differ there",
        ),
        (BottleneckAdapterConfig(), "no installed plugin writes adapter in it"),
    ],
)
def test_unsupported_settings_are_refused_and_nothing_is_written(
    config: PeftConfig, reason: str, tmp_path: Path
) -> None:
    peft = adapt(small(FAMILIES["gpt2"]), config)
    with pytest.raises(ConfigError) as caught:
        peft.save_pretrained(tmp_path / "new", layout="mlx-lm")
    assert str(caught.value).startswith("mlx-lm's layout cannot hold 'default':\n  - ")
    assert reason in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_classifiers_and_gpt2s_head_are_refused(tmp_path: Path) -> None:
    headed = replace(LLAMA, head="classification", num_labels=3, pooling="last")
    untied = replace(FAMILIES["gpt2"], tie_word_embeddings=False)
    for config, target in ((headed, "score"), (untied, "lm_head")):
        peft = adapt(small(config), replace(LORA, target_modules=[target]))
        with pytest.raises(ConfigError, match=f"{target}: mlx-lm's model has no such module"):
            peft.save_pretrained(tmp_path, layout="mlx-lm")


def test_a_bert_is_refused(tmp_path: Path) -> None:
    peft = adapt(small(FAMILIES["bert"]), LORA)
    with pytest.raises(ConfigError, match="expected one of gpt2, llama, got bert"):
        peft.save_pretrained(tmp_path, layout="mlx-lm")
    saved(tmp_path)
    refused(tmp_path, "expected one of gpt2, llama, got bert", model=small(BERT))


# ---------- strictness ----------


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "full": (
        {"fine_tune_type": "full"},
        "fine_tune_type 'full': expected an adapter, got all of a model's weights",
    ),
    "kind": ({"fine_tune_type": "lroa"}, "expected 'lora' or 'dora', got 'lroa'"),
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
        "fine_tune_type 'dora' on an embedding: its magnitudes differ here",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_unsupported_setting_in_a_file_is_refused(case: str, tmp_path: Path) -> None:
    saved(tmp_path)
    values, reason = WRONG[case]
    edit(tmp_path, **values)
    refused(tmp_path, f"{tmp_path / CONFIG} (of mlx-lm):", reason)


def test_one_error_lists_every_invalid_setting(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, {"alpha": 16, "keys": []}, fine_tune_type="qlora")
    assert refused(tmp_path).count("\n  - ") == 3


def test_settings_of_the_training_run_are_ignored(tmp_path: Path) -> None:
    peft = saved(tmp_path)
    edit(tmp_path, {"later": False}, optimizer="adam", iters=1000, whatever=[1])
    np.testing.assert_array_equal(logits(read(small(), tmp_path)), logits(peft))


@pytest.mark.parametrize("layers", [0, -1, 3, 16])
def test_num_layers_may_cover_all_layers(layers: int, tmp_path: Path) -> None:
    peft = saved(tmp_path)
    edit(tmp_path, num_layers=layers)
    np.testing.assert_array_equal(logits(read(small(), tmp_path)), logits(peft))


def test_missing_and_unexpected_layers_are_reported(tmp_path: Path) -> None:
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
        [f"{Q.format(0)}.lora_b: expected rank 2, got shape (3, 16)"],
    ),
    "a key without tensors": (
        {"parameters": {"keys": ["self_attn.q_proj", "mlp.gate"]}},
        {},
        ["lora_parameters.keys: 'mlp.gate' has no tensors"],
    ),
    "tensors without a key": (
        {"parameters": {"keys": [Q.format(0), Q.format(2)]}},
        {},
        [f"{Q.format(1)}: has tensors, but is not in lora_parameters.keys"],
    ),
    "more layers": (
        {"num_layers": 2},
        {},
        ["self_attn.q_proj: expected tensors in layers 1 to 2 (num_layers=2), got 0, 1, 2"],
    ),
    "a layer is missing": (
        {},
        {Q.format(1) + ".lora_a": None, Q.format(1) + ".lora_b": None},
        ["self_attn.q_proj: expected tensors in layers 0 to 2 (num_layers=3), got 0, 2"],
    ),
}


@pytest.mark.parametrize("case", ALONE)
def test_contradictions_to_the_settings_are_reported_without_the_base(
    case: str, tmp_path: Path
) -> None:
    saved(tmp_path, replace(LORA, target_modules=["q_proj"]))
    values, tensors, told = ALONE[case]
    edit(tmp_path, **values)
    held = {**load_file(tmp_path / WEIGHTS), **tensors}
    save_file({k: v for k, v in held.items() if v is not None}, tmp_path / WEIGHTS)
    report = inspect(tmp_path)
    assert report.problems == told
    assert report.facts["method"] == "lora"
    on_base = inspect(tmp_path, base=LLAMA)
    assert not on_base.sound or on_base.notes


def test_shapes_are_reported_as_in_the_file(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "model.layers.0.self_attn.q_proj.lora_a"
    tensors[name] = tensors[name].T.copy()
    save_file(tensors, tmp_path / WEIGHTS)
    refused(tmp_path, f"wrong shape: {name} is (2, 16), expected (16, 2)")
    (told,) = inspect(tmp_path).problems
    assert told.endswith(f"{name}: expected rank 2, got shape (2, 16)")


def test_pefts_names_in_mlx_lms_file_are_reported(tmp_path: Path) -> None:
    saved(tmp_path)
    adapt(small(), LORA).save_pretrained(tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / WEIGHTS)
    refused(
        tmp_path, "expected names of mlx-lm's layout, got those of Hugging Face PEFT", "missing: "
    )


def test_mlx_lms_names_in_pefts_file_are_reported(tmp_path: Path) -> None:
    saved(tmp_path)
    adapt(small(), LORA).save_pretrained(tmp_path / "peft")
    (tmp_path / WEIGHTS).rename(tmp_path / "peft" / "adapter_model.safetensors")
    refused(
        tmp_path / "peft",
        "expected names of Hugging Face PEFT's layout, got those of mlx-lm",
        "missing: ",
    )


def test_weights_in_numpys_format_are_reported(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapters.npz")
    refused(tmp_path, "adapters.npz is not read: save it as safetensors, with a current mlx-lm")


def test_a_tied_embedding_is_not_adapted_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, {"keys": ["model.embed_tokens"]})
    tied = small(replace(LLAMA, tie_word_embeddings=True))
    refused(tmp_path, "shares its weight with lm_head", model=tied)


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        replace(LORA, layers_to_transform=[1, 2], use_dora=True),
        replace(LORA, target_modules=r".*(0\.self_attn\.k_proj|1\.mlp\.up_proj)|lm_head"),
    ],
    ids=["some", "some layers", "other places in each layer"],
)
def test_without_keys_the_places_are_those_in_the_file(config: LoraConfig, tmp_path: Path) -> None:
    """mlx-lm adapts all linear layers then, or q_proj and v_proj before 2025: it reads both."""
    peft = saved(tmp_path, config)
    edit(tmp_path, {"keys": None})
    np.testing.assert_array_equal(logits(read(small(), tmp_path)), logits(peft))
    for known in (None, LLAMA):
        report = inspect(tmp_path) if known is None else inspect(tmp_path, base=known)
        assert report.sound
