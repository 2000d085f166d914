"""The memory to train a 7B model: full, with LoRA, with QLoRA."""

from docs.pictures.svg import Picture
from tinygrad_peft import Host
from tinygrad_peft.models import named_shape
from tinygrad_peft.peft import Memory, count_recipe, estimate_full_memory, estimate_memory
from tinygrad_peft_lora import LoraConfig

__all__ = ["SHAPE", "draw", "estimates"]

SHAPE = "llama-7b"
PIXELS = 5.0  # for each GB
LEFT, TOP, ROW, BAR = 118, 62, 74, 34


def estimates() -> dict[str, tuple[str, Memory]]:
    """Compute by method how the frozen weights are stored and what training holds beside them."""
    shape = named_shape(SHAPE)
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    trained, total = count_recipe(shape, lora, Host.installed())
    low_rank = estimate_memory(shape, trained, total)
    return {
        "full": ("float32", estimate_full_memory(total - trained)["float32"]),
        "LoRA": ("float16", low_rank["float16"]),
        "QLoRA": ("nf4_float16", low_rank["nf4_float16"]),
    }


def draw() -> Picture:
    """Draw a bar per method, in parts: weights, gradients, AdamW's moments."""
    rows = estimates()
    sizes = {name: memory.training for name, (_, memory) in rows.items()}
    picture = Picture(
        760,
        284,
        "Memory to train a 7B model",
        "Weights, gradients and AdamW's moments, without activations: "
        + ", ".join(f"{name} {_gb(size)}" for name, size in sizes.items())
        + ".",
    )
    _legend(picture)
    for i, (name, (stored, memory)) in enumerate(rows.items()):
        _row(picture, TOP + ROW * i, name, stored, memory)
    return picture


def _legend(picture: Picture) -> None:
    x = LEFT
    for kind, words, width in (
        ("frozen", "weights", 100),
        ("gradient", "gradients", 112),
        ("trained", "AdamW’s two moments", 200),
    ):
        picture.rect(x, 20, 14, 14, kind)
        picture.text(x + 22, 32, words)
        x += width


def _row(picture: Picture, y: float, name: str, stored: str, memory: Memory) -> None:
    parts = (
        ("packed" if stored.startswith("nf4") else "frozen", memory.weights),
        ("gradient", memory.gradients),
        ("trained", memory.optimizer),
    )
    picture.text(LEFT - 14, y + BAR / 2 + 5, f"_{name}_", anchor="end", size=16)
    x = float(LEFT)
    for kind, size in parts:
        width = PIXELS * size / 1e9
        if width < 1:
            continue  # less than a pixel: the words below say how little
        picture.rect(x, y, width, BAR, kind)
        if width > 70:
            picture.text(x + width / 2, y + BAR / 2 + 5, _gb(size), anchor="middle")
        x += width
    picture.text(x + 10, y + BAR / 2 + 6, f"_{_gb(memory.training)}_", size=16)
    picture.text(LEFT, y + BAR + 19, _note(stored, memory), "soft", size=13)


def _note(stored: str, memory: Memory) -> str:
    names = {
        "float32": "weights in float32, all of them trained",
        "float16": "weights in float16",
        "nf4_float16": "linear layers in NF4, the rest in float16",
    }
    if stored == "float32":
        return names[stored]
    return f"{names[stored]}; gradients and moments {_mb(memory.gradients + memory.optimizer)}"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
