"""Reading and writing config.json, and the paths of modules, family by family."""

import dataclasses

import pytest

from tinygrad_peft.errors import ConfigError
from tinygrad_peft.models import SHAPES, checkpoint_path, equal_names, module_path
from tinygrad_peft.models.families import config_from_json, config_to_json
from tinygrad_peft.nn import RopeScaling, Skeleton, Transformer, TransformerConfig

GPT2 = config_to_json(dataclasses.replace(SHAPES["gpt2"], num_hidden_layers=2))
LLAMA = config_to_json(dataclasses.replace(SHAPES["llama-7b"], num_hidden_layers=2))
BERT = config_to_json(dataclasses.replace(SHAPES["bert-base"], num_hidden_layers=2))
RAW = {"gpt2": GPT2, "llama": LLAMA, "bert": BERT}


def without(raw: dict[str, object], *keys: str) -> dict[str, object]:
    return {key: value for key, value in raw.items() if key not in keys}


# ---------- paths ----------


def path_of(raw: dict[str, object], path: str, **changes: object) -> str:
    return checkpoint_path(config_from_json(raw | changes), path)


@pytest.mark.parametrize(
    ("family", "ours", "theirs"),
    [
        ("gpt2", "embed_tokens", "transformer.wte"),
        ("gpt2", "blocks.1.attn.qkv_proj", "transformer.h.1.attn.c_attn"),
        ("gpt2", "blocks.1.attn.o_proj", "transformer.h.1.attn.c_proj"),
        ("gpt2", "blocks.1.mlp.up_proj", "transformer.h.1.mlp.c_fc"),
        ("gpt2", "blocks.1.mlp.down_proj.weight", "transformer.h.1.mlp.c_proj.weight"),
        ("gpt2", "final_norm.bias", "transformer.ln_f.bias"),
        ("gpt2", "lm_head", "lm_head"),
        ("llama", "blocks.0.attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("llama", "blocks.0.attn_norm", "model.layers.0.input_layernorm"),
        ("llama", "blocks.0.mlp_norm", "model.layers.0.post_attention_layernorm"),
        ("llama", "blocks.0.mlp.gate_proj", "model.layers.0.mlp.gate_proj"),
        ("llama", "final_norm.weight", "model.norm.weight"),
        ("llama", "lm_head.weight", "lm_head.weight"),
        ("bert", "embed_types", "embeddings.token_type_embeddings"),
        ("bert", "blocks.0.attn.q_proj", "encoder.layer.0.attention.self.query"),
        ("bert", "blocks.0.attn.o_proj", "encoder.layer.0.attention.output.dense"),
        ("bert", "blocks.0.attn_norm", "encoder.layer.0.attention.output.LayerNorm"),
        ("bert", "blocks.0.mlp.up_proj", "encoder.layer.0.intermediate.dense"),
        ("bert", "blocks.0.mlp", "encoder.layer.0.mlp"),
        ("bert", "pooler", "pooler.dense"),
    ],
)
def test_modules_have_transformers_names(family: str, ours: str, theirs: str) -> None:
    config = config_from_json(RAW[family])
    assert checkpoint_path(config, ours) == theirs
    assert module_path(config, theirs) == ours


def test_a_classifier_has_the_familys_prefix_and_a_bare_model_has_none() -> None:
    bert = BERT | {"architectures": ["BertForSequenceClassification"]}
    assert path_of(bert, "blocks.0.attn.q_proj") == "bert.encoder.layer.0.attention.self.query"
    assert path_of(bert, "classifier") == "classifier"
    llama = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
    assert path_of(llama, "classifier") == "score"
    assert path_of(llama, "final_norm") == "model.norm"


@pytest.mark.parametrize("raw", [BERT, LLAMA, GPT2])
def test_a_classifier_unknown_to_transformers_has_the_paths_of_a_bare_model(
    raw: dict[str, object],
) -> None:
    name = {"bert": "BertModel", "llama": "LlamaModel", "gpt2": "GPT2Model"}[str(raw["model_type"])]
    bare = config_from_json(raw | {"architectures": [name]})
    config = dataclasses.replace(bare, head="classification", num_labels=2, pooling="mean")
    head = "classifier" if name == "BertModel" else "score"
    assert checkpoint_path(config, "classifier.weight") == f"{head}.weight"
    for path in ("blocks.1.mlp.up_proj", "embed_tokens"):
        assert checkpoint_path(config, path) == checkpoint_path(bare, path)


@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("bert.encoder.layer.0", ["encoder.layer.0"]),
        ("embeddings", ["bert.embeddings"]),
        ("h.3.attn", ["transformer.h.3.attn"]),
        ("model.embed_tokens.weight", ["embed_tokens.weight"]),
        ("classifier", []),
        ("lm_head", []),
        ("model.encoder.layer.0", []),
        ("transformer.layers.0", []),
        ("", []),
    ],
)
def test_a_place_has_its_path_and_the_other_classes_paths(path: str, others: list[str]) -> None:
    assert equal_names(path) == (path, *others)


