"""A program that trains for long, and says where it is: what the tests of Ctrl-C start.

Arguments: the folder to save into, and `slow` for a save that takes its time.
"""

import sys
import time
from pathlib import Path

from tests.train.toys import classifier, needles, same, saved, saving, weights
from tinygrad_peft.train import Event, StepEnded, TrainConfig, train


def say(event: Event) -> None:
    if isinstance(event, StepEnded):
        print("step", event.step, flush=True)
        time.sleep(0.02)


def main(folder: Path, pace: str) -> None:
    model = classifier()
    fast = saving(model)

    def save(to: Path) -> None:
        print("saving", flush=True)
        if pace == "slow":
            time.sleep(60)
        fast(to)

    config = TrainConfig(batch_size=4, epochs=1000)
    result = train(model, needles(64), None, config, out=folder, save=save, observers=[say])
    agree = result.saved_to is not None and same(weights(model), saved(result.saved_to))
    print(result.outcome, result.steps, result.saved_to, agree, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
