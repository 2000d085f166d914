"""compare: a row for each recipe, whatever becomes of the others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.peft.small import ShiftConfig, plugin
from tests.train.toys import classifier, countings, language_model, needles, same, weights
from tinygrad_peft.errors import ConfigError, DataError, PeftError
from tinygrad_peft.nn import Module, Transformer
from tinygrad_peft.peft import Host, PeftModel, Site, get_peft_model
from tinygrad_peft.train import (
    Comparison,
    Contender,
    Evaluated,
    Event,
    Row,
    StepEnded,
    TrainConfig,
    Turn,
    Watcher,
    compare,
    train,
)
from tinygrad_peft.train.comparison_result import COMPARISON_FILE, read_comparison
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prompt import PromptTuningConfig

CONFIG = TrainConfig(batch_size=4, epochs=2, seed=3)
QUERY = LoraConfig(r=2, target_modules=["q_proj"])
BOTH = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
TWO = (Contender(label="query", recipe=[QUERY]), Contender(label="both", recipe=[BOTH], lr=5e-3))


def compared(
    contenders: Sequence[Contender],
    *,
    model: Transformer | None = None,
    host: Host | None = None,
    out: Path | None = None,
    watcher: Watcher | None = None,
    config: TrainConfig = CONFIG,
) -> Comparison:
    return compare(
        model or classifier(),
        contenders,
        needles(16),
        needles(8, seed=1),
        config,
        host=host,
        out=out,
        watcher=watcher,
    )


def raising(error: BaseException) -> Host:
    """A host with LoRA, and with a method whose plugin raises when it is applied."""
    host = Host.installed()

    def fail(config: object, site: Site) -> Module | None:
        if isinstance(config, ShiftConfig):
            raise error
        return None

    host.register(plugin(ShiftConfig, adapt=fail), "failing")
    return host


class Noting(Watcher):
    """Note the calls of a comparison."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def started(self, turn: Turn) -> None:
        self.told.append((turn.contender.label, turn.place, turn.count))

    def trained(self, event: Event) -> None:
        self.told.append(type(event))

    def ended(self, row: Row) -> None:
        self.told.append(row.label)


class Interrupting(Watcher):
    """Presses Ctrl-C after the third step of one contender, or when its turn comes."""

    def __init__(self, label: str, *, at_start: bool = False) -> None:
        self.label, self.at_start, self.current = label, at_start, ""

    def started(self, turn: Turn) -> None:
        self.current = turn.contender.label
        if self.at_start and self.label == self.current:
            raise KeyboardInterrupt

    def trained(self, event: Event) -> None:
        if isinstance(event, StepEnded) and event.step == 3 and self.current == self.label:
            raise KeyboardInterrupt


# ---------- rows ----------


def test_each_recipe_gets_the_same_row_as_alone() -> None:
    both = compared(TWO)
    assert both.waiting == ()
    assert not both.interrupted
    for contender, row in zip(TWO, both.rows, strict=True):
        [alone] = compared([contender]).rows
        assert (row.label, row.outcome, row.error) == (contender.label, "finished", None)
        assert row.losses == alone.losses
        assert [(e.step, e.loss) for e in row.evaluations] == [
            (e.step, e.loss) for e in alone.evaluations
        ]


def test_a_row_has_the_figures_of_training_alone() -> None:
    [_, row] = compared(TWO).rows
    model = classifier()
    peft = get_peft_model(model, with_saved_head([BOTH], model), seed=3)
    config = replace(CONFIG, lr=5e-3)
    result = train(peft, needles(16), needles(8, seed=1), config)
    best = result.best
    assert best is not None
    assert row.losses == result.losses
    assert (row.loss, row.accuracy) == (best.loss, best.accuracy)
    assert (row.trainable, row.total) == peft.get_nb_trainable_parameters()
    assert row.ratio == pytest.approx(peft.get_nb_trainable_parameters()[0] / (row.total or 0))
    assert row.rates == (5e-3,)
    assert [m["peft_type"] for m in row.methods] == ["LORA"]
    assert row.seconds is not None
    assert row.seconds > 0


def test_the_model_is_restored_bit_for_bit_and_can_be_adapted_again() -> None:
    model = classifier()
    before = weights(model)
    compared([*TWO, Contender(label="probe")], model=model)
    assert same(before, weights(model))
    get_peft_model(model, QUERY)


