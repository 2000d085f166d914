"""LoReFT as a method: settings, objections, sizes, files, and what training leaves alone."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinygrad_peft import Host, PeftModel, Transformer, get_peft_model
from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import CheckpointError, ConfigError, PeftError
from tinygrad_peft.models import named_shape
from tinygrad_peft.nn import AdamW
from tinygrad_peft.peft import PeftConfig, count_recipe, inspect_path, methods_of
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.testing import SMALL_MODELS, small_model
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_loreft import Intervention, LoreftBlock, LoreftConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig

IDS = np.random.default_rng(1).integers(1, 40, (3, 7))
UNTIED = LoreftConfig(low_rank_dimension=3, share_weights=False)


def adapted(recipe: PeftConfig | Sequence[PeftConfig], family: str = "llama") -> PeftModel:
    return get_peft_model(small_model(SMALL_MODELS[family]), recipe)


def stepped(peft: PeftModel, *, steps: int = 5) -> PeftModel:
    """Make large steps of AdamW, with weight decay, in a loop that fires no events."""
    optimizer = AdamW(peft.trainable_parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        peft.loss(IDS, np.where(np.arange(7) < 4, -100, IDS)).backward()
        optimizer.step()
    return peft


def logits(model: PeftModel | Transformer) -> Array:
    with no_grad():
        return model(IDS).data


def interventions(peft: PeftModel) -> list[Intervention]:
    modules = (module for _, module in peft.base_model.named_modules())
    return [each for m in modules if isinstance(m, LoreftBlock) for each in m.interventions]


def test_it_is_found_by_its_entry_point() -> None:
    assert methods_of(Host.installed())["loreft"] is LoreftConfig


# ---------- settings ----------


def test_everything_wrong_with_the_settings_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        LoreftConfig(low_rank_dimension=0, first_n=-1, last_n=-2, layers=[], dropout=1)
    assert str(caught.value) == (
        "invalid LoreftConfig:\n"
        "  - low_rank_dimension=0 must be at least 1\n"
        "  - first_n=-1 must be at least 0\n"
        "  - last_n=-2 must be at least 0\n"
        "  - dropout=1.0 must be at least 0 and below 1\n"
        "  - layers is empty: leave it out for all layers"
    )
    with pytest.raises(ConfigError, match="first_n=0 and last_n=0 leave no token to edit"):
        LoreftConfig(first_n=0, last_n=0)
    with pytest.raises(ConfigError, match="init_weights='identity' needs act_fn='linear', got 'g"):
        LoreftConfig(init_weights="identity", act_fn="gelu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoreftConfig(layers=[0, 7]), "layers: the model has no layer 7 (it has 2, from 0)"),
        (LoreftConfig(low_rank_dimension=17), "low_rank_dimension=17: expected at most 16"),
        (
            LoreftConfig(last_n=97),
            "first_n=5, last_n=97: expected at most 96, the most tokens that the model reads",
        ),
        (
            LoreftConfig(layers=1, modules_to_save=["layers.0", "layers.1"]),
            "modules_to_save: model.layers.1 is edited: name the layers below it instead",
        ),
    ],
)
def test_a_model_that_cannot_be_edited_so_is_refused(config: LoreftConfig, message: str) -> None:
    with pytest.raises(PeftError) as caught:
        adapted(config)
    assert str(caught.value) == f"the recipe is refused:\n  - step 0: {message}"


UNSEEN = "layers: after layer 1 the classifier reads the first position alone, "


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ([UNTIED], "not the last tokens of a prompt"),
        ([LoreftConfig(first_n=0)], "not the last tokens of a prompt"),
        ([LoreftConfig(layers=1), PromptTuningConfig()], "a virtual token"),
        ([PromptTuningConfig(), LoreftConfig()], "a virtual token"),
    ],
)
def test_edits_that_no_classifier_sees_are_refused(recipe: list[PeftConfig], reason: str) -> None:
    with pytest.raises(PeftError) as caught:
        adapted(recipe, "bert")
    assert UNSEEN + reason in str(caught.value)
    lower = [replace(c, layers=0) if isinstance(c, LoreftConfig) else c for c in recipe]
    assert interventions(adapted(lower, "bert"))


def test_edits_that_a_classifier_sees_are_not_refused() -> None:
    adapted([PrefixTuningConfig(), LoreftConfig()], "bert")
    averaging = replace(SMALL_MODELS["bert"], pooling="mean", pooler=False)
    get_peft_model(small_model(averaging), [PromptTuningConfig(), UNTIED])


# ---------- sizes ----------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LoreftConfig(), 2 * 1),
        (UNTIED, 2 * 2),
        (replace(UNTIED, layers=1), 1 * 2),
        (replace(UNTIED, layers=[1, 0, 1]), 2 * 2),
        (replace(UNTIED, first_n=0), 2 * 1),
        (replace(UNTIED, last_n=0), 2 * 1),
    ],
)
def test_each_intervention_has_two_matrices_and_a_bias(config: LoreftConfig, count: int) -> None:
    peft, shape = adapted(config), SMALL_MODELS["llama"]
    assert len(interventions(peft)) == count
    trainable, _ = peft.get_nb_trainable_parameters()
    assert trainable == count * config.low_rank_dimension * (2 * 16 + 1)
    assert count_recipe(shape, config, Host.installed()) == peft.get_nb_trainable_parameters()


def test_the_papers_share_of_a_llama_is_counted() -> None:
    """Table 1 has 0.031 % for LLaMA-7B, with rank 8 in all layers."""
    config = LoreftConfig(low_rank_dimension=8)
    trainable, total = count_recipe(named_shape("llama-7b"), config, Host.installed())
    assert trainable == 32 * 8 * (2 * 4096 + 1)
    assert round(100 * trainable / (total - trainable), 3) == 0.031


# ---------- training ----------


@pytest.mark.parametrize(
    "config",
    [
        LoreftConfig(),
        replace(UNTIED, layers=0),  # after the last layer no label depends on a prompt's start
        LoreftConfig(init_weights="identity"),
    ],
)
def test_the_rows_of_r_stay_orthonormal_in_any_loop(config: LoreftConfig) -> None:
    peft = adapted(config)
    before = [each.rotate_layer.data.copy() for each in interventions(peft)]
    for each, old in zip(interventions(stepped(peft)), before, strict=True):
        rank = len(old)
        assert abs(each.rotate_layer.data - old).max() > 0.1
        r = each.rotation.data
        np.testing.assert_allclose(r @ r.T, np.eye(rank), atol=1e-6)


def test_it_starts_as_the_base_where_asked_to() -> None:
    base = small_model(SMALL_MODELS["llama"])
    expected = logits(base)
    np.testing.assert_array_equal(
        logits(get_peft_model(base, replace(UNTIED, init_weights="identity"))), expected
    )
    assert not np.array_equal(logits(adapted(UNTIED)), expected)


def test_dropout_drops_from_the_edited_states_as_pyreft_does() -> None:
    peft = adapted(LoreftConfig(dropout=0.5))
    (each, *_), h = interventions(peft), Tensor(np.ones((200, 16), np.float32))
    each.eval()
    whole = each(h).data
    each.train()
    dropped = each(h).data
    np.testing.assert_allclose(dropped[dropped != 0], 2 * whole[dropped != 0], rtol=1e-6)
    assert 0.4 < (dropped == 0).mean() < 0.6


def test_it_cannot_be_merged() -> None:
    with pytest.raises(PeftError, match="it edits the states of some tokens alone"):
        adapted(LoreftConfig()).merge_adapter()


def test_what_is_saved_whole_may_lie_within_an_edited_block() -> None:
    config = LoreftConfig(layers=1, modules_to_save=["down_proj"])
    trainable, _ = stepped(adapted(config)).get_nb_trainable_parameters()
    assert trainable == 4 * 33 + 2 * 24 * 16


# ---------- files ----------


def test_a_trained_recipe_is_saved_inspected_and_loaded(tmp_path: Path) -> None:
    recipe = [PromptTuningConfig(num_virtual_tokens=2), LoraConfig(r=2), UNTIED]
    peft = stepped(adapted(recipe))
    peft.eval()
    peft.save_pretrained(tmp_path)
    model = small_model(SMALL_MODELS["llama"])
    loaded = PeftModel.from_pretrained(model, tmp_path)
    assert loaded.recipe == peft.recipe
    np.testing.assert_array_equal(logits(loaded), logits(peft))
    report = inspect_path(tmp_path, base=SMALL_MODELS["llama"])
    *_, part = report.parts
    assert not report.problems
    assert not part.problems
    assert part.facts["method"] == "loreft"
    assert part.facts["ranks"] == [3]
    assert part.facts["modules"] == 2


def test_the_tensors_have_pyrefts_names_below_the_block(tmp_path: Path) -> None:
    adapted(replace(UNTIED, layers=1)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes: dict[str, Shape] = {
        "rotate_layer": (3, 16),
        "learned_source.weight": (3, 16),
        "learned_source.bias": (3,),
    }
    assert {name: array.shape for name, array in tensors.items()} == {
        f"base_model.model.model.layers.1.interventions.{i}.{name}": shape
        for i in range(2)
        for name, shape in shapes.items()
    }
    settings = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert settings["peft_type"] == "LOREFT"
    assert (settings["first_n"], settings["last_n"], settings["share_weights"]) == (5, 5, False)


def test_a_folder_of_another_rank_is_refused_and_reported(tmp_path: Path) -> None:
    adapted(UNTIED).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text("utf-8").replace('dimension": 3', 'dimension": 4'), "utf-8")
    with pytest.raises(CheckpointError, match=r"rotate_layer is \(3, 16\), expected \(4, 16\)"):
        PeftModel.from_pretrained(small_model(SMALL_MODELS["llama"]), tmp_path)
    report = inspect_path(tmp_path, base=SMALL_MODELS["llama"])
    assert any("rotate_layer" in problem for problem in report.problems)
