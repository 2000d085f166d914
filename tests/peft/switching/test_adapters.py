"""Several adapters on one base: switched, stacked, chosen by row, merged and removed."""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import tinygrad_peft_lora.plugin
from tests.peft.small import (
    BERT_CLASSIFIER,
    FAMILIES,
    GPT2,
    IDS,
    LLAMA,
    ShiftConfig,
    Snapshot,
    logits,
    lora_host,
    plugin,
    shake,
    shift,
    small,
)
from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import CheckpointError, PeftError, TargetError
from tinygrad_peft.nn import (
    Affine,
    Attention,
    Context,
    Linear,
    Module,
    Parameter,
    Prefix,
    Prompt,
    TransformerConfig,
    VirtualKeys,
    VirtualTokens,
)
from tinygrad_peft.nn import functional as F
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, Site, TargetedConfig, get_peft_model
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft_lora import LoraConfig

FOUR = np.concatenate([IDS, IDS[:, ::-1]])  # (B, T)


# ---------- methods for every seam ----------


@dataclass(frozen=True, kw_only=True)
class SoftConfig(PeftConfig):
    peft_type: ClassVar[str] = "SOFT"
    length: int = 2


class SoftPrompt(Module):
    base_layer: Prompt

    def __init__(self, base: Prompt, states: Array) -> None:
        self.base_layer = base
        self.states = Parameter(states)

    def __call__(self) -> VirtualTokens:
        inner = self.base_layer()
        whole = [self.states] if inner is None else [self.states, inner.states]
        return VirtualTokens(F.concatenate(whole))


@dataclass(frozen=True, kw_only=True)
class KeysConfig(PeftConfig):
    peft_type: ClassVar[str] = "KEYS"
    length: int = 2


class KeyPrefix(Module):
    base_layer: Prefix

    def __init__(self, base: Prefix, layers: Array) -> None:
        self.base_layer = base
        self.layers = Parameter(layers)  # (L, 2, P, K, D)

    def __call__(self) -> VirtualKeys:
        assert self.base_layer() is None
        return VirtualKeys([(layer[0], layer[1]) for layer in self.layers])


@dataclass(frozen=True, kw_only=True)
class TwistConfig(PeftConfig):
    """Adds to what attention gives."""

    peft_type: ClassVar[str] = "TWIST"


class Twist(Module):
    base_layer: Attention

    def __init__(self, base: Attention, start: Array) -> None:
        self.base_layer = base
        self.num_heads, self.num_kv_heads = base.num_heads, base.num_kv_heads
        self.head_dim = base.head_dim
        self.shift = Parameter(start)

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        return self.base_layer(x, context) + self.shift


@dataclass(frozen=True, kw_only=True)
class RoundConfig(TargetedConfig):
    """Puts rounded weights, which nothing trains, in the place of a layer's."""

    peft_type: ClassVar[str] = "ROUND"


class Rounded(Module):
    def __init__(self, base: Linear) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rounded = np.round(base.weight.data, 1)
        self.bias = base.bias
        self.packed_elements = base.weight.size

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, Tensor(self.rounded), self.bias)


def adapt(config: PeftConfig, site: Site) -> Module | None:
    module, width = site.module, getattr(site.model, "config").hidden_size  # noqa: B009
    if isinstance(config, SoftConfig) and site.slot == "prompt" and isinstance(module, Prompt):
        return SoftPrompt(module, site.init.normal(config.length, width, std=0.5))
    if isinstance(config, KeysConfig) and site.slot == "prefix" and isinstance(module, Prefix):
        sizes = getattr(site.model, "config")  # noqa: B009
        shape = (sizes.num_hidden_layers, 2, config.length, sizes.num_key_value_heads)
        return KeyPrefix(module, site.init.normal(*shape, sizes.head_dim, std=0.5))
    if isinstance(config, TwistConfig) and isinstance(module, Attention):
        return Twist(module, site.init.normal(width, std=0.5))
    if isinstance(config, RoundConfig) and site.is_target and isinstance(module, Linear):
        return Rounded(module)
    return shift(config, site)


def merge(module: Module) -> Module | None:
    if isinstance(module, Rounded):
        return Linear.of(Parameter(module.rounded), module.bias)
    return None


