"""Retrieval metrics of two embedded views, and scorers of them. Ranks come from the core, pairs from their judge."""

import inspect
from numbers import Integral

import numpy as np
from sklearn.utils import check_array

from ._arrays import to_numpy
from ._base import check_embedded
from ._core.ranks import best_match_ranks
from ._scorers import RetrievalScorer

__all__ = [
    "foscttm",
    "make_retrieval_scorer",
    "mean_recall",
    "mean_reciprocal_rank",
    "median_rank",
    "recall_at_k",
    "retrieval_report",
]

_DIRECTIONS = ("x_to_y", "y_to_x")
_RECALL_KS = (1, 5, 10)


def recall_at_k(F, G, paired_idx=None, *, k=1, direction="mean", sample_weight=None):
    """Share of queries that find a true match among their `k` nearest gallery rows by cosine.

    .. math:: R@k = \\sum_i w_i [r_i \\le k] / \\sum_i w_i

    where :math:`r_i` is one plus the number of non-matching gallery rows at least as close to query i as its best
    true match. Ties count against the model, so constant embeddings score 0.

    Parameters
    ----------
    F : array-like of shape (n_x, d)
        Embedded view X: NumPy, torch, pandas or lists; finite. Rows are normalised here.
    G : array-like of shape (n_y, d)
        Embedded view Y in the same space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        Which row of F belongs to which row of G; None pairs row i with row i. Queries are the distinct rows named by
        the pairs, the gallery is every row of the other view. With several true matches, any of them counts.
    k : int, default=1
        How many nearest rows count, at least 1.
    direction : {"mean", "x_to_y", "y_to_x"}, default="mean"
        Rows of F ask for rows of G, the reverse, or the mean of both.
    sample_weight : array-like of shape (n_x,), default=None
        Weights of the rows of F, not negative. A query from G has the weight of its first partner in `paired_idx`.

    Returns
    -------
    recall : float
        Between 0 and 1 (best).

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, the pairs are not legal, `k` or `direction` is none of
        the above, or the weights have another length, a negative entry, or sum to zero over the queries.

    Notes
    -----
    R@k falls as the gallery grows: compare galleries of equal size only. ``k=1, direction="mean"`` is the MeanR@1 of
    [1]_.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, section 6.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import recall_at_k
    >>> F = np.eye(3)
    >>> G = np.eye(3)[[0, 2, 1]]
    >>> round(recall_at_k(F, G), 3)
    0.333
    >>> recall_at_k(F, G, [[0, 0], [1, 2], [2, 1]])
    1.0
    """
    if not isinstance(k, Integral) or k < 1:
        raise ValueError(
            f"`k` must be an integer of at least 1, but it is {k!r}. Pass k=1 to ask for the nearest row only."
        )
    F, G, pairs = check_embedded(F, G, paired_idx)
    weight = None if sample_weight is None else _check_weight(sample_weight, len(F))
    matches = _matches(F, G, pairs, direction)
    return _mean(_recall(found, k, _query_weight(weight, pairs, way)) for way, found in matches.items())


def mean_recall(F, G, paired_idx=None):
    """Mean of six recalls: at 1, 5 and 10, in both directions.

    .. math:: (R@1 + R@5 + R@10)_{x \\to y} / 6 + (R@1 + R@5 + R@10)_{y \\to x} / 6

    with the recalls of :func:`recall_at_k` [1]_.

    Parameters
    ----------
    F, G : array-like of shape (n_x, d) and (n_y, d)
        Embedded views, finite, in one space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        As in :func:`recall_at_k`: queries are the rows named, the gallery is every row of the other view.

    Returns
    -------
    recall : float
        Between 0 and 1 (best).

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, or the pairs are not legal.

    References
    ----------
    .. [1] Hodosh, Young, Hockenmaier, "Framing Image Description as a Ranking Task", Journal of Artificial Intelligence
       Research 47, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import mean_recall
    >>> mean_recall(np.eye(3), np.eye(3))
    1.0
    """
    return _mean_recall(_matches(*check_embedded(F, G, paired_idx)))


def median_rank(F, G, paired_idx=None, *, direction="mean"):
    """Median rank of the best true match.

    .. math:: \\mathrm{median}_i \\, r_i

    with the ranks :math:`r_i` of :func:`recall_at_k` [1]_.

    Parameters
    ----------
    F, G : array-like of shape (n_x, d) and (n_y, d)
        Embedded views, finite, in one space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        As in :func:`recall_at_k`: queries are the rows named, the gallery is every row of the other view.
    direction : {"mean", "x_to_y", "y_to_x"}, default="mean"
        "mean" is the mean of the two medians.

    Returns
    -------
    rank : float
        1 is best; the worst is one plus the number of non-matching gallery rows.

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, the pairs are not legal, or `direction` is unknown.

    References
    ----------
    .. [1] Hodosh, Young, Hockenmaier, "Framing Image Description as a Ranking Task", Journal of Artificial Intelligence
       Research 47, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import median_rank
    >>> median_rank(np.eye(3), np.ones((3, 3)))
    3.0
    """
    matches = _matches(*check_embedded(F, G, paired_idx), direction)
    return _mean(_median_rank(found) for found in matches.values())


