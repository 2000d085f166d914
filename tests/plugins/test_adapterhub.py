"""Bottleneck adapters written by AdapterHub, its outputs for them, and files written for it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.peft.small import FAMILIES, GPT2, LLAMA, foreign_parameters, logits, shake, small
from tests.plugins.foreign_folders import (
    CONFIG,
    GOLDEN,
    adapt,
    inspect,
    read,
    refused,
    settings,
)
from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import load_model
from tinygrad_peft.nn import Transformer
from tinygrad_peft.peft import PeftConfig, PeftModel
from tinygrad_peft.tensor import no_grad
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_lora import LoraConfig

FOLDERS = sorted(GOLDEN.glob("adapterhub-*"))
WEIGHTS = "adapter.safetensors"
SEQ = BottleneckAdapterConfig(bottleneck_dim=4, reads="residual")
PAR = replace(SEQ, placement="parallel")


@pytest.fixture(params=FOLDERS, ids=lambda folder: str(folder.name))
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def base(folder: Path) -> Transformer:
    return load_model(GOLDEN / str(settings(folder)["model_name"]))


def assert_outputs(model: PeftModel, folder: Path) -> None:
    with np.load(folder / "expected.npz") as wanted, no_grad():
        mask = wanted["attention_mask"]
        apart = np.abs(model(wanted["input_ids"], mask).data - wanted["logits"])
    assert (apart if apart.ndim == 2 else apart[mask != 0]).max() < 1e-5


def saved(folder: Path, config: BottleneckAdapterConfig = SEQ, family: str = "llama") -> PeftModel:
    peft = adapt(small(FAMILIES[family]), config)
    shake(peft)
    peft.save_pretrained(folder, layout="AdapterHub")
    return peft


def edit(folder: Path, **values: object) -> None:
    """Change settings in `config`; None removes a key."""
    whole = settings(folder)
    config = {**whole["config"], **values}
    whole["config"] = {key: value for key, value in config.items() if value is not None}
    (folder / CONFIG).write_text(json.dumps(whole))


# ---------- what its library wrote ----------


def test_there_are_three_kinds_of_every_family() -> None:
    kinds = {tuple(folder.name.split("-")[1:]) for folder in FOLDERS}
    three = {(f, k) for f in ("gpt2", "llama", "bert") for k in ("seq", "double", "par")}
    assert kinds >= three


def test_outputs_match_adapterhub(folder: Path) -> None:
    peft = read(base(folder), folder)
    assert not peft.trainable_parameters()
    assert_outputs(peft, folder)


def test_gradients_match_adapterhub(folder: Path) -> None:
    peft = read(base(folder), folder, is_trainable=True)
    with np.load(folder / "expected.npz") as wanted:
        output = peft(wanted["input_ids"], wanted["attention_mask"])
        output.backward(np.cos(output.data))
        expected = wanted["gradients"]
    places = foreign_parameters(peft, folder)
    gradients = [p.grad for _, p in sorted(places.items(), key=lambda item: item[0].name)]
    found = np.concatenate([g.ravel() for g in gradients if g is not None])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_folder_that_was_read_is_written_again(folder: Path, tmp_path: Path) -> None:
    peft = read(base(folder), folder, adapter_name="task")
    peft.save_pretrained(tmp_path, adapters=["task"], layout="AdapterHub")
    written, before = load_file(tmp_path / "task" / WEIGHTS), load_file(folder / WEIGHTS)
    assert written.keys() == before.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(written[name], array)
    told, told_before = settings(tmp_path / "task"), settings(folder)
    assert Path(told.pop("model_name")).name == told_before.pop("model_name")
    if "more" not in folder.name:
        assert told["config"].pop("init_weights") in ("mam_adapter", "houlsby")
        del told_before["config"]["init_weights"]
        assert told == told_before
    assert_outputs(read(base(folder), tmp_path / "task"), folder)


def test_the_peft_layout_holds_the_same_adapter(folder: Path, tmp_path: Path) -> None:
    read(base(folder), folder).save_pretrained(tmp_path)
    assert_outputs(read(base(folder), tmp_path), folder)


def test_settings_are_converted() -> None:
    peft = read(load_model(GOLDEN / "bert"), GOLDEN / "adapterhub-bert-more")
    assert peft.recipe == (
        BottleneckAdapterConfig(
            placement="houlsby",
            reads="residual",
            reduction_factor=5.0,
            activation="gelu_tanh",
            dropout=0.1,
            drops="output",
            scaling=0.5,
            init_weights="near_identity",
            layers_to_transform=[1],
        ),
    )


@pytest.mark.filterwarnings("ignore::tinygrad_peft.errors.BaseModelWarning")
def test_an_encoders_adapter_goes_into_a_classifier_and_the_other_way_round() -> None:
    bare, headed = GOLDEN / "adapterhub-bert-seq", GOLDEN / "adapterhub-bert-classifier-seq"
    for folder, other in ((bare, headed), (headed, bare)):
        own, elsewhere = (read(base(into), folder).record.parameters() for into in (folder, other))
        for one, same in zip(own, elsewhere, strict=True):
            np.testing.assert_array_equal(one.data, same.data)


def test_inspect_reports_the_adapter_with_and_without_its_base(folder: Path) -> None:
    alone = inspect(folder)
    assert (alone.sound, alone.facts["format"], alone.facts["method"]) == (
        True,
        "AdapterHub",
        "adapter",
    )
    held = inspect(folder, base=base(folder).config)
    assert held.sound
    assert held.facts["modules"] in (1, 2, 4)


# ---------- what is written ----------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "config",
    [
        SEQ,
        PAR,
        BottleneckAdapterConfig(placement="houlsby", activation="silu", layers_to_transform=1),
        replace(SEQ, bottleneck_dim=None, reduction_factor=3, activation="gelu", scaling=0.1),
        replace(SEQ, dropout=0.2, drops="output", activation="tanh", bottleneck_dim=23),
    ],
    ids=["seq", "par", "double", "reduced", "wide"],
)
def test_a_written_folder_is_read_back_bit_for_bit(
    config: BottleneckAdapterConfig, family: str, tmp_path: Path
) -> None:
    peft = saved(tmp_path, config, family)
    again = read(small(FAMILIES[family]), tmp_path)
    np.testing.assert_array_equal(logits(again), logits(peft))
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, CONFIG]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again.save_pretrained(tmp_path, layout="AdapterHub")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("width", [1, 5, 7, 11, 13, 17, 18, 29, 39])
def test_every_inner_width_has_a_factor(width: int, tmp_path: Path) -> None:
    model = small(replace(GPT2, hidden_size=18, num_attention_heads=2))
    adapt(model, replace(SEQ, bottleneck_dim=width)).save_pretrained(tmp_path, layout="AdapterHub")
    factor = settings(tmp_path)["config"]["reduction_factor"]
    assert max(1, int(18 // factor)) == width


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (replace(SEQ, bias=False), "bias=False: AdapterHub's adapters have biases"),
        (replace(SEQ, layer_norm=True), "layer_norm: AdapterHub cannot write it"),
        (replace(SEQ, dropout=0.1), 'dropout needs drops="output"'),
        (replace(SEQ, modules_to_save=["lm_head"]), "modules_to_save: AdapterHub trains no"),
        (replace(PAR, reads="sublayer"), 'placement="parallel" needs reads="residual" in a model'),
        (LoraConfig(), "no installed plugin writes lora in it"),
    ],
)
def test_unsupported_settings_are_refused_and_nothing_is_written(
    config: PeftConfig, reason: str, tmp_path: Path
) -> None:
    peft = adapt(small(), config)
    with pytest.raises(ConfigError) as caught:
        peft.save_pretrained(tmp_path / "new", layout="AdapterHub")
    assert str(caught.value).startswith("AdapterHub's layout cannot hold 'default':\n  - ")
    assert reason in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_one_error_lists_every_unsupported_setting(tmp_path: Path) -> None:
    peft = adapt(small(), [replace(SEQ, bias=False, layer_norm=True), LoraConfig()])
    with pytest.raises(ConfigError) as caught:
        peft.save_pretrained(tmp_path, layout="AdapterHub")
    _, *reasons = str(caught.value).splitlines()
    assert [reason[4:20] for reason in reasons] == [
        "steps: expected ",
        "step 0: bias=Fal",
        "step 0: layer_no",
        "step 1: no insta",
    ]


def test_a_model_of_another_family_is_refused(tmp_path: Path) -> None:
    peft = adapt(small(replace(LLAMA, model_type="")), SEQ)
    with pytest.raises(ConfigError, match="expected one of gpt2, llama, bert, got a model without"):
        peft.save_pretrained(tmp_path, layout="AdapterHub")


# ---------- strictness ----------


UNEQUALLED: Mapping[str, tuple[dict[str, object], str]] = {
    "unknown": (
        {"ln_befor": True},
        "config has the unknown ln_befor = True; did you mean 'ln_before'",
    ),
    "missing": ({"mh_adapter": None}, "missing required field `mh_adapter`"),
    "kind": ({"dropout": "x"}, "config: Expected `float`, got `str` - at `$.dropout`"),
    "no output": (
        {"output_adapter": False},
        "output_adapter=False: adapters after attention alone are not supported",
    ),
    "beside": ({"is_parallel": True, "mh_adapter": True}, "beside attention are not supported"),
    "no sum": ({"original_ln_after": False}, "outputs without the base's own sum are"),
    "residual": (
        {"residual_before_ln": False},
        "residual_before_ln=False: only true is supported",
    ),
    "post_add": (
        {"residual_before_ln": "post_add", "original_ln_before": False},
        "residual_before_ln='post_add'",
    ),
    "ln_before": ({"ln_before": True}, "ln_before: AdapterHub cannot write it"),
    "ln_after": ({"ln_after": True}, "ln_after: norms behind adapters are not supported"),
    "scaling": ({"scaling": "learned"}, "scaling='learned': learnt factors are not"),
    "gates": ({"use_gating": True}, "use_gating: gates are not supported"),
    "invertible": (
        {"inv_adapter": "nice"},
        "inv_adapter='nice': invertible adapters are not supported",
    ),
    "cross": ({"cross_adapter": True}, "cross_adapter: no model has cross-attention"),
    "phm": ({"phm_layer": True}, "phm_layer: compacters are not supported"),
    "depth": ({"stochastic_depth": 0.1}, "stochastic_depth=0.1: dropping layers is not"),
    "start": ({"init_weights": "brt"}, "expected one of mam_adapter, houlsby, bert, got 'brt'"),
    "activation": ({"non_linearity": "reul"}, "non_linearity: expected one of relu, gelu, "),
    "widths": (
        {"reduction_factor": {"0": 2, "default": 4}},
        "reduction_factor: expected one width for all layers, got [2.0, 4.0]",
    ),
    "some widths": (
        {"reduction_factor": {"0": 2}},
        "reduction_factor: no factor for layers 1, 2",
    ),
    "no width": (
        {"reduction_factor": -1},
        "reduction_factor=-1.0 must leave a width of the hidden size 16",
    ),
    "all widths": ({"reduction_factor": 1e-320}, "must leave a width of the hidden"),
}


@pytest.mark.parametrize("case", UNEQUALLED)
def test_an_unsupported_setting_in_a_file_is_refused(case: str, tmp_path: Path) -> None:
    saved(tmp_path)
    values, reason = UNEQUALLED[case]
    edit(tmp_path, **values)
    refused(tmp_path, f"{tmp_path / CONFIG} (of AdapterHub): ", reason)


def test_one_error_lists_every_unsupported_setting_in_a_file(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, ln_after=True, use_gating=True, non_linearity="elu")
    assert refused(tmp_path).count("\n  - ") == 3


def test_settings_of_unused_features_are_ignored(tmp_path: Path) -> None:
    peft = saved(tmp_path)
    edit(tmp_path, later={}, another=False, phm_dim=7, init_weights_seed=3)
    again = read(small(), tmp_path)
    np.testing.assert_array_equal(logits(again), logits(peft))


def test_files_without_a_version_have_another_gelu(tmp_path: Path) -> None:
    saved(tmp_path)
    for old, activation in (("gelu", "gelu_tanh"), ("gelu_orig", "gelu"), ("relu", "relu")):
        edit(tmp_path, non_linearity=old)
        values = settings(tmp_path)
        values.pop("version", None)
        (tmp_path / CONFIG).write_text(json.dumps(values))
        (config,) = read(small(), tmp_path).recipe
        assert isinstance(config, BottleneckAdapterConfig)
        assert config.activation == activation


def test_the_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    wide = replace(LLAMA, hidden_size=32)
    refused(tmp_path, "hidden_size: the adapter is for 16, and the base has 32", model=small(wide))
    refused(
        tmp_path,
        "model_type: the adapter is for 'llama', and the base has 'gpt2'",
        model=small(GPT2),
    )


def test_an_adapter_without_a_name_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    values = settings(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**values, "name": None}))
    refused(tmp_path, "name: expected the adapter's name, got None")


def rename(tensors: dict[str, Any], name: str) -> None:
    tensors[name.replace("adapter_up", "adapter_pu")] = tensors.pop(name)


def reshape(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].T.copy()


def retype(tensors: dict[str, Any], name: str) -> None:
    tensors[name] = tensors[name].astype(np.int64)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (rename, ["missing: {} (16, 4); did you mean", "unexpected: "]),
        (reshape, ["wrong shape: {} is (4, 16), expected (16, 4)"]),
        (retype, ["wrong dtype: {} is I64"]),
    ],
)
def test_mismatched_tensors_are_reported_by_adapterhubs_names(
    change: Callable[[dict[str, Any], str], None], parts: list[str], tmp_path: Path
) -> None:
    saved(tmp_path)
    tensors: dict[str, Any] = load_file(tmp_path / WEIGHTS)
    name = "model.layers.1.output_adapters.adapters.default.adapter_up.weight"
    change(tensors, name)
    save_file(tensors, tmp_path / WEIGHTS)
    refused(tmp_path, *(part.format(name) for part in parts))
    assert any(
        part.format(name) in " ".join(inspect(tmp_path, base=LLAMA).problems) for part in parts
    )


UP = "model.layers.1.output_adapters.adapters.{}.adapter_up.weight"


@pytest.mark.parametrize(
    ("values", "config", "told"),
    [
        ({"name": "other"}, {}, f"missing: {UP.format('other')} (16, 4); did you mean"),
        ({}, {"reduction_factor": 2}, f"wrong shape: {UP.format('default')} is (16, 4), expected"),
        ({}, {"leave_out": [1]}, f"unexpected: {UP.format('default')} (16, 4)"),
        ({}, {"mh_adapter": True}, "missing: model.layers.1.attention_adapters.adapters.default."),
        ({"hidden_size": 32}, {}, f"wrong shape: {UP.format('default')} is (16, 4), expected"),
    ],
)
def test_contradictions_to_the_settings_are_reported_without_the_base(
    values: dict[str, Any], config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    saved(tmp_path)
    edit(tmp_path, **config)
    (tmp_path / CONFIG).write_text(json.dumps({**settings(tmp_path), **values}))
    report = inspect(tmp_path)
    assert any(problem.startswith(told) for problem in report.problems), report.problems
    assert report.facts["method"] == "adapter"
    assert not inspect(tmp_path, base=LLAMA).sound


def test_integer_tensors_are_reported_without_the_base(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors: dict[str, Any] = load_file(tmp_path / WEIGHTS)
    retype(tensors, UP.format("default"))
    save_file(tensors, tmp_path / WEIGHTS)
    assert inspect(tmp_path).problems == [
        f"wrong dtype: {UP.format('default')} is I64, expected one of F64, F32, F16, BF16"
    ]


@pytest.mark.parametrize("size", [None, 16.0, "16", True])
def test_a_size_other_than_an_integer_is_reported_with_and_without_the_base(
    size: object, tmp_path: Path
) -> None:
    saved(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**settings(tmp_path), "hidden_size": size}))
    told = f"hidden_size: expected an integer, got {size!r}"
    refused(tmp_path, told)
    (alone,) = inspect(tmp_path).problems
    assert alone.endswith(told)


def test_a_pickle_is_refused_and_the_error_names_the_safe_way(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_adapter.bin")
    refused(
        tmp_path,
        "pytorch_adapter.bin is a pickle, which can run any code: save it as safetensors, with "
        "save_adapter(..., use_safetensors=True) of AdapterHub's adapters",
    )
    (tmp_path / "pytorch_adapter.bin").unlink()
    refused(tmp_path, f"{WEIGHTS} does not exist: save the adapter with save_adapter(...")


def test_another_kind_of_adapter_is_reported(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, architecture="prefix_tuning")
    refused(tmp_path, "no installed plugin reads 'prefix_tuning' in AdapterHub's layout")
    (told,) = inspect(tmp_path).problems
    assert told.endswith("no installed plugin reads 'prefix_tuning' in AdapterHub's layout")
