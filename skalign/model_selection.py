"""Splits that know pairs, and tables that hold them. Knows NumPy and scikit-learn, not torch."""

import warnings
from numbers import Integral

import numpy as np
from sklearn.model_selection import BaseCrossValidator, GroupKFold, GroupShuffleSplit, KFold, ShuffleSplit
from sklearn.utils import Bunch, _safe_indexing, check_array, check_consistent_length
from sklearn.utils.validation import _num_samples

from ._arrays import floats_of, to_numpy
from ._base import check_pool
from ._core.rows import distinct_rows
from ._folds import missing_in_any
from ._pairs import as_index_array, check_pairs, group_pairs, stack
from ._sources import OtherRows, Rows, stored_rows

__all__ = ["PairedKFold", "PairedShuffleSplit", "hold_out_rows", "split_pairs", "to_row_aligned"]

_GROUPS = "Pass `groups` to the search or the splitter, those that to_row_aligned returns."
_LISTED_ONCE = "List each row once, with all its pairs, and split with split_pairs."


class _PairedSplitter(BaseCrossValidator):
    """What both splitters share: who is paired, and unpaired rows in every training part."""

    # with metadata routing on, a mask given to a search reaches the splitter without further requests
    __metadata_request__split = {"paired_idx": True, "groups": True}

    def split(self, X, y=None, groups=None, paired_idx=None):
        """Generate training and test rows.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            First view.
        y : array-like of shape (n, d_y), default=None
            Second view.
        groups : array-like of shape (n,), default=None
            Pairs of one group stay on one side, such as the captions of one image; see :func:`to_row_aligned`.
        paired_idx : bool (n,), default=None
            Which rows are pairs, if the constructor was not told; routed by scikit-learn where metadata routing is on.

        Yields
        ------
        train : ndarray of int, shape (n - t,)
            The other pairs and all unpaired rows, ascending.
        test : ndarray of int, shape (t,)
            Pairs only, ascending.

        Raises
        ------
        ValueError
            If the mask does not fit, or there are fewer pairs (or groups of them) than parts.

        Warns
        -----
        UserWarning
            If, without `groups`, pairs to test on share a row, by its numbers, with pairs to train on.
        """
        n = _num_samples(X)
        check_consistent_length(X, y, groups)
        pairs = np.flatnonzero(self._mask(X, y, paired_idx, n))
        of_pairs = None if groups is None else np.asarray(to_numpy(groups))[pairs]
        same = _hanging_together(X, y, pairs) if groups is None else None
        for test in self._tests(pairs, of_pairs):
            if same is not None:
                same = _warn_of_leaks(same, np.isin(pairs, test), _GROUPS)
            yield np.setdiff1d(np.arange(n), test), np.sort(test)

    def get_n_splits(self, X=None, y=None, groups=None, paired_idx=None):
        """Number of splits.

        Parameters
        ----------
        X, y, groups, paired_idx : object, default=None
            Ignored; they are there because scikit-learn passes them.

        Returns
        -------
        n_splits : int
            As given to the constructor.

        Examples
        --------
        >>> from skalign.model_selection import PairedKFold
        >>> PairedKFold(3).get_n_splits()
        3
        """
        return self.n_splits

    def _mask(self, X, y, paired_idx, n):
        given = self.paired if self.paired is not None else paired_idx
        if given is None:
            return ~missing_in_any(n, X, y)
        mask = as_index_array(to_numpy(given))
        if mask.dtype != bool or mask.shape != (n,):
            hint = "" if mask.dtype == bool else f" For row numbers pass np.isin(np.arange({n}), rows)."
            raise ValueError(
                f"{type(self).__name__} needs a boolean mask with one entry a row, shape ({n},), but it got {mask.dtype} of "
                f"shape {mask.shape}.{hint}"
            )
        return mask

    def _refuse_few(self, n_found, n_needed, groups):
        if n_found < n_needed:
            kind = "pairs" if groups is None else "groups of pairs"
            step = "Lower `n_splits`" if n_found >= 2 else "Add pairs"
            raise ValueError(
                f"{type(self).__name__} needs at least {n_needed} {kind}, but there are {n_found}. {step}, or check the mask."
            )


