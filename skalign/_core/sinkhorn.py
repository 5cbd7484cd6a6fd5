"""Entropic optimal transport on an affinity, in the log domain. Knows torch and NumPy, nothing of estimators.

Notation: affinity ``K`` (n, m), plan ``P = exp((K + f 1' + 1 g') / epsilon)``, marginals ``a`` (n,) and ``b`` (m,). Inside,
the potentials are in units of log2, ``phi = f log2(e) / epsilon`` and ``psi = g log2(e) / epsilon``, since exp2 is cheaper
than exp, and in float64, since they reach hundreds while the plan depends on their decimals.

One loop for every affinity. A *sweep* reads all of K once, in blocks that stay in cache: it finds the phi that makes the
rows exact, the column sums, and on the way keeps a *model* of the plan: all of it where there is room, its large entries
where those are few, with what they leave out in groups of like columns, else some of its rows. On the large entries or
the rows the column equations are solved by Sinkhorn iterations with Anderson acceleration, as far as they can be trusted;
then the whole plan tells how true that was, which is read instead of K where it is kept, else by the next sweep. A small
plan is iterated on itself, unless that takes too long. A step that made things worse is taken back in part. The epsilon
starts large and is divided from sweep to sweep until it is the wanted one.

Marginals that give way (`relaxation`) move with the potentials, at a mass that is kept: rows are exact if they are what
phi lets them be, columns are compared with their *target*, which is b where they are held. The mass comes last.

The rows of an affinity may be spread over processes (`distributed`). Each then has phi and a model of its own rows, and what
is summed over rows is summed over processes too; so psi and all that is decided by are the same in all of them. Marginals
are held there.
"""

import math
import warnings
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from .affinity import FactoredAffinity, StoredAffinity, check_features, full_precision, pages
from .exp2 import FLOOR, exp2_rows_, exp2_shares_
from .relaxation import RIGID, Relaxation, namespace, tilted

_START = 0.03  # epsilon to start with, relative to the spread of K
_FACTOR = 6.0  # by which epsilon falls from sweep to sweep, about, until it is the wanted one
_COARSE = 0.02  # marginal error that is close enough before epsilon falls
_COARSE_ITER = 10  # and iterations that are enough
_STALE = 0.5  # marginal error of a warm start above which a cold one is better
_REACH = 30.0  # log2: how far psi may move either way on a model of whole rows, which are floored at `FLOOR`
_MEMORY = 10  # differences kept by the Anderson acceleration
_STRIDE = 8.0  # log2: how far it may go beyond its point in one step; slow modes tempt it to go astray
_LEAST_SHARE = 0.05  # of the move a model proposes, below which a plain one is better
_PATIENCE = 4  # how often a state may be worse, or a model of little help, before another way is tried
_MODEL_ITER = 100  # iterations on a model before it is compared with the plan
_ROOM = {"cpu": 1 << 23, "cuda": 1 << 26}  # entries kept of whole rows if the affinity is not stored
_LARGE_ENTRIES = 4 << 20  # large entries kept of a plan, beside 32 for each row and column
_BITS = (40, 32, 24, 20, 16, 12)  # an entry is large above 2^-bits of its row; the most bits that fit are taken
_FINE_BITS = (40, 36, 32, 28, 24, 22, 20, 18, 16, 15, 14, 13, 12, 11, 10, 9, 8)  # with groups: sweeps are dear
_FEW = 0.09  # share of entries above which products with the large ones save little; twice that if K is not stored
_SPACIOUS = 1 << 23  # entries of a stored K from which on that share counts in memory, and half as many do as well
_SMALL = 1 << 20  # entries of a kept plan below which iterations on it are as quick as on its large entries
_WAIT = 100  # iterations on a small plan before its large entries are asked: a hard one has not been solved by then
_GROUPS = 64  # of like columns, for each of which a row tells what its large entries leave out
_COMPACTED = 256  # rows whose entries are gone through at a time where fewer are to be kept
_LOST = 0.05  # mass that the large entries may leave out


