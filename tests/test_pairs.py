"""Laws of the judge of pairs, row by row of the data contract. Knows NumPy and pandas, knows nothing of estimators."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_allclose, assert_array_equal

from skalign._pairs import check_pairs, group_pairs, judge_pairs, mean_and_scale, missing_rows, some_rows

CV_HINT = "Inside cross-validation (GridSearchCV, cross_val_score) integers cannot follow the folds"
MASK = [True, False, True, True, False, False, True]  # rows 0, 2, 3, 6 of 7


def row_by_row(rows):
    return np.column_stack([rows, rows]).astype(np.int64)


def refused(*parts):
    """A ValueError that says all of these, in this order."""
    return pytest.raises(ValueError, match=".*".join(re.escape(part) for part in parts))


@pytest.fixture
def views(rng):
    """7 x 3 and 11 x 5: unlike sizes, so a swapped axis shows."""
    return rng.normal(size=(7, 3)), rng.normal(size=(11, 5))


@pytest.fixture
def equal_views(rng):
    return rng.normal(size=(7, 3)), rng.normal(size=(7, 5))


# None: row i pairs row i


def test_none_pairs_row_by_row():
    pairs = check_pairs(None, 5, 5)
    assert_array_equal(pairs, row_by_row(range(5)))
    assert pairs.dtype == np.int64


def test_none_needs_equally_many_rows(views):
    expected = ("Without `paired_idx`", "X has 7 and Y has 11", "integers of shape (p, 2)", "`X_unpaired`")
    with refused(*expected):
        check_pairs(None, 7, 11)
    with refused(*expected):
        judge_pairs(*views)


@pytest.mark.parametrize(
    ("missing_x", "missing_y", "paired"),
    [
        ([], [], [0, 1, 2, 3, 4, 5, 6]),
        ([1, 6], [], [0, 2, 3, 4, 5]),
        ([], [0, 4], [1, 2, 3, 5, 6]),
        ([1, 6], [0, 4], [2, 3, 5]),
        ([1, 6], [1, 4], [0, 2, 3, 5]),  # row 1 is missing in both
        ([0, 1, 2], [4, 5, 6], [3]),
    ],
)
def test_none_leaves_missing_rows_unpaired(equal_views, missing_x, missing_y, paired):
    X, Y = equal_views
    X[missing_x], Y[missing_y] = np.nan, np.nan
    views = judge_pairs(X, Y)
    assert_array_equal(views.pairs, row_by_row(paired))
    assert_array_equal(views.x_free, sorted(set(missing_y) - set(missing_x)))
    assert_array_equal(views.y_free, sorted(set(missing_x) - set(missing_y)))
    assert np.isfinite(views.X_pairs).all() and np.isfinite(views.Y_pairs).all()


def test_no_row_present_in_both_views_is_refused(equal_views):
    X, Y = equal_views
    X[:4], Y[4:] = np.nan, np.nan
    with refused("at least one pair", "every row is entirely NaN in X or in Y", "Leave at least one row"):
        judge_pairs(X, Y)


# bool (n,): True marks a pair


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        tuple(MASK),
        np.array(MASK),
        np.array(MASK, dtype=object),
        np.array([np.bool_(m) for m in MASK], dtype=object),
        pd.Series(MASK),
        pd.Series(MASK, index=range(6, -1, -1)),  # rows count by place, not by label
        pd.Series(MASK, dtype="boolean"),
        pd.Series([*MASK, None]).iloc[:7],  # object: the column once held a missing value
    ],
    ids=["list", "tuple", "bool", "object", "object of np.bool", "Series", "labels", "nullable", "once missing"],
)
def test_mask_marks_pairs(equal_views, mask):
    assert_array_equal(check_pairs(mask, 7, 7), row_by_row([0, 2, 3, 6]))
    views = judge_pairs(*equal_views, mask)
    assert_array_equal(views.pairs, row_by_row([0, 2, 3, 6]))
    assert_array_equal(views.x_free, [1, 4, 5])  # the others are unpaired in both views, each for itself
    assert_array_equal(views.y_free, [1, 4, 5])


def test_mask_and_missing_rows_agree(equal_views):
    X, Y = equal_views
    X[1], Y[[4, 5]] = np.nan, np.nan
    views = judge_pairs(X, Y, MASK)
    assert_array_equal(views.x_free, [4, 5])
    assert_array_equal(views.y_free, [1])


def test_mask_without_true_is_refused():
    with refused("at least one pair", "has no True entry", "Mark one pair or more"):
        check_pairs([False] * 7, 7, 7)


@pytest.mark.parametrize("n", [6, 8])
def test_mask_of_wrong_length_is_refused(n):
    with refused("one entry a row", f"it has {n} and X has 7 rows", "np.isin(np.arange(len(X)), rows)"):
        check_pairs([True] * n, 7, 7)


@pytest.mark.parametrize("n", [7, 11])
def test_mask_needs_equal_views(n):
    with refused("equally many rows in X and Y", "X has 7 and Y has 11", "integers of shape (p, 2)"):
        check_pairs([True] * n, 7, 11)


@pytest.mark.parametrize("shape", [(7, 1), (1, 7), (7, 2), (7, 7), ()])
def test_mask_has_one_axis(shape):
    with refused("must be one-dimensional", f"its shape is {shape}"):
        check_pairs(np.ones(shape, dtype=bool), 7, 7)


# int (p,): row i of X pairs row i of Y, for these i


@pytest.mark.parametrize(
    "rows",
    [
        [5, 0, 3],
        (5, 0, 3),
        *(np.array([5, 0, 3], dtype) for dtype in (np.int8, np.int32, np.int64, np.uint8, np.uint64)),
        pd.Series([5, 0, 3], index=[2, 9, 4]),
        np.array([3, 0, 5])[::-1],
    ],
    ids=["list", "tuple", "int8", "int32", "int64", "uint8", "uint64", "Series", "reversed view"],
)
def test_row_numbers_pair_like_with_like(rows):
    pairs = check_pairs(rows, 7, 11)
    assert_array_equal(pairs, [[5, 5], [0, 0], [3, 3]])  # in the order given
    assert pairs.dtype == np.int64


def test_row_numbers_leave_the_rest_free(views):
    judged = judge_pairs(*views, [5, 0, 3])
    assert_array_equal(judged.x_free, [1, 2, 4, 6])
    assert_array_equal(judged.y_free, [1, 2, 4, 6, 7, 8, 9, 10])


def test_short_integers_reach_past_their_own_range():
    assert_array_equal(check_pairs(np.array([100], np.int8), 300, 300), [[100, 100]])
    assert_array_equal(check_pairs(np.array([255], np.uint8), 256, 300), [[255, 255]])
    with refused("row 255 of X, but X has 255 rows"):
        check_pairs(np.array([255], np.uint8), 255, 300)


def test_an_integer_mask_is_not_taken_for_row_numbers():
    with refused("holds one 0 or 1 a row", ".astype(bool)"):
        check_pairs([1, 0, 1, 1, 0], 5, 5)
    assert_array_equal(check_pairs([1, 0], 5, 5), [[1, 1], [0, 0]])
    assert_array_equal(check_pairs([1, 0], 2, 2), [[1, 1], [0, 0]])


def test_two_numbers_are_two_rows_and_a_couple_in_brackets_is_one_pair():
    assert_array_equal(check_pairs([3, 4], 7, 11), [[3, 3], [4, 4]])
    assert_array_equal(check_pairs([[3, 4]], 7, 11), [[3, 4]])


# int (p, 2): explicit pairs


@pytest.mark.parametrize(
    "convert",
    [np.array, list, pd.DataFrame, lambda pairs: np.array(pairs, np.uint8), np.asfortranarray],
    ids=["int64", "tuples", "DataFrame", "uint8", "columns first"],
)
def test_explicit_pairs_stand_as_given(views, convert):
    given = [(6, 0), (6, 10), (2, 3), (0, 3), (1, 1)]  # one row of X in two pairs, one row of Y in two pairs
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # many-to-one is no duplicate
        judged = judge_pairs(*views, convert(given))
    assert_array_equal(judged.pairs, given)
    assert judged.pairs.dtype == np.int64
    assert_array_equal(judged.x_free, [3, 4, 5])
    assert_array_equal(judged.y_free, [2, 4, 5, 6, 7, 8, 9])
    assert_array_equal(judged.X_pairs, views[0][[6, 6, 2, 0, 1]])
    assert_array_equal(judged.Y_pairs, views[1][[0, 10, 3, 3, 1]])


def test_duplicates_are_dropped_with_a_warning_and_order_is_kept():
    given = [[4, 1], [0, 0], [4, 1], [0, 0], [4, 2], [4, 1]]
    message = "3 exact duplicates among its 6 pairs; each pair is used once. Pass np.unique(paired_idx, axis=0)"
    with pytest.warns(UserWarning, match=re.escape(message)):
        pairs = check_pairs(given, 5, 5)
    assert_array_equal(pairs, [[4, 1], [0, 0], [4, 2]])


def test_indices_are_left_as_they_were():
    given = np.array([[4, 1], [0, 0], [4, 1]])
    with pytest.warns(UserWarning, match="1 exact duplicates"):
        check_pairs(given, 5, 5)
    assert_array_equal(given, [[4, 1], [0, 0], [4, 1]])


# what is refused in every integer form


@pytest.mark.parametrize(
    ("idx", "row", "name", "n_rows"),
    [
        ([0, -1], -1, "X", 7),
        ([0, 7], 7, "X", 7),
        ([0, 99, -3], 99, "X", 7),  # the first one is named
        ([[0, 0], [7, 0]], 7, "X", 7),
        ([[0, 0], [-2, 0]], -2, "X", 7),
        ([[0, 0], [0, 11]], 11, "Y", 11),
        ([[0, 0], [0, -1]], -1, "Y", 11),
        ([[10, 6]], 10, "X", 7),  # legal only with the axes swapped
    ],
)
def test_row_out_of_range_is_named_and_so_is_cross_validation(views, idx, row, name, n_rows):
    expected = (
        f"`paired_idx` points to row {row} of {name}, but {name} has {n_rows} rows. Indices are zero-based and not "
        f"negative; drop the pair or pass the full {name}.",
        CV_HINT,
        "pass a boolean mask of length len(X), or NaN rows",
    )
    with refused(*expected):
        check_pairs(idx, 7, 11)
    with refused(*expected):
        judge_pairs(*views, idx)


def test_last_rows_are_in_range():
    assert_array_equal(check_pairs([[6, 10]], 7, 11), [[6, 10]])
    with refused("row 10 of Y, but Y has 10 rows"):
        check_pairs([10], 11, 10)


@pytest.mark.parametrize(
    "empty",
    [[], [[]], (), np.empty(0, int), np.empty((0, 2), int), np.empty(0, bool), pd.Series([], dtype=float)],
    ids=["list", "nested", "tuple", "int", "int pairs", "bool", "Series"],
)
def test_empty_indices_are_refused(empty):
    with refused("at least one pair", "`paired_idx` is empty", "one pair or more"):
        check_pairs(empty, 7, 7)


@pytest.mark.parametrize(
    ("idx", "holds"),
    [
        ([0.0, 1.0], "float64"),
        (np.array([[0, 1]], np.float32), "float32"),
        ([0, np.nan], "float64"),
        (["a", "b"], "<U1"),
        ([True, None], "object"),
        ([True, np.nan], "float64"),
        (np.array([0, 1.5], dtype=object), "object"),
        (np.array([True, 2], dtype=object), "object"),
        ([1 + 0j], "complex128"),
    ],
)
def test_other_kinds_are_refused_rather_than_rounded(idx, holds):
    with refused("must hold booleans or integers", f"it holds {holds}", ".astype(bool)", ".astype(int)"):
        check_pairs(idx, 7, 7)


def test_columns_that_once_missed_a_value_are_read():
    assert_array_equal(check_pairs(pd.DataFrame({"x": [0, 3], "y": [2, 1]}, dtype="Int64"), 7, 7), [[0, 2], [3, 1]])


def test_swapped_columns_are_recognised():
    with refused("points to row 10 of X", "paired_idx[:, ::-1]"):
        check_pairs([[10, 6], [0, 0]], 7, 11)
    with pytest.raises(ValueError, match="row 10 of X") as refusal:
        check_pairs([[10, 6], [0, 9]], 7, 11)
    assert "::-1" not in str(refusal.value)


@pytest.mark.parametrize("shape", [(), (2, 1), (2, 3), (1, 3), (2, 2, 2), (2, 2, 1)])
def test_other_shapes_are_refused(shape):
    with refused("integers (p,) or integers (p, 2)", f"its shape is {shape}", "np.column_stack([i, j])"):
        check_pairs(np.zeros(shape, dtype=int), 7, 7)


# missing and broken rows


def test_integers_cannot_name_a_missing_row(views):
    X, Y = views
    X[4], Y[9] = np.nan, np.nan
    with refused("pairs row 4 of X", "entirely NaN", "Unmark the pair or fill the row"):
        judge_pairs(X, Y, [3, 4])
    with refused("pairs row 9 of Y", "entirely NaN"):
        judge_pairs(X, Y, [[3, 4], [3, 9]])
    judged = judge_pairs(X, Y, [[3, 4], [0, 0]])
    assert_array_equal(judged.x_free, [1, 2, 5, 6])  # a missing row is not free either
    assert_array_equal(judged.y_free, [1, 2, 3, 5, 6, 7, 8, 10])


@pytest.mark.parametrize("side", [0, 1])
def test_mask_cannot_name_a_missing_row(equal_views, side):
    equal_views[side][3] = np.nan
    with refused(f"pairs row 3 of {'XY'[side]}", "entirely NaN"):
        judge_pairs(*equal_views, MASK)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ([np.nan, 1, 1], "NaN"),
        ([1, 1, np.nan], "NaN"),
        ([np.nan, np.nan, 1], "NaN"),
        ([1, np.inf, 1], "infinity"),
        ([-np.inf, 1, 1], "infinity"),
        ([np.inf, np.inf, np.inf], "infinity"),
        ([np.nan, np.inf, np.nan], "NaN"),
    ],
)
def test_partly_broken_rows_are_refused_wherever_they_stand(rng, side, row, kind):
    views = rng.normal(size=(2, 7, 3))
    views[side][1] = np.nan  # a missing row is no broken row
    views[side][[4, 6]] = row
    expected = f"Input {'XY'[side]} contains {kind} in 2 of 7 rows, the first being row 4. Expected finite numbers"
    for paired_idx in (None, [0, 2], [0, 4], [[0, 0]]):  # also in a row that is in no pair
        with refused(expected, "drop or impute"):
            judge_pairs(*views, paired_idx)


@settings(deadline=None)
@given(arrays(st.sampled_from([np.float32, np.float64]), array_shapes(min_dims=2, max_dims=2), elements=st.just(0.0)))
def test_zero_rows_are_present(view):
    assert not missing_rows(view).any()


@settings(deadline=None)
@given(
    arrays(
        np.float64,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.sampled_from([np.nan, np.nan, 0.0, np.inf]),
    )
)
def test_missing_rows_are_nan_throughout(view):
    assert_array_equal(missing_rows(view), [all(value != value for value in row) for row in view.tolist()])


def test_view_without_columns_misses_no_row():
    assert_array_equal(missing_rows(np.empty((3, 0))), [False] * 3)


# free rows and pools


@st.composite
def problems(draw):
    """Sizes, pairs with repeated rows, and missing rows outside the pairs."""
    n_x, n_y = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    pair = st.tuples(st.integers(0, n_x - 1), st.integers(0, n_y - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=10, unique=True))
    missing_x = draw(st.sets(st.sampled_from(range(n_x)))) - {i for i, _ in pairs}
    missing_y = draw(st.sets(st.sampled_from(range(n_y)))) - {j for _, j in pairs}
    X, Y = np.ones((n_x, 2)), np.ones((n_y, 3))
    X[sorted(missing_x)], Y[sorted(missing_y)] = np.nan, np.nan
    return X, Y, pairs, missing_x, missing_y


def assert_every_row_has_one_place(paired, free, missing, n_rows):
    """Pairs, free and missing rows are disjoint, and together they are all rows."""
    assert sorted([*set(paired), *free, *missing]) == list(range(n_rows))


@settings(deadline=None)
@given(problems())
def test_every_row_is_paired_free_or_missing(problem):
    X, Y, pairs, missing_x, missing_y = problem
    views = judge_pairs(X, Y, pairs)
    assert_array_equal(views.pairs, pairs)
    assert_every_row_has_one_place(views.pairs[:, 0], views.x_free, missing_x, len(X))
    assert_every_row_has_one_place(views.pairs[:, 1], views.y_free, missing_y, len(Y))
    assert len(views.X_all) == len(X) - len(missing_x)
    assert len(views.Y_all) == len(Y) - len(missing_y)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["pair", "free", "only x", "only y", "gone"]), min_size=1, max_size=9))
def test_mask_indices_pairs_and_missing_rows_say_the_same(kinds):
    kinds = np.array(["pair", *kinds])
    mask, n = kinds == "pair", len(kinds)
    X, Y = np.arange(2.0 * n).reshape(n, 2), np.arange(3.0 * n).reshape(n, 3)
    X[np.isin(kinds, ["only y", "gone"])], Y[np.isin(kinds, ["only x", "gone"])] = np.nan, np.nan
    rows = np.flatnonzero(mask)
    forms = [mask, rows, row_by_row(rows), *([None] if "free" not in kinds else [])]
    for form in forms:
        views = judge_pairs(X, Y, form)
        assert_array_equal(views.pairs, row_by_row(rows))
        assert_array_equal(views.x_free, np.flatnonzero(np.isin(kinds, ["free", "only x"])))
        assert_array_equal(views.y_free, np.flatnonzero(np.isin(kinds, ["free", "only y"])))


def test_unpaired_rows_are_free_rows_then_the_pool(rng, views):
    X, Y = views
    X[2] = np.nan
    X_pool, Y_pool = rng.normal(size=(4, 3)), rng.normal(size=(1, 5))
    judged = judge_pairs(X, Y, [[6, 0], [6, 10], [0, 3]], X_pool, Y_pool)
    assert_array_equal(judged.X_unpaired, np.vstack([X[[1, 3, 4, 5]], X_pool]))
    assert_array_equal(judged.Y_unpaired, np.vstack([Y[[1, 2, 4, 5, 6, 7, 8, 9]], Y_pool]))
    assert_array_equal(judged.X_all, np.vstack([X[[0, 1, 3, 4, 5, 6]], X_pool]))  # row 6 once, though in two pairs
    assert_array_equal(judged.Y_all, np.vstack([Y, Y_pool]))


def test_pool_of_one_view_leaves_the_other_alone(rng, equal_views):
    X, Y = equal_views
    pool = rng.normal(size=(2, 3))
    judged = judge_pairs(X, Y, None, pool, None)
    assert_array_equal(judged.X_unpaired, pool)  # every row is paired
    assert judged.Y_unpaired.shape == (0, 5)
    assert judged.Y_pool is None
    assert_array_equal(judged.Y_all, Y)


def test_views_keep_their_dtype_and_their_numbers(views):
    X, Y = views[0].astype(np.float32), views[1]
    X[3] = np.nan
    before = X.copy(), Y.copy()
    judged = judge_pairs(X, Y, [0, 1])
    assert judged.X is X and judged.Y is Y  # no copy of what may be large
    assert judged.X_pairs.dtype == judged.X_unpaired.dtype == judged.X_all.dtype == np.float32
    assert_array_equal(X, before[0])
    assert_array_equal(Y, before[1])


# groups: pairs that hang together


def union_find(pairs):
    """The leader of each pair's component, by the textbook algorithm."""
    leader = {}

    def find(node):
        leader.setdefault(node, node)
        while leader[node] != node:
            node = leader[node]
        return node

    for i, j in pairs:
        leader[find(("x", i))] = find(("y", j))
    return [find(("x", i)) for i, _ in pairs]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=15, unique=True))
