"""What a subclass of the suite says about its method, and what pytest makes of it."""

from collections.abc import Collection, Mapping
from typing import ClassVar

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, methods_of
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.models import SMALL_MODELS

__all__ = ["MethodSettings"]


class MethodSettings:
    """The settings of the suite: the method, and the promises that it does not make.

    config: the method, with the settings to be tested.
    configs: other settings for families in which `config` has no targets, by family.
    models: the models to test on, by family; a family that is left out is not promised.
    companions: settings for other installed methods, by name, where their defaults do not do.
    composes_with: the installed methods that recipes are made with beside the method itself; None,
        all of them.

    starts_as_identity: until something is learnt, the output is the base's, bit for bit.
    trains: the method has weights to train; a quantiser has none.
    mergeable: the method folds into plain layers with the same output.
    changes_sequence_length: a language model gives logits for virtual tokens, in front.
    composes_with_itself: a recipe may have the method twice.
    """

    config: ClassVar[PeftConfig]
    configs: ClassVar[Mapping[str, PeftConfig]] = {}
    models: ClassVar[Mapping[str, TransformerConfig]] = SMALL_MODELS
    companions: ClassVar[Mapping[str, PeftConfig]] = {}
    composes_with: ClassVar[Collection[str] | None] = None

    starts_as_identity: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    changes_sequence_length: ClassVar[bool] = False
    composes_with_itself: ClassVar[bool] = True

    @classmethod
    def plugins(cls) -> Host:
        """The plugins to ask: all that are installed, unless a subclass knows better."""
        return Host.installed()

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Run each test on each family, and those of compositions with each installed method."""
        if not hasattr(cls, "config"):
            raise ConfigError(f"{cls.__name__} needs the method: config = MyConfig(...)")
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", list(cls.models))
        if "every_family" in metafunc.fixturenames:
            metafunc.parametrize("every_family", list(dict.fromkeys((*SMALL_MODELS, *cls.models))))
        if "companion" in metafunc.fixturenames:
            metafunc.parametrize(("companion", "order"), cls._pairs())

    @classmethod
    def _pairs(cls) -> list[tuple[str, str]]:
        """Each method to compose with, and whether the class's own goes over or under it."""
        own, wanted = cls.config.peft_type.lower(), cls.composes_with
        installed = methods_of(cls.plugins())
        others = [n for n in installed if n != own and (wanted is None or n in wanted)]
        return [(own, "over"), *((name, order) for name in others for order in ("over", "under"))]

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls) -> Host:
        """What `plugins` gives, asked for once."""
        return cls.plugins()

    @pytest.fixture
    def case(self, family: str, host: Host) -> Case:
        """The method on the small model of one family."""
        return self.case_on(family, host)

    @classmethod
    def case_on(cls, family: str, host: Host) -> Case:
        """The method on the small model of a family; skips the test where it is not promised."""
        if family not in cls.models:
            pytest.skip(f"not promised: to work on {family}")
        return Case(family, cls.models[family], cls.configs.get(family, cls.config), host)

    @classmethod
    def needs_promise(cls, flag: str) -> None:
        """Skip the test unless the method makes the promise."""
        if not getattr(cls, flag):
            pytest.skip(f"not promised: {flag}")
