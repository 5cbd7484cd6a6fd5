"""Splits over pairs and scorers: what is tested, what is trained on, and searches with and without routing."""

import pickle
import re
import warnings
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skalign import CCATeacher, ProcrustesTeacher, SOTAlign, metrics
from skalign.datasets import make_two_views
from skalign.model_selection import PairedKFold, PairedShuffleSplit, hold_out_rows, split_pairs, to_row_aligned

N = 57
MASK = np.isin(np.arange(N), np.random.default_rng(1).permutation(N)[:23])  # 23 pairs in no order


@pytest.fixture(scope="module")
def table():
    """60 pairs among 160 rows, in no order; the other rows of X and Y have nothing to do with one another."""
    data = make_two_views(60, 100, 100, 1, n_features_x=7, n_features_y=9, n_latent=5, noise=0.1, random_state=0)
    order = np.random.default_rng(0).permutation(160)
    return data.X[order], data.Y[order], order < 60


@pytest.mark.parametrize("splitter", [PairedKFold(5, paired=MASK), PairedShuffleSplit(5, test_size=4, paired=MASK)])
def test_parts_hold_pairs_to_test_and_everything_else_to_train(splitter):
    splits = list(splitter.split(np.zeros((N, 2))))
    assert len(splits) == splitter.get_n_splits() == 5
    for train, test in splits:
        assert MASK[test].all()
        assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(N))
        assert len(test) == 4  # 23 // 5: galleries of one size


def test_folds_share_no_pair_and_are_shuffled_only_when_asked():
    plain = [test for _, test in PairedKFold(4, paired=MASK).split(np.zeros(N))]
    assert len(np.unique(np.concatenate(plain))) == 4 * 5
    assert_array_equal(plain[0], np.flatnonzero(MASK)[:5])
    first, again, other = (
        [test.tolist() for _, test in PairedKFold(4, paired=MASK, shuffle=True, random_state=s).split(np.zeros(N))]
        for s in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("splitter", [PairedKFold(3), PairedShuffleSplit(3, test_size=0.3, random_state=0)])
def test_nan_rows_in_either_view_are_unpaired(splitter):
    X, Y = np.arange(60.0).reshape(20, 3), np.arange(40.0).reshape(20, 2)
    X[3], Y[7] = np.nan, np.nan
    Y[8, 0] = np.nan  # in part only: for the estimator to refuse
    tested = {row for _, test in splitter.split(X, Y) for row in test}
    assert not tested & {3, 7}
    assert {row for _, test in PairedKFold(3).split(X, Y) for row in test} >= {8}


@pytest.mark.parametrize("form", [np.array, pd.DataFrame, lambda Y: pd.DataFrame(Y).astype("Float64"), torch.tensor])
@pytest.mark.parametrize("width", [1, 3])
def test_missing_rows_are_those_that_fit_sees(form, width):
    Y = 1 + np.arange(20.0)[:, None] % np.arange(3, 3 + width)
    Y[12:] = np.nan
    Y = form(Y)
    tested = np.concatenate([test for _, test in PairedKFold(3).split(np.zeros((20, 2)), Y, groups=np.arange(20))])
    assert_array_equal(np.sort(tested), np.arange(12))
    assert CCATeacher(1, normalize=False).fit(np.arange(40.0).reshape(20, 2) % 7, Y).n_pairs_ == 12


@pytest.mark.parametrize("form", [torch.from_numpy, pd.Series, np.ndarray.tolist, lambda mask: mask.astype(object)])
def test_masks_of_any_kind_are_read(form):
    expected = [test.tolist() for _, test in PairedKFold(3, paired=MASK).split(np.zeros(N))]
    assert [test.tolist() for _, test in PairedKFold(3, paired=form(MASK)).split(np.zeros(N))] == expected
    assert [test.tolist() for _, test in PairedKFold(3).split(np.zeros(N), paired_idx=form(MASK))] == expected


@pytest.mark.parametrize("splitter", [PairedKFold(3), PairedShuffleSplit(3, test_size=0.3, random_state=0)])
def test_groups_stay_on_one_side(splitter):
    groups = np.arange(N) // 4
    for train, test in splitter.split(np.zeros(N), groups=groups, paired_idx=MASK):
        assert MASK[test].all()
        assert not set(groups[test]) & set(groups[train[MASK[train]]])


def test_bad_masks_and_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="one entry a row, shape .57,., but it got bool of shape .3,."):
        next(PairedKFold(2, paired=[True, False, True]).split(np.zeros(N)))
    with pytest.raises(ValueError, match="it got int64 .* pass np.isin"):
        next(PairedKFold(2, paired=np.arange(N)).split(np.zeros(N)))
    with pytest.raises(ValueError, match="at least 24 pairs, but there are 23"):
        next(PairedKFold(24, paired=MASK).split(np.zeros(N)))
    with pytest.raises(ValueError, match="at least 3 groups of pairs, but there are 1"):
        next(PairedKFold(3, paired=MASK).split(np.zeros(N), groups=np.zeros(N)))
    with pytest.raises(ValueError, match="`n_splits` must be an integer of at least 2, but it is 1"):
        PairedKFold(1)
    with pytest.raises(ValueError, match="`n_splits` must be an integer of at least 1, but it is 0"):
        PairedShuffleSplit(0)
    with pytest.raises(ValueError, match="`random_state` has no effect without `shuffle`"):
        PairedKFold(3, random_state=0)
    for splitter in (PairedKFold(2, paired=[True, False]), PairedShuffleSplit(2, paired=[True, False])):
        with pytest.raises(ValueError, match="at least 2 pairs, but there are 1. Add pairs"):
            next(splitter.split(np.zeros((2, 3))))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(PairedKFold(2, paired=MASK).split(np.zeros(N), groups=np.zeros(N + 1)))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(PairedKFold(2, paired=MASK).split(np.zeros(N), np.zeros(N - 1)))


