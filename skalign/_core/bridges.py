"""Bridge costs: how far a row of X is from a row of Y, seen from known bridges. Knows NumPy and SciPy, no estimators or torch.

A bridge is a point ``a_k`` of X that belongs to a point ``b_k`` of Y. Every cost is fitted on m bridges and some rows of
either view, turns rows into codes one view at a time, and compares blocks of codes; so nobody needs all couples at once.
Rows come prepared: each view centred, and divided by its root mean square.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from .rows import normalize_rows

_TAU = 0.3  # temperature of "relation"; 0.1 in KPG-RL
_REGS = np.logspace(-1, 4, 11)  # ridges of "linear" to choose from
_MIN_FOR_CHOICE = 10  # groups of pairs below which held-out pairs cannot tell one cost from another
_MOST_BRIDGES = 1000  # for the costs that measure the distance to each, and to choose a cost with
_FOLDS = 5
_AMONG = 500  # unpaired rows of each view among which a held-out pair must be found
_BOOTSTRAP_SHARES = (0.3, 0.6, 0.9)
_BOOTSTRAP_MOST = 400
_BOOTSTRAP_ROWS = 2000  # of either view, among which sure couples are looked for
_LEAST_SCORE = 0.1  # below which a plan is too poor to learn from itself


class Profile:
    r"""``C_ij = |z_i - z_j|^2 / m`` of the profiles: distances to each bridge, standardised by bridge, then by row.

    This is ``2 - 2 corr(z_i, z_j)``, between 0 and 4.
    """

    min_bridges = 3

    def __init__(self, A, B, X, Y, metric):
        self.sides = tuple(_Distances(points, rows, metric) for points, rows in ((A, X), (B, Y)))

    def codes_x(self, X):
        return self._codes(self.sides[0], X)

    def codes_y(self, Y):
        return self._codes(self.sides[1], Y)

    def _codes(self, side, rows):
        Z = (side(rows) - side.mean) / side.deviation
        return normalize_rows(Z - Z.mean(axis=1, keepdims=True))

    def between(self, U, V):
        return 2 - 2 * U @ V.T


class Chain:
    """``C_ij = min_k d(x_i, a_k) / mean + d(b_k, y_j) / mean``: to a bridge in X, across it, and on in Y."""

    min_bridges = 1

    def __init__(self, A, B, X, Y, metric):
        self.sides = tuple(_Distances(points, rows, metric) for points, rows in ((A, X), (B, Y)))

    def codes_x(self, X):
        return self.sides[0](X) / self.sides[0].overall

    def codes_y(self, Y):
        return self.sides[1](Y) / self.sides[1].overall

    def between(self, U, V):
        C = np.full((len(U), len(V)), np.inf)
        through = np.empty_like(C)
        for u, v in zip(U.T, V.T, strict=True):
            np.minimum(C, np.add(u[:, None], v, out=through), out=C)
        return C


class Relation:
    """Jensen-Shannon divergence of ``softmax_k(-2 d^2 / (tau max d^2))``: which bridges are near (KPG-RL)."""

    min_bridges = 2

    def __init__(self, A, B, X, Y, metric):
        self.sides = tuple(_Distances(points, rows, metric) for points, rows in ((A, X), (B, Y)))

    def codes_x(self, X):
        return self._codes(self.sides[0], X)

    def codes_y(self, Y):
        return self._codes(self.sides[1], Y)

    def _codes(self, side, rows):
        logits = side(rows) ** 2 * (-2 / (_TAU * side.largest**2))
        R = np.exp(logits - logits.max(axis=1, keepdims=True))
        return R / R.sum(axis=1, keepdims=True)

    def between(self, U, V):
        entropy_u, entropy_v = ((-Z * np.log(np.maximum(Z, 1e-300))).sum(axis=1) for Z in (U, V))
        C = np.add.outer(entropy_u, entropy_v) / -2
        for u, v in zip(U.T, V.T, strict=True):
            M = np.add.outer(u, v) / 2
            C -= M * np.log(np.maximum(M, 1e-300))
        return np.maximum(C, 0)


class Linear:
    """``C_ij = |ridge(x_i) - y_j|^2``, the ridge regression of the bridges; its strength by leave-one-out."""

    min_bridges = 1

    def __init__(self, A, B, X, Y, metric):
        self.coef, self.intercept = ridge(A, B)

    def codes_x(self, X):
        return X @ self.coef + self.intercept

    def codes_y(self, Y):
        return Y

    def between(self, U, V):
        return cdist(U, V, "sqeuclidean")


class Custom:
    """A user's ``cost(X, Y, A, B)``, which returns the matrix of costs between rows, given the bridges."""

    min_bridges = 1

    def __init__(self, function, A, B):
        self.function, self.A, self.B = function, A, B

    def codes_x(self, X):
        return X

    def codes_y(self, Y):
        return Y

    def between(self, U, V):
        C = np.asarray(self.function(U, V, self.A, self.B), dtype=np.float64)
        if C.shape != (len(U), len(V)) or not np.isfinite(C).all():
            raise ValueError(
                f"`cost` must return finite costs of shape {(len(U), len(V))}, one for each row of X and of Y, but it "
                f"returned shape {C.shape}. It is called as cost(X, Y, A, B)."
            )
        return C


