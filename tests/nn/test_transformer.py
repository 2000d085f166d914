"""The three families: gradients of blocks and losses, padding, heads, and what is refused."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError, ShapeError, TokenError
from tinygrad_peft.gradcheck import check_gradients
from tinygrad_peft.nn import (
    Block,
    Context,
    Embedding,
    Init,
    LayerCache,
    Linear,
    Module,
    Roles,
    RopeScaling,
    Transformer,
    TransformerConfig,
    seed_dropout,
)
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.config import Pooling, ProblemType
from tinygrad_peft.nn.rotary import RotaryAngles
from tinygrad_peft.nn.virtual import VirtualTokens
from tinygrad_peft.tensor import Tensor, no_grad
from tinygrad_peft.testing import SMALL_MODELS

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
}
GPT2 = TransformerConfig(**SIZES, packed_qkv=True, model_type="gpt2")
LLAMA = TransformerConfig(
    **SIZES,
    num_key_value_heads=2,
    norm="rms_norm",
    positions="rotary",
    rope_theta=100.0,
    rope_scaling=RopeScaling(
        rope_type="llama3", factor=4.0, original_max_position_embeddings=64, high_freq_factor=8.0
    ),
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    model_type="llama",
)
BERT = TransformerConfig(
    **SIZES,
    type_vocab_size=2,
    norm_position="post",
    norm_eps=1e-12,
    activation="gelu",
    causal=False,
    head="none",
    pooler=True,
    model_type="bert",
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "bert": BERT}
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last")
CLASSIFIERS = {
    f"{name}-{pooling}": dataclasses.replace(
        config, head="classification", num_labels=3, pooling=pooling
    )
    for (name, config), pooling in itertools.product(FAMILIES.items(), POOLINGS)
}
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]])
RIGHT_PADDED = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LABELS = np.where(RIGHT_PADDED == 1, IDS, -100)


def build(config: TransformerConfig) -> Transformer:
    """A model in float64 with weights large enough for every part to matter."""
    model = Transformer(config, Init(0, np.float64))
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    return model


@pytest.mark.parametrize("mask", [None, RIGHT_PADDED != 0], ids=["whole", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_block_agree_with_differences(
    family: str, mask: np.ndarray[Any, np.dtype[np.bool_]] | None
) -> None:
    config = FAMILIES[family]
    block = Block(config, Init(0, np.float64))
    rng = np.random.default_rng(1)
    for parameter in block.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    rotary = None
    if config.positions == "rotary":
        rotary = RotaryAngles(config)(np.arange(5), np.dtype(np.float64))
    x = Tensor(rng.standard_normal((2, 5, 8)), requires_grad=True)
    context = Context(causal=config.causal, roles=Roles((2, 5)), keys=mask, rotary=rotary)

    error = check_gradients(lambda x, *_: block(x, context), [x, *block.parameters()])
    assert error < 1e-6


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_of_a_language_models_loss_agree_with_differences(family: str) -> None:
    model = build(FAMILIES[family])

    error = check_gradients(
        lambda *_: model.loss(IDS, LABELS, RIGHT_PADDED, label_smoothing=0.1),
        list(model.parameters()),
    )
    assert error < 1e-6


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_gradients_of_a_classifiers_loss_agree_with_differences(kind: str) -> None:
    model = build(CLASSIFIERS[kind])

    error = check_gradients(
        lambda *_: model.loss(IDS, np.array([2, 0]), RIGHT_PADDED), list(model.parameters())
    )
    assert error < 1e-6


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert-cls"])
def test_gradients_with_dropout_agree_with_differences(family: str) -> None:
    config = (FAMILIES | CLASSIFIERS)[family]
    model = build(dataclasses.replace(config, hidden_dropout=0.2, attention_dropout=0.3))
    labels = np.array([2, 0]) if family == "bert-cls" else LABELS

    def loss(*_: Tensor) -> Tensor:
        seed_dropout(model, 3)
        return model.loss(IDS, labels, RIGHT_PADDED)

    assert check_gradients(loss, list(model.parameters())) < 1e-6


def dropped(
    config: TransformerConfig, *, embedding: float = 0.0, classifier: float = 0.0
) -> Transformer:
    """A model in training with these dropout rates alone."""
    model = build(
        dataclasses.replace(config, embedding_dropout=embedding, classifier_dropout=classifier)
    )
    model.train()
    seed_dropout(model, 3)
    return model


def test_the_embeddings_rate_drops_embedded_tokens_alone() -> None:
    model = dropped(GPT2, embedding=0.5)
    model.blocks, model.final_norm = [], None
    kept = model.hidden_states(IDS).data
    model.eval()
    plain = model.hidden_states(IDS).data
    assert 0.2 < (kept == 0).mean() < 0.8
    np.testing.assert_allclose(kept[kept != 0], 2 * plain[kept != 0])
    other = dropped(GPT2, classifier=0.9)
    assert not (other.hidden_states(IDS).data == 0).any()


def test_the_classifiers_rate_drops_its_input_alone() -> None:
    config = CLASSIFIERS["bert-cls"]
    model = dropped(config, classifier=0.5)
    pooled = model.pooled(IDS)
    model.dropout.rng = np.random.default_rng(7)
    kept = np.random.default_rng(7).random(pooled.shape, dtype=np.float32) >= 0.5
    model_output = model(IDS).data
    assert model.classifier is not None
    wanted = model.classifier(Tensor(pooled.data * kept * 2)).data
    np.testing.assert_allclose(model_output, wanted)
    model.eval()
    np.testing.assert_array_equal(model.pooled(IDS).data, pooled.data)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_loss_is_the_cross_entropy_of_the_shifted_logits(family: str) -> None:
    model = build(FAMILIES[family])
    logits = model(IDS, RIGHT_PADDED)
    expected = F.cross_entropy(logits[:, :-1], LABELS[:, 1:], label_smoothing=0.1)

    loss = model.loss(IDS, LABELS, RIGHT_PADDED, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_loss_is_the_same_through_a_wrapped_head() -> None:
    class Other(Module):
        def __init__(self, base: Linear) -> None:
            self.base = base
            self.in_features, self.out_features = base.in_features, base.out_features

        def __call__(self, x: Tensor) -> Tensor:
            return self.base(x)

    model = build(LLAMA)
    plain = model.loss(IDS, LABELS).item()
    assert isinstance(model.lm_head, Linear)
    model.lm_head = Other(model.lm_head)

    assert model.loss(IDS, LABELS).item() == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_does_not_change_the_output_of_real_tokens(family: str) -> None:
    model = build(FAMILIES[family])
    whole = model(IDS, RIGHT_PADDED).data
    bare = model(IDS[1:, :3]).data

    np.testing.assert_allclose(whole[1:, :3], bare, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_at_padding_have_no_effect(family: str) -> None:
    model = build(FAMILIES[family])
    ids = IDS.copy()
    ids[1, 3:] = 7

    np.testing.assert_array_equal(
        model(ids, RIGHT_PADDED).data[1, :3], model(IDS, RIGHT_PADDED).data[1, :3]
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_left_padding_with_positions_does_not_change_the_output_of_real_tokens(family: str) -> None:
    model = build(FAMILIES[family])
    ids, mask = np.array([[0, 0, 9, 2, 6]]), np.array([[0, 0, 1, 1, 1]])
    padded = model(ids, mask, positions=np.array([[0, 0, 0, 1, 2]])).data

    np.testing.assert_allclose(padded[:, 2:], model(ids[:, 2:]).data, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_model_does_not_look_ahead(family: str) -> None:
    model = build(FAMILIES[family])
    changed = IDS.copy()
    changed[:, 3:] = 8

    np.testing.assert_allclose(model(changed).data[:, :3], model(IDS).data[:, :3], rtol=1e-12)


def test_an_encoder_looks_both_ways() -> None:
    model = build(BERT)
    changed = IDS.copy()
    changed[:, 4] = 8

    assert (abs(model(changed).data[:, 0] - model(IDS).data[:, 0]) > 1e-6).any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("steps", [(5,), (1, 1, 1, 1, 1), (2, 3), (4, 1)], ids=str)
def test_a_cached_sequence_equals_the_whole_sequence(family: str, steps: tuple[int, ...]) -> None:
    model = build(FAMILIES[family])
    caches = [LayerCache(5) for _ in model.blocks]
    parts, start = [], 0
    with no_grad():
        for count in steps:
            end = start + count
            mask = RIGHT_PADDED[:, :end]
            parts.append(model(IDS[:, start:end], mask, cache=caches).data)
            start = end
        whole = model(IDS, RIGHT_PADDED).data

    joined = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(joined[0], whole[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(joined[1, :3], whole[1, :3], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_is_computed_in_the_dtype_of_the_weights(
    family: str, dtype: type[np.floating]
) -> None:
    config = dataclasses.replace(FAMILIES[family], head="classification", num_labels=2)
    model = Transformer(config, Init(0, dtype))
    with_mask = model(IDS, RIGHT_PADDED)
    model.loss(IDS, np.array([0, 1]), RIGHT_PADDED, label_smoothing=0.1).backward()

    assert with_mask.dtype == dtype
    unpooled = set() if config.pooling == "mean" else {"pooler.weight", "pooler.bias"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or name in unpooled, name
        assert parameter.grad is None or parameter.grad.dtype == dtype, name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_batch_gives_an_empty_result(family: str) -> None:
    assert build(FAMILIES[family])(IDS[:0]).shape[:2] == (0, 5)


def test_a_tied_head_is_the_embedding() -> None:
    model = build(GPT2)

    assert isinstance(model.embed_tokens, Embedding)
    assert isinstance(model.lm_head, Linear)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    assert "lm_head.weight" in dict(build(LLAMA).named_parameters())


# ---------- pooling and heads ----------


def test_mean_pooling_ignores_padding() -> None:
    model = build(CLASSIFIERS["bert-mean"])
    hidden = model.hidden_states(IDS, RIGHT_PADDED)
    pooled = model.pooled(IDS, RIGHT_PADDED).data

    np.testing.assert_allclose(pooled[0], hidden.data[0].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(pooled[1], hidden.data[1, :3].mean(axis=0), rtol=1e-12)


def test_the_mean_is_the_same_with_a_mask_of_ones_and_with_none() -> None:
    model = build(CLASSIFIERS["bert-mean"])

    np.testing.assert_allclose(model(IDS).data, model(IDS, np.ones_like(IDS)).data, rtol=1e-12)


class Virtual(Module):
    """Three virtual tokens."""

    def __call__(self) -> VirtualTokens:
        return VirtualTokens(Tensor(np.full((3, 8), 0.5)))


def with_virtual_tokens(config: TransformerConfig) -> Transformer:
    model = build(config)
    model.prompt = Virtual()
    return model


def test_virtual_tokens_are_left_out_of_the_mean_with_a_mask_and_without() -> None:
    model = with_virtual_tokens(CLASSIFIERS["bert-mean"])
    hidden = model.hidden_states(IDS)
    assert hidden.shape == (2, 8, 8)

    expected = hidden.data[:, 3:].mean(axis=1)
    for mask in (None, np.ones_like(IDS)):
        pooled = model.pooled(IDS, mask).data
        np.testing.assert_allclose(pooled, expected, rtol=1e-12)
    np.testing.assert_allclose(model(IDS).data, model(IDS, np.ones_like(IDS)).data, rtol=1e-12)


def test_virtual_tokens_are_of_the_first_segment() -> None:
    model = with_virtual_tokens(BERT)
    types = np.array([[0, 0, 0, 1, 1]] * 2)

    np.testing.assert_allclose(
        model(IDS, token_type_ids=np.zeros_like(IDS)).data, model(IDS).data, rtol=1e-12
    )
    assert (abs(model(IDS, token_type_ids=types).data - model(IDS).data) > 1e-6).any()


def test_each_label_is_predicted_from_the_position_before_it_after_virtual_tokens() -> None:
    model = with_virtual_tokens(GPT2)
    logits = model(IDS)
    expected = F.cross_entropy(logits[:, 2:-1], IDS)  # the last virtual token predicts the first

    assert model.loss(IDS, IDS).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_row_of_padding_alone_has_no_mean() -> None:
    model = build(CLASSIFIERS["bert-mean"])
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    with pytest.raises(TokenError, match="row 1 of the attention mask is all padding"):
        model(IDS, mask)


def test_cls_pooling_is_the_first_token_through_the_pooler() -> None:
    model = build(CLASSIFIERS["bert-cls"])
    hidden = model.hidden_states(IDS)
    assert model.pooler is not None
    expected = np.tanh(model.pooler(hidden[:, 0]).data)

    np.testing.assert_allclose(model.pooled(IDS).data, expected, rtol=1e-12)
    without = build(dataclasses.replace(CLASSIFIERS["bert-cls"], pooler=False))
    hidden = without.hidden_states(IDS)
    np.testing.assert_array_equal(without.pooled(IDS).data, hidden.data[:, 0])


def test_the_last_token_that_is_not_padding_is_pooled() -> None:
    model = build(CLASSIFIERS["llama-last"])
    hidden = model.hidden_states(IDS, RIGHT_PADDED).data
    expected = hidden[[0, 1], [4, 2]]
    np.testing.assert_array_equal(model.pooled(IDS, RIGHT_PADDED).data, expected)

    left, mask = IDS[:, [3, 4, 0, 1, 2]], RIGHT_PADDED[:, [3, 4, 0, 1, 2]]
    left_hidden = model.hidden_states(left, mask).data
    np.testing.assert_array_equal(model.pooled(left, mask).data, left_hidden[:, -1])


def test_the_padding_token_is_passed_over_with_a_mask_and_without() -> None:
    config = dataclasses.replace(CLASSIFIERS["gpt2-last"], pad_token_id=5)
    model, ids = build(config), np.array([[3, 1, 5, 4, 5], [5, 5, 5, 5, 5]])
    hidden = model.hidden_states(ids).data
    for mask in (None, np.ones_like(ids)):
        # A row of padding tokens alone has its first position, as in transformers.
        np.testing.assert_array_equal(model.pooled(ids, mask).data, hidden[[0, 1], [3, 0]])


def test_the_last_token_comes_after_virtual_tokens() -> None:
    model = with_virtual_tokens(CLASSIFIERS["gpt2-last"])
    hidden = model.hidden_states(IDS, RIGHT_PADDED).data
    np.testing.assert_array_equal(model.pooled(IDS, RIGHT_PADDED).data, hidden[[0, 1], [7, 5]])


@pytest.mark.parametrize(("name", "drops"), [("gpt2-last", False), ("bert-cls", True)])
def test_only_an_encoders_classifier_drops_what_it_reads(name: str, drops: bool) -> None:
    model = build(dataclasses.replace(CLASSIFIERS[name], hidden_dropout=0.5))
    assert model.classifier is not None
    seed_dropout(model, 0)
    logits = model(IDS).data
    seed_dropout(model, 0)
    assert (logits != model.classifier(model.pooled(IDS)).data).any() == drops


def test_the_usual_head_of_an_encoder_has_a_pooler_new_where_there_is_none() -> None:
    model = build(dataclasses.replace(BERT, pooler=False))
    model.with_classifier(2, seed=1)
    assert (model.config.pooling, model.config.pooler) == ("cls", True)
    assert model.new_modules == ("classifier", "pooler")
    assert isinstance(model.pooler, Linear)
    assert 0.005 < model.pooler.weight.data.std() < 0.05
    first = model.pooler.weight.data
    model.with_classifier(2, seed=1)
    np.testing.assert_array_equal(model.pooler.weight.data, first)
    assert model.new_modules == ("classifier", "pooler")

    model.with_classifier(2, pooling="mean")
    assert model.pooler is None
    assert not model.config.pooler
    assert model.new_modules == ("classifier",)


def test_a_pooler_of_the_checkpoint_is_kept() -> None:
    model = build(BERT)
    pooler = model.pooler
    for pooling in (None, "mean", "cls"):
        model.with_classifier(2, pooling=pooling)
        assert model.pooler is pooler
        assert model.new_modules == ("classifier",)


@pytest.mark.parametrize(
    ("config", "pooling", "usual"),
    [
        (BERT, "cls", True),
        (BERT, "mean", False),
        (BERT, "last", False),
        (dataclasses.replace(BERT, pooler=False), "cls", False),
        (GPT2, "last", True),
        (GPT2, "mean", False),
        (LLAMA, "cls", False),
    ],
)
def test_the_classifiers_that_transformers_computes_are_known(
    config: TransformerConfig, pooling: str, usual: bool
) -> None:
    model = build(config)
    model.with_classifier(2, pooling=pooling)
    assert model.config.is_usual_classifier is usual
    assert not config.is_usual_classifier, "it has no classifier"


def test_a_new_classifier_takes_the_place_of_any_head() -> None:
    model = build(GPT2)
    model.with_classifier(3, seed=4)
    assert model.lm_head is None
    assert (model.config.head, model.config.num_labels, model.config.pooling) == (
        *("classification", 3),
        "last",
    )
    assert "classifier.bias" not in model.state_dict()
    assert model(IDS, RIGHT_PADDED).shape == (2, 3)
    assert model(IDS).dtype == np.float64
    assert "embed_tokens.weight" in dict(model.named_parameters())

    def head(seed: int) -> Array:
        model.with_classifier(["no", "yes"], pooling="cls", seed=seed)
        assert isinstance(model.classifier, Linear)
        return model.classifier.weight.data

    np.testing.assert_array_equal(head(4), head(4))
    assert (head(4) != head(5)).any()
    assert model.config.label_names == ("no", "yes")
    assert 0.005 < head(4).std() < 0.05


@pytest.mark.parametrize(
    ("labels", "pooling", "message"),
    [
        (2, "max", "pooling: expected one of 'cls', 'mean', 'last', got 'max'"),
        (0, "mean", "num_labels of at least 1"),
        ([], "mean", "num_labels of at least 1"),
    ],
    ids=["pooling", "zero", "empty"],
)
def test_an_invalid_classifier_is_refused_and_changes_nothing(
    labels: int | list[str], pooling: str, message: str
) -> None:
    model = build(GPT2)
    with pytest.raises(ConfigError, match=message):
        model.with_classifier(labels, pooling=pooling)
    assert model.classifier is None
    assert model.config == GPT2


# ---------- what is refused ----------


@pytest.mark.parametrize("family", FAMILIES)
def test_more_tokens_than_positions_are_an_error(family: str) -> None:
    with pytest.raises(TokenError, match="10 tokens are more than the model's 9 positions"):
        build(FAMILIES[family])(np.zeros((1, 10), np.int64))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            np.array([[0, 11]]),
            r"token id 11 at position \(0, 1\) is outside the vocabulary 0\.\.10",
        ),
        (np.array([[-1, 0]]), r"token id -1 at position \(0, 0\)"),
        (np.array([[0.5, 1.0]]), "token ids: expected integers, got float64"),
        (np.array([1, 2, 3]), r"token ids of shape \(3,\), expected \(batch, tokens\)"),
    ],
    ids=["large", "negative", "float", "vector"],
)
def test_invalid_ids_are_named(ids: IntArray, message: str) -> None:
    with pytest.raises(TokenError, match=message):
        build(GPT2)(ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5), (2, 1)], ids=str)
def test_a_mask_of_another_shape_is_an_error(family: str, shape: tuple[int, int]) -> None:
    mask = np.ones(shape, np.int64)
    mask[0, 0] = 0
    with pytest.raises(ShapeError, match=r"padding mask of shape .* expected \(2, 5\)"):
        build(FAMILIES[family])(IDS, mask)


def test_labels_of_another_shape_are_an_error() -> None:
    with pytest.raises(TokenError, match=r"labels \(2, 4\) for input ids \(2, 5\)"):
        build(GPT2).loss(IDS, IDS[:, :4])


def test_an_unknown_class_is_an_error() -> None:
    with pytest.raises(TokenError, match=r"target 3 is outside the 3 classes 0\.\.2"):
        build(CLASSIFIERS["bert-cls"]).loss(IDS, np.array([0, 3]))


def test_a_bare_encoder_has_no_loss() -> None:
    with pytest.raises(ConfigError, match=r"a bare encoder has no loss.*with_classifier\(\)"):
        build(BERT).loss(IDS, LABELS)


def test_token_types_of_another_shape_are_an_error() -> None:
    with pytest.raises(ShapeError, match=r"token_type_ids \(2, 4\) for input ids \(2, 5\)"):
        build(BERT)(IDS, token_type_ids=np.zeros((2, 4), np.int64))


@pytest.mark.parametrize(
    ("labels", "problem_type", "told"),
    [
        (1, None, "regression with 1 output"),
        (3, "regression", "regression with 3 outputs"),
        (2, "multi_label_classification", "multi_label_classification with 2 outputs"),
        (1, "single_label_classification", "single_label_classification with 1 output"),
    ],
)
def test_a_head_whose_texts_have_no_class_each_has_logits_and_no_loss(
    labels: int, problem_type: ProblemType | None, told: str
) -> None:
    config = dataclasses.replace(SMALL_MODELS["bert"], num_labels=labels, problem_type=problem_type)
    model = Transformer(config)
    ids = np.array([[2, 5, 6, 3]])
    assert model(ids).shape == (1, labels)
    with pytest.raises(ConfigError, match=f"a head for {told}: only heads that choose one class"):
        model.loss(ids, np.array([0]))
    model.with_classifier(2)
    assert model.loss(ids, np.array([0])).item() > 0
