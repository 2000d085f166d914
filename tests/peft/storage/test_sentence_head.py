"""Adapters with a head that no class of transformers has: folders of sentence-transformers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import BERT, IDS, LLAMA, lora_host, shake, small
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import AdapterFolder, PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train.heads import cut_at, with_saved_head
from tinygrad_peft_lora import LoraConfig

QUERY = LoraConfig(r=2, target_modules=["query"])
SENTENCE = replace(BERT, sentence_transformers=True, pooling="mean", max_seq_length=20)
DENSE = Path("2_Dense") / "model.safetensors"


def classifier(config: TransformerConfig = SENTENCE, pooling: str | None = None) -> Transformer:
    model = small(config)
    model.with_classifier(["no", "maybe", "yes"], pooling=pooling)
    return model


def saved(
    folder: Path, model: Transformer | None = None, recipe: PeftConfig | list[PeftConfig] = QUERY
) -> PeftModel:
    """Save an adapter with random weights whose recipe trains the head."""
    model = model or classifier()
    steps = recipe if isinstance(recipe, list) else [recipe]
    peft = get_peft_model(model, with_saved_head(steps, model), host=lora_host())
    shake(peft)
    peft.save_pretrained(folder)
    return peft


def logits(peft: PeftModel) -> np.ndarray:
    with no_grad():
        return peft(IDS).data


def read_json(path: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads(path.read_bytes())
    return read


def test_the_adapter_is_the_encoders_and_the_head_is_a_dense(tmp_path: Path) -> None:
    peft = saved(tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    assert (config["task_type"], config["modules_to_save"]) == ("FEATURE_EXTRACTION", [])
    adapter, dense = load_file(tmp_path / "adapter_model.safetensors"), load_file(tmp_path / DENSE)
    assert all(".encoder.layer." in key and ".bert." not in key for key in adapter)
    weights = dict(peft.record.stored_parameters(0))
    np.testing.assert_array_equal(
        dense["linear.weight"], weights["base_model.model.classifier.weight"].data
    )
    modules = json.loads((tmp_path / "modules.json").read_bytes())
    assert [entry["type"].rpartition(".")[2] for entry in modules] == [
        *("Transformer", "Pooling", "Dense")
    ]
    assert read_json(tmp_path / "1_Pooling" / "config.json")["pooling_mode_mean_tokens"] is True
    assert not (tmp_path / "config.json").exists(), "the encoder is the base's"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [(SENTENCE, None), (SENTENCE, "cls"), (BERT, "mean"), (LLAMA, "mean"), (LLAMA, "cls")],
)
def test_a_saved_head_is_read_back_bit_for_bit(
    tmp_path: Path, config: TransformerConfig, pooling: str | None
) -> None:
    target = "query" if config.model_type == "bert" else "q_proj"
    recipe = replace(QUERY, target_modules=[target])
    before = saved(tmp_path, classifier(config, pooling), recipe)
    after = PeftModel.from_pretrained(classifier(config, pooling), tmp_path, host=lora_host())
    assert after.recipe == before.recipe
    np.testing.assert_array_equal(logits(after), logits(before))


def test_a_recipe_of_several_steps_has_one_head_beside_them(tmp_path: Path) -> None:
    recipe: list[PeftConfig] = [QUERY, replace(QUERY, r=3, target_modules=["value"])]
    before = saved(tmp_path, recipe=recipe)
    assert (tmp_path / DENSE).is_file()
    assert not (tmp_path / "0-lora" / "modules.json").exists(), "a step alone computes other logits"
    after = PeftModel.from_pretrained(classifier(), tmp_path, host=lora_host())
    assert after.recipe == before.recipe
    np.testing.assert_array_equal(logits(after), logits(before))


def test_modules_to_save_keep_their_order(tmp_path: Path) -> None:
    recipe = replace(QUERY, modules_to_save=["classifier", "embed_norm", "pooler.dense"][::2])
    saved(tmp_path, recipe=recipe)
    assert read_json(tmp_path / "adapter_config.json")["modules_to_save"] == ["pooler.dense"]
    after = PeftModel.from_pretrained(classifier(), tmp_path, host=lora_host())
    assert after.recipe == (recipe,)


def test_the_trained_length_is_written(tmp_path: Path) -> None:
    model = classifier()
    cut_at(model, 12)
    saved(tmp_path, model)
    assert read_json(tmp_path / "sentence_bert_config.json")["max_seq_length"] == 12
    head = AdapterFolder.read(tmp_path, lora_host()).head()
    assert head is not None
    assert head.max_seq_length == 12


def test_a_head_of_transformers_own_stays_in_pefts_file(tmp_path: Path) -> None:
    saved(tmp_path, classifier(BERT))
    assert read_json(tmp_path / "adapter_config.json")["task_type"] == "SEQ_CLS"
    assert not (tmp_path / "modules.json").exists()


def test_saving_another_head_removes_the_dense_of_the_old_one(tmp_path: Path) -> None:
    saved(tmp_path)
    saved(tmp_path, classifier(BERT))
    assert not (tmp_path / DENSE).exists()
    assert not (tmp_path / "modules.json").exists()
    assert inspect_path(tmp_path, lora_host()).sound


def test_an_encoders_adapter_keeps_the_pooling(tmp_path: Path) -> None:
    peft = get_peft_model(small(replace(SENTENCE, normalize=True)), QUERY, host=lora_host())
    peft.save_pretrained(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_bytes())
    assert [entry["type"].rpartition(".")[2] for entry in modules] == [
        *("Transformer", "Pooling", "Normalize")
    ]
    assert not (tmp_path / DENSE).exists()


def test_inspecting_names_the_head(tmp_path: Path) -> None:
    saved(tmp_path)
    report = inspect_path(tmp_path, lora_host())
    assert report.sound, report.problems
    assert report.facts["sentence_transformers"] == ["Transformer", "Pooling", "Dense"]
    assert report.facts["pooling"] == "mean"
    assert report.tensors is not None
    assert "base_model.model.classifier.weight" in {g.name for g in report.tensors.groups}


def test_somebody_elses_adapter_with_a_dense_is_read_without_recipe(tmp_path: Path) -> None:
    before = saved(tmp_path)
    (tmp_path / "recipe.json").unlink()
    head = AdapterFolder.read(tmp_path, lora_host()).head()
    assert head is not None
    assert (head.num_labels, head.pooling) == (3, "mean")
    after = PeftModel.from_pretrained(classifier(), tmp_path, host=lora_host())
    np.testing.assert_array_equal(logits(after), logits(before))


# ---------- files that contradict each other ----------


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        PeftModel.from_pretrained(classifier(), folder, host=lora_host())
    report = inspect_path(folder, lora_host())
    assert not report.sound, "inspecting finds the same"
    return str(caught.value)


def test_another_pooling_than_the_recipes_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text('{"pooling_mode": "cls"}', encoding="utf-8")
    assert "1_Pooling: expected 'mean' as in recipe.json, got 'cls'" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "2_Dense/config.json", str(DENSE)])
def test_a_missing_part_of_the_head_is_refused(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    (tmp_path / name).unlink()
    expected = (
        "recipe.json describes a head" if name == "modules.json" else f"{name} does not exist"
    )
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize(
    ("note", "problem"),
    [
        (
            {"step": "3-lora", "module": "classifier", "modules_to_save": []},
            "step: expected one of",
        ),
        ({"step": "../..", "module": "classifier", "modules_to_save": []}, "step: expected one of"),
        ({"step": "."}, "Object missing required field `module`"),
        (["."], "Expected `object`, got `array`"),
    ],
)
def test_a_broken_note_is_refused(tmp_path: Path, note: object, problem: str) -> None:
    saved(tmp_path)
    recipe = read_json(tmp_path / "recipe.json") | {"head": note}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    assert problem in refusal(tmp_path)


def test_a_dense_of_another_shape_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    arrays = load_file(tmp_path / DENSE)
    save_file({**arrays, "linear.weight": arrays["linear.weight"][:, 1:].copy()}, tmp_path / DENSE)
    assert "base_model.model.classifier.weight" in refusal(tmp_path)