def test_the_order_makes_no_difference() -> None:
    one, other = compared(TWO), compared(TWO[::-1])
    assert {r.label: r.losses for r in one.rows} == {r.label: r.losses for r in other.rows}


def test_a_language_model_has_its_loss_and_no_accuracy() -> None:
    probe, row = compare(
        language_model(),
        [Contender(label="as it is"), TWO[0]],
        countings(8),
        countings(4, seed=1),
        CONFIG,
    ).rows
    assert probe.accuracy is row.accuracy is None
    assert (probe.trainable, probe.rates, probe.losses) == (0, (), ())
    assert probe.loss is not None
    assert row.loss is not None
    assert row.loss < probe.loss
    assert row.perplexity == pytest.approx(np.exp(row.loss))


def test_without_a_recipe_a_classifier_is_probed() -> None:
    comparison = compared([Contender(label="probe")])
    [row] = comparison.rows
    assert (row.outcome, row.trainable, row.rates, row.methods) == ("finished", 34, (), ())
    assert row.accuracy is not None
    assert comparison.classifies


# ---------- learning rates ----------


def test_each_step_is_trained_at_the_rate_of_its_method() -> None:
    prompt = PromptTuningConfig(num_virtual_tokens=2)
    contenders = [
        Contender(label="one", recipe=[QUERY]),
        Contender(label="two", recipe=[QUERY, prompt]),
    ]
    one, two = compared(contenders, config=replace(CONFIG, lr=None)).rows
    assert one.rates == (1e-3,)
    assert two.rates == (1e-3, 1e-2)


def test_a_contender_may_have_its_own_rate() -> None:
    contenders = [Contender(label="all", recipe=[QUERY]), replace(TWO[1], lr=5e-3)]
    rows = compared(contenders, config=replace(CONFIG, lr=2e-3)).rows
    assert [row.rates for row in rows] == [(2e-3,), (5e-3,)]


# ---------- files ----------


def test_each_adapter_can_be_loaded_from_its_folder(tmp_path: Path) -> None:
    comparison = compared(TWO, out=tmp_path / "out")
    assert [row.folder for row in comparison.rows] == ["1-query", "2-both"]
    for row in comparison.rows:
        assert row.folder is not None
        folder = tmp_path / "out" / row.folder
        names = {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}
        names |= {"1_Pooling", "2_Dense", "modules.json", "sentence_bert_config.json"}
        names |= {"config_sentence_transformers.json", "metrics.json", "log.jsonl"}
        assert {path.name for path in folder.iterdir()} == names
        PeftModel.from_pretrained(classifier(), folder)


def test_the_adapter_is_the_same_as_from_training_alone(tmp_path: Path) -> None:
    compared(TWO, out=tmp_path / "two")
    compared(TWO[1:], out=tmp_path / "one")
    one, two = (
        load_file(tmp_path / path / "adapter_model.safetensors")
        for path in ("one/1-both", "two/2-both")
    )
    assert one.keys() == two.keys()
    assert same(one, two)


def test_the_file_is_written_as_each_recipe_ends(tmp_path: Path) -> None:
    found: list[Comparison] = []

    class Reading(Watcher):
        def ended(self, row: Row) -> None:
            assert row.outcome == "finished"
            found.append(read_comparison(tmp_path / COMPARISON_FILE))

    comparison = compared(TWO, out=tmp_path, watcher=Reading())
    assert [len(c.rows) for c in found] == [1, 2]
    assert [c.waiting for c in found] == [("both",), ()]
    assert found[-1] == comparison


def test_labels_become_valid_folder_names(tmp_path: Path) -> None:
    label = "LoRA: r=2 / q → 50 %?"
    compared([Contender(label=label, recipe=[QUERY])], out=tmp_path)
    assert (tmp_path / "1-lora-r-2-q-50" / "recipe.json").exists()


# ---------- watchers ----------


def test_a_watcher_follows_turns_and_steps() -> None:
    watcher = Noting()
    compared(TWO, watcher=watcher)
    assert watcher.told[0] == ("query", 1, 2)
    second = watcher.told.index(("both", 2, 2))
    assert watcher.told[second - 1] == "query"
    assert watcher.told[-1] == "both"
    assert watcher.told[:second].count(StepEnded) == 8
    assert watcher.told[second:].count(Evaluated) == 2


