"""Every aligner in every place that scikit-learn has for it: searches, pipelines, processes and threads, kinds of arrays.

The referee is always the same work done by hand. What one aligner alone must keep stands in `test_common.py`.
"""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
import torch
from joblib import Parallel, delayed
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler, normalize
from sklearn.utils.validation import check_is_fitted
from test_common import ALIGNERS

from skalign import CCATeacher, HubnessCorrection, ProcrustesTeacher, SOTAlign, SOTAlignTransformer
from skalign.datasets import make_two_views
from skalign.model_selection import PairedKFold

pytestmark = pytest.mark.filterwarnings("ignore:.* pairs support .* directions:UserWarning")  # few pairs in a fold


@pytest.fixture(params=ALIGNERS, ids=lambda estimator: type(estimator).__name__)
def aligner(request):
    return clone(request.param)


@pytest.fixture(scope="module")
def data():
    return make_two_views(24, 12, 12, 9, n_features_x=7, n_features_y=11, n_latent=4, noise=0.3, random_state=0)


@pytest.fixture(scope="module")
def table(data):
    """24 pairs among 36 rows, in no order."""
    order = np.random.default_rng(0).permutation(36)
    return data.X[order], data.Y[order], order < 24


def scored_by_hand(aligner, table, cv):
    X, Y, mask = table
    scores = []
    for train, test in cv.split(X):
        fitted = clone(aligner).fit(X[train], Y[train], mask[train])
        scores.append(fitted.score(X[test], Y[test], paired_idx=mask[test]))
    return np.mean(scores)


def a_parameter(aligner):
    """A grid of one parameter that this aligner has and that changes its embedding."""
    grid = {"n_components": [2, 4], "n_neighbors": [1, 5], "center": ["pairs", None], "cost": ["linear", "chain"]}
    name = next(name for name in grid if name in aligner.get_params())
    return {name: grid[name]}


# searches ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [False, True])
def test_a_search_in_two_processes_scores_as_by_hand(aligner, table, routing):
    X, Y, mask = table
    grid = a_parameter(aligner)
    cv = PairedKFold(3, paired=mask)
    with sklearn.config_context(enable_metadata_routing=routing):
        search = GridSearchCV(aligner, grid, cv=PairedKFold(3) if routing else cv, n_jobs=2)
        search.fit(X, Y, paired_idx=mask)
    expected = [scored_by_hand(clone(aligner).set_params(**p), table, cv) for p in search.cv_results_["params"]]
    assert_allclose(search.cv_results_["mean_test_score"], expected)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    best = clone(aligner).set_params(**search.best_params_).fit(X, Y, mask)
    assert_array_equal(search.transform(X), best.transform(X))


NESTED = [  # a parameter of what is nested, and the nested aligner itself
    (SOTAlign(CCATeacher(), max_iter=3, random_state=0), "teacher"),
    (SOTAlignTransformer(CCATeacher(), max_iter=3, random_state=0), "teacher"),
    (HubnessCorrection(SOTAlign("procrustes", hubness_correction=False, max_iter=3), random_state=0), "estimator"),
]


