"""Canonical similarity analysis: cosines in the canonical space, weighted by correlation. Thin over the CCA of the core."""

from numbers import Real

import numpy as np
from sklearn.utils._param_validation import Interval

from .._core.linear import ridge_cca
from .._core.rows import normalize_rows
from .._teachers import LinearTeacher


class CSA(LinearTeacher):
    r"""Canonical similarity analysis.

    With the canonical variates :math:`z(x), z(y)` of the leading k directions and their correlations :math:`\rho`,

    .. math:: \mathrm{sim}(x, y) = \frac{\sum_{i \le k} \rho_i \, z_i(x) \, z_i(y)}{\|z(x)\| \, \|z(y)\|}

    [1]_. The correlations weigh the products but not the lengths, so this is no cosine of the variates; two
    further columns, one for each view, complete the rows to unit length and make it the inner product of embedded rows.

    The paper's canonical correlations have no ridge, which is ``reg=0``: with fewer pairs than columns all correlations are
    1 and it fails. ``normalize=True``, which it does not have, scales rows to unit length first.

    Parameters
    ----------
    n_components : int, default=None
        Number k of directions, at most ``min(d_x, d_y)``. None keeps every direction the pairs support.
    reg : float, default=0
        Ridge added to the eigenvalues of both covariances, at least 0.
    normalize : bool, default=True
        Scale each row to unit length first, here and in `transform`.
    center : {"pairs", "all"}, default="pairs"
        Rows whose mean is subtracted: the pairs, or every row given to `fit`.

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Maps to the canonical variates. The largest entry of each column of `x_coef_` is positive.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling.
    singular_values_ : ndarray of shape (k,)
        Canonical correlations, descending, between 0 and 1.
    n_components_ : int
        Columns of an embedding, k + 2.
    n_pairs_ : int
        Number p of pairs used.
    n_features_in_, n_features_in_y_ : int
        Columns of X and of Y.

    References
    ----------
    .. [1] Li et al., "CSA: Data-efficient Mapping of Unimodal Features to Multimodal Features", arXiv 2410.07610.

    Examples
    --------
    >>> from skalign.baselines import CSA
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> csa = CSA(n_components=8, reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> csa.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _n_further = 2

    _parameter_constraints: dict = {
        **LinearTeacher._parameter_constraints,
        "reg": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, n_components=None, *, reg=0.0, normalize=True, center="pairs"):
        self.n_components = n_components
        self.reg = reg
        self.normalize = normalize
        self.center = center

    def _solve(self, views, A, B):
        return ridge_cca(A, B, (self.reg, self.reg), self.n_components)

    def _embed_x(self, X):
        return self._completed(self._prepared_x(X), self.x_coef_, 0)

    def _embed_y(self, Y):
        return self._completed(self._prepared_y(Y), self.y_coef_, 1)

    def _layers(self, view):
        from .._core.layers import CompletedVariates

        *layers, _ = super()._layers(view)
        return [*layers, CompletedVariates(np.sqrt(self.singular_values_.clip(0, 1)), view)]

    def _completed(self, rows, coef, view):
        """Unit variates times the root of their correlations, made up to length 1 in a column where the other view is 0."""
        variates = normalize_rows(rows @ coef.astype(rows.dtype))
        variates *= np.sqrt(self.singular_values_.clip(0, 1)).astype(rows.dtype)
        rest = np.zeros((len(rows), 2), dtype=rows.dtype)
        rest[:, view] = np.sqrt((1 - np.einsum("ij,ij->i", variates, variates)).clip(min=0))
        return np.hstack([variates, rest])
