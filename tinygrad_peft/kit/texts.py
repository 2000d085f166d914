"""The files of a new distribution that are the same for every kind, for `str.format`."""

__all__ = ["PYPROJECT", "README", "TEST"]

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{class_name} for tinygrad_peft: a method that {summary}."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["numpy>=2.0", "tinygrad-peft{bounds}"]

[project.optional-dependencies]
test = ["tinygrad-peft[test]{bounds}"]

[project.entry-points.tinygrad_peft]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]

[tool.mypy]
strict = true
files = ["{module}", "tests"]

[tool.pytest.ini_options]
testpaths = ["tests"]
addopts = ["--import-mode=importlib"]
filterwarnings = ["error"]

[tool.ruff]
line-length = 100

[tool.ruff.lint]
select = ["B", "E", "F", "I", "UP", "W"]
"""

README = """\
# {distribution}

The method `{name}` for tinygrad_peft: it {summary}.

The method is `{module}/__init__.py`. Change it where a comment marks the formula (`# ----`), and
the docstring at its top with it.

```sh
pip install -e '.[test]'
pytest -n auto                       # the promises that every method keeps
tinygrad-peft check-plugin {name}
pip wheel . --no-deps                # a wheel to share
```

Once it is installed, `tinygrad-peft methods` lists it, and `--method {name}` trains it.
"""

TEST = """\
\"\"\"Hold the method to the promises that every method keeps.\"\"\"

from tinygrad_peft.testing import MethodConformance

from {module} import {class_name}Config


class Test{class_name}(MethodConformance):
    config = {class_name}Config()
{promises}"""