COSTS = {"profile": Profile, "chain": Chain, "relation": Relation, "linear": Linear}


class _Distances:
    """Distances of rows to the bridge points of one view, and their statistics over some rows."""

    def __init__(self, points, rows, metric):
        self.points, self.metric = points, metric
        D = self(rows)
        self.mean, self.deviation = D.mean(axis=0), np.maximum(D.std(axis=0), 1e-12)
        self.overall, self.largest = max(D.mean(), 1e-12), max(D.max(), 1e-12)

    def __call__(self, rows):
        if self.metric == "cosine":
            return cdist(normalize_rows(rows), normalize_rows(self.points))
        return cdist(rows, self.points)


def fit_cost(cost, A, B, X, Y, metric="euclidean"):
    """A cost by name or a user's function, fitted on bridges (A, B) and rows of both views."""
    return Custom(cost, A, B) if callable(cost) else COSTS[cost](A, B, X, Y, metric)


def ridge(A, B, regs=_REGS):
    """Coefficients (d_x, d_y) and intercept of a ridge regression; the ridge with the least leave-one-out error."""
    mean_a, mean_b = A.mean(axis=0), B.mean(axis=0)
    A, B = A - mean_a, B - mean_b
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    rotated = U.T @ B  # (r, d_y)
    errors = []
    for reg in regs:
        shrink = s**2 / (s**2 + reg)
        leverage = 1 / len(A) + (U**2 * shrink).sum(axis=1)
        left_out = (B - U @ (shrink[:, None] * rotated)) / np.maximum(1 - leverage, 1e-12)[:, None]
        errors.append(np.mean(left_out**2))
    coef = Vt.T @ ((s / (s**2 + regs[int(np.argmin(errors))]))[:, None] * rotated)
    return coef, mean_b - mean_a @ coef


class Choice(NamedTuple):
    """A cost, the bridges (A, B) it is measured from, and how well each cost that was judged finds held-out pairs."""

    cost: str | Callable
    A: np.ndarray
    B: np.ndarray
    scores: dict


def choose(cost, A, B, groups, means, X, Y, *, metric, refine, solve, rng):
    """Choose the cost ("auto") and its bridges.

    Parameters
    ----------
    cost : str or callable
        "auto" is the one with the best `held_out_score`; "linear" with fewer than 10 groups of pairs, "chain" without any.
    A, B, groups, X, Y, metric, solve : see `held_out_score`
    means : pair of ndarray, shape (c, d_x) and (c, d_y)
        Further bridges.
    refine : bool
        Whether the bridges of `bootstrap` are taken where they raise the score; needs 10 groups of pairs.
    rng : numpy.random.RandomState
        Draws which pairs and which rows take part where there are many.

    Returns
    -------
    choice : Choice

    Raises
    ------
    ValueError
        If there are too few bridges for the cost.
    """
    seed = rng.randint(2**31 - 1)
    bridges = _distinct(np.concatenate([A, means[0]]), np.concatenate([B, means[1]]))
    if cost in COSTS and len(bridges[0]) < COSTS[cost].min_bridges:
        raise ValueError(
            f"cost={cost!r} needs at least {COSTS[cost].min_bridges} distinct bridges (pairs, or classes labelled on both "
            f"sides), but there are {len(bridges[0])}. Add some, or use cost='linear'."
        )
    some = np.sort(rng.permutation(len(A))[:_MOST_BRIDGES])
    A, B, groups = A[some], B[some], np.unique(groups[some], return_inverse=True)[1]
    can_judge = groups.max(initial=-1) + 1 >= _MIN_FOR_CHOICE

    def score(name, improve=None):
        return held_out_score(name, A, B, groups, X, Y, metric, solve, seed, improve)

    name, scores = cost if isinstance(cost, str) else "callable", {}
    if can_judge:
        scores = {each: score(each) for each in COSTS} if cost == "auto" else {name: score(cost)}
    if cost == "auto":
        name = cost = max(scores, key=scores.get) if scores else "linear" if len(A) else "chain"
    if cost != "linear":
        some = np.sort(rng.permutation(len(bridges[0]))[:_MOST_BRIDGES])
        bridges = tuple(points[some] for points in bridges)
    if refine and can_judge:
        improve = functools.partial(bootstrap, cost, metric=metric, solve=solve)
        scores[f"{name}, refined"] = score(cost, improve)
        if scores[f"{name}, refined"] > max(scores[name], _LEAST_SCORE):
            bridges = improve(*bridges, *(rows[rng.permutation(len(rows))[:_BOOTSTRAP_ROWS]] for rows in (X, Y)))
    return Choice(cost, *bridges, scores)


