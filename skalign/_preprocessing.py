"""Preprocessing of views: transformers of the user and kernel features behind them, as functions of rows."""

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.utils import check_array

from ._pairs import missing_rows
from ._sources import MappedRows, Rows

_UNEVEN = 20  # ratio of the outer deciles of column deviations above which a view counts as features of mixed units
_LEARN_NOTHING = (FrozenEstimator, FunctionTransformer, Normalizer)  # transformers that all rows teach nothing
_LARGE = 1 << 28  # numbers that rows in memory may come to as features; more are formed as they are read
_BLOCK = 1 << 14  # rows embedded at a time


def fit_transformer(transformer, rows):
    """A fitted preprocessing step, or None to leave the view as it is."""
    if transformer is None:
        return None
    if not isinstance(transformer, str):
        return _without_strides(_fitted(clone(transformer), rows))
    scaler = _fitted(StandardScaler(), rows) if isinstance(rows, Rows) else None  # one look at the rows is enough
    deviation = rows.std(axis=0, dtype=np.float64) if scaler is None else np.sqrt(scaler.var_)
    low, high = np.quantile(deviation[deviation > 0], [0.1, 0.9]) if deviation.any() else (0, 0)
    if high <= _UNEVEN * low:
        return None
    return scaler or StandardScaler().fit(rows)


def _fitted(transformer, rows):
    """A transformer fitted on rows; on those out of core block by block, if it can be."""
    if not isinstance(rows, Rows):
        return transformer.fit(rows, None)  # a FrozenEstimator wants a y
    if isinstance(transformer, _LEARN_NOTHING):
        return transformer.fit(rows[:1], None)
    if not hasattr(transformer, "partial_fit"):
        return transformer.fit(np.asarray(rows), None)
    for block in rows.blocks():
        transformer.partial_fit(block)
    return transformer


def _without_strides(transformer):
    """Its arrays in one piece: products of matrices round by how they lie in memory, and files keep no strides."""
    for step in dict(getattr(transformer, "steps", {"": transformer})).values():
        for name, value in vars(step).items() if hasattr(step, "fit") else ():
            if isinstance(value, np.ndarray):
                setattr(step, name, np.asarray(value, order="C"))
    return transformer


def chain(transformer, features=None):
    """A transformer and kernel features, one after the other, as a function of rows; None if there is neither."""
    if transformer is None:
        return features

    def preprocessed(rows):
        rows = check_array(transformer.transform(rows), dtype=rows.dtype, input_name="the preprocessed view")
        return rows if features is None else features(rows)

    return preprocessed


def apply(step, rows):
    """Preprocessed rows in the type they had; missing rows stay missing."""
    if step is None:
        return rows
    if isinstance(rows, Rows):
        return MappedRows(rows, lambda block: apply(step, block))
    missing = missing_rows(rows)
    present = step(rows[~missing])
    if not missing.any():
        return present
    full = np.full((len(rows), present.shape[1]), np.nan, dtype=rows.dtype)
    full[~missing] = present
    return full


def check_width(view, features, row):
    """Refuse rows that are not as wide as the landmarks of a former fit."""
    if features is not None and features.landmarks.shape[1] != row.shape[1]:
        raise ValueError(
            f"warm_start=True goes on from the fitted heads, but the weights of that of {view} are for landmarks of "
            f"{features.landmarks.shape[1]} columns, and {view} now has {row.shape[1]}. Keep the columns of both views, or set "
            "warm_start=False."
        )


def apply_to_all(step, features, rows):
    """`apply`, but where that would take more than a GiB or two the rows are preprocessed as they are read."""
    if features is None or isinstance(rows, Rows) or len(rows) * len(features.landmarks) <= _LARGE:
        return apply(step, rows)
    return apply(step, rows) if missing_rows(rows).any() else MappedRows(rows, step)


def block_by_block(embed, step, rows):
    """Embeddings of preprocessed rows, which may be much wider than either, so there are only some of them at a time."""
    starts = range(_BLOCK, len(rows), _BLOCK)
    return np.concatenate([embed(apply(step, block)) for block in np.split(rows, starts)])
