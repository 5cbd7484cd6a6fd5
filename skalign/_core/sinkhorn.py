"""Entropic optimal transport on an affinity, in the log domain. Knows torch, knows nothing of estimators.

Notation: affinity ``K`` (n, m), plan ``P = exp((K + f 1' + 1 g') / epsilon)``, marginals ``a`` (n,) and ``b`` (m,). Inside,
the potentials are in units of log2, ``phi = f log2(e) / epsilon`` and ``psi = g log2(e) / epsilon``, since exp2 is cheaper
than exp, and in float64, since they reach hundreds while the plan depends on their decimals.

The solver has two phases. *Scaling* runs log-domain updates from a large epsilon down to the wanted one, which brings the
potentials close. *Polishing* stores the kernel ``G = 2^(K log2(e) / epsilon + psi_0 - row maximum)`` once, so that one
iteration costs two matrix-vector products, and speeds the fixed-point iteration on ``psi`` up by Anderson acceleration.
"""

import math
from dataclasses import dataclass

import torch

FLOOR = -100.0  # log2: entries below 2^-100 of their row's maximum change no digit, and exp2 is slow in underflow
_BLOCK = 1 << 18  # entries of K treated at a time: 1 MiB of float32 stays in cache
_START = 0.1  # epsilon, relative to the range of K, at which the scaling phase starts
_REACH = 30.0  # log2: how far psi may move from where the kernel was stored
_MEMORY = 5  # differences kept by the Anderson acceleration


@dataclass(frozen=True)
class SinkhornResult:
    """Solution of an entropic transport problem; the plan is derived when read.

    Attributes
    ----------
    f, g : Tensor of shape (n,) and (m,)
        Potentials: ``log P = (K + f[:, None] + g) / epsilon``; -inf where a marginal is zero.
    n_iter : int
        Full iterations (one row and one column update each).
    error : float
        L1 distance between the plan's column sums and ``b``, over the total mass; its row sums equal ``a``.
    converged : bool
        Whether ``error <= tol``.
    column_sums : Tensor of shape (m,)
        Column sums the plan has; equal to ``b`` up to `error`.
    K, epsilon :
        The problem that was solved.
    """

    f: torch.Tensor
    g: torch.Tensor
    n_iter: int
    error: float
    converged: bool
    column_sums: torch.Tensor
    K: torch.Tensor
    epsilon: float

    @property
    def plan(self):
        """Transport plan P, shape (n, m), in the type of K; computed anew at each reading."""
        scale = _log2_scale(self.epsilon)
        P = torch.empty_like(self.K)
        for rows in row_blocks(self.K):
            log_plan(self.K[rows], self.f[rows] * scale, self.g * scale, self.epsilon, out=P[rows])
            P[rows].clamp_(min=FLOOR).exp2_()
        return P


def sinkhorn(K, epsilon, a=None, b=None, *, tol=1e-5, max_iter=1000):
    r"""Solve :math:`\max_{P \in \Pi(a, b)} \langle P, K\rangle - \varepsilon \langle P, \log P\rangle`.

    See :func:`skalign.losses.sinkhorn` for the parameters.
    """
    K, a, b = check_problem(K.detach(), epsilon, a, b)
    with torch.no_grad(), torch.autocast(K.device.type, enabled=False):
        rows, columns = a > 0, b > 0
        if rows.all() and columns.all():
            return _solve(K, epsilon, a, b, tol, max_iter)
        inner = _solve(K[rows][:, columns], epsilon, a[rows], b[columns], tol, max_iter)
        f = a.new_full(a.shape, -math.inf).masked_scatter_(rows, inner.f)
        g = b.new_full(b.shape, -math.inf).masked_scatter_(columns, inner.g)
        column_sums = torch.zeros_like(b).masked_scatter_(columns, inner.column_sums)
        return SinkhornResult(f, g, inner.n_iter, inner.error, inner.converged, column_sums, K, epsilon)


def check_problem(K, epsilon, a=None, b=None):
    """Refuse an ill-posed problem; fill in uniform marginals; lift half precision to float32. Marginals come in float64."""
    if K.ndim != 2 or K.numel() == 0:
        raise ValueError(f"The affinity must be a matrix with rows and columns, but its shape is {tuple(K.shape)}.")
    if not epsilon > 0 or math.isinf(epsilon):
        raise ValueError(f"`epsilon` must be positive and finite, but it is {epsilon}. Typical values are 0.01 to 0.1.")
    if K.dtype not in (torch.float32, torch.float64):
        K = K.float()  # a half-precision kernel costs 2 to 12 percent of row error
    if not torch.isfinite(K).all():
        raise ValueError(
            "The affinity holds NaN or infinity. Expected finite similarities; check the embeddings it comes from."
        )
    n, m = K.shape
    a, b = _marginal(a, n, K, "a"), _marginal(b, m, K, "b")
    mass_a, mass_b = float(a.sum()), float(b.sum())
    if not math.isclose(mass_a, mass_b, rel_tol=1e-4):
        raise ValueError(
            f"The marginals must have equal mass, but `a` sums to {mass_a:g} and `b` to {mass_b:g}. Rescale one of them."
        )
    return K, a, b * (mass_a / mass_b)


