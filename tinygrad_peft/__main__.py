"""`python -m tinygrad_peft` is `tinygrad-peft`."""

from tinygrad_peft.cli import main

main()
