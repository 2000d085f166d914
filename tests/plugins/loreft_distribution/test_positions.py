"""The tokens that LoReFT edits, beside padding, virtual tokens and the cache."""

from collections.abc import Sequence

import numpy as np
import pytest

from tinygrad_peft import PeftModel, get_peft_model
from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.nn import BlockLike, Context, Module, Roles
from tinygrad_peft.peft import PeftConfig
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.testing import SMALL_MODELS, small_model
from tinygrad_peft_loreft import LoreftBlock, LoreftConfig
from tinygrad_peft_loreft.layer import edited_tokens
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig

PROMPT, PREFIX = PromptTuningConfig(num_virtual_tokens=3), PrefixTuningConfig(num_virtual_tokens=2)
ENDS = LoreftConfig(low_rank_dimension=3, first_n=2, last_n=1, share_weights=False)


def ends(n: int, p: int, s: int) -> tuple[list[int], list[int]]:
    """The paper's rule for a prompt of n tokens: the first p and the last s, counted from 0."""
    if n < p + s:
        p, s = min(p, n // 2), min(s, n - n // 2)
    return list(range(p)), list(range(n - s, n))


def chosen(roles: Roles, p: int, s: int) -> list[tuple[list[int], list[int]]]:
    """The edited positions of each row."""
    return [
        (np.flatnonzero(first).tolist(), np.flatnonzero(last).tolist())
        for first, last in zip(*edited_tokens(roles, p, s), strict=True)
    ]


@pytest.mark.parametrize(
    ("n", "p", "s", "first", "last"),
    [
        (6, 2, 1, [0, 1], [5]),
        (6, 4, 2, [0, 1, 2, 3], [4, 5]),  # all tokens, and none twice
        (6, 5, 2, [0, 1, 2], [4, 5]),  # too short: at most half of it each
        (5, 4, 4, [0, 1], [2, 3, 4]),  # the token in the middle belongs to the end
        (5, 7, 1, [0, 1], [4]),
        (2, 3, 3, [0], [1]),
        (1, 3, 3, [], [0]),
        (1, 2, 0, [], []),
        (4, 0, 2, [], [2, 3]),
    ],
)
def test_short_prompts_are_halved(
    n: int, p: int, s: int, first: list[int], last: list[int]
) -> None:
    assert ends(n, p, s) == (first, last)
    assert chosen(Roles((1, n)), p, s) == [(first, last)]


@pytest.mark.parametrize("p", range(5))
@pytest.mark.parametrize("s", range(5))
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_all_lengths_are_edited_by_the_papers_rule(p: int, s: int, side: str) -> None:
    lengths, longest = range(1, 11), 10
    expected = []
    mask = np.zeros((len(lengths), longest), bool)
    for row, n in enumerate(lengths):
        start = longest - n if side == "left" else 0
        mask[row, start : start + n] = True
        first, last = ends(n, p, s)
        expected.append(([start + i for i in first], [start + i for i in last]))
    assert chosen(Roles(mask.shape, mask=mask), p, s) == expected


def test_virtual_tokens_and_the_continuation_are_left_alone() -> None:
    virtual = np.ones((2, 3), bool)
    roles = Roles((2, 11), virtual_tokens=virtual, prompt_lengths=np.array([5, 2]))
    assert chosen(roles, 2, 1) == [([3, 4], [7]), ([3], [4])]


@pytest.mark.parametrize("p", [0, 1, 2, 5])
@pytest.mark.parametrize("s", [0, 1, 2, 5])
@pytest.mark.parametrize("cut", range(1, 8))
def test_passes_over_parts_of_a_row_edit_what_one_pass_edits(p: int, s: int, cut: int) -> None:
    lengths = np.array([1, 4, 6, 8])
    mask = np.arange(8) >= 8 - lengths[:, None]  # padding at the left
    prompts = np.array([1, 3, 5, 8])
    whole = edited_tokens(Roles((4, 8), mask=mask, prompt_lengths=prompts), p, s)
    before = Roles((4, cut), mask=mask[:, :cut], prompt_lengths=prompts)
    after = Roles((4, 8 - cut), cached=cut, mask=mask, prompt_lengths=prompts)
    parts = zip(edited_tokens(before, p, s), edited_tokens(after, p, s), strict=True)
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, np.concatenate(two, axis=1))


class Recorder(Module):
    """A block that keeps its output."""

    def __init__(self, block: BlockLike) -> None:
        self.block = block

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        y = self.block(x, context)
        self.seen = y.data
        return y


