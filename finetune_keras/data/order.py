"""In which order an epoch gives its examples: a function of a seed and the epoch's number."""

from __future__ import annotations

import numpy as np

from finetune_keras._errors import whole

__all__ = ["Order"]


class Order:
    """The order of each epoch, and the epoch that comes next.

    An order is a permutation of all examples, not of a window of them, and depends on nothing but
    the seed and the number of the epoch: it is the same in every process and on every backend, and
    after a restart. Whoever reads a data set asks for the order of ``epoch``; when the last batch
    was handed out, ``epoch`` moves on. What only looks at the first batches moves nothing.

    Args:
        rows: the numbers of the examples.
        seed: any integer from 0 on.
        shuffle: ``False`` for the order of ``rows`` in each epoch.

    Attributes:
        epoch: the number of the epoch that comes next. Set it to go on from a later one.

    Examples:
        >>> order = Order(np.arange(5), seed=1)
        >>> order(0).tolist(), order(1).tolist(), order.epoch
        ([4, 0, 1, 2, 3], [1, 4, 0, 3, 2], 0)
    """

    def __init__(self, rows: np.ndarray, seed: int = 0, *, shuffle: bool = True):
        self.rows = np.asarray(rows, "int64")
        self.seed, self.shuffle, self._epoch = int(seed), bool(shuffle), 0

    @property
    def epoch(self) -> int:
        """The number of the epoch that comes next."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = whole("epoch", value, 0)

    def __call__(self, epoch: int) -> np.ndarray:
        """The numbers of the examples in the order of that epoch."""
        if not self.shuffle:
            return self.rows
        return np.random.default_rng([self.seed, int(epoch)]).permutation(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        how = f"shuffled by seed {self.seed}" if self.shuffle else "in order"
        return f"Order of {len(self):,} examples, {how}, next epoch {self.epoch}"
