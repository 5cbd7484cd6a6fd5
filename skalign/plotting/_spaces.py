"""The two spaces before and after alignment, in two dimensions. Knows scikit-learn, not torch."""

from numbers import Integral

import numpy as np
from sklearn.decomposition import PCA
from sklearn.utils import check_array

from .._arrays import to_numpy
from .._base import check_embedded
from ._shared import OTHERS_COLOR, X_COLOR, Y_COLOR, innermost, make_axes, present_rows

_TITLES = "{x}, before", "{y}, before", "both, after"


class SpacesDisplay:
    """The two spaces before alignment, each in its own principal components, and the shared space after it.

    Before, the axes of the two views have nothing to do with one another; lines across show which rows are pairs. After, both
    views are projected on the principal components of all their embeddings, and the same pairs are joined: the shorter the
    lines, the better the views are aligned, as far as two dimensions show it. Below each space stands how much of its
    variance they hold. Make it by `from_estimator` or `from_predictions`.

    Parameters
    ----------
    X, Y : ndarray of shape (n_x, 2) and (n_y, 2)
        Principal components of each view.
    F, G : ndarray of shape (n_x, 2) and (n_y, 2)
        Shared principal components of the embeddings.
    pairs : ndarray of int, shape (p, 2)
        Rows that belong together.
    explained : ndarray of shape (3, 2)
        Shares of the variance, in X, in Y and in the shared space.

    Attributes
    ----------
    points_ : list of matplotlib PathCollection
        X and Y before, then both after; of each the paired rows.
    unpaired_ : list of matplotlib PathCollection
        Rows in no pair, likewise; pale.
    links_before_ : list of matplotlib ConnectionPatch
        Lines that join pairs across the first two axes.
    links_ : matplotlib LineCollection
        Lines that join the same pairs in the shared space.
    axes_ : ndarray of matplotlib Axes, shape (3,)
        Where it is drawn.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import SpacesDisplay
    >>> data = make_two_views(random_state=0)
    >>> aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> display = SpacesDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx)
    >>> display.F.shape
    (100, 2)

    The same of embeddings, and drawn again with fewer lines:

    >>> F, G = aligner.transform(data.X_test, data.Y_test)
    >>> display = SpacesDisplay.from_predictions(data.X_test, data.Y_test, F, G, data.test_idx)
    >>> len(display.plot(n_links=10).links_before_)
    10
    """

    def __init__(self, X, Y, F, G, pairs, explained):
        self.X = X
        self.Y = Y
        self.F = F
        self.G = G
        self.pairs = pairs
        self.explained = explained

    @classmethod
    def from_estimator(
        cls, estimator, X, Y, paired_idx=None, *, n_links=60, view_names=("X", "Y"), ax=None, scatter_kw=None
    ):
        """Draw two views, and their embeddings by a fitted aligner.

        Parameters
        ----------
        estimator : fitted aligner
            Or a search or pipeline that ends in one. A hubness correction is left out: its columns are no shared directions.
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views of two rows or more. Rows that are NaN throughout are left out.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs among their rows.
        n_links : int, default=60
            Pairs to join by a line at most, evenly spaced among them.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a figure.
        scatter_kw : dict, default=None
            Passed to matplotlib's ``scatter``, such as ``{"s": 5}``.

        Returns
        -------
        display : SpacesDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no aligner, a view is not finite, the pairs are not legal, or `ax` does not hold three axes.
        """
        X, Y, pairs = present_rows(X, Y, paired_idx)
        aligner, *inner = innermost(estimator, X, Y)
        return cls.from_predictions(
            X,
            Y,
            aligner.transform(inner[0]),
            aligner.transform_y(inner[1]),
            pairs,
            n_links=n_links,
            view_names=view_names,
            ax=ax,
            scatter_kw=scatter_kw,
        )

    @classmethod
    def from_predictions(
        cls, X, Y, F, G, paired_idx=None, *, n_links=60, view_names=("X", "Y"), ax=None, scatter_kw=None
    ):
        """Draw two views and their embeddings.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views of two rows or more, finite.
        F, G : array-like of shape (n_x, d) and (n_y, d)
            Their embeddings in one space, row by row.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs among their rows.
        n_links : int, default=60
            Pairs to join by a line at most, evenly spaced among them.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a figure.
        scatter_kw : dict, default=None
            Passed to matplotlib's ``scatter``, such as ``{"s": 5}``.

        Returns
        -------
        display : SpacesDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            As in `from_estimator`, and if views and embeddings differ in rows.
        """
        F, G, pairs = check_embedded(F, G, paired_idx)
        X, Y = (
            check_array(to_numpy(Z), ensure_2d=False, ensure_min_samples=2, input_name=name)
            for Z, name in ((X, "X"), (Y, "Y"))
        )
        for view, embedded, name in ((X, F, "X"), (Y, G, "Y")):
            if len(view) != len(embedded):
                raise ValueError(
                    f"{name} and its embedding must have equally many rows, but they have {len(view)} and {len(embedded)}. "
                    "Pass the rows that were embedded, in their order."
                )
        spaces, explained = zip(*map(_in_two_dimensions, (X, Y, np.concatenate([F, G]))), strict=True)
        F, G = np.split(spaces[2], [len(F)])
        display = cls(*spaces[:2], F, G, pairs, np.array(explained))
        return display.plot(ax, n_links=n_links, view_names=view_names, scatter_kw=scatter_kw)

    def plot(self, ax=None, *, n_links=60, view_names=("X", "Y"), scatter_kw=None):
        """Draw the three spaces.

        Parameters
        ----------
        ax : sequence of three matplotlib Axes, default=None
            Where to draw; None makes a figure.
        n_links : int, default=60
            Pairs to join by a line at most, evenly spaced among them.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        scatter_kw : dict, default=None
            Passed to matplotlib's ``scatter``, such as ``{"s": 5}``.

        Returns
        -------
        self : object
            The display, with its attributes set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `ax` does not hold three axes, or `n_links` is no number of pairs.
        """
        if ax is not None and np.shape(ax) != (3,):
            raise ValueError(f"`ax` must hold three axes, but its shape is {np.shape(ax)}. Pass plt.subplots(1, 3)[1].")
        if not isinstance(n_links, Integral) or n_links < 0:
            raise ValueError(f"`n_links` must be an integer of at least 0, but it is {n_links!r}.")
        self.axes_ = np.asarray(make_axes(ax, 3, figsize=(12, 4)))
        self.figure_ = self.axes_[0].figure
        before_x, before_y, after = self.axes_
        x_paired, y_paired = (np.unique(rows) for rows in self.pairs.T)
        self.points_, self.unpaired_ = [], []
        style = {"s": 12, "lw": 0, **(scatter_kw or {})}
        for one, points, paired, color, label in (
            (before_x, self.X, x_paired, X_COLOR, view_names[0]),
            (before_y, self.Y, y_paired, Y_COLOR, view_names[1]),
            (after, self.F, x_paired, X_COLOR, view_names[0]),
            (after, self.G, y_paired, Y_COLOR, view_names[1]),
        ):
            unpaired = np.delete(points, paired, axis=0)
            pale, full = {"alpha": 0.15, "zorder": 1}, {"alpha": 0.8, "zorder": 3, "label": label}
            self.unpaired_.append(one.scatter(*unpaired.T, **{"color": color} | pale | style))
            self.points_.append(one.scatter(*points[paired].T, **{"color": color} | full | style))
        self._join(n_links)
        for one, title, shares in zip(self.axes_, _TITLES, self.explained, strict=True):
            one.set(title=title.format(x=view_names[0], y=view_names[1]), xticks=[], yticks=[])
            one.set(xlabel="two components: {:.0f} % and {:.0f} % of the variance".format(*100 * shares))
            one.set_aspect("equal", adjustable="datalim")
        after.legend()
        return self

    def _join(self, n_links):
        """Join pairs across the spaces before, and within the shared one."""
        from matplotlib.collections import LineCollection
        from matplotlib.patches import ConnectionPatch

        before_x, before_y, after = self.axes_
        spread = np.linspace(0, len(self.pairs) - 1, min(n_links, len(self.pairs)))
        joined = self.pairs[np.round(spread).astype(int)]
        style = {"color": OTHERS_COLOR, "lw": 0.6, "alpha": 0.5}
        self.links_before_ = [
            self.figure_.add_artist(
                ConnectionPatch(self.X[i], self.Y[j], "data", axesA=before_x, axesB=before_y, **style)
            )
            for i, j in joined
        ]
        ends = np.stack([self.F[joined[:, 0]], self.G[joined[:, 1]]], axis=1)  # (n_links, 2, 2)
        self.links_ = after.add_collection(LineCollection(ends, zorder=2, label="pairs", **style | {"alpha": 1}))


def _in_two_dimensions(rows):
    """Two principal components, the second zero where there is but one, and their shares of the variance."""
    rows = rows.reshape(len(rows), -1)
    n_components = min(2, *rows.shape)
    with np.errstate(invalid="ignore"):  # rows that are all alike have no variance to share out
        pca = PCA(n_components, random_state=0).fit(rows)
    room = [(0, 0), (0, 2 - n_components)]
    return np.pad(pca.transform(rows), room), np.pad(np.nan_to_num(pca.explained_variance_ratio_), room[1])
