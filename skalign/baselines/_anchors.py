"""Relative representations: a row is described by its cosines with the paired rows of its own view. Nothing is trained."""

from numbers import Integral, Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from .._base import BaseAligner, all_or_nothing, warn_zero_rows
from .._core.linear import rounding_noise
from .._core.rows import normalize_rows


class RelativeRepresentation(BaseAligner):
    r"""Cosines with the paired rows, the anchors, as a shared space.

    With anchors :math:`a_1 \ldots a_p` of X and their partners :math:`b_1 \ldots b_p` of Y, rows prepared by `center`,

    .. math:: r(x) = \bigl(\cos(x, a_1), \ldots, \cos(x, a_p)\bigr), \quad r(y) = \bigl(\cos(y, b_1), \ldots, \cos(y, b_p)\bigr)

    [1]_, scaled to unit length. The original takes rows as they are, which is ``center=None``. It needs no
    unpaired rows; an embedding has as many columns as there are pairs.

    Parameters
    ----------
    center : {"pairs", "all"} or None, default=None
        Rows whose mean is subtracted from the rows at unit length before the cosines: the pairs, every row given to
        `fit`, or none. Embeddings that share a large mean, such as those of a ReLU network, need it.

    Attributes
    ----------
    x_anchors_, y_anchors_ : ndarray of shape (p, d_x) and (p, d_y)
        Paired rows, prepared, at unit length.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling; 0 if ``center=None``.
    n_components_, n_pairs_ : int
        Number p of pairs.
    n_features_in_, n_features_in_y_ : int
        Columns of X and of Y.

    References
    ----------
    .. [1] Moschella et al., "Relative representations enable zero-shot latent space communication", arXiv 2209.15430.

    Examples
    --------
    >>> from skalign.baselines import RelativeRepresentation
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> relative = RelativeRepresentation(center="pairs").fit(data.X, data.Y, data.paired_idx)
    >>> relative.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.1
    True
    """

    normalize = True  # rows come at unit length in any case: a cosine does not see their own

    _parameter_constraints: dict = {"center": [StrOptions({"pairs", "all"}), None]}

    def __init__(self, *, center=None):
        self.center = center

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Keep the paired rows.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`~skalign.SOTAlignTransformer.fit`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner; they only move the means, and only if ``center="all"``.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, or they leave no direction once centred.
        """
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired)
        warn_zero_rows(views)
        if self.center is None:
            self.x_mean_, self.y_mean_ = np.zeros(self.n_features_in_), np.zeros(self.n_features_in_y_)
        else:
            self._fit_means(views)
        X, Y = self._prepared_x(views.X_pairs), self._prepared_y(views.Y_pairs)
        for anchors, rows, name in ((X, views.X_pairs, "X"), (Y, views.Y_pairs, "Y")):
            if np.linalg.norm(anchors) <= rounding_noise(self._scaled(rows)):
                nothing = (
                    "do not differ, so nothing is left of them once centred" if rows.any() else "are zero throughout"
                )
                raise ValueError(
                    f"The {self.n_pairs_} paired rows of {name} {nothing}. Expected anchors with directions; pass pairs that "
                    "vary" + (", or center=None." if rows.any() else ", and check the encoder.")
                )
        self.x_anchors_, self.y_anchors_ = normalize_rows(X), normalize_rows(Y)
        self.n_components_ = self.n_pairs_
        return self

    def _embed_x(self, X):
        return self._relative(self._prepared_x(X), self.x_anchors_)

    def _embed_y(self, Y):
        return self._relative(self._prepared_y(Y), self.y_anchors_)

    def _relative(self, rows, anchors):
        return normalize_rows(_cosines(rows, anchors))

    def _layers(self, view):
        from .._core.layers import UnitRows, matrix

        return [*self._preparing_layers(view), UnitRows(), matrix(getattr(self, f"{view}_anchors_").T), UnitRows()]


class ASIF(RelativeRepresentation):
    r"""Sparse, sharpened cosines with the paired rows: coupled data without training.

    The relative representation :math:`r(x)` of :class:`RelativeRepresentation` keeps its `n_neighbors` largest entries, those
    above 0, raised to `power`, and is scaled to unit length [1]_; likewise :math:`r(y)`. A row without a
    cosine above 0 becomes 0. It departs from the paper in nothing but `center`, which is an option here.

    Parameters
    ----------
    n_neighbors : int, default=800
        Entries kept; all of them if there are fewer pairs.
    power : float, default=8
        Exponent of the kept cosines, positive. The default is the paper's; with 100 to 2,000 pairs of Flickr8k, 1 or 2
        was the best of 1, 2, 4 and 8.
    center : {"pairs", "all"} or None, default=None
        Rows whose mean is subtracted from the rows at unit length before the cosines: the pairs, every row given to
        `fit`, or none.

    Attributes
    ----------
    x_anchors_, y_anchors_ : ndarray of shape (p, d_x) and (p, d_y)
        Paired rows, prepared, at unit length.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling; 0 if ``center=None``.
    n_components_, n_pairs_ : int
        Number p of pairs.
    n_features_in_, n_features_in_y_ : int
        Columns of X and of Y.

    References
    ----------
    .. [1] Norelli et al., "ASIF: Coupled Data Turns Unimodal Models to Multimodal Without Training", arXiv 2210.01738.

    Examples
    --------
    >>> from skalign.baselines import ASIF
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> asif = ASIF(power=2, center="pairs").fit(data.X, data.Y, data.paired_idx)
    >>> asif.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.1
    True
    """

    _parameter_constraints: dict = {
        **RelativeRepresentation._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "power": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, n_neighbors=800, *, power=8, center=None):
        super().__init__(center=center)
        self.n_neighbors = n_neighbors
        self.power = power

    def _relative(self, rows, anchors):
        cosines = _cosines(rows, anchors).clip(min=0)
        n_dropped = cosines.shape[1] - self.n_neighbors
        if n_dropped > 0:
            dropped = np.argpartition(cosines, n_dropped - 1, axis=1)[:, :n_dropped]
            np.put_along_axis(cosines, dropped, 0, axis=1)
        # a common scale first, so that a high power does not vanish
        return normalize_rows((cosines / np.maximum(cosines.max(axis=1, keepdims=True), 1e-30)) ** float(self.power))

    def _layers(self, view):
        from .._core.layers import Sharpen

        *layers, unit = super()._layers(view)
        return [*layers, Sharpen(self.n_neighbors, self.power), unit]


def _cosines(rows, anchors):
    return normalize_rows(rows) @ anchors.T.astype(rows.dtype)
