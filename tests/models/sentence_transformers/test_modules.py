"""Reading modules.json and the settings of the modules."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models.sentence_transformers import read_modules

CLASS = "sentence_transformers.models."
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
Write = Callable[[str, object], None]


def modules(*named: str, **paths: str) -> list[dict[str, object]]:
    """Entries of modules.json, for classes in the usual folders."""
    usual = {name: "" if i == 0 else f"{i}_{name}" for i, name in enumerate(named)}
    return [
        {"idx": i, "name": str(i), "path": paths.get(name, usual[name]), "type": f"{CLASS}{name}"}
        for i, name in enumerate(named)
    ]


def switches(*on: str) -> dict[str, object]:
    """A pooling's settings in the older form, with the modes in `on`."""
    return {f"pooling_mode_{name}": name in on for name in (*POOLINGS, "lasttoken")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a JSON file of the folder, which begins as [Transformer, Pooling] with the mean."""

    def write_json(name: str, value: object) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")

    write_json("config.json", {"model_type": "bert"})
    write_json("modules.json", modules("Transformer", "Pooling"))
    write_json("1_Pooling/config.json", switches("mean_tokens"))
    return write_json


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_modules(folder)
    return str(caught.value)


# ---------- what a folder is ----------


def test_a_plain_checkpoint_has_no_modules(folder: Path, write: Write) -> None:
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    assert read_modules(folder) is None


def test_a_pooling_beside_config_json_is_enough(folder: Path, write: Write) -> None:
    (folder / "modules.json").unlink()
    found = read_modules(folder)
    assert found is not None
    assert (found.pooling, found.dense, found.names) == ("mean", None, ("Transformer", "Pooling"))


def test_the_transformer_may_stand_in_a_folder_of_its_own(folder: Path, write: Write) -> None:
    write("modules.json", modules("Transformer", "Pooling", Transformer="0_Transformer"))
    write("0_Transformer/sentence_bert_config.json", {"max_seq_length": 77})
    found = read_modules(folder)
    assert found is not None
    assert (found.transformer, found.max_seq_length) == (folder / "0_Transformer", 77)


def test_modules_that_change_no_logit_pass(folder: Path, write: Write) -> None:
    write("modules.json", modules("Transformer", "Dropout", "Pooling", "Normalize", Pooling="1_P"))
    write("1_P/config.json", switches("cls_token"))
    found = read_modules(folder)
    assert found is not None
    assert (found.names, found.pooling) == (("Transformer", "Pooling", "Normalize"), "cls")


# ---------- pooling ----------


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (switches("mean_tokens"), "mean"),
        (switches("cls_token"), "cls"),
        (switches("lasttoken"), "last"),
        (switches(), "mean"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": "cls", **switches("max_tokens")}, "cls"),
        ({**switches("mean_tokens"), "include_prompt": False}, "mean"),
    ],
)
def test_pooling_is_read_in_both_forms(
    folder: Path, write: Write, settings: object, pooling: str
) -> None:
    write("1_Pooling/config.json", settings)
    found = read_modules(folder)
    assert found is not None
    assert found.pooling == pooling


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        (switches("max_tokens"), "max"),
        (switches("mean_sqrt_len_tokens"), "mean_sqrt_len_tokens"),
        (switches("weightedmean_tokens"), "weightedmean"),
        (switches("cls_token", "mean_tokens"), "cls+mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["cls", "max"]}, "cls+max"),
    ],
)
def test_other_pooling_is_refused_by_name(
    folder: Path, write: Write, settings: object, got: str
) -> None:
    write("1_Pooling/config.json", settings)
    assert refusal(folder).endswith(
        f"1_Pooling: pooling: expected one of cls, mean, lasttoken, got {got}"
    )


# ---------- other modules ----------


def test_unknown_modules_are_refused_by_name(folder: Path, write: Write) -> None:
    entries = modules("Transformer", "Pooling", "LayerNorm", "WordWeights")
    entries.append({"path": "own", "type": "my_package.Whitening"})
    write("modules.json", entries)
    assert refusal(folder) == (
        f"{folder} is a folder of sentence-transformers with what is not computed here:\n"
        "  - module LayerNorm is not computed\n"
        "  - module WordWeights is not computed\n"
        "  - module my_package.Whitening is not computed"
    )


@pytest.mark.parametrize(
    "named",
    [
        ("Pooling",),
        ("Transformer",),
        ("Pooling", "Transformer"),
        ("Transformer", "Pooling", "Normalize", "Dense"),
        (),
    ],
)
def test_another_order_is_refused(folder: Path, write: Write, named: tuple[str, ...]) -> None:
    write("modules.json", modules(*named))
    assert (
        "modules: expected Transformer, Pooling, and at most a Dense or a Normalize, "
        f"got {', '.join(named) or 'none'}" in refusal(folder)
    )


def dense(write: Write, **settings: object) -> None:
    write("modules.json", modules("Transformer", "Pooling", "Dense"))
    write("config.json", {"id2label": {"0": "no", "1": "yes"}})
    usual = {"in_features": 8, "out_features": 2, "activation_function": "torch.nn.Identity"}
    write("2_Dense/config.json", usual | settings)


def test_a_dense_without_activation_is_a_classifier(folder: Path, write: Write) -> None:
    dense(write)
    found = read_modules(folder)
    assert found is not None
    assert found.dense == folder / "2_Dense"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Tanh"},
            "2_Dense: activation Tanh is not computed, expected Identity",
        ),
        ({"activation_function": None}, "2_Dense: activation None is not computed"),
        ({"use_residual": True}, "2_Dense: use_residual is not computed"),
        (
            {"module_input_name": "token_embeddings"},
            "2_Dense: module_input_name: expected sentence_embedding, got token_embeddings",
        ),
        (
            {"out_features": 8},
            "as many labels in id2label of config.json, got 2",
        ),
    ],
)
def test_another_dense_is_refused(
    folder: Path, write: Write, settings: dict[str, object], problem: str
) -> None:
    dense(write, **settings)
    assert problem in refusal(folder)


def test_a_classifier_that_puts_a_prompt_before_each_text_is_refused(
    folder: Path, write: Write
) -> None:
    dense(write)
    prompts = {"prompts": {"ask": "query: ", "none": ""}}
    write("config_sentence_transformers.json", prompts | {"default_prompt_name": "ask"})
    assert refusal(folder).endswith(
        "2_Dense: config_sentence_transformers.json: default_prompt_name ask is not supported"
    )
    write("config_sentence_transformers.json", prompts | {"default_prompt_name": "none"})
    assert read_modules(folder) is not None


# ---------- the transformer's settings ----------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_seq_length": 0}, "max_seq_length: expected at least 1, got 0"),
        ({"max_seq_length": "9"}, "max_seq_length: expected at least 1, got '9'"),
        ({"max_seq_length": True}, "max_seq_length: expected at least 1, got True"),
        (
            {"transformer_task": "fill-mask"},
            "transformer_task: expected feature-extraction, got fill-mask",
        ),
        (
            {"module_output_name": "sentence_embedding"},
            "module_output_name: expected token_embeddings, got sentence_embedding",
        ),
        ({"model_args": {"hidden_act": "relu"}}, "model_args: not supported: hidden_act"),
        ({"tokenizer_args": {"lowercase": 1}}, "tokenizer_args: not supported: lowercase"),
        ({"processing_kwargs": {"text": {}}}, "processing_kwargs: not supported: text"),
    ],
)
def test_settings_that_change_what_is_computed_are_refused(
    folder: Path, write: Write, settings: object, problem: str
) -> None:
    write("sentence_bert_config.json", settings)
    assert refusal(folder).endswith(f": sentence_bert_config.json: {problem}")


def test_settings_that_change_nothing_pass(folder: Path, write: Write) -> None:
    arguments = {"model_args": {"attn_implementation": "eager"}, "config_args": {}}
    task = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    write("sentence_bert_config.json", {"max_seq_length": None, **arguments, **task})
    found = read_modules(folder)
    assert found is not None
    assert found.max_seq_length is None


# ---------- hostile files ----------


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/b", "..", "a\\b", "\x00", "C:x"])
def test_a_path_out_of_the_folder_is_refused(folder: Path, write: Write, path: str) -> None:
    write("modules.json", modules("Transformer", "Pooling", Pooling=path))
    assert refusal(folder) == (
        f"{folder / 'modules.json'}: path: expected folders in this one, got: {path!r}"
    )


def test_two_modules_in_one_folder_are_refused(folder: Path, write: Write) -> None:
    write("modules.json", modules("Transformer", "Pooling", Pooling=""))
    assert "path: expected different folders, got ['', '']" in refusal(folder)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "expected a JSON array, got a dict"),
        (["Transformer"], "Expected `object`, got `str`"),
        ([{"path": ""}], "Object missing required field `type`"),
        ([{"path": 1, "type": "x"}], "Expected `str`, got `int`"),
    ],
)
def test_broken_lists_of_modules_are_refused(
    folder: Path, write: Write, value: object, problem: str
) -> None:
    write("modules.json", value)
    assert problem in refusal(folder)


def test_messages_stay_short_whatever_the_names(folder: Path, write: Write) -> None:
    long = "x" * 10_000
    write("modules.json", [*modules("Transformer", "Pooling"), {"path": "2", "type": long}] * 1)
    assert len(refusal(folder)) < 1_000
    write("modules.json", modules("Transformer", "Pooling"))
    write("1_Pooling/config.json", {"pooling_mode": [long] * 100})
    assert len(refusal(folder)) < 1_000
    write("1_Pooling/config.json", switches("mean_tokens"))
    write("sentence_bert_config.json", {"model_args": {f"{long}{i}": i for i in range(100)}})
    assert len(refusal(folder)) < 1_000


def test_a_missing_pooling_is_an_error(folder: Path, write: Write) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    assert "1_Pooling/config.json does not exist" in refusal(folder)
