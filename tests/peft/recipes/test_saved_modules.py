import pytest

from tinygrad_peft.peft import is_saved_whole
from tinygrad_peft_lora import LoraConfig


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("layers.1", True),
        ("model.layers.1.mlp", True),
        ("up_proj", True),
        ("layers.1.attn", False),
        ("layers", True),
        ("ers.1", False),
        ("up_proj.weight", False),
    ],
)
def test_module_is_saved_with_the_modules_that_contain_it(name: str, *, saved: bool) -> None:
    config = LoraConfig(modules_to_save=[name])
    assert is_saved_whole(config, "model.layers.1.mlp.up_proj") == saved


def test_nothing_is_saved_without_names() -> None:
    assert not is_saved_whole(LoraConfig(), "model.norm")