def row_blocks(K):
    """Slices of rows that keep a block of K in cache."""
    step = max(1, _BLOCK // K.shape[1])
    return [slice(start, start + step) for start in range(0, K.shape[0], step)]


def log_plan(K, phi, psi, epsilon, out=None):
    """log2 of the plan on a block of rows, to be floored before exp2."""
    logits = torch.mul(K, _log2_scale(epsilon), out=out)  # (rows, m)
    logits += phi.to(K.dtype)[:, None]
    logits += psi.to(K.dtype)
    return logits


def _solve(K, epsilon, a, b, tol, max_iter):
    """`sinkhorn` on positive marginals."""
    psi, n_iter = _scaling_phase(K, epsilon, a, b, max_iter)
    phi, psi, column_sums, error, n_iter = _polishing_phase(K, epsilon, a, b, psi, tol, max_iter, n_iter)
    unit = 1 / _log2_scale(epsilon)
    return SinkhornResult(phi * unit, psi * unit, n_iter, error, error <= tol, column_sums, K, epsilon)


def _scaling_phase(K, epsilon, a, b, max_iter):
    """One log-domain iteration at each of ever smaller epsilons; returns the last psi and the iterations spent."""
    current = max(_START * float(K.max() - K.min()), epsilon)
    psi = b.log2() - _log2_sum_columns(K, _log2_scale(current))  # no column starts out of reach
    n_iter = 0
    while n_iter < max_iter - 1:
        psi = _fused_iteration(K, _log2_scale(current), psi, a, b)
        n_iter += 1
        if current == epsilon:
            break
        following = max(current / 2, epsilon)
        psi *= current / following
        current = following
    return psi, n_iter


def _polishing_phase(K, epsilon, a, b, psi, tol, max_iter, n_iter):
    """Accelerated fixed-point iteration on psi at the wanted epsilon, by products with a stored kernel."""
    mass = float(a.sum())
    G = torch.empty_like(K)
    shift, anchor = _store_kernel(K, epsilon, psi, G), psi
    anderson, safe_psi = _Anderson(), psi
    lowest = best_error = math.inf
    while True:
        n_iter += 1
        v = (psi - anchor).exp2()
        row_sums = (G @ v.to(K.dtype)).to(a.dtype)  # (n,)
        u = a / row_sums
        column_sums = v * (G.T @ u.to(K.dtype)).to(b.dtype)  # (m,)
        error = float((column_sums - b).abs().sum()) / mass
        if not error >= lowest:
            lowest, reached = error, (u, shift, psi, column_sums)
        if error <= tol or n_iter >= max_iter:
            u, shift, psi, column_sums = reached
            return u.log2() - shift, psi, column_sums, lowest, n_iter
        if not error <= 3 * best_error:  # the acceleration went astray: back to the last plain step
            anderson, psi, best_error = _Anderson(), safe_psi, math.inf
        else:
            best_error = min(best_error, error)
            residual = b.log2() - column_sums.log2()
            safe_psi = psi + residual
            psi = anderson.step(psi, residual, weight=column_sums) if error < 0.5 else safe_psi
        if float((psi - anchor).abs().max()) > _REACH:
            psi = _tamed(psi, K, epsilon, b)
            shift, anchor = _store_kernel(K, epsilon, psi, G), psi


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
        gamma = torch.linalg.solve(gram, (df * weight) @ residual)
        return x + residual - gamma @ (dx + df)


def _tamed(psi, K, epsilon, b):
    """`psi` within the bounds every column update keeps: ``psi - log2 b`` spreads no further than ``scale K`` does."""
    log_b, reach = b.log2(), float(K.max() - K.min()) * _log2_scale(epsilon)
    excess = psi - log_b
    return log_b + (excess - (excess.max() + excess.min()) / 2).clamp(-reach / 2, reach / 2)


def _store_kernel(K, epsilon, psi, G):
    """Fill ``G = 2^(scale K + psi - shift)`` with the row maximum as shift; returns the shift, shape (n,)."""
    scale, psi_k = _log2_scale(epsilon), psi.to(K.dtype)
    shift = K.new_empty(K.shape[0])
    for rows in row_blocks(K):
        block = torch.mul(K[rows], scale, out=G[rows]).add_(psi_k)
        shift[rows] = block.amax(dim=1)
        block.sub_(shift[rows, None]).clamp_(min=FLOOR).exp2_()
    return shift.to(psi.dtype)


def _fused_iteration(K, scale, psi, a, b):
    """One row and one column update of Sinkhorn in a single pass over K: the new psi, shape (m,)."""
    psi_k, a_k = psi.to(K.dtype), a.to(K.dtype)
    sums = torch.zeros_like(psi_k)
    for rows in row_blocks(K):
        block = torch.mul(K[rows], scale).add_(psi_k)
        block.sub_(block.amax(dim=1, keepdim=True)).clamp_(min=FLOOR).exp2_()
        sums += (a_k[rows] / block.sum(dim=1)) @ block  # column sums of the plan with exact rows
    return psi + b.log2() - sums.to(psi.dtype).log2()


def _log2_sum_columns(K, scale):
    """``log2 sum_i 2^(scale K_ij)``, shape (m,), in float64 where the device has it."""
    top = K.amax(dim=0)
    total = torch.zeros_like(top)
    for rows in row_blocks(K):
        total += torch.sub(K[rows], top).mul_(scale).clamp_(min=FLOOR).exp2_().sum(dim=0)
    return total.log2().to(_float64(K)) + scale * top.to(_float64(K))


def _log2_scale(epsilon):
    return math.log2(math.e) / epsilon


def _marginal(weights, size, K, name):
    """A marginal in float64 (float32 where the device has none), uniform if None."""
    dtype = _float64(K)
    if weights is None:
        return torch.full((size,), 1 / size, dtype=dtype, device=K.device)
    weights = torch.as_tensor(weights, dtype=dtype, device=K.device).detach()
    if weights.shape != (size,):
        raise ValueError(f"The marginal `{name}` must have shape ({size},), but its shape is {tuple(weights.shape)}.")
    if not (torch.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"The marginal `{name}` must hold finite weights >= 0 with a positive sum.")
    return weights


def _float64(K):
    """float64, or float32 on a device that has none."""
    return torch.float32 if K.device.type == "mps" else torch.float64
