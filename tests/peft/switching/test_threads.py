"""Several threads and asyncio tasks that run one adapted model at a time."""

import asyncio
import copy
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from tests.peft.small import IDS, LLAMA, logits, shake, small
from tinygrad_peft.arrays import AnyArray, Array, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Parameter, no_dropout
from tinygrad_peft.peft import Host, PeftConfig, PeftModel, get_peft_model
from tinygrad_peft.peft.switching.choices import _chosen
from tinygrad_peft.peft.switching.views import LIMIT
from tinygrad_peft.tensor import no_grad
from tinygrad_peft.train import Stepper, TrainConfig
from tinygrad_peft.train.batching import Batch
from tinygrad_peft_adapter import BottleneckAdapterConfig
from tinygrad_peft_ia3 import IA3Config
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prefix import PrefixTuningConfig
from tinygrad_peft_prompt import PromptTuningConfig
from tinygrad_peft_qlora import QLoraConfig

T = TypeVar("T")

THREADS = 8
RECIPES: Mapping[str, PeftConfig | Sequence[PeftConfig]] = {
    "lora": LoraConfig(r=2),
    "prefix": PrefixTuningConfig(num_virtual_tokens=2),
    "prompt": PromptTuningConfig(num_virtual_tokens=3),
    "adapter": BottleneckAdapterConfig(bottleneck_dim=4),
    "qlora": [QLoraConfig(), LoraConfig(r=2)],
    "ia3": IA3Config(),
}
NAMES = list(RECIPES)
ROWS = np.concatenate([IDS, IDS[:, ::-1]])  # (4, T)


@pytest.fixture
def peft() -> PeftModel:
    """One base with an adapter of each method, the first of them active."""
    base, host = small(replace(LLAMA, num_hidden_layers=1)), Host.installed()
    made = get_peft_model(base, RECIPES["lora"], adapter_name="lora", host=host)
    for seed, (name, recipe) in enumerate(RECIPES.items()):
        if name != "lora":
            made.add_adapter(name, recipe, seed=seed)
        made.set_adapter(name)
        shake(made, seed)
    made.set_adapter("lora")
    made.eval()
    return made


