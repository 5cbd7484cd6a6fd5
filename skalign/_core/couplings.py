"""Couplings of two views by optimal transport on a cost, and draws from them. NumPy in and out; knows no estimators."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from torch import from_numpy

from .sinkhorn import sinkhorn

COUPLINGS = ("exact", "sinkhorn", "unbalanced", "semi_relaxed", "partial")
KEPT = 32  # entries of a plan that are stored for each row, the largest
_LP_ITER = 10_000_000  # cap on POT's network simplex; its own default stops at some thousands of rows
_SINKHORN_TOL = 1e-3  # marginal error of entropic plans: couples are drawn from them, a few thousand times


def solve_plan(C, coupling, *, epsilon, rho, mass):
    """Transport plan of one block of costs, of mass 1 or less; sizes are relative to the mean cost.

    Parameters
    ----------
    C : ndarray of shape (n, m)
        Costs.
    coupling : {"exact", "sinkhorn", "unbalanced", "semi_relaxed", "partial"}
        Both marginals uniform, without or with entropy; both relaxed; that of the rows alone; or a share of the mass.
    epsilon, rho, mass : float
        Entropy and marginal penalty in units of the mean cost; share of the smaller view that is transported.

    Returns
    -------
    plan : csr_array of shape (n, m)
        The `KEPT` largest entries of each row, the row's mass kept.
    """
    if coupling == "exact":
        return _exact(C)
    if coupling == "partial":
        return _partial(C, mass)
    return _largest(entropic_plan(C, coupling, epsilon=epsilon, rho=rho))


def _exact(C):
    if C.shape[0] == C.shape[1]:
        return _matching(C)
    import ot

    n, m = C.shape
    return _largest(ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), C, numItermax=_LP_ITER))


def _matching(C):
    """Each row of the smaller view has one partner; mass 1 in all."""
    i, j = linear_sum_assignment(C)
    return csr_array((np.full(len(i), 1 / len(i)), (i, j)), shape=C.shape)


def _partial(C, mass):
    """Rows of either view weigh the same; the best of them are transported, `mass` of the smaller view."""
    if mass == 1:
        return _matching(C)
    import ot

    small = min(C.shape)
    a, b = (np.full(size, 1 / small) for size in C.shape)
    return _largest(ot.partial.partial_wasserstein(a, b, C, m=mass, numItermax=_LP_ITER))


def entropic_plan(C, coupling, *, epsilon, rho):
    """Dense entropic plan of uniform marginals, both exact, both relaxed, or that of the rows; sizes as in `solve_plan`."""
    rho_a = np.inf if coupling == "sinkhorn" else rho
    rho_b = rho if coupling == "unbalanced" else np.inf
    K = -np.asarray(C, dtype=np.float64) / max(np.abs(C).mean(), 1e-300)
    return sinkhorn(from_numpy(K), epsilon, rho_a=rho_a, rho_b=rho_b, tol=_SINKHORN_TOL).plan.numpy()


def _largest(P):
    """The largest entries of each row as a sparse plan; what is left out goes to those that stay."""
    n, m = P.shape
    kept = min(KEPT, m)
    columns = np.argpartition(P, m - kept, axis=1)[:, m - kept :]
    values = np.take_along_axis(P, columns, axis=1)
    sums = values.sum(axis=1, keepdims=True)
    values = values * np.divide(P.sum(axis=1, keepdims=True), sums, out=np.zeros_like(sums), where=sums > 0)
    plan = csr_array((values.ravel(), columns.ravel(), np.arange(n + 1) * kept), shape=P.shape)
    plan.eliminate_zeros()
    plan.sort_indices()
    return plan


def plan_in_blocks(cost, X, Y, size, max_blocks, rng, **settings):
    """Plan of all rows of two views, solved at once if neither has more than `size` rows, else in random blocks.

    Every block matches as many rows of X with as many of Y, and both views are dealt out as often as the other needs; at
    most `max_blocks` are solved. Returns a csr_array of shape (n_x, n_y) and mass 1 or less.
    """
    blocks_x, blocks_y = (max(-(-len(rows) // size), 1) for rows in (X, Y))
    n_blocks = min(max(blocks_x, blocks_y), max_blocks)
    deal_x, deal_y = _Deal(len(X), blocks_x, rng), _Deal(len(Y), blocks_y, rng)
    rows, columns, values = [], [], []
    for _ in range(n_blocks):
        i, j = deal_x(), deal_y()
        plan = solve_plan(cost.between(cost.codes_x(X[i]), cost.codes_y(Y[j])), **settings).tocoo()
        rows.append(i[plan.coords[0]])
        columns.append(j[plan.coords[1]])
        values.append(plan.data / n_blocks)
    values, rows, columns = (np.concatenate(part) for part in (values, rows, columns))
    return coo_array((values, (rows, columns)), shape=(len(X), len(Y))).tocsr()


def partners_in_mean(plan, rows):
    """Rows of a plan that have mass (as positions), and the mean of each one's partners among `rows`, weighted by the plan."""
    mass = np.asarray(plan.sum(axis=1)).ravel()
    at = np.flatnonzero(mass)
    return at, ((plan @ rows)[at] / mass[at, None]).astype(rows.dtype, copy=False)