def edited(
    recipe: Sequence[PeftConfig],
    mask: IntArray | None = None,
    prompt_lengths: IntArray | None = None,
) -> BoolArray:
    """The positions where LoReFT's block differs from the block that it wraps: (B, N + T)."""
    model = small_model(SMALL_MODELS["llama"])
    shaken(get_peft_model(model, recipe))
    wrapped = model.blocks[0]
    assert isinstance(wrapped, LoreftBlock)
    inner = Recorder(wrapped.base_layer)
    wrapped.set_child("base_layer", inner)
    outer = Recorder(wrapped)
    model.set_child("blocks.0", outer)
    with no_grad():
        model(IDS, mask, prompt_lengths=prompt_lengths)  # in place: a view has its own modules
    return np.asarray((outer.seen != inner.seen).any(axis=-1))


def shaken(peft: PeftModel) -> PeftModel:
    """Move the weights from where they start, and return the model in evaluation mode."""
    rng = np.random.default_rng(0)
    for parameter in peft.trainable_parameters():
        moved = parameter.data + rng.normal(0, 0.2, parameter.shape)
        parameter.data = moved.astype(parameter.dtype)
    peft.eval()
    return peft


IDS = np.random.default_rng(1).integers(1, 40, (2, 6))


@pytest.mark.parametrize("before", [[], [PROMPT], [PREFIX]], ids=["alone", "prompt", "prefix"])
def test_only_the_ends_of_each_prompt_are_changed(before: list[PeftConfig]) -> None:
    front = 3 if PROMPT in before else 0
    changed = edited([*before, ENDS], prompt_lengths=np.array([6, 4]))
    assert not changed[:, :front].any()
    expected = [[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]]
    np.testing.assert_array_equal(changed[:, front:], expected)


def test_padding_is_left_alone_on_either_side() -> None:
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    changed = edited([ENDS], mask)
    np.testing.assert_array_equal(changed, [[0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 0]])


# ---------- generation ----------

PROMPTS = [[7], [3, 1, 4, 1, 5], [9, 2, 6], [5, 3]]
FRONTS: list[list[PeftConfig]] = [[], [PROMPT], [PREFIX], [PROMPT, PREFIX]]
NAMES = ["alone", "prompt", "prefix", "both"]


@pytest.fixture(params=FRONTS, ids=NAMES)
def peft(request: pytest.FixtureRequest) -> PeftModel:
    model = small_model(SMALL_MODELS["llama"], np.float64)
    return shaken(get_peft_model(model, [*request.param, ENDS]))


def test_generation_with_the_cache_continues_as_whole_sequences_do(peft: PeftModel) -> None:
    for prompt in PROMPTS:
        ids, length = np.array([prompt]), np.array([len(prompt)])
        for _ in range(6):
            with no_grad():
                logits = peft(ids, prompt_lengths=length).data
            ids = np.concatenate([ids, logits[:, -1:].argmax(axis=-1)], axis=1)
        generated = peft.generate(np.array([prompt]), max_new_tokens=6)
        np.testing.assert_array_equal(generated, ids)


def test_padded_prompts_are_continued_as_they_are_alone(peft: PeftModel) -> None:
    padded = np.array([[0] * (5 - len(p)) + p for p in PROMPTS])
    mask = np.array([[0] * (5 - len(p)) + [1] * len(p) for p in PROMPTS])
    together = peft.generate(padded, max_new_tokens=6, attention_mask=mask)
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = peft.generate(np.array([prompt]), max_new_tokens=6)
        np.testing.assert_array_equal(row[5:], alone[0, len(prompt) :])


def test_rows_with_adapters_of_their_own_are_run_as_they_are_alone(peft: PeftModel) -> None:
    peft.add_adapter("other", peft.recipe, seed=1)
    shaken(peft)
    padded = np.array([p + [0] * (5 - len(p)) for p in PROMPTS])
    mask = np.array([[1] * len(p) + [0] * (5 - len(p)) for p in PROMPTS])
    names = ["default", "other", "other", "default"]
    front = 3 if PROMPT in peft.recipe else 0
    with no_grad():
        together = peft(padded, mask, adapter_names=names).data
        for row, prompt, name in zip(together, PROMPTS, names, strict=True):
            peft.set_adapter(name)
            alone = peft(np.array([prompt])).data[0]
            np.testing.assert_allclose(row[: front + len(prompt)], alone, atol=1e-10)


def test_the_last_token_of_a_prompt_is_edited_in_the_pass_of_its_own() -> None:
    """A generation reads all but the last token first: the edit of that token must not be lost."""
    config = LoreftConfig(low_rank_dimension=3, first_n=0, last_n=1)
    base = small_model(SMALL_MODELS["llama"], np.float64)
    peft = shaken(get_peft_model(base, config))
    ids = np.array([[3, 1, 4, 1, 5]])
    with no_grad():
        expected = peft(ids).data[0, -1].argmax()
    assert peft.generate(ids, max_new_tokens=1)[0, -1] == expected
