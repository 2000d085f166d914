"""Folders that sentence-transformers opens: the same logits, and a warning from all others."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the peers extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the peers extra")

import peft as reference_peft  # noqa: E402
import tokenizers  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

from tinygrad_peft.arrays import Array  # noqa: E402
from tinygrad_peft.models import load_model, load_tokenizer, save_model  # noqa: E402
from tinygrad_peft.models.fetch import find_fetched  # noqa: E402
from tinygrad_peft.nn import Init, Transformer  # noqa: E402
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model  # noqa: E402
from tinygrad_peft.tensor import no_grad  # noqa: E402
from tinygrad_peft.testing import SMALL_MODELS  # noqa: E402
from tinygrad_peft.train import TrainConfig, train  # noqa: E402
from tinygrad_peft.train.encoding import encode_classification  # noqa: E402
from tinygrad_peft.train.examples import label_names, read_examples  # noqa: E402
from tinygrad_peft.train.heads import cut_at, with_saved_head  # noqa: E402
from tinygrad_peft_adapter import BottleneckAdapterConfig  # noqa: E402
from tinygrad_peft_ia3 import IA3Config  # noqa: E402
from tinygrad_peft_lora import LoraConfig  # noqa: E402
from tinygrad_peft_prompt import PromptTuningConfig  # noqa: E402
from tinygrad_peft_vera import VeraConfig  # noqa: E402

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrst"]
TEXTS = ["a b c", "d", "e f g h i j k l m n o p q", "r s T A"]
LENGTH = 8
LORA = LoraConfig(r=2, target_modules=["query", "value"])


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_base(folder: Path, mode: str, *, lower_case: bool = False) -> Path:
    """A small BERT with a tokenizer, as sentence-transformers wrote it before version 5."""
    config = SMALL_MODELS["bert"]
    model = Transformer(type(config)(**{**vars(config), "head": "none", "num_labels": 0}), Init(3))
    save_model(model, folder)
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[1])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(WORDS[:4])
    backend.save(str(folder / "tokenizer.json"))
    kinds = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
    special = {f"{kind}_token": word for kind, word in kinds.items()}
    write_json(
        folder / "tokenizer_config.json", special | {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": False}
        | {f"pooling_mode_{mode}": True},
    )
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": LENGTH, "do_lower_case": lower_case},
    )
    return folder


def trained(base: Path, recipe: PeftConfig) -> PeftModel:
    """A classifier with random weights in its adapter and its head."""
    model = load_model(base)
    model.with_classifier(["no", "maybe", "yes"], seed=1)
    peft = get_peft_model(model, with_saved_head([recipe], model), host=Host.installed())
    rng = np.random.default_rng(4)
    for parameter in peft.record.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + rng.normal(0, 0.2, parameter.shape).astype("f4")
    return peft


def our_logits(model: Transformer | PeftModel, folder: Path, texts: Sequence[str]) -> Array:
    tokenizer, length = load_tokenizer(folder), model.config.max_seq_length
    model.eval()
    with no_grad():
        rows = [np.array([tokenizer.encode(text, max_length=length)]) for text in texts]
        return np.concatenate([model(row).data for row in rows])


def their_logits(folder: Path, texts: Sequence[str]) -> Array:
    opened = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return np.asarray(opened.encode(list(texts), batch_size=32))


def equal(ours: Array, theirs: Array) -> None:
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lower_case", [False, True])
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_a_merged_model_and_its_adapter_have_our_logits(
    tmp_path: Path, mode: str, lower_case: bool
) -> None:
    base = write_base(tmp_path / "base", mode, lower_case=lower_case)
    peft = trained(base, LORA)
    expected = our_logits(peft, base, TEXTS)
    peft.save_pretrained(tmp_path / "adapter")
    load_tokenizer(base).save(tmp_path / "adapter")
    equal(expected, their_logits(tmp_path / "adapter", TEXTS))
    save_model(peft.merge_and_unload(), tmp_path / "merged")
    load_tokenizer(base).save(tmp_path / "merged")
    equal(expected, their_logits(tmp_path / "merged", TEXTS))
    equal(our_logits(load_model(tmp_path / "merged"), tmp_path / "merged", TEXTS), expected)


@pytest.mark.parametrize("recipe", [LORA, IA3Config(), LoraConfig(r=2, use_rslora=True)])
def test_adapters_of_other_methods_have_our_logits(tmp_path: Path, recipe: PeftConfig) -> None:
    base = write_base(tmp_path / "base", "mean_tokens")
    peft = trained(base, recipe)
    peft.save_pretrained(tmp_path / "adapter")
    load_tokenizer(base).save(tmp_path / "adapter")
    equal(our_logits(peft, base, TEXTS), their_logits(tmp_path / "adapter", TEXTS))


@pytest.mark.parametrize(
    "recipe", [VeraConfig(), PromptTuningConfig(num_virtual_tokens=2), BottleneckAdapterConfig()]
)
def test_methods_that_transformers_cannot_inject_do_not_open(
    tmp_path: Path, recipe: PeftConfig
) -> None:
    base = write_base(tmp_path / "base", "mean_tokens")
    trained(base, recipe).save_pretrained(tmp_path / "adapter")
    load_tokenizer(base).save(tmp_path / "adapter")
    with pytest.raises((ValueError, KeyError, TypeError)):
        their_logits(tmp_path / "adapter", TEXTS)


def test_other_programs_say_that_the_head_is_new_or_refuse(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "mean_tokens")
    peft = trained(base, LORA)
    peft.save_pretrained(tmp_path / "adapter")
    save_model(peft.merge_and_unload(), tmp_path / "merged")
    opened, told = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert {"classifier.weight", "classifier.bias"} <= set(told["missing_keys"])
    assert opened.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    with pytest.raises(ValueError, match="PeftModelForFeatureExtraction"):
        reference_peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        reference_peft.PeftModel.from_pretrained(opened, tmp_path / "adapter")


def test_a_folder_that_sentence_transformers_wrote_again_is_read(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "mean_tokens")
    model = trained(base, LORA).merge_and_unload()
    save_model(model, tmp_path / "ours")
    load_tokenizer(base).save(tmp_path / "ours")
    opened = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    opened.save(str(tmp_path / "theirs"))
    again = load_model(tmp_path / "theirs")
    assert again.config.label_names == ("no", "maybe", "yes")
    equal(our_logits(model, base, TEXTS), our_logits(again, tmp_path / "theirs", TEXTS))


def test_minilm_predicts_the_same_600_reviews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_at, reviews = find_fetched("minilm-l6"), find_fetched("movie-reviews")
    if model_at is None or reviews is None:
        pytest.skip("minilm-l6 or movie-reviews is not in the cache (tinygrad-peft fetch)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minilm-l6").symlink_to(model_at.path)  # the base's name, for sentence-transformers
    train_rows, rows = (
        read_examples(reviews.path / f"{part}.jsonl", "sequence-classification")[:count]
        for part, count in (("train", 300), ("test", 600))
    )
    labels, tokenizer = label_names(train_rows), load_tokenizer(model_at.path)
    model = load_model(model_at.path)
    model.with_classifier(labels)
    cut_at(model, 64)
    assert (model.config.pooling, model.config.sentence_transformers) == ("mean", True)
    peft = get_peft_model(model, with_saved_head([LoraConfig(r=8)], model), host=Host.installed())
    config = TrainConfig(epochs=2, batch_size=16, max_length=64)
    train(peft, encode_classification(train_rows, labels, tokenizer, 64), None, config)
    peft.save_pretrained("adapter")
    tokenizer.save(Path("adapter"))
    texts = [row.text for row in rows]
    ours = our_logits(peft, model_at.path, texts)
    save_model(peft.merge_and_unload(), "merged")
    tokenizer.save(Path("merged"))
    wanted = np.array([labels.index(str(row.label)) for row in rows])
    print(f"accuracy here {np.mean(ours.argmax(axis=1) == wanted):.4f}", end="")
    for folder in ("merged", "adapter"):
        theirs = their_logits(Path(folder), texts)
        same = int(np.sum(theirs.argmax(axis=1) == ours.argmax(axis=1)))
        accuracy = np.mean(theirs.argmax(axis=1) == wanted)
        apart = np.abs(theirs - ours).max()
        print(f"; {folder}: {same} of {len(rows)}, accuracy {accuracy:.4f}, {apart:.1e}", end="")
        assert same == len(rows) == 600
        equal(ours, theirs)