class PairedKFold(_PairedSplitter):
    """K folds over the pairs; unpaired rows stand in every training part.

    Every test part holds equally many pairs, since recall at k falls as the gallery grows: pairs left over by the division
    are in no test part. With `groups`, the parts are as equal as whole groups allow, or, shuffled, hold equally many groups;
    then compare recalls on galleries of one size, see :func:`skalign.metrics.make_retrieval_scorer`.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.
    paired : bool array-like of shape (n,), default=None
        Which rows of the table are pairs. None: the mask that is routed as `paired_idx`, else the rows that are NaN
        throughout in neither view.
    shuffle : bool, default=False
        Shuffle the pairs before they are dealt into folds.
    random_state : int, RandomState instance or None, default=None
        Shuffles.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.model_selection import PairedKFold
    >>> mask = np.array([True, False, True, True, False, True])
    >>> for train, test in PairedKFold(2, paired=mask).split(np.zeros((6, 3))):
    ...     print(train, test)
    [1 3 4 5] [0 2]
    [0 1 2 4] [3 5]
    """

    def __init__(self, n_splits=5, *, paired=None, shuffle=False, random_state=None):
        _check_n_splits(n_splits, 2)
        if random_state is not None and not shuffle:
            raise ValueError("`random_state` has no effect without `shuffle`. Set shuffle=True, or leave it at None.")
        self.n_splits = n_splits
        self.paired = paired
        self.shuffle = shuffle
        self.random_state = random_state

    def _tests(self, pairs, groups):
        settings = {"shuffle": self.shuffle, "random_state": self.random_state}
        if groups is None:
            self._refuse_few(len(pairs), self.n_splits, groups)
            size = len(pairs) // self.n_splits
            for _, test in KFold(self.n_splits, **settings).split(pairs):
                yield pairs[test[:size]]
        else:
            self._refuse_few(len(np.unique(groups)), self.n_splits, groups)
            for _, test in GroupKFold(self.n_splits, **settings).split(pairs, groups=groups):
                yield pairs[test]


class PairedShuffleSplit(_PairedSplitter):
    """Random test parts of the pairs; unpaired rows stand in every training part.

    Parameters
    ----------
    n_splits : int, default=10
        Number of splits.
    test_size : float or int, default=0.1
        Share or number of the pairs to test on; with `groups`, of the groups.
    paired : bool array-like of shape (n,), default=None
        As in :class:`PairedKFold`.
    random_state : int, RandomState instance or None, default=None
        Draws the test parts.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.model_selection import PairedShuffleSplit
    >>> splitter = PairedShuffleSplit(2, test_size=1, paired=np.array([True, False, True]), random_state=0)
    >>> [test.tolist() for train, test in splitter.split(np.zeros((3, 2)))]
    [[2], [0]]
    """

    def __init__(self, n_splits=10, *, test_size=0.1, paired=None, random_state=None):
        _check_n_splits(n_splits, 1)
        self.n_splits = n_splits
        self.test_size = test_size
        self.paired = paired
        self.random_state = random_state

    def _tests(self, pairs, groups):
        self._refuse_few(len(pairs) if groups is None else len(np.unique(groups)), 2, groups)
        kind = ShuffleSplit if groups is None else GroupShuffleSplit
        splitter = kind(self.n_splits, test_size=self.test_size, random_state=self.random_state)
        for _, test in splitter.split(pairs, groups=groups):
            yield pairs[test]


def _hanging_together(X, y, pairs):
    """Which pairs of a table share a row, by equal numbers in either view; None where none do, or what is there is text."""
    rows = [np.asarray(to_numpy(_safe_indexing(view, pairs))) for view in (X, y) if view is not None]
    if len(rows) < 2 or any(view.dtype.kind not in "fiub" for view in rows):
        return None
    of = np.column_stack([distinct_rows(view)[1] for view in rows])
    groups = group_pairs(of)
    return None if len(np.unique(groups)) == len(pairs) else groups


def _warn_of_leaks(same, test, advice):
    """Warn of a test part whose pairs hang together with others; then, with None, of no further one."""
    n_shared = np.count_nonzero(np.isin(same[test], same[~test]))
    if not n_shared:
        return same
    warnings.warn(
        f"{n_shared} of {np.count_nonzero(test)} pairs to test on share a row with pairs to train on, so the score tells less "
        f"of new rows. {advice} Or ignore this where rows are equal by their meaning, as names of classes are.",
        UserWarning,
        stacklevel=3,
    )
    return None


