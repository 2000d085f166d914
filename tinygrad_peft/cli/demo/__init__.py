"""The demo: `make demo`, or `python -m tinygrad_peft.cli.demo`."""
