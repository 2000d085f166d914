import pytest

from tinygrad_peft.models.families.paths import PathMap

NAMING = PathMap(
    {
        "blocks": "encoder.layer",
        "blocks.#": "encoder.layer.#",
        "blocks.#.attn.q": "encoder.layer.#.self.query",
        "pooler": "pooler.dense",
    }
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("blocks", "encoder.layer"),
        ("blocks.11", "encoder.layer.11"),
        ("blocks.3.attn.q", "encoder.layer.3.self.query"),
        ("blocks.3.attn.q.weight", "encoder.layer.3.self.query.weight"),
        ("blocks.3.attn.q.parts.5", "encoder.layer.3.self.query.parts.5"),
        ("blocks.0.mlp", "encoder.layer.0.mlp"),
        ("pooler.bias", "pooler.dense.bias"),
        ("elsewhere.4.weight", "elsewhere.4.weight"),
        ("", ""),
    ],
)
def test_paths_are_translated_by_their_longest_known_beginning(ours: str, theirs: str) -> None:
    assert NAMING.theirs(ours) == theirs
    assert NAMING.ours(theirs) == ours


def test_a_beginning_ends_at_a_dot() -> None:
    assert NAMING.theirs("blocks.1.attn.qkv") == "encoder.layer.1.attn.qkv"
    assert NAMING.theirs("poolers") == "poolers"
