"""The config of a step, read from the settings in its folder."""

from collections.abc import Mapping
from pathlib import Path

from tinygrad_peft.errors import CheckpointError, PluginError, nearest
from tinygrad_peft.files import read_json_object
from tinygrad_peft.nn import TransformerConfig
from tinygrad_peft.peft.configs.base import PeftConfig
from tinygrad_peft.peft.configs.stored import config_in_file
from tinygrad_peft.peft.hook_types import ForeignStep
from tinygrad_peft.peft.methods import broken_plugins, methods_of
from tinygrad_peft.peft.storage.folder import AdapterFolder, StepFolder
from tinygrad_peft.peft.storage.foreign import read_foreign
from tinygrad_peft.peft.storage.layout import CONFIG, ORIGIN, RECIPE
from tinygrad_peft.peft.storage.target_names import as_given

__all__ = ["step_config"]

_HEADS = ("classifier", "score")  # PEFT's
_PER_TOKEN = {"TOKEN_CLS": _HEADS, "QUESTION_ANS": ("qa_outputs",)}


def step_config(
    adapter: AdapterFolder, step: StepFolder, base: TransformerConfig | None, notes: list[str]
) -> tuple[PeftConfig, ForeignStep | None]:
    """Return a step's config; and the foreign step, if another library wrote it.

    `notes` gets the settings that are passed over though somebody may have meant them.

    Raises:
        CheckpointError: settings without a method, or the errors of `read_foreign`.
        PluginError: no plugin provides the method.
        ConfigError: settings that the method does not have.
    """
    if step.is_foreign:
        foreign = read_foreign(step, adapter.host, base)
        config = foreign.config
    else:
        foreign, config = None, _own_config(adapter, step, notes)
    return as_given(config, adapter.note("targets").get(step.name)), foreign


def _own_config(adapter: AdapterFolder, step: StepFolder, notes: list[str]) -> PeftConfig:
    name, values = (CONFIG, step.settings) if step.origin is None else (ORIGIN, step.origin)
    path = step.path / name
    assert values is not None
    match values.get("peft_type"):
        case str(given):
            method, methods = given.lower(), methods_of(adapter.host)
        case None:
            raise CheckpointError(f"{path}: peft_type: missing, and it names the method")
        case other:
            raise CheckpointError(f"{path}: peft_type: expected a method's name, got {other!r:.80}")
    if method not in methods:
        hint = _to_install(adapter, method) or nearest(method, methods)
        there = ", ".join(methods) or "none"
        raise PluginError(
            f"{path}: no installed plugin provides the method {method!r}{hint} "
            f"(there are: {there}){broken_plugins(adapter.host)}"
        )
    kind = methods[method]
    _refuse_heads_per_token(path, values, step)
    settings = _without_absent_heads(values, step)
    if not adapter.recipe:
        settings = _without_tie(settings, step)
    return config_in_file(kind, settings, f"{path}: ", notes)


def _to_install(adapter: AdapterFolder, method: str) -> str:
    """Name the distribution for a method, as noted in recipe.json here or one folder above."""
    plugins: object = adapter.note("plugins")
    if not adapter.recipe and (above := adapter.path.parent / RECIPE).is_file():
        plugins = read_json_object(Path(above)).get("plugins")
    if isinstance(plugins, Mapping) and isinstance(plugins.get(method), str):
        return f"; the distribution {plugins[method]!r} does: install it"
    return ""


def _refuse_heads_per_token(path: Path, values: Mapping[str, object], step: StepFolder) -> None:
    """Raise CheckpointError for a head on each token: its shapes are a text classifier's too."""
    task = values.get("task_type")
    heads = _PER_TOKEN.get(task, ()) if isinstance(task, str) else ()
    if any(f".{head}." in key for head in heads for key in step.tensors or ()):
        raise CheckpointError(
            f"{path}: task_type: {task} has a head on each token, which is not supported: expected "
            "SEQ_CLS, CAUSAL_LM or FEATURE_EXTRACTION"
        )


def _without_tie(values: Mapping[str, object], step: StepFolder) -> Mapping[str, object]:
    """Return the settings without `ensure_weight_tying` where the file has no output layer.

    (PEFT writes it for GPT-2 too, whose tie it does not keep.)
    """
    has_head = any(".lm_head." in key for key in step.tensors or ())
    return values if has_head else {k: v for k, v in values.items() if k != "ensure_weight_tying"}


def _without_absent_heads(values: Mapping[str, object], step: StepFolder) -> Mapping[str, object]:
    """Return the settings without the heads that the file has no tensors for.

    (PEFT adds both "classifier" and "score" to `modules_to_save`, whichever the model has, and for
    some methods twice.)
    """
    names = values.get("modules_to_save")
    if values.get("task_type") not in ("SEQ_CLS", *_PER_TOKEN):
        return values
    if not isinstance(names, list) or not names:
        return values
    stored = step.weights()
    there = [h for h in _HEADS if h in names and any(f".{h}." in key for key in stored)]
    own = [name for name in names if name not in _HEADS]
    return {**values, "modules_to_save": [*own, *there]}
