"""The torch core as plain functions: Sinkhorn, KLOT and the losses it is compared with. Public face of `_core`."""

import math

from ._core.klot import klot as _klot
from ._core.klot import klot_from_features as _klot_from_features
from ._core.losses import cka as _cka
from ._core.losses import info_nce as _info_nce
from ._core.losses import siglip as _siglip
from ._core.sinkhorn import SinkhornResult
from ._core.sinkhorn import sinkhorn as _sinkhorn
from ._core.sinkhorn import sinkhorn_from_features as _sinkhorn_from_features

__all__ = [
    "SinkhornResult",
    "cka",
    "info_nce",
    "klot",
    "klot_from_features",
    "siglip",
    "sinkhorn",
    "sinkhorn_from_features",
]


def sinkhorn(K, epsilon, a=None, b=None, *, rho_a=math.inf, rho_b=math.inf, tol=1e-5, max_iter=1000, init=None):
    r"""Entropic optimal transport of an affinity: balanced, unbalanced or semi-relaxed.

    .. math:: \max_{P \ge 0} \langle P, K\rangle - \varepsilon\,\mathrm{KL}(P \,\|\, a b^T)
        - \rho_a\,\mathrm{KL}(P \mathbf 1 \,\|\, a) - \rho_b\,\mathrm{KL}(P^T \mathbf 1 \,\|\, b), \qquad
        \mathrm{KL}(p \,\|\, q) = \sum_i p_i \log\frac{p_i}{q_i} - p_i + q_i

    An infinite :math:`\rho` holds its marginal. With both infinite, the default, this is the balanced problem
    :math:`P \mathbf 1 = a,\; P^T \mathbf 1 = b`, whose plan also maximises
    :math:`\langle P, K\rangle - \varepsilon \langle P, \log P\rangle` [1]_. With both finite it is the unbalanced problem [3]_:
    rows and columns that fit nowhere give up mass. With one finite it is semi-relaxed: with ``rho_b=inf`` every column is
    used in full and rows share them as fits.

    Solved in the log domain, so small epsilons neither overflow nor lose mass. Memory is one matrix of the size of K,
    whatever the number of iterations; no gradient is recorded (for one, see :func:`klot`). Relaxed marginals are
    solved by the same accelerated iterations, with the mass of the plan in closed form [4]_, so that a large
    :math:`\rho` takes about as long as an infinite one.

    Parameters
    ----------
    K : Tensor of shape (n, m)
        Affinity, finite; large means similar. For a cost C pass ``-C``. Half precision is lifted to float32. A constant
        added to K changes no balanced or semi-relaxed plan, but an unbalanced one has more mass by it.
    epsilon : float
        Entropic temperature, positive, in units of K.
    a, b : Tensor of shape (n,) and (m,), default=None
        Marginals, at least 0; None is uniform with mass 1. Of equal mass unless one is relaxed.
    rho_a, rho_b : float, default=inf
        Penalties on row and column sums that differ from a and b, positive, in units of K; infinity holds the marginal.
        A row and a column of mass 1 that have only each other share ``exp(K / (epsilon + rho_a + rho_b))``.
    tol : float, default=1e-5
        L1 error of the column sums over the total mass at which to stop. Row sums are exact up to rounding, which in
        float32 is about 1e-6, and 2e-5 at epsilon 0.005. Where marginals are relaxed, errors are those in the sums that
        are optimal at the potentials reached.
    max_iter : int, default=1000
        Cap on the iterations.
    init : Tensor of shape (m,), default=None
        Potential g to start from, such as ``result.g`` of a problem much like this one. One that is far off is dropped.

    Returns
    -------
    result : SinkhornResult
        With `f`, `g`, `n_iter`, `error`, `converged`, `row_sums`, `column_sums`, and `plan`, which is computed when read.

    Raises
    ------
    ValueError
        If K is not a finite matrix, epsilon or a rho is not positive, or marginals or `init` do not fit; if an
        unbalanced plan has more mass than numbers hold, as where K exceeds ``88 (epsilon + rho_a + rho_b)`` in float32.

    References
    ----------
    .. [1] Cuturi, "Sinkhorn Distances", NeurIPS 2013.
    .. [2] SOTAlign, arXiv 2602.23353, eq. 11.
    .. [3] Chizat, Peyré, Schmitzer, Vialard, "Scaling Algorithms for Unbalanced Optimal Transport Problems", Mathematics
       of Computation 87, 2018.
    .. [4] Séjourné, Vialard, Peyré, "Faster Unbalanced Optimal Transport: Translation Invariant Sinkhorn and 1-D
       Frank-Wolfe", AISTATS 2022.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import sinkhorn
    >>> result = sinkhorn(torch.eye(3), epsilon=0.1)
    >>> result.converged, result.plan.shape
    (True, torch.Size([3, 3]))

    A third row that is far from every column keeps no mass:

    >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 3.0]])
    >>> result = sinkhorn(-cost, epsilon=0.05, rho_a=0.2, rho_b=0.2)
    >>> [round(float(mass), 3) for mass in result.row_sums]
    [0.37, 0.37, 0.0]
    """
    return _sinkhorn(K, epsilon, a, b, rho_a=rho_a, rho_b=rho_b, tol=tol, max_iter=max_iter, init=init)


