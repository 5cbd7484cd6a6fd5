"""Batches of rows that are read while the training goes on. Knows torch, knows neither files nor estimators."""

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

_SHUFFLED = 8192, 8  # rows, and blocks of rows read together, that are shuffled at least
_AHEAD = 4  # batches read ahead of the step


@dataclass(frozen=True)
class StreamedRows:
    """Unpaired rows of a view that are read batch by batch.

    rows : has a length, `read_together`, and arrays of rows by slices.
    prepare : maps a float32 tensor (n, d) to rows as the heads take them; teacher : to unit rows of the teacher, or None.
    """

    rows: object
    prepare: Callable
    teacher: Callable | None

    def __len__(self):
        return len(self.rows)


def draw_order(n_rows, batch_size, read_together, generator):
    """Batches without replacement, epoch after epoch, from neighbouring rows that are read together.

    Blocks of `read_together` rows come in random order; the rows of some consecutive blocks are shuffled. The rows that are
    left when less than a batch remains of them, at the end of an epoch, are not drawn in it.

    Yields
    ------
    slices : list of slice
        What to read; never more rows than the first time.
    batches : Tensor of int64, shape (n_batches, batch_size)
        Which of the rows read form each batch.
    """
    n_shuffled = batch_size * max(1, max(_SHUFFLED[0], _SHUFFLED[1] * read_together) // batch_size)
    while True:
        slices, n_read = [], 0
        for block in torch.randperm(-(-n_rows // read_together), generator=generator).tolist():
            start, end = block * read_together, min((block + 1) * read_together, n_rows)
            while start < end:
                stop = min(end, start + n_shuffled - n_read)
                slices.append(slice(start, stop))
                n_read += stop - start
                start = stop
                if n_read == n_shuffled:
                    yield slices, _shuffled(n_read, batch_size, generator)
                    slices, n_read = [], 0
        if n_read >= batch_size:
            yield slices, _shuffled(n_read, batch_size, generator)


def _shuffled(n_rows, batch_size, generator):
    n_batches = n_rows // batch_size
    return torch.randperm(n_rows, generator=generator)[: n_batches * batch_size].reshape(n_batches, batch_size)


def batches_of(rows, batch_size, generator, pinned):
    """Batches of rows as float32 tensors, without end; a batch as large as the pool is all of it, in order."""
    if batch_size >= len(rows):
        everything = _tensor(rows[:].astype(np.float32), pinned)
        while True:
            yield everything
    room = None
    for slices, batches in draw_order(len(rows), batch_size, rows.read_together, generator):
        n_read = sum(part.stop - part.start for part in slices)
        room = np.empty((n_read, rows.shape[1]), dtype=np.float32) if room is None else room
        end = 0
        for part in slices:
            start, end = end, end + part.stop - part.start
            room[start:end] = rows[part]
        for batch in batches.numpy():
            yield _tensor(room[batch], pinned)


def _tensor(array, pinned):
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if pinned else tensor


@contextlib.contextmanager
def read_ahead(*streams):
    """A function that returns the next item of each stream, and raises what a stream raises.

    One thread makes the items ahead; it ends with the context, once it has made the item it is at.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="skalign-read-ahead") as thread:
        items = zip(*streams, strict=True)
        coming = deque(thread.submit(next, items) for _ in range(_AHEAD))

        def take():
            first = coming.popleft().result()
            coming.append(thread.submit(next, items))
            return first

        try:
            yield take
        finally:
            thread.shutdown(cancel_futures=True)
