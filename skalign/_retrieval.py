"""Retrieval across views with a fitted aligner. Thin over the core; knows scikit-learn, loads torch for a GPU only."""

import sys
import warnings
from numbers import Integral, Real

import numpy as np
from sklearn.base import BaseEstimator, _fit_context, clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from ._arrays import floats_of, resolve_device, to_numpy, to_tensor
from ._base import all_or_nothing
from ._core.hubness import lift_gallery, lift_queries, mean_of_nearest, n_local, soft_maximum
from ._core.rows import normalize_rows
from ._core.search import largest_products, products_of_rows
from ._embedding import embed_by
from ._indexes import INDEXES


class CrossModalRetriever(BaseEstimator):
    r"""Nearest rows of a gallery of one view for queries of the other, in the shared space of a fitted aligner.

    A query q finds the rows g of the gallery with the smallest distance

    .. math:: d(q, g) = 1 - \cos(q, g) + h(g).

    `similarity` says what the hubness :math:`h(g)` is: how near g is to queries in general, judged by reference queries
    given to `fit`. It keeps hubs, rows near to everything, from being found everywhere.

    - "cosine": 0. It is also right for embeddings that carry the correction themselves, those of
      :class:`HubnessCorrection` and of :class:`SOTAlign` unless ``hubness_correction=False``.
    - "csls", cross-domain similarity local scaling [1]_: :math:`r(g) / 2`, with r(g) the mean cosine of g to its
      `csls_neighbors` nearest reference queries. So :math:`\mathrm{CSLS}(q, g) = 2 - 2 d(q, g) - r(q)`, where the query's own
      term r(q), which ranks nothing, is left out.
    - "inverted_softmax" [2]_: :math:`T \log \mathrm{mean}_{q'} \exp(\cos(q', g) / T)` over the reference queries q', with
      T = `temperature`. So the probability that g is translated by q is :math:`\propto \exp(-d(q, g) / T)`.

    Parameters
    ----------
    aligner : fitted aligner, default=None
        Or a fitted pipeline or search that holds one; rows pass all its steps. Used as it is, neither cloned nor fitted;
        whatever clones drops its fit, unless it is a ``FrozenEstimator(aligner)`` (:class:`sklearn.frozen.FrozenEstimator`).
        None if gallery and queries are in one space already.
    n_neighbors : int, default=10
        Rows found for each query, at least 1.
    gallery : {"x", "y"}, default="y"
        View the gallery is of; queries are of the other.
    similarity : {"cosine", "csls", "inverted_softmax"}, default="cosine"
        What rows are ranked by, see above.
    csls_neighbors : int, default=10
        Reference queries that count as near, at least 1; at most a tenth of them are taken.
    temperature : float, default=0.1
        Temperature of the inverted softmax, above 0, in units of the cosine; its inverse is called beta in [2]_.
    index : {"exact", "usearch", "voyager", "hnswlib"} or object, default="exact"
        How rows are sought. The names in the middle are libraries for approximate search in an HNSW graph, which
        ``skalign[index]`` installs, and ``skalign[hnswlib]`` where there is a C++ compiler: `fit` takes longer,
        `kneighbors` a small part of the time, and some neighbours may be missed, above all where many rows of the
        gallery are equal. An object has ``fit(G)`` and ``kneighbors(Q, n_neighbors=, return_distance=False)``, as
        scikit-learn's :class:`~sklearn.neighbors.NearestNeighbors` has; it is cloned. It is given rows of unit length, so
        that it may use cosine, inner product or Euclidean distance, and returns row numbers, negative ones where it found
        none. Distances are computed here from the rows found.
    device : str or torch.device, default="auto"
        Where exact search runs. "auto" is CUDA if this process uses torch and it is there, else the CPU. The gallery
        must fit into the memory of the device.
    n_jobs : int, default=None
        Threads of the libraries for approximate search; None is 1, -1 all cores. A graph built by several threads differs from
        run to run, hence what it finds. Exact search uses the threads of NumPy.

    Attributes
    ----------
    n_features_in_ : int
        Columns of the gallery, without an aligner only.
    gallery_ : ndarray of shape (n, k), or (n, k + 2) with a hubness
        Embedded gallery, rows of unit length. The two further columns make inner products those of the similarity.
    hubness_ : ndarray of shape (n,) or None
        h(g) of each row of the gallery; None for "cosine".
    index_ : object or None
        Fitted index; None if exact.

    References
    ----------
    .. [1] Conneau, Lample, Ranzato, Denoyer, Jégou, "Word Translation Without Parallel Data", arXiv 1710.04087, section 2.3.
    .. [2] Smith, Turban, Hamblin, Hammerla, "Offline bilingual word vectors, orthogonal transformations and the inverted
       softmax", arXiv 1702.03859.

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

    Texts that are known, but not those to be answered, tell which pictures are hubs:

    >>> corrected = CrossModalRetriever(aligner, n_neighbors=5, gallery="x", similarity="csls")
    >>> rows = corrected.fit(data.X_test, queries=data.Y).kneighbors(data.Y_test[:3], return_distance=False)
    >>> rows.shape
    (3, 5)
    """

    _parameter_constraints: dict = {
        "aligner": [HasMethods(["transform"]), None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "gallery": [StrOptions({"x", "y"})],
        "similarity": [StrOptions({"cosine", "csls", "inverted_softmax"})],
        "csls_neighbors": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "index": [StrOptions({"exact", *INDEXES}), HasMethods(["fit", "kneighbors"])],
        "device": "no_validation",  # resolve_device judges it
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        aligner=None,
        *,
        n_neighbors=10,
        gallery="y",
        similarity="cosine",
        csls_neighbors=10,
        temperature=0.1,
        index="exact",
        device="auto",
        n_jobs=None,
    ):
        self.aligner = aligner
        self.n_neighbors = n_neighbors
        self.gallery = gallery
        self.similarity = similarity
        self.csls_neighbors = csls_neighbors
        self.temperature = temperature
        self.index = index
        self.device = device
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, gallery, y=None, *, queries=None):
        """Embed the gallery, learn its hubs and build the index.

        Parameters
        ----------
        gallery : array-like of shape (n, d_y), or (n, d_x) if ``gallery="x"``
            Rows to be found. An aligner embeds those that are not in memory (see :meth:`SOTAlignTransformer.fit`) block by
            block; their embeddings are kept in memory.
        y : None
            Ignored.
        queries : array-like of shape (m, d_x), or (m, d_y) if ``gallery="x"``, default=None
            Reference queries, rows of the other view such as unpaired ones; not used for "cosine". Each row of the gallery
            is compared with each of them, so a few thousand are enough.

        Returns
        -------
        self : object
            The fitted retriever.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If the gallery or the reference queries are not finite or have another number of columns than their view, if the
            similarity needs reference queries and there are none, or if the device is not there.
        ImportError
            If the library of the index is not installed.
        """
        _torch_device(self.device)
        self._view = self.gallery
        self.gallery_ = self._embedded(gallery, self._view, reset=True)
        self.hubness_, self._scale = self._hubness(queries), 1.0
        if self.hubness_ is not None:
            self.gallery_, self._scale = lift_gallery(self.gallery_, self.hubness_)
        self._on_device = {}
        self.index_ = self._new_index()
        if self.index_ is not None:
            self.index_.fit(self.gallery_)
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
            One minus the cosine plus the hubness of the row, ascending. Only if `return_distance`.
        rows : ndarray of int64, shape (q, n_neighbors)
            Of the gallery, the nearest first; among equals the lower row. NumPy arrays, whatever the queries are.

        Raises
        ------
        NotFittedError
            If the retriever is not fitted.
        ValueError
            If the queries are not finite or of another width, more rows are asked for than the gallery has, the device is
            not there, or an index returns what are not rows of the gallery.

        Warns
        -----
        UserWarning
            If an index returned fewer rows for some queries, which are then searched exactly.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= len(self.gallery_):
            raise ValueError(
                f"`n_neighbors` must be an integer from 1 to {len(self.gallery_)}, the rows of the gallery, but it is {k!r}."
            )
        Q = self._embedded(queries, self._query_view).astype(self.gallery_.dtype, copy=False)
        if self.hubness_ is not None:
            Q = lift_queries(Q)
        products, rows = self._exact(Q, k) if self.index_ is None else self._indexed(Q, k)
        return (1 - self._scale * products, rows) if return_distance else rows

    @property
    def _query_view(self):
        return "y" if self._view == "x" else "x"  # as in `fit`, whatever was set since

    def _embedded(self, rows, view, reset=False):
        if self.aligner is not None:
            return embed_by(self.aligner, rows, view)
        return normalize_rows(validate_data(self, to_numpy(rows), dtype=floats_of(rows), reset=reset))

    def _hubness(self, queries):
        """How near each row of the gallery is to the reference queries; None if that does not matter."""
        if self.similarity == "cosine":
            return None
        if queries is None:
            raise ValueError(
                f'similarity="{self.similarity}" judges rows of the gallery by reference queries, but the keyword `queries` is '
                f"None (`y` is ignored). Pass rows of {self._query_view.upper()}, such as unpaired ones, "
                'fit(gallery, queries=...), or use similarity="cosine".'
            )
        references = self._embedded(queries, self._query_view).astype(self.gallery_.dtype, copy=False)
        if self.similarity == "csls":
            return mean_of_nearest(self.gallery_, references, n_local(self.csls_neighbors, len(references))) / 2
        return soft_maximum(self.gallery_, references, self.temperature)

    def _new_index(self):
        if isinstance(self.index, str):
            return None if self.index == "exact" else INDEXES[self.index](self.n_jobs)
        return clone(self.index, safe=False)

    def _exact(self, Q, k):
        device = _torch_device(self.device)
        if device is None:
            return largest_products(Q, self.gallery_, k)
        from ._core.search_torch import largest_products_torch

        if device not in self._on_device:  # the gallery travels once
            self._on_device = {device: to_tensor(self.gallery_, device)}
        found = largest_products_torch(to_tensor(Q, device), self._on_device[device], k)
        return tuple(to_numpy(tensor) for tensor in found)

    def _indexed(self, Q, k):
        """What the index finds, ranked by its exact products; where it finds too little, exact search."""
        found = np.asarray(self.index_.kneighbors(Q, n_neighbors=k, return_distance=False))
        rows = found.astype(np.int64)
        if found.dtype.kind not in "iu" or rows.shape != (len(Q), k) or (rows >= len(self.gallery_)).any():
            raise ValueError(
                f"`kneighbors` of the index must return integers below {len(self.gallery_)}, the rows of the gallery, in shape "
                f'{(len(Q), k)}, but it returned {found.dtype} in shape {found.shape}. Mend the index, or use index="exact".'
            )
        products, rows = products_of_rows(Q, self.gallery_, rows)
        short = (rows < 0).any(axis=1)
        if short.any():
            warnings.warn(
                f"The index found fewer than {k} rows for {short.sum()} of {len(Q)} queries, which are searched exactly, "
                'slower. Ask for fewer neighbors, drop equal rows from the gallery, or use index="exact".',
                UserWarning,
                stacklevel=3,
            )
            products[short], rows[short] = self._exact(Q[short], k)
        return products, rows

    def __getstate__(self):
        state = super().__getstate__()
        return state | {"_on_device": {}} if "_on_device" in state else state


def _torch_device(device):
    """The torch device to search on, or None for NumPy; "auto" does not load torch to look for one."""
    if device == "cpu" or (device == "auto" and "torch" not in sys.modules):
        return None
    resolved = resolve_device(device)
    return None if resolved.type == "cpu" else resolved