def host() -> Host:
    made = Host()
    made.register(tinygrad_peft_lora.plugin, "lora")
    kinds = (SoftConfig, KeysConfig, TwistConfig, RoundConfig, ShiftConfig)
    made.register(plugin(*kinds, adapt=adapt, merge=merge), "toys")
    return made


TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"], "bert": ["query", "dense"]}
LORA = {family: LoraConfig(r=2, target_modules=names) for family, names in TARGETS.items()}


def several(
    config: TransformerConfig, recipes: dict[str, PeftConfig | Sequence[PeftConfig]]
) -> PeftModel:
    """A model with adapters of these recipes, all of their weights drawn at random."""
    peft: PeftModel | None = None
    for seed, (name, recipe) in enumerate(recipes.items()):
        if peft is None:
            model = small(config, np.float64)
            peft = get_peft_model(model, recipe, adapter_name=name, host=host())
        else:
            peft.add_adapter(name, recipe, seed=seed)
        peft.set_adapter(name)
        shake(peft, seed)
    assert peft is not None
    peft.set_adapter(next(iter(recipes)))
    return peft


def all_kinds(family: str) -> PeftModel:
    """Adapters that sit in every kind of place."""
    lora = LORA[family]
    return several(
        FAMILIES[family],
        {
            "lora": lora,
            "other": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS[family][:1]),
            "soft": [SoftConfig(length=3), lora],
            "short": SoftConfig(length=1),
            "keys": [KeysConfig(length=2), TwistConfig()],
            "rounded": [RoundConfig(target_modules="all-linear"), lora],
        },
    )


def run(peft: PeftModel, ids: IntArray = IDS, names: Sequence[str] | None = None) -> Array:
    with no_grad():
        return peft(ids, adapter_names=names).data


def weights(peft: PeftModel, name: str) -> list[Parameter]:
    peft.set_adapter(name)
    return peft.record.parameters()


# ---------- adding, switching, listing, deleting ----------


def test_adapters_are_listed_with_their_recipes_and_the_first_acts() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": [SoftConfig(), TwistConfig()]})
    assert peft.adapters == {"a": (LORA["llama"],), "b": (SoftConfig(), TwistConfig())}
    assert peft.active_adapters == ("a",)
    assert peft.recipe == (LORA["llama"],)


def test_a_new_adapter_does_not_act_until_it_is_set() -> None:
    peft = get_peft_model(small(), LORA["llama"], host=host())
    before = logits(peft)
    peft.add_adapter("b", SoftConfig())
    np.testing.assert_array_equal(logits(peft), before)
    assert peft.active_adapters == ("default",)


@pytest.mark.parametrize("family", FAMILIES)
def test_switching_back_and_forth_gives_the_same_bits(family: str) -> None:
    peft = all_kinds(family)
    first = {}
    for name in peft.adapters:
        peft.set_adapter(name)
        first[name] = logits(peft)
    for name in reversed(peft.adapters):
        peft.set_adapter(name)
        np.testing.assert_array_equal(logits(peft), first[name])
    assert len({array.tobytes() for array in first.values()}) == len(first)


def test_an_adapter_is_what_it_is_alone() -> None:
    together = several(GPT2, {"a": LORA["gpt2"], "b": LoraConfig(r=3, target_modules=["c_proj"])})
    alone = get_peft_model(
        small(GPT2, np.float64), together.adapters["b"], adapter_name="b", seed=1, host=host()
    )
    shake(alone, 1)
    together.set_adapter("b")
    np.testing.assert_array_equal(logits(together), logits(alone))


def test_loras_that_act_at_once_add_up() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LoraConfig(r=3, target_modules=["q_proj"])})

    def delta() -> Array:
        seam = "model.layers.1.self_attn.q_proj"
        (layer,) = [r.seam.module for r in peft.record.rewrites if r.seam.path == seam]
        x = np.eye(16)
        with peft.disable_adapter():
            (base,) = [r.seam.module for r in peft.record.rewrites if r.seam.path == seam]
        assert isinstance(layer, Affine)
        assert isinstance(base, Affine)
        return layer(Tensor(x)).data - base(Tensor(x)).data

    peft.set_adapter("a")
    one = delta()
    peft.set_adapter("b")
    other = delta()
    peft.set_adapter(["a", "b"])
    np.testing.assert_allclose(delta(), one + other, rtol=1e-12, atol=1e-14)
    assert peft.active_adapters == ("a", "b")
    assert len(peft.trainable_parameters()) == 18


