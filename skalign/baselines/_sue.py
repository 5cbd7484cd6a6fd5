"""SUE: spectral embeddings of both views, canonical directions of the pairs, distributions matched."""

import contextlib
import warnings
from numbers import Integral, Real

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.base import _fit_context
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from .._base import BaseAligner, all_or_nothing
from .._core.mmd import ResidualNetwork, match_distribution
from .._core.rows import normalize_rows
from .._core.threads import Shared
from .._core.training import undisturbed
from .._teachers import CCATeacher

_DENSE = 500  # rows up to which all eigenvectors are computed
_SMALLEST = 1e-3  # eigenvalue of the graph below which its vector cannot be extended to new rows


@contextlib.contextmanager
def _no_word_of_zero_rows():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* zero throughout")  # a row may lie at 0 of every eigenvector
        yield


_ZERO_ROWS_EXPECTED = Shared(_no_word_of_zero_rows)


class SUE(BaseAligner):
    r"""Spectral universal embedding with closed-form spectra: mostly unpaired data, few pairs.

    Three steps [1]_: (i) each view, paired and unpaired rows together, is embedded by the leading eigenvectors of the random
    walk on its graph of nearest neighbours, with weights :math:`\exp(-\|x - x'\|^2 / 2\sigma^2)`; (ii) canonical correlation
    analysis of the pairs rotates both embeddings onto each other; (iii) a small residual network moves the rows of X so that
    their distribution is that of Y (maximum mean discrepancy).

    It departs from the paper in step (i), where the paper trains SpectralNet: here the eigenvectors are computed, and new
    rows take the weighted mean of their neighbours' (Nyström). In step (iii) the kernel's width is set once, at the start.

    Parameters
    ----------
    n_components : int, default=8
        Canonical directions kept.
    n_eigenvectors : int, default=30
        Eigenvectors of each graph.
    n_neighbors : int, default=30
        Neighbours of each row in the graph; the bandwidth is the median distance to the middle one.
    normalize : bool, default=False
        Scale each row to unit length first, here and in `transform`.
    max_iter : int, default=100
        Epochs of step (iii); 0 leaves it out.
    learning_rate : float, default=1e-3
        Of step (iii), AdamW.
    batch_size : int, default=32
        Of step (iii).
    random_state : int, RandomState instance or None, default=None
        Draws the start of the eigenvector iterations, weights and batches.

    Attributes
    ----------
    cca_ : CCATeacher
        Fitted step (ii), without ridge.
    x_spectrum_, y_spectrum_ : ndarray of shape (q_x,) and (q_y,)
        Eigenvalues of the random walks, descending, without the first, which is 1.
    network_ : dict of str to ndarray, or None
        Weights of step (iii); None if ``max_iter=0``.
    n_iter_ : int
        Epochs of step (iii).
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] Yacobi et al., "Learning Shared Representations from Unpaired Data", arXiv 2505.21524.

    Examples
    --------
    >>> from skalign.baselines import SUE
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> sue = SUE(max_iter=5, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> sue.transform(data.X_test).shape
    (100, 8)
    """

    _reads_pools = True  # for the graph of their neighbours

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "n_eigenvectors": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "normalize": ["boolean"],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components=8,
        *,
        n_eigenvectors=30,
        n_neighbors=30,
        normalize=False,
        max_iter=100,
        learning_rate=1e-3,
        batch_size=32,
        random_state=None,
    ):
        self.n_components = n_components
        self.n_eigenvectors = n_eigenvectors
        self.n_neighbors = n_neighbors
        self.normalize = normalize
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Embed both views, rotate them onto each other, match their distributions.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`~skalign.SOTAlignTransformer.fit`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner; those that are not in memory are all read into it.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite, has one row or none that differ, or the pairs are not legal.
        """
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired)
        rng = check_random_state(self.random_state)
        settings = {"n_eigenvectors": self.n_eigenvectors, "n_neighbors": self.n_neighbors, "rng": rng}
        self._x_spectral = _SpectralEmbedding(self._scaled(views.X_all.astype(np.float64)), "X", **settings)
        self._y_spectral = _SpectralEmbedding(self._scaled(views.Y_all.astype(np.float64)), "Y", **settings)
        self.x_spectrum_, self.y_spectrum_ = self._x_spectral.eigenvalues, self._y_spectral.eigenvalues
        limit = min(len(self.x_spectrum_), len(self.y_spectrum_))
        with _ZERO_ROWS_EXPECTED:
            self.cca_ = CCATeacher(min(self.n_components, limit), reg=0.0, power=0.0, normalize=False).fit(
                self._x_spectral(self._scaled(views.X_pairs)), self._y_spectral(self._scaled(views.Y_pairs))
            )
        self.n_components_ = self.cca_.n_components_
        self.network_, self.n_iter_ = None, self.max_iter
        if self.max_iter:
            F, G = self._rotated_x(views.X_all), self._rotated_y(views.Y_all)
            seed = rng.randint(2**31 - 1)
            with undisturbed(torch.device("cpu"), seed):
                network = match_distribution(
                    torch.from_numpy(F).float(),
                    torch.from_numpy(G).float(),
                    n_epochs=self.max_iter,
                    batch_size=self.batch_size,
                    learning_rate=self.learning_rate,
                    seed=seed,
                )
            self.network_ = {name: Z.numpy().copy() for name, Z in network.state_dict().items()}
        return self

    def _rotated_x(self, X):
        return self.cca_._prepared_x(self._x_spectral(self._scaled(X))) @ self.cca_.x_coef_

    def _rotated_y(self, Y):
        return self.cca_._prepared_y(self._y_spectral(self._scaled(Y))) @ self.cca_.y_coef_

    def _embed_x(self, X):
        F = self._rotated_x(X)
        if self.network_ is not None:
            with torch.device("meta"):  # without weights of its own: none are drawn
                network = ResidualNetwork(self.n_components_)
            state = {name: torch.from_numpy(array) for name, array in self.network_.items()}
            network.load_state_dict(state, assign=True)
            with torch.no_grad():
                F = network(torch.from_numpy(F).float()).numpy()
        return normalize_rows(F, X.dtype)

    def _embed_y(self, Y):
        return normalize_rows(self._rotated_y(Y), Y.dtype)


class _SpectralEmbedding:
    """Leading eigenvectors of the random walk on the graph of nearest neighbours, at unit variance, for old and new rows."""

    def __init__(self, rows, name, *, n_eigenvectors, n_neighbors, rng):
        n = len(rows)
        if n < 2:
            raise ValueError(f"A graph of neighbours needs at least two rows of {name}, but n_samples={n}. Add rows.")
        self.rows, self.n_neighbors = rows, min(n_neighbors + 1, n)  # a row is its own first neighbour
        self._index()
        distances, near = self.search.kneighbors(rows)
        middle = float(np.median(distances[:, distances.shape[1] // 2]))
        self.width = middle if middle > 0 else 1.0
        where = np.repeat(np.arange(n), near.shape[1]), near.ravel()
        W = coo_array((self._weights(distances).ravel(), where), shape=(n, n)).tocsr()
        W = (W + W.T) / 2
        scale = diags_array(1 / np.sqrt(W.sum(axis=1)))
        values, vectors = _leading(scale @ W @ scale, np.sqrt(W.sum(axis=1)), min(n_eigenvectors, n - 1), rng)
        kept = np.flatnonzero(values > _SMALLEST)
        if len(kept) == 0:
            raise ValueError(
                f"The rows of {name} (n_features={rows.shape[1]}) do not differ, so their graph has no "
                "direction. Pass rows that vary."
            )
        vectors = (scale @ vectors)[:, kept]
        self.eigenvalues, self.vectors = values[kept], vectors / np.maximum(vectors.std(axis=0), 1e-12)

    def _index(self):
        self.search = NearestNeighbors(n_neighbors=self.n_neighbors).fit(self.rows)

    def __getstate__(self):
        """Arrays and numbers; the search is built again from the rows, for a tree of them is neither."""
        return {name: value for name, value in vars(self).items() if name != "search"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._index()

    def __call__(self, rows):
        distances, near = self.search.kneighbors(rows.astype(np.float64, copy=False))
        weights = self._weights(distances)
        weights /= weights.sum(axis=1, keepdims=True)
        return np.einsum("ij,ijk->ik", weights, self.vectors[near]) / self.eigenvalues

    def _weights(self, distances):
        """Of each row's neighbours, relative to the nearest: a row far from all has weights too."""
        return np.exp((distances[:, :1] ** 2 - distances**2) / (2 * self.width**2))


def _leading(S, known, k, rng):
    """The k largest eigenvalues, descending, and vectors of a symmetric sparse matrix, apart from a known one of eigenvalue 1.

    The known one is taken out, not the first that is found: if the graph falls into parts, 1 has more vectors than that.
    """
    n, known = len(known), known / np.linalg.norm(known)
    if n <= _DENSE:
        values, vectors = eigh(S.toarray() - np.outer(known, known), subset_by_index=[n - k, n - 1])
    else:
        rest = LinearOperator((n, n), matvec=lambda x: S @ x - known * (known @ x), dtype=S.dtype)
        values, vectors = eigsh(rest, k, which="LA", v0=rng.uniform(size=n))
    order = np.argsort(-values)
    values, vectors = values[order], vectors[:, order]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(k)])
