"""Batches run over the mesh, one a device: the loop of inference."""

from __future__ import annotations

import abc
import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from embed_jax.parallel.mesh import batch_devices, make_mesh, own_groups, refuse_fork, split_groups
from embed_jax.types import Params, TokenBatch


def default_batch_tokens() -> int:
    """Returns the slots a device encodes at a time, to fit a CPU's cache or fill an accelerator."""
    return 2048 if jax.default_backend() == "cpu" else 65536


@contextlib.contextmanager
def progress_bar(
    show: bool, total: int | None, unit: str = "text"
) -> Iterator[Callable[[int], Any]]:
    """Yields a function that takes the number of texts just encoded, and moves the bar.

    Args:
        show: whether there is a bar.
        total: the number of texts; None: it is not known.
        unit: what is counted.
    """
    if not show:
        yield lambda count: None
        return
    import tqdm

    with tqdm.tqdm(total=total, unit=unit, dynamic_ncols=True) as bar:
        yield bar.update


def run_batches(
    encode: Callable[[Params, TokenBatch], Any],
    params: Params,
    batches: Iterable[tuple[Int[np.ndarray, " n"], TokenBatch]],
    mesh: Mesh,
) -> Iterator[tuple[Int[np.ndarray, " n"], Any]]:
    """Runs batches of equal shape, one a device; the next is prepared while the devices work.

    Args:
        encode: see `gather.sharded_encode`.
        params: the model's parameters, on the mesh.
        batches: the numbers of a batch's texts, and the batch, leaves `[R, T]`; see
            `window.pack_window`.
        mesh: the device mesh, see `mesh.make_mesh`.

    Yields:
        The numbers of a batch's texts, and their embeddings. Where `encode` gives a dict, it is
        yielded whole, leaves `[S, ...]` or of whatever else they have.

    Raises:
        RunError: see `refuse_fork`.
    """
    refuse_fork()
    waiting: collections.deque = collections.deque()
    for numbers, group in _by_devices(batches, batch_devices(mesh)):
        waiting.append((numbers, encode(params, split_groups(own_groups(group, mesh), mesh))))
        # One batch stays on its way: the devices work while the host packs the next.
        if len(waiting) > 1:
            yield from _fetch(*waiting.popleft())
    while waiting:
        yield from _fetch(*waiting.popleft())


def _by_devices(
    batches: Iterable[tuple[np.ndarray, TokenBatch]], devices: int
) -> Iterator[tuple[list[np.ndarray], TokenBatch]]:
    """Stacks batches of equal shape, one a device; where there are too few, empty ones fill up."""
    for _, alike in itertools.groupby(
        batches, key=lambda item: (item[1].token_ids.shape, item[1].sentences)
    ):
        alike = iter(alike)
        while chunk := list(itertools.islice(alike, devices)):
            numbers, groups = [item[0] for item in chunk], [item[1] for item in chunk]
            empty = groups[0].replace(
                sentence=np.full_like(groups[0].sentence, groups[0].sentences)
            )
            groups += [empty] * (devices - len(groups))
            yield numbers, jax.tree.map(lambda *leaves: np.stack(leaves), *groups)


def _fetch(numbers: list[np.ndarray], embeddings: Any) -> Iterator[tuple[np.ndarray, Any]]:
    if isinstance(embeddings, dict):
        fetched = jax.device_get(embeddings)
        for index, number in enumerate(numbers):
            yield number, {name: leaf[index] for name, leaf in fetched.items()}
        return
    for number, group in zip(numbers, np.asarray(embeddings), strict=False):
        yield number, group[: len(number)]


class PicklesByParts(abc.ABC):
    """A model that is pickled by its spec, parameters and settings, for another process.

    Devices and compiled programs stay behind: `_build` makes them anew there, on all devices where
    the model was on all, else on as many as it was on or there are. Processes are to be spawned,
    not forked: see `mesh.refuse_fork`.
    """

    _devices: int
    _mesh: Mesh
    spec: Any
    params: Params

    @abc.abstractmethod
    def _build(self, spec: Any, params: Params) -> None:
        """Makes what belongs to this process: programs, and parameters on the mesh."""

    def __copy__(self):
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        own = ("_mesh", "_encoder", "_programs", "_encode")
        settings = {name: value for name, value in vars(self).items() if name not in own}
        return settings | {"params": jax.device_get(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        refuse_fork()
        self.__dict__.update(state)
        self._mesh = make_mesh(min(self._devices, jax.device_count()))
        self._build(self.spec, state["params"])