def test_prompts_that_act_at_once_stand_one_before_the_other() -> None:
    peft = several(LLAMA, {"a": SoftConfig(length=2), "b": SoftConfig(length=3)})
    peft.set_adapter(["a", "b"])
    assert logits(peft).shape == (2, 10, 50)


def test_the_order_of_names_is_the_order_of_the_stack() -> None:
    peft = several(LLAMA, {"a": SoftConfig(), "b": SoftConfig()})
    peft.set_adapter(["a", "b"])
    one = logits(peft)
    peft.set_adapter(["b", "a"])
    assert not np.allclose(one, logits(peft))


def test_adapters_that_replace_the_same_module_are_not_active_together() -> None:
    saving = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    peft = several(BERT_CLASSIFIER, {"a": saving, "b": saving, "c": LORA["bert"]})
    before = Snapshot.of(peft)
    message = "'a' and 'b' cannot be active together:\n.*classifier: Linear replaces the module"
    with pytest.raises(PeftError, match=message):
        peft.set_adapter(["a", "b"])
    before.assert_unchanged(peft)
    assert peft.active_adapters == ("a",)
    peft.set_adapter(["a", "c"])


def test_a_deleted_adapter_is_gone_and_the_first_that_is_left_acts() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": SoftConfig(), "c": TwistConfig()})
    peft.set_adapter(["a", "b"])
    peft.delete_adapter("a")
    assert peft.active_adapters == ("b",)
    peft.delete_adapter("b")
    assert (peft.active_adapters, tuple(peft.adapters)) == (("c",), ("c",))
    peft.delete_adapter("c")
    np.testing.assert_array_equal(logits(peft), logits(small(LLAMA, np.float64)))
    with pytest.raises(PeftError, match="there is no adapter"):
        peft.merge_adapter()
    peft.add_adapter("d", LORA["llama"])
    peft.set_adapter("d")


def test_a_deleted_adapter_that_did_not_act_changes_nothing_else() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": SoftConfig()})
    before = Snapshot.of(peft)
    peft.delete_adapter("b")
    before.assert_unchanged(peft)


