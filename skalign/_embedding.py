"""Rows through whatever holds a fitted aligner: the aligner itself, a pipeline, a search. Knows scikit-learn, not torch."""

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline

from ._arrays import to_numpy
from ._core.rows import normalize_rows


def embed_by(estimator, rows, view):
    """Rows of "x" or "y" as a fitted estimator, which is used as it is, embeds them: an array of unit rows."""
    try:
        embedded = np.asarray(to_numpy(estimator.transform(rows) if view == "x" else embed_y(estimator, rows)))
    except NotFittedError as error:
        raise NotFittedError(
            f"`aligner` is used as it is, and this {type(estimator).__name__} is not fitted. Fit it first; for searches, "
            "pipelines and whatever else clones, which drops a fit, pass FrozenEstimator(aligner)."
        ) from error
    lengths = np.sqrt(np.einsum("ij,ij->i", embedded, embedded))
    return embedded if np.abs(lengths - 1).max(initial=0) < 1e-3 else normalize_rows(embedded)  # saves a copy


def embed_y(estimator, Y):
    """Rows of Y in the space in which a fitted estimator puts X."""
    G = _find_and_embed_y(estimator, Y)
    if G is None:
        raise ValueError(
            f"Expected an aligner, which has `transform_y`, but found none in {estimator!r}. Pass an aligner, or a Pipeline "
            "that holds one."
        )
    return G


def _find_and_embed_y(estimator, Y):
    """`embed_y`, or None if there is no aligner."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if not isinstance(estimator, Pipeline):
        return estimator.transform_y(Y) if hasattr(estimator, "transform_y") else None
    G = None
    for _, step in estimator.steps:
        if G is None:
            G = _find_and_embed_y(step, Y)
        elif step not in (None, "passthrough"):
            G = step.transform(G)
    return G
