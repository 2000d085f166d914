"""methods: plugins with their settings."""

from importlib.metadata import version

from tests.cli.toys import Commands


def test_methods_lists_plugins_with_their_settings(commands: Commands) -> None:
    plugins = commands.ok("methods", "--json").json["plugins"]
    assert isinstance(plugins, list)
    lora = next(plugin for plugin in plugins if plugin["plugin"] == "lora")
    assert lora["distribution"] == "tinygrad-peft"
    assert lora["version"] == version("tinygrad-peft")
    (method,) = lora["methods"]
    assert method["name"] == "lora"
    assert method["learning_rate"] == 0.001
    assert (method["settings"]["r"], method["settings"]["bias"]) == ("8", "'none'")
    lines = commands.ok("methods").out.splitlines()
    assert f"lora: tinygrad-peft {version('tinygrad-peft')}" in lines
    assert "  lora (learning rate 0.001)" in lines
    assert "    r = 8" in lines


def test_methods_lists_a_plugin_that_cannot_be_used_with_its_error(commands: Commands) -> None:
    plugins = commands.ok("--without", "vera", "methods", "--json").json["plugins"]
    assert isinstance(plugins, list)
    found = {plugin["plugin"]: plugin for plugin in plugins}
    assert (found["vera"]["error"], found["vera"]["methods"]) == ("switched off", [])
    assert found["lora"]["error"] is None
    lines = commands.ok("--without", "vera", "methods").out.splitlines()
    at = lines.index(f"vera: tinygrad-peft {version('tinygrad-peft')}")
    assert lines[at + 1] == "  cannot be used: switched off"
