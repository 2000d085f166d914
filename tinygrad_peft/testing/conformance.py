"""The suite whole."""

from tinygrad_peft.testing.composing import ComposingPromises
from tinygrad_peft.testing.running import RunningPromises
from tinygrad_peft.testing.saving import SavingPromises
from tinygrad_peft.testing.several import SeveralPromises
from tinygrad_peft.testing.switching import SwitchingPromises
from tinygrad_peft.testing.training import TrainingPromises

__all__ = ["MethodConformance"]


class MethodConformance(
    RunningPromises,
    TrainingPromises,
    SwitchingPromises,
    SeveralPromises,
    SavingPromises,
    ComposingPromises,
):
    """Subclass it as `class TestMine(MethodConformance)`, with `config = MyConfig()` in it.

    pytest then runs every promise on a small GPT-2, a Llama with grouped-query heads and a BERT
    classifier. Its settings say what else may be set, and which promises a method need not make:
    a test of one of those is skipped, with the promise's name.
    """
