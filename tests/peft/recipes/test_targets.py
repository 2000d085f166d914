from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from tests.peft.small import (
    BERT,
    BERT_CLASSIFIER,
    GPT2,
    LLAMA,
    ShiftConfig,
    lora_host,
    plugin,
    small,
)
from tinygrad_peft.errors import PeftError, TargetError
from tinygrad_peft.nn import Linear, Module, TransformerConfig
from tinygrad_peft.peft import PeftConfig, capture_seams, get_peft_model
from tinygrad_peft.peft.configs.patterns import matches
from tinygrad_peft.peft.recipes.targets import Targets, find_targets
from tinygrad_peft_lora import LoraConfig

LLAMA_TIED = replace(LLAMA, tie_word_embeddings=True)


def found(config: PeftConfig, model: TransformerConfig = LLAMA) -> Targets:
    return find_targets(config, capture_seams(small(model)), model.model_type)


def paths(config: PeftConfig, model: TransformerConfig = LLAMA) -> list[str]:
    targets = found(config, model)
    assert targets.problems == ()
    return sorted(targets.paths)


def problem(config: PeftConfig, model: TransformerConfig = LLAMA) -> str:
    (message,) = found(config, model).problems
    return message


# ---------- what is named ----------


@pytest.mark.parametrize(
    ("path", "pattern", "named"),
    [
        ("a.q_proj", ["q_proj"], True),
        ("q_proj", ["q_proj"], True),
        ("a.xq_proj", ["q_proj"], False),
        ("a.q_proj.b", ["q_proj"], False),
        ("a.b.q_proj", ["b.q_proj", "c"], True),
        ("a.q_proj", [".*q_proj"], False),
        ("a.q_proj", ["q.proj"], False),
        ("a.q_proj", "q_proj", False),
        ("a.q_proj", ".*q_proj", True),
        ("a.q_proj.b", ".*q_proj", False),
        ("a.q_proj", r"a\.(q|k)_proj", True),
    ],
)
def test_a_list_names_ends_of_paths_and_a_string_is_an_expression_for_a_whole_one(
    path: str, pattern: str | Sequence[str], named: bool
) -> None:
    assert matches(path, pattern) == named


def test_names_are_those_of_the_checkpoint() -> None:
    assert paths(LoraConfig(target_modules=["c_attn"]), GPT2) == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.1.attn.c_attn",
    ]
    assert paths(LoraConfig(target_modules=["query"]), BERT) == [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.attention.self.query",
    ]
    assert paths(LoraConfig(target_modules=["query"], layers_to_transform=1), BERT_CLASSIFIER) == [
        "bert.encoder.layer.1.attention.self.query"
    ]
    assert paths(LoraConfig(target_modules=["self_attn.q_proj"], layers_to_transform=[0])) == [
        "model.layers.0.self_attn.q_proj"
    ]


def test_without_targets_a_method_takes_its_usual_ones_of_the_family() -> None:
    assert {p.rpartition(".")[2] for p in paths(LoraConfig())} == {"q_proj", "v_proj"}
    assert {p.rpartition(".")[2] for p in paths(LoraConfig(), GPT2)} == {"c_attn"}
    assert {p.rpartition(".")[2] for p in paths(LoraConfig(), BERT)} == {"query", "value"}


def test_all_linear_is_every_affine_layer_but_the_head() -> None:
    llama = paths(LoraConfig(target_modules="all-linear"))
    assert len(llama) == 3 * 7
    assert {p.rpartition(".")[2] for p in llama} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert len(paths(LoraConfig(target_modules="all-linear"), GPT2)) == 2 * 4
    bert = paths(LoraConfig(target_modules="all-linear"), BERT_CLASSIFIER)
    assert len(bert) == 2 * 6 + 1
    assert "bert.pooler.dense" in bert
    assert "classifier" not in bert


def test_a_regular_expression_names_what_it_matches_as_a_whole() -> None:
    assert paths(LoraConfig(target_modules=r"model\.layers\.[02]\.self_attn\.[qk]_proj")) == [
        f"model.layers.{n}.self_attn.{k}_proj" for n in (0, 2) for k in "kq"
    ]


