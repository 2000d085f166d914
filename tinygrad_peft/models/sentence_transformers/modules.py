"""Read the modules of a sentence-transformers folder, with all faults in one error."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tinygrad_peft.errors import CheckpointError, nearest, shortened, told
from tinygrad_peft.files import (
    is_plain_name,
    read_json_list,
    read_json_object,
    read_optional_object,
)
from tinygrad_peft.models.hf import encoder_folder
from tinygrad_peft.nn.config import Pooling

__all__ = [
    "DENSE",
    "MODULES",
    "NORMALIZE",
    "POOLING",
    "SENTENCE",
    "SETTINGS",
    "SentenceModules",
    "read_modules",
]

MODULES = "modules.json"
SENTENCE = "sentence_bert_config.json"  # of the Transformer, whatever its family
SETTINGS = "config_sentence_transformers.json"
POOLING, DENSE, NORMALIZE = "1_Pooling", "2_Dense", "2_Normalize"

_PACKAGE = "sentence_transformers."
_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# A switch for each, in the order of the joined vectors; one `pooling_mode` since version 5.
_SWITCHES: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Arguments for transformers that change how, and not what, is computed.
_HARMLESS = (
    *("attn_implementation", "cache_dir", "device_map", "dtype", "local_files_only"),
    *("low_cpu_mem_usage", "revision", "token", "torch_dtype", "trust_remote_code", "use_cache"),
)
_ARGUMENTS = (
    *("model_args", "model_kwargs", "config_args", "config_kwargs"),
    *("tokenizer_args", "processor_kwargs", "processing_kwargs"),
)


@dataclass(frozen=True, kw_only=True)
class SentenceModules:
    """The modules of a sentence-transformers folder, as far as they are computed.

    Attributes:
        transformer: the folder of the encoder.
        pooling: the pooling of its tokens.
        max_seq_length: texts are cut to so many tokens, special ones included.
        dense: the folder of the Dense that gives the logits, if there is one.
        names: the modules' classes, in order.
    """

    transformer: Path
    pooling: Pooling
    max_seq_length: int | None
    dense: Path | None
    names: tuple[str, ...]

    def facts(self) -> dict[str, object]:
        """Describe the modules for a report."""
        return {
            "sentence_transformers": list(self.names),
            "pooling": self.pooling,
            "max_seq_length": self.max_seq_length,
        }


class _Module(msgspec.Struct):
    """An entry of modules.json."""

    type: str
    path: str

    @property
    def kind(self) -> str:
        """The class's name; the whole reference if it is not of sentence-transformers."""
        return self.type.rpartition(".")[2] if self.type.startswith(_PACKAGE) else self.type


def read_modules(folder: Path) -> SentenceModules | None:
    """Read the modules of a folder; None if it is not one of sentence-transformers.

    A folder is one if it has modules.json, or config.json beside 1_Pooling. Reads no weights.

    A Dense is a classifier's if it is the last module, has no activation, and config.json names as
    many labels. Normalize as the last module passes: it scales an embedding, and a classification
    head takes its place.

    Raises CheckpointError that lists every module and setting that would change what is computed.
    """
    if (folder / MODULES).is_file():
        modules = [module for module in _listed(folder) if module.kind != "Dropout"]
    elif (folder / POOLING / "config.json").is_file() and (folder / "config.json").is_file():
        modules = [_Module(f"{_PACKAGE}Transformer", ""), _Module(f"{_PACKAGE}Pooling", POOLING)]
    else:
        return None
    problems = list(_misplaced(modules))
    if problems:
        raise _unsupported(folder, problems)
    first, second, *rest = modules
    sentence = read_optional_object(folder / first.path / SENTENCE)
    pooling = _pooling(read_json_object(folder / second.path / "config.json"))
    length = sentence.get("max_seq_length")
    if length is None:  # since version 5
        tokenizer = read_optional_object(folder / first.path / "tokenizer_config.json")
        length = tokenizer.get("model_max_length")
    dense = next((folder / each.path for each in rest if each.kind == "Dense"), None)
    problems += [f"{SENTENCE}: {problem}" for problem in _transformer_problems(sentence)]
    if pooling not in _POOLINGS:
        known = ", ".join(_POOLINGS)
        problems.append(
            f"{second.path}: pooling: expected one of {known}, got {shortened(pooling)}"
        )
    if dense is not None:
        problems += [f"{dense.name}: {problem}" for problem in _dense_problems(folder, dense)]
    if problems:
        raise _unsupported(folder, problems)
    return SentenceModules(
        transformer=folder / first.path,
        pooling=_POOLINGS[pooling],
        max_seq_length=length if type(length) is int and length >= 1 else None,
        dense=dense,
        names=tuple(module.kind for module in modules),
    )