@pytest.mark.parametrize("name", ["", "0-lora", "a/b", "..", "__base__", "a b", "1"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    with pytest.raises(PeftError, match="adapter name: expected a letter"):
        peft.add_adapter(name, SoftConfig())


@pytest.mark.parametrize(
    "name", ["a.b", "a ", ".a", "a\x00", "a\n", "é", "a\\b", "a" * 10_000 + "/"]
)
def test_a_name_with_other_characters_is_refused_in_a_short_message(name: str) -> None:
    with pytest.raises(PeftError, match="adapter name: expected a letter") as caught:
        get_peft_model(small(LLAMA), SoftConfig(), adapter_name=name, host=host())
    assert len(str(caught.value)) < 400


def test_a_name_that_a_file_system_cannot_hold_is_refused() -> None:
    peft = several(LLAMA, {"a" * 100: LORA["llama"]})
    with pytest.raises(PeftError, match=r"expected at most 100 characters .*, got 101: 'bbb"):
        peft.add_adapter("b" * 101, SoftConfig())


@pytest.mark.parametrize("name", ["con", "NUL", "Com1", "lpt9", "checkpoints", "interrupted"])
def test_a_reserved_name_is_refused(name: str) -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    with pytest.raises(PeftError, match=f"adapter name: {name!r} is reserved"):
        peft.add_adapter(name, SoftConfig())


def test_a_name_that_is_taken_is_refused() -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    with pytest.raises(PeftError, match="adapter 'a' already exists"):
        peft.add_adapter("a", SoftConfig())


def test_unknown_names_are_refused_with_the_nearest() -> None:
    peft = several(LLAMA, {"french": LORA["llama"], "german": LORA["llama"]})
    message = "there are: french, german.*'frensh'; did you mean 'french'"
    for action in (
        lambda: peft.set_adapter("frensh"),
        lambda: peft.set_adapter(["german", "frensh"]),
        lambda: peft.delete_adapter("frensh"),
        lambda: peft(IDS, adapter_names=["german", "frensh"]),
        lambda: peft.save_pretrained("nowhere", adapters=["frensh"]),
    ):
        with pytest.raises(PeftError, match=f"(?s){message}"):
            action()
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_no_name_and_the_same_name_twice_are_refused(names: list[str]) -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    with pytest.raises(PeftError, match="expected one or more different names"):
        peft.set_adapter(names)


def test_what_cannot_act_together_is_refused_also_while_nothing_acts() -> None:
    saving = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    peft = several(BERT_CLASSIFIER, {"a": saving, "b": saving})
    before = Snapshot.of(peft)
    with peft.disable_adapter(), pytest.raises(PeftError, match="'a' and 'b' cannot be active"):
        peft.set_adapter(["a", "b"])
    assert peft.active_adapters == ("a",)
    before.assert_unchanged(peft)


def test_an_adapter_that_does_not_fit_changes_nothing() -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    before = Snapshot.of(peft)
    with pytest.raises(TargetError, match="q_porj"):
        peft.add_adapter("b", LoraConfig(target_modules=["q_porj"]))
    before.assert_unchanged(peft)
    assert tuple(peft.adapters) == ("a",)


def test_unloading_gives_back_the_base_with_what_was_trained() -> None:
    model = small(LLAMA, np.float64)
    before = Snapshot.of(model)
    peft = get_peft_model(model, LORA["llama"], host=host())
    peft.add_adapter("b", [SoftConfig(), TwistConfig()])
    peft.set_adapter(["default", "b"])
    assert peft.unload() is model
    before.assert_unchanged(model)
    get_peft_model(model, LORA["llama"], host=host())


def test_a_copy_is_independent() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": SoftConfig()})
    twin = copy.deepcopy(peft)
    before = logits(peft)
    twin.set_adapter("b")
    shake(twin)
    twin.delete_adapter("a")
    np.testing.assert_array_equal(logits(peft), before)
    peft.set_adapter("b")
    assert not np.allclose(logits(peft), logits(twin))


# ---------- a row's own adapter ----------

ROWS = ["lora", "__base__", "soft", "keys", "other", "short", "rounded", "soft"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_what_it_is_alone_with_its_adapter(family: str) -> None:
    peft = all_kinds(family)
    ids = np.concatenate([FOUR, FOUR - 1])
    mask = np.ones_like(ids)
    mask[1::2, 3:] = 0
    with no_grad():
        together = peft(ids, mask, adapter_names=ROWS).data
        for row, name in enumerate(ROWS):
            one = slice(row, row + 1)
            if name == "__base__":
                with peft.disable_adapter():
                    alone = peft(ids[one], mask[one]).data[0]
            else:
                peft.set_adapter(name)
                alone = peft(ids[one], mask[one]).data[0]
            seen = len(alone) - (2 if row % 2 and alone.ndim == 2 else 0)
            own = together[row, -len(alone) :] if alone.ndim == 2 else together[row]
            np.testing.assert_allclose(own[:seen], alone[:seen], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradients_of_rows_are_those_of_each_alone(family: str) -> None:
    peft, alone = all_kinds(family), all_kinds(family)
    names = ["lora", "soft", "keys", "soft"]
    labels = np.array([0, 2, 1, 1]) if family == "bert" else FOUR
    peft.loss(FOUR, labels, adapter_names=names).backward()
    counts = [1, 1, 1, 1] if family == "bert" else [4, 5, 4, 5]
    for row, name in enumerate(names):
        alone.set_adapter(name)
        loss = alone.loss(FOUR[row : row + 1], labels[row : row + 1])
        (loss * (counts[row] / sum(counts))).backward()
    for name in ("lora", "soft", "keys"):
        for one, other in zip(weights(peft, name), weights(alone, name), strict=True):
            assert one.grad is not None
            assert other.grad is not None
            np.testing.assert_allclose(one.grad, other.grad, rtol=1e-8, atol=1e-11)
    assert all(p.grad is None for p in weights(peft, "other"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_row_is_continued_as_it_is_alone(family: str) -> None:
    peft = all_kinds(family)
    names = ["lora", "keys", "__base__", "soft"]
    mask = np.ones_like(FOUR)
    mask[1, :2] = 0
    together = peft.generate(FOUR, max_new_tokens=5, attention_mask=mask, adapter_names=names)
    for row, name in enumerate(names):
        own = FOUR[row : row + 1, 2 if row == 1 else 0 :]
        if name == "__base__":
            with peft.disable_adapter():
                alone = peft.generate(own, max_new_tokens=5)
        else:
            peft.set_adapter(name)
            alone = peft.generate(own, max_new_tokens=5)
        np.testing.assert_array_equal(together[row, -alone.shape[1] :], alone[0])


def test_rows_of_one_adapter_are_that_adapter() -> None:
    peft = all_kinds("llama")
    rows = run(peft, names=["other", "other"])
    base = run(peft, names=["__base__", "__base__"])
    peft.set_adapter("other")
    np.testing.assert_array_equal(rows, logits(peft))
    with peft.disable_adapter():
        np.testing.assert_array_equal(base, logits(peft))


def test_what_stood_before_stands_after_rows_also_after_an_error() -> None:
    peft = all_kinds("llama")
    before = Snapshot.of(peft)
    run(peft, names=["lora", "soft"])
    before.assert_unchanged(peft)
    with pytest.raises(ValueError, match="positions"):
        peft(np.tile(IDS, 5), adapter_names=["lora", "soft"])
    before.assert_unchanged(peft)


@pytest.mark.parametrize("names", [["lora"], ["lora"] * 3, [], "lora"])
def test_one_name_per_row_is_required(names: Sequence[str]) -> None:
    peft = all_kinds("llama")
    with pytest.raises(PeftError, match="expected a list of 2, one per row"):
        peft(IDS, adapter_names=names)


def test_rows_are_the_base_within_the_block_that_disables() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LORA["llama"]})
    with peft.disable_adapter():
        base = logits(peft)
        np.testing.assert_array_equal(run(peft, names=["a", "b"]), base)
        np.testing.assert_array_equal(logits(peft), base)


def test_rows_go_on_choosing_when_something_else_was_run_meanwhile() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LORA["llama"]})
    names = ["b", "__base__"]
    expected = peft.generate(IDS, max_new_tokens=6, adapter_names=names)

    def look(_: IntArray) -> None:
        with peft.disable_adapter():
            logits(peft)
        run(peft, names=["a", "b"])

    found = peft.generate(IDS, max_new_tokens=6, adapter_names=names, on_token=look)
    np.testing.assert_array_equal(found, expected)


def test_adapters_per_row_are_refused_while_one_is_merged() -> None:
    peft = several(LLAMA, {"a": LORA["llama"]})
    peft.merge_adapter()
    with pytest.raises(PeftError, match="unmerge it before choosing"):
        peft(IDS, adapter_names=["a", "__base__"])


@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize(
    ("family", "saved"),
    [("gpt2", "wpe"), ("bert", "token_type_embeddings"), ("bert", "word_embeddings")],
)
def test_what_looks_up_ids_that_all_rows_share_is_each_rows_own(
    family: str, saved: str, tokens: int
) -> None:
    saving = LoraConfig(r=2, target_modules=TARGETS[family], modules_to_save=[saved])
    peft = several(FAMILIES[family], {"a": saving, "b": LORA[family]})
    ids = IDS[:, :tokens]
    together = run(peft, ids, ["a", "b"])
    for row, name in enumerate(["a", "b"]):
        peft.set_adapter(name)
        np.testing.assert_allclose(together[row], run(peft, ids)[row], rtol=1e-9, atol=1e-11)


def test_a_module_with_other_rows_is_named() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LORA["llama"]})
    with (
        peft._adapters.running(["a", "b"]) as two_rows,  # noqa: SLF001 - no call has other rows
        pytest.raises(PeftError, match=r"layers\.0\.self_attn\.q_proj: expected an input of"),
    ):
        two_rows(np.concatenate([IDS, IDS]))


