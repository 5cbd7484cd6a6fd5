"""Wrong use inside cross-validation is refused: row numbers, pools that are sliced, scores that do not see the mask."""

import functools

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.parallel import Parallel, delayed

from skalign import CCATeacher, HubnessCorrection
from skalign.datasets import make_two_views
from skalign.metrics import make_retrieval_scorer
from skalign.model_selection import PairedKFold


@pytest.fixture(scope="module")
def table():
    """100 pairs among 400 rows, in no order; the other rows of X and Y have nothing to do with one another."""
    data = make_two_views(100, 300, 300, 1, n_features_x=7, n_features_y=9, n_latent=4, noise=0.2, random_state=0)
    order = np.random.default_rng(0).permutation(400)
    return data.X[order], data.Y[order], order < 100


def by_hand(aligner, X, Y, mask, cv):
    """Mean score of fits that saw the mask, by scores that did not."""
    scores = [aligner.fit(X[i], Y[i], mask[i]).score(X[j], Y[j]) for i, j in cv.split(X)]
    return np.mean(scores)


def test_a_naive_score_is_near_chance_and_the_paired_one_is_right(table):
    X, Y, mask = table
    aligner = CCATeacher(reg=0.01)
    assert by_hand(aligner, X, Y, mask, KFold(5)) < 0.2
    right = by_hand(aligner, X, Y, mask, PairedKFold(5, paired=mask))
    assert right > 0.6
    search = GridSearchCV(aligner, {"reg": [0.01]}, cv=PairedKFold(5, paired=mask)).fit(X, Y, paired_idx=mask)
    assert search.best_score_ == right
    with sklearn.config_context(enable_metadata_routing=True):
        assert cross_val_score(aligner, X, Y, cv=PairedKFold(5), params={"paired_idx": mask}).mean() == right
        assert cross_val_score(aligner, X, Y, cv=KFold(5), params={"paired_idx": mask}).mean() > 0.6


@pytest.mark.parametrize("cv", [5, KFold(5, shuffle=True, random_state=0), PairedKFold(5)])
@pytest.mark.parametrize("scoring", [None, make_retrieval_scorer()])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_a_score_without_the_mask_is_refused(table, cv, scoring, n_jobs):
    X, Y, mask = table
    search = GridSearchCV(CCATeacher(), {"reg": [0.01, 0.1]}, cv=cv, scoring=scoring, n_jobs=n_jobs)
    with pytest.raises(ValueError, match=r"`score` does not get `paired_idx` and would take \d+ unpaired rows"):
        search.fit(X, Y, paired_idx=mask)


def test_a_scorer_of_the_user_may_know_the_pairs(table):
    X, Y, mask = table
    paired = {row.tobytes() for row in X[mask]}

    def score(aligner, X, Y):
        return aligner.score(X, Y, paired_idx=np.array([row.tobytes() in paired for row in X]))

    class Scorer:
        def __call__(self, *args):
            return score(*args)

    params = {"paired_idx": mask}
    for scoring in (score, functools.partial(score), Scorer(), Scorer().__call__):
        scores = cross_val_score(
            CCATeacher(reg=0.01), X, Y, cv=KFold(5), params=params, scoring=scoring, error_score="raise"
        )
        assert scores.mean() > 0.6


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize("form", ["rows", "pairs", "as long as X"])
@pytest.mark.parametrize("last", ["aligner", "pipeline", "nested"])
def test_row_numbers_are_refused(table, routing, form, last):
    X, Y, mask = table
    rows = np.flatnonzero(mask)
    numbers = {"rows": rows, "pairs": np.column_stack([rows, rows]), "as long as X": np.arange(400)}[form]
    aligner = CCATeacher(reg=0.1)
    if last == "nested":
        aligner = HubnessCorrection(aligner)
    name = "paired_idx"
    if last == "pipeline":
        aligner, name = make_pipeline(StandardScaler(), aligner), name if routing else "ccateacher__paired_idx"
    with (
        sklearn.config_context(enable_metadata_routing=routing),
        pytest.raises(ValueError, match="`paired_idx` holds row numbers, which cannot follow the folds"),
    ):
        cross_val_score(aligner, X, Y, cv=KFold(4), params={name: numbers}, error_score="raise")