@dataclass(frozen=True)
class SinkhornResult:
    """Solution of an entropic transport problem; the plan is derived when read.

    Attributes
    ----------
    f, g : Tensor of shape (n,) and (m,)
        Potentials: ``log P = (K + f[:, None] + g) / epsilon``; -inf where a marginal is zero. A constant may go from
        one to the other.
    n_iter : int
        Full iterations (one row and one column update each, over all entries of the plan).
    error : float
        L1 distance between the plan's column sums and what they have to be, over the plan's mass; its row sums are what
        they have to be. That is ``b`` and ``a``, or, where relaxed, what the other potential makes optimal.
    converged : bool
        Whether ``error <= tol``.
    row_sums, column_sums : Tensor of shape (n,) and (m,)
        Sums the plan has: equal to ``a``, and up to `error` to ``b``, where these are not relaxed.
    affinity : object
        What was solved: has `shape`, `dtype` and `device` of K.
    epsilon : float
        Entropic temperature it was solved at.
    """

    f: torch.Tensor
    g: torch.Tensor
    n_iter: int
    error: float
    converged: bool
    row_sums: torch.Tensor
    column_sums: torch.Tensor
    affinity: StoredAffinity | FactoredAffinity
    epsilon: float

    @property
    def plan(self):
        """Transport plan P, shape (n, m), in the type of the affinity; computed anew at each reading."""
        P = self.affinity.empty(self.affinity.shape[0])
        floor = FLOOR + min(float(self.column_sums.sum().log2()), 0)  # an unbalanced plan may have little mass
        with torch.no_grad(), full_precision(P.device):
            for rows in self.affinity.row_blocks():
                self.log2_plan(rows, out=P[rows]).clamp_(min=floor).exp2_()
        return P

    def log2_plan(self, rows, out):
        """Logarithm to base 2 of some rows of the plan, without forming the others.

        Parameters
        ----------
        rows : slice
            Which rows.
        out : Tensor of shape (r, m)
            Where to write them, in the type of the affinity.

        Returns
        -------
        out : Tensor of shape (r, m)
            The same. exp2 is slow where it underflows; clamp the entries first.

        Examples
        --------
        >>> import torch
        >>> from skalign.losses import sinkhorn
        >>> result = sinkhorn(torch.eye(4), epsilon=0.5)
        >>> first = result.log2_plan(slice(0, 2), out=torch.empty(2, 4)).exp2()
        >>> torch.allclose(first, result.plan[:2])
        True
        """
        scale, dtype = _log2_scale(self.epsilon), self.affinity.dtype
        logits = self.affinity.scaled_rows(rows, scale, (self.g * scale).to(dtype), out=out)
        return logits.add_((self.f[rows] * scale).to(dtype)[:, None])


def sinkhorn(K, epsilon, a=None, b=None, *, rho_a=math.inf, rho_b=math.inf, tol=1e-5, max_iter=1000, init=None):
    r"""Solve :math:`\max_{P \ge 0} \langle P, K\rangle - \varepsilon\,\mathrm{KL}(P \| a b^T)`, marginals held or relaxed.

    See :func:`skalign.losses.sinkhorn` for the parameters.
    """
    affinity = StoredAffinity.checked(K.detach())
    a, b = check_problem(affinity, epsilon, a, b, rho_a, rho_b)
    return solve(affinity, epsilon, a, b, rho_a, rho_b, tol=tol, max_iter=max_iter, init=init)


def sinkhorn_from_features(
    F, G, epsilon, a=None, b=None, *, rho_a=math.inf, rho_b=math.inf, tol=1e-5, max_iter=1000, init=None
):
    """`sinkhorn` of ``F @ G.T``, which is not formed."""
    affinity = FactoredAffinity(*check_features(F.detach(), G.detach()))
    a, b = check_problem(affinity, epsilon, a, b, rho_a, rho_b)
    return solve(affinity, epsilon, a, b, rho_a, rho_b, tol=tol, max_iter=max_iter, init=init)


def solve(affinity, epsilon, a, b, rho_a=math.inf, rho_b=math.inf, *, tol, max_iter, init, spare=None):
    """`sinkhorn` on an affinity and marginals that were checked.

    `spare` is a list in which problems of one shape leave each other the memory of a whole plan: fresh memory is slow.
    """
    with torch.no_grad(), full_precision(affinity.device):
        rows, columns = a > 0, b > 0
        if rows.all() & columns.all():  # one number to wait for on a GPU
            return _solve_in_groups(affinity, epsilon, a, b, (rho_a, rho_b), tol, max_iter, init, spare)
        init = None if init is None else torch.as_tensor(init)[columns]
        reduced = affinity.select(rows, columns), epsilon, a[rows], b[columns], (rho_a, rho_b)
        inner = _solve_in_groups(*reduced, tol, max_iter, init)
        f = a.new_full(a.shape, -math.inf).masked_scatter_(rows, inner.f)
        g = b.new_full(b.shape, -math.inf).masked_scatter_(columns, inner.g)
        row_sums = torch.zeros_like(a).masked_scatter_(rows, inner.row_sums)
        column_sums = torch.zeros_like(b).masked_scatter_(columns, inner.column_sums)
        return replace(inner, f=f, g=g, row_sums=row_sums, column_sums=column_sums, affinity=affinity)


def check_problem(affinity, epsilon, a=None, b=None, rho_a=math.inf, rho_b=math.inf):
    """Refuse an ill-posed problem; fill in uniform marginals. Marginals come in float64."""
    check_epsilon(epsilon)
    for name, rho in (("rho_a", rho_a), ("rho_b", rho_b)):
        if not rho > 0:
            raise ValueError(f"`{name}` must be positive, but it is {rho}. Pass infinity to hold the marginal.")
    n, m = affinity.shape
    a, b = _marginal(a, n, affinity, "a"), _marginal(b, m, affinity, "b")
    mass_a, mass_b = torch.stack([a.sum(), b.sum()]).tolist()
    if min(rho_a, rho_b) < math.inf:
        return a, b
    if not math.isclose(mass_a, mass_b, rel_tol=1e-4):
        raise ValueError(
            f"The marginals must have equal mass, but `a` sums to {mass_a:g} and `b` to {mass_b:g}. Rescale one of them, "
            "or relax one by a finite `rho_a` or `rho_b`."
        )
    return a, b * (mass_a / mass_b)


