"""The settings of a subclass of the suite, and the tests that pytest makes of them."""

import typing
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import ClassVar
from weakref import WeakKeyDictionary

import pytest

from tinygrad_peft.errors import ConfigError, listed, nearest
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft import Host, PeftConfig, methods_of
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.models import SMALL_MODELS

__all__ = ["MethodSettings", "shown"]


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
        cls.check_settings()
        if "family" in metafunc.fixturenames:
            metafunc.parametrize("family", list(cls.models))
        if "every_family" in metafunc.fixturenames:
            metafunc.parametrize("every_family", list(dict.fromkeys((*SMALL_MODELS, *cls.models))))
        if "companion" in metafunc.fixturenames:
            metafunc.parametrize(("companion", "order"), cls._pairs())

    @classmethod
    def check_settings(cls) -> None:
        """Raise ConfigError with all that is wrong with the settings of the subclass."""
        if not hasattr(cls, "config"):
            raise ConfigError(f"{cls.__name__} needs the method: config = MyConfig(...)")
        problems = [*_misspelt(cls), *_wrong_flags(cls), *_unknown_names(cls)]
        if problems:
            raise ConfigError(f"invalid settings of {cls.__name__}:\n{listed(problems)}")

    @classmethod
    def first_error(cls, family: str, host: Host) -> Exception | None:
        """Return what stops the method on a family, when it is applied and run; None: nothing."""
        return _first_error(cls._case(family, host))

    @classmethod
    def _case(cls, family: str, host: Host) -> Case:
        return Case(family, cls.models[family], cls.configs.get(family, cls.config), host)

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
        """The host of `plugins`, asked for once."""
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
        if cls.first_error(family, host) is not None:
            pytest.skip(f"it cannot be applied to {family}: see test_it_can_be_applied")
        return cls._case(family, host)

    @classmethod
    def needs_promise(cls, flag: str) -> None:
        """Skip the test unless the method makes the promise."""
        if not getattr(cls, flag):
            pytest.skip(f"not promised: {flag}")


def shown(error: Exception) -> str:
    """Return an error with its kind."""
    return f"{type(error).__name__}: {error}"


_ERRORS: WeakKeyDictionary[Host, list[tuple[Case, Exception | None]]] = WeakKeyDictionary()


def _first_error(case: Case) -> Exception | None:
    """Apply and run a case; the answer is kept, since every test asks."""
    known = _ERRORS.setdefault(case.host, [])
    for other, found in known:
        if (other.shape, other.config) == (case.shape, case.config):
            return found
    error: Exception | None = None
    try:
        case.logits(case.adapt(case.base()))
    except Exception as raised:  # noqa: BLE001 - whatever the plugin raises is the finding
        error = raised
    known.append((case, error))
    return error


def _settings() -> Mapping[str, object]:
    """Return the settings of the suite with their types."""
    hints = typing.get_type_hints(MethodSettings)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is ClassVar}


def _misspelt(cls: type[MethodSettings]) -> list[str]:
    """Return the attributes that are nearly a setting's name."""
    known = _settings()
    own = {
        name for kind in cls.__mro__ if kind not in MethodSettings.__mro__ for name in vars(kind)
    }
    close = ((name, get_close_matches(name, known, 1, 0.8)) for name in sorted(own - {*known}))
    return [
        f"{name}: unknown setting, did you mean {match[0]!r}?" for name, match in close if match
    ]


def _wrong_flags(cls: type[MethodSettings]) -> list[str]:
    flags = (name for name, hint in _settings().items() if hint == ClassVar[bool])
    return [
        f"{name}: expected True or False, got {getattr(cls, name)!r}"
        for name in flags
        if not isinstance(getattr(cls, name), bool)
    ]


def _unknown_names(cls: type[MethodSettings]) -> list[str]:
    """Return the families and methods in settings that do not exist."""
    if isinstance(cls.composes_with, str):
        return [f"composes_with: expected several names, as ({cls.composes_with!r},)"]
    methods, families = methods_of(cls.plugins()), dict.fromkeys((*SMALL_MODELS, *cls.models))
    named = (
        ("configs", cls.configs, families, "family"),
        ("companions", cls.companions, methods, "installed method"),
        ("composes_with", cls.composes_with or (), methods, "installed method"),
    )
    return [
        f"{setting}: unknown {kind} {name!r}{nearest(name, known)} (there are: {', '.join(known)})"
        for setting, names, known, kind in named
        for name in names
        if name not in known
    ]
