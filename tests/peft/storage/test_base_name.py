"""The name of the model that an adapter was trained on: written, and compared when it is read."""

import json
import warnings
from pathlib import Path

import pytest

from tests.peft.small import lora_host, small
from tinygrad_peft.errors import BaseModelWarning
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig, PeftModel, get_peft_model
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
SNAPSHOT = f"/cache/models--org--llama/snapshots/{COMMIT}"
LORA = LoraConfig(r=2)


def named(name: str | None, revision: str | None = None) -> Transformer:
    model = small()
    model.name_or_path, model.revision = name, revision
    return model


def saved(
    folder: Path,
    name: str | None,
    revision: str | None = None,
    recipe: PeftConfig | list[PeftConfig] = LORA,
) -> Path:
    get_peft_model(named(name, revision), recipe, host=lora_host()).save_pretrained(folder)
    return folder


def load(model: Transformer, folder: Path) -> None:
    PeftModel.from_pretrained(model, folder, host=lora_host())


def test_it_is_written_for_each_step(tmp_path: Path) -> None:
    saved(tmp_path, "org/llama", COMMIT, [LORA, LORA])
    for step in ("0-lora", "1-lora"):
        values = json.loads((tmp_path / step / "adapter_config.json").read_text())
        assert values["base_model_name_or_path"] == "org/llama"
        assert values["revision"] == COMMIT


def test_a_model_without_a_name_leaves_it_open(tmp_path: Path) -> None:
    saved(tmp_path, None)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] is None
    assert values["revision"] is None
    load(named("org/llama"), tmp_path)


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        (None, None),
        ("org/llama", COMMIT),
        ("org/llama", None),
        ("org/llama", "main"),  # which may be that commit
        ("/home/somebody/models/Llama/", None),
        ("C:\\models\\llama", None),
        (SNAPSHOT, None),
    ],
)
def test_the_same_model_elsewhere_gives_no_warning(
    name: str | None, revision: str | None, tmp_path: Path
) -> None:
    folder = saved(tmp_path, "org/llama", COMMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(named(name, revision), folder)


@pytest.mark.parametrize(
    ("name", "revision", "told"),
    [
        ("org/llama-2", None, f"was trained on 'org/llama@{COMMIT}', and this is 'org/llama-2'"),
        ("org/llama", OTHER, f"was trained on .*, and this is 'org/llama@{OTHER}'"),
        (SNAPSHOT.replace("0123", "3210"), None, "was trained on .*, and this is 'org/llama@3210"),
    ],
)
@pytest.mark.parametrize("recipe", [[LORA], [LORA, LORA]], ids=len)
def test_another_model_is_a_warning_with_both_names(
    name: str, revision: str | None, told: str, recipe: list[PeftConfig], tmp_path: Path
) -> None:
    folder = saved(tmp_path, "org/llama", COMMIT, recipe)
    with pytest.warns(BaseModelWarning, match=told) as caught:
        load(named(name, revision), folder)
    assert len(caught) == 1
    assert Path(caught[0].filename).name == Path(__file__).name  # the caller's line is shown


FOREIGN: list[tuple[str, PeftConfig, str]] = [
    ("mlx-lm", LORA, "model"),
    ("AdapterHub", BottleneckAdapterConfig(reads="residual", bottleneck_dim=4), "model_name"),
]


@pytest.mark.parametrize(("layout", "config", "key"), FOREIGN)
def test_in_other_libraries_layouts_it_is_written_and_compared_too(
    layout: str, config: PeftConfig, key: str, tmp_path: Path
) -> None:
    peft = get_peft_model(named("org/llama"), config)
    peft.save_pretrained(tmp_path, layout=layout)
    assert json.loads((tmp_path / "adapter_config.json").read_text())[key] == "org/llama"
    with pytest.warns(BaseModelWarning, match="trained on 'org/llama', and this is 'org/other'"):
        PeftModel.from_pretrained(named("org/other"), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftModel.from_pretrained(named("elsewhere/llama"), tmp_path)


@pytest.mark.parametrize(("layout", "config", "key"), FOREIGN)
def test_a_model_without_a_name_leaves_it_open_there_too(
    layout: str, config: PeftConfig, key: str, tmp_path: Path
) -> None:
    get_peft_model(named(None), config).save_pretrained(tmp_path, layout=layout)
    assert not json.loads((tmp_path / "adapter_config.json").read_text()).get(key)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftModel.from_pretrained(named("org/llama"), tmp_path)