def check_epsilon(epsilon):
    """Refuse a temperature that is none."""
    if not epsilon > 0 or math.isinf(epsilon):
        raise ValueError(f"`epsilon` must be positive and finite, but it is {epsilon}. Typical values are 0.01 to 0.1.")


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
    """Potentials, how good their plan is, and its sums, at the mass of b."""

    error: float  # L1 distance of the column sums from their target, over the mass
    dual: float  # objective that Sinkhorn iterations make larger, in units of log2, over the mass
    phi: torch.Tensor  # that makes row sums a; the plan has `row_sums` instead
    psi: torch.Tensor
    column_sums: torch.Tensor
    row_sums: torch.Tensor | None = None
    target: torch.Tensor | None = None  # of the column sums
    log_target: torch.Tensor | None = None  # its log2, where it is out of range too


def _solve_in_groups(affinity, epsilon, a, b, rho, tol, max_iter, init, spare=None):
    """`_solve`, with like columns side by side where a model is to tell of groups of them."""
    if affinity.device.type == "cuda" or _stride(affinity) == 1:
        return _solve(affinity, epsilon, a, b, rho, tol, max_iter, init, spare)
    in_groups, order = affinity.in_groups(_GROUPS)
    if init is not None:
        init = _check_init(init, b)[order]
    inner = _solve(in_groups, epsilon, a, b[order], rho, tol, max_iter, init)
    g, column_sums = (torch.empty_like(Z).index_copy_(0, order, Z) for Z in (inner.g, inner.column_sums))
    return replace(inner, g=g, column_sums=column_sums, affinity=affinity)


def _solve(affinity, epsilon, a, b, rho, tol, max_iter, init, spare=None):
    """`sinkhorn` on positive marginals: from a large epsilon down, then at the wanted one until the columns fit."""
    scale, n_iter, log2_ratio = _log2_scale(epsilon), 0, 0.0
    model = _WholePlan(affinity, memory=spare.pop()) if spare else None
    if min(rho) < math.inf:
        log2_ratio = math.log2(b.sum() / a.sum())
        a = a * (b.sum() / a.sum())
    if init is not None:
        psi = _check_init(init, b) * scale
        best, psi, model, n_iter = _settle(affinity, scale, a, b, rho, psi, model, tol, max_iter, is_warm=True)
    if init is None or (best.error > max(tol, _STALE) and n_iter == 1 < max_iter):
        excess = max(_START * affinity.typical_spread / epsilon, 1)
        n_steps = round(math.log(excess, _FACTOR))
        factor = excess ** (1 / max(n_steps, 1))
        psi = _first_psi(affinity, scale / factor**n_steps, a, b)
        for step in range(n_steps, 0, -1):
            cap = min(max_iter - n_iter - 1, _COARSE_ITER)
            if cap > 0:
                coarse = scale / factor**step
                *_, psi, model, used = _settle(affinity, coarse, a, b, rho, psi, model, _COARSE, cap, max_sweeps=1)
                n_iter += used
            psi = psi * factor
        best, _, model, used = _settle(affinity, scale, a, b, rho, psi, model, tol, max_iter - n_iter)
        n_iter += used
    if spare is not None and isinstance(model, _WholePlan):
        spare.append(model.memory)
    relaxation = Relaxation.at(*rho, scale)
    log2_mass = 0.0 if relaxation == RIGID else _log2_mass(best.dual, relaxation, affinity, scale, b, log2_ratio)
    f, g = (_exact_phi(best.phi, a, relaxation) + log2_mass) / scale, best.psi / scale
    sums = (Z * 2.0**log2_mass for Z in (best.row_sums, best.column_sums))
    return SinkhornResult(f, g, n_iter, best.error, best.error <= tol, *sums, affinity, epsilon)


def _log2_mass(dual, relaxation, affinity, scale, b, log2_ratio):
    """log2 of the plan's mass over that of b, at a dual objective."""
    log2_b = math.log2(b.sum())
    # a solution has the dual of a plan that stands on the largest entry, or more; a state short of it may not
    log2_mass = relaxation.log2_mass(max(dual, -scale * affinity.largest - log2_b), log2_ratio)
    if log2_mass + max(log2_b, 0) >= math.log2(torch.finfo(affinity.dtype).max):
        raise ValueError(
            f"The plan has a mass of 2^{log2_mass + log2_b:.0f}, which {affinity.dtype} does not hold: K is too large for "
            "marginals so relaxed. Subtract its maximum from K, raise `rho_a` or `rho_b`, or, if K is at most 0, `max_iter`."
        )
    return log2_mass


def _settle(affinity, scale, a, b, rho, psi, model, tol, max_iter, max_sweeps=math.inf, is_warm=False):
    """Iterate at one epsilon until the columns fit, a cap is reached, or a warm start proves stale.

    Returns the best state, the psi to go on with, the last model and the iterations.
    """
    relaxation = Relaxation.at(*rho, scale)
    best, n_iter, n_sweeps, search = None, 0, 0, _Search(psi, b, relaxation, affinity.spread * scale, tol)
    while True:
        state = model.read(psi, a, b, relaxation) if n_sweeps else None
        if state is None:
            if n_sweeps >= max_sweeps:
                return best, psi, model, n_iter
            state, model = _sweep(affinity, scale, psi, a, b, model, relaxation)
            n_sweeps += 1
        n_iter += 1
        best = state if best is None or state.error < best.error else best
        if best.error <= tol or n_iter >= max_iter or (is_warm and n_iter == 1 and state.error > _STALE):
            return best, best.psi, model, n_iter
        psi = search.after(state, model)


