"""AdapterHub's settings of bottleneck adapters (adapters 1.3: configuration/adapter_config.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import msgspec

from tinygrad_peft.errors import ConfigError, failures
from tinygrad_peft.peft import unknown_settings
from tinygrad_peft_adapter.adapterhub.layout import STARTS

__all__ = ["BnConfig", "read_bn_config"]


@dataclass(frozen=True, kw_only=True)
class BnConfig:
    """AdapterHub's settings and defaults; the settings of features that are off do not count."""

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    cross_adapter: bool = False
    leave_out: Sequence[int] = ()
    dropout: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool | None = True  # noqa: N815 - its name
    shared_W_phm: bool | None = False  # noqa: N815 - its name
    shared_phm_rule: bool | None = True
    factorized_phm_rule: bool | None = False
    phm_c_init: str | None = "normal"
    phm_init_range: float | None = 0.0001
    learn_phm: bool | None = True
    hypercomplex_nonlinearity: str | None = "glorot-uniform"
    phm_rank: int | None = 1
    phm_bias: bool | None = True
    stochastic_depth: float | None = 0.0

    def unsupported(self) -> list[str]:
        """List the settings that are not supported here."""
        rules = {
            "output_adapter=False: adapters after attention alone are not supported": (
                not self.output_adapter
            ),
            "is_parallel with mh_adapter: adapters beside attention are not supported": (
                self.is_parallel and self.mh_adapter
            ),
            "original_ln_after=False: outputs without the base's own sum are not supported": (
                not self.original_ln_after
            ),
            f"residual_before_ln={self.residual_before_ln!r}: only true is supported": (
                not self.is_parallel
                and (self.original_ln_before or self.residual_before_ln == "post_add")
                and self.residual_before_ln is not True
            ),
            "ln_before: AdapterHub cannot write it as safetensors": self.ln_before,
            "ln_after: norms behind adapters are not supported": self.ln_after,
            f"scaling={self.scaling!r}: learnt factors are not supported": (
                isinstance(self.scaling, str)
            ),
            "use_gating: gates are not supported": self.use_gating,
            f"inv_adapter={self.inv_adapter!r}: invertible adapters are not supported": (
                bool(self.inv_adapter)
            ),
            "cross_adapter: no model has cross-attention": self.cross_adapter,
            "phm_layer: compacters are not supported": self.phm_layer,
            f"stochastic_depth={self.stochastic_depth}: dropping layers is not supported": (
                bool(self.stochastic_depth)
            ),
            f"init_weights: expected one of {', '.join(STARTS)}, got {self.init_weights!r}": (
                self.init_weights not in STARTS
            ),
        }
        return failures(rules)


def read_bn_config(values: Mapping[str, object]) -> BnConfig:
    """Read the settings. Raises ConfigError for unknown keys that are set, and invalid values."""
    known = [field.name for field in fields(BnConfig)]
    unknown = unknown_settings(values, [*known, "architecture"])
    problems = [f"config has the unknown {setting}" for setting in unknown]
    own = {key: value for key, value in values.items() if key in known}
    if own.get("leave_out", ()) is None:
        del own["leave_out"]
    try:
        theirs = msgspec.convert(own, BnConfig)
    except msgspec.ValidationError as error:
        raise ConfigError("\n".join([*problems, f"config: {error}"])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return theirs
