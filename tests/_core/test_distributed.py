"""Laws of what processes compute together, with threads in their place: it is what one would compute of all rows."""

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import LAW
from numpy.testing import assert_allclose
from torch.nn.functional import normalize

from skalign._core import affinity
from skalign._core import sinkhorn as module
from skalign._core.distributed import ALONE, Group
from skalign._core.klot import klot_from_features, klot_of_shares

N, M = 29, 41
EPSILONS = {"epsilon": 0.05, "epsilon_teacher": 0.02}


class Room:
    """Where threads meet."""

    def __init__(self, size):
        self.slots, self.barrier = [None] * size, threading.Barrier(size, timeout=20)


class Threads(Group):
    """A group of threads."""

    def __init__(self, rank, room):
        self.rank, self.size, self.room = rank, len(room.slots), room

    def _reduced(self, tensor, operation=dist.ReduceOp.SUM):
        self.room.slots[self.rank] = tensor.clone()
        self.room.barrier.wait()
        stacked = torch.stack(self.room.slots)
        tensor.copy_(stacked.amax(dim=0) if operation == dist.ReduceOp.MAX else stacked.sum(dim=0))
        self.room.barrier.wait()
        return tensor


@pytest.fixture(autouse=True)
def parallel_properties(monkeypatch):
    """Before Python 3.12 a cached property was computed by one thread at a time; here they wait for one another in it."""
    for owner in (affinity._Affinity, affinity.StoredAffinity, affinity.FactoredAffinity, module._WholePlan):
        for member in vars(owner).values():
            if isinstance(member, cached_property):
                monkeypatch.setattr(member, "lock", contextlib.nullcontext(), raising=False)


def on_all(size, function):
    """What ``function(group)`` returns in each of some threads."""
    room = Room(size)

    def run(rank):
        try:
            return function(Threads(rank, room))
        except BaseException:
            room.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


@pytest.fixture
def rows(rng):
    """Unit rows of student and teacher."""
    sizes = [(N, 3), (M, 3), (N, 5), (M, 5)]
    return [normalize(torch.from_numpy(rng.normal(size=size)), dim=1) for size in sizes]


def shares_of(rows, ends_x, ends_y, rank):
    """The rows of one rank, whose own end at ``ends[rank]``."""
    own = [slice(0 if rank == 0 else ends[rank - 1], ends[rank]) for ends in (ends_x, ends_y)]
    return [Z[part].clone() for Z, part in zip(rows, own * 2, strict=True)]


SHARES = {
    "two": ((18, N), (11, M)),
    "three": ((7, 20, N), (20, 23, M)),
    "one has no rows of X": ((0, N), (11, M)),
    "one has no rows of Y": ((7, 20, N), (11, M, M)),
    "one has no rows": ((N, N), (M, M)),
}


MODELS = {"whole and large entries": "_LargeEntries", "large entries": "_LargeEntries", "some rows": "_SomeRows"}


@pytest.mark.parametrize(
    ("shares", "model"),
    [*((shares, "whole") for shares in SHARES), *itertools.product(["three", "one has no rows"], MODELS)],
)
def test_klot_of_shares_is_that_of_all_rows(rows, monkeypatch, shares, model):
    if model == "whole and large entries":
        monkeypatch.setattr(module, "_WAIT", 0)
        monkeypatch.setattr(module, "_FEW", 1.1)
    if model in ("large entries", "some rows"):
        monkeypatch.setattr(module, "_ROOM", {"cpu": N * M // 5})
        monkeypatch.setattr(module, "_FEW", 1.1 if model == "large entries" else 0.0)
    options, closed = {**EPSILONS, "tol": 1e-9}, []
    for name in set(MODELS.values()):
        kind, close = getattr(module, name), getattr(module, name).close

        def noted(self, *args, close=close, **kwargs):
            closed.append(type(self).__name__)
            return close(self, *args, **kwargs)

        monkeypatch.setattr(kind, "close", noted)
    F, G = (Z.clone().requires_grad_() for Z in rows[:2])
    expected, student, teacher = klot_from_features(F, G, *rows[2:], **options)
    expected.backward()
    assert student.converged and teacher.converged

    def of_shares(group):
        F, G, *of_teacher = shares_of(rows, *SHARES[shares], group.rank)
        F.requires_grad_(), G.requires_grad_()
        stores = model.startswith("whole")
        value, student, teacher = klot_of_shares(F, G, *of_teacher, group, stores=stores, **options)
        value.backward()
        assert student.converged and teacher.converged
        return value.detach(), F.grad / group.size, G.grad / group.size, student.g, teacher.g

    values, dF, dG, *potentials = zip(*on_all(len(SHARES[shares][0]), of_shares), strict=True)
    assert set(closed) == ({MODELS[model]} if model in MODELS else set())
    for value in values:
        assert_allclose(value, expected.detach(), **LAW[np.float64])
    assert_allclose(torch.cat(dF), F.grad, rtol=1e-6, atol=1e-8)
    assert_allclose(torch.cat(dG), G.grad, rtol=1e-6, atol=1e-8)
    for of_ranks in potentials:
        assert all(torch.equal(g, of_ranks[0]) for g in of_ranks[1:])


def test_shares_are_all_rows_once_in_whole_blocks():
    for n, size, together in [(10, 3, 1), (10, 3, 4), (2, 5, 1), (1000, 4, 256), (1, 2, 256)]:
        shares = on_all(size, lambda group, n=n, together=together: group.share(n, together))
        assert [row for share in shares for row in range(n)[share]] == list(range(n))
        assert all(share.start % together == 0 or share.start == n for share in shares)
    assert ALONE.share(7) == slice(0, 7)


def test_averages_are_means_of_gradients_and_terms():
    def average(group):
        weight, unused = torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)
        loss = (group.rank + 1) * weight.sum()
        loss.backward()
        terms = group.averaged([weight, unused], {"loss": loss, "other": torch.tensor(5.0)})
        return weight.grad, unused.grad, terms

    for gradient, unused, terms in on_all(3, average):
        assert_allclose(gradient, torch.full((2, 3), 2.0))
        assert unused is None
        assert terms == {"loss": 12.0, "other": 5.0}


def test_totals_keep_shape_and_type():
    def totals(group):
        return group.total(torch.tensor(group.rank), torch.full((2, 2), 0.5, dtype=torch.float32))

    for count, halves in on_all(3, totals):
        assert count.dtype == torch.int64 and int(count) == 3
        assert halves.dtype == torch.float32
        assert_allclose(halves, np.full((2, 2), 1.5))