@pytest.mark.parametrize(("outer", "inner"), NESTED, ids=lambda given: given if isinstance(given, str) else "")
@pytest.mark.parametrize(
    ("search", "settings"),
    [
        (GridSearchCV, {}),
        (RandomizedSearchCV, {"n_iter": 3, "random_state": 0}),
        (HalvingGridSearchCV, {"factor": 2, "max_resources": 4, "min_resources": 2, "random_state": 0}),
    ],
)
def test_searches_reach_what_is_nested(outer, inner, search, settings, table):
    X, Y, mask = table
    parameter, values = ("alpha", [0.0, 30.0]) if inner == "estimator" else ("reg", [0.001, 3.0])
    grid = [{f"{inner}__{parameter}": values}, {inner: [ProcrustesTeacher(2), CCATeacher(reg=0.1)]}]
    resource = None
    if search is HalvingGridSearchCV:
        resource = "max_iter" if inner == "teacher" else "n_anchors"
        settings = settings | {"resource": resource}
    with sklearn.config_context(enable_metadata_routing=True):
        found = search(outer, grid, cv=PairedKFold(3), n_jobs=2, **settings).fit(X, Y, paired_idx=mask)
    cv = PairedKFold(3, paired=mask)
    results = found.cv_results_
    expected = []
    for i, params in enumerate(results["params"]):
        given = dict(params) | ({resource: int(results["n_resources"][i])} if resource else {})
        expected.append(scored_by_hand(clone(outer).set_params(**given), table, cv))
    assert len(expected) == {GridSearchCV: 4, RandomizedSearchCV: 3, HalvingGridSearchCV: 4 + 2}[search]
    assert_allclose(results["mean_test_score"], expected)


# pipelines -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routing", [False, True])
def test_the_last_step_of_a_pipeline_is_the_aligner_on_what_came_before(aligner, table, data, routing):
    X, Y, mask = table
    steps = StandardScaler(), PCA(5, random_state=0)
    pipeline = make_pipeline(*steps, aligner)
    name = "paired_idx" if routing else f"{pipeline.steps[-1][0]}__paired_idx"
    with sklearn.config_context(enable_metadata_routing=routing):
        pipeline.fit(X, Y, **{name: mask})
        score = pipeline.score(data.X_test, data.Y_test)
    before = make_pipeline(*map(clone, steps))
    expected = clone(aligner).fit(before.fit_transform(X), Y, mask)
    assert_array_equal(pipeline.transform(data.X_test), expected.transform(before.transform(data.X_test)))
    assert score == expected.score(before.transform(data.X_test), data.Y_test)


def test_pools_pass_the_steps_before(aligner, data):
    p = len(data.paired_idx)
    steps = StandardScaler(), PCA(5, random_state=0)
    pools = {"X_unpaired": data.X[p:], "Y_unpaired": data.Y[p:]}
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(*steps, aligner, transform_input=["X_unpaired"]).fit(data.X[:p], data.Y[:p], **pools)
    before = make_pipeline(*map(clone, steps))
    X_pairs = before.fit_transform(data.X[:p])
    pools["X_unpaired"] = before.transform(pools["X_unpaired"])
    expected = clone(aligner).fit(X_pairs, data.Y[:p], **pools)
    assert_array_equal(pipeline.transform(data.X_test), expected.transform(before.transform(data.X_test)))


def test_a_pool_that_went_past_the_steps_before_is_refused(aligner, data):
    p = len(data.paired_idx)
    pipeline = make_pipeline(PCA(5), aligner)
    with pytest.raises(ValueError, match="`X_unpaired` must have the columns of X, 5, but it has 7"):
        pipeline.fit(data.X[:p], data.Y[:p], **{f"{pipeline.steps[-1][0]}__X_unpaired": data.X[p:]})


def test_pools_stay_whole_in_the_folds_of_a_pipeline(data):
    p = len(data.paired_idx)
    aligner, cv = SOTAlign(max_iter=3, random_state=0), PairedKFold(3)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), aligner, transform_input=["X_unpaired"])
        pools = {"X_unpaired": data.X[p:], "Y_unpaired": data.Y[p:]}
        scores = cross_val_score(pipeline, data.X[:p], data.Y[:p], cv=cv, params=pools)
    expected = []
    for train, test in cv.split(data.X[:p]):
        scaler = StandardScaler().fit(data.X[train])
        pool = scaler.transform(data.X[p:])
        aligner.fit(scaler.transform(data.X[train]), data.Y[train], X_unpaired=pool, Y_unpaired=data.Y[p:])
        expected.append(aligner.score(scaler.transform(data.X[test]), data.Y[test]))
    assert_allclose(scores, expected)


