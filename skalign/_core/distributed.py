"""One training on several processes: who takes part, what they sum, and how they learn of a loss. Knows torch alone."""

import atexit
import contextlib
import contextvars
import multiprocessing
import os
import pickle
import threading
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

_LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # what torchrun and its like leave in the environment
_BEAT = timedelta(seconds=1)  # between two signs of life
_SILENCE = timedelta(seconds=30)  # without a sign of life, after which a process counts as lost
_AGAIN = "Run the same line on all ranks again: with `checkpoint_dir` it goes on from the last checkpoint."
_GROUP = contextvars.ContextVar("group of the fit that this is part of", default=None)


@contextlib.contextmanager
def together(wanted=True):
    """The `Group` of processes that come here, if there are several and it is `wanted`, else `ALONE`.

    Inside, `current` returns it, and what calls this again is part of the same. Leaving is a barrier, and all or none leave
    without an error. A thread beside the main one and a worker of joblib or multiprocessing are alone: they inherit the
    environment, but nobody waits for them.
    """
    if not wanted:
        with alone():
            yield ALONE
    elif _GROUP.get() is not None or not _are_several():
        yield current()
    else:
        group = Group()
        token = _GROUP.set(group)
        try:
            yield group
        except BaseException as error:
            group.fail(error)
            raise
        else:
            group.leave()
        finally:
            _GROUP.reset(token)


@contextlib.contextmanager
def alone():
    """Nothing inside is part of a group: for what one process does without the others."""
    token = _GROUP.set(ALONE)
    try:
        yield
    finally:
        _GROUP.reset(token)


def current():
    """The group that this is part of."""
    return _GROUP.get() or ALONE


def _are_several():
    """Whether this is one of several processes that were started to work together, which are connected then."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or multiprocessing.parent_process() is not None or not dist.is_available():
        return False
    if not dist.is_initialized():
        if not os.environ.keys() >= _LAUNCHED or os.environ["WORLD_SIZE"] == "1":
            return False
        dist.init_process_group(_backend())
        atexit.register(_disconnect)
    return dist.get_world_size() > 1


def _backend():
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _disconnect():
    """Part from the others, unless the script has done so."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Alone:
    """The group of a process that works for itself."""

    rank, size = 0, 1

    @property
    def is_first(self):
        """Whether this process speaks for all: shows, warns, writes."""
        return self.rank == 0

    def total(self, *tensors):
        """Sums over the processes, as a tuple."""
        return tensors

    def largest(self, tensor):
        """Largest of each entry over the processes."""
        return tensor

    def first(self, value):
        """What the first process passes, which can be pickled."""
        return value

    def averaged(self, parameters, terms):
        """The terms of a loss as means over the processes, and so, in place, the gradients of the parameters."""
        return terms

    def align(self, tensors):
        """Give these tensors, in place, the values they have in the first process."""

    def share(self, n_rows, read_together=1):
        """Which of some rows are this process's own; those that are read together stay so."""
        n_blocks = -(-n_rows // read_together)
        start, stop = (k * n_blocks // self.size * read_together for k in (self.rank, self.rank + 1))
        return slice(min(start, n_rows), min(stop, n_rows))


ALONE = Alone()


class Unlike(NamedTuple):
    """Names of what a rank has otherwise than the first."""

    rank: int
    names: list


class Group(Alone):
    """Processes that train together. All of them call the same methods in the same order."""

    def __init__(self):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        try:
            self._processes = dist.new_group(backend=_backend())
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.size} processes were started together, but not all of them have come to this `fit` ({error}). Call it "
                "on every rank, or set distributed=False for a fit that is this rank's own."
            ) from error
        self._watch = _Watch(self)
        self._watch.start()

    def total(self, *tensors):
        flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors])
        sums = self._reduced(flat).split([tensor.numel() for tensor in tensors])
        return tuple(total.reshape(of.shape).to(of.dtype) for total, of in zip(sums, tensors, strict=True))

    def largest(self, tensor):
        return self._reduced(tensor.clone(), dist.ReduceOp.MAX)

    def first(self, value):
        content = np.frombuffer(pickle.dumps(value) if self.is_first else b"", dtype=np.uint8)
        (size,) = self.total(torch.tensor(len(content)))
        buffer = torch.zeros(int(size), dtype=torch.uint8)
        buffer[: len(content)] = torch.from_numpy(content.copy())
        self.align([buffer])
        return value if self.is_first else pickle.loads(buffer.numpy())

    def averaged(self, parameters, terms):
        gradients = [p.grad for p in parameters if p.grad is not None]
        means = [*gradients, *(term.detach() for term in terms.values())]
        flat = self._reduced(torch.cat([tensor.reshape(-1) for tensor in means])).div_(self.size)
        means = [mean.reshape(of.shape) for mean, of in zip(flat.split([Z.numel() for Z in means]), means, strict=True)]
        for gradient, mean in zip(gradients, means, strict=False):
            gradient.copy_(mean)
        return dict(zip(terms, means[len(gradients) :], strict=True))

    def align(self, tensors):
        for tensor in tensors:
            self._finish(dist.broadcast, tensor, 0)

    def gathered(self, tensor):
        """Tensors of one shape from all processes, stacked."""
        slots = tensor.new_zeros((self.size, *tensor.shape))
        slots[self.rank] = tensor
        return self._reduced(slots)

    def all_rows(self, Z):
        """Rows from all processes, one after the other; backwards, each gets the sum of what all say of its own rows."""
        return _AllRows.apply(Z, self)

    def unlike(self, digests):
        """Which hexadecimal digests, given by name, are not those of the first process, and of which rank; None if all are."""
        table = [list(bytes.fromhex(digest)) for digest in digests.values()]
        tables = self.gathered(torch.tensor(table, dtype=torch.uint8))
        differs = (tables != tables[0]).any(dim=2)
        if not differs.any():
            return None
        rank = int(differs.any(dim=1).nonzero()[0])
        return Unlike(rank, [name for name, other in zip(digests, differs[rank], strict=True) if other])

    def fail(self, error):
        """Tell the others that this process ends with an error, and part from them."""
        self._watch.tell(f"{type(error).__name__}: {error}")
        self._part()

    def leave(self):
        """Part from the others when all have come here; an error if one of them does not."""
        self._watch.tell("")
        self._part()
        self._refuse_failure()

    def abort(self):
        """Give up what waits in the queue of a GPU, and would for ever."""
        self._processes.abort()

    def _part(self):
        watch = self._watch
        watch.join()
        for group in (self._processes, watch.group):
            dist.destroy_process_group(group)
        # torch gives their sockets and threads back when nobody holds them
        self._processes = watch.group = watch.watched = None

    def _reduced(self, tensor, *operation):
        """The sum over the processes, or another operation, in place."""
        self._finish(dist.all_reduce, tensor, *operation)
        return tensor

    def _finish(self, exchange, tensor, *args):
        """Start an exchange of a tensor and see it through, or end with an error where the watch knows of one."""
        self._refuse_failure()
        work = exchange(tensor, *args, group=self._processes, async_op=True)
        if tensor.is_cuda:  # it is only put into the stream's queue
            work.wait()
            return
        while True:
            was_over = work.is_completed()  # else an error may only say that it took longer
            try:
                work.wait(_BEAT)
                return
            except RuntimeError as error:
                if was_over:
                    self._watch.join(_SILENCE.total_seconds())  # who will have heard why
                    raise RuntimeError(self._watch.failure or _lost(error)) from error
            if self._watch.failure:
                _await_end(work, self._processes)
                self._refuse_failure()

    def _refuse_failure(self):
        if self._watch.failure:
            raise RuntimeError(self._watch.failure)


