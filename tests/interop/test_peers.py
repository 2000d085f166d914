from importlib.metadata import version

import peft
import torch
import transformers


def test_the_peers_are_the_ones_that_the_golden_files_were_made_with() -> None:
    assert torch.__version__.split("+")[0] == "2.13.0"
    assert int(transformers.__version__.split(".")[0]) >= 5
    assert peft.__version__ == version("peft")
