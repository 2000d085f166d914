from pathlib import Path

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import SHAPES, load_config, named_shape, save_model
from tinygrad_peft.models.families import config_from_json, config_to_json
from tinygrad_peft.nn import Skeleton, Transformer

# What the published checkpoints hold; those of the encoders with the pooler.
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "minilm-l6": 22_713_216,
    "smollm2-135m": 134_515_008,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
}
SMALL = ("small-llama", "small-bert")


def test_every_shape_has_a_published_count() -> None:
    assert set(SHAPES) - set(SMALL) == set(PUBLISHED)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_a_shape_has_as_many_parameters_as_the_published_model(name: str, count: int) -> None:
    model = Transformer(named_shape(name), Skeleton())
    assert sum(parameter.size for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_survives_being_written_as_config_json(name: str) -> None:
    assert config_from_json(config_to_json(SHAPES[name])) == SHAPES[name]


@pytest.mark.parametrize("name", SMALL)
def test_a_small_shape_is_read_from_the_folder_that_it_is_saved_in(
    name: str, tmp_path: Path
) -> None:
    save_model(Transformer(named_shape(name)), tmp_path / "model")
    assert load_config(tmp_path / "model") == named_shape(name)


def test_an_unknown_shape_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ConfigError, match=r"'lama-7b'; did you mean 'llama-7b' or .* known are gpt2"
    ):
        named_shape("lama-7b")