def sinkhorn_from_features(
    F, G, epsilon, a=None, b=None, *, rho_a=math.inf, rho_b=math.inf, tol=1e-5, max_iter=1000, init=None
):
    r"""Entropic optimal transport of the affinity ``F @ G.T``, which is never formed.

    The same as :func:`sinkhorn` [1]_ of :math:`K = F G^T`, in memory O((n + m) d), of which some tens of MiB are a constant.
    It takes up to three times as long where both fit.

    Parameters
    ----------
    F, G : Tensor of shape (n, d) and (m, d)
        Features, finite, such as rows of unit length. Half precision is lifted to float32. For the affinity
        ``F @ G.T - 1``, the negative of a cosine distance, give F a further column of 1 and G one of -1: an unbalanced
        plan depends on the constant.
    epsilon : float
        Entropic temperature, positive, in units of ``F @ G.T``.
    a, b : Tensor of shape (n,) and (m,), default=None
        Marginals, as in :func:`sinkhorn`.
    rho_a, rho_b : float, default=inf
        Penalties on row and column sums, as in :func:`sinkhorn`.
    tol : float, default=1e-5
        L1 error of the column sums over the total mass at which to stop.
    max_iter : int, default=1000
        Cap on the iterations.
    init : Tensor of shape (m,), default=None
        Potential g to start from.

    Returns
    -------
    result : SinkhornResult
        Reading its `plan` does form an n x m matrix; `f` and `g` are what to keep.

    Raises
    ------
    ValueError
        If the features are not finite matrices of one width, or as in :func:`sinkhorn`.

    References
    ----------
    .. [1] Cuturi, "Sinkhorn Distances", NeurIPS 2013.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import sinkhorn, sinkhorn_from_features
    >>> F, G = torch.eye(3), torch.eye(3)
    >>> plan = sinkhorn_from_features(F, G, epsilon=0.1).plan
    >>> torch.allclose(plan, sinkhorn(F @ G.T, epsilon=0.1).plan)
    True
    """
    options = {"rho_a": rho_a, "rho_b": rho_b, "tol": tol, "max_iter": max_iter, "init": init}
    return _sinkhorn_from_features(F, G, epsilon, a, b, **options)


def klot(K, K_teacher, epsilon=0.05, epsilon_teacher=0.01, a=None, b=None, *, tol=1e-4, max_iter=1000):
    r"""KL divergence between the transport plans of two affinities, differentiable in the first.

    .. math:: \mathrm{KL}\bigl(P^* \,\|\, P\bigr), \quad P^* = \mathrm{OT}_{\varepsilon^*}(K^*),\;
        P = \mathrm{OT}_{\varepsilon}(K), \qquad \frac{\partial}{\partial K} = \frac{P - P^*}{\varepsilon}

    The gradient is explicit ([1]_, Theorem C.4; Theorem 5.1 of the main text prints the teacher's epsilon), so no
    iteration is backpropagated through and memory does not grow with their number. It is exact as the tolerance goes to
    0; short of it, value and gradient are those of the generalised KL at the potentials reached. The student's plan is
    given the marginals the teacher's plan has.

    Parameters
    ----------
    K : Tensor of shape (n, m)
        Student's affinity; receives the gradient.
    K_teacher : Tensor of shape (n, m)
        Teacher's affinity; receives none.
    epsilon, epsilon_teacher : float, default=0.05 and 0.01
        Entropic temperatures, positive.
    a, b : Tensor of shape (n,) and (m,), default=None
        Marginals shared by both plans; None is uniform with mass 1.
    tol : float, default=1e-4
        L1 marginal error at which either plan is accepted.
    max_iter : int, default=1000
        Cap on the iterations of either plan.

    Returns
    -------
    value : Tensor of shape ()
        At least 0 up to rounding; 0 iff the plans agree.

    Raises
    ------
    ValueError
        If the shapes differ or a transport problem is ill-posed, see :func:`sinkhorn`.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 12.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import klot
    >>> K = torch.zeros(3, 3, requires_grad=True)
    >>> value = klot(K, torch.eye(3))
    >>> value.backward()
    >>> bool((K.grad.diagonal() < 0).all())
    True
    """
    return _klot(K, K_teacher, epsilon, epsilon_teacher, a, b, tol=tol, max_iter=max_iter)[0]


