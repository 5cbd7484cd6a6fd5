"""The one judge of pairs: which row of X belongs to which row of Y. Knows NumPy and SciPy, no estimators, no torch."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ._core.rows import distinct_rows
from ._sources import JoinedRows, OtherRows, Rows, stored_rows

_BLOCK = 8192  # rows taken at once where all are read
_CV_HINT = (
    "Inside cross-validation (GridSearchCV, cross_val_score) integers cannot follow the folds; "
    "pass a boolean mask of length len(X), or NaN rows, instead."
)

_SWAPPED = "With its columns swapped it fits: pass paired_idx[:, ::-1], (row of X, row of Y). "


@dataclass(frozen=True)
class PairedViews:
    """Two views after the judgement: the rows that are pairs, and the rows that are free.

    Attributes
    ----------
    X, Y : ndarray of shape (n_x, d_x) and (n_y, d_y)
        The views as passed; entirely missing rows may still hold NaN.
    pairs : ndarray of int, shape (p, 2)
        Row ``k`` says that ``X[pairs[k, 0]]`` and ``Y[pairs[k, 1]]`` belong together.
    X_pool, Y_pool : ndarray or Rows of shape (q_x, d_x) and (q_y, d_y), or None
        Further unpaired rows. Where they are `Rows`, which are not in memory, so is what is made of them below.
    """

    X: np.ndarray
    Y: np.ndarray
    pairs: np.ndarray
    X_pool: np.ndarray | Rows | None = None
    Y_pool: np.ndarray | Rows | None = None

    @property
    def X_pairs(self):
        """Paired rows of X, shape (p, d_x), aligned with `Y_pairs`."""
        return self.X[self.pairs[:, 0]]

    @property
    def Y_pairs(self):
        """Paired rows of Y, shape (p, d_y), aligned with `X_pairs`."""
        return self.Y[self.pairs[:, 1]]

    @property
    def x_free(self):
        """Rows of X that are present and in no pair, shape (u_x,)."""
        return _free_rows(self.X, self.pairs[:, 0])

    @property
    def y_free(self):
        """Rows of Y that are present and in no pair, shape (u_y,)."""
        return _free_rows(self.Y, self.pairs[:, 1])

    @property
    def X_unpaired(self):
        """Free rows of X, then its pool, shape (u_x + q_x, d_x)."""
        return stack(self.X[self.x_free], self.X_pool)

    @property
    def Y_unpaired(self):
        """Free rows of Y, then its pool, shape (u_y + q_y, d_y)."""
        return stack(self.Y[self.y_free], self.Y_pool)

    @property
    def X_all(self):
        """Each present row of X once, then its pool."""
        return stack(self.X[~missing_rows(self.X)], self.X_pool)

    @property
    def Y_all(self):
        """Each present row of Y once, then its pool."""
        return stack(self.Y[~missing_rows(self.Y)], self.Y_pool)


def judge_pairs(X, Y, paired_idx=None, X_pool=None, Y_pool=None, *, required=True):
    """Judge every accepted form of `paired_idx` and return the views it describes.

    Parameters
    ----------
    X, Y : ndarray of shape (n_x, d_x) and (n_y, d_y)
        Numeric views. A row that is NaN throughout is a missing sample; any other NaN or infinity is refused.
    paired_idx : None, bool (n,), int (p,) or int (p, 2)
        See :func:`check_pairs`.
    X_pool, Y_pool : ndarray, Rows or None
        Finite unpaired rows of any length.
    required : bool, default=True
        Whether there must be a pair; else a `paired_idx` that is empty, or False throughout, means that there is none.

    Returns
    -------
    views : PairedViews

    Raises
    ------
    ValueError
        If a pair names a missing row or one out of range, no pair is left, or a view is not finite.
    """
    missing_x, missing_y = missing_rows(X), missing_rows(Y)
    _refuse_nonfinite(X, missing_x, "X")
    _refuse_nonfinite(Y, missing_y, "Y")
    if paired_idx is None and len(X) == len(Y):
        paired_idx = ~(missing_x | missing_y)
        if required and not paired_idx.any():
            raise ValueError(
                "Expected at least one pair, but every row is entirely NaN in X or in Y. "
                "Leave at least one row present in both views."
            )
    if not required and _names_none(paired_idx):
        pairs = np.empty((0, 2), dtype=np.int64)
    else:
        pairs = check_pairs(paired_idx, len(X), len(Y))
    for missing, column, name in ((missing_x, 0, "X"), (missing_y, 1, "Y")):
        bad = pairs[missing[pairs[:, column]], column]
        if bad.size:
            raise ValueError(
                f"`paired_idx` pairs row {bad[0]} of {name}, but that row is entirely NaN, which marks a missing sample. "
                "Unmark the pair or fill the row."
            )
    return PairedViews(
        X=X,
        Y=Y,
        pairs=pairs,
        X_pool=X_pool,
        Y_pool=Y_pool,
    )


def check_pairs(paired_idx, n_x, n_y):
    """Turn any accepted form of `paired_idx` into explicit rows.

    Parameters
    ----------
    paired_idx : None or array-like
        - None: row i of X pairs row i of Y; needs ``n_x == n_y``;
        - bool of shape (n,): True marks a pair; needs ``n_x == n_y == n``;
        - int of shape (p,): row i of X pairs row i of Y for these i;
        - int of shape (p, 2): rows (of X, of Y). One row may stand in several pairs; an exact duplicate is
          dropped with a warning.
    n_x, n_y : int
        Numbers of rows.

    Returns
    -------
    pairs : ndarray of int64, shape (p, 2), p >= 1

    Raises
    ------
    ValueError
        For another form, a wrong length, a row out of range, or no pair at all.
    """
    if paired_idx is None:
        if n_x != n_y:
            raise ValueError(
                f"Without `paired_idx`, X and Y must have equally many rows (row i pairs row i), but X has {n_x} and "
                f"Y has {n_y}. Pass `paired_idx` as integers of shape (p, 2), or the surplus as `X_unpaired` / `Y_unpaired`."
            )
        paired_idx = np.ones(n_x, dtype=bool)
    idx = as_index_array(paired_idx)
    if idx.size == 0:
        raise ValueError(
            "Expected at least one pair, but `paired_idx` is empty. Aligning two spaces needs one pair or more."
        )
    if idx.dtype == bool:
        return _pairs_from_mask(idx, n_x, n_y)
    if idx.ndim == 1 and len(idx) == n_x > 2 and idx.min() >= 0 and idx.max() <= 1:
        raise ValueError(
            "`paired_idx` holds one 0 or 1 a row, which as integers are row numbers 0 and 1. For a mask pass .astype(bool)."
        )
    if idx.ndim == 1:
        idx = np.column_stack([idx, idx])
    if idx.ndim != 2 or idx.shape[1] != 2:
        raise ValueError(
            f"`paired_idx` must be a boolean mask (n,), integers (p,) or integers (p, 2), but its shape is {idx.shape}. "
            "For pairs (i, j) stack them as np.column_stack([i, j])."
        )
    is_swapped = idx.min() >= 0 and idx[:, 0].max() < n_y and idx[:, 1].max() < n_x
    for column, n_rows, name in ((0, n_x, "X"), (1, n_y, "Y")):
        bad = idx[(idx[:, column] < 0) | (idx[:, column] >= n_rows), column]
        if bad.size:
            raise ValueError(
                f"`paired_idx` points to row {bad[0]} of {name}, but {name} has {n_rows} rows. Indices are zero-based "
                f"and not negative; drop the pair or pass the full {name}. {_SWAPPED if is_swapped else ''}{_CV_HINT}"
            )
    return _drop_duplicates(idx.astype(np.int64, copy=False))


def read_pairs(X, Y, paired_idx, *, whole=False):
    """Bring into memory what must be there of views that are not: with pairs by number their paired rows, else the `whole`.

    Arrays stay as they are, and so do memory maps that are wanted whole.

    Returns
    -------
    X, Y : array-like
        The views, or their paired rows, each once.
    paired_idx : None, bool (n,), int (p,) or int (p, 2)
        The pairs among these.
    X_rest, Y_rest : Rows or None
        The other rows of a view of which the paired ones were read, if there are any.
    """
    whole = whole or paired_idx is None or as_index_array(paired_idx).dtype == bool
    views = [X, Y]
    stored = [stored_rows(view, name, allow_missing=whole) for view, name in zip(views, "XY", strict=True)]
    if whole:
        for side, rows in enumerate(stored):
            if rows is not None and not isinstance(views[side], np.ndarray):
                views[side] = rows[:]
    if whole or stored == [None, None]:
        return *views, paired_idx, None, None
    sizes = [len(view if rows is None else rows) for view, rows in zip(views, stored, strict=True)]
    pairs, rests = check_pairs(paired_idx, *sizes).copy(), [None, None]
    for side, rows in enumerate(stored):
        if rows is not None:
            numbers, pairs[:, side] = np.unique(pairs[:, side], return_inverse=True)
            views[side] = rows[numbers]
            rests[side] = OtherRows(rows, numbers) if len(numbers) < len(rows) else None
    return *views, pairs, *rests


def distinct_partners(view, rows):
    """The different ones among the rows of a view that stand in pairs, by number, and which of them each is.

    Equal rows, such as copies of an image in a table with a row for each of its captions, are one.
    """
    numbers, of = np.unique(rows, return_inverse=True)
    first, same = distinct_rows(view[numbers])
    return numbers[first], same[of]


def group_pairs(pairs):
    """Number the pairs that hang together: pairs that share a row of X or of Y, directly or through others.

    Parameters
    ----------
    pairs : ndarray of int, shape (p, 2)

    Returns
    -------
    groups : ndarray of int, shape (p,)
        From 0 up; keep a group on one side of every split.
    """
    if not len(pairs):
        return np.empty(0, dtype=np.int64)
    x_of = np.unique(pairs[:, 0], return_inverse=True)[1]
    y_of = np.unique(pairs[:, 1], return_inverse=True)[1] + x_of.max() + 1
    size = y_of.max() + 1
    graph = coo_array((np.ones(len(pairs)), (x_of, y_of)), shape=(size, size))
    return connected_components(graph, directed=False)[1][x_of]


def as_index_array(paired_idx):
    """`paired_idx` as a bool or integer array; anything else is refused rather than rounded."""
    idx = np.asarray(paired_idx)
    if idx.size == 0:
        return idx
    if idx.dtype == object:  # a pandas column that once held a missing value
        kinds = {type(value) for value in idx.ravel()}
        if kinds <= {bool, np.bool_}:
            return idx.astype(bool)
        if kinds <= {int}:
            return idx.astype(np.int64)
    if idx.dtype != bool and not np.issubdtype(idx.dtype, np.integer):
        raise ValueError(
            f"`paired_idx` must hold booleans or integers, but it holds {idx.dtype}. "
            "Convert a mask with .astype(bool), row numbers with .astype(int), and names of rows with "
            "pandas.Index(names).get_indexer(column)."
        )
    return idx


def _names_none(paired_idx):
    if paired_idx is None:
        return False
    idx = as_index_array(paired_idx)
    return idx.size == 0 or (idx.dtype == bool and not idx.any())


def _pairs_from_mask(mask, n_x, n_y):
    if mask.ndim != 1:
        raise ValueError(
            f"A boolean `paired_idx` must be one-dimensional, but its shape is {mask.shape}. Pass one entry a row."
        )
    if n_x != n_y:
        raise ValueError(
            f"A boolean `paired_idx` needs equally many rows in X and Y, but X has {n_x} and Y has {n_y}. "
            "Pass integers of shape (p, 2) instead, or the surplus as `X_unpaired` / `Y_unpaired`."
        )
    if len(mask) != n_x:
        raise ValueError(
            f"A boolean `paired_idx` needs one entry a row, but it has {len(mask)} and X has {n_x} rows. "
            "Build it as np.isin(np.arange(len(X)), rows)."
        )
    rows = np.flatnonzero(mask)
    if rows.size == 0:
        raise ValueError(
            "Expected at least one pair, but the boolean `paired_idx` has no True entry. Mark one pair or more; "
            "in cross-validation cv=PairedKFold(5) gives every part some."
        )
    return np.column_stack([rows, rows])


def _drop_duplicates(pairs):
    unique, first = np.unique(pairs, axis=0, return_index=True)
    if len(unique) == len(pairs):
        return pairs
    warnings.warn(
        f"`paired_idx` holds {len(pairs) - len(unique)} exact duplicates among its {len(pairs)} pairs; each pair is used once. "
        "Pass np.unique(paired_idx, axis=0) to silence this.",
        UserWarning,
        stacklevel=3,
    )
    return pairs[np.sort(first)]


def missing_rows(view):
    """Rows that are NaN throughout, as a mask. Only rows that start with NaN are looked at in full."""
    missing = np.zeros(len(view), dtype=bool)
    if view.shape[1]:
        candidates = np.flatnonzero(np.isnan(view[:, 0]))
        missing[candidates] = np.isnan(view[candidates]).all(axis=1)
    return missing


def _refuse_nonfinite(view, missing, name):
    with np.errstate(over="ignore", invalid="ignore"):
        if not missing.any() and np.isfinite(view.sum(dtype=np.float64)):
            return  # no mask as large as the view
    finite = np.isfinite(view).all(axis=1) | missing
    if not finite.all():
        row = int(np.argmin(finite))
        kind = "NaN" if np.isnan(view[row]).any() else "infinity"
        raise ValueError(
            f"Input {name} contains {kind} in {np.count_nonzero(~finite)} of {len(view)} rows, the first being row {row}. "
            "Expected finite numbers, or rows that are NaN throughout to mark a missing sample; drop or impute the others."
        )


def _free_rows(view, paired_rows):
    free = ~missing_rows(view)
    free[paired_rows] = False
    return np.flatnonzero(free)


def stack(rows, pool):
    """Rows, then those of a pool if there is one."""
    if pool is None:
        return rows
    on_disk = isinstance(rows, Rows) or isinstance(pool, Rows)
    return JoinedRows([rows, pool]) if on_disk else np.concatenate([rows, pool])


def mean_and_scale(view, pool):
    """Mean of all present rows of a view and its pool, and the root mean square of their centred entries (1 for 0)."""
    n_rows = sum(len(block) for block in _blocks(view, pool))
    mean = sum(block.sum(axis=0) for block in _blocks(view, pool)) / n_rows
    square = sum(np.square(block - mean).sum() for block in _blocks(view, pool)) / (n_rows * view.shape[1])
    return mean, float(np.sqrt(square)) or 1.0


def some_rows(view, pool, n_rows, rng, without=None):
    """Up to `n_rows` of the present rows of a view and its pool, in their order; all of them if there are no more.

    `without` is None, or tells of each row of the view whether it is left out.
    """
    of_view = np.arange(len(view)) if without is None else np.flatnonzero(~without)
    n_all = len(of_view) + (0 if pool is None else len(pool))
    # of many, draws with replacement, of which a few are lost: no permutation as long as the view
    rows = np.unique(rng.randint(n_all, size=n_rows)) if n_all > n_rows else np.arange(n_all)
    drawn = view[of_view[rows[rows < len(of_view)]]]
    return stack(drawn[~missing_rows(drawn)], None if pool is None else pool[rows[rows >= len(of_view)] - len(of_view)])


def spread_rows(view, paired, free, pool, n_rows):
    """Up to `n_rows` rows of a view: paired ones, by their numbers, then free ones and its pool, each evenly spaced."""
    paired = paired[_evenly_spaced(len(paired), n_rows)]
    others = _evenly_spaced(len(free) + (0 if pool is None else len(pool)), n_rows - len(paired))
    further = None if pool is None else pool[others[others >= len(free)] - len(free)]
    rows = np.concatenate([paired, free[others[others < len(free)]]])
    return view[rows] if further is None else np.concatenate([view[rows], further])


def _evenly_spaced(n, n_wanted):
    """Numbers from 0 to n - 1, evenly spaced, as many as are wanted, or all."""
    return np.linspace(0, n - 1, min(n, n_wanted)).astype(np.int64)


def _blocks(view, pool):
    """All present rows of a view and its pool in float64, a few at a time, so that no copy as large as the view is made."""
    for part in (view, pool):
        for start in range(0, 0 if part is None else len(part), _BLOCK):
            block = part[start : start + _BLOCK]
            yield block[~missing_rows(block)].astype(np.float64)
