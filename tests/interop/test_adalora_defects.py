"""What PEFT 0.21.2 does wrong with AdaLoRA. tests/plugins/test_adalora.py has it right.

Where one of these fails with a later PEFT, it has been mended there, and the test can go.
"""

from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import IDS, peer, peer_logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def made(**settings: Any) -> Any:  # noqa: ANN401 - PEFT's models have no common type
    usual = {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj", "v_proj"]}
    config = hf.AdaLoraConfig(task_type="CAUSAL_LM", **{**usual, **settings})
    torch.manual_seed(0)
    return hf.get_peft_model(peer("llama"), config)


def trained(peft: Any, steps: int, start: int = 1) -> Any:  # noqa: ANN401
    optimizer = torch.optim.Adam([p for p in peft.parameters() if p.requires_grad], lr=0.05)
    for step in range(start, start + steps):
        ids = torch.tensor(np.random.default_rng(step).integers(3, 59, (4, 6)))
        peft(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        peft.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return peft.eval()


def read(folder: Path, **how: bool) -> Any:  # noqa: ANN401
    return hf.PeftModel.from_pretrained(peer("llama"), folder, **how)


def left(peft: Any) -> int:  # noqa: ANN401
    return sum(int((p != 0).sum()) for name, p in peft.named_parameters() if "lora_E" in name)


def test_equal_ranks_at_start_and_end_cannot_be_trained() -> None:
    with pytest.raises(RuntimeError, match="out of range"):
        trained(made(target_r=4), 1)


def test_a_run_of_one_step_fails() -> None:
    with pytest.raises(KeyError):
        trained(made(total_step=1), 1)


@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning")
def test_an_adapter_that_was_pruned_loses_more_when_it_is_trained_on(tmp_path: Path) -> None:
    peft = trained(made(), 10)
    assert left(peft) == 8
    peft.save_pretrained(tmp_path)
    assert left(trained(read(tmp_path, is_trainable=True), 3)) < 4
    with pytest.raises(RuntimeError, match="size of tensor"):
        trained(read(tmp_path, is_trainable=True), 1, start=11)


def test_it_warns_that_it_ignores_its_own_ranks_and_does_not(tmp_path: Path) -> None:
    trained(made(), 10).save_pretrained(tmp_path)
    with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match"):
        loaded = read(tmp_path)
    assert left(loaded) == 8


@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning")
def test_saved_between_two_allocations_it_is_another_adapter(tmp_path: Path) -> None:
    peft = trained(made(deltaT=3), 5)
    peft.save_pretrained(tmp_path)
    effect = np.abs(peer_logits(peft) - peer_logits(peer("llama"))).max()
    assert np.abs(peer_logits(read(tmp_path)) - peer_logits(peft)).max() > 0.1 * effect


def test_the_penalty_is_part_of_the_loss_of_an_evaluation() -> None:
    peft, ids = made().eval(), torch.tensor(IDS)
    with torch.no_grad(), peft.disable_adapter():
        found = peft(input_ids=ids, labels=ids).loss
        expected = peer("llama")(input_ids=ids, labels=ids).loss
    assert found > expected + 0.5
