"""Closed-form linear teachers: Procrustes and ridge CCA. Thin estimators over `_core.linear`; torch is never loaded."""

import contextlib
import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from threadpoolctl import threadpool_limits

from ._base import BaseAligner, all_or_nothing, warn_zero_rows
from ._core.linear import procrustes, ridge_cca, rounding_noise, signed, thin_view, variance_root
from ._core.rows import normalize_rows
from ._core.selection import cross_validated_ridge, parabola_minimum
from ._core.threads import Shared
from ._pairs import group_pairs, some_rows

_RIDGES = 10.0 ** np.arange(-5, 1, 0.5)  # for rows of unit length; far above the usual grids on purpose

_RANKINGS = 500  # held-out pairs to rank at least: fewer pairs are dealt into folds more often, up to five times

_ENOUGH = 2000  # held-out pairs ranked after which further folds tell no more
_TELLING = 4096  # rows of a view that tell how it varies
_GALLERY = 500  # unpaired rows of a view among which held-out pairs are ranked, too
_MANY = 1000  # pairs from which on the linear algebra of the cross-validation is worth more than one thread
_ONE_BLAS_THREAD = Shared(lambda: threadpool_limits(1, user_api="blas"))


class LinearTeacher(BaseAligner):
    """A closed-form teacher: centre the pairs, solve, keep two matrices."""

    _n_further = 0  # columns of an embedding beside those of the maps

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "normalize": ["boolean"],
        "center": [StrOptions({"pairs", "all"})],
    }

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Fit the maps on the pairs.

        Parameters
        ----------
        X : array-like of shape (n_x, d_x)
            First view. A row that is NaN throughout is a missing sample.
        Y : array-like of shape (n_y, d_y)
            Second view.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together. None: row i of X and row i of Y, except missing ones. A boolean mask is the
            form that is safe inside cross-validation.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, in memory or not, see :meth:`~skalign.SOTAlignTransformer.fit`. Together with
            the unpaired rows of X and Y they move the means if ``center="all"``; in a :class:`~skalign.CCATeacher` held-out
            pairs are ranked among them to choose the ridge, and they shape it if `reg_exponent` is not 0.

        Returns
        -------
        self : object
            The fitted teacher.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, or more components are asked for than a view has columns.
        """
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired)
        warn_zero_rows(views)
        limit = min(self.n_features_in_, self.n_features_in_y_)
        if self.n_components is not None and self.n_components > limit:
            raise ValueError(
                f"`n_components` must not exceed the columns of the narrower view, {limit}, but it is "
                f"{self.n_components}. Lower it, or pass None to keep every direction the pairs support."
            )
        self._fit_means(views)
        A, B = self._thin_views(views)
        if 0 in (A.s.size, B.s.size):
            warnings.warn(
                f"The paired rows of {'X' if A.s.size == 0 else 'Y'} ({self.n_pairs_}) do not vary, so the means of both "
                "views are left in and one direction remains. Pass at least two distinct pairs.",
                UserWarning,
                stacklevel=4,
            )
            self.x_mean_, self.y_mean_ = np.zeros_like(self.x_mean_), np.zeros_like(self.y_mean_)
            A, B = self._thin_views(views)
        maps = self._solve(views, A, B)
        if len(maps.s) == 0:
            raise ValueError(
                "The paired rows of X and Y share no direction: their cross-covariance is zero. "
                "Expected pairs that vary together; check `paired_idx` and that no view is constant or zero."
            )
        self.x_coef_, self.y_coef_, self.singular_values_ = maps
        self.n_components_ = len(maps.s) + self._n_further
        if self.n_components is not None and len(maps.s) < self.n_components:
            warnings.warn(
                f"{self.n_pairs_} pairs support {len(maps.s)} directions, fewer than n_components="
                f"{self.n_components}; the others are left out. Lower `n_components` or add pairs.",
                UserWarning,
                stacklevel=4,
            )
        return self

    def _thin_views(self, views):
        """Thin SVDs of the prepared pairs, in float64, without the directions that are rounding."""
        thin = []
        for rows, mean in ((views.X_pairs, self.x_mean_), (views.Y_pairs, self.y_mean_)):
            scaled = self._scaled(rows)
            thin.append(thin_view(scaled.astype(np.float64) - mean, rounding_noise(scaled)))
        return thin

    def _embed_x(self, X):
        return normalize_rows(self._prepared_x(X) @ self.x_coef_.astype(X.dtype))

    def _embed_y(self, Y):
        return normalize_rows(self._prepared_y(Y) @ self.y_coef_.astype(Y.dtype))

    def _layers(self, view):
        from ._core.layers import UnitRows, matrix

        return [*self._preparing_layers(view), matrix(getattr(self, f"{view}_coef_")), UnitRows()]


class ProcrustesTeacher(LinearTeacher):
    r"""Two-sided orthogonal Procrustes between two views of any widths.

    With the centred, normalised pairs A (p, d_x) and B (p, d_y),

    .. math:: \max_{W_x, W_y} \langle A W_x, B W_y \rangle \quad \text{s.t.}\quad W_x^T W_x = W_y^T W_y = I_k,

    solved by the singular vectors of :math:`A^T B` [1]_ (eq. 6, Prop. C.1). For ``d_x == d_y`` and ``k = d_x`` this is the
    classical rotation: ``x_coef_ @ y_coef_.T`` turns rows of A into rows of B.

    Parameters
    ----------
    n_components : int, default=None
        Dimension k of the shared space, at most ``min(d_x, d_y)``. None keeps every direction the pairs support, at
        most ``min(d_x, d_y, p - 1)``.
    normalize : bool, default=True
        Scale each row to unit length first, here and in `transform`.
    center : {"pairs", "all"}, default="pairs"
        Rows whose mean is subtracted: the pairs (as the paper's authors do), or every row given to `fit`.

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Orthonormal maps. The largest entry of each column of `x_coef_` is positive.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling.
    singular_values_ : ndarray of shape (k,)
        Of :math:`A^T B`, descending.
    n_components_ : int
        Dimension k reached.
    n_pairs_ : int
        Number p of pairs used.
    n_features_in_, n_features_in_y_ : int
        Columns of X and of Y.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, section 3.3.

    Examples
    --------
    >>> from skalign import ProcrustesTeacher
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> teacher = ProcrustesTeacher(n_components=8).fit(data.X, data.Y, data.paired_idx)
    >>> F, G = teacher.transform(data.X_test, data.Y_test)
    >>> F.shape, G.shape
    ((100, 8), (100, 8))
    """

    def __init__(self, n_components=None, *, normalize=True, center="pairs"):
        self.n_components = n_components
        self.normalize = normalize
        self.center = center

    def _solve(self, views, A, B):
        return procrustes(A, B, self.n_components)


class CCATeacher(LinearTeacher):
    r"""Ridge canonical correlation analysis in closed form.

    With the centred, normalised pairs A (p, d_x) and B (p, d_y), :math:`S_{xx} = A^T A / (p - 1) + \lambda_x I`,
    :math:`S_{yy}` likewise and :math:`S_{xy} = A^T B / (p - 1)`,

    .. math:: S_{xx}^{-1/2} S_{xy} S_{yy}^{-1/2} = U \,\mathrm{diag}(\rho)\, V^T, \qquad
        W_x = S_{xx}^{-1/2} U \,\mathrm{diag}(\rho)^{q}, \quad W_y = S_{yy}^{-1/2} V \,\mathrm{diag}(\rho)^{q}.

    The paper [1]_ (eq. 7, Prop. C.2) has ``reg=0.1`` and ``power=0``.

    Unpaired rows can say which directions a ridge should spare. With `reg_exponent` t the ridge is no multiple of I, but
    :math:`\lambda_x R_x`, where

    .. math:: R_x^{-1} = c \,\bigl(C_x / \bar c_x + I / 20\bigr)^{t},

    :math:`C_x` is the covariance of all rows of X (normalised like the pairs; of up to about 4,096 of them),
    :math:`\bar c_x` its mean eigenvalue, and c makes the traces of :math:`R_x^{-1} C_x` and :math:`C_x` equal: directions in
    which the rows vary little are shrunk more.

    Parameters
    ----------
    n_components : int, default=None
        Dimension k of the shared space, at most ``min(d_x, d_y)``. None keeps every direction the pairs support, at
        most ``min(d_x, d_y, p - 1)``.
    reg : float or "auto", default="auto"
        Ridge added to the eigenvalues of both covariances. "auto" chooses it by cross-validation on the pairs among 1e-5 to
        3, if ``normalize=False`` in units of each view's total variance (as the ridge's shape weighs it): with few pairs
        the best ridge is large. Held-out pairs are ranked among themselves and up to 500 unpaired rows of the other view;
        their mean logarithm is least where the parabola through that of the best candidate and its neighbours has its vertex.
    power : float, default=0.5
        Exponent q of the canonical correlations as weights of the directions, in each view. 0 weighs all alike.
    reg_exponent : float, default=0
        Exponent t of the variances in the shape of the ridge, 0 to 2. With 0 it is the same in all directions, whatever the
        unpaired rows are. :class:`SOTAlign` has 0.25 where pairs are few and there are unpaired rows.
    normalize : bool, default=True
        Scale each row to unit length first, here and in `transform`.
    center : {"pairs", "all"}, default="pairs"
        Rows whose mean is subtracted: the pairs (as the paper's authors do), or every row given to `fit`.
    cv : int, default=5
        Folds of ``reg="auto"``. Pairs that share a row stay in one fold; up to 250 pairs are dealt into folds
        repeatedly, up to five times; of more than 2,000 only as many folds are looked at as have 2,000 held-out pairs.
    random_state : int, RandomState instance or None, default=0
        Draws the folds and the unpaired rows of ``reg="auto"``, and the rows that tell the variances of a view if it has more
        than 4,096. The default makes `fit` repeatable.

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Maps. The largest entry of each column of `x_coef_` is positive.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling.
    singular_values_ : ndarray of shape (k,)
        Canonical correlations (shrunk by the ridge), descending, between 0 and 1.
    reg_ : tuple of two floats
        Ridge used for X and for Y.
    cv_results_ : dict of str to ndarray
        Of ``reg="auto"``: "reg" (candidates, shape (q, 2)) and "geometric_mean_rank" (of held-out pairs, both
        directions; from 1, the best, up).
    n_components_ : int
        Dimension k reached.
    n_pairs_ : int
        Number p of pairs used.
    n_features_in_, n_features_in_y_ : int
        Columns of X and of Y.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, section 3.3.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> teacher = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> teacher.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _parameter_constraints: dict = {
        **LinearTeacher._parameter_constraints,
        "reg": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "power": [Interval(Real, 0, None, closed="left")],
        "reg_exponent": [Interval(Real, 0, 2, closed="both")],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components=None,
        *,
        reg="auto",
        power=0.5,
        reg_exponent=0.0,
        normalize=True,
        center="pairs",
        cv=5,
        random_state=0,
    ):
        self.n_components = n_components
        self.reg = reg
        self.power = power
        self.reg_exponent = reg_exponent
        self.normalize = normalize
        self.center = center
        self.cv = cv
        self.random_state = random_state

    def _solve(self, views, A, B):
        vars(self).pop("cv_results_", None)  # of a former fit
        rng = check_random_state(self.random_state)
        X, Y = self._scaled(views.X_pairs), self._scaled(views.Y_pairs)
        roots = (None, None)
        if self.reg_exponent:
            told = [self._scaled(np.asarray(some_rows(*part, _TELLING, rng))) for part in _parts(views)]
            roots = [variance_root(rows, self.reg_exponent) for rows in told]
            (A, X), (B, Y) = map(_mapped, (A, B), (X, Y), roots)
        chosen = self._choose_reg(views, A, B, X, Y, roots, rng) if self.reg == "auto" else (self.reg, self.reg)
        self.reg_ = tuple(map(float, chosen))
        maps = ridge_cca(A, B, self.reg_, self.n_components, self.power)
        W_x, W_y = (W if root is None else root(W.T).T for root, W in zip(roots, maps[:2], strict=True))
        return signed(np.ascontiguousarray(W_x), np.ascontiguousarray(W_y), maps.s)

    def _choose_reg(self, views, A, B, X, Y, roots, rng):
        """Ridge of both views, by cross-validation on the pairs; the middle of the grid where they cannot tell."""
        n_pairs = len(views.pairs)
        others = [self._unpaired(*of_view, rng) for of_view in zip(_parts(views), views.pairs.T, roots, strict=True)]
        # One ridge for both views: the narrower view has the larger eigenvalues and needs no larger ridge for that.
        scales = (1.0, 1.0) if self.normalize else (A.eigenvalues.sum(), B.eigenvalues.sum())
        regs = np.outer(_RIDGES, scales)  # (q, 2)
        # threads cost more than they bring on small matrices, and by far more if others want the cores too
        with _ONE_BLAS_THREAD if n_pairs < _MANY else contextlib.nullcontext():
            losses = cross_validated_ridge(
                X,
                Y,
                views.pairs,
                group_pairs(views.pairs),
                regs,
                others=others,
                n_components=self.n_components,
                power=self.power,
                n_folds=self.cv,
                n_repeats=int(np.clip(_RANKINGS / n_pairs, 1, 5)),
                n_enough=_ENOUGH,
                rng=rng,
            )
        self.cv_results_ = {"reg": regs, "geometric_mean_rank": np.exp(losses)}
        at = parabola_minimum(losses) if np.ptp(losses) > 0 else len(regs) // 2
        return np.exp(np.interp(at, np.arange(len(regs)), np.log(_RIDGES))) * np.asarray(scales)

    def _unpaired(self, part, paired, root, rng):
        """Some rows of a view and its pool that stand in no pair, prepared as the pairs are."""
        is_paired = np.zeros(len(part[0]), dtype=bool)
        is_paired[paired] = True
        rows = self._scaled(np.asarray(some_rows(*part, _GALLERY, rng, is_paired)))
        return rows if root is None else root(rows).astype(rows.dtype)


def _parts(views):
    """Rows and pool of either view."""
    return (views.X, views.X_pool), (views.Y, views.Y_pool)


def _mapped(thin, rows, root):
    """A thin view and its rows, mapped by the root of variances, or as they are without one."""
    if root is None:
        return thin, rows
    return thin_view((thin.U * thin.s) @ root(thin.Vt)), root(rows).astype(rows.dtype)
