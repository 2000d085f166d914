"""`python -m tinygrad_peft.reference check`: solutions of the course's exercises, held against it.

Each exercise has a function that takes the solution's module and raises `Different` at the first
difference. It gives a hint only where the wrong values equal those of a known mistake, which is
computed to compare them with.
"""

from tinygrad_peft.reference.check.command import main, run

__all__ = ["main", "run"]
