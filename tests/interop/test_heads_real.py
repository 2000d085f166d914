"""A real classifier with transformers' own head: one prediction for each review, everywhere."""

import json
from itertools import islice
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tinygrad_peft.cli.adapted_models import load_adapted
from tinygrad_peft.cli.app import run
from tinygrad_peft.models import load_model, load_tokenizer
from tinygrad_peft.models.fetch import find_fetched
from tinygrad_peft.train.encoding import encode_classification
from tinygrad_peft.train.evaluation import evaluate
from tinygrad_peft.train.examples import ClassificationExample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TRAIN, TEST, LENGTH = 1_200, 600, 64
LABELS = ("negative", "positive")


def lines(source: Path, to: Path, count: int) -> Path:
    with source.open(encoding="utf-8") as file:
        to.write_text("".join(islice(file, count)), encoding="utf-8")
    return to


def peer_predictions(model: Any, folder: Path, texts: list[str]) -> np.ndarray:  # noqa: ANN401
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    settings = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    with torch.no_grad():
        for start in range(0, len(texts), 50):
            inputs = tokenizer(texts[start : start + 50], **settings)
            found.append(model.eval()(**inputs).logits.argmax(dim=1).numpy())
    return np.concatenate(found)


def test_600_of_600_predictions_are_equal_in_transformers_and_peft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [find_fetched(name) for name in ("minilm-l6", "movie-reviews")]
    if None in found:
        pytest.skip("minilm-l6 or movie-reviews is not in the cache (tinygrad-peft fetch)")
    minilm, reviews = (each.path for each in found if each is not None)
    unneeded = ignore_patterns("modules.json", "1_Pooling", "*sentence*")  # a plain checkpoint
    base = copytree(minilm, tmp_path / "minilm", ignore=unneeded)
    train = lines(reviews / "train.jsonl", tmp_path / "train.jsonl", TRAIN)
    test = lines(reviews / "test.jsonl", tmp_path / "test.jsonl", TEST)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    finetune = [
        *("finetune", "--model", str(base), "--train", str(train), "--eval", str(test)),
        *("--task", "sequence-classification", "--method", "lora:r=8", "--epochs", "2"),
        *("--max-length", str(LENGTH), "--out", str(adapter), "--quiet"),
    ]
    assert run(finetune) == 0
    arguments = ["--model", str(base), "--adapter", str(adapter), "--out", str(merged)]
    assert run(["merge", *arguments]) == 0
    capsys.readouterr()

    rows = [json.loads(line) for line in test.read_text("utf-8").splitlines()]
    examples = [ClassificationExample(row["text"], row["label"]) for row in rows]
    data = encode_classification(examples, LABELS, load_tokenizer(base), LENGTH)
    ours = [
        evaluate(model, data, batch_size=50).predictions
        for model in (load_adapted(base, adapter), load_model(merged))
    ]
    texts = [row["text"] for row in rows]
    by_transformers = AutoModelForSequenceClassification.from_pretrained(merged)
    assert type(by_transformers).__name__ == "BertForSequenceClassification"
    bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    theirs = [
        peer_predictions(by_transformers, merged, texts),
        peer_predictions(hf.PeftModel.from_pretrained(bare, adapter), base, texts),
    ]
    wanted = np.array([LABELS.index(row["label"]) for row in rows])
    accuracies = [float((np.asarray(each) == wanted).mean()) for each in (*ours, *theirs)]
    with capsys.disabled():
        print(f"\naccuracy here, merged, in transformers, in PEFT: {accuracies}")
    for each in (ours[1], *theirs):
        assert int((np.asarray(ours[0]) == each).sum()) == TEST
    assert accuracies[0] > 0.6