def test_excluded_modules_are_left_alone() -> None:
    by_name = LoraConfig(target_modules=["q_proj"], exclude_modules=["1.self_attn.q_proj"])
    by_pattern = LoraConfig(target_modules=["q_proj"], exclude_modules=r".*\.1\..*")
    expected = ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"]
    assert paths(by_name) == paths(by_pattern) == expected


@pytest.mark.parametrize("layers", [1, [1], (1, 1)])
def test_only_the_given_layers_are_taken(layers: int | Sequence[int]) -> None:
    assert paths(LoraConfig(target_modules=["q_proj"], layers_to_transform=layers)) == [
        "model.layers.1.self_attn.q_proj"
    ]


def test_a_whole_path_is_taken_whatever_the_layers() -> None:
    whole = "model.layers.2.mlp.up_proj"
    config = LoraConfig(target_modules=["q_proj", whole], layers_to_transform=0)
    assert paths(config) == ["model.layers.0.self_attn.q_proj", whole]


def test_modules_to_save_are_named_by_whole_segments_with_all_below_them() -> None:
    targets = found(ShiftConfig(modules_to_save=["mlp", "norm"]))
    assert {"model.layers.0.mlp", "model.layers.0.mlp.up_proj", "model.norm"} <= targets.saved
    assert not any("layernorm" in path for path in targets.saved)


def test_a_method_without_targets_names_none() -> None:
    assert found(PeftConfig(modules_to_save=["score"]), LLAMA).paths == frozenset()


# ---------- what is wrong ----------


def test_a_target_that_names_nothing_comes_with_the_nearest_names() -> None:
    assert problem(LoraConfig(target_modules=["q_porj"])) == (
        "'q_porj' matches no module; did you mean 'q_proj' or 'v_proj' or 'o_proj'?"
    )
    assert "did you mean 'query' or 'key'?" in problem(LoraConfig(target_modules=["qurey"]), BERT)
    assert "'model.layers.0.self_attn.q_proj'" in problem(
        LoraConfig(target_modules=["model.layers.0.self_att.q_proj"])
    )


def test_an_entry_that_names_nothing_is_an_error_even_if_others_name_something() -> None:
    config = LoraConfig(target_modules=["q_proj", "v_porj", "nonsense"])
    first, second = found(config).problems
    assert first.startswith("'v_porj' matches no module; did you mean 'v_proj'")
    assert second == "'nonsense' matches no module"


def test_a_name_that_was_written_as_an_expression_is_explained() -> None:
    assert problem(LoraConfig(target_modules="q_proj")) == (
        "the expression 'q_proj' matches no whole path; for modules of that name write ['q_proj']"
    )
    assert problem(LoraConfig(target_modules=".*q_porj")) == (
        "the expression '.*q_porj' matches no whole path"
    )


def test_all_linear_excludes_what_it_names_as_a_target() -> None:
    config = LoraConfig(target_modules=["q_proj"], exclude_modules="all-linear")
    assert problem(config) == "'q_proj': all of its 3 modules are excluded by exclude_modules"


def test_targets_that_are_all_excluded_are_an_error() -> None:
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=["q_proj"])
    assert problem(config) == "'q_proj': all of its 3 modules are excluded by exclude_modules"


def test_one_target_may_be_excluded_among_others() -> None:
    # PEFT writes "all-linear" as whole paths, those that are excluded among them.
    config = LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=["q_proj"])
    assert paths(config) == [f"model.layers.{n}.self_attn.v_proj" for n in range(3)]


def test_a_target_that_the_given_layers_do_not_have_says_so() -> None:
    config = LoraConfig(target_modules=["q_proj", "norm"], layers_to_transform=0)
    assert problem(config) == "'norm': all of its 1 modules are excluded by layers_to_transform"


