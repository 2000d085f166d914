"""The promises of an adapted model when it runs."""

import dataclasses

import numpy as np
import pytest

from tinygrad_peft.arrays import Array, IntArray
from tinygrad_peft.errors import ConfigError, PeftError, listed
from tinygrad_peft.peft import Host, PeftModel, count_recipe
from tinygrad_peft.testing.case import Case
from tinygrad_peft.testing.expect import expect, expect_close, expect_same
from tinygrad_peft.testing.models import SMALL_MODELS
from tinygrad_peft.testing.settings import MethodSettings, shown

__all__ = ["RunningPromises"]


class RunningPromises(MethodSettings):
    """The start, batches, lengths, padding, dtypes and dropout."""

    def test_it_can_be_applied(self, host: Host) -> None:
        """On each family the config can be applied, and the model runs.

        Where it cannot, the other tests are skipped.
        """
        errors = {family: self.first_error(family, host) for family in self.models}
        problems = [f"{family}: {shown(e)}" for family, e in errors.items() if e is not None]
        expect(not problems, f"{self.config} cannot be applied:\n{listed(problems)}")

    def test_starts_as_the_base(self, case: Case) -> None:
        """Before anything is learnt, the output is the base's, bit for bit."""
        self.needs_promise("starts_as_identity")
        base = case.logits(case.base())
        expect_same(case.logits(case.adapt(case.base())), base, f"{case}: logits at the start")

    def test_makes_a_difference_on_every_family(self, every_family: str, host: Host) -> None:
        """With other weights than at the start, the output is another than the base's."""
        case = self.case_on(every_family, host)
        base, got = case.logits(case.base()), case.logits(case.trained())
        expect(bool(np.isfinite(got).all()), f"{case}: logits are not finite")
        same = got.shape == base.shape and np.allclose(got, base, rtol=1e-3, atol=1e-3)
        expect(not same, f"{case}: the logits are the base's, whatever the weights are")

    def test_the_output_has_its_shape(self, case: Case) -> None:
        """Logits are the base's in shape, with virtual tokens in front only where promised."""
        got, base = (case.logits(model).shape for model in (case.trained(), case.base()))
        if not (self.changes_sequence_length and case.is_language_model):
            expect(got == base, f"{case}: expected logits {base}, got {got}")
            return
        same = (got[0], got[2]) == (base[0], base[2])
        expect(
            same and got[1] > base[1],
            f"{case} changes the sequence's length: expected logits "
            f"({base[0]}, more than {base[1]}, {base[2]}), got {got}",
        )

    def test_a_batch_of_one_and_a_length_of_one_are_parts_of_the_whole(self, case: Case) -> None:
        """A row alone gives what it gives in a batch, and a causal model's first tokens as well."""
        peft = case.trained(np.float64)
        whole = case.logits(peft)
        for row in range(len(case.ids)):
            alone = case.logits(peft, case.ids[row : row + 1])
            expect_close(alone, whole[row : row + 1], f"{case}: row {row} alone")
        single = case.logits(peft, case.ids[:, :1])
        expect(bool(np.isfinite(single).all()), f"{case}: logits of a single token are not finite")
        if case.is_language_model:
            virtual = whole.shape[1] - case.ids.shape[1]
            one_each = np.ones(len(case.ids), np.int64)
            first = case.logits(peft, prompt_lengths=one_each)[:, : virtual + 1]
            expect_close(single, first, f"{case}: the first token alone")

    def test_padding_changes_nothing(self, case: Case) -> None:
        """A row that is padded on the right, and masked there, gives what it gives without."""
        peft, width = case.trained(np.float64), case.ids.shape[1]
        padded = np.pad(case.ids, ((0, 0), (0, 3)), constant_values=1)
        mask = np.arange(width + 3)[None].repeat(len(padded), axis=0) < width
        plain, got = case.logits(peft), case.logits(peft, padded, mask)
        if case.is_language_model:
            got = got[:, :-3]
        expect_close(got, plain, f"{case}: with padding")

    def test_generation_continues_as_whole_sequences_do(self, case: Case) -> None:
        """Greedy generation, which keeps keys and values, finds what whole sequences predict."""
        if not case.is_language_model:
            pytest.skip(f"{case.family} is not a language model")
        peft = case.trained(np.float64)
        prompts = np.random.default_rng(1).integers(0, case.shape.vocab_size, (8, 3))
        expected = _continued(case, peft, prompts, 5)
        got = peft.generate(prompts, max_new_tokens=5)
        other = np.flatnonzero((got != expected).any(axis=1))
        expect(
            not other.size,
            f"{case}: {other.size} of {len(prompts)} prompts are not continued as whole sequences "
            f"are: expected {expected[other[:1]].tolist()}, got {got[other[:1]].tolist()}",
        )

    def test_dropout_acts_in_training_alone(self, case: Case) -> None:
        """In evaluation a rate changes nothing; in training it does, and without one nothing."""
        plain = case.with_dropout(0.0).trained()
        expected = case.logits(plain)
        plain.train()
        expect_same(case.logits(plain), expected, f"{case}: training mode without dropout")
        if not case.dropout_rates:
            return
        named = " and ".join(case.dropout_rates)
        try:
            peft = case.with_dropout(0.5).trained()
        except (ConfigError, PeftError) as error:
            pytest.skip(f"{case}: {named} of 0.5 is refused: {error}")
        expect_same(case.logits(peft), expected, f"{case}: evaluation with {named} of 0.5")
        peft.train()
        same = np.array_equal(case.logits(peft), expected)
        expect(not same, f"{case}: {named} of 0.5 changes nothing in training")

    def test_works_in_float32_and_in_float64(self, case: Case) -> None:
        """All that it adds, gives and learns from has the model's dtype; the numbers agree."""
        logits: list[Array] = []
        for dtype in (np.float32, np.float64):
            peft = case.trained(dtype)
            logits.append(case.logits(peft))
            if self.trains:
                peft.loss(case.ids, case.labels).backward()
            kinds = {"logits": logits[-1].dtype}
            for name, parameter in peft.base_model.named_parameters():
                kinds[name] = parameter.dtype
                if parameter.grad is not None:
                    kinds[f"the gradient of {name}"] = parameter.grad.dtype
            wrong = {name: str(kind) for name, kind in kinds.items() if kind != dtype}
            expect(not wrong, f"{case}: expected all to be {dtype.__name__}, got {wrong}")
        single, double = logits
        what = f"{case}: float64 beside float32"
        expect_close(double, single.astype(np.float64), what, tolerance=1e-4)

    @pytest.mark.parametrize("kv_heads", [1, 2, 4])
    def test_works_with_grouped_query_heads(self, kv_heads: int, host: Host) -> None:
        """Keys and values may have fewer heads than queries: it runs, and counts what there is."""
        case = self.case_on("llama", host)
        shape = dataclasses.replace(SMALL_MODELS["llama"], num_key_value_heads=kv_heads)
        case = dataclasses.replace(case, shape=shape)
        peft = case.trained()
        where = f"{case} with {shape.num_attention_heads} heads, {kv_heads} of keys and values"
        expect(bool(np.isfinite(case.logits(peft)).all()), f"{where}: logits are not finite")
        real, counted = peft.get_nb_trainable_parameters(), count_recipe(shape, [case.config], host)
        expect(counted == real, f"{where}: the model has {real} parameters, the formula {counted}")


def _continued(case: Case, peft: PeftModel, ids: IntArray, count: int) -> IntArray:
    """Append the likeliest next ids, each by the whole sequence before it."""
    lengths = np.full(len(ids), ids.shape[1])
    for _ in range(count):
        following = case.logits(peft, ids, prompt_lengths=lengths)[:, -1].argmax(axis=-1)
        ids = np.concatenate([ids, following[:, None]], axis=1)
    return ids