def test_a_routed_mask_reaches_fit_score_and_splitter(table):
    X, Y, mask = table
    expected = cross_val_score(CCATeacher(reg=0.1), X, Y, cv=PairedKFold(4, paired=mask), params={"paired_idx": mask})
    with sklearn.config_context(enable_metadata_routing=True):
        routed = cross_val_score(CCATeacher(reg=0.1), X, Y, cv=PairedKFold(4), params={"paired_idx": mask})
        search = GridSearchCV(
            make_pipeline(StandardScaler(), SOTAlign(max_iter=3, random_state=0)),
            {"sotalign__teacher": [CCATeacher(reg=0.1), "procrustes"]},
            cv=PairedKFold(4),
        ).fit(X, Y, paired_idx=mask)
    assert_array_equal(routed, expected)
    assert search.best_score_ > 0.6


def test_a_table_with_missing_partners_needs_no_mask(table):
    X, Y, mask = table
    pairs = np.column_stack([np.flatnonzero(mask)] * 2)
    X_rows, Y_rows, _ = to_row_aligned(X, Y, pairs)
    assert len(X_rows) == 60 + 100 + 100
    search = GridSearchCV(CCATeacher(), {"reg": [0.1, 0.3]}, cv=PairedKFold(4), n_jobs=2).fit(X_rows, Y_rows)
    assert search.best_score_ > 0.6


def test_a_table_of_one_to_one_pairs_fits_as_the_views_do():
    data = make_two_views(30, 12, 9, 10, random_state=0)
    expected = SOTAlign(max_iter=2, random_state=0).fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    pairs = np.column_stack([np.arange(30)] * 2)
    X_rows, Y_rows, groups = to_row_aligned(data.X, data.Y, pairs)
    assert_allclose(SOTAlign(max_iter=2, random_state=0).fit(X_rows, Y_rows).transform(data.X_test), expected)
    assert_array_equal(groups, np.arange(30 + 12 + 9))


def test_a_table_holds_every_pair_and_every_free_row():
    data = make_two_views(30, 12, 9, 10, random_state=0)
    pairs = np.concatenate([data.paired_idx, [[0, 5], [7, 2]]])
    pools = {"X_unpaired": data.X_test[:4], "Y_unpaired": data.Y_test[4:]}
    expected = SOTAlign(max_iter=2, random_state=0).fit(data.X, data.Y, pairs, **pools)
    X_rows, Y_rows, groups = to_row_aligned(data.X, data.Y, pairs, **pools)
    actual = SOTAlign(max_iter=2, random_state=0).fit(X_rows, Y_rows)
    assert actual.n_pairs_ == expected.n_pairs_ == 32
    assert groups[0] == groups[5] == groups[30]
    assert len(np.unique(groups[:32])) == 28
    assert len(groups) == len(X_rows) == len(Y_rows) == 32 + 12 + 4 + 9 + 6


def test_a_table_of_half_precision_is_float32():
    half = np.eye(4, dtype=np.float16)
    X_rows, Y_rows, _ = to_row_aligned(half, half, [[0, 1]], X_unpaired=half)
    assert X_rows.dtype == Y_rows.dtype == np.float32


