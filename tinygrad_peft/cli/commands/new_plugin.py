"""`tinygrad-peft new-plugin`."""

from pathlib import Path

import click

from tinygrad_peft.cli.command import Report, command

__all__ = ["new_plugin"]


@command
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["affine", "from-weight", "residual", "prompt", "schedule", "quantiser"]),
    default="affine",
    show_default=True,
    help="The kind of method.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder to make its folder in; by default, this one.",
)
def new_plugin(name: str, kind: str, out: Path) -> Report:
    """Write a working distribution for a new method.

    NAME is the method's, in lower case with underscores. Nothing is written if a name is taken.
    """
    from tinygrad_peft.kit import NewPlugin, write_plugin

    plugin = NewPlugin(name, kind)
    folder = write_plugin(plugin, out)
    method = folder / plugin.module / "__init__.py"
    return Report(
        values={
            "name": name,
            "kind": kind,
            "distribution": plugin.distribution,
            "folder": str(folder),
            "method": str(method),
        },
        lines=[
            f"wrote {folder}",
            f"the formula is in {method}",
            f"next: cd {folder} && pip install -e '.[test]' && pytest -n auto",
        ],
    )
