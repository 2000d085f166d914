"""The optimiser and the learning rates of a run."""

import pytest

from tests.peft.small import LLAMA, ShiftConfig, plugin, shift, small
from tests.train.toys import classifier
from tinygrad_peft.errors import TrainingError
from tinygrad_peft.nn import SGD, AdamW
from tinygrad_peft.peft import Host, get_peft_model
from tinygrad_peft.train import TrainConfig
from tinygrad_peft.train.config import ScheduleName
from tinygrad_peft.train.optimizers import make_optimizer, make_schedule, peak_rates
from tinygrad_peft_lora import LoraConfig
from tinygrad_peft_prompt import PromptTuningConfig


def test_the_optimizer_takes_its_settings_from_the_config() -> None:
    model = classifier()
    adamw = make_optimizer(TrainConfig(lr=0.5, weight_decay=0.25), model)
    assert isinstance(adamw, AdamW)
    assert (adamw.lr, adamw.weight_decay) == (0.5, 0.25)
    sgd = make_optimizer(TrainConfig(optimizer="sgd", lr=0.5, weight_decay=0.25), model)
    assert isinstance(sgd, SGD)
    assert (sgd.lr, sgd.weight_decay) == (0.5, 0.25)
    assert set(sgd.factors) == {1.0}


def test_without_a_rate_each_step_has_the_rate_of_its_method() -> None:
    shifted, lora, prompt = (
        ShiftConfig(target_modules=["o_proj"]),
        LoraConfig(r=2, target_modules=["q_proj"]),
        PromptTuningConfig(num_virtual_tokens=2, modules_to_save=["lm_head"]),
    )
    host = Host.installed()
    host.register(plugin(ShiftConfig, adapt=shift), "shift")
    peft = get_peft_model(small(LLAMA), [shifted, lora, prompt], host=host)
    rates = peak_rates(TrainConfig(), peft)
    by_step = {
        step: {rates[p] for p in peft.record.named_parameters(step).values()} for step in range(3)
    }
    assert by_step == {0: {1e-3}, 1: {LoraConfig.learning_rate}, 2: {1e-2}}
    assert len(rates) == len(peft.trainable_parameters())
    optimizer = make_optimizer(TrainConfig(), peft)
    assert optimizer.lr == 1e-2
    assert {p: optimizer.lr * f for p, f in zip(rates, optimizer.factors, strict=True)} == rates
    assert set(peak_rates(TrainConfig(lr=0.5), peft).values()) == {0.5}


def test_a_model_without_an_adapter_is_trained_at_the_usual_rate() -> None:
    optimizer = make_optimizer(TrainConfig(), classifier())
    assert (optimizer.lr, set(optimizer.factors)) == (1e-3, {1.0})


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    model = classifier()
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(TrainingError, match=r"nothing to train: of \d+ parameters"):
        make_optimizer(TrainConfig(), model)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_run_of_one_step_has_a_rate(schedule: ScheduleName) -> None:
    assert make_schedule(TrainConfig(schedule=schedule), 1)(0) == 1.0


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainConfig(schedule="linear", warmup=0.2), [0, 0.5, 1, 0.875, 0.75]),
        (TrainConfig(schedule="cosine", warmup=0.0), [1, 0.9755, 0.9045, 0.7939, 0.6545]),
        (TrainConfig(schedule="constant", warmup=0.11), [0, 0.5, 1, 1, 1]),  # rounded up
    ],
    ids=["linear", "cosine", "constant"],
)
def test_the_warmup_is_a_share_of_all_steps(config: TrainConfig, rates: list[float]) -> None:
    schedule = make_schedule(config, total=10)
    assert [schedule(step) for step in range(5)] == pytest.approx(rates, abs=1e-4)