class _Deal:
    """Deals the rows of a view into equal parts, without end; each round is a new shuffle, unless there is one part."""

    def __init__(self, n_rows, n_parts, rng):
        self.n_rows, self.n_parts, self.rng, self.parts = n_rows, n_parts, rng, []

    def __call__(self):
        if self.n_parts == 1:
            return np.arange(self.n_rows)
        if not self.parts:
            self.parts = np.array_split(self.rng.permutation(self.n_rows), self.n_parts)
        return self.parts.pop()


class PlanSampler:
    """Draws couples (i, j) in proportion to a sparse plan.

    An epoch draws one couple from each of equal shares of the mass, in the order of the rows; so a row of mean mass comes
    once an epoch, and others as often as their mass asks.
    """

    def __init__(self, plan, rng):
        plan = plan.tocsr()
        self.cumulative = np.cumsum(plan.data)
        self.rows = np.repeat(np.arange(plan.shape[0]), np.diff(plan.indptr))
        self.columns, self.rng = plan.indices, rng
        self.n_draws = len(np.unique(self.rows))
        self.queue = np.empty(0, dtype=np.intp)

    def __call__(self, size):
        parts, missing = [], size
        while missing:
            if not len(self.queue):
                shares = (np.arange(self.n_draws) + self.rng.random_sample(self.n_draws)) / self.n_draws
                entries = np.searchsorted(self.cumulative, shares * self.cumulative[-1], side="right")
                self.queue = self.rng.permutation(np.minimum(entries, len(self.cumulative) - 1))
            parts.append(self.queue[:missing])
            self.queue = self.queue[missing:]
            missing -= len(parts[-1])
        drawn = np.concatenate(parts)
        return self.rows[drawn], self.columns[drawn]


class PairSampler:
    """Draws couples (k, k), k < n, each once an epoch."""

    def __init__(self, n_pairs, rng):
        self.n_pairs, self.rng, self.queue = n_pairs, rng, np.empty(0, dtype=np.intp)

    def __call__(self, size):
        while len(self.queue) < size:
            self.queue = np.concatenate([self.queue, self.rng.permutation(self.n_pairs)])
        drawn, self.queue = self.queue[:size], self.queue[size:]
        return drawn, drawn


class ExemplarSampler:
    """Draws a class, then a row of X and a row of Y of that class; every class equally often."""

    def __init__(self, members_x, members_y, rng):
        self.members, self.rng = list(zip(members_x, members_y, strict=True)), rng  # row numbers of each class

    def __call__(self, size):
        classes = self.rng.randint(len(self.members), size=size)
        drawn = np.empty((2, size), dtype=np.intp)
        for c, sides in enumerate(self.members):
            at = np.flatnonzero(classes == c)
            for side, rows in enumerate(sides):
                drawn[side, at] = rows[self.rng.randint(len(rows), size=len(at))]
        return drawn[0], drawn[1]


class MixedSampler:
    """Draws a share of known pairs, which stand first among the rows of both views, and the rest from another sampler."""

    def __init__(self, n_pairs, others, share, rng):
        self.n_pairs, self.others, self.share = n_pairs, others, share
        self.pairs = PairSampler(n_pairs, rng)

    def state_dict(self):
        """The couples still to come in the epochs of its samplers, as torch's modules give their state."""
        return {name: sampler.queue for name, sampler in vars(self).items() if hasattr(sampler, "queue")}

    def load_state_dict(self, state):
        """Be what gave this `state_dict`."""
        for name, queue in state.items():
            vars(self)[name].queue = np.asarray(queue)

    def __call__(self, size):
        n_known = size if self.others is None else round(self.share * size) if self.n_pairs else 0
        if n_known == size:
            return self.pairs(size)
        known, (i, j) = self.pairs(n_known), self.others(size - n_known)
        return np.concatenate([known[0], self.n_pairs + i]), np.concatenate([known[1], self.n_pairs + j])