def test_a_bare_model_has_no_prefix() -> None:
    bare = path_of(GPT2, "blocks.0.attn.qkv_proj", architectures=["GPT2Model"])
    assert bare == "h.0.attn.c_attn"


@pytest.mark.parametrize("family", RAW)
def test_every_path_has_its_own_name_and_translates_back(family: str) -> None:
    model = Transformer(config_from_json(RAW[family]), Skeleton())
    paths = [path for path, _ in model.named_modules()]
    paths += [path for path, _ in model.named_parameters()]
    theirs = [checkpoint_path(model.config, path) for path in paths]
    assert len(set(theirs)) == len(paths)
    assert [module_path(model.config, path) for path in theirs] == paths


def test_a_model_without_a_family_keeps_its_paths() -> None:
    config = dataclasses.replace(SHAPES["gpt2"], model_type="")
    assert checkpoint_path(config, "blocks.0.attn.qkv_proj") == "blocks.0.attn.qkv_proj"
    assert module_path(config, "h.0.attn.c_attn") == "h.0.attn.c_attn"


# ---------- defaults ----------


def test_missing_settings_have_transformers_defaults() -> None:
    gpt2 = config_from_json(without(GPT2, "architectures", "n_inner", "activation_function"))
    assert (gpt2.head, gpt2.intermediate_size, gpt2.activation) == ("lm", 3072, "gelu_tanh")
    old = config_from_json(
        without(LLAMA, "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling")
    )
    assert (old.num_key_value_heads, old.head_dim, old.rope_theta) == (32, 128, 10_000.0)
    assert not config_from_json(without(LLAMA, "tie_word_embeddings")).tie_word_embeddings
    assert config_from_json(without(GPT2, "tie_word_embeddings")).tie_word_embeddings
    assert config_from_json(without(BERT, "architectures")).head == "none"


def test_bookkeeping_keys_are_ignored() -> None:
    more = {
        "transformers_version": "4.8.2",
        "use_cache": True,
        "initializer_range": 0.02,
        "_x": [1],
    }
    assert config_from_json(GPT2 | more) == config_from_json(GPT2)


# ---------- dropout ----------


@pytest.mark.parametrize(
    ("family", "keys", "rates"),
    [
        ("gpt2", {"embd_pdrop": 0.5, "resid_pdrop": 0.2, "attn_pdrop": 0.3}, (0.5, 0.2, 0.3, 0.2)),
        ("gpt2", {"embd_pdrop": 0.0, "resid_pdrop": 0.2, "attn_pdrop": 0.0}, (0.0, 0.2, 0.0, 0.2)),
        ("bert", {"classifier_dropout": 0.4, "hidden_dropout_prob": 0.2}, (0.2, 0.2, 0.1, 0.4)),
        ("bert", {"classifier_dropout": 0, "hidden_dropout_prob": 0.2}, (0.2, 0.2, 0.1, 0.0)),
        ("bert", {"classifier_dropout": None}, (0.1, 0.1, 0.1, 0.1)),
        ("llama", {"attention_dropout": 0.3}, (0.0, 0.0, 0.3, 0.0)),
    ],
)
def test_each_dropout_rate_is_read_and_written_back(
    family: str, keys: dict[str, object], rates: tuple[float, ...]
) -> None:
    raw = RAW[family] | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1} | keys
    config = config_from_json(raw)
    read = config.embedding_rate, config.hidden_dropout, config.attention_dropout
    assert (*read, config.classifier_rate) == rates
    written = config_to_json(config)
    assert {key: written[key] for key in keys} == keys
    assert config_from_json(written) == config


