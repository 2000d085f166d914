"""A new method as a distribution of its own, which keeps every promise from the start."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from tinygrad_peft.errors import ConfigError, failures, listed
from tinygrad_peft.files import saving
from tinygrad_peft.host import Host
from tinygrad_peft.kit.texts import PYPROJECT, README, TEST
from tinygrad_peft.peft import methods_of

__all__ = ["KINDS", "Kind", "NewPlugin", "write_plugin"]

_LONGEST = 24  # so that no generated line is too long


@dataclass(frozen=True)
class Kind:
    """A kind of method.

    Attributes:
        summary: the place in a model where it acts.
        promises: the settings of the conformance suite, a line each.
    """

    summary: str
    promises: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "affine": Kind("adds an update to affine layers"),
    "from-weight": Kind("adds an update to affine layers that starts from their weights"),
    "residual": Kind("changes hidden states at chosen tokens", ("mergeable = False",)),
    "prompt": Kind(
        "puts virtual tokens in front of every text",
        ("starts_as_identity = False", "mergeable = False", "changes_sequence_length = True"),
    ),
    "schedule": Kind("adds an update to affine layers, and shrinks it in training"),
    "quantiser": Kind(
        "stores affine layers in fewer bits",
        ("starts_as_identity = False", "trains = False", "composes_with_itself = False"),
    ),
}


@dataclass(frozen=True)
class NewPlugin:
    """A distribution to be written: `name` is the method's, in lower case with underscores."""

    name: str
    kind: str = "affine"

    @property
    def distribution(self) -> str:
        """The distribution's name, which is its folder's as well."""
        return f"tinygrad-peft-{self.name.replace('_', '-')}"

    @property
    def module(self) -> str:
        """The name to import."""
        return f"tinygrad_peft_{self.name}"

    @property
    def class_name(self) -> str:
        """The first part of the names of classes."""
        return "".join(part.capitalize() for part in self.name.split("_"))

    def contents(self) -> Mapping[str, str]:
        """Return the text of each file, by its path in the distribution's folder."""
        own = version("tinygrad-peft")
        major, minor = own.split(".")[:2]
        words = {
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "class_name": self.class_name,
            "summary": KINDS[self.kind].summary,
            "bounds": f">={own},<{major}.{int(minor) + 1}",
            "promises": "".join(f"    {line}\n" for line in KINDS[self.kind].promises),
        }
        return {
            "pyproject.toml": PYPROJECT.format(**words),
            "README.md": README.format(**words),
            f"{self.module}/__init__.py": self._method(),
            f"{self.module}/py.typed": "",
            "tests/test_promises.py": TEST.format(**words),
        }

    def problems(self, host: Host, folder: Path) -> list[str]:
        """List why it cannot be written to `folder`: invalid and taken names."""
        return [*self._invalid(), *self._taken(host, folder)]

    def _invalid(self) -> list[str]:
        name, is_plain = self.name, re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", self.name)
        wanted = "lower-case letters and digits, with single underscores between them"
        return failures(
            {
                f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}": self.kind
                not in KINDS,
                f"name: expected {wanted}, got {name!r}": not is_plain,
                f"name: expected at most {_LONGEST} characters, got {len(name)}": len(name)
                > _LONGEST,
                f"name: {name!r} is a keyword of Python": keyword.iskeyword(name),
                "name: pytest takes classes that start with Test for tests": name[:4] == "test",
            }
        )

    def _taken(self, host: Host, folder: Path) -> list[str]:
        plugins = {plugin.name: plugin.distribution for plugin in host.plugins()}
        module, distribution = self.module, self.distribution
        return failures(
            {
                f"an installed plugin provides the method {self.name!r}": self.name
                in methods_of(host),
                f"the entry point {self.name!r} belongs to {plugins.get(self.name)}": self.name
                in plugins,
                f"the module {module!r} exists": _is_importable(module),
                f"the distribution {distribution!r} is installed": _is_installed(distribution),
                f"{folder} exists": folder.exists(),
            }
        )

    def _method(self) -> str:
        template = files("tinygrad_peft.kit.templates") / f"{self.kind.replace('-', '_')}.py"
        text = template.read_text("utf-8")
        for old, new in (
            ("EXAMPLE", self.name.upper()),
            ("Example", self.class_name),
            ("example", self.name),
        ):
            text = text.replace(old, new)
        # Here tinygrad_peft is this project's own; there it is a dependency, as NumPy is.
        return re.sub(r"(\nimport numpy[^\n]*\n)\n(from tinygrad_peft)", r"\1\2", text)


def write_plugin(plugin: NewPlugin, out: Path, host: Host | None = None) -> Path:
    """Write the distribution to a new folder in `out`, and return the folder.

    Raises ConfigError with all that is wrong: then nothing is written. An error of the disk leaves
    no half-written folder either.
    """
    folder = out / plugin.distribution
    if problems := plugin.problems(host or Host.installed(), folder):
        raise ConfigError(f"cannot make the plugin {plugin.name!r}:\n{listed(problems)}")
    contents = plugin.contents()
    with saving(out) as save:
        for name, text in contents.items():
            path = save.path(f"{plugin.distribution}/{name}")
            path.write_text(text, "utf-8", newline="\n")
    return folder


def _is_importable(module: str) -> bool:
    return module.isidentifier() and find_spec(module) is not None


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except (PackageNotFoundError, ValueError):
        return False
