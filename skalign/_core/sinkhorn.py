"""Entropic optimal transport on an affinity, in the log domain. Knows torch, knows nothing of estimators.

Notation: affinity ``K`` (n, m), plan ``P = exp((K + f 1' + 1 g') / epsilon)``, marginals ``a`` (n,) and ``b`` (m,). Inside,
the potentials are in units of log2, ``phi = f log2(e) / epsilon`` and ``psi = g log2(e) / epsilon``, since exp2 is cheaper
than exp, and in float64, since they reach hundreds while the plan depends on their decimals.

One loop for every affinity. A *sweep* reads all of K once, in blocks that stay in cache: it finds the phi that makes the
rows exact, the column sums, and on the way keeps a *model* of the plan: all of it where there is room, its large entries
where those are few, else some of its rows. On the model the column equations are solved by Sinkhorn iterations with
Anderson acceleration, as far as the model can be trusted; the next sweep tells how true it was. The epsilon starts large
and is divided with each sweep until it is the wanted one.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from .affinity import FactoredAffinity, StoredAffinity, check_features, check_matrix, full_precision

FLOOR = -100.0  # log2: entries below 2^-100 of their row's maximum change no digit, and exp2 is slow in underflow
_START = 0.1  # epsilon, relative to the spread of K, at most which to start with
_FACTOR = 4.0  # by which epsilon falls from sweep to sweep, until it is the wanted one
_COARSE = 0.02  # marginal error, on the model, that is close enough before epsilon falls
_STALE = 0.5  # marginal error of a warm start above which a cold one is better
_REACH = 30.0  # log2: how far psi may move either way on a model of whole rows, which are floored at `FLOOR`
_MEMORY = 10  # differences kept by the Anderson acceleration
_STRIDE = 8.0  # log2: how far it may go beyond its point in one step; slow modes tempt it to go astray
_MODEL_ITER = 100  # iterations on a model that is not the whole plan before it is compared with the plan
_ROOM = {"cpu": 1 << 23, "cuda": 1 << 26}  # entries kept of whole rows if the affinity is not stored
_LARGE_ENTRIES = 5 << 20  # large entries kept of a plan, beside 16 for each row and column
_BITS = (24, 20, 16, 12)  # an entry is large above 2^-bits of its row; the most bits that fit are taken
_FEW = 0.06  # share of entries above which a product with the large ones saves little
_LOST = 0.05  # mass that the large entries may leave out


@dataclass(frozen=True)
class SinkhornResult:
    """Solution of an entropic transport problem; the plan is derived when read.

    Attributes
    ----------
    f, g : Tensor of shape (n,) and (m,)
        Potentials: ``log P = (K + f[:, None] + g) / epsilon``; -inf where a marginal is zero.
    n_iter : int
        Full iterations (one row and one column update each, over all entries of the plan).
    error : float
        L1 distance between the plan's column sums and ``b``, over the total mass; its row sums equal ``a``.
    converged : bool
        Whether ``error <= tol``.
    column_sums : Tensor of shape (m,)
        Column sums the plan has; equal to ``b`` up to `error`.
    affinity, epsilon :
        The problem that was solved.
    """

    f: torch.Tensor
    g: torch.Tensor
    n_iter: int
    error: float
    converged: bool
    column_sums: torch.Tensor
    affinity: StoredAffinity | FactoredAffinity
    epsilon: float

    @property
    def plan(self):
        """Transport plan P, shape (n, m), in the type of the affinity; computed anew at each reading."""
        P = torch.empty(self.affinity.shape, dtype=self.affinity.dtype, device=self.affinity.device)
        with torch.no_grad(), full_precision(P.device):
            for rows in self.affinity.row_blocks():
                self.log2_plan(rows, out=P[rows]).clamp_(min=FLOOR).exp2_()
        return P

    def log2_plan(self, rows, out):
        """log2 of some rows of the plan, to be floored before exp2, into `out`."""
        scale, dtype = _log2_scale(self.epsilon), self.affinity.dtype
        logits = self.affinity.scaled_rows(rows, scale, (self.g * scale).to(dtype), out=out)
        return logits.add_((self.f[rows] * scale).to(dtype)[:, None])


def sinkhorn(K, epsilon, a=None, b=None, *, tol=1e-5, max_iter=1000, init=None):
    r"""Solve :math:`\max_{P \in \Pi(a, b)} \langle P, K\rangle - \varepsilon \langle P, \log P\rangle`.

    See :func:`skalign.losses.sinkhorn` for the parameters.
    """
    affinity = StoredAffinity(check_matrix(K.detach()))
    return solve(affinity, epsilon, *check_problem(affinity, epsilon, a, b), tol=tol, max_iter=max_iter, init=init)


def sinkhorn_from_features(F, G, epsilon, a=None, b=None, *, tol=1e-5, max_iter=1000, init=None):
    """`sinkhorn` of ``F @ G.T``, which is not formed."""
    affinity = FactoredAffinity(*check_features(F.detach(), G.detach()))
    return solve(affinity, epsilon, *check_problem(affinity, epsilon, a, b), tol=tol, max_iter=max_iter, init=init)


def solve(affinity, epsilon, a, b, *, tol, max_iter, init):
    """`sinkhorn` on an affinity and marginals that were checked."""
    with torch.no_grad(), full_precision(affinity.device):
        rows, columns = a > 0, b > 0
        if rows.all() and columns.all():
            return _solve(affinity, epsilon, a, b, tol, max_iter, init)
        init = None if init is None else torch.as_tensor(init)[columns]
        inner = _solve(affinity.select(rows, columns), epsilon, a[rows], b[columns], tol, max_iter, init)
        f = a.new_full(a.shape, -math.inf).masked_scatter_(rows, inner.f)
        g = b.new_full(b.shape, -math.inf).masked_scatter_(columns, inner.g)
        column_sums = torch.zeros_like(b).masked_scatter_(columns, inner.column_sums)
        return SinkhornResult(f, g, inner.n_iter, inner.error, inner.converged, column_sums, affinity, epsilon)


def check_problem(affinity, epsilon, a=None, b=None):
    """Refuse an ill-posed problem; fill in uniform marginals. Marginals come in float64."""
    if not epsilon > 0 or math.isinf(epsilon):
        raise ValueError(f"`epsilon` must be positive and finite, but it is {epsilon}. Typical values are 0.01 to 0.1.")
    n, m = affinity.shape
    a, b = _marginal(a, n, affinity, "a"), _marginal(b, m, affinity, "b")
    mass_a, mass_b = float(a.sum()), float(b.sum())
    if not math.isclose(mass_a, mass_b, rel_tol=1e-4):
        raise ValueError(
            f"The marginals must have equal mass, but `a` sums to {mass_a:g} and `b` to {mass_b:g}. Rescale one of them."
        )
    return a, b * (mass_a / mass_b)


def _marginal(weights, size, affinity, name):
    """A marginal in float64 (float32 where the device has none), uniform if None."""
    dtype = _float64(affinity)
    if weights is None:
        return torch.full((size,), 1 / size, dtype=dtype, device=affinity.device)
    weights = torch.as_tensor(weights, dtype=dtype, device=affinity.device).detach()
    if weights.shape != (size,):
        raise ValueError(f"The marginal `{name}` must have shape ({size},), but its shape is {tuple(weights.shape)}.")
    if not (torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"The marginal `{name}` must hold finite weights >= 0 with a positive sum.")
    return weights


class _State(NamedTuple):
    """Potentials whose plan has exact rows, how good they are, and the column sums of the plan."""

    error: float  # L1 distance of the column sums from b, over the total mass
    dual: float  # objective that Sinkhorn iterations make larger, in units of log2
    phi: torch.Tensor
    psi: torch.Tensor
    column_sums: torch.Tensor


def _solve(affinity, epsilon, a, b, tol, max_iter, init):
    """`sinkhorn` on positive marginals: from a large epsilon down, then at the wanted one until the columns fit."""
    if init is not None:
        psi = _check_init(init, b) * _log2_scale(epsilon)
        return _settle(affinity, epsilon, a, b, psi, None, tol, max_iter, n_iter=0, is_warm=True)
    spread = affinity.typical_spread
    n_steps = math.floor(math.log(max(_START * spread / epsilon, 1), _FACTOR))
    psi, model, n_iter = _first_psi(affinity, _log2_scale(epsilon * _FACTOR**n_steps), a, b), None, 0
    for step in range(n_steps, 0, -1):
        if n_iter + 1 < max_iter:
            scale = _log2_scale(epsilon * _FACTOR**step)
            state, model = _sweep(affinity, scale, psi, a, b, model)
            move, used, _ = _solve_columns(model, state, b, _COARSE, max_iter - n_iter - 2)
            psi, n_iter = _tamed(psi + move, affinity.spread * scale, b), n_iter + 1 + used
        psi = psi * _FACTOR
    return _settle(affinity, epsilon, a, b, psi, model, tol, max_iter, n_iter)


def _settle(affinity, epsilon, a, b, psi, model, tol, max_iter, n_iter, is_warm=False):
    """Sweeps at one epsilon until the columns fit."""
    scale, best, memory = _log2_scale(epsilon), None, _Memory(psi)
    reach = affinity.spread * scale
    former_error, samples_help = math.inf, True
    while True:
        state, model = _sweep(affinity, scale, psi, a, b, model)
        n_iter += 1
        if is_warm and n_iter == 1 and state.error > _STALE and max_iter > 1:
            cold = _solve(affinity, epsilon, a, b, tol, max_iter - 1, None)
            return replace(cold, n_iter=cold.n_iter + 1)
        best = _better(best, state)
        if best.error <= tol or n_iter >= max_iter:
            break
        if memory.is_astray(state.error, state.dual):
            psi, memory = memory.safe_psi, _Memory(memory.safe_psi)
            continue
        memory.safe_psi = _tamed(psi + b.log2() - state.column_sums.log2(), reach, b)
        # some rows may say little of the others: once they did not halve the error, they are no longer asked
        samples_help = samples_help and state.error <= 0.5 * former_error
        former_error = state.error
        room = max_iter - n_iter - (not model.is_whole) if samples_help or not model.is_sample else 0
        move, used, solved = _solve_columns(model, state, b, max(0.5 * tol, model.trust * state.error), room)
        n_iter += used
        if solved is not None:
            best = _better(best, solved)
            if best.error <= tol or n_iter >= max_iter:
                break
        accelerates = model.is_sample and state.error < 0.5
        psi = memory.anderson.step(psi, move, weight=state.column_sums) if accelerates else psi + move
        psi = _tamed(psi, reach, b)
    f, g = best.phi / scale, best.psi / scale
    return SinkhornResult(f, g, n_iter, best.error, best.error <= tol, best.column_sums, affinity, epsilon)


def _better(best, state):
    return state if best is None or state.error < best.error else best


def _check_init(init, b):
    init = torch.as_tensor(init).detach().to(b)
    if init.shape != b.shape or not torch.isfinite(init).all():
        raise ValueError(
            f"`init` must be a finite potential of shape {tuple(b.shape)}, as `SinkhornResult.g` is, but its shape is "
            f"{tuple(init.shape)}. Pass None to start without one."
        )
    return init


class _Memory:
    """What the iterations at one epsilon have seen: how good they were, and where it is safe to return to."""

    def __init__(self, psi):
        self.safe_psi, self.anderson = psi, _Anderson()
        self.error, self.dual = math.inf, -math.inf

    def is_astray(self, error, dual):
        """Whether it is much worse than before, by the error and by the dual objective."""
        if not error <= 3 * self.error and not dual > self.dual:
            return True
        self.error, self.dual = min(error, self.error), max(dual, self.dual)
        return False


def _first_psi(affinity, scale, a, b):
    """Column potentials to begin with, from some of the rows: no column starts out of reach."""
    rows = slice(None, None, 1 + affinity.shape[0] // 1024)
    columns, log_a = affinity.select(rows).transposed(), a[rows].log2().to(affinity.dtype)
    totals = torch.empty_like(b)
    for block_rows in columns.row_blocks():
        top, total = _exp2_rows(columns.scaled_rows(block_rows, scale, log_a))
        totals[block_rows] = top + total.log2()
    return b.log2() - totals


def _sweep(affinity, scale, psi, a, b, former):
    """One pass over K: the phi that makes the rows exact, how good it is, and a model of the plan.

    `former` is the model of the sweep before, or None.
    """
    psi_k, a_k = psi.to(affinity.dtype), a.to(affinity.dtype)
    phi, column_sums, model, scratch = torch.empty_like(a), torch.zeros_like(psi_k), None, affinity.scratch()
    for rows in affinity.row_blocks():
        place = model.place(rows) if model else None
        out = scratch[: rows.stop - rows.start] if place is None else place
        block = affinity.scaled_rows(rows, scale, psi_k, out=out)
        top, total = _exp2_rows(block)
        block.div_(total[:, None])  # the plan over its row sums
        phi[rows] = top + total.log2()
        column_sums += a_k[rows] @ block
        model = model or _new_model(affinity, block, former)
        if place is None:
            model.keep(rows, block)
    column_sums = column_sums.to(a.dtype).clamp_(min=torch.finfo(psi_k.dtype).tiny)
    model.close(a, column_sums)
    phi = a.log2() - phi
    error, dual = torch.stack([(column_sums - b).abs().sum() / b.sum(), a @ phi + b @ psi]).tolist()
    return _State(error, dual, phi, psi, column_sums), model


def _exp2_rows(block):
    """``2^(block - row maximum)`` in place; returns the row maxima and the new row sums, in float64 where there is."""
    top = block.amax(dim=1)
    block.sub_(top[:, None]).clamp_(min=FLOOR).exp2_()
    total = block.sum(dim=1)
    return top.to(_float64(block)), total.to(_float64(block))


def _new_model(affinity, block, former):
    """All rows of the plan if there is room; else its large entries if they are few; else some rows."""
    n, m = affinity.shape
    on_cuda = affinity.device.type == "cuda"
    stride = 1 if affinity.is_stored else -(-n * m // _ROOM["cuda" if on_cuda else "cpu"])
    if stride > 1 and not on_cuda and not (former and former.lost > _LOST):
        room = min(0.9 * _LargeEntries.room(affinity.shape), _FEW * n * m)
        for bits in _BITS:
            large = block > 2.0**-bits
            fits = float(large.sum()) / block.numel() * n * m <= room
            if fits and 1 - float((block * large).sum()) / len(block) <= _LOST:
                return _LargeEntries(affinity, bits, former)
    return _SomeRows(affinity, stride, former)


def _take_memory(model, kind):
    """The arrays of a model no longer needed if the next is of the same kind; else they are given up before it has its own."""
    memory = model.memory if isinstance(model, kind) else None
    if model:
        model.memory = model.G = model.values = model.columns = None
    return memory


class _SomeRows:
    """Every stride-th row of the plan over its row sums."""

    lost = 0.0
    reach = _REACH

    def __init__(self, affinity, stride, former):
        n, m = affinity.shape
        self.stride, self.is_whole, self.is_sample = stride, stride == 1, stride > 1
        self.trust = 0.0 if self.is_whole else 0.02  # share of the error that is left if the model is solved exactly
        self.max_iter = _MODEL_ITER if stride > 1 else 10**9
        memory = _take_memory(former, _SomeRows)  # filling fresh memory takes twice as long
        self.memory = memory or [torch.empty((-(-n // stride), m), dtype=affinity.dtype, device=affinity.device)]
        self.G = self.memory[0]

    def place(self, rows):
        """Where some rows of the plan may be computed in place, or None."""
        return self.G[rows] if self.is_whole else None

    def keep(self, rows, block):
        first = -rows.start % self.stride
        kept = block[first :: self.stride]
        at = (rows.start + first) // self.stride
        self.G[at : at + len(kept)] = kept

    def close(self, a, column_sums):
        self.a = a[:: self.stride]

    def target(self, b, sums, column_sums):
        """What the sums of the model have to be for those of the plan to be b: some rows stand for all."""
        if self.is_whole:
            return b
        target = b * (sums / column_sums)
        return target * (sums.sum() / target.sum())

    def row_sums(self, v):
        return (self.G @ v.to(self.G.dtype)).to(v.dtype)

    def column_sums(self, u):
        return (self.G.T @ u.to(self.G.dtype)).to(u.dtype)


class _LargeEntries:
    """The entries of the plan above a share of their row, sparse.

    What they leave out of each row and column is taken as spread over the others in proportion, a matrix of rank one, so
    that mass still finds its way where the large entries alone would not connect.
    """

    is_whole = is_sample = False
    trust = 0.01
    max_iter = _MODEL_ITER

    def __init__(self, affinity, bits, former):
        self.shape, self.bits, room = affinity.shape, bits, self.room(affinity.shape)
        self.dtype = np.float32 if affinity.dtype == torch.float32 else np.float64
        memory = _take_memory(former, _LargeEntries)
        self.memory = memory or [np.empty(room, dtype=self.dtype), np.empty(room, dtype=np.int32)]
        self.values, self.columns = self.memory
        self.counts, self.size = np.zeros(self.shape[0], dtype=np.int64), 0

    @staticmethod
    def room(shape):
        """How many entries are kept at most."""
        return _LARGE_ENTRIES + 16 * sum(shape)

    @property
    def reach(self):
        """log2: a move by which an entry left out may become as large as its row."""
        return float(self.bits)

    def place(self, rows):
        """Nowhere: the rows are not kept as they are."""

    def keep(self, rows, block):
        found = (block > 2.0**-self.bits).nonzero()
        while self.size + len(found) > len(self.values):
            self._raise_threshold()
            found = (block > 2.0**-self.bits).nonzero()
        new = slice(self.size, self.size + len(found))
        self.values[new] = block[found[:, 0], found[:, 1]].numpy()
        self.columns[new] = found[:, 1].numpy()
        self.counts[rows] = np.bincount(found[:, 0].numpy(), minlength=len(block))
        self.size = new.stop

    def _raise_threshold(self):
        self.bits -= 3
        old = slice(self.size)
        large = self.values[old] > 2.0**-self.bits
        self.counts = np.bincount(
            np.repeat(np.arange(len(self.counts)), self.counts)[large], minlength=len(self.counts)
        )
        self.size = int(large.sum())
        self.values[: self.size], self.columns[: self.size] = self.values[old][large], self.columns[old][large]

    def close(self, a, column_sums):
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.G = csr_array((self.values[: self.size], self.columns[: self.size], starts), shape=self.shape)
        self.a = a
        self.row_rest = (1 - self._times(self.G, torch.ones_like(column_sums))).clamp_(min=0)
        self.column_rest = (column_sums - self._times(self.G.T, a)).clamp_(min=0)
        self.lost = float(self.row_rest.mean())
        self.row_rest /= max(float(a @ self.row_rest), 1e-30) ** 0.5
        self.column_rest /= max(float(self.column_rest.sum()), 1e-30) ** 0.5

    def target(self, b, sums, column_sums):
        """`b` itself, for the model has all of the mass."""
        return b

    def row_sums(self, v):
        return self._times(self.G, v) + self.row_rest * (self.column_rest @ v)

    def column_sums(self, u):
        return self._times(self.G.T, u) + self.column_rest * (self.row_rest @ u)

    def _times(self, G, vector):
        return torch.from_numpy(G @ vector.numpy().astype(self.dtype)).to(vector.dtype)


def _solve_columns(model, state, b, wanted, max_iter):
    """The move of psi that brings the column sums of a model to b, by accelerated Sinkhorn iterations.

    It ends where the error is `wanted`, or where the model's reach does. Returns the move and, if the model is the whole
    plan, the iterations, which are full ones then, and the state that is reached.
    """
    plain = b.log2() - state.column_sums.log2()
    if state.error <= wanted or max_iter < 1 or float(plain.abs().max()) > model.reach:
        return plain, 0, None
    move, n_iter, target, lowest = torch.zeros_like(b), 0, None, math.inf
    memory = _Memory(move)
    while n_iter < min(max_iter, model.max_iter):
        n_iter += 1
        v = move.exp2()
        row_sums = model.row_sums(v)
        sums = v * model.column_sums(model.a / row_sums)
        if target is None:
            target = model.target(b, sums, state.column_sums)
        measures = (b * (sums / target - 1)).abs().sum() / b.sum(), target @ move - model.a @ row_sums.log2()
        error, dual, size = torch.stack([*measures, move.abs().max()]).tolist()
        if size > model.reach:
            found = move.clamp(-model.reach, model.reach)
            break
        if error < lowest:
            lowest, found, reached = error, move, (dual, row_sums, move, sums)
        if error <= wanted:
            break
        if memory.is_astray(error, dual):
            move, memory = memory.safe_psi, _Memory(memory.safe_psi)
            continue
        residual = target.log2() - sums.log2()
        memory.safe_psi = move + residual
        move = memory.anderson.step(move, residual, weight=b) if error < 0.5 else memory.safe_psi
    if not model.is_whole:
        return found, 0, None
    dual, row_sums, move, sums = reached
    return found, n_iter, _State(lowest, dual, state.phi - row_sums.log2(), state.psi + move, sums)


class _Anderson:
    """Anderson acceleration (type II) of ``x <- x + residual(x)``, least squares weighted by the mass of each column."""

    def __init__(self):
        self.points, self.residuals = [], []

    def step(self, x, residual, weight):
        self.points, self.residuals = [*self.points[-_MEMORY:], x], [*self.residuals[-_MEMORY:], residual]
        if len(self.points) == 1:
            return x + residual
        dx = torch.stack(self.points).diff(dim=0)  # (memory, m)
        df = torch.stack(self.residuals).diff(dim=0)
        gram = (df * weight) @ df.T  # (memory, memory)
        gram.diagonal().add_(1e-8 * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
        gamma = torch.linalg.solve_ex(
            gram, (df * weight) @ residual
        ).result  # without a check, for which a GPU would wait
        limit = (2 * residual.abs().max()).clamp(min=_STRIDE)
        return x + (residual - gamma @ (dx + df)).clamp_(-limit, limit)


def _tamed(psi, reach, b):
    """`psi` within the bounds every column update keeps: ``psi - log2 b`` spreads no further than ``scale K`` does."""
    log_b = b.log2()
    excess = psi - log_b
    return log_b + (excess - (excess.max() + excess.min()) / 2).clamp(-reach / 2, reach / 2)


def _log2_scale(epsilon):
    return math.log2(math.e) / epsilon


def _float64(tensor):
    """float64, or float32 on a device that has none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
