"""The figures in the pictures, beside other ways to find them."""

import math
import re

import numpy as np
import pytest

from docs.pictures import FOLDER, block, levels, low_rank, memory, seam
from docs.pictures.svg import Picture
from docs.pictures.update import DIRECTIONS, WIDTH, learn, shares
from tinygrad_peft import Host, get_peft_model
from tinygrad_peft.nn import Transformer, TransformerConfig
from tinygrad_peft.peft import methods_of, parse_method

DOCS = FOLDER.parent
PLUGINS = DOCS.parent / "plugins"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def words_of(picture: Picture) -> str:
    """All that is written in a picture, without its marks."""
    return re.sub(r"<[^>]+>", "", picture.svg().partition("</style>")[2])


def test_the_learnt_update_is_the_one_on_the_page_on_concepts() -> None:
    assert f"'{learn().share:.0%} of the change lies in 4 of 32 directions'" in page("concepts.md")


def test_the_error_of_each_rank_is_what_the_cut_singular_values_say() -> None:
    learnt = learn()
    squares = learnt.strengths**2
    left = [math.sqrt(squares[rank:].sum() / squares.sum()) for rank in range(WIDTH + 1)]
    np.testing.assert_allclose(shares(learnt)[0], left, atol=1e-12)


def test_no_other_matrix_of_that_rank_is_nearer(rng: np.random.Generator) -> None:
    learnt = learn()
    cut = np.linalg.norm(learnt.cut(DIRECTIONS) - learnt.found)
    for _ in range(20):
        basis = np.linalg.qr(rng.standard_normal((WIDTH, DIRECTIONS)))[0]
        assert np.linalg.norm(basis @ (basis.T @ learnt.found) - learnt.found) > cut


def test_the_task_is_met_best_at_its_own_rank() -> None:
    task = shares(learn())[1]
    assert min(range(WIDTH + 1), key=task.__getitem__) == DIRECTIONS


def test_full_fine_tuning_has_ended_where_least_squares_does() -> None:
    again = learn.__wrapped__()
    np.testing.assert_array_equal(again.found, learn().found)
    assert np.linalg.matrix_rank(again.wanted) == DIRECTIONS


def test_low_rank_counts_are_the_products_of_their_sides() -> None:
    sizes = low_rank.sizes()
    assert sizes.frozen == 256 * 256
    assert sizes.trained == 256 * 8 + 8 * 256
    assert f"{100 * sizes.trained / sizes.frozen:.2f} %" in words_of(low_rank.draw())


def test_every_way_has_sixteen_levels_with_zero_among_them() -> None:
    for way in levels.compute():
        assert len(np.unique(way.at)) == 16
        assert np.abs(way.at).min() == 0


def test_affine_levels_are_even_and_those_of_nf4_are_dense_in_the_middle() -> None:
    one, blocks, nf4 = (np.diff(way.at) for way in levels.compute())
    assert np.ptp(one) < 1e-6
    assert np.ptp(blocks) < 1e-6
    assert nf4.argmin() in (7, 8)
    assert nf4[0] > 3 * nf4.min()


def test_blocks_make_the_difference_and_the_page_on_qlora_has_the_same_error() -> None:
    one, blocks, nf4 = (way.error for way in levels.compute())
    assert one > 1.9 * blocks
    assert abs(blocks - nf4) < 0.002
    assert f"4.500 bits a weight, {100 * nf4:.1f} % off" in page("methods/qlora.md")


def test_the_memory_of_full_lora_and_qlora_is_that_on_the_other_pages() -> None:
    words = words_of(memory.draw())
    sizes = {name: estimate.training for name, (_, estimate) in memory.estimates().items()}
    for size in sizes.values():
        assert f"{size / 1e9:.1f} GB" in words
        assert f"{size / 1e9:.1f} GB'" in page("concepts.md")
    for name in ("LoRA", "QLoRA"):
        assert f"{sizes[name] / 1e6:,.1f} MB" in page("cli.md")


def test_each_wrapper_in_a_seam_holds_what_stood_there_before() -> None:
    base, lora, ia3 = seam.layers()
    assert [base.kind, lora.kind, ia3.kind] == ["Linear", "LoraLinear", "IA3Linear"]
    assert [lora.field, ia3.field] == ["base_layer", "base_layer"]
    assert lora.own == (("lora_A.weight", (4, 32)), ("lora_B.weight", (32, 4)))
    assert ia3.own == (("ia3_l", (32, 1)),)


LLAMA = TransformerConfig(
    vocab_size=16,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
    model_type="llama",
    norm="rms_norm",
    positions="rotary",
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
)


@pytest.mark.parametrize("method", block.PLACES)
def test_a_method_takes_the_places_that_the_block_shows(method: str) -> None:
    name, _, placement = method.partition(" ")
    options = {
        "adapter": f":placement={placement}",
        "prefix_tuning": ":num_virtual_tokens=2",
        "prompt_tuning": ":num_virtual_tokens=2",
        "p_tuning": ":num_virtual_tokens=2",
        "vera": ":r=4",
    }
    config = parse_method(name + options.get(name, ""), Host.installed())
    rewrites = get_peft_model(Transformer(LLAMA), config).record.rewrites
    # the last norm stands behind all blocks
    taken = [r.seam.name for r in rewrites if r.seam.path != "model.norm"]
    assert sorted(taken) == sorted(block.PLACES[method])


def test_every_installed_method_of_this_project_is_in_the_block() -> None:
    known = {method.partition(" ")[0] for method in block.PLACES} | {"qlora"}
    ours = {
        name
        for name, config in methods_of(Host.installed()).items()
        if (PLUGINS / config.__module__.partition(".")[0]).is_dir()
    }
    assert ours == known
    words = words_of(block.draw())
    names = ("LoRA", "AdaLoRA", "VeRA", "(IA)³", "LN tuning", "Houlsby", "Pfeiffer", "parallel")
    others = ("Prefix tuning", "Prompt tuning", "P-tuning", "QLoRA")
    assert [name for name in (*names, *others) if name not in words] == []