def _distinct(A, B):
    """Bridges without those that stand twice, in their order."""
    first = np.sort(np.unique(np.column_stack([A, B]), axis=0, return_index=True)[1])
    return A[first], B[first]


def held_out_score(cost, A, B, groups, X, Y, metric, solve, seed, improve=None):
    """How well a cost's plan finds held-out pairs: mean reciprocal rank by mass among up to 500 unpaired rows, 5 folds.

    Parameters
    ----------
    cost : str or callable
        See `fit_cost`.
    A, B : ndarray of shape (p, d_x) and (p, d_y)
        Pairs, row by row.
    groups : ndarray of int, shape (p,)
        Pairs of one group share a row; they stay on one side of every split.
    X, Y : ndarray of shape (u_x, d_x) and (u_y, d_y)
        Unpaired rows.
    metric : {"euclidean", "cosine"}
        Of the distances to bridges.
    solve : callable
        ``solve(C)`` returns the plan for a matrix of costs.
    seed : int
        Draws the folds and the unpaired rows; equal seeds make costs comparable.
    improve : callable, default=None
        ``improve(A, B, X, Y)`` returns more bridges, see `bootstrap`.

    Returns
    -------
    score : float
        Between 0 and 1.
    """
    rng = np.random.RandomState(seed)
    fold = (rng.permutation(groups.max() + 1) % _FOLDS)[groups]
    X, Y = (rows[rng.permutation(len(rows))[:_AMONG]] for rows in (X, Y))
    score = 0.0
    for k in range(_FOLDS):
        held = fold == k
        bridges = A[~held], B[~held]
        seen = np.concatenate([A[held], X]), np.concatenate([B[held], Y])
        if improve is not None:
            bridges = improve(*bridges, *seen)
        model = fit_cost(cost, *bridges, *(np.concatenate(parts) for parts in zip(bridges, seen, strict=True)), metric)
        P = solve(model.between(model.codes_x(seen[0]), model.codes_y(seen[1])))
        score += held.sum() * reciprocal_rank(P, held.sum())
    return float(score / len(A))


def bootstrap(cost, A, B, X, Y, metric, solve):
    """More bridges for a cost: the surest couples of its own plan join, in rounds of 30, 60 and 90 % (at most 400).

    A couple counts if each is where most of the other's mass goes, and the more of it the surer. ``solve(C)`` returns the
    plan for a matrix of costs.
    """
    more = A[:0], B[:0]
    for share in _BOOTSTRAP_SHARES:
        bridges = np.concatenate([A, more[0]]), np.concatenate([B, more[1]])
        model = fit_cost(cost, *bridges, np.concatenate([A, X]), np.concatenate([B, Y]), metric)
        P = solve(model.between(model.codes_x(X), model.codes_y(Y)))
        columns = P.argmax(axis=1)
        rows = np.flatnonzero(P.argmax(axis=0)[columns] == np.arange(len(X)))
        mass = P[rows, columns[rows]]
        surest = rows[np.argsort(-mass, kind="stable")[: min(round(share * len(rows)), _BOOTSTRAP_MOST)]]
        more = X[surest], Y[columns[surest]]
    return np.concatenate([A, more[0]]), np.concatenate([B, more[1]])


def reciprocal_rank(P, n_held):
    """Mean reciprocal rank, over both directions, of the couples (i, i), i < n_held, by mass; ties count against."""
    own = P.diagonal()[:n_held]
    forward = (P[:n_held] >= own[:, None]).sum(axis=1)
    backward = (P[:, :n_held] >= own).sum(axis=0)
    return (np.mean(1 / forward) + np.mean(1 / backward)) / 2
