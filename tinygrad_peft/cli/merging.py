"""`tinygrad-peft merge`."""

from pathlib import Path

from tinygrad_peft.cli.fetching import model_path
from tinygrad_peft.cli.folders import check_output
from tinygrad_peft.cli.loading import load_adapted
from tinygrad_peft.cli.output import emit
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import SaveDtype, load_tokenizer, save_model
from tinygrad_peft.nn import Transformer

__all__ = ["merge_adapter"]


def merge_adapter(model: str, adapter: Path, out: Path, dtype: SaveDtype, *, as_json: bool) -> None:
    """Write the merged model, and the tokenizer beside it, into `out`."""
    source = model_path(model)
    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError(f"--out {out} is the model itself: merge into another folder")
    check_output(out, refused=("adapter_config.json", "recipe.json"))
    tokenizer = load_tokenizer(source)  # before anything is written
    adapted = load_adapted(source, adapter)
    assert not isinstance(adapted, Transformer)
    save_model(adapted.merge_and_unload(), out, dtype=dtype)
    tokenizer.save(out)
    emit({"out": str(out), "dtype": dtype}, [f"merged into {out}"], as_json=as_json)