def mean_reciprocal_rank(F, G, paired_idx=None, *, direction="mean"):
    """Mean of one over the rank of the best true match.

    .. math:: \\mathrm{mean}_i \\, 1 / r_i

    with the ranks :math:`r_i` of :func:`recall_at_k` [1]_.

    Parameters
    ----------
    F, G : array-like of shape (n_x, d) and (n_y, d)
        Embedded views, finite, in one space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        As in :func:`recall_at_k`: queries are the rows named, the gallery is every row of the other view.
    direction : {"mean", "x_to_y", "y_to_x"}, default="mean"
        "mean" is the mean of both directions.

    Returns
    -------
    mrr : float
        Above 0, at most 1 (best).

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, the pairs are not legal, or `direction` is unknown.

    References
    ----------
    .. [1] Voorhees, "The TREC-8 Question Answering Track Report", TREC-8, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import mean_reciprocal_rank
    >>> mean_reciprocal_rank(np.eye(2), np.ones((2, 2)))
    0.5
    """
    matches = _matches(*check_embedded(F, G, paired_idx), direction)
    return _mean(_mrr(found) for found in matches.values())


def foscttm(F, G, paired_idx=None):
    """Fraction of samples closer than the true match, by cosine.

    .. math:: \\frac{1}{2} \\sum_{x \\to y,\\, y \\to x} \\mathrm{mean}_i \\, (r_i - 1) / n_i

    [1]_, with the ranks :math:`r_i` of :func:`recall_at_k` and the number :math:`n_i` of gallery rows that are no match of
    query i; a query without any counts 0. A row exactly as close as the match counts as closer.

    Parameters
    ----------
    F, G : array-like of shape (n_x, d) and (n_y, d)
        Embedded views, finite, in one space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        As in :func:`recall_at_k`: queries are the rows named, the gallery is every row of the other view.

    Returns
    -------
    fraction : float
        0 is best, 0.5 is chance for one-to-one pairs, 1 is worst. Unlike R@k, it hardly depends on the gallery's size.

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, or the pairs are not legal.

    References
    ----------
    .. [1] Liu, Huang, Singh, Vert, Noble, "Jointly embedding multiple single-cell omics measurements", WABI 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import foscttm
    >>> foscttm(np.eye(3), np.eye(3)), foscttm(np.eye(3), np.ones((3, 3)))
    (0.0, 1.0)
    """
    return _foscttm(_matches(*check_embedded(F, G, paired_idx)))


def retrieval_report(F, G, paired_idx=None):
    """All retrieval metrics of this module from one pass over the ranks.

    Parameters
    ----------
    F, G : array-like of shape (n_x, d) and (n_y, d)
        Embedded views, finite, in one space.
    paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
        As in :func:`recall_at_k`: queries are the rows named, the gallery is every row of the other view.

    Returns
    -------
    report : dict of str to float
        For each of "x_to_y", "y_to_x" and "mean" the entries ``*_r1``, ``*_r5``, ``*_r10``, ``*_median_rank`` and
        ``*_mrr``; then ``mean_recall`` and ``foscttm``.

    Raises
    ------
    ValueError
        If a view is not finite, the views differ in columns, or the pairs are not legal.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.metrics import retrieval_report
    >>> report = retrieval_report(np.eye(3), np.eye(3)[[0, 2, 1]])
    >>> report["mean_r5"], report["x_to_y_median_rank"]
    (1.0, 3.0)
    """
    matches = _matches(*check_embedded(F, G, paired_idx))
    ways = {way: _one_way(found) for way, found in matches.items()}
    ways["mean"] = {name: _mean(values[name] for values in ways.values()) for name in ways["x_to_y"]}
    report = {f"{way}_{name}": value for way, values in ways.items() for name, value in values.items()}
    return report | {"mean_recall": _mean_recall(matches), "foscttm": _foscttm(matches)}