def _check_n_splits(n_splits, least):
    if not isinstance(n_splits, Integral) or isinstance(n_splits, bool) or n_splits < least:
        raise ValueError(f"`n_splits` must be an integer of at least {least}, but it is {n_splits!r}.")


def split_pairs(paired_idx, *, test_size=0.2, random_state=None):
    """Split explicit pairs in two; pairs that share a row of either view, directly or through others, stay together.

    Parameters
    ----------
    paired_idx : array-like of int, shape (p, 2)
        Pairs, as (row of X, row of Y).
    test_size : float or int, default=0.2
        Share or number of the groups of pairs that hang together.
    random_state : int, RandomState instance or None, default=None
        Draws the test pairs.

    Returns
    -------
    train, test : ndarray of int, shape (q, 2) and (p - q, 2)
        In their order.

    Raises
    ------
    ValueError
        If the pairs are not of this shape, or all of them hang together.

    Examples
    --------
    >>> from skalign.model_selection import split_pairs
    >>> train, test = split_pairs([[0, 0], [0, 1], [1, 2], [2, 3]], test_size=1, random_state=0)
    >>> test.tolist()
    [[2, 3]]
    """
    pairs = _explicit(paired_idx)
    groups = group_pairs(pairs)
    if groups.max() == 0:
        raise ValueError(
            f"All {len(pairs)} pairs hang together by shared rows, so no part of them can be held out. Expected at least "
            "two pairs that share no row."
        )
    splitter = GroupShuffleSplit(1, test_size=test_size, random_state=random_state)
    train, test = next(splitter.split(pairs, groups=groups))
    return pairs[train], pairs[test]


def hold_out_rows(X, Y, train, test, *, on_shared="raise"):
    """Take the rows of test pairs out of both views, so that no fit sees them, and renumber the pairs on either side.

    Parameters
    ----------
    X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
        Views of any lengths, in memory or not (:meth:`~skalign.SOTAlignTransformer.fit` lists the kinds).
    train, test : array-like of int, shape (p, 2) and (q, 2)
        Pairs, as (row of X, row of Y), such as those of :func:`split_pairs`. All other rows are left to the fit, unpaired.
    on_shared : {"raise", "drop"}, default="raise"
        What to do with training pairs of which a row stands in a test pair: refuse them, or leave them out.

    Returns
    -------
    fit, held_out : Bunch
        What to fit on and what to test on, each with the keys "X", "Y" and "paired_idx", shape (p, 2) and (q, 2). Rows that
        are tested on are listed once, though they may stand in several pairs. Of views that are not in memory
        only paired rows are read.

    Raises
    ------
    ValueError
        If pairs are not of this shape or point beyond the views, or training and test pairs share a row.

    Warns
    -----
    UserWarning
        If training and test pairs share a row by its numbers, listed twice.

    Examples
    --------
    >>> from skalign import CCATeacher
    >>> from skalign.datasets import make_two_views
    >>> from skalign.metrics import retrieval_report
    >>> from skalign.model_selection import hold_out_rows, split_pairs
    >>> data = make_two_views(random_state=0)
    >>> fit, held_out = hold_out_rows(data.X, data.Y, *split_pairs(data.paired_idx, test_size=0.3, random_state=0))
    >>> aligner = CCATeacher().fit(**fit)
    >>> F, G = aligner.transform(held_out.X, held_out.Y)
    >>> retrieval_report(F, G, held_out.paired_idx)["mean_r1"] > 0.5
    True
    """
    if on_shared not in ("raise", "drop"):
        raise ValueError(f"`on_shared` must be 'raise' or 'drop', but it is {on_shared!r}.")
    views = [view if rows is None else rows for view, rows in ((X, stored_rows(X, "X")), (Y, stored_rows(Y, "Y")))]
    sizes = [_num_samples(view) for view in views]
    train, test = (check_pairs(_explicit(pairs), *sizes).copy() for pairs in (train, test))
    held = [np.unique(test[:, side]) for side in (0, 1)]
    shared = np.isin(train[:, 0], held[0]) | np.isin(train[:, 1], held[1])
    if shared.any() and on_shared == "raise":
        raise ValueError(
            f"{np.count_nonzero(shared)} of {len(train)} training pairs have a row that is tested on, the first being "
            f"{train[shared][0].tolist()}. Split with split_pairs, which keeps such pairs together, or pass on_shared='drop'."
        )
    pairs = np.concatenate([train[~shared], test])
    rows_of_pairs = [_rows_of(view, pairs[:, side]) for side, view in enumerate(views)]
    same = _hanging_together(*rows_of_pairs, np.arange(len(pairs)))
    if same is not None:
        _warn_of_leaks(same, np.arange(len(pairs)) >= len(pairs) - len(test), _LISTED_ONCE)
    fit, held_out = Bunch(paired_idx=train[~shared]), Bunch(paired_idx=test)
    for side, (name, view) in enumerate(zip("XY", views, strict=True)):
        kept = np.delete(np.arange(sizes[side]), held[side])
        fit[name] = OtherRows(view, held[side]) if isinstance(view, Rows) else _safe_indexing(view, kept)
        held_out[name] = _rows_of(view, held[side])
        for part, rows in ((fit, kept), (held_out, held[side])):
            part.paired_idx[:, side] = np.searchsorted(rows, part.paired_idx[:, side])
    return fit, held_out