def test_groups_are_connected_components(pairs):
    groups, leaders = group_pairs(np.array(pairs)), union_find(pairs)
    same = np.array([[a == b for a in leaders] for b in leaders])
    assert_array_equal(groups[:, None] == groups, same)
    assert sorted(set(groups.tolist())) == list(range(len(set(leaders))))  # numbered from 0 up


def test_row_of_x_and_row_of_y_with_one_number_are_strangers():
    assert len(set(group_pairs(np.array([[0, 1], [1, 0]])))) == 2


def test_disjoint_pairs_are_groups_of_one():
    assert_array_equal(np.sort(group_pairs(np.array([[5, 900], [3, 7], [10**9, 1]]))), [0, 1, 2])


def test_long_chain_is_one_group():
    link = np.arange(20_000)
    chain = np.column_stack([link // 2, (link + 1) // 2])
    assert_array_equal(group_pairs(chain), 0)


@pytest.mark.parametrize("nothing", [[], np.zeros(5, dtype=bool), np.empty((0, 2), dtype=int)])
def test_where_no_pair_is_required_none_may_be_named(nothing):
    X, Y = np.ones((5, 3)), np.ones((5, 4))
    views = judge_pairs(X, Y, nothing, required=False)
    assert views.pairs.shape == (0, 2)
    assert len(views.X_unpaired) == len(views.Y_unpaired) == 5
    with pytest.raises(ValueError, match="Expected at least one pair"):
        judge_pairs(X, Y, nothing)
    assert len(judge_pairs(X, Y, required=False).pairs) == 5


def test_mean_and_scale_are_of_all_rows_but_the_missing_ones(rng):
    X, pool = rng.standard_normal((20_000, 3)) + 5, rng.standard_normal((7, 3))
    X[[0, 9000]] = np.nan
    mean, scale = mean_and_scale(X, pool)
    rows = np.concatenate([np.delete(X, [0, 9000], axis=0), pool])
    assert_allclose(mean, rows.mean(axis=0))
    assert_allclose(scale, np.sqrt(np.mean((rows - rows.mean(axis=0)) ** 2)))
    assert mean_and_scale(np.ones((4, 3)), None)[1] == 1


def test_some_rows_are_rows_of_the_view_and_of_its_pool(rng):
    X, pool = rng.standard_normal((30, 3)), rng.standard_normal((20, 3))
    X[4] = np.nan
    assert_array_equal(some_rows(X, pool, 50, np.random.RandomState(0)), np.concatenate([np.delete(X, 4, 0), pool]))
    drawn = some_rows(X, pool, 25, np.random.RandomState(0))
    assert 10 < len(drawn) <= 25
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in np.concatenate([X, pool])}
