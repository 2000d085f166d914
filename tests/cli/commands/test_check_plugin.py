"""check-plugin: the promises of an installed plugin, as a table and JSON."""

import sys

import pytest

from tests.cli.toys import Commands


@pytest.fixture(autouse=True)
def _bitfit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    others = "adapter,ia3,ln_tuning,lora,prefix,prompt,qlora,vera"
    monkeypatch.setenv("TINYGRAD_PEFT_WITHOUT", others)
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))


@pytest.mark.slow
def test_check_plugin_prints_each_promise(commands: Commands) -> None:
    lines = commands.ok("check-plugin", "bitfit").out.splitlines()
    assert lines[0].startswith("bitfit: tinygrad-peft-bitfit ")
    assert lines[1].endswith(" 0 broken")
    assert lines[2].split() == ["promise", "kept", "skipped", "broken"]
    rows = [line.split() for line in lines[3:]]
    assert ["starts_as_the_base", "2", "0", "0"] in rows


@pytest.mark.slow
def test_check_plugin_gives_the_same_as_json(commands: Commands) -> None:
    found = commands.ok("check-plugin", "tinygrad-peft-bitfit", "--json").json
    assert found["sound"] is True
    plugins = found["plugins"]
    assert isinstance(plugins, list)
    (method,) = plugins[0]["methods"]
    assert (method["name"], method["sound"], method["problems"]) == ("bitfit", True, [])
    assert {"promise", "kept", "skipped", "broken", "notes"} == method["promises"][0].keys()


def test_check_plugin_refuses_an_unknown_name(commands: Commands) -> None:
    error = commands.fails("check-plugin", "bitfti")
    assert "no plugin is called 'bitfti'; did you mean 'bitfit'" in error
