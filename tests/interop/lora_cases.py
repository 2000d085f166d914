"""LoRA's options on each family, as keyword arguments of PEFT's LoraConfig and of ours."""

from typing import Any

__all__ = ["CASES", "TAKEN_OUT", "settings"]

TARGETS = {
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value", "intermediate.dense"],
}
SAVED = {  # GPT-2's are stored the other way around
    "gpt2": ["attn.c_proj", "1.mlp"],
    "llama": ["o_proj", "1.mlp"],
    "bert": ["attention.output.dense", "pooler.dense"],
}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens", "bert": "word_embeddings"}
LAYERS = {"gpt2": "h", "llama": "layers", "bert": "layer"}
TOKENS = [3, 49, 14]
BY_NAME, WITH_EMBEDDING = "by name", "with the embedding"  # what differs from family to family

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "usual targets": {"r": 4, "target_modules": None},
    "all-linear": {"r": 2, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
    "a regular expression": {"r": 2, "target_modules": r".*\.1\..*(c_attn|q_proj|query)"},
    "one layer": {"r": 2, "layers_to_transform": [1]},
    "layers by pattern": {"r": 2, "layers_to_transform": 1, "layers_pattern": BY_NAME},
    "modules that are saved whole": {
        "r": 2,
        "target_modules": r".*(c_attn|q_proj|query)",
        "modules_to_save": BY_NAME,
    },
    "exclusions": {"r": 2, "target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
    "patterns": {
        "r": 4,
        "target_modules": "all-linear",
        "rank_pattern": {r"0\..*": 2},
        "alpha_pattern": {r"1\..*": 1, ".*(down_proj|c_fc|dense)": 16},
    },
    "biases of targets": {"r": 2, "bias": "lora_only"},
    "all biases": {"r": 2, "bias": "all"},
    "a bias of B": {"r": 4, "lora_alpha": 2, "lora_bias": True},
    "a bias of B and of the base": {"r": 2, "lora_bias": True, "bias": "lora_only"},
    "gaussian": {"r": 2, "init_lora_weights": "gaussian"},
    "no start": {"r": 2, "init_lora_weights": False},
    "orthogonal": {"r": 2, "init_lora_weights": "orthogonal"},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "dora with all else": {
        "r": 2,
        "use_dora": True,
        "use_rslora": True,
        "bias": "all",
        "target_modules": "all-linear",
        "init_lora_weights": "orthogonal",
    },
    "tokens": {"r": 2, "trainable_token_indices": TOKENS},
    "tokens by name": {"r": 2, "trainable_token_indices": BY_NAME},
    "dora and tokens": {"r": 2, "use_dora": True, "trainable_token_indices": TOKENS},
}
# PEFT takes the start out of the base's weight.
PISSA: dict[str, dict[str, Any]] = {
    "pissa": {"r": 2, "lora_alpha": 3, "init_lora_weights": "pissa"},
    "pissa with rslora": {"r": 4, "init_lora_weights": "pissa", "use_rslora": True},
    "pissa with biases": {"r": 2, "init_lora_weights": "pissa", "bias": "lora_only"},
}
OLORA: dict[str, dict[str, Any]] = {  # which PEFT cannot do on GPT-2's layers
    "olora": {"r": 2, "lora_alpha": 3, "init_lora_weights": "olora"},
    "olora of patterns": {
        "r": 2,
        "init_lora_weights": "olora",
        "rank_pattern": {r"0\..*": 3},
        "alpha_pattern": {r"1\..*": 5},
    },
}
UNTIED: dict[str, dict[str, Any]] = {
    "embedding": {"r": 2, "lora_alpha": 3, "target_modules": WITH_EMBEDDING},
    "embedding with dora": {"r": 2, "use_dora": True, "target_modules": WITH_EMBEDDING},
}
OWN_HEAD: dict[str, dict[str, Any]] = {
    "head": {"r": 2, "target_modules": ["lm_head", "q_proj"]},
    "tokens of the head": {"r": 2, "trainable_token_indices": {"lm_head": [3, 49]}},
}
KINDS = OPTIONS | PISSA | OLORA | UNTIED | OWN_HEAD
TAKEN_OUT = PISSA | OLORA
CASES = [
    *((family, option) for family in TARGETS for option in OPTIONS | PISSA),
    *((family, option) for family in ("llama", "bert") for option in UNTIED | OLORA),
    *(("llama", option) for option in OWN_HEAD),
]


def settings(family: str, option: str) -> dict[str, Any]:
    """Choose the settings of PEFT's config and of ours."""
    chosen: dict[str, Any] = {"target_modules": TARGETS[family], **KINDS[option]}
    by_name = {
        "trainable_token_indices": {EMBEDDING[family]: TOKENS},
        "layers_pattern": LAYERS[family],
        "modules_to_save": SAVED[family],
    }
    for key, value in by_name.items():
        if chosen.get(key) == BY_NAME:
            chosen[key] = value
    if chosen["target_modules"] == WITH_EMBEDDING:
        chosen["target_modules"] = [EMBEDDING[family], *TARGETS[family]]
    if family == "bert":
        # PEFT adds the head for any classifier.
        chosen["modules_to_save"] = [*chosen.get("modules_to_save", []), "classifier"]
    return chosen
