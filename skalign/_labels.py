"""The one judge of class labels of two views. Knows NumPy and the judge of pairs, no estimators, no torch."""

import warnings

import numpy as np

from ._arrays import to_numpy
from ._pairs import missing_rows


def judge_labels(views, held_out, labels_x, labels_y):
    """Rows of X and rows of Y of each class that is labelled on both sides; of each row, whether it is labelled or held out.

    Held-out rows are of no class.
    """
    labels_x, labels_y = _check_labels(labels_x, views.X, "x"), _check_labels(labels_y, views.Y, "y")
    of_x, of_y = labels_x[views.pairs[:, 0]], labels_y[views.pairs[:, 1]]
    unlike = np.flatnonzero((of_x != of_y) & (of_x >= 0) & (of_y >= 0))
    if unlike.size:
        i, j = views.pairs[unlike[0]]
        raise ValueError(
            f"Row {i} of X and row {j} of Y are a pair, but their labels are {labels_x[i]} and {labels_y[j]}. Mend the "
            "labels, or pass `paired_idx`: [] if nothing is paired."
        )
    held_x, held_y = (None, None) if held_out is None else held_out.T
    rows_x, rows_y = _labelled_rows(labels_x, views.X, held_x), _labelled_rows(labels_y, views.Y, held_y)
    in_x, in_y = np.unique(labels_x[rows_x]), np.unique(labels_y[rows_y])
    common, alone = np.intersect1d(in_x, in_y), np.setxor1d(in_x, in_y)
    if not len(common):
        raise ValueError(
            f"No class is labelled in both views: `labels_x` holds {in_x[:5].tolist()}, `labels_y` {in_y[:5].tolist()}. "
            "Use the same numbers for the same classes, and -1 for unknown."
        )
    if len(alone):
        warnings.warn(
            f"{len(alone)} classes are labelled in one view only and are left out, the first being {alone[0]}. Label some "
            "rows of the other view, or set them to -1.",
            UserWarning,
            stacklevel=5,
        )
    members = [rows_x[labels_x[rows_x] == c] for c in common], [rows_y[labels_y[rows_y] == c] for c in common]
    return members, (_taken(labels_x, held_x), _taken(labels_y, held_y))


def _labelled_rows(labels, view, held_out):
    rows = np.flatnonzero(labels >= 0)
    rows = rows[~missing_rows(view[rows])]
    return rows if held_out is None else np.setdiff1d(rows, held_out)


def _taken(labels, held_out):
    taken = labels >= 0
    if held_out is not None:
        taken[held_out] = True
    return taken


def _check_labels(labels, view, name):
    if labels is None:
        raise ValueError(
            f"Labels must come for both views, but `labels_{name}` is None. Pass it, with -1 for unknown classes."
        )
    labels = np.asarray(to_numpy(labels))
    if labels.shape != (len(view),) or labels.dtype.kind not in "iu" or labels.min(initial=0) < -1:
        raise ValueError(
            f"`labels_{name}` must hold an integer for each row of {name.upper()}, shape ({len(view)},), of at least -1 "
            f"(unknown), but its shape is {labels.shape} and its type {labels.dtype}. Encode classes as 0, 1, 2, ..."
        )
    return labels