# ---------- merging and disabling ----------


def test_all_that_act_are_merged() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LoraConfig(r=3, target_modules=["q_proj"])})
    peft.set_adapter(["a", "b"])
    expected = logits(peft)
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-10)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), expected)
    plain = peft.merge_and_unload()
    np.testing.assert_allclose(logits(plain), expected, rtol=1e-10)
    assert all(type(m).__name__ != "LoraLinear" for _, m in plain.named_modules())


def test_merging_the_first_time_is_refused_with_every_place_and_its_reason() -> None:
    peft = several(LLAMA, {"a": [LORA["llama"], TwistConfig(), SoftConfig()]})
    before = Snapshot.of(peft)
    with pytest.raises(PeftError, match=r"(?s)prompt: soft cannot.*self_attn: twist cannot"):
        peft.merge_adapter()
    before.assert_unchanged(peft)


def test_what_can_be_merged_is_and_the_rest_goes_on_standing() -> None:
    shifted = ShiftConfig(target_modules=["q_proj"])
    peft = several(LLAMA, {"a": [LORA["llama"], shifted, SoftConfig()]})
    expected = logits(peft)
    peft.merge_adapter(partial=True)
    kinds = [type(m).__name__ for _, m in peft.named_modules()]
    assert "LoraLinear" not in kinds
    assert {"ShiftLinear", "SoftPrompt"} <= set(kinds)
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-10)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft), expected)