# ---------- recipes that fail ----------


def test_after_a_recipe_that_diverges_the_next_one_has_its_turn(tmp_path: Path) -> None:
    wild = Contender(label="wild", recipe=[BOTH], lr=3e38)
    first, second = compare(
        language_model(),
        [wild, TWO[0]],
        countings(16),
        countings(4),
        CONFIG,
        out=tmp_path,
    ).rows
    assert (first.outcome, second.outcome) == ("failed", "finished")
    assert first.error is not None
    assert first.error.startswith("training stopped in epoch 1, batch 3: the loss is nan")
    assert first.losses
    assert first.trainable == 512
    assert (first.loss, first.folder) == (None, None)


FAILING = "plugin 'failing', hook adapt_module"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("boom"), f"{FAILING}: RuntimeError: boom"),
        (MemoryError(), "out of memory"),
        (PeftError("not this one"), f"not this one\n({FAILING})"),
    ],
)
def test_a_failing_plugin_costs_only_its_own_row(error: Exception, told: str) -> None:
    failing = Contender(label="failing", recipe=[ShiftConfig(target_modules=["q_proj"])])
    model = classifier()
    before = weights(model)
    comparison = compared([failing, TWO[0]], model=model, host=raising(error))
    assert [row.outcome for row in comparison.rows] == ["failed", "finished"]
    assert [row.label for row in comparison.failed] == ["failing"]
    assert comparison.rows[0].error == told
    assert same(before, weights(model))


# ---------- Ctrl-C ----------


def test_ctrl_c_keeps_finished_rows_and_the_interrupted_one(tmp_path: Path) -> None:
    model = classifier()
    three = [*TWO, Contender(label="third", recipe=[QUERY])]
    comparison = compared(three, model=model, out=tmp_path, watcher=Interrupting("both"))
    assert comparison.interrupted
    assert [row.outcome for row in comparison.rows] == ["finished", "interrupted"]
    assert comparison.waiting == ("third",)
    assert len(comparison.rows[1].losses) == 3
    assert comparison.rows[1].folder == "2-both"
    assert read_comparison(tmp_path / COMPARISON_FILE) == comparison
    assert not model.adapted


def test_ctrl_c_between_two_recipes_leaves_the_second_without_a_row(tmp_path: Path) -> None:
    watcher = Interrupting("both", at_start=True)
    comparison = compared(TWO, out=tmp_path, watcher=watcher)
    assert comparison.interrupted
    assert [row.label for row in comparison.rows] == ["query"]
    assert comparison.waiting == ("both",)
    assert read_comparison(tmp_path / COMPARISON_FILE) == comparison


# ---------- what is refused before anything is trained ----------


@pytest.mark.parametrize(
    ("contenders", "kind", "told"),
    [
        ([], ConfigError, "a comparison: expected at least one recipe, got none"),
        ([TWO[0], TWO[0]], ConfigError, "labels of recipes: got 'query' more than once"),
        (
            [replace(TWO[0], label=" ")],
            ConfigError,
            "labels of recipes: expected text, got an empty one",
        ),
        ([replace(TWO[0], lr=0.0)], ConfigError, "query: .*lr: expected a finite number above 0"),
        (
            [
                TWO[0],
                Contender(label="one", recipe=[LoraConfig(target_modules=["q_prj"])]),
                Contender(label="two", recipe=[LoraConfig(target_modules=["v_prj"])]),
            ],
            PeftError,
            "invalid recipes:\n  - one: .*'q_prj' matches no(.|\n)*  - two: .*'v_prj'",
        ),
    ],
)
def test_invalid_contenders_are_refused(
    contenders: list[Contender], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=rf"(?s){told}"):
        compared(contenders, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapted_model_is_refused() -> None:
    model = classifier()
    get_peft_model(model, QUERY)
    with pytest.raises(PeftError, match="the model is already adapted"):
        compared(TWO, model=model)


def test_invalid_data_is_refused() -> None:
    with pytest.raises(DataError, match="invalid evaluation examples"):
        compare(classifier(), TWO, needles(8), countings(4), CONFIG)
