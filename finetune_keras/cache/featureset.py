"""Features of a frozen network, with the labels they came with, to train on."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras.cache.rows import release

__all__ = ["FeatureSet", "together"]

_RELEASE = 256 << 20  # bytes read of mapped files before their memory is let go


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """What a frozen network makes of a data set, example by example, in the order of the data.

    Attributes:
        features: one array for each output of the network, shape ``(views * examples, ...)``; of
            ``views`` passes over the data one after another.
        labels: the labels in their structure, of as many rows; ``None`` if there were none.
        sample_weight: likewise.
        views: how many draws of each example there are.
        batch_size: examples in a batch of the data.
        directory: where the files are; ``None`` in memory or in a temporary folder.
        engine: what computed them: its name, how far it was off and how fast, as
            ``EngineRecord.to_dict`` gives it.
        reused: whether an earlier pass had computed them all.
    """

    features: tuple[np.ndarray, ...]
    labels: Any
    sample_weight: Any
    views: int
    batch_size: int
    directory: Path | None
    engine: dict[str, Any]
    reused: bool = False
    _owner: Any = None

    def __len__(self) -> int:
        """Number of examples; each is there ``views`` times."""
        return len(self.features[0]) // self.views

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        rest = keras.tree.flatten((self.labels, self.sample_weight))
        return sum(a.nbytes for a in (*self.features, *rest) if a is not None)

    @property
    def in_memory(self) -> bool:
        """Whether the arrays are in memory rather than in files."""
        return self.directory is None and self._owner is None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.shape[1:]} {a.dtype}" for a in self.features)
        views = f", {self.views} views" if self.views > 1 else ""
        where = "in memory" if self.in_memory else f"in {self.directory or 'a temporary folder'}"
        return f"<FeatureSet: {len(self):,} examples of {shapes}{views}, {where}>"

    def view(self, number: int = 0) -> tuple[Any, Any, Any]:
        """One draw of all examples: ``(features, labels, sample_weight)``, features as one array
        or a list of them.
        """
        rows = slice(number * len(self), (number + 1) * len(self))
        features = [a[rows] for a in self.features]
        labels, weights = _rows(self._rest(), rows)
        return features[0] if len(features) == 1 else features, labels, weights

    def _rest(self) -> tuple[Any, Any]:
        return self.labels, self.sample_weight

    def dataset(
        self,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        epoch: int = 0,
    ) -> keras.utils.PyDataset:
        """Batches for ``fit`` on every backend; with several views, another at each epoch.

        Args:
            batch_size: examples in a batch; by default that of the data.
            shuffle: whether each epoch goes through all examples in an order of its own. The
                order is over the whole set, and a function of seed and epoch. ``fit`` shuffles
                batches again unless it is told ``shuffle=False``, which does no harm.
            seed: of the orders; by default drawn from NumPy's global random state, which
                ``keras.utils.set_random_seed`` sets.
            epoch: the first epoch, for training that goes on.

        Returns:
            A ``keras.utils.PyDataset`` of ``(features, labels)``, or with ``sample_weight`` too.

        Examples:
            >>> import finetune_keras as ftk
            >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
            >>> data = np.zeros((5, 24, 24, 3)), np.arange(5)
            >>> found = ftk.features(base.model, data, verbose=0)
            >>> [y.tolist() for _, y in found.dataset(2)]
            [[0, 1], [2, 3], [4]]
        """
        size = self.batch_size if batch_size is None else batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size must be an integer of 1 or more; given {batch_size!r}")
        seed = int(np.random.randint(2**31)) if seed is None else seed
        return _Batches(self, size, seed if shuffle else None, epoch)


class _Batches(keras.utils.PyDataset):
    """Batches of one epoch after another."""

    def __init__(self, found: FeatureSet, size: int, seed: int | None, epoch: int):
        super().__init__()
        self.found, self.size, self.seed, self.epoch = found, size, seed, epoch
        self._read = 0
        self._turn()

    def _turn(self) -> None:
        n = len(self.found)
        first = (self.epoch % self.found.views) * n
        self.order = None
        if self.seed is not None:
            draw = np.random.default_rng((self.seed, self.epoch))
            self.order = first + draw.permutation(n)
        self.first = first

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.found) / self.size)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, i: int) -> tuple:
        rows = slice(i * self.size, min((i + 1) * self.size, len(self.found)))
        at = slice(self.first + rows.start, self.first + rows.stop)
        if self.order is not None:
            at = self.order[rows]
        parts = [a[at] for a in self.found.features]
        self._let_go(parts)
        labels, weights = _rows(self.found._rest(), at)
        return together(parts[0] if len(parts) == 1 else tuple(parts), labels, weights)

    def __iter__(self):
        """The batches of one epoch, and on to the next."""
        for i in range(len(self)):
            yield self[i]
        self.on_epoch_end()

    def _let_go(self, parts: list[np.ndarray]) -> None:
        """Keeps the memory that mapped files take within bounds."""
        if self.found.in_memory:
            return
        self._read += sum(p.nbytes for p in parts)
        if self._read > _RELEASE:
            self._read = 0
            for array in self.found.features:
                release(array)

    def on_epoch_end(self) -> None:
        """Turns to the next view and the next order."""
        self.turn(self.epoch + 1)

    def turn(self, epoch: int) -> None:
        """Takes the order and the view of an epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._turn()


def _rows(structure: Any, at: Any) -> Any:
    return keras.tree.map_structure(lambda a: None if a is None else a[at], structure)


def together(x: Any, y: Any, sample_weight: Any) -> tuple:
    """A batch as ``fit`` takes it."""
    if sample_weight is not None:
        return x, y, sample_weight
    return (x,) if y is None else (x, y)
