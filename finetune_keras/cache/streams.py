"""Readers of streams: batches as they come, before anything is made of them.

A reader has

- ``spec``: what it reads, in words, and ``batches``: how many there are, ``None`` if unknown;
- ``endless``: known never to end; ``again``: can be read from the start; ``by_index``: a batch is
  read without those before it;
- ``copies``: what it gives may be a buffer that the user's code fills anew;
- ``workers``: how many threads may read ahead at once, 0 where that would gain nothing;
- ``tasks(loop)``: functions without arguments that give a batch each, or ``END``; with ``loop`` the
  data begin anew where they end, if they have as many batches as that;
- ``begin`` and ``end``, called around each pass.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras

from finetune_keras.data.dataset import Plan

__all__ = ["END", "Indexed", "Stream", "ahead"]

END = object()


class Indexed:
    """A ``keras.utils.PyDataset``, read by as many threads as it has workers."""

    again, by_index, copies = True, True, True

    def __init__(self, data: keras.utils.PyDataset):
        self.data, self.batches = data, data.num_batches
        self.workers = max(1, data.workers)
        self.endless = self.batches is None
        self.spec = f"a PyDataset ({type(data).__name__}) " + _count(self.batches, True)
        self.begin, self.end = data.on_epoch_begin, data.on_epoch_end

    def tasks(self, loop: int | None) -> Iterator[Callable]:
        at = itertools.count() if self.batches is None else range(self.batches)
        at = itertools.cycle(at) if loop and self.batches is not None else at
        return (functools.partial(self.data.__getitem__, i) for i in at)


class Stream:
    """A ``tf.data.Dataset``, a loader, a generator: what gives its batches one after the other."""

    by_index, copies, workers = False, True, 1

    def __init__(self, data: Any):
        # A data set of finetune_keras.data has an order of its own in each epoch. Where it is read
        # once and kept, the one order that does not change is best; to try all files first would
        # read them once more, also where features of them are kept already.
        data = data.in_order(check=False) if callable(getattr(data, "in_order", None)) else data
        self.data, self.batches, self.endless = data, None, False
        self.again, self.fewer = not hasattr(data, "__next__"), False
        name = type(data).__name__
        tensorflow = sys.modules.get("tensorflow")
        if isinstance(data, getattr(getattr(tensorflow, "data", None), "Dataset", ())):
            n = int(data.cardinality())
            self.batches, self.endless = n if n >= 0 else None, n == -1
            if isinstance(plan := getattr(data, "plan", None), Plan):  # or fewer, if files are bad
                self.batches = -(-len(data.order) // plan.batch_size)
                self.fewer = plan.once
            self.workers, self.copies = 0, False  # it has a prefetch of its own
            name = "tf.data.Dataset"
        elif self.again and hasattr(data, "__len__"):
            n = _length(data)
            self.endless = n == sys.maxsize  # as a grain data set says it
            self.batches = None if self.endless else n
        self.spec = f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} "
        self.spec = (self.spec + _count(self.batches, self.endless)).strip()

    def tasks(self, loop: int | None) -> Iterator[Callable]:
        # Begun here: a torch loader starts its processes best from the main thread.
        return itertools.repeat(functools.partial(next, self._batches(iter(self.data), loop), END))

    def _batches(self, lap: Iterator[Any], loop: int | None) -> Iterator[Any]:
        while True:
            n = 0
            for batch in lap:
                n += 1
                yield batch
            enough = n >= (1 if self.fewer else loop or 0)
            if not (self.again and loop and enough):
                return
            lap = iter(self.data)

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):  # a torch loader of an iterable data set
        return None


def _count(batches: int | None, endless: bool) -> str:
    if batches is None:
        return "without end" if endless else ""
    return f"of {batches:,} batch{'' if batches == 1 else 'es'}"


def ahead(
    tasks: Iterator[Callable], workers: int, give_back: Callable[[list[Callable]], None]
) -> Iterator[Any]:
    """What tasks give, in order, while the next ones run already; up to the first ``END``.

    As many threads as there are workers are at work, one batch more is held. An exception comes
    up where its batch would have, with the traceback of the task. When the caller stops early, the
    tasks that were begun are waited for, and those whose results it has not seen are handed to
    ``give_back``, what is done already as a function that gives the result.
    """
    if not workers:
        for task in tasks:
            if (batch := task()) is END:
                return
            yield batch
        return
    coming: deque[tuple[Future, Callable]] = deque()
    with ThreadPoolExecutor(workers, "finetune_keras_read") as threads:
        try:
            while True:
                for task in itertools.islice(tasks, workers + 1 - len(coming)):
                    coming.append((threads.submit(task), task))
                if not coming or (batch := coming.popleft()[0].result()) is END:
                    return
                yield batch
        finally:
            for future, _ in reversed(coming):
                future.cancel()  # unless it has begun
            give_back([task if f.cancelled() else f.result for f, task in coming])
