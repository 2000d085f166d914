"""The conformance suite: what every method promises, to be subclassed by those who write one.

from tinygrad_peft.testing import MethodConformance

class TestMine(MethodConformance):
    config = MyConfig()
"""

from importlib.util import find_spec

from tinygrad_peft.errors import MissingExtraError

if find_spec("pytest") is None:
    raise MissingExtraError("tinygrad_peft.testing needs pytest: pip install 'tinygrad-peft[test]'")

from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.conformance import MethodConformance
from tinygrad_peft.testing.expect import Snapshot
from tinygrad_peft.testing.models import SMALL_MODELS, small_model

__all__ = ["SMALL_MODELS", "Case", "MethodConformance", "Snapshot", "small_model"]
