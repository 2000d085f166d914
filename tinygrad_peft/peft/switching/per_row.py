"""One pass over a batch whose rows use different modules."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from tinygrad_peft.arrays import BoolArray, IntArray
from tinygrad_peft.errors import PeftError
from tinygrad_peft.nn import Module, VirtualKeys, VirtualTokens
from tinygrad_peft.nn import functional as F
from tinygrad_peft.nn.seams import Context, Norm
from tinygrad_peft.peft.sites import Seam
from tinygrad_peft.tensor import Tensor

__all__ = ["Batch", "choose_per_row", "modules_of_rows"]

Run: TypeAlias = Callable[..., object]  # a module, called with what its seam passes


class Batch(threading.local):
    """The rows of a batch that run now: all of them, or one module's within another's.

    Each thread has its own, since several may run one view at a time.
    """

    def __init__(self, size: int) -> None:
        self.rows: IntArray = np.arange(size)

    @contextmanager
    def narrowed(self, rows: IntArray) -> Iterator[None]:
        """Run these rows only, within the block."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before


def choose_per_row(seam: Seam, modules: Sequence[Module], batch: Batch) -> Module:
    """Return one module for a seam that runs each row of a batch through its own of `modules`."""
    distinct = list({id(module): module for module in modules}.values())
    if len(distinct) == 1:
        return distinct[0]
    kind = {"prompt": PromptPerRow, "prefix": PrefixPerRow}.get(seam.name, LayerPerRow)
    group = np.array([next(i for i, m in enumerate(distinct) if m is own) for own in modules])
    return kind(seam.path, distinct, group, batch)


def modules_of_rows(module: Module) -> Sequence[Module]:
    """Return the modules that `choose_per_row` joined, or the one module of all rows."""
    return module.modules if isinstance(module, _PerRow) else [module]


class _PerRow(Module):
    """Modules, and for each row (B,) in `group` the number of its module."""

    def __init__(self, path: str, modules: Sequence[Module], group: IntArray, batch: Batch) -> None:
        self.path = path
        self.modules = list(modules)
        self.group = group
        self.batch = batch

    def _runs(self) -> list[Run]:
        return [module for module in self.modules if callable(module)]


class LayerPerRow(_PerRow):
    """Any layer whose inputs and output have the rows as their first axis."""

    def __call__(self, x: Tensor | IntArray, *more: Tensor | Context | Norm | None) -> Tensor:
        now = self.batch.rows
        if not isinstance(x, Tensor) and (x.ndim == 1 or len(x) == 1):  # positions and types
            x = np.broadcast_to(x, (len(now), x.shape[-1]))  # that all rows share
        if x.shape[0] != len(now):
            raise PeftError(
                f"{self.path}: expected an input of {len(now)} rows, got shape {x.shape}"
            )
        group = self.group[now]
        rows = [np.flatnonzero(group == i) for i in range(len(self.modules))]
        # All contexts before the first run, since each run advances the cache that they share.
        arguments = [[_of(each, own, len(now)) for each in more] for own in rows]
        parts = []
        for run, own, others in zip(self._runs(), rows, arguments, strict=True):
            if own.size:
                with self.batch.narrowed(now[own]):
                    part = run(x[own], *others)
                assert isinstance(part, Tensor)
                parts.append(part)
        order = np.argsort(np.concatenate(rows))
        return F.concatenate(parts)[order]


def _of(argument: object, rows: IntArray, batch: int) -> object:
    """Narrow an argument to some rows of the batch."""
    if isinstance(argument, Context):
        return argument.of(rows, batch)
    return argument[rows] if isinstance(argument, Tensor) else argument


class PromptPerRow(_PerRow):
    """Each row's own prompt, padded at the left to the longest."""

    def __call__(self) -> VirtualTokens | None:
        found = [run() for run in self._runs()]
        prompts = [p.states if isinstance(p, VirtualTokens) else None for p in found]
        lengths = np.array([0 if p is None else p.shape[0] for p in prompts])
        if not lengths.any():
            return None
        states = _filled(prompts, lengths)[self.group]  # (B, N, D)
        return VirtualTokens(states, _present(lengths[self.group]))


class PrefixPerRow(_PerRow):
    """Each row's own prefix, padded at the left to the longest."""

    def __call__(self) -> VirtualKeys | None:
        prefixes = [run() for run in self._runs()]
        layers = [list(p.layers) if isinstance(p, VirtualKeys) else [] for p in prefixes]
        lengths = np.array([pairs[0][0].shape[0] if pairs else 0 for pairs in layers])
        if not lengths.any():
            return None

        def of(layer: int, kind: int) -> Tensor:
            own = [pairs[layer][kind] if pairs else None for pairs in layers]
            return _filled(own, lengths)[self.group]  # (B, P, K, D)

        count = max(len(pairs) for pairs in layers)
        return VirtualKeys(
            [(of(layer, 0), of(layer, 1)) for layer in range(count)],
            _present(lengths[self.group]),
        )


def _filled(own: Sequence[Tensor | None], lengths: IntArray) -> Tensor:
    """Pad the groups' tensors (n, ...) with zeros at the left: (groups, longest, ...)."""
    like = next(t for t in own if t is not None)
    longest = int(lengths.max())
    parts = []
    for tensor, length in zip(own, lengths, strict=True):
        missing = Tensor(np.zeros((longest - length, *like.shape[1:]), like.dtype))
        parts.append(missing if tensor is None else F.concatenate([missing, tensor]))
    return F.concatenate(parts).reshape(len(own), longest, *like.shape[1:])


def _present(lengths: IntArray) -> BoolArray:
    """Mask the virtual tokens that each row has, the last ones: (B, longest)."""
    longest = int(lengths.max())
    return np.asarray(np.arange(longest) >= longest - lengths[:, None])
