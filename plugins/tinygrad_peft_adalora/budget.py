"""The budget of a step of a recipe: how many triplets all its layers may have together.

    b(t) = b₁ + (b₀ - b₁) (1 - (t - t_i) / (T - t_i - t_f))³      t_i < t < T - t_f

(Zhang et al. 2023, arXiv 2303.10512, section 3.3; from b₀ before to b₁ = target_r · layers after.)
"""

from dataclasses import dataclass

from tinygrad_peft.errors import ConfigError, listed
from tinygrad_peft_adalora.config import AdaLoraConfig

__all__ = ["Budget"]


@dataclass(eq=False)
class Budget:
    """What the layers of one step share.

    Attributes:
        config: the step's settings.
        total_step: T; None until the first step, if the settings do not name it.
        start: b₀, the triplets of all layers before the first step.
        step: t, the number of steps so far.
    """

    config: AdaLoraConfig
    total_step: int | None = None
    start: int = 0
    step: int = 0

    def advance(self, ranks: int, run: int) -> None:
        """Count one more step, of layers that have so many triplets, in a run of so many steps.

        Raises ConfigError where the run leaves the budget no step to fall in.
        """
        if not self.step:
            self.start = ranks
            self.total_step = self.config.total_step or run
            if problems := self.config.time_problems(self.total_step):
                raise ConfigError(f"AdaLoRA:\n{listed(problems)}")
        self.step += 1

    @property
    def last(self) -> int:
        """The step of the last allocation: T - t_f."""
        assert self.total_step is not None, "it advances before it is asked"
        return self.total_step - self.config.tfinal

    @property
    def is_due(self) -> bool:
        """True if the triplets are allocated anew after this step."""
        if self.step == self.last:
            return True
        return self.config.tinit < self.step < self.last and self.step % self.config.deltaT == 0

    def triplets(self, layers: int) -> int:
        """Compute b(t) for so many layers."""
        settings, end = self.config, self.config.target_r * layers
        left = 1 - (self.step - settings.tinit) / (self.last - settings.tinit)
        return int(end + (self.start - end) * left**3)
