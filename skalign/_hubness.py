"""Hubness correction of any aligner. Thin over the core; knows NumPy and scikit-learn, not torch."""

from numbers import Integral

import numpy as np
from sklearn.base import _fit_context, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval

from ._base import BaseAligner, all_or_nothing, fit_within
from ._core.hubness import N_FURTHER, LocalScaling
from ._teachers import CCATeacher

N_NEIGHBORS, N_ANCHORS = 25, 2048


class HubnessCorrection(BaseAligner):
    r"""Embeddings of any aligner, whose cosines no longer favour hubs.

    In spaces of many dimensions some rows, hubs, are near to everything, and are found where they should not be.
    Cross-domain similarity local scaling [1]_ takes from each cosine how near both rows are to the other view in general:

    .. math:: \mathrm{CSLS}(x, y) = 2 \cos(x, y) - r_Y(x) - r_X(y),

    with :math:`r_Y(x)` the mean cosine of x to its `n_neighbors` nearest of `n_anchors` rows of Y drawn from those given to
    `fit`, paired or not, and :math:`r_X(y)` likewise. Here the embeddings carry it: `transform` returns unit rows of
    four more columns whose cosine is :math:`\mathrm{CSLS}(x, y) / 4`. So every index and metric that ranks by cosine uses
    it, and new rows need no gallery. :class:`SOTAlign` does so by itself; wrap it only with ``hubness_correction=False``.

    Parameters
    ----------
    estimator : aligner, default=None
        Has ``fit(X, Y, paired_idx, X_unpaired=, Y_unpaired=)``, ``transform`` and ``transform_y``; cloned and fitted.
        None is :class:`CCATeacher`.
    n_neighbors : int, default=25
        Anchors that count as near, at least 1; at most a tenth of the anchors are taken.
    n_anchors : int, default=2048
        Rows of each view drawn as anchors; all of them if there are fewer. Each row embedded is compared with them.
    random_state : int, RandomState instance or None, default=None
        Draws the anchors, and the seed of the aligner if that has none.

    Attributes
    ----------
    estimator_ : aligner
        Fitted aligner.
    local_scaling_ : tuple
        Anchors of both views, and how many count as near.
    n_components_ : int
        Columns of the aligner, and four.
    n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] Conneau, Lample, Ranzato, Denoyer, Jégou, "Word Translation Without Parallel Data", arXiv 1710.04087, section 2.3.
       There k is 10 and the neighbours are sought in the gallery.

    Examples
    --------
    >>> from skalign import CCATeacher, HubnessCorrection
    >>> from skalign.datasets import load_emoji
    >>> data = load_emoji()
    >>> plain = CCATeacher().fit(data.X, data.Y, data.paired_idx)
    >>> corrected = HubnessCorrection(CCATeacher(), random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> from skalign.metrics import mean_recall
    >>> before = mean_recall(*plain.transform(data.X_test, data.Y_test), data.test_idx)
    >>> mean_recall(*corrected.transform(data.X_test, data.Y_test), data.test_idx) > before
    True
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "transform", "transform_y"]), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_anchors": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator=None, *, n_neighbors=N_NEIGHBORS, n_anchors=N_ANCHORS, random_state=None):
        self.estimator = estimator
        self.n_neighbors = n_neighbors
        self.n_anchors = n_anchors
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)  # what is nested comes from the user
    @all_or_nothing
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Fit the aligner, then draw and embed the anchors.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`~skalign.SOTAlignTransformer.fit`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, which may be drawn as anchors.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite or the pairs are not legal.
        """
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired)
        estimator = CCATeacher() if self.estimator is None else clone(self.estimator)
        self.estimator_ = fit_within(estimator, views, views.pairs, self.random_state)
        embeddings = self.estimator_.transform, self.estimator_.transform_y
        self.local_scaling_ = fit_local_scaling(*embeddings, views, self.n_neighbors, self.n_anchors, self.random_state)
        self.n_components_ = self.local_scaling_.x_anchors.shape[1] + N_FURTHER
        return self

    def _embed_x(self, X):
        return self.local_scaling_.lift_x(self.estimator_.transform(X))

    def _embed_y(self, Y):
        return self.local_scaling_.lift_y(self.estimator_.transform_y(Y))

    def _layers(self, view):
        from ._core.layers import HubnessColumns

        if not hasattr(self.estimator_, "_layers"):
            raise NotImplementedError(
                f"{type(self.estimator_).__name__} has no torch layers. Use an aligner of skalign as `estimator`."
            )
        return [*self.estimator_._layers(view), HubnessColumns(self.local_scaling_, view)]


def fit_local_scaling(embed_x, embed_y, views, n_neighbors, n_anchors, random_state):
    """The correction of two embeddings, with anchors drawn from all rows of the views."""
    rng = check_random_state(random_state)

    def some(rows):
        return rows[np.sort(rng.permutation(len(rows))[:n_anchors])]

    return LocalScaling.fit(embed_x(some(views.X_all)), embed_y(some(views.Y_all)), n_neighbors)