def test_steps_may_follow_an_aligner(aligner, table, data):
    X, Y, mask = table
    pipeline = make_pipeline(StandardScaler(), aligner, PCA(2, random_state=0), Normalizer())
    pipeline.fit(X, Y, **{f"{pipeline.steps[1][0]}__paired_idx": mask})
    scaler = StandardScaler().fit(X)
    first = clone(aligner).fit(scaler.transform(X), Y, mask)
    after = make_pipeline(PCA(2, random_state=0), Normalizer()).fit(first.transform(scaler.transform(X)))
    expected = after.transform(first.transform(scaler.transform(data.X_test)))
    assert_allclose(pipeline.transform(data.X_test), expected)


def test_a_regression_may_follow_an_aligner(aligner, data):
    X, Y = data.X[:24], data.Y[:24]
    pipeline = make_pipeline(aligner, KNeighborsRegressor(3)).fit(X, Y)
    fitted = clone(aligner).fit(X, Y)
    expected = KNeighborsRegressor(3).fit(fitted.transform(X), Y)
    assert pipeline.predict(data.X_test).shape == (9, 11)
    assert_array_equal(pipeline.predict(data.X_test), expected.predict(fitted.transform(data.X_test)))


def test_a_fitted_aligner_is_a_step_before_a_classifier(aligner, table, data):
    X, Y, mask = table
    labels = X[:, 0] > np.median(X[:, 0])
    fitted = aligner.fit(X, Y, mask)
    expected = KNeighborsClassifier(3).fit(fitted.transform(X), labels)
    pipeline = make_pipeline(FrozenEstimator(fitted), KNeighborsClassifier(3)).fit(X, labels)
    assert_array_equal(pipeline.predict_proba(data.X_test), expected.predict_proba(fitted.transform(data.X_test)))


def test_preprocessing_inside_sotalign_is_that_of_a_pipeline(table, data):
    X, Y, mask = table
    settings = {"y_transformer": PCA(6, random_state=0), "max_iter": 3, "random_state": 0}
    inside = SOTAlign(x_transformer=StandardScaler(), **settings).fit(X, Y, mask)
    outside = make_pipeline(StandardScaler(), SOTAlign(x_transformer=None, **settings))
    outside.fit(X, Y, sotalign__paired_idx=mask)
    assert_allclose(outside.transform(data.X_test), inside.transform(data.X_test))
    assert_allclose(outside[-1].transform_y(data.Y_test), inside.transform_y(data.Y_test))


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_names_pass_through_a_pipeline(aligner, table, data, kind):
    X, Y, mask = table
    frame = {"pandas": pd.DataFrame, "polars": pl.DataFrame}[kind]
    x_names, y_names = [f"x{i}" for i in range(7)], [f"y{i}" for i in range(11)]
    X, X_test = (frame(dict(zip(x_names, Z.T, strict=True))) for Z in (X, data.X_test))
    Y = frame(dict(zip(y_names, Y.T, strict=True)))
    pipeline = make_pipeline(StandardScaler(), aligner, Normalizer()).set_output(transform=kind)
    pipeline.fit(X, Y, **{f"{pipeline.steps[1][0]}__paired_idx": mask})
    step = pipeline[1]
    assert list(pipeline.feature_names_in_) == list(step.feature_names_in_) == x_names
    assert list(step.feature_names_in_y_) == y_names
    embedded = pipeline.transform(X_test)
    assert isinstance(embedded, frame)
    assert list(embedded.columns) == list(step.get_feature_names_out()) == list(pipeline.get_feature_names_out())
    scaler = StandardScaler().set_output(transform=kind)
    expected = clone(aligner).set_output(transform="default").fit(scaler.fit_transform(X), Y, mask)
    assert_allclose(embedded.to_numpy(), normalize(expected.transform(scaler.transform(X_test))))


def test_rows_keep_their_labels(aligner, table):
    X, Y, mask = table
    labels = [f"row {i}" for i in range(36)]
    embedded = aligner.set_output(transform="pandas").fit(X, Y, mask).transform(pd.DataFrame(X, index=labels))
    assert list(embedded.index) == labels


