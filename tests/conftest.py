import signal
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run, and no deadline: a busy machine must not fail them.
settings.register_profile("tinygrad_peft", deadline=None, derandomize=True)
settings.load_profile("tinygrad_peft")

# A job in the background ignores Ctrl-C, or under nohup the end of its terminal, and so would the
# processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS = Path(__file__).parent
MARKER_OF_FOLDER = {"interop": "interop", "benchmarks": "bench"}
PEERS = ("bitsandbytes", "peft", "torch", "transformers")

# Without the peers these files cannot be imported; `make interop` and `make bench` install them.
missing_peers = [name for name in PEERS if find_spec(name) is None]
collect_ignore = list(MARKER_OF_FOLDER) if missing_peers else []
# Third parties' methods are tested where they are installed: `make test` installs them.
installed = {point.name for point in entry_points(group="tinygrad_peft")}
third_parties = {
    f"plugins/{path.name}": path.name.removesuffix("_distribution")
    for path in sorted(TESTS.glob("plugins/*_distribution"))
}
missing_methods = {path: name for path, name in third_parties.items() if name not in installed}
collect_ignore += missing_methods
# The pictures are drawn from a checkout; the wheel has neither them nor what draws them.
if not (TESTS.parent / "docs" / "pictures").is_dir():
    collect_ignore.append("pictures")


def pytest_report_header() -> list[str]:
    folders = {", ".join(MARKER_OF_FOLDER): missing_peers}
    folders |= {path: [f"tinygrad-peft-{name}"] for path, name in missing_methods.items()}
    return [
        f"not collected: {folder} ({', '.join(missing)} not installed)"
        for folder, missing in folders.items()
        if missing
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        marker = MARKER_OF_FOLDER.get(item.path.relative_to(TESTS).parts[0])
        if marker is not None:
            item.add_marker(marker)


@pytest.fixture
def rng() -> np.random.Generator:
    """Make a generator that starts alike in every test, whatever the order."""
    return np.random.default_rng(0)
