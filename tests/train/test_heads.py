"""The head among what a recipe trains."""

from tests.train.toys import classifier, language_model
from tinygrad_peft.models import SHAPES, checkpoint_path
from tinygrad_peft.nn import Transformer
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft_lora import LoraConfig

ONE, TWO = LoraConfig(r=1), LoraConfig(r=2, modules_to_save=["lm_head"])


def test_the_first_step_trains_the_head_beside_its_other_modules() -> None:
    model = classifier()
    head = checkpoint_path(model.config, "classifier")
    first, second = with_saved_head([TWO, ONE], model)
    assert first.modules_to_save == ("lm_head", head)
    assert second is ONE


def test_a_new_pooler_is_trained_with_the_classifier() -> None:
    model = Transformer(SHAPES["small-bert"])
    model.with_classifier(2)
    (config,) = with_saved_head([ONE], model)
    assert config.modules_to_save == ("classifier", "bert.pooler.dense")
    half = LoraConfig(modules_to_save=["pooler.dense"])
    (config,) = with_saved_head([half], model)
    assert config.modules_to_save == ("pooler.dense", "classifier")


def test_a_recipe_that_trains_the_head_already_is_unchanged() -> None:
    model = classifier()
    own = LoraConfig(modules_to_save=[checkpoint_path(model.config, "classifier")])
    assert with_saved_head([ONE, own], model) == (ONE, own)


def test_nothing_changes_without_a_head_or_a_recipe() -> None:
    assert with_saved_head([ONE], language_model()) == (ONE,)
    assert with_saved_head([], classifier()) == ()
