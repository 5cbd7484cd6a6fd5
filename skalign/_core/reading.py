"""Unpaired rows that are read while the training goes on. Knows torch, knows neither files nor estimators."""

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
    own : a slice of the rows, the others being read by other processes; None if all are read here.
    """

    rows: object
    prepare: Callable
    teacher: Callable | None
    own: slice | None = None

    def embedded(self, batch):
        """Rows as the heads take them, and their unit rows of the teacher, or None."""
        with torch.no_grad():
            return self.prepare(batch), None if self.teacher is None else self.teacher(batch)


class StreamedSampler:
    """Draws the unpaired rows of a `Batch`, which are read ahead until the exit stack `reading` is closed.

    On the CPU the thread that reads also embeds them, so that the steps do not wait for that either.
    """

    def __init__(self, X, Y, batch_sizes, generator, device, reading):
        self.pools, self.batch_sizes, self.device, self.reading = (X, Y), batch_sizes, device, reading
        self.seeds = torch.randint(2**62, (2,), generator=generator).tolist()  # a generator serves one thread
        self.n_drawn, self._take = 0, None

    def state_dict(self):
        """How far it has come."""
        return {"n_drawn": self.n_drawn}

    def load_state_dict(self, state):
        """Go on from there, if nothing has been drawn as yet."""
        self.n_drawn = state["n_drawn"]

    def __call__(self):
        if self._take is None:
            self._take = self.reading.enter_context(read_ahead(*self._streams()))
        views = self._take()
        if self.device.type != "cpu":
            moved = (rows.to(self.device, non_blocking=True) for rows in views)
            views = [pool.embedded(rows) for pool, rows in zip(self.pools, moved, strict=True)]
        self.n_drawn += 1
        (X, F_teacher), (Y, G_teacher) = views
        return {"X": X, "Y": Y, "F_teacher": F_teacher, "G_teacher": G_teacher}

    def _streams(self):
        for pool, size, seed in zip(self.pools, self.batch_sizes, self.seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            pinned = self.device.type == "cuda"
            batches = batches_of(pool.rows, size, generator, self.n_drawn, pinned=pinned, own=pool.own)
            yield map(pool.embedded, batches) if self.device.type == "cpu" else batches


def draw_order(n_rows, batch_size, read_together, generator):
    """Batches without replacement, epoch after epoch, from neighbouring rows that are read together.

    Blocks of `read_together` rows come in random order; the rows of some consecutive blocks are shuffled. The rows that are
    left when less than a batch remains of them, at the end of an epoch, are not drawn in it.

    Yields
    ------
    slices : list of slice
        What to read.
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


def batches_of(rows, batch_size, generator, n_skipped=0, pinned=False, own=None):
    """Batches of rows as float32 tensors, after the first few, without end; one as large as the pool is all of it in order.

    Of each batch there are the rows in the slice `own`, if there is one, which divides none that are read together; no others
    are read.
    """
    start, stop, _ = (own or slice(None)).indices(len(rows))
    if batch_size >= len(rows):
        everything = _tensor(rows[start:stop].astype(np.float32), pinned)
        while True:
            yield everything
    room = np.empty((0, rows.shape[1]), dtype=np.float32)
    for slices, batches in draw_order(len(rows), batch_size, rows.read_together, generator):
        n_skipped, batches = max(n_skipped - len(batches), 0), batches[n_skipped:].numpy()
        if len(batches):
            lengths = np.array([part.stop - part.start for part in slices])
            reads = np.array([start <= part.start < stop for part in slices])
            is_own, ends = np.repeat(reads, lengths), np.cumsum(lengths * reads)
            if len(room) < ends[-1]:
                room = np.empty((ends[-1], rows.shape[1]), dtype=np.float32)
            for k in np.flatnonzero(reads):
                room[ends[k] - lengths[k] : ends[k]] = rows[slices[k]]
            places = np.cumsum(is_own) - 1  # in the room
        for batch in batches:
            yield _tensor(room[places[batch[is_own[batch]]]], pinned)


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
