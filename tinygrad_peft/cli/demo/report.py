"""The report at the end of the demo."""

from tinygrad_peft.cli.comparison_output import PLOT_FILE, comparison_lines
from tinygrad_peft.cli.demo.job import Outcome
from tinygrad_peft.train.comparison_result import COMPARISON_FILE

__all__ = ["closing_lines", "print_outcome"]


def print_outcome(outcome: Outcome) -> None:
    """Print the measurements on standard output."""
    lines = ["", *comparison_lines(outcome.comparison), "", *closing_lines(outcome)]
    print("\n".join(lines), flush=True)


def closing_lines(outcome: Outcome) -> list[str]:
    """Compare the merged model with the adapted one, and list the files."""
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