@pytest.mark.parametrize("action", ["set", "delete", "add", "load", "release"])
def test_nothing_is_switched_while_an_adapter_is_merged(action: str, tmp_path: Path) -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": SoftConfig()})
    peft.save_pretrained(tmp_path, adapters=["b"])
    peft.merge_adapter()
    actions = {
        "set": lambda: peft.set_adapter("b"),
        "delete": lambda: peft.delete_adapter("b"),
        "add": lambda: peft.add_adapter("c", SoftConfig()),
        "load": lambda: peft.load_adapter(tmp_path / "b", "c"),
        "release": peft.release_base,
    }
    with pytest.raises(PeftError, match="the adapter is merged: unmerge it before"):
        actions[action]()


# ---------- a base that was replaced ----------


def test_a_replaced_base_is_put_back_unless_it_is_released() -> None:
    model = small(LLAMA, np.float64)
    rounding = [RoundConfig(target_modules="all-linear"), LORA["llama"]]
    before, bare = Snapshot.of(model), logits(model)
    peft = get_peft_model(model, rounding, host=host())
    shake(peft)
    expected, size = logits(peft), peft.get_nb_trainable_parameters()
    peft.release_base()
    np.testing.assert_array_equal(logits(peft), expected)
    assert peft.get_nb_trainable_parameters() == size
    with peft.disable_adapter():
        rounded = logits(peft)
    assert not np.allclose(rounded, bare)
    peft.merge_adapter()
    np.testing.assert_allclose(logits(peft), expected, rtol=1e-10)
    peft.unmerge_adapter()
    np.testing.assert_array_equal(logits(peft.unload()), rounded)
    with pytest.raises(AssertionError):
        before.assert_unchanged(model)


def test_a_released_base_is_merged_into_plain_layers_everywhere() -> None:
    rounding = [RoundConfig(target_modules="all-linear"), LORA["llama"]]
    peft = several(LLAMA, {"a": rounding})
    expected = logits(peft)
    peft.release_base()
    plain = peft.merge_and_unload()
    assert all(type(m).__name__ not in ("Rounded", "LoraLinear") for _, m in plain.named_modules())
    np.testing.assert_allclose(logits(plain), expected, rtol=1e-10)


def test_a_released_base_takes_no_memory() -> None:
    model = small()
    before = weakref.ref(model.state_dict()["blocks.0.mlp.up_proj.weight"])
    kept = weakref.ref(model.state_dict()["blocks.0.mlp_norm.weight"])
    rounding = [RoundConfig(target_modules=["up_proj"]), LORA["llama"]]
    peft = get_peft_model(model, rounding, host=host())
    peft.add_adapter("other", LORA["llama"])
    peft.release_base()
    assert before() is None
    assert all(parameter.requires_grad for parameter in peft.unload().parameters())
    assert kept() is not None


def test_a_released_base_takes_further_adapters() -> None:
    peft = several(LLAMA, {"a": [RoundConfig(target_modules="all-linear"), LORA["llama"]]})
    peft.release_base()
    peft.add_adapter("b", LORA["llama"], seed=3)
    peft.set_adapter("b")
    with peft.disable_adapter():
        base = logits(peft)
    np.testing.assert_array_equal(logits(peft), base)  # LoRA begins there


