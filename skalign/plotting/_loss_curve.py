"""What training minimised, step by step. Reads fitted attributes alone."""

import numpy as np
from sklearn.pipeline import Pipeline

from .._trained import LOOK_EVERY
from ._shared import FURTHER_COLORS, OTHERS_COLOR, PAIRS_COLOR, aligner_name, log_scale, make_axes, next_color

_COLORS = {
    "loss": FURTHER_COLORS[0],
    "siglip": PAIRS_COLOR,
    "info_nce": PAIRS_COLOR,
    "divergence": FURTHER_COLORS[1],
    "structure": FURTHER_COLORS[1],
}


class LossCurveDisplay:
    """The loss of a trained aligner and its terms against the step, and the recall of held-out pairs if any were.

    The loss is drawn on a logarithmic scale, or a linear one if a term is not positive. A term that is the loss itself or
    zero throughout is left out. Make it by `from_estimator`.

    Parameters
    ----------
    loss_curve : dict of str to sequence of float
        `loss_curve_` of an aligner: a value for each step, or, of "validation", for each look at the held-out pairs.
    best_iter : int, default=None
        Step whose state was kept.
    name : str, default=None
        Title.

    Attributes
    ----------
    lines_ : dict of str to matplotlib Line2D
        A curve for each term drawn, "validation" among them.
    best_line_ : matplotlib Line2D or None
        Mark of the step whose state was kept.
    ax_, validation_ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn; `validation_ax_`, the scale on the right, is None without held-out pairs.

    Examples
    --------
    >>> from skalign import SOTAlign
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import LossCurveDisplay
    >>> data = make_two_views(random_state=0)
    >>> aligner = SOTAlign(max_iter=20, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> display = LossCurveDisplay.from_estimator(aligner)
    >>> sorted(display.lines_)
    ['divergence', 'loss', 'siglip']
    >>> display.plot().ax_.get_xlabel()  # the same numbers, drawn again
    'step'
    """

    def __init__(self, loss_curve, *, best_iter=None, name=None):
        self.loss_curve = loss_curve
        self.best_iter = best_iter
        self.name = name

    @classmethod
    def from_estimator(cls, estimator, *, name=None, ax=None):
        """Draw the loss curve of a fitted aligner.

        Parameters
        ----------
        estimator : fitted aligner with `loss_curve_`
            Or a search, pipeline or hubness correction that holds one.
        name : str, default=None
            Title; None is the aligner's class.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LossCurveDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the aligner has no loss curve.
        """
        trained = _trained(estimator)
        if trained is None:
            raise ValueError(
                f"{aligner_name(estimator)} has no `loss_curve_`: it is not fitted, or solved in closed form. Pass a fitted "
                "aligner that is trained, such as SOTAlign."
            )
        best = getattr(trained, "best_iter_", None)
        return cls(trained.loss_curve_, best_iter=best, name=name or type(trained).__name__).plot(ax)

    def plot(self, ax=None):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        self : object
            The display, with its attributes set.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        losses = {name: np.asarray(values) for name, values in self.loss_curve.items() if name != "validation"}
        total = losses.get("loss")
        shown = {name: v for name, v in losses.items() if name == "loss" or (v.any() and not np.array_equal(v, total))}
        n_iter = max(map(len, losses.values()), default=0)
        self.ax_ = make_axes(ax)
        self.figure_ = self.ax_.figure
        self.validation_ax_ = self.best_line_ = None
        self.lines_ = {}
        for name, values in shown.items():
            steps = np.arange(1, len(values) + 1)
            style = {"label": name, "zorder": 2.5 if name == "loss" else 2}
            self.lines_[name] = self.ax_.plot(steps, values, color=_COLORS.get(name) or next_color(self.ax_), **style)[
                0
            ]
        if all((values > 0).all() for values in shown.values()):
            log_scale(self.ax_, "y")
        self.ax_.set(xlabel="step", ylabel="loss", title=self.name)
        if "validation" in self.loss_curve:
            looks = self.loss_curve["validation"]
            steps = np.minimum(LOOK_EVERY * np.arange(len(looks)), n_iter)
            self.validation_ax_ = self.ax_.twinx()
            style = {"color": FURTHER_COLORS[2], "marker": ".", "label": "held-out pairs"}
            self.lines_["validation"] = self.validation_ax_.plot(steps, looks, **style)[0]
            self.validation_ax_.set_ylabel("recall of held-out pairs")
            self.validation_ax_.set_ylim(0, 1.1 * max(looks) or 1)
        if self.best_iter is not None:
            style = {"color": OTHERS_COLOR, "ls": "--", "label": f"kept: step {self.best_iter}"}
            self.best_line_ = self.ax_.axvline(self.best_iter, **style)
        handles = [*self.lines_.values(), *([self.best_line_] if self.best_line_ else [])]
        if ax is None:  # below the axes: with two scales no place inside is sure to be free
            place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 3, "frameon": False}
        else:  # whose figure may have no room below
            place = {"loc": "best", "fontsize": "small"}
        self.ax_.legend(handles=handles, **place)
        return self


def _trained(estimator):
    """What holds the loss curve: the estimator, or what a search, pipeline or hubness correction fitted; else None."""
    if hasattr(estimator, "loss_curve_"):
        return estimator
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else []
    inner = [getattr(estimator, name, None) for name in ("best_estimator_", "estimator_")]
    return next(
        (found for step in [*steps, *inner] if step is not None and (found := _trained(step)) is not None), None
    )
