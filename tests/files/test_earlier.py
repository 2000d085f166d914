"""Earlier work in a folder, and everything else in it."""

from pathlib import Path

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.files import refuse_earlier_work, replace_earlier_work, saving
from tinygrad_peft.files.earlier import HELD, earlier_work

OURS = [
    *("config.json", "generation_config.json", "model.safetensors.index.json"),
    *("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
    *("adapter_config.json", "adapter_model.safetensors", "adapters.safetensors", "recipe.json"),
    *("metrics.json", "log.jsonl", "running_state.safetensors", "comparison.json"),
    *("0-lora/adapter_config.json", "0-lora/adapter_model.safetensors"),
    *("1-lora-r-8/log.jsonl", "1-lora-r-8/0-lora/adapter_config.json"),
    *("1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json"),
    *("interrupted/adapter_config.json", "checkpoints/step-00000120/state.json"),
]
OTHERS = [
    *("notes.txt", "README.md", ".git/config.json", "data.json", "state.json"),
    *("other/config.json", "other/model.safetensors", "2024-models/config.json", "0-lora/notes.md"),
    "mymodel.safetensors",
]


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_ours_are_listed_and_others_are_not(tmp_path: Path) -> None:
    write(tmp_path, [*OURS, *OTHERS])
    assert sorted(earlier_work(tmp_path)) == sorted(OURS)


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", ["adapter_config.json"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0-lora").symlink_to(tmp_path / "elsewhere")
    assert earlier_work(tmp_path / "out") == []


@pytest.mark.parametrize("name", HELD)
def test_earlier_work_is_refused_by_its_settings(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name, "tokenizer.json"])
    message = rf"{tmp_path}: there is {HELD[name]} in it \({name}\): name another folder, or pass"
    with pytest.raises(ConfigError, match=message):
        refuse_earlier_work(tmp_path)
    with pytest.raises(ConfigError, match=message), saving(tmp_path) as save:
        replace_earlier_work(save, overwrite=False)
    assert (tmp_path / name).exists()


def test_a_tokenizer_alone_is_not_refused(tmp_path: Path) -> None:
    write(tmp_path, ["tokenizer.json", "notes.txt"])
    refuse_earlier_work(tmp_path)


def test_earlier_work_goes_with_the_save_and_other_files_stay(tmp_path: Path) -> None:
    write(tmp_path, [*OURS, *OTHERS])
    with saving(tmp_path) as save:
        replace_earlier_work(save, overwrite=True)
        save.path("config.json").write_text("new")
        assert (tmp_path / "model.safetensors").exists()
    found = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(found) == sorted([*OTHERS, "config.json"])
    assert (tmp_path / "config.json").read_text() == "new"
    assert not (tmp_path / "1_Pooling").exists()
