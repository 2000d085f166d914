"""A sound folder or file for each reader, to be broken."""

import base64
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.peft.small import BERT, small
from tests.peft.small import LLAMA as THREE_LAYERS
from tinygrad_peft.errors import CheckpointError
from tinygrad_peft.models import load_config, load_model, load_tokenizer, save_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model, inspect_path
from tinygrad_peft.train.checkpoints import newest_state
from tinygrad_peft.train.examples import read_examples, task_of_file
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ln_tuning import LNTuningConfig
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig
from tinygrad_peft_vera import VeraConfig

__all__ = ["SAMPLES", "Sample"]

LLAMA = replace(THREE_LAYERS, num_hidden_layers=1)


@dataclass(frozen=True)
class Sample:
    """Files that can be read, and how."""

    name: str
    folder: Path
    files: Sequence[str]  # those that are broken
    read: Callable[[Path], object]


def model(folder: Path) -> Sample:
    """A model in one file."""
    save_model(small(LLAMA), folder)
    return Sample("model", folder, ("config.json", "model.safetensors"), _read_model)


def shards(folder: Path) -> Sample:
    """A model in several files."""
    save_model(small(LLAMA), folder)
    name = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / name)
    places = dict.fromkeys(_keys(folder / name), name)
    index = "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return Sample("shards", folder, (index, index, index, name), _read_model)


def adapter(folder: Path) -> Sample:
    """One step, as PEFT writes it."""
    config = LoraConfig(r=2, rank_pattern={"v_proj": 3}, modules_to_save=["lm_head"])
    _save(folder, config)
    (folder / "recipe.json").unlink()
    return Sample(
        "adapter", folder, ("adapter_config.json", "adapter_model.safetensors"), _read_adapter
    )


def adapterhub(folder: Path) -> Sample:
    """A bottleneck adapter, as AdapterHub's library writes it."""
    _save(folder, BottleneckAdapterConfig(bottleneck_dim=4, reads="residual"), "AdapterHub")
    files = ("adapter_config.json", "adapter_config.json", "adapter.safetensors")
    return Sample("adapterhub", folder, files, _read_and_inspect)


def mlx(folder: Path) -> Sample:
    """LoRA, as mlx-lm writes it."""
    _save(folder, LoraConfig(r=2), "mlx-lm")
    files = ("adapter_config.json", "adapter_config.json", "adapters.safetensors")
    return Sample("mlx", folder, files, _read_and_inspect)


def recipe(folder: Path) -> Sample:
    """Several steps, and what the weights of one come out of."""
    prefix = PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=4)
    prompt = PromptTuningConfig(num_virtual_tokens=2)
    vera = VeraConfig(r=2, save_projection=False)
    _save(
        folder, [LoraConfig(r=2), BottleneckAdapterConfig(bottleneck_dim=4), prefix, prompt, vera]
    )
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file())
    return Sample("recipe", folder, (*files, "recipe.json", "recipe.json"), _read_adapter)


def inspected(folder: Path) -> Sample:
    """Write a model and several adapters for inspect."""
    save_model(small(LLAMA), folder)
    peft = get_peft_model(small(LLAMA), LoraConfig(r=2))
    peft.add_adapter("other", LoraConfig(r=3, target_modules=["up_proj"]))
    peft.add_adapter("vera", VeraConfig(r=3))
    peft.add_adapter("norms", LNTuningConfig())
    peft.save_pretrained(folder)
    for name in ("other", "vera", "norms"):  # as PEFT writes them
        (folder / name / "recipe.json").unlink()
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file())
    return Sample("inspected", folder, files, _inspect)


def tokenizer(folder: Path) -> Sample:
    """Byte-level pairs in Hugging Face's format."""
    from tests.cli.toys import byte_tokenizer, write_tokenizer

    folder.mkdir()
    write_tokenizer(folder, byte_tokenizer())
    return Sample("tokenizer", folder, ("tokenizer.json", "tokenizer_config.json"), _read_tokenizer)


