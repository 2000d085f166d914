"""`tinygrad-peft convert`."""

from pathlib import Path

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command

__all__ = ["convert"]


@command
@options.adapter(required=True)
@options.out
@options.overwrite
@click.option(
    "--layout",
    required=True,
    help="The library to write for: peft, or one that a plugin adds (adapterhub, mlx-lm).",
)
@options.model_of_adapter
def convert(*, adapter: Path, out: Path, overwrite: bool, layout: str, model: str | None) -> Report:
    """Write an adapter in another library's layout.

    Its present layout is recognised by its files.
    """
    from tinygrad_peft.cli.adapted_models import load_described
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.cli.sources import adapter_path
    from tinygrad_peft.peft import HUGGING_FACE, known_layouts

    check_output(out, overwrite=overwrite)
    peft = load_described(adapter_path(adapter), model)
    known = {each.name.lower(): each.name for each in known_layouts(peft.host)}
    wanted = (known | {"peft": HUGGING_FACE.name}).get(layout.lower(), layout)
    peft.save_pretrained(out, layout=wanted, overwrite=overwrite)
    return Report(
        values={"out": str(out), "layout": wanted},
        lines=[f"wrote the adapter into {out} in {wanted}'s layout"],
    )