def test_a_base_that_another_adapter_needs_is_not_released() -> None:
    peft = several(
        LLAMA,
        {"a": [RoundConfig(target_modules=["q_proj"]), LORA["llama"]], "b": LORA["llama"]},
    )
    with pytest.raises(PeftError, match="q_proj: 'b' needs what round replaced"):
        peft.release_base()
    peft.delete_adapter("b")
    peft.release_base()


# ---------- counting ----------


def test_all_adapters_count_among_all_and_those_that_act_among_the_trained() -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": SoftConfig(length=3)})
    base = sum(p.size for p in small(LLAMA).parameters())
    lora = 3 * 2 * (16 + 16) + 3 * 2 * (24 + 16)
    assert peft.get_nb_trainable_parameters() == (lora, base + lora + 48)
    peft.set_adapter("b")
    assert peft.get_nb_trainable_parameters() == (48, base + lora + 48)
    peft.set_adapter(["a", "b"])
    assert peft.get_nb_trainable_parameters() == (lora + 48, base + lora + 48)


# ---------- saving ----------


def test_each_adapter_has_a_folder_and_the_default_one_the_folder_itself(tmp_path: Path) -> None:
    peft = several(LLAMA, {"default": LORA["llama"], "b": [SoftConfig(), TwistConfig()]})
    peft.save_pretrained(tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.json")}
    assert files == {
        "adapter_config.json",
        "recipe.json",
        "b/recipe.json",
        "b/0-soft/adapter_config.json",
        "b/1-twist/adapter_config.json",
    }
    loaded = PeftModel.from_pretrained(small(LLAMA, np.float64), tmp_path, host=host())
    loaded.load_adapter(tmp_path / "b", "other")
    for name, same in (("default", "default"), ("b", "other")):
        peft.set_adapter(name)
        loaded.set_adapter(same)
        np.testing.assert_array_equal(logits(loaded), logits(peft))
        assert loaded.trainable_parameters() == []


def test_some_can_be_saved(tmp_path: Path) -> None:
    peft = several(LLAMA, {"default": LORA["llama"], "b": SoftConfig()})
    peft.save_pretrained(tmp_path, adapters=["b"])
    assert {p.name for p in tmp_path.iterdir()} == {"b"}


def test_an_adapter_may_be_read_for_training(tmp_path: Path) -> None:
    peft = several(LLAMA, {"default": LORA["llama"]})
    peft.save_pretrained(tmp_path)
    peft.load_adapter(tmp_path, "more", is_trainable=True)
    peft.set_adapter("more")
    assert len(peft.trainable_parameters()) == 12


def test_a_folder_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    several(GPT2, {"default": LORA["gpt2"]}).save_pretrained(tmp_path)
    peft = several(LLAMA, {"a": LORA["llama"]})
    before = Snapshot.of(peft)
    with pytest.raises(CheckpointError, match="made for another model"):
        peft.load_adapter(tmp_path, "b")
    before.assert_unchanged(peft)
    assert tuple(peft.adapters) == ("a",)


def test_weights_that_do_not_fit_leave_the_others_standing(tmp_path: Path) -> None:
    peft = several(LLAMA, {"a": LORA["llama"], "b": LORA["llama"]})
    peft.save_pretrained(tmp_path)
    (tmp_path / "b" / "adapter_model.safetensors").unlink()
    before = Snapshot.of(peft)
    with pytest.raises(CheckpointError, match="does not exist"):
        peft.load_adapter(tmp_path / "b", "c")
    before.assert_unchanged(peft)


def test_a_plugin_without_merge_module_is_named_when_its_method_is_merged() -> None:
    host = lora_host()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    peft = get_peft_model(small(), ShiftConfig(target_modules=["q_proj"]), host=host)
    with pytest.raises(
        PeftError, match="shift cannot be merged: its plugin 'shift' has no merge_m"
    ):
        peft.merge_adapter()


def test_a_seed_below_zero_is_refused_before_anything_is_combined() -> None:
    peft = get_peft_model(small(), LoraConfig(r=2))
    with pytest.raises(PeftError, match="seed: expected an integer of at least 0, got -1"):
        peft.add_weighted_adapter(
            ["default"], [1.0], "sum", combination_type="dare_linear", seed=-1
        )
