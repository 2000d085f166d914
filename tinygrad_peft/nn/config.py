"""The settings that make one Transformer GPT-2, Llama or BERT."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args, get_origin

from tinygrad_peft.errors import ConfigError, listed, nearest

__all__ = ["Pooling", "ProblemType", "RopeScaling", "TransformerConfig"]

Pooling: TypeAlias = Literal["cls", "mean", "last"]
ProblemType: TypeAlias = Literal[
    "single_label_classification", "multi_label_classification", "regression"
]

# Far beyond any existing model: a broken file must not make us build one.
MOST: Mapping[str, int] = {"num_hidden_layers": 10_000, "head_dim": 100_000, "num_labels": 100_000}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """The stretching of rotary frequencies for contexts longer than those of pretraining.

    "linear" divides all by `factor`; "llama3" only the low ones, with a smooth passage between
    wavelengths of context / high_freq_factor and context / low_freq_factor (Llama 3, section 3.2).

    Raises ConfigError that lists every invalid setting.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        rules = {
            "factor must be above 0": 0 < self.factor < math.inf,
            "low_freq_factor must be above 0, and high_freq_factor above it": (
                0 < self.low_freq_factor < self.high_freq_factor < math.inf
            ),
            "original_max_position_embeddings must be at least 1": (
                self.original_max_position_embeddings >= 1
            ),
        }
        problems = [*_unknown_choices(self), *(rule for rule, holds in rules.items() if not holds)]
        if problems:
            raise ConfigError(f"invalid RopeScaling:\n{listed(problems)}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """The shape and kind of a Transformer, in Hugging Face's names where all families share one.

    Raises ConfigError that lists every invalid setting.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    num_key_value_heads: int = 0  # 0: as many as attention heads
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    type_vocab_size: int = 0  # segment embeddings; 0: none
    model_type: str = ""  # the family whose names checkpoints use: gpt2, llama, bert

    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    positions: Literal["learned", "rotary"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    gated_mlp: bool = False
    packed_qkv: bool = False  # one projection for queries, keys and values
    attention_bias: bool = True
    mlp_bias: bool = True
    causal: bool = True

    head: Literal["lm", "classification", "none"] = "lm"
    tie_word_embeddings: bool = True
    num_labels: int = 0
    label_names: tuple[str, ...] = ()  # the classes' names in order: num_labels, or 0
    problem_type: ProblemType | None = None  # None: one class of several, or with one a regression
    pooler: bool = False  # a dense layer and tanh after "cls" pooling
    pooling: Pooling = "cls"

    # Of a sentence-transformers folder: its pooling is `pooling`, never through a pooler.
    sentence_transformers: bool = False
    max_seq_length: int | None = None  # texts are cut to so many tokens there; None: positions
    normalize: bool = False  # an embedding is scaled to length 1

    bos_token_id: int | None = None  # for generation and padding alone
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    hidden_dropout: float = 0.0  # of what is added to the residual stream
    attention_dropout: float = 0.0  # of the attention's probabilities
    embedding_dropout: float | None = None  # of the embedded tokens; None: as hidden_dropout
    classifier_dropout: float | None = None  # of a classifier's input; None: as hidden_dropout

    def __post_init__(self) -> None:
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        problems = [*_unknown_choices(self), *self._wrong_sizes(), *self._contradictions()]
        if problems:
            raise ConfigError(f"invalid TransformerConfig:\n{listed(problems)}")

    @property
    def classifier_bias(self) -> bool:
        """True if a classifier has a bias: transformers' heads on a decoder's last token do not."""
        return not (self.is_usual_classifier and self.causal)

    @property
    def usual_pooling(self) -> Pooling:
        """The pooling of the classifier that transformers has for the family."""
        return "last" if self.causal else "cls"

    @property
    def is_sentence_classifier(self) -> bool:
        """True for a classifier that transformers has no class for, and sentence-transformers has.

        It is a dense layer on the pooled tokens.
        """
        return self.head == "classification" and not self.is_usual_classifier

    @property
    def is_usual_classifier(self) -> bool:
        """True for a classifier that transformers' class computes: an encoder's has a pooler."""
        usual = self.pooling == self.usual_pooling and (self.causal or self.pooler)
        return self.head == "classification" and usual and not self.sentence_transformers

    @property
    def objective(self) -> ProblemType:
        """The problem that a classification head is for, as transformers infers it."""
        usual: ProblemType = "regression" if self.num_labels == 1 else "single_label_classification"
        return self.problem_type or usual

    def _wrong_sizes(self) -> list[str]:
        sizes = [
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"),
        ]
        small = [f"{name} must be at least 1" for name in sizes if getattr(self, name) < 1]
        large = [
            f"{name}: expected at most {most}, got {value}"
            for name, most in MOST.items()
            if (value := getattr(self, name)) > most
        ]
        return small + large

    def _rates(self) -> tuple[float | None, ...]:
        more = self.embedding_dropout, self.classifier_dropout
        return self.hidden_dropout, self.attention_dropout, *more

    @property
    def embedding_rate(self) -> float:
        """The dropout rate of the embedded tokens."""
        return self.hidden_dropout if self.embedding_dropout is None else self.embedding_dropout

    @property
    def classifier_rate(self) -> float:
        """The dropout rate of a classifier's input."""
        return self.hidden_dropout if self.classifier_dropout is None else self.classifier_dropout

    def _contradictions(self) -> list[str]:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        rules = {
            f"num_attention_heads: expected a multiple of {kv_heads} kv heads, got {heads}": (
                kv_heads < 1 or heads % kv_heads == 0
            ),
            f"hidden_size: expected a multiple of {heads} heads, got {self.hidden_size}": (
                heads < 1
                or self.hidden_size % heads == 0
                or self.head_dim != self.hidden_size // heads  # given explicitly
            ),
            "type_vocab_size must be at least 0": self.type_vocab_size >= 0,
            "norm_eps and rope_theta must be above 0": (
                0 < self.norm_eps < math.inf and 0 < self.rope_theta < math.inf
            ),
            "rope_scaling needs rotary positions": (
                self.rope_scaling is None or self.positions == "rotary"
            ),
            "rotary positions need an even head_dim": (
                self.positions != "rotary" or self.head_dim % 2 == 0
            ),
            "packed_qkv needs as many key/value heads as attention heads": (
                not self.packed_qkv or kv_heads == heads
            ),
            "a gated feed-forward layer needs activation silu": (
                not self.gated_mlp or self.activation == "silu"
            ),
            "a classification head needs num_labels of at least 1": (
                self.head != "classification" or self.num_labels >= 1
            ),
            f"{len(self.label_names)} label names for num_labels {self.num_labels}": (
                len(self.label_names) in (0, self.num_labels)
            ),
            "dropout rates are at least 0 and below 1": (
                all(0 <= (rate or 0) < 1 for rate in self._rates())
            ),
        }
        return [problem for problem, holds in rules.items() if not holds]


def _unknown_choices(config: RopeScaling | TransformerConfig) -> Iterator[str]:
    """Describe each setting whose value its type does not allow."""
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in choices:
            known = ", ".join(map(repr, choices)) + nearest(str(value), choices)
            yield f"{field.name}: expected one of {known}, got {value!r}"
