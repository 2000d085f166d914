"""Tables of comparisons."""

from tests.train.test_progress import run_in_terminal
from tinygrad_peft.cli.comparison_output import comparison_lines
from tinygrad_peft.train import Comparison, Row


def test_in_a_terminal_the_table_is_drawn() -> None:
    program = (
        "from tests.cli.test_comparison_output import COMPARISON\n"
        "from tinygrad_peft.cli.comparison_output import comparison_lines\n"
        "print(*comparison_lines(COMPARISON), sep='\\n')\n"
    )
    lines = run_in_terminal("-c", program).splitlines()
    assert any(set("┏━┳┓") <= set(line) for line in lines)
    [row] = [line for line in lines if "[lora]" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        *("[lora]", "82.60 %", "74,498", "0.328 %", "168.4", "612", "0.001")
    ]


COMPARISON = Comparison(
    rows=(
        Row(
            label="[lora]",
            methods=({},),
            rates=(1e-3,),
            outcome="finished",
            accuracy=0.826,
            trainable=74_498,
            total=22_713_216,
            seconds=168.4,
            peak_memory=612_000_000,
        ),
        Row(label="wild", methods=({},), rates=(10.0,), outcome="failed", error="training stopped"),
        Row(
            label="late",
            methods=({},),
            rates=(0.5,),
            outcome="interrupted",
            trainable=10,
            total=100,
        ),
    ),
    waiting=("never", "ever"),
    interrupted=True,
    job={},
    config={},
    versions={},
)
TABLE = """\
                    accuracy  trained    of all  seconds  peak MB  learning rate
[lora]               82.60 %   74,498   0.328 %    168.4      612          0.001
wild (failed)              –        –         –        –        –             10
late (interrupted)         –       10  10.000 %        –        –            0.5
wild failed: training stopped
stopped by Ctrl-C
not tried: never, ever"""


def test_without_a_terminal_the_table_is_plain() -> None:
    assert "\n".join(comparison_lines(COMPARISON)) == TABLE
