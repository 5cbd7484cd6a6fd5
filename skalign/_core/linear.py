"""Closed-form linear maps between two views. Knows NumPy and SciPy, knows nothing of estimators or torch.

Solvers take centred pairs ``A`` (p, d_x) and ``B`` (p, d_y), row i of one belonging to row i of the other, and
work on thin singular value decompositions, so the cost follows min(p, d) and a view may have more columns than rows.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, eigh, svd

_LEAST_VARIANCE = 0.05  # added to every variance, in units of their mean: a direction without any is not ruled out


class LinearMaps(NamedTuple):
    """Maps of both views into one space: ``A @ W_x`` and ``B @ W_y`` are compared column by column.

    W_x : (d_x, k);  W_y : (d_y, k);  s : (k,) the singular values they come from, descending.
    """

    W_x: np.ndarray
    W_y: np.ndarray
    s: np.ndarray


class ThinView(NamedTuple):
    """Thin SVD of one centred view, ``A = U diag(s) Vt``, cut at its numerical rank r."""

    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray

    @property
    def eigenvalues(self):
        """Non-zero eigenvalues of the covariance ``A.T @ A / (p - 1)``, shape (r,)."""
        return self.s**2 / max(len(self.U) - 1, 1)


def thin_view(A, noise=0.0):
    """Thin SVD of a centred view, without the singular values up to `noise` or the rounding of float64."""
    U, s, Vt = _robust_svd(A)
    keep = s > max(noise, max(A.shape) * np.finfo(np.float64).eps * s.max(initial=0))
    return ThinView(U[:, keep], s[keep], Vt[keep])


def rounding_noise(X):
    """Singular values that centring X (n, d) may produce from its rounding alone: ``max(n, d) * eps * norm(X)``."""
    return max(X.shape) * np.finfo(X.dtype).eps * np.linalg.norm(X.astype(np.float64))


def variance_root(rows, exponent):
    r"""The product with a symmetric M, as a function of rows (q, d): M is large where `rows` (n, d) vary most.

    :math:`M^2 = c\,(C / \bar c + I / 20)^t`, where t is the exponent, C the covariance of the rows, :math:`\bar c` its mean
    eigenvalue, and c leaves the trace of C to that of M C M. A ridge on views mapped by M is one of
    :math:`\lambda M^{-2}` on the views themselves. None where the rows do not vary.
    """
    n, d = rows.shape
    Z = rows - rows.mean(axis=0, dtype=np.float64)
    variances, vectors = eigh(Z @ Z.T if n < d else Z.T @ Z)
    keep = variances > rounding_noise(rows) ** 2
    variances, vectors = variances[keep], vectors[:, keep]
    if not keep.any():
        return None
    directions = (vectors / np.sqrt(variances)).T @ Z if n < d else vectors.T  # (r, d)
    weights = (variances * d / variances.sum() + _LEAST_VARIANCE) ** exponent
    scale = variances.sum() / (weights @ variances)
    roots, rest = np.sqrt(scale * weights), np.sqrt(scale * _LEAST_VARIANCE**exponent)
    return lambda R: rest * R + ((R @ directions.T) * (roots - rest)) @ directions


def procrustes(A, B, n_components=None):
    r"""Two-sided orthogonal Procrustes: :math:`\max \langle A W_x, B W_y\rangle` with orthonormal columns.

    The leading singular vectors of :math:`A^T B` (SOTAlign, eq. 6 and Prop. C.1); the optimum is the sum of the
    leading singular values. ``A`` and ``B`` are `ThinView`.
    """
    return _paired_directions(A, B, A.s, B.s, np.ones_like(A.s), np.ones_like(B.s), n_components)


def ridge_cca(A, B, reg, n_components=None, power=0.0, cross=None):
    r"""Regularised canonical correlation analysis (SOTAlign, eq. 7 and Prop. C.2).

    With :math:`S_{xx} = A^T A / (p - 1) + \lambda_x I` and likewise :math:`S_{yy}`, the singular vectors of
    :math:`S_{xx}^{-1/2} S_{xy} S_{yy}^{-1/2} = U \,\mathrm{diag}(\rho)\, V^T` give, with q the power,
    :math:`W_x = S_{xx}^{-1/2} U \,\mathrm{diag}(\rho)^q` and :math:`W_y = S_{yy}^{-1/2} V \,\mathrm{diag}(\rho)^q`.

    ``A`` and ``B`` are `ThinView`; ``reg`` is the pair :math:`(\lambda_x, \lambda_y)`; ``cross`` is ``A.U.T @ B.U`` where it is
    known, for many ridges on the same views.
    """
    scale_x = 1 / np.sqrt(A.eigenvalues + reg[0])
    scale_y = 1 / np.sqrt(B.eigenvalues + reg[1])
    root_x, root_y = np.sqrt(A.eigenvalues), np.sqrt(B.eigenvalues)
    maps = _paired_directions(A, B, root_x * scale_x, root_y * scale_y, scale_x, scale_y, n_components, cross)
    weight = np.clip(maps.s, 0, 1) ** power
    return maps._replace(W_x=maps.W_x * weight, W_y=maps.W_y * weight)


def _paired_directions(A, B, inner_x, inner_y, outer_x, outer_y, n_components, cross=None):
    """SVD of ``diag(inner_x) U_a.T U_b diag(inner_y)``, mapped back to columns of A and B by the outer weights."""
    core = inner_x[:, None] * (A.U.T @ B.U if cross is None else cross) * inner_y  # (r_x, r_y)
    if core.size == 0:
        return LinearMaps(np.zeros((A.Vt.shape[1], 0)), np.zeros((B.Vt.shape[1], 0)), np.zeros(0))
    U, s, Vt = _robust_svd(core)
    k = int(np.count_nonzero(s > max(core.shape) * np.finfo(s.dtype).eps * s[0]))
    k = k if n_components is None else min(k, n_components)
    W_x = A.Vt.T @ (outer_x[:, None] * U[:, :k])
    W_y = B.Vt.T @ (outer_y[:, None] * Vt[:k].T)
    return signed(W_x, W_y, s[:k])


def signed(W_x, W_y, s):
    """`LinearMaps` in which the largest entry of each column of W_x is positive."""
    sign = np.sign(W_x[np.abs(W_x).argmax(axis=0), np.arange(len(s))])
    return LinearMaps(W_x * sign, W_y * sign, s)


def _robust_svd(M):
    """Thin SVD; the fast divide-and-conquer driver sometimes fails to converge where the plain one does not."""
    try:
        return svd(M, full_matrices=False)
    except LinAlgError:
        return svd(M, full_matrices=False, lapack_driver="gesvd")