class _Watch(threading.Thread):
    """Meets its like in the other processes every second, and learns from their words or their silence what went wrong.

    The training itself cannot tell a process that is gone from one that takes its time.
    """

    def __init__(self, watched):
        super().__init__(name="skalign-watch", daemon=True)
        self.watched, self.rank, self.size, self.failure = watched, watched.rank, watched.size, None
        self.group = dist.new_group(backend="gloo", timeout=_SILENCE)
        self._word, self._told = None, threading.Event()

    def tell(self, word):
        """Have the others told that this process has ended, well if the word is empty."""
        self._word = word
        self._told.set()

    def run(self):
        """Meet until all have ended well, or one has not."""
        try:
            while self._meet():
                self._told.wait(_BEAT.total_seconds())
                self._told.clear()
        except Exception as error:  # whatever it is, nobody else would learn of it
            self.failure = _lost(error)
        if self.failure and torch.cuda.is_available():
            self.watched.abort()

    def _meet(self):
        word = self._word  # which may come while we meet
        content = (word or "").encode(errors="backslashreplace")
        lengths = self._shared(torch.tensor(-1 if word is None else len(content)))
        longest = int(lengths.max())
        if longest > 0:
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
            words = self._shared(padded)
            rank = int((lengths > 0).nonzero()[0])
            said = bytes(words[rank, : lengths[rank]].tolist()).decode()
            self.failure = f"Rank {rank} of the {self.size} that train together failed: {said}\n{_AGAIN}"
            return False
        return bool((lengths < 0).any())

    def _shared(self, tensor):
        slots = tensor.new_zeros((self.size, *tensor.shape))
        slots[self.rank] = tensor
        dist.all_reduce(slots, group=self.group)
        return slots


def _lost(error):
    return f"Another of the processes that train together has died or cannot be reached ({error}). {_AGAIN}"


def _await_end(work, group):
    """Wait for the end of an exchange from which others have parted; if it does not come, hold the group for good.

    For torch takes a group down only when its exchanges are at their end, so that this process would never end.
    """
    with contextlib.suppress(RuntimeError):
        work.wait(2 * _BEAT)
    if not work.is_completed():
        # only what a thread holds that never wakes is not taken down, not even when the process ends
        threading.Thread(target=lambda *held: threading.Event().wait(), args=(work, group), daemon=True).start()


class _AllRows(torch.autograd.Function):
    """`Group.all_rows`, for which the rows of the others are zero until they come."""

    @staticmethod
    def forward(ctx, Z, group):
        counts = group.gathered(torch.tensor(len(Z))).tolist()
        start = sum(counts[: group.rank])
        ctx.group, ctx.own = group, slice(start, start + len(Z))
        rows = Z.new_zeros((sum(counts), Z.shape[1]))
        rows[ctx.own] = Z
        return group._reduced(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return ctx.group._reduced(gradient.clone())[ctx.own], None