def test_pairs_that_share_rows_are_split_together(rng):
    pairs = np.column_stack([np.repeat(np.arange(40), 5), np.arange(200)])  # five captions an image
    train, test = split_pairs(pairs, test_size=0.25, random_state=0)
    assert (len(train), len(test)) == (150, 50)
    assert not set(train[:, 0]) & set(test[:, 0])


def test_pairs_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match="All 2 pairs hang together"):
        split_pairs([[0, 0], [0, 1]])
    with pytest.raises(ValueError, match="integers of shape .p, 2.*holds int64 of shape .3,."):
        split_pairs([0, 1, 2])
    with pytest.raises(ValueError, match="integers of shape .p, 2.*of shape .0, 2."):
        split_pairs(np.empty((0, 2), dtype=int))
    with pytest.raises(ValueError, match="`X_unpaired` must have the columns of X, 3, but it has 7"):
        to_row_aligned(np.eye(3), np.eye(3), [[0, 0]], X_unpaired=np.ones((2, 7)))
    with pytest.raises(ValueError, match="`paired_idx` points to row 9 of X, but X has 3 rows"):
        to_row_aligned(np.eye(3), np.eye(3), [[9, 0]])


@pytest.mark.parametrize(
    ("metric", "arguments", "sign"),
    [
        ("recall_at_k", {"k": 5, "direction": "y_to_x"}, 1),
        ("mean_recall", {}, 1),
        ("mean_reciprocal_rank", {}, 1),
        ("median_rank", {}, -1),
        ("foscttm", {}, -1),
    ],
)
def test_a_scorer_is_its_metric_on_the_pairs(table, metric, arguments, sign):
    X, Y, mask = table
    aligner = CCATeacher(reg=0.1).fit(X, Y, mask)
    expected = sign * getattr(metrics, metric)(*aligner.transform(X[mask], Y[mask]), **arguments)
    scorer = metrics.make_retrieval_scorer(metric, **arguments)
    assert scorer(aligner, X, Y, paired_idx=mask) == expected
    X_rows, Y_rows, _ = to_row_aligned(X, Y, np.column_stack([np.flatnonzero(mask)] * 2))
    assert scorer(aligner, X_rows, Y_rows) == expected


@pytest.mark.parametrize("name", ["mean_r1", "x_to_y_r10", "y_to_x_r5", "mean_recall", "foscttm"])
def test_a_scorer_may_have_its_name_in_a_report(table, name):
    X, Y, mask = table
    aligner = CCATeacher(reg=0.1).fit(X, Y, mask)
    report = metrics.retrieval_report(*aligner.transform(X[mask], Y[mask]))
    expected = -report[name] if name == "foscttm" else report[name]
    assert metrics.make_retrieval_scorer(name)(aligner, X, Y, paired_idx=mask) == expected
    if name == "mean_r1":
        assert expected == aligner.score(X, Y, paired_idx=mask)


def test_a_scorer_finds_the_aligner_in_a_pipeline(table):
    X, Y, mask = table
    scorer = metrics.make_retrieval_scorer(k=5)
    pipeline = make_pipeline(StandardScaler(), CCATeacher(reg=0.1), "passthrough", Normalizer())
    pipeline.fit(X, Y, ccateacher__paired_idx=mask)
    alone = CCATeacher(reg=0.1).fit(StandardScaler().fit_transform(X), Y, mask)
    expected = scorer(alone, StandardScaler().fit(X).transform(X), Y, paired_idx=mask)
    assert scorer(pipeline, X, Y, paired_idx=mask) == pytest.approx(expected)
    nested = make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), CCATeacher(reg=0.1)))
    X_pairs, Y_pairs = X[mask], Y[mask]
    nested.fit(X_pairs, Y_pairs)
    plain = make_pipeline(StandardScaler(), CCATeacher(reg=0.1)).fit(X_pairs, Y_pairs)
    assert scorer(nested, X_pairs, Y_pairs) == pytest.approx(scorer(plain, X_pairs, Y_pairs))
    with pytest.raises(ValueError, match="Expected an aligner, which has `transform_y`"):
        scorer(StandardScaler().fit(X), X, Y)


