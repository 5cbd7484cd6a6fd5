"""Tables in cross-validation: rows that are missing, and what the folds do to the arguments of a fit. Knows scikit-learn."""

import inspect
import os
import sys

import numpy as np
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _num_samples

from ._arrays import FLOATS, to_numpy
from ._pairs import as_index_array, missing_rows


def refuse_wrong_folds():
    """Refuse a fit inside cross-validation whose pairs, pools or scores would be silently wrong.

    Cross-validation slices an argument of `fit` if it is as long as X, whatever it means, and hands it on to `score` only
    with metadata routing. The fit alone cannot see that, so the call around it is looked up; where there is none, or
    scikit-learn calls in another way, nothing is refused.
    """
    call = _cross_validation_around()
    if call is None:
        return
    X, n = call["X"], _num_samples(call["X"])
    params = {name.split("__")[-1]: value for name, value in (call["fit_params"] or {}).items() if value is not None}
    for name in params.keys() & {"X_unpaired", "Y_unpaired"}:
        pool = params[name]
        if isinstance(pool, os.PathLike) or _num_samples(pool) != n:  # scikit-learn hands on a path as it is
            continue
        if isinstance(pool, str | list | tuple):
            raise ValueError(
                f"`{name}` is a string or list of length {n}, as long as X, so cross-validation slices it as if it "
                "belonged to the rows of X. Pass a pathlib.Path, join two shards, or pass an array one row shorter."
            )
        raise ValueError(
            f"`{name}` has {n} rows, as many as X, so cross-validation slices it as if it belonged to the rows of X. "
            f"Leave one row out, {name}[1:], and the pool stays whole in every fold."
        )
    if "paired_idx" not in params:
        return
    mask = as_index_array(to_numpy(params["paired_idx"]))
    if mask.dtype != bool:
        raise ValueError(
            "`paired_idx` holds row numbers, which cannot follow the folds of cross-validation. Pass a boolean mask, "
            f"np.isin(np.arange({n}), rows), or a table made by skalign.model_selection.to_row_aligned."
        )
    if mask.shape != (n,) or "score_params" not in call or "paired_idx" in (call["score_params"] or {}):
        return  # a mask that does not fit is for the fit to refuse
    scorer = call.get("scorer")
    if any(not _is_known(each) for each in getattr(scorer, "_scorers", {None: scorer}).values()):
        return  # what a user wrote may know the pairs by itself
    rows = np.arange(n)[call["test"]]
    rows = rows[~mask[rows]]
    n_wrong = np.count_nonzero(~missing_in_any(len(rows), _safe_indexing(X, rows), _safe_indexing(call["y"], rows)))
    if n_wrong:
        raise ValueError(
            f"`score` does not get `paired_idx` and would take {n_wrong} unpaired rows of this test part for pairs. Test on "
            "pairs only, cv=PairedKFold(5, paired=mask), or let the mask reach splitter and score: "
            "sklearn.set_config(enable_metadata_routing=True)."
        )


def _is_known(scorer):
    """Whether a scorer is scikit-learn's, which calls `score`, or ours."""
    module = type(scorer).__module__.split(".")[0]
    return scorer is None or (module in ("sklearn", "skalign") and not inspect.ismethod(scorer))


def missing_in_any(n_rows, *views):
    """Rows of a table that are NaN throughout in one of its views, read as `fit` reads them; text misses none."""
    missing = np.zeros(n_rows, dtype=bool)
    for view in views:
        if view is not None:
            try:
                view = check_array(to_numpy(view), dtype=FLOATS, ensure_2d=False, ensure_all_finite="allow-nan")
            except (TypeError, ValueError):  # no numbers: what an earlier step of a pipeline is to read
                continue
            missing |= missing_rows(view.reshape(len(view), -1))
    return missing


def _cross_validation_around():
    """Arguments of the innermost call of scikit-learn's that fits a fold, or None if there is none."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_name == "__call__" and frame.f_globals.get("__name__") == "sklearn.utils.parallel":
            found = frame.f_locals
            try:
                call = inspect.signature(found["self"].function).bind(*found["args"], **found["kwargs"]).arguments
            except (AttributeError, KeyError, TypeError, ValueError):  # a later scikit-learn calls in another way
                return None
            if call.keys() >= {"X", "y", "test", "fit_params"}:
                return call
    return None
