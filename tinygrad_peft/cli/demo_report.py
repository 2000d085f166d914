"""What the demo ends with."""

from tinygrad_peft.cli.comparing import PLOT_FILE
from tinygrad_peft.cli.comparison_report import comparison_lines
from tinygrad_peft.cli.demo_job import Outcome
from tinygrad_peft.train.comparison_result import COMPARISON_FILE

__all__ = ["closing_lines", "print_outcome"]


def print_outcome(outcome: Outcome) -> None:
    """Print what was measured on standard output."""
    lines = ["", *comparison_lines(outcome.comparison), "", *closing_lines(outcome)]
    print("\n".join(lines), flush=True)


def closing_lines(outcome: Outcome) -> list[str]:
    """How the merged model compares with the adapted one, and where all is."""
    merged, out = outcome.merged, outcome.out
    same = f"{merged.equal:,} of {merged.tested:,} predictions are the adapted model's"
    lines = [f"merged model: {same}; no logit is more than {merged.largest_difference:.1e} away"]
    files = [COMPARISON_FILE]
    if outcome.note:
        lines.append(outcome.note)
    else:
        files.append(PLOT_FILE)
    listed = ", ".join([*files, "the adapters", f"the model in {merged.folder.name}"])
    return [*lines, f"written in {out}: {listed}"]