def test_a_smaller_gallery_scores_higher_and_the_same_each_time(table):
    X, Y, mask = table
    aligner = CCATeacher(reg=3.0).fit(X, Y, mask)
    full, small = (metrics.make_retrieval_scorer(gallery_size=size) for size in (None, 10))
    assert small(aligner, X, Y, paired_idx=mask) == small(aligner, X, Y, paired_idx=mask)
    assert small(aligner, X, Y, paired_idx=mask) > full(aligner, X, Y, paired_idx=mask)
    with pytest.raises(ValueError, match="`gallery_size` is 61, but the part to score has 60 pairs"):
        metrics.make_retrieval_scorer(gallery_size=61)(aligner, X, Y, paired_idx=mask)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "recall"}, "`metric` must be one of .*but it is 'recall'"),
        ({"metric": ["foscttm"]}, "`metric` must be one of"),
        ({"metric": "mean_r1", "k": 5}, "without further arguments, of .'mean_r1', .* but it is 'mean_r1'"),
        ({"metric": "foscttm", "k": 5}, "foscttm takes no arguments here, but got ..k.."),
        ({"sample_weight": [1]}, "takes .'direction', 'k'. here"),
        ({"gallery_size": 0}, "`gallery_size` must be an integer of at least 1, or None, but it is 0"),
        ({"gallery_size": 0.5}, "`gallery_size` must be an integer"),
    ],
)
def test_a_scorer_that_cannot_be_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        metrics.make_retrieval_scorer(**settings)


def test_copies_of_an_image_are_one_row_with_several_matches(rng):
    images = rng.standard_normal((40, 6))
    texts = np.repeat(images, 5, axis=0) + 0.001 * rng.standard_normal((200, 6))
    X_rows, Y_rows, groups = to_row_aligned(
        images, texts, np.column_stack([np.repeat(np.arange(40), 5), np.arange(200)])
    )
    scores = cross_val_score(
        ProcrustesTeacher(), X_rows, Y_rows, groups=groups, cv=PairedKFold(4), scoring=metrics.make_retrieval_scorer()
    )
    assert_array_equal(scores, 1)


def test_the_routed_mask_reaches_the_scorer(table):
    X, Y, mask = table
    scorer = metrics.make_retrieval_scorer()
    with sklearn.config_context(enable_metadata_routing=True):
        settings = {"cv": KFold(4), "params": {"paired_idx": mask}}
        expected = cross_val_score(CCATeacher(reg=0.1), X, Y, **settings)
        assert_array_equal(cross_val_score(CCATeacher(reg=0.1), X, Y, scoring=scorer, **settings), expected)
        search = GridSearchCV(
            CCATeacher(), {"reg": [0.1]}, cv=PairedKFold(3), scoring=pickle.loads(pickle.dumps(scorer))
        )
        assert 0.5 < search.fit(X, Y, paired_idx=mask).score(X, Y, paired_idx=mask) <= 1


@pytest.mark.parametrize("splitter", [PairedKFold(3, paired=MASK), PairedShuffleSplit(3, paired=MASK, random_state=0)])
def test_splitters_are_printed_and_pickled(splitter):
    assert repr(splitter).startswith(f"{type(splitter).__name__}(n_splits=3")
    for copy in (pickle.loads(pickle.dumps(splitter)), deepcopy(splitter)):
        for actual, desired in zip(copy.split(np.zeros(N)), splitter.split(np.zeros(N)), strict=True):
            assert_array_equal(actual[1], desired[1])


@pytest.mark.parametrize("routing", [False, True])
def test_several_scorers_serve_a_search(table, routing):
    X, Y, mask = table
    scoring = {"r5": metrics.make_retrieval_scorer(k=5), "closer": metrics.make_retrieval_scorer("foscttm")}
    with sklearn.config_context(enable_metadata_routing=routing):
        cv = PairedKFold(3) if routing else PairedKFold(3, paired=mask)
        search = GridSearchCV(CCATeacher(), {"reg": [0.1, 1.0]}, cv=cv, scoring=scoring, refit="r5")
        search.fit(X, Y, paired_idx=mask)
    assert (search.cv_results_["mean_test_closer"] < 0).all()
    assert search.cv_results_["mean_test_r5"].max() > 0.8
    assert scoring["r5"](search, X, Y, paired_idx=mask) > 0.8


# rows held out


@pytest.fixture
def held(rng):
    """29 and 37 rows, 12 pairs to fit on and 7 to test on, of which some share a row; rows tell their numbers."""
    X, Y = np.arange(29.0)[:, None] + [0, 100], np.arange(37.0)[:, None] + [0, 100, 200]
    train = np.column_stack([rng.permutation(np.arange(0, 29, 2))[:12], rng.permutation(np.arange(0, 37, 2))[:12]])
    test = np.array([[1, 3], [1, 5], [7, 5], [9, 1], [27, 35], [3, 33], [5, 7]])
    return X, Y, train, test


def as_given(kind, view, folder):
    if kind == "path":
        path = folder / f"{view.shape[1]}.npy"
        np.save(path, view)
        return path
    return {"array": np.asarray, "frame": pd.DataFrame, "tensor": torch.as_tensor}[kind](view)


