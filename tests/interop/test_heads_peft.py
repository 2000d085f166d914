"""Classifiers between here, transformers and PEFT: the same logits, or no classifier there."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from tests.interop.tiny import IDS, SIZES, logits, own, peer, peer_logits, shaken
from tinygrad_peft import PeftModel, Transformer, get_peft_model, load_model, save_model
from tinygrad_peft.arrays import Array
from tinygrad_peft.cli.adapted_models import load_adapted
from tinygrad_peft.train.heads import with_saved_head
from tinygrad_peft_lora import LoraConfig

# PEFT warns of Conv1D, and of heads that it names and a file has not.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TARGETS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}
POOLED = [("gpt2", "mean"), ("llama", "mean"), ("bert", "mean"), ("bert", "last"), ("bert", "cls")]
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
PADDED = np.where(MASK, IDS, SIZES["pad_token_id"])


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.fixture(params=TARGETS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def base(family: str, tmp_path: Path) -> Path:
    return written(family, tmp_path / "base")


def written(family: str, folder: Path) -> Path:
    """Write a checkpoint without a classifier, and for BERT without a pooler."""
    model = peer(family)
    if family == "bert":
        model = drawn(BertForMaskedLM(BertConfig(**{**model.config.to_dict(), "id2label": None})))
    model.save_pretrained(folder)
    return folder


def drawn(model: Any) -> Any:  # noqa: ANN401 - torch is not seen by mypy
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def classifier(folder: Path, seed: int) -> Any:  # noqa: ANN401 - as above
    """Load a classifier; its new parts depend on the seed."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def on_padded(model: Transformer | PeftModel) -> Array:
    return model(PADDED, MASK).numpy()


def peers_on_padded(model: Any) -> Array:  # noqa: ANN401 - as above
    with torch.no_grad():
        found: Array = model.eval()(torch.tensor(PADDED), attention_mask=torch.tensor(MASK)).logits
    return np.asarray(found)


def trained(base: Path, family: str, pooling: str | None = None) -> PeftModel:
    model = own(base)
    model.with_classifier(3, pooling=pooling)
    recipe = with_saved_head([LoraConfig(r=2, target_modules=TARGETS[family])], model)
    return shaken(get_peft_model(model, recipe))


def test_the_usual_head_computes_the_same_in_transformers_and_in_peft(
    family: str, base: Path, tmp_path: Path
) -> None:
    ours = trained(base, family)
    expected = on_padded(ours)
    ours.save_pretrained(tmp_path / "adapter")
    for seed in (1, 2):
        read = hf.PeftModel.from_pretrained(classifier(base, seed), tmp_path / "adapter")
        assert type(read).__name__ == "PeftModelForSequenceClassification"
        np.testing.assert_allclose(peers_on_padded(read), expected, atol=1e-5)
    save_model(ours.merge_and_unload(), tmp_path / "merged")
    merged, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    np.testing.assert_allclose(peers_on_padded(merged), expected, atol=1e-5)
    np.testing.assert_allclose(on_padded(load_model(tmp_path / "merged")), expected, atol=1e-5)


