"""A seam without wrapper, with one and with two, after a real recipe."""

from dataclasses import dataclass

from docs.pictures.svg import Picture
from tinygrad_peft import get_peft_model
from tinygrad_peft.nn import Module, Transformer, TransformerConfig
from tinygrad_peft.peft import Rewrite
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig

__all__ = ["Layer", "draw", "layers"]

FIELD, WIDTH = "v_proj", 32


@dataclass(frozen=True)
class Layer:
    """A module in the seam: its class, its own weights as (name, shape), the module inside."""

    kind: str
    own: tuple[tuple[str, tuple[int, ...]], ...]
    field: str | None


def layers() -> list[Layer]:
    """List the modules in the seam after LoRA and (IA)³, the innermost first."""
    sizes = TransformerConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    recipe = [
        LoraConfig(r=4, target_modules=[FIELD]),
        IA3Config(target_modules=[FIELD], feedforward_modules=[]),
    ]
    rewrites = get_peft_model(Transformer(sizes), recipe).record.rewrites
    base = rewrites[0].before
    weights = tuple((name, p.shape) for name, p in base.named_parameters())
    return [Layer(type(base).__name__, weights, None), *(_layer(r) for r in rewrites)]


def draw() -> Picture:
    """Draw the owner's field three times, with the modules in it."""
    stack = layers()
    base, *wrappers = (layer.kind for layer in stack)
    picture = Picture(
        760,
        420,
        "A seam before and after one wrapper and two",
        f"The field {FIELD} of an attention layer holds {base}; after one step {wrappers[0]} with"
        f" {base} inside; after two {wrappers[1]} with {wrappers[0]} inside, and {base} in that.",
    )
    for i, words in enumerate(("the base", "after one step: LoRA", "after two: LoRA, (IA)³")):
        x = 20 + 244 * i
        picture.text(x + 116, 30, f"_{words}_", anchor="middle")
        picture.rect(x, 44, 232, 316, "frame", radius=8)
        picture.text(x + 12, 66, "`attn`", "soft", size=13)
        picture.rect(x + 10, 76, 212, 274, "place", radius=6)
        picture.text(x + 20, 96, f"`{FIELD}`", size=13)
        _nested(picture, x + 20, 106, 192, stack[: i + 1])
    picture.paragraph(
        20,
        386,
        (
            "Every wrapper keeps the module that it stands around. Taking the step off puts that",
            "module back: nothing is subtracted, so the base is what it was, to the bit.",
        ),
        "soft",
    )
    return picture


def _nested(picture: Picture, x: float, y: float, width: float, stack: list[Layer]) -> None:
    """Draw the outermost module, and the others within it."""
    *inner, layer = stack
    kind = "trained" if inner else "frozen"
    picture.rect(x, y, width, _height(stack), kind, radius=5)
    picture.text(x + 10, y + 20, f"`{layer.kind}`", size=13)
    for i, (name, shape) in enumerate(layer.own):
        words = f"`{name}` {' × '.join(map(str, shape))}"
        picture.text(x + 10, y + 40 + 18 * i, words, size=13)
    if inner:
        below = y + 40 + 18 * len(layer.own)
        picture.text(x + 10, below, f"`{layer.field}`:", size=13)
        _nested(picture, x + 8, below + 7, width - 16, inner)


def _height(stack: list[Layer]) -> float:
    *inner, layer = stack
    own = 32 + 18 * len(layer.own)
    return own + 23 + _height(inner) if inner else own


def _layer(rewrite: Rewrite) -> Layer:
    own = tuple((name, p.shape) for name, p in rewrite.added.items())
    return Layer(type(rewrite.after).__name__, own, _field(rewrite.after, rewrite.before))


def _field(after: Module, before: Module) -> str:
    return next(name for name, value in vars(after).items() if value is before)
