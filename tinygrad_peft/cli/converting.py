"""`tinygrad-peft convert`."""

from pathlib import Path

from tinygrad_peft.cli.fetching import adapter_path
from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.loading import load_told
from tinygrad_peft.cli.output import emit
from tinygrad_peft.peft import HUGGING_FACE, known_layouts

__all__ = ["convert_adapter"]


def convert_adapter(
    adapter: Path, out: Path, layout: str, model: str | None, *, as_json: bool
) -> None:
    """Write the adapter into `out` in that layout, whatever its own is."""
    check_output(out, refused=("config.json", "adapter_config.json", "recipe.json"))
    peft = load_told(adapter_path(adapter), model)
    known = {each.name.lower(): each.name for each in known_layouts(peft.host)}
    wanted = (known | {"peft": HUGGING_FACE.name}).get(layout.lower(), layout)
    peft.save_pretrained(out, layout=wanted)
    values = {"out": str(out), "layout": wanted}
    emit(values, [f"wrote the adapter into {out} in {wanted}'s layout"], as_json=as_json)
