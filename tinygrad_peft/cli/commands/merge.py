"""`tinygrad-peft merge`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinygrad_peft.cli import options
from tinygrad_peft.cli.command import Report, command
from tinygrad_peft.errors import ConfigError

if TYPE_CHECKING:
    from tinygrad_peft.models import SaveDtype

__all__ = ["merge"]


@command
@options.model
@options.adapter(required=True)
@options.out
@options.overwrite
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="The dtype of the weights in the files.",
)
def merge(*, model: str, adapter: Path, out: Path, overwrite: bool, dtype: "SaveDtype") -> Report:
    """Fold an adapter into its model, for any other program.

    The folder gets a plain checkpoint, which transformers loads, and what the model has beside its
    weights: tokenizer, templates, settings of generation, licence. An adapter's own tokenizer
    replaces the model's.
    """
    from tinygrad_peft.cli.adapted_models import load_adapted
    from tinygrad_peft.cli.output_folder import check_output
    from tinygrad_peft.cli.sources import adapter_path, model_path
    from tinygrad_peft.cli.tokenizers import tokenizer_of
    from tinygrad_peft.files import saving
    from tinygrad_peft.models import copy_companions, save_model
    from tinygrad_peft.models.hf import encoder_folder
    from tinygrad_peft.nn.module import count_elements
    from tinygrad_peft.peft import PeftModel

    source = model_path(model)
    if out.exists() and source.exists() and out.samefile(source):
        raise ConfigError(f"--out {out} is the model itself: merge into another folder")
    check_output(out, overwrite=overwrite)
    adapter = adapter_path(adapter)
    tokenizer = tokenizer_of(source, adapter)  # before anything is written
    adapted = load_adapted(source, adapter)
    assert isinstance(adapted, PeftModel)
    width = 4 if dtype == "float32" else 2
    with saving(out, size=width * count_elements(adapted.parameters())) as save:
        save_model(adapted.merge_and_unload(), save.staged, dtype=dtype, overwrite=overwrite)
        if source.is_dir():
            copy_companions(encoder_folder(source), save.staged)
        own = (adapter / "tokenizer.json").is_file()
        if not source.is_dir() or own or tokenizer.lower_cases:
            tokenizer.save(save.staged)
    return Report(values={"out": str(out), "dtype": dtype}, lines=[f"merged into {out}"])
