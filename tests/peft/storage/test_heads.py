"""Classification heads of adapters' folders, and one place under two names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import (
    BERT,
    FAMILIES,
    GPT2,
    LLAMA,
    Snapshot,
    logits,
    lora_host,
    shake,
    small,
)
from tinygrad_peft.errors import CheckpointError, PeftError
from tinygrad_peft.models import checkpoint_path
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import AdapterFolder, PeftModel, get_peft_model, inspect_path
from tinygrad_peft.peft.storage.base_model import Head
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft_lora import LoraConfig

CONFIG, WEIGHTS, RECIPE = "adapter_config.json", "adapter_model.safetensors", "recipe.json"
NO_POOLER = replace(BERT, pooler=False)
TARGETS = {"gpt2": "c_attn", "llama": "q_proj", "bert": "query"}
HEADLESS = [GPT2, LLAMA, BERT, NO_POOLER]


def with_head(config: TransformerConfig, pooling: str | None = None, seed: int = 0) -> Transformer:
    model = small(config)
    model.with_classifier(3, pooling=pooling, seed=seed)
    return model


def trained(model: Transformer, **settings: object) -> PeftModel:
    target = TARGETS[model.config.model_type]
    lora = LoraConfig(**{"r": 2, "target_modules": [target]} | settings)  # type: ignore[arg-type]
    peft = get_peft_model(model, with_saved_head([lora], model), host=lora_host())
    shake(peft)
    return peft


def as_peft_writes(peft: PeftModel, folder: Path, **settings: object) -> Path:
    """Save an adapter without recipe.json, which Hugging Face PEFT does not have."""
    peft.save_pretrained(folder)
    (folder / RECIPE).unlink()
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | settings))
    return folder


def head_of(folder: Path) -> Head | None:
    return AdapterFolder.read(folder, lora_host()).head()


def load(model: Transformer, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(model, folder, host=lora_host())


def rename(folder: Path, old: str, new: str) -> None:
    """Replace the beginnings of the tensors' names."""
    prefix = "base_model.model."
    tensors = load_file(folder / WEIGHTS)
    renamed = {
        f"{prefix}{new}{name.removeprefix(prefix + old)}"
        if name.startswith(prefix + old)
        else name: tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})


# ---------- the head that an adapter was trained with ----------


