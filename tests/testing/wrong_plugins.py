"""Methods that break a promise each: tests/testing/test_conformance.py runs the suite on them.

`fails` names the tests that must find it, with words that their messages must have, and `also`
those that fail with them unavoidably; all others must pass.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tests.testing.rank_one import (
    GPT2,
    LLAMA,
    CannotMerge,
    Method,
    RankOne,
    RankOneConfig,
    RankOneLinear,
)
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Affine, Init, Linear, Module, Parameter
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import (
    Draft,
    FileFormat,
    ModelShape,
    Shapes,
    Site,
)
from tinygrad_peft.tensor import Tensor, apply
from tinygrad_peft.testing import SMALL_MODELS

# ---------- running ----------


class TestCannotBeApplied(Method):
    models = SMALL_MODELS
    fails = {"it_can_be_applied": "gpt2: PeftError: no room"}
    skips = (
        ("starts_as_the_base", "it cannot be applied to bert: see test_it_can_be_applied"),
        ("makes_a_difference_on_every_family", "it cannot be applied to llama"),
        ("works_with_grouped_query_heads", "it cannot be applied to llama"),
        ("a_composition_is_counted", "it cannot be applied to gpt2"),
    )

    class Plugin(RankOne):
        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            raise PeftError("no room")


class TestCannotRun(Method):
    fails = {"it_can_be_applied": "bert: ZeroDivisionError: division by zero"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x) * (1 / (self.in_features - self.a.shape[1]))


class TestStartsElsewhere(Method):
    fails = {"starts_as_the_base": "logits at the start"}

    class Layer(RankOneLinear):
        def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
            super().__init__(base, config, init)
            self.b.data = init.ones(base.out_features, 1)


class TestMakesNoDifference(Method):
    fails = {"makes_a_difference_on_every_family": "the logits are the base's"}
    also = (
        "composes_with_every_installed_method",
        "a_composition_merges_or_refuses",
        "merged_equals_unmerged",
        "all_that_it_trains_learns",
        "dropout_acts_in_training_alone",
        "two_adapters_act_at_once",
    )

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x) * 0.0


class TestPromisesVirtualTokens(Method):
    models = GPT2
    changes_sequence_length = True
    fails = {"the_output_has_its_shape": "expected logits (2, more than 5, 40), got (2, 5, 40)"}


class TestMixesTheRows(Method):
    Plugin = CannotMerge
    mergeable = False
    fails = {
        "a_batch_of_one_and_a_length_of_one_are_parts_of_the_whole": "row 0 alone",
        "each_row_may_have_its_own_adapter": "row 0 of ['default', 'default', 'other', '__base__']",
    }

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x - x.mean(axis=0, keepdims=True))


class TestMixesTheTokens(Method):
    Plugin = CannotMerge
    mergeable = False
    fails = {"padding_changes_nothing": "with padding"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x - x.mean(axis=1, keepdims=True))


class TestPassesOverSingleTokens(Method):
    models = GPT2
    fails = {
        "a_batch_of_one_and_a_length_of_one_are_parts_of_the_whole": "the first token alone",
        "generation_continues_as_whole_sequences_do": "are not continued as whole sequences",
    }

    class Layer(RankOneLinear):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) if x.shape[1] > 1 else self.base_layer(x)


class TestDropsInEvaluation(Method):
    fails = {"dropout_acts_in_training_alone": "evaluation with dropout of 0.5"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            self.dropout.training = True
            return super().update(self.dropout(x))


class TestNeverDrops(Method):
    fails = {"dropout_acts_in_training_alone": "dropout of 0.5 changes nothing in training"}

    class Layer(RankOneLinear):
        def __call__(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.update(x)


class TestDoublesInTraining(Method):
    fails = {"dropout_acts_in_training_alone": "training mode without dropout"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x) * (2.0 if self.training else 1.0)


class TestIsAlwaysSingle(Method):
    fails = {
        "works_in_float32_and_in_float64": "expected all to be float64",
        "gradients_agree_with_differences": "expected float64, got float32",
    }

    class Layer(RankOneLinear):
        def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
            super().__init__(base, config, init)
            self.a.data, self.b.data = (p.data.astype(np.float32) for p in (self.a, self.b))


class TestTakesAllHeadsForKeyValueHeads(Method):
    models = LLAMA
    fails = {
        "works_with_grouped_query_heads": "the formula",
        "the_closed_form_count_is_the_real_one": "by count_parameters",
        "a_composition_is_counted": "by count_parameters",
    }

    class Plugin(RankOne):
        def count(self, shape: ModelShape) -> int:
            return sum(t.in_features + shape.config.hidden_size for t in shape.targets)


# ---------- training ----------


class TestTrainsAFrozenWeight(Method):
    fails = {"trains_what_it_added_and_nothing_else": "weights of the base would be trained"}
    also = (
        "frozen_arrays_keep_their_bits_in_training",
        "a_saved_adapter_gives_identical_logits",
        "what_is_saved_is_independent_of_the_model",
        "disabling_is_bit_exact",
        "removing_is_bit_exact",
        "composes_with_every_installed_method",
        "a_composition_is_saved_and_loaded",
        "switching_adapters_is_bit_exact",
    )

    class Plugin(RankOne):
        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            if isinstance(base, Linear):
                base.weight.requires_grad = True
            return super().adapt(site, base, config)


class TestMovesAFrozenWeight(Method):
    fails = {"frozen_arrays_keep_their_bits_in_training": "which is frozen"}
    also = (
        "removing_is_bit_exact",
        "dropout_acts_in_training_alone",
        "composes_with_every_installed_method",
        "gradients_agree_with_differences",
    )

    class Layer(RankOneLinear):
        def __call__(self, x: Tensor) -> Tensor:
            if self.training and isinstance(self.base_layer, Linear):
                self.base_layer.weight.data *= 1.01
            return super().__call__(x)


class TestTrainsNothing(Method):
    fails = {"trains_what_it_added_and_nothing_else": "nothing would be trained"}
    also = (
        "all_that_it_trains_learns",
        "frozen_arrays_keep_their_bits_in_training",
        "the_closed_form_count_is_the_real_one",
        "removing_is_bit_exact",
        "makes_a_difference_on_every_family",
        "dropout_acts_in_training_alone",
        "works_in_float32_and_in_float64",
        "a_composition_is_counted",
        "two_adapters_act_at_once",
        "no_parameter_is_hidden",
    )

    class Layer(RankOneLinear):
        def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
            super().__init__(base, config, init)
            self.a.requires_grad = self.b.requires_grad = False


class TestDetachesAWeight(Method):
    fails = {"all_that_it_trains_learns": "moved nothing of"}
    also = (
        "gradients_agree_with_differences",
        "composes_with_every_installed_method",
    )

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            low = F.linear(x, self.a.detach())
            return F.linear(low, self.b) * self.scale


class TestStopsTheGradient(Method):
    fails = {"gradients_agree_with_differences": "the gradient of the token embedding"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return super().update(x.detach())


class TestHasAWrongGradient(Method):
    fails = {"gradients_agree_with_differences": "relative error"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            return apply(lambda y: (y, (lambda g: g / 2,)), super().update(x))


class TestHasAWrongGradientInTraining(Method):
    fails = {"gradients_agree_with_differences": "in training mode"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            y = super().update(x)
            return apply(lambda a: (a, (lambda g: g / 2,)), y) if self.training else y


class TestHidesAParameter(Method):
    fails = {"no_parameter_is_hidden": "blocks.0.attn.v_proj.cache"}

    class Layer(RankOneLinear):
        def update(self, x: Tensor) -> Tensor:
            self.cache = {"last": Parameter(x.data)}
            return super().update(x)


class TestDrawsAnew(Method):
    fails = {"the_same_seed_gives_the_same_weights": "from the same seed"}
    also = (
        "dropout_acts_in_training_alone",
        "works_in_float32_and_in_float64",
        "a_later_step_leaves_the_start_of_an_earlier_one_alone",
        "switching_adapters_is_bit_exact",
    )

    class Plugin(RankOne):
        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            return self.layer(base, config, Init(np.random.default_rng(), site.init.dtype))


class TestCountsOneTooMany(Method):
    fails = {
        "the_closed_form_count_is_the_real_one": "by count_parameters",
        "a_composition_is_counted": "by count_parameters",
    }

    class Plugin(RankOne):
        def count(self, shape: ModelShape) -> int:
            return super().count(shape) + 1


# ---------- switching ----------


class TestForgetsTheBias(Method):
    fails = {
        "merged_equals_unmerged": "logits, merged",
        "a_composition_merges_or_refuses": "rank_one on bert over rank_one: logits, merged",
    }

    class Plugin(RankOne):
        def merge(self, module: RankOneLinear, base: Linear) -> Module | None:
            bias = None if base.bias is None else Parameter(np.zeros_like(base.bias.data))
            return Linear.of(Parameter(base.weight.data + module.delta()), bias)


class TestCannotMerge(Method):
    Plugin = CannotMerge
    fails = {
        "merged_equals_unmerged": "cannot be merged, and mergeable = True",
        "a_composition_merges_or_refuses": "it merges alone, and refuses to merge here",
    }
    also = (
        "merging_leaves_a_plain_model",
        "unmerging_is_bit_exact",
        "disabling_is_bit_exact",
    )


class TestMergesInSilence(Method):
    mergeable = False
    fails = {"merged_equals_unmerged": "can be merged, and mergeable = False"}


class TestMergesIntoAWrapper(Method):
    fails = {"merging_leaves_a_plain_model": "expected Linear, got RankOneLinear"}
    also = (
        "unmerging_is_bit_exact",
        "a_composition_merges_or_refuses",
    )

    class Plugin(RankOne):
        def merge(self, module: RankOneLinear, base: Linear) -> Module | None:
            return copy.copy(module)


class TestMergesInPlace(Method):
    fails = {
        "unmerging_is_bit_exact": "has other values",
        "disabling_is_bit_exact": "logits of the disabled, merged",
    }

    class Plugin(RankOne):
        def merge(self, module: RankOneLinear, base: Linear) -> Module | None:
            base.weight.data = base.weight.data + module.delta()
            return base


class TestChangesTheBase(Method):
    starts_as_identity = False
    fails = {
        "disabling_is_bit_exact": "logits of the disabled, adapted",
        "removing_is_bit_exact": "has other values",
    }
    also = (
        "a_missing_extra_or_misshapen_tensor_is_refused",
        "composes_with_every_installed_method",
        "switching_adapters_is_bit_exact",
    )

    class Plugin(RankOne):
        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            if isinstance(base, Linear):
                base.weight.data = base.weight.data - 0.01
            return super().adapt(site, base, config)


class TestSharesItsCopies(Method):
    fails = {"a_deepcopy_is_independent": "a deepcopy shares"}

    class Layer(RankOneLinear):
        def __deepcopy__(self, memo: dict[int, object]) -> "RankOneLinear":
            twin = copy.copy(self)
            twin.base_layer = copy.deepcopy(self.base_layer, memo)
            return twin


class TestSharesItsWeightsAmongAdapters(Method):
    fails = {"switching_adapters_is_bit_exact": "logits of 'default' of two"}

    class Plugin(RankOne):
        def __init__(self, layer: type[RankOneLinear], settings: type[RankOneConfig]) -> None:
            super().__init__(layer, settings)
            self.known: list[RankOneLinear] = []

        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            made = self.layer(base, config, site.init)
            for known in self.known:
                if known.base_layer is base:
                    made.a, made.b = known.a, known.b
            self.known.append(made)
            return made


class TestPassesOverWhatItWraps(Method):
    fails = {
        "two_adapters_act_at_once": "of two adapters at once, default changes nothing",
        "composes_with_every_installed_method": "two steps moved nothing of 2 weights",
    }
    also = ("a_composition_merges_or_refuses",)

    class Layer(RankOneLinear):
        def __call__(self, x: Tensor) -> Tensor:
            base = self.base_layer
            while isinstance(base, RankOneLinear):
                base = base.base_layer
            return base(x) + self.update(self.dropout(x))


# ---------- saving ----------


@dataclass(frozen=True, kw_only=True)
class BareNamesConfig(RankOneConfig):
    file_format: ClassVar = FileFormat(tensor_key=lambda path, name: f"{path}.{name}")


class TestStoresItsTensorsUnderBareNames(Method):
    config = BareNamesConfig()
    fails = {"its_files_have_the_usual_names": "expected tensors named base_model..., got"}


@dataclass(frozen=True, kw_only=True)
class ContradictoryConfig(RankOneConfig):
    def contradictions(self, shapes: Shapes) -> list[str]:
        return [f"{name}: too small" for name in shapes]

    file_format: ClassVar[FileFormat["ContradictoryConfig"]] = FileFormat(checks=contradictions)


class TestContradictsItsFiles(Method):
    config = ContradictoryConfig()
    fails = {"inspect_finds_nothing_wrong_with_what_is_saved": "too small"}


@dataclass(frozen=True, kw_only=True)
class HalvingConfig(RankOneConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale", self.scale / 2)


class TestHalvesASetting(Method):
    config = HalvingConfig()
    fails = {
        "its_settings_survive_json": "from JSON, got",
        "a_saved_adapter_gives_identical_logits": "expected to load the recipe",
        "a_composition_is_saved_and_loaded": "expected to load the recipe",
    }
    also = ("what_is_saved_is_independent_of_the_model",)


@dataclass(frozen=True, kw_only=True)
class CarelessConfig(RankOneConfig):
    file_format: ClassVar = FileFormat(ignored_settings={"no_such_setting": 1})


class TestTakesAnySetting(Method):
    config = CarelessConfig()
    fails = {"an_unknown_setting_is_refused": "expected no_such_setting = 1 to be refused"}


@dataclass(frozen=True, kw_only=True)
class OneNameConfig(RankOneConfig):
    file_format: ClassVar = FileFormat(tensor_key=lambda _path, name: name)


class TestStoresAllLayersUnderOneName(Method):
    config = OneNameConfig()
    models = {"bert": SMALL_MODELS["bert"]}
    fails = {
        "a_saved_adapter_gives_identical_logits": "expected one weight named",
        "a_composition_is_saved_and_loaded": "expected one weight named",
    }
    also = (
        "its_files_have_the_usual_names",
        "inspect_finds_nothing_wrong_with_what_is_saved",
        "what_is_saved_is_independent_of_the_model",
        "a_missing_extra_or_misshapen_tensor_is_refused",
    )


class TestHidesItsWeightInTheBase(Method):
    fails = {
        "a_saved_adapter_gives_identical_logits": "logits, saved and loaded",
        "a_missing_extra_or_misshapen_tensor_is_refused": "no tensor is saved",
    }
    also = (
        "its_files_have_the_usual_names",
        "what_is_saved_is_independent_of_the_model",
        "removing_is_bit_exact",
        "composes_with_every_installed_method",
        "a_composition_is_saved_and_loaded",
        "the_closed_form_count_is_the_real_one",
        "a_composition_is_counted",
    )

    class Layer(RankOneLinear):
        def __init__(self, base: Affine, config: RankOneConfig, init: Init) -> None:
            super().__init__(base, config, init)
            vars(base).update(a=self.a, b=self.b)


class TestSharesItsWeightsAmongModels(Method):
    fails = {"what_is_saved_is_independent_of_the_model": "after one that was loaded has changed"}
    # Stacked on itself, one step takes the weights of the other: its own file is then one too many.
    also = ("a_composition_is_saved_and_loaded",)

    class Plugin(RankOne):
        def __init__(self, layer: type[RankOneLinear], settings: type[RankOneConfig]) -> None:
            super().__init__(layer, settings)
            self.last: dict[str, RankOneLinear] = {}

        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            made = self.layer(base, config, site.init)
            if site.loading and site.path in self.last:
                made.a, made.b = self.last[site.path].a, self.last[site.path].b
            self.last[site.path] = made
            return made


# ---------- composing ----------


class TestWrapsPlainLayersAlone(Method):
    fails = {"composes_with_every_installed_method": "expected to be applied"}
    also = (
        "a_later_step_leaves_the_start_of_an_earlier_one_alone",
        "a_composition_is_counted",
        "a_composition_is_saved_and_loaded",
        "a_composition_merges_or_refuses",
    )

    class Plugin(RankOne):
        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            return super().adapt(site, base, config) if isinstance(base, Linear) else None


class TestTouchesWhatItRefuses(Method):
    composes_with_itself = False
    fails = {"composes_with_every_installed_method": "that it was refused for"}
    also = (
        "a_later_step_leaves_the_start_of_an_earlier_one_alone",
        "a_composition_is_counted",
        "a_composition_is_saved_and_loaded",
        "a_composition_merges_or_refuses",
    )

    class Plugin(RankOne):
        def check(self, draft: Draft) -> Sequence[str]:
            if len(draft.recipe) == 1:
                return []
            for parameter in draft.model.parameters():
                parameter.data += 1
            return ["one is enough"]


class TestStartsByTheLengthOfTheRecipe(Method):
    fails = {
        "a_later_step_leaves_the_start_of_an_earlier_one_alone": "start elsewhere than alone",
    }

    class Plugin(RankOne):
        steps = 0

        def check(self, draft: Draft) -> Sequence[str]:
            self.steps = len(draft.recipe)
            return []

        def adapt(self, site: Site, base: Affine, config: RankOneConfig) -> Module | None:
            return self.layer(base, config, Init((self.steps, len(site.path)), site.init.dtype))
