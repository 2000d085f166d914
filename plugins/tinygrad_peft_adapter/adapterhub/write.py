"""Write bottleneck adapters in AdapterHub's layout."""

import math

import msgspec

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.models import config_to_json
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import ForeignRequest, ForeignStep
from tinygrad_peft_adapter.adapterhub.layout import ACTIVATIONS, PLACES, Naming
from tinygrad_peft_adapter.adapterhub.settings import BnConfig
from tinygrad_peft_adapter.config import BottleneckAdapterConfig

__all__ = ["write_adapterhub"]

_VERSION = "adapters.1.3.0"


def write_adapterhub(request: ForeignRequest, config: BottleneckAdapterConfig) -> ForeignStep:
    """Express a step in AdapterHub's layout. Raises ConfigError with all that it cannot hold."""
    base = request.base
    if problems := _unsupported(config, base):
        raise ConfigError("\n".join(problems))
    activations = dict(reversed([(ours, theirs) for theirs, ours in ACTIVATIONS.items()]))
    chosen = set(config.layers(base.num_hidden_layers))
    theirs = BnConfig(
        mh_adapter=config.placement == "houlsby",
        output_adapter=True,
        is_parallel=config.placement == "parallel",
        original_ln_before=config.reads == "residual" and config.placement != "parallel",
        non_linearity=activations[config.activation],
        reduction_factor=_reduction(config, base.hidden_size),
        scaling=float(config.scale),
        dropout=config.dropout,
        init_weights="mam_adapter" if config.init_weights == "identity" else "houlsby",
        leave_out=[n for n in range(base.num_hidden_layers) if n not in chosen],
    )
    settings = {
        "config": msgspec.to_builtins(theirs),
        "hidden_size": base.hidden_size,
        "model_class": _model_class(base),
        "model_name": request.base_name or "",
        "model_type": base.model_type,
        "name": request.adapter,
        "version": _VERSION,
    }
    return ForeignStep(config, settings, Naming(request.adapter, base.model_type))


def _reduction(config: BottleneckAdapterConfig, size: int) -> float:
    """Return a factor that reduces the hidden size to the inner width."""
    if config.reduction_factor is not None:
        return float(config.reduction_factor)
    width = config.bottleneck(size)
    factor = size / width
    while int(size // factor) < width:
        factor = math.nextafter(factor, 0)
    return factor


def _unsupported(config: BottleneckAdapterConfig, base: TransformerConfig) -> list[str]:
    """List the settings that AdapterHub does not support."""
    beside_norm = config.placement == "parallel" and base.norm_position == "pre"
    family = base.model_type or "a model without a family"
    rules = {
        f"AdapterHub: expected one of {', '.join(PLACES)}, got {family}": (
            base.model_type not in PLACES
        ),
        'placement="parallel" needs reads="residual" in a model whose norms come first': (
            beside_norm and config.reads == "sublayer"
        ),
        "bias=False: AdapterHub's adapters have biases": not config.bias,
        "layer_norm: AdapterHub cannot write it as safetensors": config.layer_norm,
        'dropout needs drops="output"': bool(config.dropout) and config.drops == "bottleneck",
        "modules_to_save: AdapterHub trains no whole modules": bool(config.modules_to_save),
    }
    return failures(rules)


def _model_class(base: TransformerConfig) -> str:
    """Return transformers' name for the model's class."""
    names = config_to_json(base)["architectures"]
    return str(names[0]) if isinstance(names, list) else ""
