"""From the parameters of a network to the tensors of a published layout, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from numpy.typing import NDArray

from jaxdiff.pretrained.files.naming import Leaf, Naming
from jaxdiff.pretrained.files.tensors import floating


class Published(Mapping[str, NDArray[Any]]):
    """The tensors that a network's parameters make, by their published names; each is made when it is asked for.

    Args:
      params: of the network; those that are split over devices of other hosts are gathered, array by array.
      naming: their names.
      dtype: of the tensors; None: as the parameters have it.

    >>> naming = Naming(renames=[("^block/", "layers.{}.")])
    >>> tensors = Published({"block": {"kernel": np.ones((2, 3, 4))}}, naming)
    >>> list(tensors), tensors["layers.1.weight"].shape
    (['layers.0.weight', 'layers.1.weight'], (4, 3))
    """

    def __init__(self, params: Mapping[str, Any], naming: Naming, *, dtype: Any = None) -> None:
        self._arrays: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
        self._dtype = floating(dtype)
        self._places: dict[str, list[tuple[str, Leaf, int]]] = {}
        for path, array in self._arrays.items():
            leaf = naming.leaf(path, array.shape)
            for number, name in enumerate(leaf.names):
                self._places.setdefault(name, []).append((path, leaf, number))
        self._places |= {copy: self._places[of] for copy, of in naming.copies.items()}
        self._tables = naming.tables
        self._held: tuple[str, int, NDArray[Any]] | None = None  # the tensors of the block that was asked for last

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name in self._tables:
            table = self._tables[name]()
            return table if self._dtype is None else table.astype(self._dtype)
        places = sorted(self._places[name], key=lambda place: place[1].cut or ())
        made = [self._part(*place) for place in places]
        cut = places[0][1].cut
        return made[0] if cut is None else np.concatenate(made, axis=cut.axis)

    def described(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Dtype and shape of each tensor, without making it."""
        found = {}
        for name, places in self._places.items():
            path, leaf, _ = places[0]
            found[name] = self._dtype or np.dtype(self._arrays[path].dtype), leaf.tensor
        for name, make in self._tables.items():
            found[name] = self._dtype or np.dtype(np.float32), make().shape
        return found

    def _part(self, path: str, leaf: Leaf, number: int) -> NDArray[Any]:
        block, part = divmod(number, leaf.parts or 1)
        if self._held is None or self._held[:2] != (path, block):
            array = self._arrays[path] if leaf.blocks is None else self._arrays[path][block]
            self._held = path, block, leaf.axes.to_theirs(np.asarray(jax.device_get(array)))
        made = self._held[2] if leaf.parts is None else self._held[2][part]
        return made if self._dtype is None else made.astype(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *self._tables])

    def __len__(self) -> int:
        return len(self._places) + len(self._tables)