def _rows_of(view, numbers):
    """Some rows of a view, read if it is not in memory."""
    return view[numbers] if isinstance(view, Rows) else _safe_indexing(view, numbers)


def to_row_aligned(X, Y, paired_idx, *, X_unpaired=None, Y_unpaired=None):
    """Two views with explicit pairs as one table, whose rows follow scikit-learn's folds.

    A row in several pairs is repeated: it weighs as often in `fit` and as a query of `score`, which takes equal rows for one,
    as :func:`skalign.metrics.make_retrieval_scorer` does. The NaN take memory: leave large pools out, and give them to `fit`
    as ``X_unpaired`` and ``Y_unpaired``.

    Parameters
    ----------
    X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
        Views of any lengths.
    paired_idx : array-like of int, shape (p, 2)
        Pairs, as (row of X, row of Y); a row may stand in several, such as an image with five captions.
    X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
        Further rows without a partner.

    Returns
    -------
    X_rows, Y_rows : ndarray of shape (n, d_x) and (n, d_y)
        The pairs first; then the rows of X in no pair, NaN in Y; then those of Y, NaN in X.
    groups : ndarray of int, shape (n,)
        Rows whose pairs share a row of X or of Y have one number: pass it as `groups`, and no row is trained on and tested.

    Raises
    ------
    ValueError
        If the pairs point beyond the views, or a view is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.model_selection import to_row_aligned
    >>> X_rows, Y_rows, groups = to_row_aligned(np.eye(3), np.ones((2, 1)), [[0, 0], [0, 1]])
    >>> Y_rows.ravel(), groups
    (array([ 1.,  1., nan, nan]), array([0, 0, 1, 2]))
    """
    X, Y = (check_array(to_numpy(Z), dtype=floats_of(Z), input_name=n) for Z, n in ((X, "X"), (Y, "Y")))
    pairs = check_pairs(_explicit(paired_idx), len(X), len(Y))
    pools = check_pool(X_unpaired, "X", X.shape[1], None), check_pool(Y_unpaired, "Y", Y.shape[1], None)
    x_free, y_free = (stack(np.delete(Z, pairs[:, column], axis=0), pools[column]) for column, Z in enumerate((X, Y)))
    X_rows = np.concatenate([X[pairs[:, 0]], x_free, np.full((len(y_free), X.shape[1]), np.nan, dtype=X.dtype)])
    Y_rows = np.concatenate([Y[pairs[:, 1]], np.full((len(x_free), Y.shape[1]), np.nan, dtype=Y.dtype), y_free])
    groups = group_pairs(pairs)
    return X_rows, Y_rows, np.concatenate([groups, groups.max() + 1 + np.arange(len(x_free) + len(y_free))])


def _explicit(paired_idx):
    pairs = np.asarray(to_numpy(paired_idx))
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"`paired_idx` must hold integers of shape (p, 2), (row of X, row of Y), but it holds {pairs.dtype} of shape "
            f"{pairs.shape}. For rows paired with themselves pass np.column_stack([rows, rows])."
        )
    return pairs