def test_an_exclusion_that_names_nothing_comes_with_the_nearest_names() -> None:
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=["q_porj", "v_proj"])
    assert problem(config).startswith(
        "exclude_modules: 'q_porj' matches no module; did you mean 'q_proj'"
    )
    config = LoraConfig(target_modules=["q_proj"], exclude_modules="v_proj")
    assert problem(config).startswith("exclude_modules: the expression 'v_proj' matches no")


def test_all_missing_layers_are_named() -> None:
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[0, 3, -1])
    assert found(config).problems == (
        "layers_to_transform: the model has no layer 3 (it has 3, from 0)",
        "layers_to_transform: the model has no layer -1 (it has 3, from 0)",
    )


def test_a_family_without_usual_targets_needs_some() -> None:
    assert problem(ShiftConfig(), GPT2) == (
        "target_modules: missing (usual targets are known for llama, and this model is gpt2)"
    )
    nameless = replace(LLAMA, model_type="")
    assert problem(LoraConfig(), nameless).endswith(
        "known for bert, gpt2, llama, and this model is of no family)"
    )


def test_a_module_to_save_that_is_not_there_comes_with_the_nearest_name() -> None:
    config = LoraConfig(target_modules=["query"], modules_to_save=["clasifier"])
    assert problem(config, BERT_CLASSIFIER).startswith(
        "modules_to_save: 'clasifier' matches no module; did you mean 'classifier'"
    )


def test_a_module_to_save_is_not_found_by_the_end_of_its_name() -> None:
    config = LoraConfig(target_modules=["query"], modules_to_save=["sifier"])
    assert "'sifier' matches no module" in problem(config, BERT_CLASSIFIER)


def test_a_module_to_save_that_has_no_weights_is_refused() -> None:
    config = LoraConfig(target_modules=["query"], modules_to_save=["self.dropout"])
    assert problem(config, BERT_CLASSIFIER) == (
        "modules_to_save: 'self.dropout' has no weights to train"
    )


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_one_of_two_tied_modules_is_neither_adapted_nor_saved(name: str) -> None:
    targeted = problem(LoraConfig(target_modules=["q_proj", name]), LLAMA_TIED)
    saved = problem(LoraConfig(target_modules=["q_proj"], modules_to_save=[name]), LLAMA_TIED)
    for message in (targeted, saved):
        assert "shares its weight with" in message
        assert "lm_head" in message
        assert "model.embed_tokens" in message


def test_a_head_of_its_own_may_be_saved_and_adapted() -> None:
    assert paths(LoraConfig(target_modules=["lm_head"])) == ["lm_head"]
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    assert found(config).saved == {"lm_head", "model.embed_tokens"}


def test_problems_of_every_kind_are_listed_at_once() -> None:
    config = LoraConfig(
        target_modules=["q_porj"],
        exclude_modules=["x"],
        modules_to_save=["y"],
        layers_to_transform=7,
    )
    text = "\n".join(found(config).problems)
    for part in ("'q_porj'", "exclude_modules: 'x'", "modules_to_save: 'y'", "no layer 7"):
        assert part in text


# ---------- what get_peft_model makes of it ----------


def test_the_problems_of_all_steps_are_in_one_error() -> None:
    model = small()
    recipe = [LoraConfig(target_modules=["q_porj"]), LoraConfig(modules_to_save=["nothing"])]
    with pytest.raises(TargetError) as caught:
        get_peft_model(model, recipe, host=lora_host())
    message = str(caught.value)
    assert "step 0: 'q_porj' matches no module" in message
    assert "step 1: modules_to_save: 'nothing' matches no module" in message
    assert isinstance(caught.value, LookupError)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["q_proj", "input_layernorm"], "RMSNorm"),
        (["norm", "q_proj"], "RMSNorm"),
        (["mlp"], "Gated"),
    ],
)
def test_an_entry_that_names_modules_of_a_kind_that_cannot_be_adapted_is_an_error(
    names: list[str], kind: str
) -> None:
    with pytest.raises(TargetError, match=rf"step 0, lora:\n.*{kind}.* cannot adapt"):
        get_peft_model(small(), LoraConfig(target_modules=names), host=lora_host())