@pytest.fixture(autouse=True)
def hasty_switches() -> Iterator[None]:
    """Let Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], T], threads: int = THREADS) -> list[T]:
    """Run `work` with the number of each thread, all beginning together."""
    together = threading.Barrier(threads)

    def begin(thread: int) -> T:
        together.wait()
        return work(thread)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


# ---------- forward passes ----------

Job = Callable[[PeftModel], AnyArray]


def set_and_run(name: str) -> Job:
    def job(peft: PeftModel) -> AnyArray:
        peft.set_adapter(name)
        return logits(peft)

    return job


def run_within(name: str) -> Job:
    def job(peft: PeftModel) -> AnyArray:
        with peft.using_adapter(name):
            return peft.hidden_states(IDS).data

    return job


def run_by_row(names: Sequence[str]) -> Job:
    return lambda peft: peft(ROWS, adapter_names=names).data


def run_disabled(peft: PeftModel) -> AnyArray:
    with peft.disable_adapter():
        return logits(peft)


def generate(name: str) -> Job:
    def job(peft: PeftModel) -> AnyArray:
        peft.set_adapter(name)
        return peft.generate(IDS, max_new_tokens=2)

    return job


def generate_by_row(peft: PeftModel) -> AnyArray:
    return peft.generate(ROWS, max_new_tokens=2, adapter_names=["lora", "prompt", "ia3", "qlora"])


def jobs() -> list[Job]:
    neighbours = [[*NAMES[i:], "__base__", *NAMES][:4] for i in range(len(NAMES))]
    return [
        *(set_and_run(name) for name in NAMES * 3),
        *(run_within(name) for name in NAMES * 2),
        *(run_by_row(names) for names in neighbours),
        *(generate(name) for name in NAMES),
        generate_by_row,
        *([run_disabled] * 12),
    ]


@pytest.mark.slow
def test_no_output_of_ten_thousand_is_another_threads(peft: PeftModel) -> None:
    todo = jobs()
    with no_grad():
        right = [job(peft) for job in todo]

    def work(thread: int) -> int:
        rng, wrong = np.random.default_rng(thread), 0
        with no_grad():
            for number in rng.integers(len(todo), size=10_000 // THREADS):
                wrong += not np.array_equal(todo[number](peft), right[number])
        return wrong

    assert sum(in_threads(work)) == 0
    with no_grad():
        assert all(np.array_equal(job(peft), own) for job, own in zip(todo, right, strict=True))


def test_gradients_go_to_each_threads_own_adapter(peft: PeftModel) -> None:
    labels = IDS.copy()

    def work(thread: int) -> list[Array]:
        peft.set_adapter(NAMES[thread])
        parameters = peft.trainable_parameters()
        for _ in range(10):
            for parameter in parameters:
                parameter.grad = None
            peft.loss(IDS, labels).backward()
        return [p.grad for p in parameters if p.grad is not None]

    one_by_one = [work(thread) for thread in range(len(NAMES))]
    for found, right in zip(in_threads(work, len(NAMES)), one_by_one, strict=True):
        assert right
        for one, other in zip(found, right, strict=True):
            np.testing.assert_array_equal(one, other)


def test_no_gradient_of_one_weight_is_lost_when_threads_add_to_it() -> None:
    weight = Parameter(np.zeros(200_000, np.float32))  # long enough for NumPy to let others run

    def work(_: int) -> None:
        for _ in range(25):
            weight.sum().backward()

    in_threads(work, 4)
    np.testing.assert_array_equal(np.array(weight.grad), np.full(weight.shape, 100, np.float32))


def test_without_gradients_in_one_thread_others_have_theirs(peft: PeftModel) -> None:
    begun, done = threading.Event(), threading.Event()

    def without(thread: int) -> bool:
        if thread:
            with no_grad():
                begun.set()
                done.wait(10)
                return peft(IDS).requires_grad
        begun.wait(10)
        found = peft(IDS).requires_grad
        done.set()
        return found

    assert in_threads(without, 2) == [True, False]


def test_one_thread_drops_nothing_while_another_trains() -> None:
    base, dropping = small(replace(LLAMA, num_hidden_layers=1)), LoraConfig(r=2, lora_dropout=0.5)
    peft = get_peft_model(base, dropping)
    shake(peft)
    peft.eval()
    right = logits(peft)
    peft.train()

    def work(thread: int) -> Array:
        if thread:
            with no_dropout():
                return logits(peft)
        return logits(peft)

    dropped, whole = in_threads(work, 2)
    np.testing.assert_array_equal(whole, right)
    assert not np.allclose(dropped, right)


# ---------- whose choice it is ----------


def in_a_thread(work: Callable[[], T]) -> T:
    return in_threads(lambda _: work(), 1)[0]


def test_a_thread_that_has_chosen_nothing_follows_the_last_choice(peft: PeftModel) -> None:
    peft.set_adapter("prefix")
    assert in_a_thread(lambda: peft.active_adapters) == ("prefix",)
    np.testing.assert_array_equal(in_a_thread(lambda: logits(peft)), logits(peft))


def test_what_a_thread_sets_is_its_own_and_the_default_of_others(peft: PeftModel) -> None:
    def other() -> tuple[str, ...]:
        peft.set_adapter("ia3")
        return peft.active_adapters

    assert in_a_thread(other) == ("ia3",)
    assert peft.active_adapters == ("lora",)
    assert in_a_thread(lambda: peft.active_adapters) == ("ia3",)
    lora, ia3 = logits(peft), logits(peft.base_model)
    assert not np.array_equal(lora, ia3)
    peft.set_adapter("ia3")
    np.testing.assert_array_equal(logits(peft), ia3)


def test_disabling_acts_in_its_thread_alone(peft: PeftModel) -> None:
    adapted = logits(peft)
    with peft.disable_adapter():
        np.testing.assert_array_equal(in_a_thread(lambda: logits(peft)), adapted)
        assert not np.array_equal(logits(peft), adapted)
    np.testing.assert_array_equal(logits(peft), adapted)
    np.testing.assert_array_equal(logits(peft.base_model), adapted)


def test_an_adapter_used_within_a_block_is_active_nowhere_else(peft: PeftModel) -> None:
    before = logits(peft)
    with peft.using_adapter("prefix"):
        assert list(peft.active_adapters) == ["prefix"]
        assert in_a_thread(lambda: peft.active_adapters) == ("lora",)
        np.testing.assert_array_equal(logits(peft.base_model), before)
        with peft.using_adapter(["ia3", "lora"]):
            assert list(peft.active_adapters) == ["ia3", "lora"]
        with peft.disable_adapter():
            peft.set_adapter("prompt")
        assert list(peft.active_adapters) == ["prompt"]
    assert list(peft.active_adapters) == ["lora"]


def test_names_used_within_a_block_are_checked(peft: PeftModel) -> None:
    with (
        pytest.raises(PeftError, match="'prefx'; did you mean 'prefix'"),
        peft.using_adapter("prefx"),
    ):
        pass
    with (
        pytest.raises(PeftError, match="using_adapter: expected one or more"),
        peft.using_adapter([]),
    ):
        pass
    peft.merge_adapter()
    with pytest.raises(PeftError, match="unmerge it before switching"), peft.using_adapter("ia3"):
        pass


def test_asyncio_tasks_choose_for_themselves(peft: PeftModel) -> None:
    right = {}
    for name in NAMES:
        with peft.using_adapter(name):
            right[name] = logits(peft)
    with peft.disable_adapter():
        right["__base__"] = logits(peft)

    async def set_and_run(name: str) -> int:
        wrong = 0
        peft.set_adapter(name)
        for _ in range(20):
            await asyncio.sleep(0)
            wrong += not np.array_equal(logits(peft), right[name])
            with peft.disable_adapter():
                await asyncio.sleep(0)
                wrong += not np.array_equal(logits(peft), right["__base__"])
        return wrong

    async def together() -> list[int]:
        return await asyncio.gather(*(set_and_run(name) for name in NAMES))

    assert asyncio.run(together()) == [0] * len(NAMES)
    assert peft.active_adapters == ("lora",)


def test_on_token_may_run_the_base_and_switch(peft: PeftModel) -> None:
    right = peft.generate(IDS, max_new_tokens=4)
    with peft.disable_adapter():
        base = logits(peft)

    def look(_: IntArray) -> None:
        with peft.disable_adapter():
            np.testing.assert_array_equal(logits(peft), base)
        peft.set_adapter("ia3")

    np.testing.assert_array_equal(peft.generate(IDS, max_new_tokens=4, on_token=look), right)
    assert peft.active_adapters == ("ia3",)


def test_a_model_that_is_gone_leaves_no_choice_behind() -> None:
    for _ in range(3):
        get_peft_model(small(), LoraConfig(r=2))
        gc.collect()
    kept = get_peft_model(small(), LoraConfig(r=2))
    assert [model() for model in _chosen.get()] == [kept._adapters.choices]  # noqa: SLF001


# ---------- changes while others run ----------


def test_passes_go_on_while_adapters_come_and_go(peft: PeftModel) -> None:
    right = {}
    for name in NAMES:
        with peft.using_adapter(name):
            right[name] = logits(peft)
    stop = threading.Event()

    def work(thread: int) -> int:
        if thread == 0:
            for seed in range(8):
                peft.add_adapter(f"new{seed}", LoraConfig(r=2), seed=seed)
                peft.merge_adapter()
                peft.unmerge_adapter()
                peft.delete_adapter(f"new{seed}")
            peft.release_base()
            stop.set()
            return 0
        name, wrong = NAMES[thread], 0  # not the one that is merged
        while not stop.is_set():
            # Switching is refused while another adapter is merged.
            with suppress(PeftError), peft.using_adapter(name):
                wrong += not np.array_equal(logits(peft), right[name])
        return wrong

    peft.delete_adapter("qlora")  # else the base cannot be released
    assert in_threads(work, 4) == [0] * 4


def test_who_has_chosen_another_adapter_is_not_merged(peft: PeftModel) -> None:
    chosen, merged, done = threading.Event(), threading.Event(), []

    def other(thread: int) -> None:
        if thread:
            peft.set_adapter("prompt")
            before = logits(peft)
            chosen.set()
            merged.wait(10)
            np.testing.assert_array_equal(logits(peft), before)
            done.append(thread)
        else:
            chosen.wait(10)
            peft.set_adapter("lora")
            before = logits(peft)
            peft.merge_adapter()
            np.testing.assert_allclose(logits(peft), before, rtol=1e-4, atol=1e-5)
            merged.set()

    in_threads(other, 2)
    assert done == [1]


def test_a_deleted_adapter_is_chosen_no_more_in_any_thread(peft: PeftModel) -> None:
    chosen, deleted = threading.Event(), threading.Event()

    def work(thread: int) -> tuple[str, ...]:
        if thread:
            with peft.using_adapter(["ia3", "prompt"]):
                chosen.set()
                deleted.wait(10)
                return peft.active_adapters
        chosen.wait(10)
        peft.delete_adapter("ia3")
        deleted.set()
        return peft.active_adapters

    assert in_threads(work, 2) == [("lora",), ("prompt",)]


def test_what_was_chosen_is_what_a_copy_begins_with(peft: PeftModel) -> None:
    with peft.using_adapter("prompt"):
        twin = copy.deepcopy(peft)
    assert (twin.active_adapters, peft.active_adapters) == (("prompt",), ("lora",))
    with peft.disable_adapter():
        twin = copy.deepcopy(peft)
    np.testing.assert_array_equal(logits(twin), logits(peft))
    np.testing.assert_array_equal(logits(twin.base_model), logits(peft))


def test_more_adapters_than_views_that_are_kept() -> None:
    peft = get_peft_model(small(replace(LLAMA, num_hidden_layers=1)), LoraConfig(r=1))
    for number in range(LIMIT + 2):
        peft.add_adapter(f"a{number}", LoraConfig(r=1), seed=number)
        peft.set_adapter(f"a{number}")
        shake(peft, number)
    first: dict[str, Array] = {}
    for _ in range(2):
        for name in peft.adapters:
            peft.set_adapter(name)
            np.testing.assert_array_equal(logits(peft), first.setdefault(name, logits(peft)))


# ---------- weights that change ----------


def test_no_pass_sees_weights_of_two_steps(peft: PeftModel) -> None:
    parameters, stop = peft.trainable_parameters(), threading.Event()
    seen: list[int] = []  # how many steps the weights of a pass are from

    def take(step: int) -> None:
        with peft.changing_weights():
            for parameter in parameters:
                parameter.data = np.full_like(parameter.data, step)

    def work(thread: int) -> None:
        if thread == 0:
            until = time.monotonic() + 60  # seconds, for a machine that is busy
            step = 0
            while step < 100 or (len(seen) < 10 and time.monotonic() < until):
                step += 1
                take(step)
            stop.set()
            return

        def look(_: IntArray) -> None:
            seen.append(len({float(p.data.flat[0]) for p in parameters}))

        while not stop.is_set():
            peft.generate(IDS, max_new_tokens=1, on_token=look)

    take(0)
    in_threads(work, 4)
    assert set(seen) == {1}


def test_weights_do_not_change_within_a_pass_of_the_same_thread(peft: PeftModel) -> None:
    def change(_: IntArray) -> None:
        with peft.changing_weights():
            pass

    with pytest.raises(PeftError, match="weights cannot change within a pass, such as in on_token"):
        peft.generate(IDS, max_new_tokens=1, on_token=change)
    with peft.changing_weights(), peft.changing_weights():
        logits(peft)


def test_passes_within_passes_and_changes_never_wait_for_each_other(peft: PeftModel) -> None:
    def work(thread: int) -> None:
        own, other = NAMES[thread % 2], NAMES[(thread + 1) % 2]
        peft.set_adapter(own)

        def look(_: IntArray) -> None:
            with peft.using_adapter(other):
                logits(peft)

        for _ in range(20):
            peft.generate(IDS, max_new_tokens=2, on_token=look)
            with peft.changing_weights(), peft.using_adapter(other):
                logits(peft)

    in_threads(work, 4)


def test_one_adapter_is_trained_while_another_runs() -> None:
    trained = LoraConfig(r=2, lora_dropout=0.1)
    together, alone = (get_peft_model(small(LLAMA), trained) for _ in range(2))
    together.add_adapter("other", LoraConfig(r=3), seed=1)
    with together.using_adapter("other"):
        shake(together)
        right = logits(together)
    ids: npt.NDArray[np.int64] = IDS.astype(np.int64)
    batch = Batch(ids, ids > 0, ids, np.arange(2))
    stop = threading.Event()

    def work(thread: int) -> int:
        if thread == 0:
            stepper = Stepper(together, TrainConfig(), total_steps=20)
            for _ in range(20):
                stepper.step(batch)
            stop.set()
            return 0
        wrong = 0
        with together.using_adapter("other"), no_dropout():
            while not stop.is_set():
                wrong += not np.array_equal(logits(together), right)
        return wrong

    assert in_threads(work, 3) == [0] * 3
    stepper = Stepper(alone, TrainConfig(), total_steps=20)
    for _ in range(20):
        stepper.step(batch)
    for one, other in zip(
        together.trainable_parameters(), alone.trainable_parameters(), strict=True
    ):
        np.testing.assert_array_equal(one.data, other.data)


def test_every_adapter_follows_a_switch_of_the_mode_and_no_switch_of_one_module_is_undone() -> None:
    base = small(replace(LLAMA, num_hidden_layers=1, hidden_dropout=0.5))
    peft = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.5))
    peft.add_adapter("other", LoraConfig(r=2, lora_dropout=0.5))
    peft.set_adapter("other")
    shake(peft)
    for owner in (peft, base):
        peft.set_adapter("default")
        for mode in (True, False, True, False):
            owner.train(mode=mode)
            for name in peft.adapters:
                with peft.using_adapter(name):
                    assert {m.training for _, m in peft.named_modules() if m is not peft} == {mode}
                    assert np.array_equal(logits(peft), logits(peft)) is not mode
    base.train()
    base.dropout.eval()
    for name in peft.adapters:
        peft.set_adapter(name)
        assert [path for path, m in peft.named_modules() if not m.training and m is not peft] == [
            "base_model.dropout"
        ]