# ---------- unsupported settings ----------


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        (
            "gpt2",
            {"scale_attn_weights": False},
            "scale_attn_weights: only true is supported, got false",
        ),
        (
            "gpt2",
            {"add_cross_attention": True},
            "add_cross_attention: only false is supported, got true",
        ),
        ("gpt2", {"layer_norm_epsilon": "small"}, "layer_norm_epsilon: Expected `float`"),
        (
            "gpt2",
            {"architectures": ["GPT2ForTokenClassification"]},
            "architectures: expected one of .*, got GPT2ForTokenClassification",
        ),
        ("gpt2", {"classifier_pooling": "max"}, "classifier_pooling: Invalid enum value 'max'"),
        ("bert", {"position_embedding_type": "relative_key"}, 'only "absolute" is supported'),
        ("bert", {"is_decoder": True}, "is_decoder: only false is supported, got true"),
        ("bert", {"is_encoder_decoder": True}, "is_encoder_decoder: only false is supported"),
        ("bert", {"hidden_act": "mish"}, 'hidden_act: expected one of gelu, .* got "mish"'),
        (
            "bert",
            {"architectures": ["BertForQuestionAnswering"]},
            "architectures: expected one of .*, got BertForQuestionAnswering",
        ),
        (
            "bert",
            {"id2label": {"0": "a", "2": "b"}},
            r"id2label: expected classes 0 to 1, got \[0, 2\]",
        ),
        (
            "bert",
            {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
            "num_labels: expected 2 as in id2label, got 3",
        ),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: only null"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "rope type: expected one of default, linear, llama3, got 'yarn'",
        ),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope type linear needs factor"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "(?s)rope type llama3 needs high_freq_factor.*needs original_max_position_embeddings",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_parameters: partial_rotary_factor 0.5 is not supported",
        ),
        ("llama", {"hidden_act": "gelu"}, "a gated feed-forward layer needs activation silu"),
    ],
)
def test_settings_that_change_the_computation_are_refused(
    family: str, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_json(RAW[family] | keys)


# ---------- rotary positions ----------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALED = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, SCALED),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, 5e5, SCALED),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            10_000.0,
            RopeScaling(rope_type="linear", factor=2.0),
        ),
    ],
)
def test_rotary_positions_are_read_in_the_old_and_the_new_form(
    keys: dict[str, object], theta: float, scaling: RopeScaling | None
) -> None:
    config = config_from_json(without(LLAMA, "rope_theta", "rope_scaling") | keys)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    assert config_from_json(config_to_json(config)) == config


def test_an_unknown_family_is_refused_when_writing() -> None:
    config: TransformerConfig = dataclasses.replace(SHAPES["gpt2"], model_type="gptj")
    with pytest.raises(ConfigError, match="unknown model_type 'gptj', expected one of gpt2"):
        config_to_json(config)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"head_dim": 0}, "head_dim: expected a number above 0, got 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: expected a number above 0, got 0"),
        ({"num_labels": 0}, "num_labels: expected a number above 0, got 0"),
        ({"rope_theta": 0.0}, r"rope_theta: expected a number above 0, got 0\.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0}},
            "rope_scaling: factor: expected a number above 0, got 0",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
            "rope_parameters: rope_theta: expected a number above 0, got 0",
        ),
        (
            {"rope_scaling": {"rope_type": "", "factor": 2.0}},
            "rope type: expected one of .*, got ''",
        ),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 0}},
            "original_max_position_embeddings must be at least 1",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "low_freq_factor must be above 0"),
        ({"rms_norm_eps": 0}, "norm_eps and rope_theta must be above 0"),
    ],
)
def test_a_zero_is_not_taken_for_a_missing_setting(setting: dict[str, object], told: str) -> None:
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), 8)
    config = {"model_type": "llama", **sizes, "num_hidden_layers": 1, "num_attention_heads": 2}
    config |= {"max_position_embeddings": 16}
    config_from_json(config)
    with pytest.raises(ConfigError, match=told):
        config_from_json(config | setting)