def test_an_entry_may_name_some_modules_that_cannot_be_adapted_among_others_that_can() -> None:
    config = LoraConfig(target_modules=r"model\.layers\.0\..*")
    peft = get_peft_model(small(), config, host=lora_host())
    assert {r.seam.path.rpartition(".")[2] for r in peft.record.rewrites} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_a_target_that_modules_to_save_trains_whole_is_an_error() -> None:
    config = LoraConfig(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    with pytest.raises(
        TargetError, match="'lm_head': all of its 1 modules are excluded by modules_to"
    ):
        get_peft_model(small(), config, host=lora_host())


def test_all_linear_leaves_out_what_modules_to_save_trains_whole() -> None:
    config = LoraConfig(target_modules="all-linear", modules_to_save=["mlp"])
    peft = get_peft_model(small(), config, host=lora_host())
    trained = {name for name in peft.record.named_parameters(0) if "mlp" in name}
    assert trained == {
        f"model.layers.{n}.mlp.{kind}_proj.weight"
        for n in range(3)
        for kind in ("gate", "up", "down")
    }


class NowhereConfig(PeftConfig):
    peft_type: ClassVar[str] = "NOWHERE"


def test_a_method_without_a_seam_is_an_error() -> None:
    host = lora_host()
    host.register(plugin(NowhereConfig), "nowhere")
    with pytest.raises(PeftError, match="step 0, nowhere, adapted nothing: the model has no seam"):
        get_peft_model(small(), NowhereConfig(), host=host)


# ---------- layers by what stands before their number ----------


@pytest.mark.parametrize(
    "pattern", ["layers", ["layers"], ["h", "layers"], r"model\.layers", ["l.*s"]]
)
def test_a_layer_is_counted_by_the_pattern_before_its_number(pattern: str | list[str]) -> None:
    config = LoraConfig(
        target_modules=["q_proj"], layers_to_transform=[0, 2], layers_pattern=pattern
    )
    assert paths(config) == [f"model.layers.{n}.self_attn.q_proj" for n in (0, 2)]


def test_the_first_pattern_that_matches_says_which_number_counts() -> None:
    class Nested(Module):
        def __init__(self) -> None:
            self.experts = [Linear(2, 2), Linear(2, 2)]

    class Model(Module):
        def __init__(self) -> None:
            self.layers = [Nested(), Nested(), Nested()]

    seams = capture_seams(Model())

    def named(pattern: list[str]) -> list[str]:
        config = LoraConfig(
            target_modules=["0", "1"], layers_to_transform=1, layers_pattern=pattern
        )
        targets = find_targets(config, seams, "")
        return sorted(path for path in targets.paths if "experts" in path)

    assert named(["experts"]) == [f"layers.{n}.experts.1" for n in range(3)]
    assert named(["layers", "experts"]) == [f"layers.1.experts.{n}" for n in range(2)]


def test_a_pattern_without_a_number_after_it_is_an_error() -> None:
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=1, layers_pattern="h")
    assert (
        problem(config)
        == "layers_pattern: expected a layer's number after 'h', got none in any path"
    )


def test_a_layer_beyond_those_of_the_pattern_is_an_error() -> None:
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=3, layers_pattern="layers")
    assert problem(config) == "layers_to_transform: the model has no layer 3 (it has 3, from 0)"


@pytest.mark.parametrize(
    ("name", "count"), [("pooler", 1), ("intermediate", 2), ("embeddings", 4), ("layer.1", 8)]
)
def test_a_container_to_save_names_all_modules_in_it(name: str, count: int) -> None:
    config = LoraConfig(target_modules=["classifier"], modules_to_save=[name])
    seams = capture_seams(small(BERT_CLASSIFIER))
    saved = found(config, BERT_CLASSIFIER).saved
    weighty = {s.path for s in seams if any(True for _ in s.module.own_parameters())}
    assert len(saved & weighty) == count
    assert all(f".{name}." in f".{path}." for path in saved)
