"""`tinygrad-peft fetch`."""

import click

from tinygrad_peft.cli.command import Report, command

__all__ = ["fetch"]


@command
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--verify", is_flag=True, help="Hash the files in the cache again.")
def fetch(names: tuple[str, ...], *, verify: bool) -> Report:
    """Download a real model or data set into the cache, and verify its checksum.

    NAME is minilm-l6, smollm2, movie-reviews or devils-dictionary.
    """
    from tinygrad_peft.models import fetch

    fetched = [
        fetch.fetch(name, verify=verify, progress=lambda line: click.echo(line, err=True))
        for name in names
    ]
    values = {artifact.name: str(artifact.path) for artifact in fetched}
    return Report(values=values, lines=[f"{name}: {path}" for name, path in values.items()])