@pytest.mark.parametrize("config", HEADLESS, ids=["gpt2", "llama", "bert", "bert without pooler"])
def test_the_usual_head_is_known_from_its_weight_alone(
    config: TransformerConfig, tmp_path: Path
) -> None:
    peft = trained(with_head(config))
    as_peft_writes(peft, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == "SEQ_CLS"
    head = head_of(tmp_path)
    assert head == Head(3, None)
    model = small(config)
    head.give(model)
    assert head.is_on(model)
    np.testing.assert_array_equal(logits(load(model, tmp_path)), logits(peft))
    assert inspect_path(tmp_path, lora_host(), base=config).sound


@pytest.mark.parametrize("config", HEADLESS, ids=["gpt2", "llama", "bert", "bert without pooler"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", None])
def test_the_head_that_a_recipe_describes_is_given_back(
    config: TransformerConfig, pooling: str | None, tmp_path: Path
) -> None:
    peft = trained(with_head(config, pooling))
    peft.save_pretrained(tmp_path)
    task = json.loads((tmp_path / CONFIG).read_text())["task_type"]
    usual = peft.config.is_usual_classifier
    assert task == ("SEQ_CLS" if usual else "FEATURE_EXTRACTION")
    names = {name.split(".")[2] for name in load_file(tmp_path / WEIGHTS)}
    assert (tmp_path / "2_Dense").is_dir() != usual
    assert usual or not names & {"bert", "model", "transformer", "classifier", "score"}
    model, head = small(config), head_of(tmp_path)
    assert head is not None
    head.give(model)
    assert model.config == peft.config
    np.testing.assert_array_equal(logits(load(model, tmp_path)), logits(peft))
    assert inspect_path(tmp_path, lora_host(), base=config).sound


def test_the_error_for_a_model_without_a_head_names_the_call_that_gives_one(tmp_path: Path) -> None:
    as_peft_writes(trained(with_head(BERT)), tmp_path / "usual")
    model = small(BERT)
    model.with_classifier(["a", "b", "c"], pooling="mean")
    trained(model).save_pretrained(tmp_path / "mean")
    calls = {
        "usual": "with_classifier(3)",
        "mean": "with_classifier(['a', 'b', 'c'], pooling='mean')",
    }
    for name, call in calls.items():
        bare = small(BERT)
        before = Snapshot.of(bare)
        with pytest.raises(CheckpointError) as caught:
            load(bare, tmp_path / name)
        before.assert_unchanged(bare)
        expected = "has a classification head, and the model has none: give it one by "
        assert str(caught.value) == f"{tmp_path / name} {expected}{call}"


@pytest.mark.parametrize(
    ("config", "pooling", "told"),
    [
        (BERT, "mean", "expected 'cls' through a pooler, got 'mean'"),
        (NO_POOLER, "cls", "expected 'cls' through a pooler, got 'cls'"),
        (LLAMA, "mean", "expected 'last', got 'mean'"),
    ],
)
def test_pefts_classifier_is_refused_by_a_model_that_pools_otherwise(
    config: TransformerConfig, pooling: str, told: str, tmp_path: Path
) -> None:
    as_peft_writes(trained(with_head(config)), tmp_path)
    with pytest.raises(CheckpointError, match=f"made for another model: pooling: {told}"):
        load(with_head(config, pooling), tmp_path)


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_a_head_on_each_token_is_refused_by_its_name(task: str, tmp_path: Path) -> None:
    as_peft_writes(trained(with_head(BERT)), tmp_path, task_type=task)
    if task == "QUESTION_ANS":
        rename(tmp_path, "classifier", "qa_outputs")
    with pytest.raises(CheckpointError, match=f"task_type: {task} has a head on each token"):
        load(with_head(BERT), tmp_path)


def test_other_weights_of_an_adapter_for_tokens_are_read(tmp_path: Path) -> None:
    peft = get_peft_model(small(BERT), LoraConfig(r=2), host=lora_host())
    as_peft_writes(peft, tmp_path, task_type="TOKEN_CLS", modules_to_save=["classifier", "score"])
    np.testing.assert_array_equal(logits(load(small(BERT), tmp_path)), logits(peft))


def test_an_adapter_that_was_written_as_a_classifier_for_peft_is_still_read(
    tmp_path: Path,
) -> None:
    peft = trained(with_head(BERT, "mean"))
    peft.save_pretrained(tmp_path)
    rename(tmp_path, "encoder", "bert.encoder")
    dense = load_file(tmp_path / "2_Dense" / "model.safetensors")
    head_weights = {
        key.replace("linear", "base_model.model.classifier"): v for key, v in dense.items()
    }
    save_file(load_file(tmp_path / WEIGHTS) | head_weights, tmp_path / WEIGHTS)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    del recipe["head"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "modules.json").unlink()
    values = json.loads((tmp_path / CONFIG).read_text())
    values |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    head = head_of(tmp_path)
    assert head is not None
    assert head.pooling == "mean"
    np.testing.assert_array_equal(logits(load(with_head(BERT, "mean"), tmp_path)), logits(peft))


@pytest.mark.parametrize("saved", [["classifier"], ["pooler.dense"]])
def test_half_of_a_new_head_is_refused(saved: list[str], tmp_path: Path) -> None:
    model = with_head(NO_POOLER)
    missing = "bert.pooler.dense" if saved == ["classifier"] else "classifier"
    with pytest.raises(PeftError, match=f"{missing} is missing: it is as new as the rest"):
        get_peft_model(model, LoraConfig(r=2, modules_to_save=saved), host=lora_host())
    # The base of this adapter had a pooler, and the one that it is opened on has none.
    as_peft_writes(trained(with_head(BERT)), tmp_path)
    with pytest.raises(PeftError, match=r"bert\.pooler\.dense is missing"):
        load(model, tmp_path)


# ---------- one place, with the family's prefix and without ----------


def lora(targets: str | Sequence[str] | None, **more: object) -> LoraConfig:
    return LoraConfig(r=2, target_modules=targets, **more)  # type: ignore[arg-type]


PREFIXES = {"gpt2": "transformer", "llama": "model", "bert": "bert"}
FIRST = {
    "gpt2": "h.1.attn.c_attn",
    "llama": "layers.1.self_attn.q_proj",
    "bert": "encoder.layer.1.attention.self.query",
}


def both(family: str) -> Mapping[str, TransformerConfig]:
    """The config of a bare model, and of one whose class has the prefix."""
    return {"bare": replace(FAMILIES[family], head="none"), "headed": FAMILIES[family]}


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize("kind", ["bare", "headed"])
@pytest.mark.parametrize("named", ["bare", "headed"])
@pytest.mark.parametrize("form", ["name", "expression", "pattern", "layers"])
def test_a_place_is_named_with_the_prefix_and_without(
    family: str, kind: str, named: str, form: str
) -> None:
    name = FIRST[family] if named == "bare" else f"{PREFIXES[family]}.{FIRST[family]}"
    last, stem = name.rpartition(".")[2], name.partition(".1.")[0]
    config = {
        "name": lora([name]),
        "expression": lora(name.replace(".", r"\.")),
        "pattern": lora([last], rank_pattern={name: 3}),
        "layers": lora([last], layers_to_transform=1, layers_pattern=stem),
    }[form]
    model = small(both(family)[kind])
    peft = get_peft_model(model, config, host=lora_host())
    path = checkpoint_path(model.config, "blocks.1.attn")
    ranks = {
        name.rpartition(".lora_A")[0]: parameter.shape[0]
        for name, parameter in peft.record.named_parameters(0).items()
        if "lora_A" in name
    }
    adapted = {name: rank for name, rank in ranks.items() if name.startswith(path)}
    assert list(adapted.values()) == [3 if form == "pattern" else 2]
    assert len(ranks) == 1 or form == "pattern"


@pytest.mark.parametrize("family", PREFIXES)
@pytest.mark.parametrize(("writer", "reader"), [("bare", "headed"), ("headed", "bare")])
@pytest.mark.parametrize("targets", ["names", "all-linear"])
def test_an_adapter_opens_on_another_class_of_its_family(
    family: str, writer: str, reader: str, targets: str, tmp_path: Path
) -> None:
    configs = both(family)
    wanted = targets if targets == "all-linear" else [TARGETS[family]]
    # With "all" a classifier's own bias is trained, which a bare encoder does not have.
    config = lora(wanted, bias="none" if family == "bert" else "all")
    peft = get_peft_model(small(configs[writer]), config, host=lora_host())
    shake(peft)
    as_peft_writes(peft, tmp_path)
    report = inspect_path(tmp_path, lora_host(), base=configs[reader])
    assert report.sound, report.problems
    opened = load(small(configs[reader]), tmp_path)
    ids = np.array([[3, 14, 15]])
    expected = peft.base_model.hidden_states(ids).data
    np.testing.assert_array_equal(opened.base_model.hidden_states(ids).data, expected)


def test_a_weight_under_both_names_is_unexpected_once(tmp_path: Path) -> None:
    peft = get_peft_model(small(LLAMA), lora(["q_proj"]), host=lora_host())
    peft.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    other = name.replace("model.model.model", "model.model")
    save_file(tensors | {other: tensors[name]}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load(small(LLAMA), tmp_path)
    assert f"unexpected: {other}" in str(caught.value)


def test_a_pattern_of_another_family_matches_nothing() -> None:
    with pytest.raises(Exception, match="matches no module"):
        get_peft_model(small(LLAMA), lora(["transformer.layers.0.self_attn.q_proj"]))