def test_pefts_classifier_is_opened_on_the_checkpoint_it_was_trained_from(
    family: str, base: Path, tmp_path: Path
) -> None:
    more = {"modules_to_save": ["classifier", "pooler"]} if family == "bert" else {}
    config = hf.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=TARGETS[family], **more)
    theirs = hf.get_peft_model(classifier(base, 1), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    expected = peers_on_padded(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapted(base, tmp_path / "adapter")
    assert isinstance(ours, PeftModel)
    np.testing.assert_allclose(on_padded(ours), expected, atol=1e-5)
    save_model(ours.merge_and_unload(), tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(peers_on_padded(merged), expected, atol=1e-5)


def test_a_batch_without_a_padding_token_is_one_row_after_another(tmp_path: Path) -> None:
    theirs = peer("gpt2")
    theirs.config.pad_token_id = None
    theirs.save_pretrained(tmp_path / "base")
    model = own(tmp_path / "base")
    model.with_classifier(3)
    save_model(model, tmp_path / "model")
    peers = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    found = on_padded(load_model(tmp_path / "model"))
    with torch.no_grad():
        rows = [
            peers(torch.tensor(ids[mask == 1][None])).logits.numpy()
            for ids, mask in zip(PADDED, MASK, strict=True)
        ]
        with pytest.raises(ValueError, match="batch sizes > 1"):
            peers(torch.tensor(PADDED))
    np.testing.assert_allclose(found, np.concatenate(rows), atol=1e-5)


# ---------- heads that transformers has no class for ----------


@pytest.mark.parametrize(("family", "pooling"), POOLED)
def test_transformers_opens_the_bare_model_of_another_head(
    family: str, pooling: str, tmp_path: Path
) -> None:
    ours = trained(written(family, tmp_path / "base"), family, pooling)
    hidden = ours.base_model.hidden_states(IDS).numpy()
    merged = ours.merge_and_unload()
    expected = logits(merged)
    save_model(merged, tmp_path / "merged")
    np.testing.assert_allclose(logits(load_model(tmp_path / "merged")), expected, atol=1e-5)
    bare, told = AutoModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["unexpected_keys"]
    with torch.no_grad():
        found = bare.eval()(torch.from_numpy(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, hidden, atol=1e-4)
    _, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert {key.partition(".")[0] for key in told["missing_keys"]} & {"classifier", "score"}


@pytest.mark.parametrize(("family", "pooling"), POOLED)
def test_peft_opens_the_bare_model_of_an_adapter_with_another_head(
    family: str, pooling: str, tmp_path: Path
) -> None:
    base = written(family, tmp_path / "base")
    ours = trained(base, family, pooling)
    hidden = ours.base_model.hidden_states(IDS).numpy()
    ours.save_pretrained(tmp_path / "adapter")
    bare = AutoModel.from_pretrained(base)
    read = hf.PeftModel.from_pretrained(bare, tmp_path / "adapter").eval()
    assert type(read).__name__ == "PeftModelForFeatureExtraction"
    with torch.no_grad():
        found = read(torch.from_numpy(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(found, hidden, atol=1e-4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        with pytest.warns(UserWarning, match="missing adapter keys"):
            hf.PeftModel.from_pretrained(classifier(base, 1), tmp_path / "adapter")
    again = load_adapted(base, tmp_path / "adapter")
    np.testing.assert_allclose(again(IDS).numpy(), logits(ours), atol=1e-6)


# ---------- paths with the family's prefix and without ----------


def adapter_of(theirs: Any, targets: Any, folder: Path, task: str) -> Path:  # noqa: ANN401
    config = hf.LoraConfig(r=2, target_modules=targets, task_type=task)
    made = hf.get_peft_model(theirs, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    made.eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", ["names", "expression"])
def test_an_adapter_of_a_masked_language_model_opens_on_its_checkpoint(
    targets: str, tmp_path: Path
) -> None:
    base = written("bert", tmp_path / "base")
    theirs = AutoModelForMaskedLM.from_pretrained(base)
    named: Any = r"bert\.encoder\.layer\.\d+\..*\.(query|value)"
    if targets == "names":
        named = ["bert.encoder.layer.0.attention.self.query", "value"]
    adapter_of(theirs, named, tmp_path / "adapter", "FEATURE_EXTRACTION")
    with torch.no_grad():
        expected = theirs.bert(torch.from_numpy(IDS)).last_hidden_state.numpy()
    ours = PeftModel.from_pretrained(own(base), tmp_path / "adapter")
    np.testing.assert_allclose(logits(ours), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_of_a_bare_decoder_opens_on_its_language_model(
    family: str, tmp_path: Path
) -> None:
    base = written(family, tmp_path / "base")
    bare = AutoModel.from_pretrained(base)
    named = r"(h|layers)\.\d+\..*(c_attn|q_proj)"
    adapter_of(bare, named, tmp_path / "adapter", "FEATURE_EXTRACTION")
    with torch.no_grad():
        expected = bare(torch.from_numpy(IDS)).last_hidden_state.numpy()
    ours = PeftModel.from_pretrained(own(base), tmp_path / "adapter")
    found = ours.base_model.hidden_states(IDS).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    language_model = AutoModelForCausalLM.from_pretrained(base)
    assert np.abs(logits(ours) - peer_logits(language_model)).max() > 1e-3