def make_retrieval_scorer(metric="recall_at_k", *, gallery_size=None, random_state=0, **arguments):
    """A scorer for `GridSearchCV` and `cross_val_score`: embeds the pairs of a test part and measures retrieval.

    The aligner may stand anywhere in a :class:`~sklearn.pipeline.Pipeline`: rows of X pass all steps, rows of Y pass the
    aligner and the steps after it. Queries and gallery are the pairs; rows that are equal, such as an image that stands in the
    table once for each of its captions, are one row with several matches. With metadata routing on, `paired_idx` given to
    a search reaches the scorer; without it, rows that are NaN throughout in X or Y are no pairs.

    Parameters
    ----------
    metric : {"recall_at_k", "mean_recall", "mean_reciprocal_rank", "median_rank", "foscttm"} or str, default="recall_at_k"
        Function of this module. The last two are better when smaller, and the scorer returns them negated. Or a recall by its
        name in :func:`retrieval_report`, such as "mean_r1" or "x_to_y_r10".
    gallery_size : int, default=None
        Measure on that many of the pairs, drawn anew for each test part, so that scores of unequal parts compare. None
        is all.
    random_state : int or RandomState instance, default=0
        Draws them.
    **arguments
        Passed to the metric, such as ``k=10, direction="y_to_x"``.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, Y, paired_idx=None)`` returns a float, larger is better.

    Raises
    ------
    ValueError
        If there is no such metric, or it does not take the arguments; when called, if there are fewer pairs than
        `gallery_size`, or no aligner.

    Examples
    --------
    >>> from sklearn.model_selection import cross_val_score
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.metrics import make_retrieval_scorer
    >>> from skalign.model_selection import PairedKFold
    >>> data = make_two_views(90, 0, 0, random_state=0)  # all of them pairs
    >>> scorer = make_retrieval_scorer(k=5, gallery_size=20)
    >>> cross_val_score(CCATeacher(reg=0.1), data.X, data.Y, cv=PairedKFold(3), scoring=scorer).shape
    (3,)
    """
    if isinstance(metric, str) and metric in _RECALLS and not arguments:
        metric, arguments = "recall_at_k", _RECALLS[metric]
    if not isinstance(metric, str) or metric not in _SCORED:
        raise ValueError(
            f"`metric` must be one of {sorted(_SCORED)}, or, without further arguments, of {sorted(_RECALLS)}, but it is "
            f"{metric!r}."
        )
    taken = inspect.signature(_SCORED[metric][0]).parameters.keys() - {"F", "G", "paired_idx", "sample_weight"}
    if arguments.keys() - taken:
        raise ValueError(f"{metric} takes {sorted(taken) or 'no arguments'} here, but got {sorted(arguments)}.")
    if gallery_size is not None and not (isinstance(gallery_size, Integral) and gallery_size >= 1):
        raise ValueError(f"`gallery_size` must be an integer of at least 1, or None, but it is {gallery_size!r}.")
    return RetrievalScorer(metric, *_SCORED[metric], gallery_size, random_state, arguments)


def _check_weight(sample_weight, n_x):
    weight = check_array(to_numpy(sample_weight), ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weight.shape != (n_x,):
        raise ValueError(
            f"`sample_weight` must have shape ({n_x},), one weight a row of F, but its shape is {weight.shape}. "
            "Give rows of F that stand in no pair 0."
        )
    if weight.min() < 0:
        raise ValueError(
            f"`sample_weight` must not be negative, but its smallest entry is {weight.min()}. Use 0 to ignore a query."
        )
    return weight


def _query_weight(weight, pairs, way):
    """Weight of each query of this direction, in ascending order of queries: that of the row of F in its first pair."""
    if weight is None:
        return None
    _, first = np.unique(pairs[:, _DIRECTIONS.index(way)], return_index=True)
    weight = weight[pairs[first, 0]]
    if weight.sum() == 0:
        raise ValueError(
            f"`sample_weight` must leave a query, but it sums to zero over the queries of {way}. "
            "Give a row of F in `paired_idx` a positive weight."
        )
    return weight


def _matches(F, G, pairs, direction="mean"):
    """Ranks of each direction asked for, by its name."""
    if direction not in ("mean", *_DIRECTIONS):
        raise ValueError(
            f"`direction` must be 'mean', 'x_to_y' or 'y_to_x', but it is {direction!r}. "
            "Use 'x_to_y' when rows of F are the queries."
        )
    views = {"x_to_y": (F, G, pairs), "y_to_x": (G, F, pairs[:, ::-1])}
    return {way: best_match_ranks(*views[way]) for way in _DIRECTIONS if direction in (way, "mean")}


def _one_way(found):
    recalls = {f"r{k}": _recall(found, k) for k in _RECALL_KS}
    return recalls | {"median_rank": _median_rank(found), "mrr": _mrr(found)}


def _recall(found, k, weight=None):
    return float(np.average(found.ranks <= k, weights=weight))


def _median_rank(found):
    return float(np.median(found.ranks))


def _mrr(found):
    return float(np.mean(1 / found.ranks))


def _mean_recall(matches):
    return _mean(_recall(found, k) for found in matches.values() for k in _RECALL_KS)


def _foscttm(matches):
    return _mean(np.mean(found.fractions_closer) for found in matches.values())


def _mean(values):
    return float(np.mean(list(values)))


_RECALLS = {  # by their names in a report
    f"{way}_r{k}": {"k": k, "direction": way} for way in ("mean", *_DIRECTIONS) for k in _RECALL_KS
}

_SCORED = {  # metrics by name, and whether more is better
    "recall_at_k": (recall_at_k, 1),
    "mean_recall": (mean_recall, 1),
    "mean_reciprocal_rank": (mean_reciprocal_rank, 1),
    "median_rank": (median_rank, -1),
    "foscttm": (foscttm, -1),
}