def _listed(folder: Path) -> list[_Module]:
    path = folder / MODULES
    try:
        modules = msgspec.convert(read_json_list(path), list[_Module])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from error
    paths = [module.path for module in modules]
    outside = [repr(p) for p in paths if p and not is_plain_name(p)]
    if outside:
        raise CheckpointError(f"{path}: path: expected folders in this one, got:{told(outside)}")
    if len(set(paths)) < len(paths):
        raise CheckpointError(f"{path}: path: expected different folders, got {paths!r:.80}")
    return modules


def _misplaced(modules: Sequence[_Module]) -> Iterator[str]:
    """Describe modules that are unknown, or not in the order that is computed."""
    kinds = [module.kind for module in modules]
    unknown = [f"{kind}{nearest(kind, _KNOWN, 1)}" for kind in kinds if kind not in _KNOWN]
    if unknown:
        yield from (f"module {kind} is not computed" for kind in unknown)
    elif kinds not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
        ["Transformer", "Pooling", "Dense"],
    ):
        expected = "Transformer, Pooling, and at most a Dense or a Normalize"
        yield f"modules: expected {expected}, got {shortened(', '.join(kinds)) or 'none'}"


def _pooling(config: Mapping[str, object]) -> str:
    """Return the mode, or the modes whose vectors are joined."""
    given = config.get("pooling_mode")
    if isinstance(given, list):
        return "+".join(map(str, given))
    if given is not None:
        return str(given)
    modes = [mode for switch, mode in _SWITCHES.items() if config.get(switch)]
    return "+".join(modes) or "mean"


def _transformer_problems(sentence: Mapping[str, object]) -> Iterator[str]:
    """Describe settings of the Transformer that change what it computes."""
    for name, wanted in (
        ("transformer_task", "feature-extraction"),
        ("module_output_name", "token_embeddings"),
    ):
        if sentence.get(name, wanted) != wanted:
            yield f"{name}: expected {wanted}, got {shortened(str(sentence[name]))}"
    length = sentence.get("max_seq_length")
    if length is not None and not (type(length) is int and length >= 1):
        yield f"max_seq_length: expected at least 1, got {length!r:.80}"
    for name in _ARGUMENTS:
        given = sentence.get(name) or {}
        keys = [*given] if isinstance(given, dict) else [str(given)]
        other = [key for key in keys if key not in _HARMLESS]
        if other:
            yield f"{name}: not supported: {shortened(', '.join(other))}"


def _dense_problems(folder: Path, dense: Path) -> Iterator[str]:
    """Describe how a Dense differs from a classifier's logits."""
    config = read_json_object(dense / "config.json")
    activation = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation != "Identity":
        yield f"activation {shortened(activation)} is not computed, expected Identity"
    if config.get("use_residual"):
        yield "use_residual is not computed"
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            yield f"{name}: expected sentence_embedding, got {shortened(str(config[name]))}"
    config_file = encoder_folder(folder) / "config.json"
    if config_file.is_file():  # an adapter's folder has none
        names, size = read_json_object(config_file).get("id2label"), config.get("out_features")
        labels = len(names) if isinstance(names, dict) else 0
        if labels != size:
            yield (
                f"a classifier of {size} classes needs as many labels in id2label of config.json, "
                f"got {labels}"
            )
    settings = read_optional_object(folder / SETTINGS)
    prompts, default = settings.get("prompts"), settings.get("default_prompt_name")
    if default is not None and isinstance(prompts, dict) and prompts.get(str(default)):
        yield f"{SETTINGS}: default_prompt_name {shortened(str(default))} is not supported"


def _unsupported(folder: Path, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{folder} is a folder of sentence-transformers with what is not computed here:"
        f"{told(problems)}"
    )
