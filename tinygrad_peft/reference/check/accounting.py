"""9.10: the parameters that a method trains, counted from sizes."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from tinygrad_peft.reference.check.comparing import Different, Mistake, call, hold
from tinygrad_peft.reference.comparison import analyze_peft_efficiency

__all__ = ["check_efficiency"]

MODELS = [
    {"d_model": 64, "n_layers": 3, "n_heads": 4},
    {"d_model": 4096, "n_layers": 32, "n_heads": 32},
]
METHODS = {
    "lora": {"rank": 8},
    "adapter": {"bottleneck": 16},
    "prefix": {"length": 10},
    "prompt": {"length": 20},
}
KEYS = ("trainable_params", "total_params", "efficiency_ratio", "memory_estimate")


def check_efficiency(solution: ModuleType, rng: np.random.Generator) -> None:  # noqa: ARG001 - no arrays
    """Check analyze_peft_efficiency on two models and the four methods."""
    for model in MODELS:
        for method, config in METHODS.items():
            where = f"analyze_peft_efficiency({model}, {method!r}, {config})"
            found = call(where, solution.analyze_peft_efficiency, dict(model), method, dict(config))
            if not isinstance(found, Mapping) or not set(KEYS) <= set(found):
                has = (
                    ", ".join(map(str, found))
                    if isinstance(found, Mapping)
                    else type(found).__name__
                )
                raise Different(f"{where}: expected a dict with {', '.join(KEYS)}, got {has}")
            _check_one(where, found, model, method, config)


def _check_one(
    where: str,
    found: Mapping[str, object],
    model: Mapping[str, int],
    method: str,
    config: Mapping[str, int],
) -> None:
    expected = analyze_peft_efficiency(model, method, config)
    trained, attention = expected["trainable_params"], 4 * model["n_layers"] * model["d_model"] ** 2
    hold(
        f"{where}['trainable_params']",
        found["trainable_params"],
        np.asarray(float(trained)),
        _counts(method, trained, model["n_layers"]),
    )
    total = _number(where, "total_params", found["total_params"])
    # Attention alone, or with feed-forward layers four times as wide; with the method or without.
    allowed = [attention, attention + trained, 3 * attention, 3 * attention + trained]
    if total not in allowed:
        raise Different(
            f"{where}['total_params']: expected 4 L d² = {attention} for the attentions alone, or "
            f"12 L d² = {3 * attention} with feed-forward layers, got {total:g}"
        )
    ratio = np.asarray(trained / total)
    mistakes = [
        ("it is in percent, where a share is asked for", 100 * ratio),
        ("it is total / trainable", 1 / ratio),
        ("it is the share of what is frozen", 1 - ratio),
    ]
    hold(f"{where}['efficiency_ratio']", found["efficiency_ratio"], ratio, mistakes)
    saved = _number(where, "memory_estimate", found["memory_estimate"])
    if not 0 < saved < 16 * total:
        raise Different(
            f"{where}['memory_estimate']: expected what is saved against training all of it, "
            f"between 0 and the {16 * total:g} bytes that that takes, got {saved:g}"
        )


def _counts(method: str, trained: int, layers: int) -> list[Mistake]:
    """Count a method's parameters wrongly."""
    halves = {
        "lora": "only one of q and v is counted, or only one of A and B",
        "adapter": "only one of the layer's two adapters is counted, or only one matrix of each",
        "prefix": "only the keys or only the values are counted",
    }
    doubles = {"lora": "all four projections are counted, where LoRA is on q and v"}
    wrong = [(text, trained / 2) for name, text in halves.items() if name == method]
    wrong += [(text, trained * 2) for name, text in doubles.items() if name == method]
    if method == "prompt":
        wrong.append(("a prompt stands once, not in every layer", trained * layers))
    else:
        wrong.append(("only one layer is counted", trained / layers))
    return [(text, np.asarray(float(count))) for text, count in wrong]


def _number(where: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise Different(f"{where}[{key!r}]: expected a number, got {type(value).__name__}")
    return float(np.real(value))
