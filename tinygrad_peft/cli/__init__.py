"""The command line: `tinygrad-peft`, or `python -m tinygrad_peft`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name, and exit with its status."""
    try:
        from tinygrad_peft.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            f"tinygrad-peft: the command line needs {error.name}: pip install 'tinygrad-peft[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
