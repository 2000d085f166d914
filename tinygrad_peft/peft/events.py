"""What hooks are told: frozen, so that a hook grows by a field and never by a parameter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Module, TransformerConfig
from tinygrad_peft.peft.config import PeftConfig
from tinygrad_peft.peft.layout import Layout

__all__ = [
    "AffineShape",
    "Applied",
    "Combination",
    "CombinationType",
    "Combined",
    "Draft",
    "EmbeddingShape",
    "ForeignFolder",
    "ForeignName",
    "ForeignRequest",
    "ForeignStep",
    "ModelShape",
    "NormShape",
    "ParameterCount",
    "Source",
]

C = TypeVar("C", bound=PeftConfig)

CombinationType: TypeAlias = Literal["linear", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True)
class AffineShape:
    """An affine layer by its sizes."""

    path: str
    in_features: int
    out_features: int
    has_bias: bool


@dataclass(frozen=True)
class EmbeddingShape:
    """An embedding by its sizes; `slot` is the field of its owner, "embed_tokens" for the tokens'.

    `tied` says that the output layer has the same weight.
    """

    path: str
    slot: str
    num_embeddings: int
    embedding_dim: int
    tied: bool
    is_target: bool


@dataclass(frozen=True)
class NormShape:
    """A layer norm or an RMS norm by its size."""

    path: str
    size: int
    has_bias: bool


@dataclass(frozen=True)
class ModelShape:
    """A model by its sizes, for one config.

    Attributes:
        config: the transformer's settings.
        total: how many parameters the base has, shared ones once.
        targets: the affine layers that the config names.
        biases: how many elements all biases have, but for those that `modules_to_save` trains.
        embeddings: all embeddings that the model has.
        head: the model's output layer, if it has one.
        norms: the norms that the config names.
    """

    config: TransformerConfig
    total: int
    targets: tuple[AffineShape, ...]
    biases: int
    embeddings: tuple[EmbeddingShape, ...] = ()
    head: AffineShape | None = None
    norms: tuple[NormShape, ...] = ()


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a method trains, and how many of them come on top of the base's."""

    trainable: int
    added: int


@dataclass(frozen=True)
class Draft:
    """A recipe that is about to be applied.

    Attributes:
        model: the model, untouched.
        recipe: all steps, the innermost first.
        targets: for each step, the paths that its config names.
    """

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    targets: tuple[frozenset[str], ...]

    def steps(self, kind: type[C]) -> list[tuple[int, C]]:
        """Return the steps with a config of this kind, each with its number."""
        return [(i, config) for i, config in enumerate(self.recipe) if isinstance(config, kind)]


@dataclass(frozen=True)
class Applied:
    """A recipe that was applied."""

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    rewritten: Sequence[str]  # the paths, in order
    adapter: str  # what it is called; its weights, if they come from a folder, are there


@dataclass(frozen=True)
class Source:
    """One adapter's step in a combination.

    Attributes:
        config: its settings.
        weight: by how much its update is multiplied; it may be negative.
        tensors: for each path that it adapts, what it added there, by the names in its module.
        base: for each of these paths, the weights of what stood there, by their names in that.
    """

    config: PeftConfig
    weight: float
    tensors: Mapping[str, Mapping[str, Array]] = field(repr=False)
    base: Mapping[str, Mapping[str, Array]] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Combination:
    """Steps of several adapters that are to become one step.

    Attributes:
        sources: the steps, all of one method.
        combination_type: "linear", the weighted sum of the updates; or "ties", "dare_linear" or
            "dare_ties", which leave parts of the updates out.
        rank: how large the result may be; None: as large as it takes.
        density: the share of each update's elements that is kept, where some are left out.
        seed: what is drawn at random is drawn from.
    """

    sources: tuple[Source, ...]
    combination_type: CombinationType
    rank: int | None
    density: float
    seed: int

    def configs(self, kind: type[C]) -> list[C]:
        """Return the sources' settings, as the kind that they are.

        Raises PeftError where one is of another kind.
        """
        configs = [source.config for source in self.sources]
        if others := {type(c).__name__ for c in configs if not isinstance(c, kind)}:
            got = ", ".join(sorted(others))
            raise PeftError(f"combination: expected {kind.__name__}, got {got}")
        return [config for config in configs if isinstance(config, kind)]


@dataclass(frozen=True)
class Combined:
    """The step that several became.

    Attributes:
        config: its settings.
        tensors: for each path, what it adds there, by the names in its module.
        lost: for each path, the share of the wanted update that could not be kept, in the
            Frobenius norm; paths where nothing was lost may be left out.
    """

    config: PeftConfig
    tensors: Mapping[str, Mapping[str, Array]] = field(repr=False)
    lost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignFolder:
    """An adapter that another library wrote.

    Attributes:
        layout: whose it is.
        settings: what its adapter_config.json holds.
        shapes: those of its tensors, by their names in the file.
        base: the model that it is to be put into, where that is known.
    """

    layout: Layout
    settings: Mapping[str, object] = field(repr=False)
    shapes: Mapping[str, Shape] = field(repr=False)
    base: TransformerConfig | None = None


@dataclass(frozen=True)
class ForeignRequest:
    """A step that is to be written for another library.

    Attributes:
        layout: whose it shall be.
        adapter: what the adapter is called.
        paths: the places that it adapted, in the checkpoint's names.
        base: the model that they are in.
        base_name: what that is called, if it has a name.
    """

    layout: Layout
    adapter: str
    paths: Sequence[str]
    base: TransformerConfig
    base_name: str | None = None


@dataclass(frozen=True)
class ForeignName:
    """What another library calls a weight in its file, and whether it keeps it transposed."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class ForeignStep:
    """A step as it is here, and as it is there.

    Attributes:
        config: its settings here.
        settings: what its adapter_config.json holds there.
        naming: what a weight is called there, by the place that the method adapted, in the
            checkpoint's names, and by the weight's name in the module that it put there.
        problems: what the names and shapes in its file contradict of its settings, as far as that
            can be told; of use where the model is not known, for loading finds these and more.
    """

    config: PeftConfig
    settings: Mapping[str, object] = field(repr=False)
    naming: Callable[[str, str], ForeignName] = field(repr=False)
    problems: Sequence[str] = ()
