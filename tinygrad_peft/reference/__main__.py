"""`python -m tinygrad_peft.reference`: LoRA, adapters and prompts at work, and what each trains."""

import sys

import numpy as np

from tinygrad_peft.reference import check
from tinygrad_peft.reference._basics import Array
from tinygrad_peft.reference.adapter import Adapter
from tinygrad_peft.reference.comparison import compare_peft_methods
from tinygrad_peft.reference.lora import LoRALayer
from tinygrad_peft.reference.prompt import PromptTuning

WIDTH = 256


def main() -> None:
    """Print the demonstration."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 16, WIDTH))
    sections = [show_lora(x, rng), show_adapter(x), show_prompt(x), show_comparison()]
    print("\n\n".join("\n  ".join(lines) for lines in sections))


def show_lora(x: Array, rng: np.random.Generator) -> list[str]:
    """Forward, backward and merge on one weight."""
    weight = 0.02 * rng.standard_normal((WIDTH, WIDTH))
    lora = LoRALayer(WIDTH, WIDTH, rank=8, alpha=16.0)
    y = lora.forward(x, weight)
    grad_x = lora.backward(rng.standard_normal(y.shape))
    lora.B -= 0.01 * lora.B_grad  # one step, so that there is something to merge
    apart = np.abs(lora.forward(x, weight) - x @ lora.merge(weight).T).max()
    count = lora.num_parameters()
    return [
        f"LoRA on a weight of {WIDTH} x {WIDTH}, r = 8, alpha = 16",
        f"A {lora.A.shape}, B {lora.B.shape}",
        f"{count:,} parameters of {weight.size:,}: {percent(count / weight.size)}",
        f"input {x.shape}, output {y.shape}",
        f"gradients: A {lora.A_grad.shape}, B {lora.B_grad.shape}, input {grad_x.shape}",
        f"after a step, merged and unmerged outputs are {apart:.0e} apart",
    ]


def show_adapter(x: Array) -> list[str]:
    """A bottleneck adapter on the same input."""
    adapter = Adapter(WIDTH, bottleneck_dim=64)
    moved = np.abs(adapter.forward(x) - x).max()
    return [
        f"Adapter on a width of {WIDTH}",
        f"bottleneck {adapter.bottleneck_dim}, {adapter.num_parameters():,} parameters",
        f"it starts near the identity: no output is more than {moved:.2f} from its input",
    ]


def show_prompt(x: Array) -> list[str]:
    """A soft prompt in front of the same input."""
    prompt = PromptTuning(WIDTH, prompt_length=20)
    longer = prompt.forward(x)
    return [
        f"Prompt tuning on a width of {WIDTH}",
        f"{x.shape[1]} -> {longer.shape[1]} tokens, {prompt.num_parameters():,} parameters",
    ]


def show_comparison() -> list[str]:
    """What each method trains at 7B scale."""
    counts = compare_peft_methods()
    rows = [f"{n:<10}{c['params']:>15,}{percent(c['ratio']):>12}" for n, c in counts.items()]
    return ["Trained parameters at 7B scale: width 4096, 32 layers, 32 heads", *rows]


def percent(ratio: float) -> str:
    """A share with four decimals, or fewer where they are zero."""
    return f"{round(100 * ratio, 4):g} %"


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check.run(sys.argv[2:])
    main()
