"""The commands, a file each.

Only click and the options are imported with them. A command imports what it runs when it runs, so
that help is there at once.
"""

from tinygrad_peft.cli.commands.check_plugin import check_plugin
from tinygrad_peft.cli.commands.combine import combine
from tinygrad_peft.cli.commands.compare import compare
from tinygrad_peft.cli.commands.convert import convert
from tinygrad_peft.cli.commands.count import count
from tinygrad_peft.cli.commands.evaluate import evaluate
from tinygrad_peft.cli.commands.fetch import fetch
from tinygrad_peft.cli.commands.finetune import finetune
from tinygrad_peft.cli.commands.generate import generate
from tinygrad_peft.cli.commands.inspect import inspect
from tinygrad_peft.cli.commands.merge import merge
from tinygrad_peft.cli.commands.methods import methods
from tinygrad_peft.cli.commands.new_plugin import new_plugin
from tinygrad_peft.cli.commands.plot import plot

__all__ = ["COMMANDS"]

COMMANDS = (
    *(check_plugin, combine, compare, convert, count, evaluate, fetch),
    *(finetune, generate, inspect, merge, methods, new_plugin, plot),
)