# copies, processes, threads ------------------------------------------------------------------------------------------


def test_a_clone_knows_the_parameters_and_nothing_else(aligner, table):
    X, Y, mask = table
    expected = aligner.fit(X, Y, mask).transform(X)
    copy = clone(aligner)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        check_is_fitted(copy)
    assert repr(copy.get_params()) == repr(aligner.get_params())
    assert_array_equal(copy.fit(X, Y, mask).transform(X), expected)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_fits_side_by_side_equal_fits_in_turn(aligner, table, backend):
    X, Y, mask = table
    views = [
        (X[rows], Y[rows], mask[rows]) for rows in (slice(None), slice(20), slice(10, None), slice(None, None, -1))
    ]
    expected = [clone(aligner).fit(*view).transform(X) for view in views]
    fitted = Parallel(2, backend=backend)(delayed(clone(aligner).fit)(*view) for view in views)
    for one, F in zip(fitted, expected, strict=True):
        assert_array_equal(one.transform(X), F)


# kinds of arrays -----------------------------------------------------------------------------------------------------


def on_disk(Z, folder):
    np.save(folder / f"{Z.shape[1]}.npy", Z)
    return np.load(folder / f"{Z.shape[1]}.npy", mmap_mode="r")


KINDS = {
    "list": lambda Z, folder: Z.tolist(),
    "columns first": lambda Z, folder: np.asfortranarray(Z),
    "negative strides": lambda Z, folder: np.ascontiguousarray(Z[::-1, ::-1])[::-1, ::-1],
    "other byte order": lambda Z, folder: Z.astype(Z.dtype.newbyteorder(">")),
    "read-only memory map": on_disk,
    "pandas": lambda Z, folder: pd.DataFrame(Z).add_prefix("c"),
    "polars": lambda Z, folder: pl.DataFrame(Z),
    "torch": lambda Z, folder: torch.tensor(Z),
    "torch with gradient": lambda Z, folder: torch.tensor(Z, requires_grad=True),
}
FRAMES = ("pandas", "polars", "torch")


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "f4") for kind in KINDS), *((kind, "f8") for kind in FRAMES)])
def test_the_kind_of_array_changes_no_bit(aligner, table, data, kind, dtype, tmp_path):
    X, Y, mask = (*(Z.astype(dtype) for Z in table[:2]), table[2])
    X_test = data.X_test.astype(dtype)
    expected = clone(aligner).fit(X, Y, mask).transform(X_test)
    aligner.fit(KINDS[kind](X, tmp_path), KINDS[kind](Y, tmp_path), mask)
    embedded = np.asarray(aligner.transform(KINDS[kind](X_test, tmp_path)))
    assert embedded.dtype == expected.dtype == np.dtype(dtype)
    assert_array_equal(embedded, expected)


def test_half_precision_is_read_as_float32(aligner, table):
    X, Y, mask = (*(Z.astype(np.float16) for Z in table[:2]), table[2])
    expected = clone(aligner).fit(X.astype(np.float32), Y.astype(np.float32), mask).transform(X.astype(np.float32))
    assert_array_equal(aligner.fit(X, Y, mask).transform(X), expected)
    tensors = clone(aligner).fit(torch.tensor(X), torch.tensor(Y), mask)
    assert_array_equal(tensors.transform(torch.tensor(X)).numpy(), expected)


def test_a_table_scored_without_its_mask_is_told(aligner, table):
    X, Y, mask = table
    aligner.fit(X, Y, mask)
    with pytest.warns(UserWarning, match="takes all 36 rows for pairs, but .* only 24 were paired in `fit`"):
        aligner.score(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligner.score(X, Y, paired_idx=mask)
        aligner.score(X[mask], Y[mask])
        clone(aligner).fit(X[mask], Y[mask]).score(X[mask], Y[mask])
