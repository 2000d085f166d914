"""The roles that positions have, in whole texts and in the steps of a generation."""

from collections.abc import Sequence

import numpy as np
import pytest

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import ShapeError, TokenError
from tinygrad_peft.nn import (
    Block,
    BlockLike,
    Context,
    Init,
    Module,
    NoPrompt,
    Roles,
    Transformer,
    TransformerConfig,
    VirtualTokens,
)
from tinygrad_peft.tensor import Tensor, no_grad

CONFIG = TransformerConfig(
    vocab_size=23,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=32,
)
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
LEFT = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
RIGHT = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def drawn(roles: Roles) -> list[str]:
    """Each row with a letter for each position's role; every position has exactly one."""
    kinds: dict[str, BoolArray] = {
        "v": roles.virtual,
        ".": roles.padding,
        "p": roles.prompt,
        "c": roles.continuation,
    }
    total = sum(kind.astype(int) for kind in kinds.values())
    np.testing.assert_array_equal(total, np.ones(roles.shape, int))
    letters = np.full(roles.shape, " ")
    for letter, kind in kinds.items():
        letters[kind] = letter
    return ["".join(row) for row in letters]


def marked(chosen: BoolArray) -> list[str]:
    return ["".join("x" if here else "-" for here in row) for row in chosen]


class Watching(Module):
    """A block that keeps the context of each pass."""

    def __init__(self, base: BlockLike) -> None:
        self.base_layer = base
        self.seen: list[Context] = []

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        assert context.roles.shape == x.shape[:2]
        self.seen.append(context)
        return self.base_layer(x, context)


class Virtual(Module):
    """A prompt of at most three virtual tokens per row."""

    def __init__(self, present: BoolArray | None = None) -> None:
        self.present = present

    def __call__(self) -> VirtualTokens:
        shape = (3, 8) if self.present is None else (len(self.present), 3, 8)
        return VirtualTokens(Tensor(np.ones(shape, np.float32)), self.present)


def watched(
    config: TransformerConfig = CONFIG, prompt: Module | None = None
) -> tuple[Transformer, list[Context]]:
    model = Transformer(config, Init(0))
    model.eval()
    watching = Watching(model.blocks[1])
    model.set_child("blocks.1", watching)
    model.set_child("prompt", prompt or NoPrompt())
    return model, watching.seen


# ---------- a whole text ----------


def test_all_of_a_text_is_its_prompt_by_default() -> None:
    model, seen = watched()
    model(IDS)
    assert drawn(seen[0].roles) == ["ppppp", "ppppp"]
    assert marked(seen[0].roles.first()) == ["x----", "x----"]
    assert marked(seen[0].roles.last(2)) == ["---xx", "---xx"]
    assert seen[0].roles.cached == 0
    assert seen[0].causal


def test_the_context_of_an_encoder_is_not_causal() -> None:
    model, seen = watched(
        TransformerConfig(
            **{**vars(CONFIG), "causal": False, "head": "none", "tie_word_embeddings": False}
        )
    )
    model(IDS)
    assert not seen[0].causal


@pytest.mark.parametrize(
    ("mask", "roles", "first", "last"),
    [
        (LEFT, ["ppppp", "..ppp"], ["xx---", "--xx-"], ["---xx", "---xx"]),
        (RIGHT, ["ppppp", "ppp.."], ["xx---", "xx---"], ["---xx", "-xx--"]),
    ],
    ids=["left", "right"],
)
def test_ends_of_a_prompt_are_found_on_either_side_of_padding(
    mask: IntArray, roles: list[str], first: list[str], last: list[str]
) -> None:
    model, seen = watched()
    model(IDS, mask)
    assert drawn(seen[0].roles) == roles
    assert marked(seen[0].roles.first(2)) == first
    assert marked(seen[0].roles.last(2)) == last


def test_given_lengths_part_the_prompt_from_its_continuation() -> None:
    model, seen = watched()
    model(IDS, LEFT, prompt_lengths=np.array([2, 1]))
    assert drawn(seen[0].roles) == ["ppccc", "..pcc"]
    assert marked(seen[0].roles.last()) == ["-x---", "--x--"]


def test_more_ends_than_tokens_cover_the_whole_prompt() -> None:
    model, seen = watched()
    model(IDS, LEFT)
    roles = seen[0].roles
    np.testing.assert_array_equal(roles.first(9), roles.prompt)
    np.testing.assert_array_equal(roles.last(9), roles.prompt)


def test_the_prompt_of_a_loss_ends_at_the_first_label() -> None:
    model, seen = watched()
    labels = np.array([[-100, -100, -100, 1, 5], [-100, -100, -100, -100, 3]])
    model.loss(IDS, labels, LEFT)
    assert drawn(seen[0].roles) == ["pppcc", "..ppc"]
    model.loss(IDS, np.array([[-100] * 5, [-100, 2, 6, 5, 3]]))
    assert drawn(seen[1].roles) == ["ppppp", "pcccc"]
    model.loss(IDS, IDS, LEFT)
    assert drawn(seen[2].roles) == ["pcccc", "..pcc"]