def test_row_numbers_are_refused_where_nothing_is_scored(table):
    X, Y, mask = table
    predictor, name = make_pipeline(CCATeacher(4, reg=0.1), KNeighborsRegressor()), "ccateacher__paired_idx"
    with pytest.raises(ValueError, match="`paired_idx` holds row numbers"):
        cross_val_predict(predictor, X, Y, cv=KFold(4), params={name: np.flatnonzero(mask)})
    assert cross_val_predict(predictor, X, Y, cv=KFold(4), params={name: mask}).shape == (400, 9)


@pytest.mark.parametrize("pool", ["X_unpaired", "Y_unpaired"])
def test_a_pool_as_long_as_the_view_is_refused_and_another_stays_whole(table, pool):
    X, Y, mask = table
    pairs, free = (X[mask], Y[mask]), (X if pool == "X_unpaired" else Y)[~mask]
    aligner, cv = CCATeacher(reg=0.1, center="all"), KFold(4)
    with pytest.raises(ValueError, match=f"`{pool}` has 100 rows, as many as X.*{pool}.1:."):
        cross_val_score(aligner, *pairs, cv=cv, params={pool: free[:100]}, error_score="raise")
    scores = cross_val_score(aligner, *pairs, cv=cv, params={pool: free[:99]})
    expected = [
        aligner.fit(pairs[0][i], pairs[1][i], **{pool: free[:99]}).score(pairs[0][j], pairs[1][j])
        for i, j in cv.split(pairs[0])
    ]
    assert_allclose(scores, expected)


def test_rows_without_a_partner_may_stand_in_test_parts_if_they_are_missing(table):
    X, Y, mask = table
    Y = np.where(mask[:, None], Y, np.nan)
    scores = cross_val_score(CCATeacher(reg=0.01), X, Y, cv=KFold(5), params={"paired_idx": mask})
    assert scores.mean() > 0.6


def test_a_pipeline_whose_score_gets_no_mask_is_refused_or_right(table):
    X, Y, mask = table
    pipeline, settings = make_pipeline(StandardScaler(), CCATeacher(reg=0.01)), {"cv": KFold(5), "error_score": "raise"}
    with sklearn.config_context(enable_metadata_routing=True):
        try:
            scores = cross_val_score(pipeline, X, Y, params={"paired_idx": mask}, **settings)
        except ValueError as error:  # before scikit-learn 1.8 the mask stops at a pipeline's own score
            assert "`score` does not get `paired_idx`" in str(error)
        else:
            assert scores.mean() > 0.6


def test_fits_in_parallel_that_are_no_folds_take_row_numbers(table):
    X, Y, mask = table
    fit = CCATeacher(reg=0.1).fit
    (fitted,) = Parallel(1)(delayed(fit)(X, Y, rows) for rows in [np.flatnonzero(mask)])
    assert fitted.n_pairs_ == 100


def test_a_pool_on_disk_stays_whole_in_every_fold(table, tmp_path):
    X, Y, mask = table
    np.save(tmp_path / "x.npy", X[~mask])
    path = tmp_path / "x.npy"
    aligner, pairs = CCATeacher(reg=0.01, center="all"), (X[mask], Y[mask])
    expected = cross_val_score(aligner, *pairs, cv=2, params={"X_unpaired": X[~mask]})
    for pool in (path, str(path), [path]):
        assert_allclose(cross_val_score(aligner, *pairs, cv=2, params={"X_unpaired": pool}), expected)
    for pool in ([path] * mask.sum(), "/" * (mask.sum() - len(str(path))) + str(path)):
        with pytest.raises(ValueError, match="string or list of length 100, as long as X.* Pass a pathlib.Path"):
            cross_val_score(aligner, *pairs, cv=2, params={"X_unpaired": pool}, error_score="raise")
