"""Defects of PEFT 0.21.2 with (IA)³; tests/plugins/test_ia3.py tests the right behaviour here.

If one of these fails with a later PEFT, the defect was fixed there, and the test can go.
"""

from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import pytest
import torch

from tests.interop.tiny import peer, peer_logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def made(**settings: Any) -> Any:  # noqa: ANN401 - PEFT's models have no common type
    peft = hf.get_peft_model(peer("llama"), hf.IA3Config(**settings), adapter_name="a")
    return moved(peft).eval()


def moved(peft: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "ia3_l" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return peft


def layer(peft: Any) -> Any:  # noqa: ANN401
    return peft.base_model.model.model.layers[0].mlp.down_proj


def test_unmerging_is_not_exact() -> None:
    peft = made()
    before = layer(peft).base_layer.weight.detach().clone()
    peft.merge_adapter()
    peft.unmerge_adapter()
    assert (layer(peft).base_layer.weight != before).any()


def test_a_factor_of_zero_loses_the_base_when_it_is_merged() -> None:
    peft = made()
    before = layer(peft).base_layer.weight.detach().clone()
    with torch.no_grad():
        layer(peft).ia3_l["a"][0, 3] = 0
    peft.merge_adapter()
    peft.unmerge_adapter()
    assert before[:, 3].abs().max() > 0.1
    assert (layer(peft).base_layer.weight[:, 3] == 0).all()


@pytest.mark.parametrize("targets", [["v_proj"], "all-linear"])
def test_it_cannot_read_its_own_files(targets: list[str] | str, tmp_path: Path) -> None:
    made(target_modules=targets).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="should be a subset of `target_modules`"):
        hf.PeftModel.from_pretrained(peer("llama"), tmp_path / "a")


def test_a_weighted_adapter_scales_the_base_with_it() -> None:
    peft = made()
    peft.add_weighted_adapter(["a"], [0.5], "lighter")
    vectors = layer(peft).ia3_l
    assert torch.equal(vectors["lighter"], 0.5 * vectors["a"])
    assert (vectors["lighter"] - (1 + 0.5 * (vectors["a"] - 1))).abs().min() > 0.4


def test_a_second_adapter_has_the_sides_of_the_first() -> None:
    peft = made()
    peft.add_adapter("b", hf.IA3Config(feedforward_modules=[]))
    alone = made(feedforward_modules=[])
    assert layer(alone).ia3_l["a"].shape == (16, 1)
    assert layer(peft).ia3_l["b"].shape == (1, 24)


def test_a_misspelt_feed_forward_module_is_left_out_in_silence() -> None:
    peft = made(target_modules="all-linear", feedforward_modules=["donw_proj"])
    assert np.isfinite(peer_logits(peft)).all()
    assert layer(peft).ia3_l["a"].shape == (16, 1)