def test_lengths_of_another_shape_are_refused() -> None:
    model, _ = watched()
    with pytest.raises(ShapeError, match=r"prompt_lengths \(3,\) for input ids \(2, 5\)"):
        model(IDS, prompt_lengths=np.array([1, 2, 3]))
    for wrong in (np.array([1.5, 2.0]), [1, 2], 3):
        with pytest.raises(TokenError, match="prompt_lengths: expected an array of integers"):
            model(IDS, prompt_lengths=wrong)  # type: ignore[arg-type]


# ---------- virtual tokens ----------


def test_virtual_tokens_come_before_the_prompt() -> None:
    model, seen = watched(prompt=Virtual())
    model(IDS, LEFT)
    assert drawn(seen[0].roles) == ["vvvppppp", "vvv..ppp"]
    assert marked(seen[0].roles.first()) == ["---x----", "-----x--"]


def test_filler_before_fewer_virtual_tokens_is_padding() -> None:
    present = np.array([[True, True, True], [False, False, True]])
    model, seen = watched(prompt=Virtual(present))
    model(IDS)
    assert drawn(seen[0].roles) == ["vvvppppp", "..vppppp"]


# ---------- generation ----------


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("mask", [None, LEFT], ids=["whole", "padded"])
def test_generation_has_the_roles_of_the_whole_text(virtual: int, mask: IntArray | None) -> None:
    model, seen = watched(prompt=Virtual() if virtual else None)
    ids = model.generate(IDS, max_new_tokens=3, attention_mask=mask)
    passes = [context.roles for context in seen]
    # The last new token is never read.
    assert [roles.shape[1] for roles in passes] == [virtual + 4, 1, 1, 1]
    assert [roles.cached for roles in passes] == [0, 4, 5, 6]

    whole_mask = None if mask is None else np.pad(mask, ((0, 0), (0, 2)), constant_values=1)
    lengths = np.full(2, 5) if mask is None else mask.sum(axis=1)
    with no_grad():
        model(ids[:, :-1], whole_mask, prompt_lengths=lengths)
    whole = seen[-1].roles

    def joined(parts: Sequence[BoolArray]) -> list[str]:
        return marked(np.concatenate(parts, axis=1))

    assert ["".join(row) for row in zip(*map(drawn, passes), strict=True)] == drawn(whole)
    for count in (1, 2, 4):
        assert joined([roles.first(count) for roles in passes]) == marked(whole.first(count))
        assert joined([roles.last(count) for roles in passes]) == marked(whole.last(count))
    assert marked(passes[1].last()) == ["x", "x"], "the prompt's last token comes by itself"


def test_a_prompt_of_one_token_is_first_and_last_of_the_first_step() -> None:
    model, seen = watched()
    model.generate(IDS[:, :1], max_new_tokens=2)
    first, second = (context.roles for context in seen)
    assert marked(first.first()) == marked(first.last()) == ["x", "x"]
    assert drawn(second) == ["c", "c"]


# ---------- rows, and every part of a block ----------


def test_selected_rows_keep_their_roles() -> None:
    virtual = np.array([[True, True], [False, True]])
    roles = Roles((2, 7), virtual, mask=LEFT != 0, prompt_lengths=np.array([3, 2]))
    rows = np.array([1, 0, 1])
    assert drawn(roles.of(rows)) == [drawn(roles)[row] for row in rows]
    assert drawn(roles.of(np.array([1]))) == [".v..ppc"]


def test_every_part_of_a_block_gets_the_same_context() -> None:
    model = Transformer(CONFIG, Init(0))
    block, seen = model.blocks[0], []

    class Kept(Module):
        def __init__(self, base: Module) -> None:
            self.base = base

        def __call__(self, *given: object) -> Tensor:
            seen.append(given[-1])
            assert callable(self.base)
            made = self.base(*given)
            assert isinstance(made, Tensor)
            return made

    class KeptAttention(Kept):
        num_heads, num_kv_heads, head_dim = 2, 2, 4

    assert isinstance(block, Block)
    block.set_child("attn", KeptAttention(block.get_child("attn")))
    for name in ("attn_residual", "mlp", "mlp_residual"):
        block.set_child(name, Kept(block.get_child(name)))
    model(IDS)
    assert len(seen) == 4
    assert isinstance(seen[0], Context)
    assert all(context is seen[0] for context in seen)


def test_a_prompt_has_at_least_one_token() -> None:
    model = Transformer(CONFIG)
    with pytest.raises(TokenError, match="prompt_lengths: expected at least 1, got 0"):
        model(np.array([[1, 2], [3, 4]]), prompt_lengths=np.array([2, 0]))
