"""Retrieval across views with a fitted aligner. Thin over the core; knows scikit-learn, not torch."""

from numbers import Integral

import numpy as np
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._arrays import to_numpy
from ._base import all_or_nothing
from ._core.search import largest_products


class CrossModalRetriever(BaseEstimator):
    """Nearest rows of a gallery of one view for queries of the other, exact, by cosine in the shared space.

    The gallery is embedded once. Search walks through it in blocks, beside which it holds only what it returns.

    Parameters
    ----------
    aligner : fitted aligner
        Has ``transform`` and ``transform_y``, which return rows of unit length. Used as it is, neither cloned nor fitted.
    n_neighbors : int, default=10
        Rows found for each query, at least 1.
    gallery : {"x", "y"}, default="y"
        View the gallery is of; queries are of the other.

    Attributes
    ----------
    gallery_ : ndarray of shape (n, k)
        Embedded gallery, rows of unit length.

    Examples
    --------
    >>> from skalign import CCATeacher, CrossModalRetriever
    >>> from skalign.datasets import load_emoji
    >>> data = load_emoji()
    >>> aligner = CCATeacher(reg=0.01).fit(data.X, data.Y, data.paired_idx)
    >>> pictures = CrossModalRetriever(aligner, n_neighbors=5, gallery="x").fit(data.X_test)
    >>> distances, rows = pictures.kneighbors(data.Y_test[:3])  # texts in, pictures out
    >>> rows.shape
    (3, 5)
    """

    _parameter_constraints: dict = {
        "aligner": [HasMethods(["transform", "transform_y"])],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "gallery": [StrOptions({"x", "y"})],
    }

    def __init__(self, aligner, *, n_neighbors=10, gallery="y"):
        self.aligner = aligner
        self.n_neighbors = n_neighbors
        self.gallery = gallery

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, gallery, y=None):
        """Embed the gallery.

        Parameters
        ----------
        gallery : array-like of shape (n, d_y), or (n, d_x) if ``gallery="x"``
            Rows to be found.
        y : None
            Ignored.

        Returns
        -------
        self : object

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If the gallery is not finite, or has another number of columns than its view.
        """
        self.gallery_ = self._embedded(gallery, self.gallery)
        return self

    def kneighbors(self, queries, n_neighbors=None, return_distance=True):
        """Find the nearest rows of the gallery.

        Parameters
        ----------
        queries : array-like of shape (q, d_x), or (q, d_y) if ``gallery="x"``
            Rows of the other view.
        n_neighbors : int, default=None
            Rows found for each query, at most those of the gallery; None is `n_neighbors` of the constructor.
        return_distance : bool, default=True
            Whether distances are returned, too.

        Returns
        -------
        distances : ndarray of shape (q, n_neighbors)
            One minus the cosine, ascending. Only if `return_distance`.
        rows : ndarray of int64, shape (q, n_neighbors)
            Of the gallery, the nearest first; among equals the lower row.

        Raises
        ------
        ValueError
            If the queries are not finite or of another width, or more rows are asked for than the gallery has.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(k, Integral) or not 1 <= k <= len(self.gallery_):
            raise ValueError(
                f"`n_neighbors` must be an integer from 1 to {len(self.gallery_)}, the rows of the gallery, but it is {k!r}."
            )
        Q = self._embedded(queries, "y" if self.gallery == "x" else "x")
        cosines, rows = largest_products(Q.astype(self.gallery_.dtype, copy=False), self.gallery_, k)
        return (1 - cosines, rows) if return_distance else rows

    def _embedded(self, rows, view):
        embed = self.aligner.transform if view == "x" else self.aligner.transform_y
        return np.asarray(to_numpy(embed(rows)))
