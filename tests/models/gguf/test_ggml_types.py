import pytest

from tinygrad_peft.models.gguf.ggml_types import GGML_TYPES


def test_the_table_matches_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf", reason="needs the gguf extra")
    theirs = {int(k): (k.name, *sizes) for k, sizes in gguf.GGML_QUANT_SIZES.items()}
    # An older package may lack the newest kinds, and a newer one have more.
    common = theirs.keys() & GGML_TYPES.keys()
    assert len(common) >= 30
    assert {k: tuple(GGML_TYPES[k]) for k in common} == {k: theirs[k] for k in common}
