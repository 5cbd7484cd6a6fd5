"""Transport plans as pictures. Loads torch, for Sinkhorn."""

import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array

from .._arrays import to_numpy
from .._base import check_embedded
from .._core.rows import normalize_rows
from .._core.sinkhorn import sinkhorn
from .._pairs import check_pairs
from ._shared import OTHERS_COLOR, innermost, log_scale, make_axes, present_rows

_EPSILONS = {"student": ("epsilon", 0.1), "teacher": ("epsilon_teacher", 0.02)}  # settings, and SOTAlign's defaults


class PlanDisplay:
    """A transport plan as a heat map, sorted so that the known pairs stand on the diagonal.

    Colours tell the mass of each couple in units of the uniform plan, on a logarithmic scale from 1, no preference, to the
    most that uniform marginals allow. Rows of X go down in their order, those in a pair first; rows of Y go right as their
    first partner does. Thin lines part the rows in no pair. Make it by `from_estimator` or `from_predictions`, or of any plan,
    such as that of :func:`skalign.losses.sinkhorn`.

    Parameters
    ----------
    plan : array-like of shape (n_x, n_y)
        Mass of each couple, at least 0, of any total.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        Which row belongs to which column.
    name : str, default=None
        Name in the title.

    Attributes
    ----------
    plan : ndarray of shape (n_x, n_y)
        Of mass 1, in the order given.
    pairs : ndarray of int, shape (p, 2)
        Rows and columns that belong together.
    mass_on_pairs, chance : float
        Share of the mass that lies on the pairs, and that of the uniform plan.
    x_order, y_order : ndarray of int, shape (n_x,) and (n_y,)
        Rows and columns as they are drawn.
    image_ : matplotlib AxesImage
        The heat map.
    colorbar_ : matplotlib Colorbar
        Its scale.
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from skalign import SOTAlign
    >>> from skalign.datasets import make_two_views
    >>> from skalign.plotting import PlanDisplay
    >>> data = make_two_views(random_state=0)
    >>> aligner = SOTAlign(max_iter=20, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> display = PlanDisplay.from_estimator(aligner, data.X_test, data.Y_test, data.test_idx)
    >>> display.mass_on_pairs > display.chance
    True

    The same of embeddings, and drawn again in other colours:

    >>> F, G = aligner.transform(data.X_test, data.Y_test)
    >>> display = PlanDisplay.from_predictions(F, G, data.test_idx, epsilon=0.05)
    >>> display.plot(cmap="Greys").image_.get_cmap().name
    'Greys'
    """

    def __init__(self, plan, paired_idx=None, *, name=None):
        plan = check_array(to_numpy(plan), dtype=np.float64, input_name="plan")
        if plan.min() < 0 or plan.sum() == 0:
            raise ValueError(
                f"A plan must hold mass, at least 0, but its smallest entry is {plan.min():g} and its total {plan.sum():g}."
            )
        self.plan = plan / plan.sum()
        self.pairs = check_pairs(to_numpy(paired_idx), *plan.shape)
        self.name = name
        self.mass_on_pairs = float(self.plan[tuple(self.pairs.T)].sum())
        self.chance = len(self.pairs) / plan.size
        by_row = self.pairs[np.lexsort(self.pairs.T[::-1])]
        self.x_order, self.y_order = (_paired_first(of, n) for of, n in zip(by_row.T, plan.shape, strict=True))

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        Y,
        paired_idx=None,
        *,
        which="student",
        epsilon=None,
        name=None,
        view_names=("X", "Y"),
        ax=None,
    ):
        """Solve for the plan between rows of two views, in the space of an aligner or of its teacher, and draw it.

        Parameters
        ----------
        estimator : fitted aligner
            Or a search or pipeline that ends in one. A hubness correction is left out: training compares plans before it.
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            A batch, some tens to a few thousand rows. Rows that are NaN throughout are left out.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs among them.
        which : {"student", "teacher"}, default="student"
            Whose plan: that of the aligner, or of its `teacher_`.
        epsilon : float, default=None
            Entropic temperature, positive, in units of cosine. None is `epsilon` or `epsilon_teacher` of the aligner, for
            those that have none 0.1 or 0.02.
        name : str, default=None
            Name in the title; None is `which`.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : PlanDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no aligner or no teacher, a view is not finite, the pairs are not legal, or epsilon is not positive.
        """
        if which not in _EPSILONS:
            raise ValueError(f"`which` must be 'student' or 'teacher', but it is {which!r}.")
        X, Y, pairs = present_rows(X, Y, paired_idx)
        aligner, X, Y = innermost(estimator, X, Y)
        setting, default = _EPSILONS[which]
        if epsilon is None:
            epsilon = getattr(aligner, setting, default)
        if which == "teacher":
            teacher = getattr(aligner, "teacher_", None)
            if teacher is None:
                raise ValueError(
                    f"{type(aligner).__name__} was fitted without a teacher. Draw which='student', or fit a "
                    "SOTAlignTransformer with alpha > 0."
                )
            aligner = teacher
        return cls.from_predictions(
            aligner.transform(X),
            aligner.transform_y(Y),
            pairs,
            epsilon=epsilon,
            name=which if name is None else name,
            view_names=view_names,
            ax=ax,
        )

    @classmethod
    def from_predictions(cls, F, G, paired_idx=None, *, epsilon=0.1, name=None, view_names=("X", "Y"), ax=None):
        """Solve for the plan between embedded rows, by :func:`skalign.losses.sinkhorn` of their cosines, and draw it.

        Parameters
        ----------
        F, G : array-like of shape (n_x, d) and (n_y, d)
            Embedded views, finite, in one space.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Pairs among their rows.
        epsilon : float, default=0.1
            Entropic temperature, positive, in units of cosine.
        name : str, default=None
            Name in the title.
        view_names : pair of str, default=("X", "Y")
            What the views are, such as ``("picture", "text")``.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : PlanDisplay
            What was drawn, with its numbers.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If a view is not finite, the views differ in columns, the pairs are not legal, or epsilon is not positive.
        """
        F, G, pairs = check_embedded(F, G, paired_idx)
        K = torch.as_tensor(normalize_rows(F) @ normalize_rows(G).T)  # (n_x, n_y)
        result = sinkhorn(K, epsilon)
        if not result.converged:
            warnings.warn(
                f"The plan drawn misses its marginals by {result.error:.1e} (L1). Raise `epsilon`, which is {epsilon}.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return cls(result.plan, pairs, name=name).plot(ax, view_names=view_names)

    def plot(self, ax=None, *, view_names=("X", "Y"), cmap="Blues"):
        """Draw the plan.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.
        view_names : pair of str, default=("X", "Y")
            What the views are.
        cmap : str or matplotlib Colormap, default="Blues"
            Colours of the mass.

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
        shown = self.plan[np.ix_(self.x_order, self.y_order)] * self.plan.size
        limits = {"vmin": 1, "vmax": max(2, min(self.plan.shape))}
        style = {"norm": "log", "cmap": cmap, "aspect": "auto", "interpolation": "nearest"}
        self.image_ = self.ax_.imshow(np.maximum(shown, 1), **limits, **style)
        for line, paired, n_rows in zip(
            (self.ax_.axhline, self.ax_.axvline), self.pairs.T, self.plan.shape, strict=True
        ):
            n_paired = len(np.unique(paired))
            if n_paired < n_rows:
                line(n_paired - 0.5, color=OTHERS_COLOR, lw=0.8)
        self.colorbar_ = self.figure_.colorbar(self.image_, ax=self.ax_, label="mass / uniform")
        log_scale(self.colorbar_.ax, "y")
        title = f"{100 * self.mass_on_pairs:.1f} % on the pairs (uniform {100 * self.chance:.2g} %)"
        self.ax_.set(ylabel=view_names[0], xlabel=view_names[1], title=f"{self.name}: {title}" if self.name else title)
        return self


def _paired_first(paired, n_rows):
    """All rows: those in a pair in the order they are named, then the others."""
    _, first = np.unique(paired, return_index=True)
    named = paired[np.sort(first)]
    return np.concatenate([named, np.setdiff1d(np.arange(n_rows), named)])