@pytest.mark.parametrize("kind", ["array", "frame", "tensor", "path"])
def test_rows_of_test_pairs_leave_the_fit_and_pairs_keep_their_rows(held, kind, tmp_path):
    X, Y, train, test = held
    fit, held_out = hold_out_rows(as_given(kind, X, tmp_path), as_given(kind, Y, tmp_path), train, test)
    for part, pairs in ((fit, train), (held_out, test)):
        assert_array_equal(np.asarray(part.X)[part.paired_idx[:, 0]], X[pairs[:, 0]])
        assert_array_equal(np.asarray(part.Y)[part.paired_idx[:, 1]], Y[pairs[:, 1]])
    for name, view, side in (("X", X, 0), ("Y", Y, 1)):
        assert_array_equal(np.asarray(held_out[name])[:, 0], np.unique(test[:, side]))
        assert_array_equal(np.asarray(fit[name])[:, 0], np.setdiff1d(view[:, 0], test[:, side]))


def test_views_on_disk_are_fitted_without_the_rows_held_out(tmp_path):
    data = make_two_views(60, 100, 120, random_state=0)
    train, test = split_pairs(data.paired_idx, test_size=0.3, random_state=0)
    fits = [
        hold_out_rows(*views, train, test)[0]
        for views in ((data.X, data.Y), (as_given("path", data.X, tmp_path), as_given("path", data.Y, tmp_path)))
    ]
    found = [CCATeacher(center="all").fit(**fit) for fit in fits]
    assert_allclose(found[0].x_mean_, found[1].x_mean_, rtol=1e-5, atol=1e-7)
    assert_allclose(found[0].score(data.X, data.Y, paired_idx=test), found[1].score(data.X, data.Y, paired_idx=test))


def test_training_pairs_with_a_row_that_is_tested_on_are_refused_or_dropped(held):
    X, Y, train, test = held
    mixed = np.concatenate([train, [[1, 36], [28, 35]]])
    with pytest.raises(
        ValueError, match=re.escape("2 of 14 training pairs have a row that is tested on, the first being [1, 36]")
    ):
        hold_out_rows(X, Y, mixed, test)
    fit, held_out = hold_out_rows(X, Y, mixed, test, on_shared="drop")
    expected, _ = hold_out_rows(X, Y, train, test)
    assert_array_equal(fit.paired_idx, expected.paired_idx)
    assert len(held_out.paired_idx) == len(test)
    with pytest.raises(ValueError, match="must be 'raise' or 'drop', but it is 'keep'"):
        hold_out_rows(X, Y, train, test, on_shared="keep")


def test_a_row_listed_twice_is_told_where_it_is_trained_and_tested_on(held):
    X, Y, train, test = held
    Y = Y.copy()
    Y[test[6, 1]] = Y[train[3, 1]]
    with pytest.warns(UserWarning, match="1 of 7 pairs to test on share a row.*List each row once"):
        hold_out_rows(X, Y, train, test)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hold_out_rows(X, Y, np.delete(train, 3, axis=0), test)


# copies on both sides


@pytest.fixture
def captions(rng):
    """A table of 12 images with three captions each, and its groups."""
    X, Y = rng.normal(size=(12, 3)), rng.normal(size=(36, 4))
    return to_row_aligned(X, Y, np.column_stack([np.arange(36) // 3, np.arange(36)]))


def test_copies_on_both_sides_of_a_fold_are_told_once(captions):
    X, Y, _ = captions
    with pytest.warns(UserWarning, match="pairs to test on share a row with pairs to train on") as warned:
        assert len(list(PairedKFold(3, shuffle=True, random_state=0).split(X, Y))) == 3
    assert len(warned) == 1


@pytest.mark.parametrize("kind", ["groups", "rows in turn", "different", "text", "one view"])
def test_folds_without_copies_on_both_sides_are_silent(captions, kind):
    X, Y, groups = captions
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind == "groups":
            list(PairedKFold(3, shuffle=True, random_state=0).split(X, Y, groups))
        elif kind == "rows in turn":
            list(PairedKFold(3).split(X, Y))  # the captions of an image stand side by side
        elif kind == "different":
            list(PairedKFold(3, shuffle=True, random_state=0).split(X[::3], Y[::3]))
        elif kind == "text":
            list(PairedKFold(3, shuffle=True, random_state=0).split(X, np.array(["a", "b"] * 18)))
        else:
            list(PairedKFold(3, shuffle=True, random_state=0).split(X))
