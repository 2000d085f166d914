"""One transformer block, and the place of every method in it."""

from collections.abc import Mapping

from docs.pictures.svg import Picture

__all__ = ["PLACES", "draw"]

# The seams that each method takes in a block and in front of it, by a recipe's method names.
PLACES: Mapping[str, tuple[str, ...]] = {
    "lora": ("q_proj", "v_proj"),
    "adalora": ("q_proj", "v_proj"),
    "vera": ("q_proj", "v_proj"),
    "ia3": ("k_proj", "v_proj", "down_proj"),
    "ln_tuning": ("attn_norm", "mlp_norm"),
    "adapter houlsby": ("attn", "mlp"),
    "adapter pfeiffer": ("mlp",),
    "adapter parallel": ("mlp",),
    "prefix_tuning": ("prefix",),
    "prompt_tuning": ("prompt",),
    "p_tuning": ("prompt",),
    "quantize": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
STREAM, MIDDLE, MARGIN = 62, 274, 530
LINEAR = 62


def draw() -> Picture:
    """Draw a block of Llama's kind from top to bottom, and the methods' names at its side."""
    picture = Picture(
        760,
        880,
        "Where each method stands in a transformer block",
        "Prompt tuning and P-tuning put virtual tokens in front of the text; LN tuning trains the"
        " norms; LoRA, AdaLoRA and VeRA stand beside linear layers, as a rule the projections of"
        " queries and values; (IA)³ multiplies keys, values and the feed-forward network's hidden"
        " layer; prefix tuning puts keys and values in front of the layer's own; QLoRA stores every"
        " linear layer at 4 bits; adapters come after attention and after the feed-forward network"
        " (Houlsby), after the latter alone (Pfeiffer), or beside it (parallel).",
    )
    picture.rect(20, 98, 492, 736, "frame", radius=10)
    picture.text(STREAM + 18, 824, "one block; the next has the same", "soft", size=13)
    _tokens(picture)
    _attention(picture)
    _feed_forward(picture)
    _stream(picture)
    _legend(picture)
    return picture


def _tokens(picture: Picture) -> None:
    for i in range(9):
        kind = "trained" if i < 3 else "frozen"
        picture.rect(150 + 28 * i, 30, 24, 24, kind, radius=3)
    picture.text(190, 22, "*P*", "of-trained", anchor="middle")
    picture.text(316, 22, "embedded tokens", "soft", anchor="middle", size=13)
    picture.line([(MIDDLE, 54), (MIDDLE, 76), (STREAM, 76)], "forward")
    _label(picture, 42, (406, 42), "Prompt tuning, P-tuning", "virtual tokens in front")


def _stream(picture: Picture) -> None:
    """Draw the hidden states' own way, from sum to sum."""
    picture.arrow([(STREAM, 76), (STREAM, 492)])
    picture.arrow([(STREAM, 512), (STREAM, 776)])
    picture.arrow([(STREAM, 796), (STREAM, 860)])
    for y in (502, 786):
        picture.plus(STREAM, y)
    picture.text(STREAM - 16, 128, "*x*", anchor="middle", size=17)


def _attention(picture: Picture) -> None:
    picture.arrow([(STREAM, 132), (MIDDLE - 60, 132)])
    _norm(picture, 118)
    _label(picture, 132, (MIDDLE + 60, 132), "LN tuning", "every norm’s *γ* and *β*")
    picture.arrow([(MIDDLE, 146), (MIDDLE, 180)])
    for x in (124, 424):
        picture.arrow([(MIDDLE, 162), (x, 162), (x, 180)])
    for x, name in ((124, "q"), (MIDDLE, "k"), (424, "v")):
        _linear(picture, x, 180, name)
        picture.arrow([(x, 210), (x, 318)])
    for x in (124, 424):
        _low_rank(picture, x + LINEAR / 2 + 6, 180)
    _label(
        picture,
        195,
        (482, 195),
        "LoRA, AdaLoRA, VeRA",
        "beside linear layers,",
        "as a rule *q* and *v*",
    )
    for x, name in ((MIDDLE, "k"), (424, "v")):
        _factors(picture, x, 236, f"*l*~{name}")
        for i in range(7):
            kind = "trained" if i < 2 else "frozen"
            picture.rect(x - 61.5 + 18 * i, 266, 15, 15, kind, radius=2)
        picture.text(x - 45, 299, f"*P*~{name}", "of-trained", anchor="middle", size=13)
    _label(picture, 259, (436, 236), "(IA)³", "factors *l* on *k* and *v*, and", "before down")
    _label(picture, 319, (490, 274), "Prefix tuning", "keys and values in front")
    picture.rect(84, 318, 380, 30, "plain", radius=4)
    picture.text(MIDDLE, 338, "softmax(*q k*ᵀ / √*d*) *v*", anchor="middle")
    picture.arrow([(MIDDLE, 348), (MIDDLE, 372)])
    _linear(picture, MIDDLE, 372, "o")
    _label(
        picture,
        387,
        (MIDDLE + LINEAR / 2 + 2, 387),
        "QLoRA",
        "all linear layers at 4 bits,",
        "LoRA beside them",
        kind="packed",
    )
    picture.arrow([(MIDDLE, 402), (MIDDLE, 428)])
    _adapter(picture, MIDDLE, 428)
    _label(picture, 450, (MIDDLE + 34, 450), "Adapter, Houlsby", "here, and below")
    picture.arrow([(MIDDLE, 472), (MIDDLE, 502), (STREAM + 10, 502)])


def _feed_forward(picture: Picture) -> None:
    picture.arrow([(STREAM, 542), (MIDDLE - 60, 542)])
    _norm(picture, 528)
    picture.line([(MIDDLE, 556), (MIDDLE, 570)], "forward")
    for x, name in ((MIDDLE - 46, "gate"), (MIDDLE + 46, "up")):
        picture.arrow([(x, 570), (x, 586)])
        _linear(picture, x, 586, name)
        picture.line([(x, 616), (x, 630), (MIDDLE, 630)], "forward")
    picture.arrow([(MIDDLE, 630), (MIDDLE, 672)])
    _factors(picture, MIDDLE, 648, "*l*~ff")
    _linear(picture, MIDDLE, 672, "down")
    picture.arrow([(MIDDLE - 46, 570), (424, 570), (424, 622)])
    _adapter(picture, 424, 622)
    picture.arrow([(424, 666), (424, 714), (MIDDLE + 10, 714)])
    _label(picture, 644, (458, 644), "Adapter, parallel", "beside the feed-forward", "network")
    picture.line([(MIDDLE, 702), (MIDDLE, 704)], "forward")
    picture.plus(MIDDLE, 714)
    picture.arrow([(MIDDLE, 724), (MIDDLE, 734)])
    _adapter(picture, MIDDLE, 734)
    _label(picture, 756, (MIDDLE + 34, 756), "Adapter, Pfeiffer", "here alone;", "Houlsby’s second")
    picture.arrow([(MIDDLE, 778), (MIDDLE, 786), (STREAM + 10, 786)])


def _legend(picture: Picture) -> None:
    x = 150
    for kind, words, width in (
        ("frozen", "frozen", 86),
        ("trained", "trained", 90),
        ("packed", "4 bits", 70),
    ):
        picture.rect(x, 850, 14, 14, kind, radius=2)
        picture.text(x + 22, 862, words)
        x += width


def _norm(picture: Picture, y: float) -> None:
    picture.rect(MIDDLE - 60, y, 120, 28, "trained", radius=4)
    picture.text(MIDDLE, y + 19, "norm", anchor="middle")


def _linear(picture: Picture, x: float, y: float, name: str) -> None:
    picture.rect(x - LINEAR / 2, y, LINEAR, 30, "frozen", radius=3)
    picture.rect(x - LINEAR / 2, y + 24, LINEAR, 6, "packed")
    picture.text(x, y + 18, f"*{name}*" if len(name) == 1 else name, anchor="middle")


def _low_rank(picture: Picture, x: float, y: float) -> None:
    """Draw A and B, beside a linear layer."""
    picture.polygon([(x, y), (x + 22, y), (x + 16, y + 13), (x + 6, y + 13)], "trained")
    picture.polygon([(x + 6, y + 17), (x + 16, y + 17), (x + 22, y + 30), (x, y + 30)], "trained")


def _factors(picture: Picture, x: float, y: float, name: str) -> None:
    picture.circle(x, y, 9, "trained")
    picture.circle(x, y, 2, "head-forward")
    picture.text(x - 14, y + 5, name, "of-trained", anchor="end", size=13)


def _adapter(picture: Picture, x: float, y: float) -> None:
    """Draw a network with a narrow middle."""
    narrow, wide = 12, 32
    top, bottom = (y + 18, y + 26), y + 44
    picture.polygon(
        [(x - wide, y), (x + wide, y), (x + narrow, top[0]), (x - narrow, top[0])], "trained"
    )
    picture.polygon(
        [(x - narrow, top[1]), (x + narrow, top[1]), (x + wide, bottom), (x - wide, bottom)],
        "trained",
    )
    picture.line([(x, top[0]), (x, top[1])], "forward")


def _label(
    picture: Picture,
    y: float,
    place: tuple[float, float],
    name: str,
    *words: str,
    kind: str = "trained",
) -> None:
    """Write a method's name in the margin, and lead from there to its place."""
    picture.line([place, (MARGIN - 8, y)], "leader")
    picture.text(MARGIN, y + 5, f"_{name}_", f"of-{kind}", size=15)
    for i, line in enumerate(words, 1):
        picture.text(MARGIN, y + 5 + 17 * i, line, "soft", size=13)
