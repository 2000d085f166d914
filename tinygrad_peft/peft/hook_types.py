"""Arguments and answers of the hooks: frozen, so that hooks grow by fields, not by parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from tinygrad_peft.arrays import Array, Shape
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Module, TransformerConfig
from tinygrad_peft.peft.configs.base import PeftConfig

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
    "WeightFormat",
]

C = TypeVar("C", bound=PeftConfig)

CombinationType: TypeAlias = Literal["linear", "ties", "dare_linear", "dare_ties"]


@dataclass(frozen=True)
class AffineShape:
    """The sizes of an affine layer."""

    path: str
    in_features: int
    out_features: int
    has_bias: bool


@dataclass(frozen=True)
class EmbeddingShape:
    """The sizes of an embedding.

    `slot` is the field of its owner, such as "embed_tokens". `tied`: the output layer has the same
    weight.
    """

    path: str
    slot: str
    num_embeddings: int
    embedding_dim: int
    tied: bool
    is_target: bool


@dataclass(frozen=True)
class NormShape:
    """The size of a layer norm or an RMS norm."""

    path: str
    size: int
    has_bias: bool


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model, for one config.

    Attributes:
        config: the transformer's settings.
        total: the number of parameters of the base, shared ones once.
        targets: the affine layers that the config targets.
        biases: the number of elements of all biases, without those that `modules_to_save` trains.
        embeddings: all embeddings.
        head: the output layer, if there is one.
        norms: the norms that the config targets.
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
    """The numbers of parameters that a method trains, and that it adds to the base's."""

    trainable: int
    added: int


@dataclass(frozen=True)
class WeightFormat:
    """A format in which affine layers keep their weights: its name, and the bits per weight."""

    name: str
    bits: float


@dataclass(frozen=True)
class Draft:
    """A recipe before it is applied.

    Attributes:
        model: the model, unchanged.
        recipe: all steps, the innermost first.
        targets: for each step, the paths that its config targets.
        loading: True if the weights are read from a folder: settings that change none of them
            are not objected to then.
    """

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    targets: tuple[frozenset[str], ...]
    loading: bool = False

    def steps(self, kind: type[C]) -> list[tuple[int, C]]:
        """List the steps with a config of this kind, each with its number."""
        return [(i, config) for i, config in enumerate(self.recipe) if isinstance(config, kind)]


@dataclass(frozen=True)
class Applied:
    """A recipe after it was applied."""

    model: Module = field(repr=False)
    recipe: tuple[PeftConfig, ...]
    rewritten: Sequence[str]  # the paths, in order
    adapter: str  # its name; weights from a folder are already loaded


@dataclass(frozen=True)
class Source:
    """One adapter's step in a combination.

    Attributes:
        config: its settings.
        weight: the factor of its update; it may be negative.
        tensors: for each path that it adapts, the weights that it added, by their names in its
            module.
        base: for each of these paths, the weights of the module before, by their names there.
    """

    config: PeftConfig
    weight: float
    tensors: Mapping[str, Mapping[str, Array]] = field(repr=False)
    base: Mapping[str, Mapping[str, Array]] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class Combination:
    """Steps of several adapters to combine into one.

    Attributes:
        sources: the steps, all of one method.
        combination_type: "linear", the weighted sum of the updates; or "ties", "dare_linear" or
            "dare_ties", which drop parts of the updates.
        rank: the largest rank of the result; None: no limit.
        density: the share of each update's elements that "ties" and "dare" keep.
        seed: the seed of random choices.
    """

    sources: tuple[Source, ...]
    combination_type: CombinationType
    rank: int | None
    density: float
    seed: int

    def configs(self, kind: type[C]) -> list[C]:
        """List the sources' settings, typed as `kind`.

        Raises PeftError if any is of another kind.
        """
        configs = [source.config for source in self.sources]
        if others := {type(c).__name__ for c in configs if not isinstance(c, kind)}:
            got = ", ".join(sorted(others))
            raise PeftError(f"combination: expected {kind.__name__}, got {got}")
        return [config for config in configs if isinstance(config, kind)]


@dataclass(frozen=True)
class Combined:
    """The step that several were combined into.

    Attributes:
        config: its settings.
        tensors: for each path, the weights that it adds, by their names in its module.
        lost: for each path, the share of the update that was lost, in the Frobenius norm; paths
            without a loss may be left out.
    """

    config: PeftConfig
    tensors: Mapping[str, Mapping[str, Array]] = field(repr=False)
    lost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ForeignFolder:
    """An adapter that another library wrote.

    Attributes:
        layout: the name of its layout.
        settings: the contents of its adapter_config.json.
        shapes: the shapes of its tensors, by their names in the file.
        base: the settings of the model that it will be applied to, if known.
    """

    layout: str
    settings: Mapping[str, object] = field(repr=False)
    shapes: Mapping[str, Shape] = field(repr=False)
    base: TransformerConfig | None = None


@dataclass(frozen=True)
class ForeignRequest:
    """A step to write for another library.

    Attributes:
        layout: the name of the layout to write.
        adapter: the adapter's name.
        paths: the modules that it adapted, in the checkpoint's names.
        base: the settings of their model.
        base_name: the model's name, if it has one.
    """

    layout: str
    adapter: str
    paths: Sequence[str]
    base: TransformerConfig
    base_name: str | None = None


@dataclass(frozen=True)
class ForeignName:
    """A weight's name in another library's file, and whether it is stored transposed."""

    name: str
    transposed: bool = False


@dataclass(frozen=True)
class ForeignStep:
    """A step in this library and in another one.

    Attributes:
        config: its settings here.
        settings: the contents of its adapter_config.json there.
        naming: returns a weight's name there, for the path of the adapted module, in the
            checkpoint's names, and the weight's name in the module that the method put there.
        problems: contradictions between its settings and the names and shapes in its file, as far
            as they show without the model. Loading finds these and more.
    """

    config: PeftConfig
    settings: Mapping[str, object] = field(repr=False)
    naming: Callable[[str, str], ForeignName] = field(repr=False)
    problems: Sequence[str] = ()