def _check_init(init, b):
    init = torch.as_tensor(init).detach().to(b)
    if init.shape != b.shape or not torch.isfinite(init).all():
        raise ValueError(
            f"`init` must be a finite potential of shape {tuple(b.shape)}, as `SinkhornResult.g` is, but its shape is "
            f"{tuple(init.shape)}. Pass None to start without one."
        )
    return init


class _Search:
    """Where to look next, at one epsilon."""

    def __init__(self, psi, b, relaxation, reach, tol):
        self.log_b, self.relaxation, self.reach, self.tol = b.log2(), relaxation, reach, tol
        self.b, self.memory = b, _Memory(psi)
        self.n_states, self.useful_below, self.former_error, self.n_failed = 0, math.inf, math.inf, 0
        self.share = 0.0  # of a model's move that was gone last, 0 if no model was asked

    def after(self, state, model):
        """The psi after a state; on the way back to the state before if this one is much worse."""
        memory = self.memory
        move = _plain_move(state, self.relaxation)
        if memory.is_astray(state.error, state.dual, self._tamed(state.psi + move)):
            self.share /= 4
            if self.share >= _LEAST_SHARE:
                return self._tamed(self.start + self.share * self.move)
            self.useful_below, self.memory = memory.error / 2, _Memory(memory.safe_psi)
            return memory.safe_psi
        self.n_states += 1
        part = model.part if self.n_states > model.wait else None
        is_asked = part is not None and self._is_useful(state.error, part)
        if is_asked:
            wanted = max(0.2 * self.tol, part.trust * state.error)
            move = _solve_columns(model.asked(), state, self.b, self.relaxation, wanted)
        if state.error < 0.5 and (not is_asked or part.is_sample):
            self.share = 0.0
            step = memory.anderson.step(*map(_native, (state.psi, move, state.target)))
            return self._tamed(torch.as_tensor(step))
        self.start, self.move, self.share = state.psi, move, float(is_asked)
        return self._tamed(state.psi + move)

    def _is_useful(self, error, part):
        """Whether to ask the model, which may say little of the plan: less often where the error did not halve by it."""
        if error > self.useful_below:
            self.useful_below *= 1.1
            return False
        self.n_failed = 0 if error <= self.former_error / 2 else self.n_failed + 1
        self.former_error = error
        if self.n_failed > (0 if part.is_sample else _PATIENCE):
            self.useful_below, self.n_failed = error / 2, 0
            return False
        return True

    def _tamed(self, psi):
        """`psi` within the bounds every column update keeps: ``psi - log2 b`` spreads no further than ``scale K`` does."""
        excess = psi - self.log_b
        return self.log_b + (excess - (excess.max() + excess.min()) / 2).clamp(-self.reach / 2, self.reach / 2)


class _Memory:
    """What the iterations have seen: how good they were, and where it is safe to return to."""

    def __init__(self, psi):
        self.safe_psi, self.anderson = psi, _Anderson()
        self.error, self.dual, self.n_worse = math.inf, -math.inf, 0

    def is_astray(self, error, dual, plain_psi):
        """Whether neither error nor dual objective is better than any before, by far or for a while.

        If one is, it is safe to return to `plain_psi`, the next Sinkhorn iterate, which raises the dual in any case.
        """
        if error < (1 - 1e-9) * self.error or dual > self.dual + 1e-12 * abs(self.dual):  # more than rounding
            self.safe_psi, self.n_worse = plain_psi, 0
        else:
            self.n_worse += dual < self.dual - 0.1 * self.error  # close to the solution the dual says no more
            if not error <= 3 * self.error or self.n_worse > _PATIENCE:
                return True
        self.error, self.dual = min(error, self.error), max(dual, self.dual)
        return False


