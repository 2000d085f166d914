"""The command line: `tinygrad-peft`, or `python -m tinygrad_peft`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the process's arguments name, and exit with its status."""
    try:
        sys.exit(_main())
    except KeyboardInterrupt:  # while the program itself is imported, or ends
        print("tinygrad-peft: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def _main() -> int:
    from tinygrad_peft.cli.streams import NO_OUTPUT, prepare_streams

    if not prepare_streams():
        print(f"tinygrad-peft: {NO_OUTPUT}", file=sys.stderr)
        return 2
    try:
        from tinygrad_peft.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        print(
            f"tinygrad-peft: the command line needs {error.name}: pip install 'tinygrad-peft[cli]'",
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:])
