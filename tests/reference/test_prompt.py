import numpy as np
import pytest

from tests.reference.differences import assert_gradient
from tinygrad_peft.reference import PromptTuning, Reparameterization


def test_the_prompt_is_prepended_to_every_text(rng: np.random.Generator) -> None:
    tuning, x = PromptTuning(4, prompt_length=3), rng.standard_normal((2, 5, 4))
    y = tuning.forward(x)
    assert (y[:, :3] == tuning.prompt).all()
    assert (y[:, 3:] == x).all()
    assert (PromptTuning(4).num_parameters(), tuning.num_parameters()) == (80, 12)


def test_the_gradients_agree_with_differences(rng: np.random.Generator) -> None:
    tuning, x = PromptTuning(4, 3), rng.standard_normal((2, 5, 4))
    g = rng.standard_normal((2, 8, 4))
    grad_x = tuning.backward(g)
    assert_gradient(lambda: tuning.forward(x), g, x, grad_x)
    assert_gradient(lambda: tuning.forward(x), g, tuning.prompt, tuning.prompt_grad)


def test_tokens_without_a_batch_have_the_prompt_before_them(rng: np.random.Generator) -> None:
    tuning, x, g = PromptTuning(4, 3), rng.standard_normal((5, 4)), rng.standard_normal((8, 4))
    assert (tuning.forward(x) == tuning.forward(x[None])[0]).all()
    assert (tuning.backward(g) == g[3:]).all()
    assert (tuning.prompt_grad == g[:3]).all()


def test_it_may_start_from_a_copy_of_the_vocabularys_embeddings(rng: np.random.Generator) -> None:
    vocabulary = rng.standard_normal((50, 4))
    tuning = PromptTuning(4, 6, vocabulary)
    rows = {tuple(row) for row in vocabulary}
    assert {tuple(row) for row in tuning.prompt} <= rows
    assert len({tuple(row) for row in tuning.prompt}) > 1
    tuning.prompt += 1
    assert {tuple(row) for row in vocabulary} == rows


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got prompt_length=0"):
        PromptTuning(4, 0)
    with pytest.raises(ValueError, match=r"init_from_vocab: expected shape \(\.\.\., 4\), got"):
        PromptTuning(4, 2, np.ones((50, 5)))
    for wrong in ((2, 5, 3), (4,)):
        with pytest.raises(
            ValueError, match=r"input_embeddings: expected shape \(..., T, 4\), got"
        ):
            PromptTuning(4).forward(np.ones(wrong))
    x = np.ones((2, 5, 4))
    with pytest.raises(ValueError, match="input_embeddings or input_embeds, got 2 of the two"):
        PromptTuning(4).forward(x, input_embeds=x)
    with pytest.raises(ValueError, match="input_embeddings or input_embeds, got 0 of the two"):
        PromptTuning(4).forward()


@pytest.mark.parametrize(
    ("widths", "activation"), [((4, 5, 6), "tanh"), ((4, 5, 5, 4), "relu"), ((4, 3), "tanh")]
)
def test_the_gradients_of_a_reparameterization_agree_with_differences(
    rng: np.random.Generator, widths: tuple[int, ...], activation: str
) -> None:
    network = Reparameterization(3, widths, activation, rng=rng)
    network.embedding = rng.standard_normal(network.embedding.shape)
    network.weights = [rng.standard_normal(weight.shape) for weight in network.weights]
    network.biases = [rng.standard_normal(bias.shape) for bias in network.biases]
    g = rng.standard_normal((3, widths[-1]))
    assert network.forward().shape == g.shape
    network.backward(g)
    for array, grad in zip(
        (network.embedding, *network.weights, *network.biases),
        (network.embedding_grad, *network.weight_grads, *network.bias_grads),
        strict=True,
    ):
        assert_gradient(network.forward, g, array, grad)


def test_a_reparameterization_counts_its_trained_weights() -> None:
    # Published for a Llama of two layers with 16 numbers a key, and for P-tuning's three layers.
    assert Reparameterization(10, (16, 16, 2 * 2 * 16)).num_parameters() == 160 + 272 + 1088
    assert Reparameterization(7, (8, 6, 6, 8), "relu").num_parameters() == 56 + 54 + 42 + 56


def test_a_reparameterization_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"widths: expected two or more, got \[4\]"):
        Reparameterization(3, (4,))
    with pytest.raises(ValueError, match=r"expected at least 1, got widths\[1\]=0"):
        Reparameterization(3, (4, 0))
    network = Reparameterization(3, (4, 5))
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        network.backward(np.ones((3, 5)))
    network.forward()
    with pytest.raises(ValueError, match=r"grad_output: expected shape \(3, 5\), got \(3, 4\)"):
        network.backward(np.ones((3, 4)))