def _first_psi(affinity, scale, a, b):
    """Column potentials to begin with, from some of the rows: no column starts out of reach."""
    rows = slice(None, None, 1 + affinity.n_rows // 1024)
    columns, log_a = affinity.select(rows).transposed(), a[rows].log2().to(affinity.dtype)
    totals = torch.full_like(b, -math.inf)
    if len(log_a):
        scratch = columns.scratch()
        for block_rows in columns.row_blocks():
            out = scratch[: block_rows.stop - block_rows.start]
            totals[block_rows] = _log2_sum(*exp2_rows_(columns.scaled_rows(block_rows, scale, log_a, out=out)))
    if affinity.group.size > 1:
        top = affinity.group.largest(totals)
        (sums,) = affinity.group.total((totals - top).exp2())
        totals = top + sums.log2()
    return b.log2() - totals


def _plain_move(state, relaxation):
    """The move of psi in a Sinkhorn iteration."""
    return _damped(state.log_target - state.column_sums.log2(), relaxation)


def _damped(move, relaxation):
    return move * relaxation.damping if relaxation.columns else move


def _sweep(affinity, scale, psi, a, b, former, relaxation=RIGID):
    """One pass over K: the phi that makes the rows exact, how good it is, and a model of the plan.

    `former` is the model of the sweep before, or None.
    """
    psi_k, a_k = psi.to(affinity.dtype), a.to(affinity.dtype)
    phi, column_sums, model, scratch = torch.empty_like(a), torch.zeros_like(psi_k), None, affinity.scratch()
    top = a.new_full((), -math.inf)  # log2 of the largest row weight so far
    for rows in affinity.row_blocks():
        place = model.place(rows) if model else None
        out = scratch[: rows.stop - rows.start] if place is None else place
        block = affinity.scaled_rows(rows, scale, psi_k, out=out)
        row_tops, totals = exp2_shares_(block)  # the plan over its row sums
        phi[rows] = _log2_sum(row_tops, totals)
        if relaxation.rows:  # weights of which only the proportions are known before the end, and they may be extreme
            log_weights = a[rows].log2() + relaxation.rows * phi[rows]
            former_top, top = top, torch.maximum(top, log_weights.max())
            column_sums *= (former_top - top).exp2()
            column_sums += (log_weights - top).exp2().to(block.dtype) @ block
        else:
            column_sums += a_k[rows] @ block
        model = model or _new_model(affinity, block, former)
        model.keep(rows, block)
    phi, column_sums = a.log2() - phi, column_sums.to(a.dtype)
    if relaxation.rows:
        column_sums *= a.sum() / column_sums.sum()
    row_sums, level = _row_sums(phi, a, relaxation)
    column_sums, level = affinity.group.total(column_sums, level)
    column_sums = _positive(column_sums)
    target, log_target, *measures = _measures(phi, psi, level, column_sums, a, b, relaxation)
    state = _State(*torch.stack(measures).tolist(), phi, psi, column_sums, row_sums, target, log_target)
    model.close(row_sums, state)
    return state, model


def _row_sums(phi, a, relaxation):
    """What the rows sum to where phi would make it a, and the level of their sums at phi = 0 (see `tilted`)."""
    return (a, -(a @ phi)) if relaxation == RIGID else tilted(a, a.log2() - phi, relaxation.rows)


def _exact_phi(phi, a, relaxation):
    """phi of the plan, where `phi` would make its row sums a."""
    if not relaxation.rows:
        return phi
    _, level = _row_sums(phi, a, relaxation)
    return phi + relaxation.rows * (a.log2() - phi - level / a.sum())


def _positive(sums):
    return sums.clip(min=torch.finfo(torch.float32).tiny)


def _measures(phi, psi, level, column_sums, a, b, relaxation):
    """Target of the columns and its log2; error and dual objective, over the mass."""
    mass = b.sum()
    if relaxation == RIGID:
        target, log_target, height = b, b.log2(), b @ psi
    else:
        target, log_target, height = _target(b, psi - b.log2(), relaxation)
    return target, log_target, (column_sums - target).abs().sum() / mass, (height - level) / mass


def _target(weights, excess, relaxation):
    """What columns have to sum to where psi exceeds log2 of their weights, its log2, and the level of the excess."""
    target, height = tilted(weights, excess, -relaxation.columns)
    log_target = namespace(weights).log2(weights)
    if relaxation.columns:
        target, log_target = _positive(target), log_target - relaxation.columns * (excess - height / weights.sum())
    return target, log_target, height


def _log2_sum(top, total):
    return top.to(_float64(top)) + total.to(_float64(total)).log2()


def _new_model(affinity, block, former):
    """All rows of the plan if there is room; else its large entries if they are few; else some rows."""
    stride, on_cuda = _stride(affinity), affinity.device.type == "cuda"
    if stride == 1:
        return _WholePlan(affinity, former)
    large = None if on_cuda or (former and former.lost > _LOST) else _large_entries(affinity, block, former)
    return large or _SomeRows(affinity, stride, former)


def _stride(affinity):
    """Of how many rows there is room for one."""
    if affinity.is_stored:
        return 1
    room = _ROOM["cuda" if affinity.device.type == "cuda" else "cpu"] * affinity.group.size
    return -(-affinity.n_rows * affinity.shape[1] // room)


def _large_entries(affinity, block, former=None):
    """A model of large entries if, by some rows, they are few and have most of the mass; else None."""
    n, m = affinity.n_rows, affinity.shape[1]
    some = block[:: 1 + len(block) // 16]
    for bits in _FINE_BITS if affinity.width else _BITS:
        large = some.ge(2.0**-bits)
        found = large.sum(), (some * large).sum(), torch.tensor(len(some))
        n_large, mass, n_some = (float(total) for total in affinity.group.total(*found))
        fits = n_large / n_some * n <= 0.9 * _LargeEntries.room((n, m), affinity.is_stored)
        if fits and 1 - mass / n_some <= _LOST:
            return _LargeEntries(affinity, bits, former)
    return None


def _memory(former, kind, allocate):
    """The arrays of the former model if the next is of its kind, for filling fresh ones takes twice as long; else new ones."""
    memory = former.memory if isinstance(former, kind) else None
    if former:  # what is of no use is given up first
        former.memory = former.G = former.G_T = former.values = former.columns = None
    return allocate() if memory is None else memory


class _Model:
    """What a sweep keeps of the plan over its row sums.

    is_sample : whether it tells of some rows only.
    lost : share of the mass it leaves out.
    wait : states to see before its part is asked.
    """

    is_sample = False
    lost = 0.0
    wait = 0

    @property
    def part(self):
        """The model on which the column equations are solved, or None."""
        return self

    def asked(self):
        """The part, brought to where the plan was read last."""
        return self

    def place(self, rows):
        """Where some rows of the plan are to be computed, or None."""

    def read(self, psi, a, b, relaxation=RIGID):
        """The state at psi as a sweep would find it, or None if the model is not enough for that."""


class _WholePlan(_Model):
    """The whole plan, which is read in place of K as long as psi stays near, and its large entries if they are few."""

    def __init__(self, affinity, former=None, memory=None):
        self.affinity = affinity
        allocate = partial(affinity.empty, affinity.shape[0])
        self.G = self.memory = _memory(former, _WholePlan, allocate) if memory is None else memory
        self.wait = _WAIT if affinity.n_rows * affinity.shape[1] < _SMALL else 0

    @cached_property
    def part(self):
        """The large entries, taken from the plan the first time they are asked; None if they are many."""
        large = None if self.G.is_cuda else _large_entries(self.affinity, self.G)
        if large:
            for rows in self.affinity.row_blocks():
                large.keep(rows, self.G[rows])
        return large

    def place(self, rows):
        return self.G[rows]

    def keep(self, rows, block):
        if rows.start == 0:  # the block was computed before there was this model
            self.G[rows] = block

    def close(self, a, state):
        self.base, self.last_read = state, (a, state)

    def read(self, psi, a, b, relaxation=RIGID):
        move = psi - self.base.psi
        low, high = torch.aminmax(move)
        shift = (low + high) / 2  # of all columns alike, which the plan does not see
        v = (move - shift).exp2()
        growth = _times_whole(self.G, v)  # of the row sums
        phi = self.base.phi - growth.log2() - shift
        row_sums, level = _row_sums(phi, a, relaxation)
        column_sums = v * _times_whole(self.G, row_sums / growth, is_transposed=True)
        column_sums, level = self.affinity.group.total(column_sums, level)
        column_sums = _positive(column_sums)
        target, log_target, *measures = _measures(phi, psi, level, column_sums, a, b, relaxation)
        error, dual, extent = torch.stack([*measures, high - low]).tolist()
        if extent > 2 * _REACH:
            return None
        state = _State(error, dual, phi, psi, column_sums, row_sums, target, log_target)
        self.last_read = row_sums, state, v, growth
        return state

    def asked(self):
        self.part.close(*self.last_read)
        return self.part


class _SomeRows(_Model):
    """Every stride-th row of the plan."""

    is_sample = True
    reach = _REACH
    trust = 0.02  # share of the error that is left if the model is solved exactly

    def __init__(self, affinity, stride, former):
        self.stride, self.group = stride, affinity.group
        self.G = self.memory = _memory(former, _SomeRows, lambda: affinity.empty(-(-affinity.shape[0] // stride)))

    def keep(self, rows, block):
        first = -rows.start % self.stride
        kept = block[first :: self.stride]
        at = (rows.start + first) // self.stride
        self.G[at : at + len(kept)] = kept

    def close(self, a, state):
        self.a = _native(_positive(a[:: self.stride]))  # relaxed rows may have no mass

    def target(self, b, sums, column_sums):
        """What the sums of the model have to be for those of the plan to be b: some rows stand for all."""
        target = b * (sums / column_sums)
        return target * (sums.sum() / target.sum())

    def row_sums(self, v):
        return _times(self.G, v)

    def column_sums(self, u, level):
        return _total(self.group, _times(self.G.T, u), level)


class _LargeEntries(_Model):
    """The entries of the plan above a share of their row, sparse.

    What they leave out of each row is taken as spread over all columns in proportion to what they leave out of those, a
    matrix of rank one, so that mass still finds its way where the large entries alone would not connect. Where like columns
    come in groups it is known, and spread so, for each group of them: then it also tells which clusters a row is near to.
    """

    def __init__(self, affinity, bits, former):
        self.affinity, self.shape, self.bits = affinity, affinity.shape, bits
        self.trust = 0.01 if affinity.is_stored else 0.001  # a sweep that forms K is worth many iterations
        self.dtype = np.float32 if affinity.dtype == torch.float32 else np.float64
        self.width = affinity.width
        self.starts = np.arange(0, self.shape[1], self.width or self.shape[1])  # of the groups
        self.memory = _memory(former, _LargeEntries, self._allocate)
        self.values, self.columns, self.rest = self.memory
        self.counts, self.size, self.G = np.zeros(self.shape[0], dtype=np.int64), 0, None

    def _allocate(self):
        room = self.room(self.shape, self.affinity.is_stored)
        rest = np.empty((self.shape[0], len(self.starts)), self.dtype) if self.width else None
        return pages(room, self.affinity.dtype).numpy(), pages(room, torch.int32).numpy(), rest

    @staticmethod
    def room(shape, is_stored):
        """How many entries are kept at most."""
        n_entries = math.prod(shape)
        few = _FEW * (0.5 if n_entries >= _SPACIOUS else 1) if is_stored else 2 * _FEW
        return min(_LARGE_ENTRIES + 32 * sum(shape), math.ceil(few * n_entries))

    @property
    def reach(self):
        """log2: a move by which an entry left out may become as large as its row."""
        return min(self.least_bits, _REACH)

    def keep(self, rows, block):
        """Take the large entries of some rows; where columns come in groups, the block is lost."""
        entries = block.numpy().ravel()
        found = np.flatnonzero(entries > 2.0**-self.bits)  # several times faster than torch's nonzero
        while self.size + len(found) > len(self.values):
            self._raise_threshold()
            found = np.flatnonzero(entries > 2.0**-self.bits)
        new = slice(self.size, self.size + len(found))
        self.values[new] = entries[found]
        starts = np.arange(len(block) + 1) * block.shape[1]
        counts = np.diff(np.searchsorted(found, starts))
        self.counts[rows], self.columns[new] = counts, found - np.repeat(starts[:-1], counts)
        self.size = new.stop
        if self.width:
            entries[found] = 0
            self.rest[rows] = _sums_of_groups(block, self.width)

    def _raise_threshold(self):
        """Keep fewer of the entries taken so far: in place, some rows at a time."""
        self.bits -= 3
        start = kept = 0
        for first in range(0, len(self.counts), _COMPACTED):
            counts = self.counts[first : first + _COMPACTED]
            old = slice(start, start + counts.sum())
            values, columns = self.values[old], self.columns[old]
            large, rows = values > 2.0**-self.bits, np.repeat(np.arange(len(counts)), counts)
            if self.width:
                at = first + rows[~large], columns[~large] // self.width
                np.add.at(self.rest, at, values[~large])
            counts[:] = np.bincount(rows[large], minlength=len(counts))
            new = slice(kept, kept + counts.sum())
            self.values[new], self.columns[new] = values[large], columns[large]
            start, kept = old.stop, new.stop
        self.size = kept

    @np.errstate(all="ignore")
    def close(self, a, state, v=None, row_sums=None):
        """Take the plan of a state: that of the sweep, or one at ``v = 2^move`` from there, whose rows sum to `row_sums`."""
        if self.G is None:
            starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int32)
            G = csr_array((self.values[: self.size], self.columns[: self.size], starts), shape=self.shape)
            is_copied = self.affinity.is_stored and torch.get_num_threads() > 1  # a copy is read by all threads
            self.G, self.G_T = _product_ready(G), _product_ready(G.T.tocsr()) if is_copied else G.T
        a, column_sums = a.numpy(), state.column_sums.numpy()
        self.a = a
        self.v = np.ones_like(column_sums) if v is None else v.numpy()
        self.scale = np.ones_like(a) if row_sums is None else 1 / row_sums.numpy()
        self.row_rest = self.rest  # where it is not told by groups: all that the large entries are short of 1
        if not self.width:
            self.row_rest = (1 - self._large_row_sums(np.ones_like(self.v))).clip(min=0)[:, None]
        lost = self.row_rest.sum(dtype=np.float64)
        large_sums, lost = _total(self.affinity.group, self._large_column_sums(a), lost)
        self.lost = float(lost) / self.affinity.n_rows
        self.least_bits = -float(self.affinity.group.largest(torch.tensor(-float(self.bits))))
        self.column_rest = (column_sums - large_sums).clip(min=0)
        self.column_rest /= self._of_groups(self._group_sums(self.column_rest).clip(min=1e-30))

    def target(self, b, sums, column_sums):
        """`b` itself, for the model has all of the mass."""
        return b

    def row_sums(self, v):
        return self._large_row_sums(v) + _times(self.row_rest, self._group_sums(self.column_rest * v))

    def column_sums(self, u, level):
        large, rest, level = _total(self.affinity.group, self._large_column_sums(u), _times(self.row_rest.T, u), level)
        return large + self.column_rest * self._of_groups(rest), level

    def _large_row_sums(self, v):
        return self.scale * _times(self.G, self.v * v)

    def _large_column_sums(self, u):
        return self.v * _times(self.G_T, self.scale * u)

    def _group_sums(self, columns):
        return np.add.reduceat(columns, self.starts)

    def _of_groups(self, numbers):
        """For each column that of its group."""
        return np.repeat(numbers, self.width or self.shape[1])[: self.shape[1]]


def _sums_of_groups(block, width):
    """Sums of each row over groups of `width` columns, the last of which may be narrower."""
    n_whole = block.shape[1] // width
    sums = block[:, : n_whole * width].unflatten(1, (n_whole, width)).sum(dim=2)
    rest = block[:, n_whole * width :]
    return (torch.cat([sums, rest.sum(dim=1, keepdim=True)], dim=1) if rest.shape[1] else sums).numpy()


def _times_whole(G, vector, is_transposed=False):
    """``G @ vector``, or ``G.T @ vector``, by all threads, some rows each: torch's own takes one."""
    n_threads = 1 if G.is_cuda else torch.get_num_threads()
    n_shared = len(G) // n_threads * n_threads
    if n_threads == 1 or n_shared == 0:
        return _times(G.T if is_transposed else G, vector)
    parts, rest, vector_k = G[:n_shared].unflatten(0, (n_threads, -1)), G[n_shared:], vector.to(G.dtype)
    if is_transposed:
        shared = torch.bmm(vector_k[:n_shared].view(n_threads, 1, -1), parts)
        return shared.sum(dim=(0, 1)).add_(vector_k[n_shared:] @ rest).to(vector.dtype)
    shared = torch.bmm(vector_k.expand(n_threads, 1, -1), parts.mT)
    return torch.cat([shared.flatten(), rest @ vector_k]).to(vector.dtype)


def _native(tensor):
    """As a NumPy array on a CPU, where small operations cost a third of torch's; the tensor itself elsewhere."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _product_ready(G):
    """A sparse matrix for `_times`: torch's multiplies nearly twice as fast as SciPy's, by all threads, but needs MKL."""
    if not _has_sparse_products():
        return G
    parts = map(torch.from_numpy, (G.indptr, G.indices, G.data))
    return torch.sparse_csr_tensor(*parts, G.shape, check_invariants=False)


@cache
def _has_sparse_products():
    """Whether this torch has them; that they are in beta it tells once, here."""
    if not torch.backends.mkl.is_available():
        return False
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        torch.sparse_csr_tensor([0, 1], [0], [1.0], check_invariants=False)
    return True


def _times(G, vector):
    """``G @ vector`` in the type of G, for a vector of either kind."""
    if isinstance(vector, torch.Tensor):
        return (G @ vector.to(G.dtype)).to(vector.dtype)
    if isinstance(G, torch.Tensor):
        return (G @ torch.from_numpy(vector).to(G.dtype)).numpy().astype(vector.dtype, copy=False)
    return (G @ vector.astype(G.dtype)).astype(vector.dtype, copy=False)


def _total(group, *arrays):
    """Sums over the processes of a group, of arrays of either kind."""
    if group.size == 1:
        return arrays
    return tuple(map(_native, group.total(*map(torch.as_tensor, arrays))))


@np.errstate(all="ignore")  # torch does not warn of what is infinite, either
def _solve_columns(model, state, b, relaxation, wanted):
    """The move of psi that brings the column sums of a model to their target, by accelerated Sinkhorn iterations.

    It ends where the error is `wanted`, or where the model's reach does.
    """
    plain = _plain_move(state, relaxation)
    if state.error <= wanted or float(plain.abs().max()) > model.reach:
        return plain
    psi, b, weight, column_sums = map(_native, (state.psi, b, state.target, state.column_sums))
    xp = namespace(b)
    move, weights, lowest, mass = xp.zeros_like(b), None, math.inf, b.sum()
    base = psi - xp.log2(b) if relaxation.columns else None
    memory = _Memory(move)
    for _ in range(_MODEL_ITER):
        v = xp.exp2(move)
        growth = model.row_sums(v)
        row_sums, level = tilted(model.a, xp.log2(growth), relaxation.rows)
        sums, level = model.column_sums(row_sums / growth, level)
        sums = sums * v
        if relaxation.rows:
            sums = _positive(sums)  # rows with an entry here may have no mass
        if weights is None:
            weights = model.target(b, sums, column_sums)
        # where columns are held all that counts is the move
        target, log_target, height = _target(weights, move if base is None else base + move, relaxation)
        off = abs(weight * (sums / target - 1)).sum()
        error, dual, size = xp.stack([off / mass, (height - level) / mass, abs(move).max()]).tolist()
        residual = _damped(log_target - xp.log2(sums), relaxation)
        if memory.is_astray(error, dual, move + residual):
            move, memory = memory.safe_psi, _Memory(memory.safe_psi)
            continue
        if size > model.reach:
            found = move.clip(-model.reach, model.reach)
            break
        if error < lowest:
            lowest, found = error, move
        if error <= wanted:
            break
        move = memory.anderson.step(move, residual, weight=weight) if error < 0.5 else move + residual
    return torch.as_tensor(found)


class _Anderson:
    """Anderson acceleration (type II) of ``x <- x + residual(x)``, least squares weighted by the mass of each column."""

    def __init__(self):
        self.n, self.last = 0, None

    def step(self, x, residual, weight):
        xp = namespace(x)
        if self.last is None:
            self.df = xp.stack([xp.zeros_like(x)] * _MEMORY)
            self.steps, self.gram = xp.zeros_like(self.df), self.df @ self.df.T
            self.last = x, residual
            return x + residual
        at, self.n = self.n % _MEMORY, self.n + 1
        used = min(self.n, _MEMORY)
        self.df[at] = residual - self.last[1]
        self.steps[at] = x - self.last[0] + self.df[at]
        self.last = x, residual
        df = self.df[:used]
        self.gram[at, :used] = self.gram[:used, at] = df @ (weight * self.df[at])
        gram = self.gram[:used, :used]
        ridge = xp.ones_like(gram[0]) * (1e-8 * gram.diagonal().mean() + xp.finfo(gram.dtype).tiny)
        solve = np.linalg.solve if xp is np else _solve_unchecked
        gamma = solve(gram + xp.diag(ridge), df @ (weight * residual))
        limit = (2 * abs(residual).max()).clip(min=_STRIDE)
        return x + (residual - gamma @ self.steps[:used]).clip(-limit, limit)


def _solve_unchecked(A, b):
    """``A^-1 b`` without a look at whether there is one, for which a GPU would have to be waited for."""
    return torch.linalg.solve_ex(A, b).result


def _log2_scale(epsilon):
    return math.log2(math.e) / epsilon


def _float64(tensor):
    """float64, or float32 on a device that has none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