def klot_from_features(
    F,
    G,
    F_teacher,
    G_teacher,
    epsilon=0.05,
    epsilon_teacher=0.01,
    a=None,
    b=None,
    *,
    tol=1e-4,
    max_iter=1000,
):
    r"""KLOT of ``F @ G.T`` and ``F_teacher @ G_teacher.T``, neither of which is formed.

    With :math:`\Gamma = (P - P^*) / \varepsilon` the gradients are :math:`\Gamma G` and :math:`\Gamma^T F`, gathered
    block by block. The same as :func:`klot` in memory O((n + m) d), see :func:`sinkhorn_from_features`.

    Parameters
    ----------
    F, G : Tensor of shape (n, d) and (m, d)
        Student's features; they receive the gradient.
    F_teacher, G_teacher : Tensor of shape (n, k) and (m, k)
        Teacher's features; they receive none.
    epsilon, epsilon_teacher : float, default=0.05 and 0.01
        Entropic temperatures, positive.
    a, b : Tensor of shape (n,) and (m,), default=None
        Marginals shared by both plans; None is uniform with mass 1.
    tol : float, default=1e-4
        L1 marginal error at which either plan is accepted.
    max_iter : int, default=1000
        Cap on the iterations of either plan.

    Returns
    -------
    value : Tensor of shape ()
        At least 0 up to rounding.

    Raises
    ------
    ValueError
        If shapes do not fit, features are not finite, or a transport problem is ill-posed.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 12 and Theorem C.4.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import klot_from_features
    >>> F, G = torch.eye(3, requires_grad=True), torch.eye(3)
    >>> value = klot_from_features(F, G, torch.eye(3), torch.eye(3), epsilon=0.1, epsilon_teacher=0.1)
    >>> abs(round(float(value.detach()), 6))
    0.0
    """
    return _klot_from_features(F, G, F_teacher, G_teacher, epsilon, epsilon_teacher, a, b, tol=tol, max_iter=max_iter)[
        0
    ]


def siglip(K, matches=None, scale=20.0, bias=-10.0):
    r"""Sigmoid loss over all couples of a batch.

    .. math:: -\frac{1}{n} \sum_{ij} \log\sigma\bigl(z_{ij} (s K_{ij} + b)\bigr), \qquad z_{ij} = \pm 1

    Parameters
    ----------
    K : Tensor of shape (n, m)
        Cosines.
    matches : bool Tensor of shape (n, m), default=None
        Which couples belong together (z = 1); None is the diagonal.
    scale, bias : float or Tensor of shape (), default=20 and -10
        The s and b of the formula; tensors may carry gradients.

    Returns
    -------
    value : Tensor of shape ()
        At least 0.

    Raises
    ------
    ValueError
        If `matches` has another shape than K.

    References
    ----------
    .. [1] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import siglip
    >>> bool(siglip(torch.eye(3)) < siglip(torch.zeros(3, 3)))
    True
    """
    if matches is None:
        matches = K.new_zeros(K.shape).fill_diagonal_(1)
    return _siglip(K, matches, scale, bias)


def info_nce(K, K_teacher, epsilon=0.05, epsilon_teacher=0.01, *, symmetric=True):
    r"""Generalised InfoNCE: KL between softmaxes, differentiable in the first affinity.

    .. math:: \frac{1}{n} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(K^*_i / \varepsilon^*) \,\|\,
        \mathrm{softmax}(K_i / \varepsilon)\bigr)

    Parameters
    ----------
    K, K_teacher : Tensor of shape (n, m)
        Student's affinity, which receives the gradient, and the teacher's.
    epsilon, epsilon_teacher : float, default=0.05 and 0.01
        Temperatures, positive.
    symmetric : bool, default=True
        Average with the same over columns.

    Returns
    -------
    value : Tensor of shape ()
        At least 0 up to rounding; 0 iff the softmaxes agree.

    Raises
    ------
    ValueError
        If the shapes differ or an epsilon is not positive.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 10.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import info_nce
    >>> K = torch.eye(3)
    >>> round(float(info_nce(K, K, epsilon=0.1, epsilon_teacher=0.1)), 6)
    0.0
    """
    return _info_nce(K, K_teacher, epsilon, epsilon_teacher, symmetric)


def cka(F, G, F_teacher, G_teacher):
    r"""One minus the centred kernel alignment of two cross affinities, from their factors.

    .. math:: 1 - \frac{\langle H K H, H K^* H\rangle}{\|H K H\|\,\|H K^* H\|}, \qquad K = F G^T,\;
        K^* = F^* G^{*T},\; H = I - \tfrac{1}{n} \mathbf 1 \mathbf 1^T

    in O((n + m) d^2) time and O((n + m) d + d^2) memory [1]_ (Prop. C.5, C.6).

    Parameters
    ----------
    F, G : Tensor of shape (n, d) and (m, d)
        Student's rows; they receive the gradient.
    F_teacher, G_teacher : Tensor of shape (n, k) and (m, k)
        Teacher's rows.

    Returns
    -------
    value : Tensor of shape ()
        Between 0 (proportional after centring) and 2.

    Raises
    ------
    ValueError
        If the shapes do not fit one another.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 9 and appendix C.3.

    Examples
    --------
    >>> import torch
    >>> from skalign.losses import cka
    >>> F, G = torch.eye(3), torch.eye(3)
    >>> abs(round(float(cka(F, G, 2 * F, G)), 6))
    0.0
    """
    return _cka(F, G, F_teacher, G_teacher)
