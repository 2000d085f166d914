"""inspect: facts and problems of models and adapters."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from tests.cli.toys import Commands
from tests.peft.small import LLAMA, small
from tinygrad_peft.peft import get_peft_model
from tinygrad_peft_lora import LoraConfig


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    get_peft_model(small(LLAMA), LoraConfig(r=4)).save_pretrained(folder)
    return folder


def test_a_model_is_a_table_of_facts_and_tensors(small_world: Path, commands: Commands) -> None:
    out = commands.ok("inspect", small_world / "llama").out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert rows[0] == f"{small_world / 'llama'}: model"
    assert "family llama" in rows
    assert "num_hidden_layers 3" in rows
    assert "tokenizer yes" in rows
    assert "model.layers.#.self_attn.k_proj.weight (8, 16) F32 3" in rows
    assert "problem" not in out


def test_an_adapter_is_a_table_of_facts_and_tensors(adapter: Path, commands: Commands) -> None:
    rows = [" ".join(line.split()) for line in commands.ok("inspect", adapter).out.splitlines()]
    assert rows[0] == f"{adapter}: adapter"
    assert "method lora" in rows
    assert "settings r=4" in rows
    assert "ranks 4" in rows
    assert "base_model.model.model.layers.#.self_attn.v_proj.lora_B.weight (8, 4) F32 3" in rows


def test_a_long_pattern_is_counted_and_json_has_all_of_it(
    tmp_path: Path, commands: Commands
) -> None:
    ranks = {f"layers.{n}.self_attn.{slot}_proj": 3 for n in range(3) for slot in "qv"}
    folder = tmp_path / "adapter"
    get_peft_model(small(LLAMA), LoraConfig(r=4, rank_pattern=ranks)).save_pretrained(folder)
    rows = [" ".join(line.split()) for line in commands.ok("inspect", folder).out.splitlines()]
    assert "settings r=4, rank_pattern=(6 entries)" in rows
    facts = commands.ok("inspect", folder, "--json").json["facts"]
    assert isinstance(facts, dict)
    assert facts["settings"] == {"r": 4, "rank_pattern": ranks}


def test_json_has_every_number(adapter: Path, commands: Commands) -> None:
    told = commands.ok("inspect", adapter, "--json").json
    assert (told["sound"], told["kind"], told["problems"], told["parts"]) == (
        True,
        "adapter",
        [],
        [],
    )
    facts, tensors = told["facts"], told["tensors"]
    assert isinstance(facts, dict)
    assert isinstance(tensors, dict)
    assert facts["ranks"] == [4]
    assert tensors["parameters"] == 3 * 4 * (16 + 16 + 16 + 8)
    assert len(tensors["groups"]) == 4


def test_problems_are_listed_and_the_status_is_1(adapter: Path, commands: Commands) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 5}))
    ran = commands("inspect", adapter)
    assert ran.status == 1
    assert "\n12 problems:\n  - wrong shape: base_model.model.model.layers.0" in ran.out
    assert ran.err == ""
    ran = commands("inspect", adapter, "--json")
    assert (ran.status, ran.json["sound"]) == (1, False)


def test_the_parts_of_a_folder_come_one_after_the_other(
    adapter: Path, small_world: Path, tmp_path: Path, commands: Commands
) -> None:
    both = copytree(small_world / "llama", tmp_path / "both")
    copytree(adapter, both / "fr")
    out = commands.ok("inspect", both).out
    headers = [line for line in out.splitlines() if line.startswith(str(both))]
    assert headers == [f"{both}: folder", f"{both}: model", f"{both / 'fr'}: adapter"]


def test_adapter_is_checked_against_the_named_model(
    adapter: Path, small_world: Path, commands: Commands
) -> None:
    commands.ok("inspect", adapter, "--model", small_world / "llama")
    ran = commands("inspect", adapter, "--model", small_world / "gpt2")
    assert ran.status == 1
    assert "was made for another model: model_type: expected 'llama', got 'gpt2'" in ran.out


def test_model_is_not_checked_against_another(small_world: Path, commands: Commands) -> None:
    gpt2 = small_world / "gpt2"
    message = commands.fails("inspect", small_world / "bert", "--model", gpt2)
    assert message == (
        f"tinygrad-peft: --model {gpt2}: expected an adapter to check against it, got a model\n"
    )


def test_control_characters_are_not_printed(tmp_path: Path, commands: Commands) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "\u001b[31mx": "\u202e"})
    )
    ran = commands("inspect", tmp_path)
    assert ran.status == 1
    assert "\\x1b[31mx = '\\u202e'" in ran.out


def test_folder_without_a_model_or_an_adapter_is_refused(
    tmp_path: Path, commands: Commands
) -> None:
    assert "neither a model nor an adapter" in commands.fails("inspect", tmp_path)
    assert "nowhere: no such model or adapter" in commands.fails("inspect", tmp_path / "nowhere")
