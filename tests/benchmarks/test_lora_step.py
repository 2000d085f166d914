"""The library's training step beside torch's, in turn, so that a noisy machine is fair to both."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SLOWER_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS")
ROUNDS = 3


def run(script: str, shape: str, batch: int, tokens: int) -> dict[str, float]:
    """The program's result, in a process without the settings that select slower kernels."""
    environment = {k: v for k, v in os.environ.items() if k not in SLOWER_KERNELS}
    command = [sys.executable, str(HERE / script), shape, str(batch), str(tokens)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(("shape", "batch", "tokens"), [("gpt2", 4, 128)])
def test_a_lora_step_is_as_fast_as_the_peers(shape: str, batch: int, tokens: int) -> None:
    ratios = []
    for _ in range(ROUNDS):
        ours = run("lora_step.py", shape, batch, tokens)
        peer = run("peer_lora_step.py", shape, batch, tokens)
        ratios.append(peer["seconds"] / ours["seconds"])
        print(
            f"\n{shape} {batch} x {tokens}: {ours['seconds']:.3f} s, {ours['peak_mb']:.0f} MB "
            f"(kernel {ours['kernel']}); torch {peer['seconds']:.3f} s, {peer['peak_mb']:.0f} MB; "
            f"torch / ours {ratios[-1]:.2f}"
        )
    assert statistics.median(ratios) >= 1
