"""`python -m tinygrad_peft.reference`: the course's demonstration, and then some more of it.

LoRA, an adapter and a soft prompt at work on a width of 256, and the counts at 7B scale. The first
lines are those of the course; every figure in them is read off the objects.
"""

import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from tinygrad_peft.reference import check
from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.adapter import Adapter
from tinygrad_peft.reference.comparison import compare_peft_methods
from tinygrad_peft.reference.lora import LoRALayer
from tinygrad_peft.reference.prompt import PromptTuning

WIDTH = 256


class Demonstration:
    """The three methods on one weight and one batch, drawn from `rng`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weight = 0.02 * rng.standard_normal((WIDTH, WIDTH))
        self.x = rng.standard_normal((2, 16, WIDTH))
        self.lora = LoRALayer(WIDTH, WIDTH, rank=8, alpha=16.0, rng=rng)
        self.adapter = Adapter(WIDTH, bottleneck_dim=64, rng=rng)
        self.prompt = PromptTuning(WIDTH, prompt_length=20, rng=rng)
        self.y = self.lora.forward(self.x, self.weight)
        self.grad_x = self.lora.backward(rng.standard_normal(self.y.shape))

    def lines(self) -> Iterator[str]:
        """Yield the course's lines, and the further ones after them."""
        yield from banner("Stage 9: Fine-tuning & Parameter-Efficient Methods")
        yield from section("1. LoRA (Low-Rank Adaptation)", self.show_lora())
        yield from section("2. Adapter Layers", self.show_adapter())
        yield from section("3. Prompt Tuning", self.show_prompt())
        yield from section("4. PEFT Method Comparison (7B model scale)", show_comparison())
        yield from section("Beyond the course", self.show_more())

    def show_lora(self) -> Iterator[str]:
        """Yield shapes and counts of LoRA on one weight."""
        lora = self.lora
        yield f"Original weight shape: {self.weight.shape}"
        yield f"LoRA A shape: {lora.A.shape}"
        yield f"LoRA B shape: {lora.B.shape}"
        yield f"LoRA parameters: {lora.num_parameters():,}"
        yield f"Full parameters: {self.weight.size:,}"
        yield f"Compression: {lora.compression_ratio():.2%}"
        yield f"Input shape: {self.x.shape}"
        yield f"Output shape: {self.y.shape}"
        yield f"Gradients computed: A={lora.A_grad.shape}, B={lora.B_grad.shape}"

    def show_adapter(self) -> Iterator[str]:
        """Yield the size of a bottleneck adapter."""
        yield f"Adapter parameters: {self.adapter.num_parameters():,}"
        yield f"Bottleneck dimension: {self.adapter.bottleneck_dim}"

    def show_prompt(self) -> Iterator[str]:
        """Yield the lengths of the batch before and after a soft prompt."""
        yield f"Original sequence length: {self.x.shape[1]}"
        yield f"With soft prompt: {self.prompt.forward(self.x).shape[1]}"
        yield f"Prompt parameters: {self.prompt.num_parameters():,}"

    def show_more(self) -> Iterator[str]:
        """Yield what the course's lines leave out; the LoRA layer takes one step of training."""
        yield f"Gradient of the input: {self.grad_x.shape}"
        self.lora.B = self.lora.B - 0.01 * self.lora.B_grad
        merged = self.x @ self.lora.merge(self.weight).T
        apart = distance(self.lora.forward(self.x, self.weight), merged)
        yield f"After a step, merged and unmerged outputs are {apart:.0e} apart"
        moved = distance(self.adapter.forward(self.x), self.x)
        yield f"The adapter starts near the identity: no output moves by more than {moved:.2f}"


def show_comparison() -> Iterator[str]:
    """Yield a table of the parameters that each method trains at 7B scale."""
    yield f"{'Method':<20} {'Parameters':<15} {'Ratio':<9} Description"
    yield "-" * 70
    for name, count in compare_peft_methods().items():
        yield f"{name:<20} {count['params']:>13,}  {count['ratio']:>9.4%}  {count['description']}"


def banner(title: str) -> Iterator[str]:
    """Yield a title between two lines of 60 signs."""
    yield from ("=" * 60, title, "=" * 60)


def section(title: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield an empty line, a title with a line of 40 signs under it, and the section's lines."""
    yield from ("", title, "-" * 40)
    yield from lines


def distance(a: Array, b: Array) -> float:
    """Return max |a - b|."""
    return float(np.abs(a - b).max())


def main() -> None:
    """Print the demonstration."""
    for line in Demonstration(np.random.default_rng(0)).lines():
        print(line)


def run(arguments: Sequence[str]) -> None:
    """Run the demonstration or `check`. End as other tools do where `head` closes the output."""
    try:
        match arguments:
            case ["check", *given]:
                check.run(given)
            case []:
                main()
                sys.stdout.flush()
            case unknown:
                expected = "expected no argument or: check FILE [EXERCISE...]"
                sys.exit(f"{expected}, got {' '.join(unknown)}")
    except BrokenPipeError:
        os._exit(141)  # 128 + SIGPIPE; at once, as another flush would fail again


if __name__ == "__main__":
    run(sys.argv[1:])
