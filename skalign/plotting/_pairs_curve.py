"""Recall against the number of pairs: a learning curve over pairs. Fits clones; knows scikit-learn, not torch."""

from numbers import Integral

import numpy as np
from sklearn import get_config
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils.parallel import Parallel, delayed

from .._core.ranks import recalls
from ._shared import (
    DIRECTIONS,
    aligner_name,
    check_direction,
    check_k,
    curves,
    embed_present,
    import_pyplot,
    known_pairs,
    log_scale,
    make_axes,
    next_color,
)


class PairsCurveDisplay:
    """Recall on held-out rows against the number of pairs fitted on: mean and one standard deviation over draws.

    The numbers of one draw are nested: few pairs are among the many. Rows whose pair is left out stay, as unpaired rows.
    Make it by `from_estimator`.

    Parameters
    ----------
    n_pairs : ndarray of int, shape (q,)
        Numbers of pairs, ascending.
    recall : dict of str to ndarray of shape (q, n_repeats)
        Under "x_to_y" and "y_to_x", the mean over `k`.
    k : int or sequence of int
        How many nearest rows count.
    name : str, default=None
        Name in the legend.

    Attributes
    ----------
    lines_ : list of matplotlib Line2D
        Mean over the draws for each direction drawn.
    bands_ : list of matplotlib PolyCollection
        One standard deviation to either side; empty with one draw.
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import PairsCurveDisplay
    >>> data = make_two_views(random_state=0)
    >>> display = PairsCurveDisplay.from_estimator(
    ...     CCATeacher(reg=0.1), data.X, data.Y, data.paired_idx, X_test=data.X_test, Y_test=data.Y_test, random_state=0
    ... )
    >>> display.n_pairs
    array([ 10,  25,  50, 100])
    >>> len(display.plot(direction="both").lines_)  # the same numbers, drawn again
    2
    """

    def __init__(self, n_pairs, recall, k, *, name=None):
        self.n_pairs = n_pairs
        self.recall = recall
        self.k = k
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        Y,
        paired_idx=None,
        *,
        X_test,
        Y_test,
        test_idx=None,
        X_unpaired=None,
        Y_unpaired=None,
        n_pairs=(0.1, 0.25, 0.5, 1.0),
        n_repeats=5,
        k=(1, 5, 10),
        random_state=None,
        n_jobs=None,
        direction="mean",
        name=None,
        view_names=("X", "Y"),
        ax=None,
        line_kw=None,
    ):
        """Fit clones on growing subsets of the pairs and draw their recall on test rows.

        Parameters
        ----------
        estimator : aligner
            Or a search or pipeline that holds one; cloned, so it need not be fitted.
        X : array-like of shape (n_x, d_x)
            First view. A row that is NaN throughout is a missing sample.
        Y : array-like of shape (n_y, d_y)
            Second view.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            The pairs to draw from, as `fit` takes them.
        X_test, Y_test : array-like of shape (m_x, d_x) and (m_y, d_y)
            Rows to find and to be found, not among those fitted on.
        test_idx : None, bool (m,), int (q,) or int (q, 2), default=None
            Pairs among them, as in :func:`skalign.metrics.recall_at_k`.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, for every fit.
        n_pairs : array-like of int or float, shape (q,), default=(0.1, 0.25, 0.5, 1.0)
            Numbers of pairs, or shares of them between 0 and 1.
        n_repeats : int, default=5
            Draws of the pairs. With all pairs, the draws differ only by what the aligner itself draws.
        k : int or sequence of int, default=(1, 5, 10)
            How many nearest rows count; of several the mean is drawn.
        random_state : int, RandomState instance or None, default=None
            Draws the pairs.
        n_jobs : int, default=None
            Fits at a time, as in scikit-learn.
        direction : {"mean", "both", "x_to_y", "y_to_x"}, default="mean"
            The mean of both directions as one curve (to compare aligners), a curve for each, or one direction.
        name : str, default=None
            Name in the legend; None is the aligner's class.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure. Several aligners may share one.
        line_kw : dict, default=None
            Passed to matplotlib's ``plot`` for the curves.

        Returns
        -------
        display : PairsCurveDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no aligner, a number is out of its range, a view is not finite, or pairs are not legal.
        """
        import_pyplot()  # whatever is missing is told before the fits, which take long
        check_direction(direction)
        pairs, missing_x, missing_y = known_pairs(X, Y, paired_idx)
        sizes = _check_sizes(n_pairs, len(pairs))
        if not isinstance(n_repeats, Integral) or n_repeats < 1:
            raise ValueError(f"`n_repeats` must be an integer of at least 1, but it is {n_repeats!r}.")
        rng = check_random_state(random_state)
        orders = [rng.permutation(len(pairs)) for _ in range(n_repeats)]
        pools = {"X_unpaired": X_unpaired, "Y_unpaired": Y_unpaired}
        given = {name: pool for name, pool in pools.items() if pool is not None}
        test, ks = (X_test, Y_test, test_idx), check_k(k)
        found = Parallel(n_jobs=n_jobs)(
            delayed(_fit_and_find)(
                estimator,
                X,
                Y,
                {"paired_idx": _as_mask(pairs[np.sort(order[:size])], len(missing_x), len(missing_y)), **given},
                test,
                ks,
            )
            for size in sizes
            for order in orders
        )
        found = np.reshape(found, (len(sizes), n_repeats, 2))
        recall = {way: found[..., column] for column, way in enumerate(DIRECTIONS)}
        display = cls(sizes, recall, k, name=aligner_name(estimator) if name is None else name)
        return display.plot(ax, direction=direction, view_names=view_names, line_kw=line_kw)

    def plot(self, ax=None, *, direction="mean", view_names=("X", "Y"), line_kw=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        direction : {"mean", "both", "x_to_y", "y_to_x"}, default="mean"
            The mean of both directions as one curve (to compare aligners), a curve for each, or one direction.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        line_kw : dict, default=None
            Passed to matplotlib's ``plot`` for the curves.

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
        found = curves(self.recall, direction, self.name, view_names)
        self.ax_ = make_axes(ax)
        self.figure_ = self.ax_.figure
        self.lines_, self.bands_ = [], []
        for values, color, label in found:
            mean, deviation = values.mean(axis=1), values.std(axis=1)
            style = {"marker": "o", "label": label, "color": color or next_color(self.ax_), **(line_kw or {})}
            self.lines_ += self.ax_.plot(self.n_pairs, mean, **style)
            if values.shape[1] > 1:
                band = mean - deviation, mean + deviation
                style = {"color": self.lines_[-1].get_color(), "alpha": 0.2, "lw": 0}
                self.bands_.append(self.ax_.fill_between(self.n_pairs, *band, **style))
        log_scale(self.ax_, "x", ticks=np.unique(np.concatenate([line.get_xdata() for line in self.ax_.lines])))
        ks = ", ".join(f"R@{k}" for k in np.atleast_1d(self.k))
        self.ax_.set(xlabel="pairs", ylabel=ks if np.ndim(self.k) == 0 else f"mean of {ks}")
        self.ax_.set_ylim(bottom=0)
        self.ax_.legend()
        return self


def _check_sizes(n_pairs, n_total):
    sizes = np.unique(n_pairs)
    if np.issubdtype(sizes.dtype, np.floating) and sizes.size and sizes[0] > 0 and sizes[-1] <= 1:
        sizes = np.unique(np.maximum(np.round(sizes * n_total).astype(int), 1))
    if not np.issubdtype(sizes.dtype, np.integer) or sizes.size == 0 or sizes[0] < 1 or sizes[-1] > n_total:
        raise ValueError(
            f"`n_pairs` must hold integers from 1 to {n_total}, the number of pairs, or shares of it in (0, 1], but it is "
            f"{n_pairs!r}."
        )
    return sizes


def _as_mask(pairs, n_x, n_y):
    """Pairs in the form that is safe inside a search, a mask, if they have it."""
    if n_x != n_y or (pairs[:, 0] != pairs[:, 1]).any():
        return pairs
    return np.isin(np.arange(n_x), pairs[:, 0])


def _fit_and_find(estimator, X, Y, arguments, test, ks):
    """Recall of a clone fitted on some pairs, in both directions."""
    fitted = clone(estimator)
    routed = get_config()["enable_metadata_routing"]
    pools = arguments.keys() & {"X_unpaired", "Y_unpaired"}
    if isinstance(fitted, Pipeline) and pools and not (routed and pools <= set(fitted.transform_input or ())):
        raise ValueError(
            "The pools would not pass the steps of the pipeline before its aligner. Pass them as further rows of X and Y, "
            "which are in no pair; or turn metadata routing on and name them in the pipeline's `transform_input`."
        )
    if isinstance(fitted, Pipeline) and not routed:
        step = next((name for name, step in fitted.steps if hasattr(step, "transform_y")), fitted.steps[-1][0])
        arguments = {f"{step}__{name}": value for name, value in arguments.items()}
    fitted.fit(X, Y, **arguments)
    return recalls(*embed_present(fitted, *test), ks).mean(axis=1)