def gguf(folder: Path) -> Sample:
    """A quantised model and its tokenizer in one file."""
    import gguf as package

    from tests.models.gguf.test_model import settings, tensors

    folder.mkdir()
    network = small(LLAMA)
    writer = package.GGUFWriter(folder / "m.gguf", "llama")
    for key, value in settings(network.config).items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
    rest = (f"x{place}" for place in range(network.config.vocab_size - 3))
    tokens = ["t", "1", "t1", *rest]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    for name, array in tensors(network).items():
        writer.add_tensor(name, array.astype(np.float16 if array.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Sample("gguf", folder, ("m.gguf",), _read_gguf)


def sentencepiece(folder: Path) -> Sample:
    """Pieces of words as SentencePiece has them: steps that rewrite a text, and expressions."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": 4, "content": "<x>", "special": True, **_PLAIN}],
        "truncation": {"max_length": 9, "strategy": "LongestFirst", "stride": 0, **_RIGHT},
        "padding": {"strategy": {"Fixed": 9}, "pad_to_multiple_of": None, **_RIGHT, **_PAD},
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKD"},
                {"type": "Precompiled", "precompiled_charsmap": _EMPTY_TABLE},
                {"type": "Prepend", "prepend": "▁"},
                space,
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\s+|\p{N}"}, **_ISOLATED},
                {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<x>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<x>": {"id": "<x>", "ids": [4], "tokens": ["<x>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{**space, "content": " "}, {"type": "Fuse"}]},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "vocab": [["<unk>", 0], ["▁film", -1.0], ["▁the", -2.0], ["1", -3.0], ["<x>", 0]],
            "byte_fallback": False,
        },
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return Sample("sentencepiece", folder, ("tokenizer.json",), _read_tokenizer)


def classified(folder: Path) -> Sample:
    """A classifier of whole words and its data, for the command `evaluate`."""
    from tests.cli.toys import CLASSIFIER, reviews, write_csv, write_model

    write_model(folder, replace(CLASSIFIER, num_hidden_layers=1))
    write_csv(folder / "data.csv", reviews(6))
    files = ("config.json", "model.safetensors", "tokenizer.json", "data.csv", "data.csv")
    return Sample("classified", folder, files, _evaluate("data.csv"))


def continued(folder: Path) -> Sample:
    """A language model with an adapter and data, for the commands `evaluate` and `inspect`."""
    from tests.cli.toys import definitions, write_jsonl, write_model

    write_model(folder, LLAMA)
    get_peft_model(load_model(folder), LoraConfig(r=2)).save_pretrained(folder / "adapter")
    write_jsonl(folder / "data.jsonl", definitions(4))
    adapter = [f"adapter/{name}" for name in ("adapter_config.json", "recipe.json")]
    files = ("config.json", "tokenizer.json", "tokenizer_config.json", *adapter, "data.jsonl")
    return Sample("continued", folder, files, _evaluate_adapter)


def tables(folder: Path) -> Sample:
    """Rows of each format and task."""
    from tests.cli.toys import definitions, reviews, write_csv, write_jsonl

    folder.mkdir()
    write_csv(folder / "a.csv", reviews(9))
    write_jsonl(folder / "b.jsonl", reviews(9))
    write_jsonl(folder / "c.jsonl", definitions(9))
    return Sample("tables", folder, ("a.csv", "b.jsonl", "c.jsonl"), _read_tables)


def broken_off(folder: Path) -> Sample:
    """An adapter, and a save of another one over it that was killed once it was decided."""
    from tinygrad_peft.files.journal import Journal, Stage

    _save(folder, LoraConfig(r=2))
    stage = Stage(folder / ".saving-0123456789abcdef")
    _save(stage.new, [LoraConfig(r=3), BottleneckAdapterConfig(bottleneck_dim=4)])
    journal = Journal.of(stage, ["adapter_config.json", "adapter_model.safetensors"])
    journal.write(stage)
    name = str(stage.journal.relative_to(folder))
    new = [str(stage.path.relative_to(folder) / "new" / file.path) for file in journal.files]
    old = ("adapter_config.json",) * 5
    return Sample("broken_off", folder, (name, name, *old, *new), _read_settled)


def sentences(folder: Path) -> Sample:
    """A classifier in a folder of sentence-transformers: an encoder, a pooling and a dense head."""
    from tests.models.sentence_transformers.test_folder import sentence_folder

    encoder = folder.parent / "encoder"
    save_model(small(replace(BERT, num_hidden_layers=1)), encoder)
    source = sentence_folder(encoder, folder.parent / "source")
    network = load_model(source)
    network.with_classifier(["no", "yes"])
    save_model(network, folder)
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file())
    return Sample("sentences", folder, files, _read_model)


def stopped(folder: Path) -> Sample:
    """A run that was killed, and its checkpoint."""
    from tests.train.test_resume import LORA, Killed, adapted_classifier, run

    with suppress(Killed):
        run(folder, adapted_classifier(LORA), broken_after=4)
    files = sorted(str(p.relative_to(folder)) for p in folder.glob("checkpoints/*/state.*"))
    return Sample("stopped", folder, files, newest_state)


SAMPLES: Mapping[str, Callable[[Path], Sample]] = {
    made.__name__: made
    for made in (
        *(model, shards, adapter, adapterhub, mlx, recipe, tokenizer, sentencepiece, gguf),
        *(inspected, classified, continued, tables, broken_off, sentences, stopped),
    )
}


# ---------- reading ----------


# The length of a trie without entries, and the trie.
_EMPTY_TABLE = base64.b64encode((1024).to_bytes(4, "little") + bytes(1024)).decode()
_PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
_RIGHT = {"direction": "Right"}
_PAD = {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
_ISOLATED = {"behavior": "Isolated", "invert": False}


def _read_model(folder: Path) -> None:
    load_config(folder)
    load_model(folder)


def _read_adapter(folder: Path) -> None:
    PeftModel.from_pretrained(_base(), folder, host=_host()).unload()


def _read_settled(folder: Path) -> None:
    """Read a copy: reading finishes a save that was broken off."""
    with TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / "copy")
        _read_and_inspect(copy)


def _read_and_inspect(folder: Path) -> None:
    inspect_path(folder, _host())
    _read_adapter(folder)


def _read_tokenizer(folder: Path) -> None:
    read = load_tokenizer(folder)
    read.decode(read.encode("the film was good, 12 😀", max_length=16))


def _read_gguf(folder: Path) -> None:
    load_model(folder / "m.gguf")
    load_tokenizer(folder / "m.gguf").encode("t1")


def _inspect(folder: Path) -> None:
    report = inspect_path(folder, _host())
    if not report.sound:
        raise CheckpointError("inspect tells of problems")


def _evaluate(data: str, *more: str) -> Callable[[Path], None]:
    def evaluate(folder: Path) -> None:
        arguments = [
            str(folder / part) if "." in part or part == "adapter" else part for part in more
        ]
        _run("evaluate", "--model", str(folder), "--data", str(folder / data), *arguments)

    return evaluate


def _evaluate_adapter(folder: Path) -> None:
    _run("inspect", str(folder), "--json")
    _evaluate("data.jsonl", "--adapter", "adapter", "--json")(folder)


def _run(*arguments: str) -> None:
    """Run a command; raise if its errors are long or its own, and CheckpointError if it refuses."""
    from tinygrad_peft.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run(arguments)
    told = err.getvalue()
    assert len(told) < 20_000, f"{len(told)} characters: {told[:300]}"
    assert "internal error" not in told, told
    assert "out of memory" not in told, told
    if status:
        raise CheckpointError(told)


def _read_tables(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_examples(path, task_of_file(path))


@cache
def _base() -> Transformer:
    """One for all files: none changes it."""
    return small(LLAMA)


@cache
def _host() -> Host:
    return Host.installed()


def _save(
    folder: Path, steps: PeftConfig | Sequence[PeftConfig], layout: str = "Hugging Face PEFT"
) -> None:
    get_peft_model(small(LLAMA), steps).save_pretrained(folder, layout=layout)


def _keys(file: Path) -> list[str]:
    from tinygrad_peft.models.hf import read_header

    return list(read_header(file))
