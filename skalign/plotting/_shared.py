"""What the displays share: colours, axes, and the embeddings they show. Knows scikit-learn, not torch."""

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _num_samples

from .._arrays import to_numpy
from .._base import check_embedded
from .._embedding import embed_y
from .._folds import missing_in_any
from .._pairs import check_pairs

DIRECTIONS = ("x_to_y", "y_to_x")

# Okabe and Ito's colours, which the colour-blind tell apart; one meaning each in every display
X_COLOR, Y_COLOR = "#0072B2", "#D55E00"  # a view, and its rows as queries
PAIRS_COLOR, OTHERS_COLOR = "#009E73", "#7F7F7F"
FURTHER_COLORS = ("#000000", "#CC79A7", "#E69F00", "#56B4E9")  # whatever else there is to tell apart


def import_pyplot():
    """matplotlib's pyplot, which is there only with an extra."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "skalign.plotting draws with matplotlib, which is not installed. "
            'Install it with `pip install "skalign[plots]"`.'
        ) from error
    return plt


def make_axes(ax, n_axes=1, **settings):
    """The axes given, or `n_axes` new ones side by side in a figure of their own."""
    return import_pyplot().subplots(1, n_axes, layout="constrained", **settings)[1] if ax is None else ax


def next_color(ax):
    """A colour without a meaning that no line has yet; after the last, that of matplotlib's own cycle (None)."""
    used = {line.get_color() for line in ax.lines}
    return next((color for color in FURTHER_COLORS if color not in used), None)


def log_scale(ax, axis, ticks=None):
    """Make the "x" or "y" axis logarithmic, with plain numbers at these ticks, or at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    ax.set(**{f"{axis}scale": "log"})
    scale = getattr(ax, f"{axis}axis")
    scale.set_major_locator(LogLocator(subs=(1, 2, 5)) if ticks is None else FixedLocator(ticks))
    scale.set_major_formatter(StrMethodFormatter("{x:g}"))
    scale.set_minor_locator(NullLocator())


def check_direction(direction):
    """Refuse what is no direction."""
    if direction not in ("both", "mean", *DIRECTIONS):
        raise ValueError(
            f"`direction` must be 'both', 'mean', 'x_to_y' or 'y_to_x', but it is {direction!r}. "
            "Use 'mean' to compare aligners in one picture."
        )


def curves(values, direction, name, view_names):
    """What to draw of values by direction: for each curve its values, colour (None if it is free) and label."""
    check_direction(direction)
    x, y = view_names
    ways = {"x_to_y": (X_COLOR, f"{x} → {y}"), "y_to_x": (Y_COLOR, f"{y} → {x}")}
    if direction == "mean":
        return [((values["x_to_y"] + values["y_to_x"]) / 2, None, name or "mean of both directions")]
    return [
        (values[way], color, f"{name}, {label}" if name else label)
        for way, (color, label) in ways.items()
        if direction in (way, "both")
    ]


def aligner_name(estimator):
    """Class name of an aligner, or of the one in a search or pipeline."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if isinstance(estimator, Pipeline):
        estimator = next((step for _, step in estimator.steps if hasattr(step, "transform_y")), estimator)
    return type(
        getattr(estimator, "estimator", estimator) if isinstance(estimator, FrozenEstimator) else estimator
    ).__name__


def check_k(k):
    """Several k as an ascending array."""
    ks = np.unique(k)
    if not np.issubdtype(ks.dtype, np.integer) or ks.size == 0 or ks[0] < 1:
        raise ValueError(
            f"`k` must be an integer of at least 1, or several, but it is {k!r}. Pass k=10, or k=[1, 5, 10]."
        )
    return ks


def known_pairs(X, Y, paired_idx):
    """The pairs by their rows, and which rows of each view are missing."""
    n_x, n_y = _num_samples(X), _num_samples(Y)
    missing = missing_in_any(n_x, X), missing_in_any(n_y, Y)
    if paired_idx is None and n_x == n_y:
        paired_idx = ~(missing[0] | missing[1])
    pairs = check_pairs(to_numpy(paired_idx), n_x, n_y)
    for gone, rows, name in zip(missing, pairs.T, "XY", strict=True):
        if gone[rows].any():
            raise ValueError(
                f"`paired_idx` pairs row {rows[np.argmax(gone[rows])]} of {name}, but that row is entirely NaN, which marks a "
                "missing sample. Unmark the pair or fill the row."
            )
    return pairs, *missing


def present_rows(X, Y, paired_idx):
    """Both views without the rows that are missing, and the pairs among those that remain."""
    pairs, *missing = known_pairs(X, Y, paired_idx)
    views = [
        _safe_indexing(view, np.flatnonzero(~gone)) if gone.any() else view
        for view, gone in zip((X, Y), missing, strict=True)
    ]
    return *views, np.column_stack([np.cumsum(~gone)[rows] - 1 for gone, rows in zip(missing, pairs.T, strict=True)])


def embed_present(estimator, X, Y, paired_idx):
    """Embeddings of the rows that are present, and the pairs among them; through searches and pipelines."""
    X, Y, pairs = present_rows(X, Y, paired_idx)
    G = embed_y(estimator, Y)
    return check_embedded(estimator.transform(X), G, pairs)


def innermost(estimator, X, Y):
    """The aligner inside a search, pipeline, hubness correction or `SOTAlign`, and the views as it takes them."""
    if hasattr(estimator, "best_estimator_"):
        return innermost(estimator.best_estimator_, X, Y)
    if isinstance(estimator, Pipeline):
        return innermost(estimator[-1], estimator[:-1].transform(X) if len(estimator) > 1 else X, Y)
    if hasattr(estimator, "estimator_"):
        return innermost(estimator.estimator_, X, Y)
    if hasattr(estimator, "_second_stage_and_views"):
        return estimator._second_stage_and_views(X, Y)
    if not hasattr(estimator, "transform_y"):
        raise ValueError(
            f"Expected an aligner, which has `transform_y`, but found none at the end of {estimator!r}. Pass an aligner."
        )
    return estimator, X, Y
