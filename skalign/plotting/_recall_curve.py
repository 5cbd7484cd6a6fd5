"""Recall against k. Knows NumPy, SciPy and the ranks of the core, not torch."""

import numpy as np
from scipy.stats import hypergeom

from .._base import check_embedded
from .._core.ranks import recalls
from ._shared import DIRECTIONS, aligner_name, check_k, curves, embed_present, log_scale, make_axes, next_color


class RecallCurveDisplay:
    r"""Recall at k against k, in both directions, and what chance would give.

    Recall is :func:`skalign.metrics.recall_at_k`. By chance a query with m matches in a gallery of n rows finds one with
    probability :math:`1 - \binom{n - m}{k} / \binom{n}{k}`; `chance` is the mean over the queries. Make it by
    `from_estimator` or `from_predictions`.

    Parameters
    ----------
    k : ndarray of int, shape (q,)
        How many nearest rows count.
    recall : dict of str to ndarray of shape (q,)
        Under "x_to_y" and "y_to_x".
    chance : dict of str to ndarray of shape (q,)
        Likewise, for a gallery in random order.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        A curve for each direction drawn.
    chance_lines_ : list of matplotlib Line2D
        Chance levels, dotted.
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import RecallCurveDisplay
    >>> data = make_two_views(random_state=0)
    >>> aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> display = RecallCurveDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx)
    >>> display.figure_.savefig("recall.png")  # doctest: +SKIP

    The same of embeddings, and drawn again as one curve:

    >>> display = RecallCurveDisplay.from_predictions(*aligner.transform(data.X_test, data.Y_test), data.test_idx)
    >>> display.plot(direction="mean").lines_
    [<matplotlib.lines.Line2D object at ...>]
    """

    def __init__(self, k, recall, chance, *, name=None):
        self.k = k
        self.recall = recall
        self.chance = chance
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        Y,
        paired_idx=None,
        *,
        k=100,
        direction="both",
        plot_chance_level=True,
        name=None,
        view_names=("X", "Y"),
        ax=None,
        line_kw=None,
    ):
        """Embed both views by a fitted aligner and draw its recall.

        Parameters
        ----------
        estimator : fitted aligner
            Or a search or pipeline that holds one.
        X : array-like of shape (n_x, d_x)
            First view. Rows that are NaN throughout are left out.
        Y : array-like of shape (n_y, d_y)
            Second view.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            As in :func:`skalign.metrics.recall_at_k`: queries are the rows named, the gallery is every row present.
        k : int or array-like of int, shape (q,), default=100
            Largest k (at most the rows of the larger gallery are drawn), or each k to draw.
        direction : {"both", "mean", "x_to_y", "y_to_x"}, default="both"
            A curve for each direction, the mean of both as one curve (to compare aligners), or one direction.
        plot_chance_level : bool, default=True
            Whether to draw what a gallery in random order would give.
        name : str, default=None
            Name in the legend; None is the aligner's class.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        line_kw : dict, default=None
            Passed to matplotlib's ``plot`` for the curves, such as ``{"linestyle": "--"}`` for a second aligner.

        Returns
        -------
        display : RecallCurveDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no aligner, a view is not finite, the pairs are not legal, or `k` or `direction` is none of the
            above.
        """
        return cls.from_predictions(
            *embed_present(estimator, X, Y, paired_idx),
            k=k,
            direction=direction,
            plot_chance_level=plot_chance_level,
            name=aligner_name(estimator) if name is None else name,
            view_names=view_names,
            ax=ax,
            line_kw=line_kw,
        )

    @classmethod
    def from_predictions(
        cls,
        F,
        G,
        paired_idx=None,
        *,
        k=100,
        direction="both",
        plot_chance_level=True,
        name=None,
        view_names=("X", "Y"),
        ax=None,
        line_kw=None,
    ):
        """Draw the recall of two embedded views.

        Parameters
        ----------
        F, G : array-like of shape (n_x, d) and (n_y, d)
            Embedded views, finite, in one space.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            As in :func:`skalign.metrics.recall_at_k`: queries are the rows named, the gallery is every row.
        k : int or array-like of int, shape (q,), default=100
            Largest k (at most the rows of the larger gallery are drawn), or each k to draw.
        direction : {"both", "mean", "x_to_y", "y_to_x"}, default="both"
            A curve for each direction, the mean of both as one curve (to compare aligners), or one direction.
        plot_chance_level : bool, default=True
            Whether to draw what a gallery in random order would give.
        name : str, default=None
            Name in the legend.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        line_kw : dict, default=None
            Passed to matplotlib's ``plot`` for the curves, such as ``{"linestyle": "--"}`` for a second aligner.

        Returns
        -------
        display : RecallCurveDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            As in `from_estimator`.
        """
        F, G, pairs = check_embedded(F, G, paired_idx)
        ks = check_k(k)
        if np.ndim(k) == 0:
            ks = np.arange(1, min(k, max(len(F), len(G))) + 1)
        chance = _chance(pairs[:, 0], len(G), ks), _chance(pairs[:, 1], len(F), ks)
        display = cls(
            ks,
            dict(zip(DIRECTIONS, recalls(F, G, pairs, ks), strict=True)),
            dict(zip(DIRECTIONS, chance, strict=True)),
            name=name,
        )
        return display.plot(
            ax, direction=direction, plot_chance_level=plot_chance_level, view_names=view_names, line_kw=line_kw
        )

    def plot(self, ax=None, *, direction="both", plot_chance_level=True, view_names=("X", "Y"), line_kw=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        direction : {"both", "mean", "x_to_y", "y_to_x"}, default="both"
            A curve for each direction, the mean of both as one curve (to compare aligners), or one direction.
        plot_chance_level : bool, default=True
            Whether to draw what a gallery in random order would give.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        line_kw : dict, default=None
            Passed to matplotlib's ``plot`` for the curves, such as ``{"linestyle": "--"}`` for a second aligner.

        Returns
        -------
        self : object
            The display, with its attributes set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `direction` is unknown.
        """
        recall = curves(self.recall, direction, self.name, view_names)
        chance = curves(self.chance, direction, None, view_names)
        self.ax_ = make_axes(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.chance_lines_ = [], []
        for values, color, label in recall:
            style = {"label": label, "color": color or next_color(self.ax_), **(line_kw or {})}
            self.lines_ += self.ax_.plot(self.k, values, **style)
        if plot_chance_level:
            for line, (values, *_) in zip(self.lines_, chance, strict=True):
                label = "chance" if not self.chance_lines_ else None
                self.chance_lines_ += self.ax_.plot(self.k, values, ":", color=line.get_color(), lw=1, label=label)
        log_scale(self.ax_, "x")
        self.ax_.set(xlabel="k", ylabel="recall at k", ylim=(0, 1))
        self.ax_.legend()
        return self


def _chance(queries, n_gallery, ks):
    """Probability that one of k rows drawn without replacement matches, averaged over the queries."""
    n_matches, n_queries = np.unique(np.unique(queries, return_counts=True)[1], return_counts=True)
    found = hypergeom.sf(0, n_gallery, n_matches[:, None], np.minimum(ks, n_gallery))  # (matches, k)
    return np.average(found, axis=0, weights=n_queries)
