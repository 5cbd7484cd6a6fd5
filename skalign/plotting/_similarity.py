"""Cosines of pairs and of non-pairs. Knows NumPy and scikit-learn, not torch."""

from numbers import Integral

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_random_state

from .._base import check_embedded
from .._core.rows import normalize_rows
from ._shared import OTHERS_COLOR, PAIRS_COLOR, aligner_name, embed_present, make_axes


class SimilarityDisplay:
    """Histograms of the cosines of pairs and of non-pairs, and how well a cosine tells which is which.

    `auc`, the area under the ROC curve, is the probability that a pair has the larger cosine than a non-pair: 1 is best, 0.5
    is chance. Make it by `from_estimator` or `from_predictions`.

    Parameters
    ----------
    pairs : ndarray of shape (p,)
        Cosines of the pairs.
    non_pairs : ndarray of shape (q,)
        Cosines of couples that are no pair.
    name : str, default=None
        Title.

    Attributes
    ----------
    auc : float
        Area under the ROC curve.
    histograms_ : tuple of two matplotlib StepPatch
        Densities of non-pairs and of pairs.
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import SimilarityDisplay
    >>> data = make_two_views(random_state=0)
    >>> aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> display = SimilarityDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx)
    >>> display.auc > 0.9
    True

    The same of embeddings, and drawn again with fewer bins:

    >>> display = SimilarityDisplay.from_predictions(*aligner.transform(data.X_test, data.Y_test), data.test_idx)
    >>> len(display.plot(bins=20).histograms_[0].get_data().values)
    20
    """

    def __init__(self, pairs, non_pairs, *, name=None):
        self.pairs = pairs
        self.non_pairs = non_pairs
        self.name = name
        is_pair = np.repeat([1, 0], [len(pairs), len(non_pairs)])
        self.auc = float(roc_auc_score(is_pair, np.concatenate([pairs, non_pairs])))

    @classmethod
    def from_estimator(
        cls, estimator, X, Y, paired_idx=None, *, n_non_pairs=100_000, bins=50, random_state=0, name=None, ax=None
    ):
        """Embed both views by a fitted aligner and draw the cosines.

        Parameters
        ----------
        estimator : fitted aligner
            Or a search or pipeline that holds one.
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views. Rows that are NaN throughout are left out.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs; every other couple of rows counts as a non-pair, true pairs that are not known among them.
        n_non_pairs : int, default=100000
            Non-pairs to draw at most; all if there are fewer.
        bins : int or array-like of shape (n_bins + 1,), default=50
            Number of bins, or their edges.
        random_state : int, RandomState instance or None, default=0
            Draws the non-pairs.
        name : str, default=None
            Title; None is the aligner's class.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : SimilarityDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no aligner or no non-pair, a view is not finite, or the pairs are not legal.
        """
        return cls.from_predictions(
            *embed_present(estimator, X, Y, paired_idx),
            n_non_pairs=n_non_pairs,
            bins=bins,
            random_state=random_state,
            name=aligner_name(estimator) if name is None else name,
            ax=ax,
        )

    @classmethod
    def from_predictions(
        cls, F, G, paired_idx=None, *, n_non_pairs=100_000, bins=50, random_state=0, name=None, ax=None
    ):
        """Draw the cosines of two embedded views.

        Parameters
        ----------
        F, G : array-like of shape (n_x, d) and (n_y, d)
            Embedded views, finite, in one space.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs; every other couple of rows counts as a non-pair.
        n_non_pairs : int, default=100000
            Non-pairs to draw at most; all if there are fewer.
        bins : int or array-like of shape (n_bins + 1,), default=50
            Number of bins, or their edges.
        random_state : int, RandomState instance or None, default=0
            Draws the non-pairs.
        name : str, default=None
            Title.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : SimilarityDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            As in `from_estimator`.
        """
        F, G, pairs = check_embedded(F, G, paired_idx)
        if not isinstance(n_non_pairs, Integral) or n_non_pairs < 1:
            raise ValueError(f"`n_non_pairs` must be an integer of at least 1, but it is {n_non_pairs!r}.")
        if len(pairs) == len(F) * len(G):
            raise ValueError("Every couple of rows is a pair, so there is no non-pair to compare with. Pass more rows.")
        F, G = normalize_rows(F), normalize_rows(G)
        others = _draw_non_pairs(pairs, len(F), len(G), n_non_pairs, check_random_state(random_state))
        cosines = (np.einsum("ij,ij->i", F[i], G[j]) for i, j in (pairs.T, others))
        return cls(*cosines, name=name).plot(ax, bins=bins)

    def plot(self, ax=None, *, bins=50):
        """Draw the histograms.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        bins : int or array-like of shape (n_bins + 1,), default=50
            Number of bins, or their edges.

        Returns
        -------
        self : object
            The display, with its attributes set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        self.ax_ = make_axes(ax)
        self.figure_ = self.ax_.figure
        edges = np.histogram_bin_edges(np.concatenate([self.pairs, self.non_pairs]), bins)
        kinds = (self.non_pairs, "non-pairs", OTHERS_COLOR), (self.pairs, f"pairs, AUC {self.auc:.3f}", PAIRS_COLOR)
        self.histograms_ = tuple(
            self.ax_.stairs(
                np.histogram(v, edges, density=True)[0], edges, fill=True, alpha=0.55, color=color, label=label
            )
            for v, label, color in kinds
        )
        self.ax_.set(xlabel="cosine", ylabel="density", title=self.name)
        self.ax_.legend()
        return self


def _draw_non_pairs(pairs, n_x, n_y, n_drawn, rng):
    """Couples of rows that are no pair, (2, q): all of them if they are few, else so many, drawn with replacement."""
    of_pairs = pairs[:, 0] * n_y + pairs[:, 1]
    if n_x * n_y - len(pairs) <= n_drawn:
        others = np.setdiff1d(np.arange(n_x * n_y), of_pairs)
    else:
        others = np.empty(0, dtype=np.int64)
        while len(others) < n_drawn:
            drawn = rng.randint(n_x * n_y, size=n_drawn, dtype=np.int64)
            others = np.concatenate([others, drawn[~np.isin(drawn, of_pairs)]])[:n_drawn]
    return np.divmod(others, n_y)
