"""ZeroShotClassifier: planted classes are found, plain loops agree, and clones never forget an aligner in silence."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skalign import CCATeacher, HubnessCorrection, ProcrustesTeacher, ZeroShotClassifier
from skalign.datasets import make_two_views

CLASSES = np.array(["owl", "cat", "dog"])


@pytest.fixture
def planted(rng):
    """Rows of X around three directions, 2, 5 and 9 prompts around the same directions turned into another space."""
    rotation = np.linalg.qr(rng.standard_normal((11, 7)))[0].T
    directions = np.linalg.qr(rng.standard_normal((7, 3)))[0].T

    def around(counts):
        codes = np.repeat(np.arange(3), counts)
        return directions[codes] + 0.1 * rng.standard_normal((len(codes), 7)), CLASSES[codes]

    X, y = around((20, 30, 40))
    prompts, prompt_classes = around((2, 5, 9))
    shuffled = rng.permutation(16)
    pairs = rng.standard_normal((50, 7))
    aligner = ProcrustesTeacher(normalize=False).fit(pairs, pairs @ rotation)
    return aligner, X, y, (prompts @ rotation)[shuffled], prompt_classes[shuffled]


@pytest.fixture
def classifier(planted):
    aligner, _, _, prompts, prompt_classes = planted
    return ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=prompt_classes)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_planted_classes_are_found_without_a_labelled_row(planted, classifier, pooling):
    _, X, y, *_ = planted
    assert classifier.set_params(pooling=pooling).fit().score(X, y) == 1
    assert_array_equal(classifier.classes_, ["cat", "dog", "owl"])


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("aligned", [True, False])
def test_cosines_are_those_of_plain_loops(planted, pooling, aligned):
    aligner, X, _, prompts, classes = planted
    if not aligned:
        aligner, prompts = None, prompts[:, :7]
    found = ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=classes, pooling=pooling).fit()
    F, G = (X, prompts) if aligner is None else aligner.transform(X, prompts)
    for f, row in zip(F, found.decision_function(X), strict=True):
        for name, cosine in zip(("cat", "dog", "owl"), row, strict=True):
            unit = [g / np.linalg.norm(g) for g in G[classes == name]]
            mean = np.mean(unit, axis=0)
            each = [f @ g / np.linalg.norm(f) for g in unit]
            expected = f @ mean / np.linalg.norm(f) / np.linalg.norm(mean) if pooling == "mean" else max(each)
            assert_allclose(cosine, expected, atol=1e-12)


def test_without_prompts_the_labelled_rows_stand_in(planted):
    aligner, X, y, *_ = planted
    nearest = KNeighborsClassifier(1, metric="cosine").fit(aligner.transform(X[::2]), y[::2])
    stand_in = ZeroShotClassifier(aligner, pooling="max").fit(X[::2], y[::2])
    assert_array_equal(stand_in.predict(X[1::2]), nearest.predict(aligner.transform(X[1::2])))
    as_prompts = ZeroShotClassifier(prompts=X[::2], prompt_classes=y[::2]).fit()
    assert_allclose(ZeroShotClassifier().fit(X[::2], y[::2]).predict_proba(X), as_prompts.predict_proba(X))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_are_a_softmax_of_the_cosines(planted, classifier, n_classes):
    _, X, _, prompts, classes = planted
    kept = np.isin(classes, np.unique(classes)[:n_classes])
    classifier.set_params(prompts=prompts[kept], prompt_classes=classes[kept], temperature=0.3).fit()
    scores, probabilities = classifier.decision_function(X), classifier.predict_proba(X)
    assert_allclose(probabilities.sum(axis=1), 1)
    logits = np.log(probabilities)
    if n_classes == 2:
        assert scores.shape == (90,)
        assert_allclose(scores / 0.3, logits[:, 1] - logits[:, 0])
        assert_array_equal(classifier.predict(X), classifier.classes_[(scores > 0).astype(int)])
    else:
        assert_allclose(scores / 0.3 - (scores / 0.3).mean(axis=1)[:, None], logits - logits.mean(axis=1)[:, None])


def test_temperature_goes_from_certain_to_indifferent(planted, classifier):
    _, X, y, *_ = planted
    certain = classifier.set_params(temperature=1e-320).fit().predict_proba(X)
    assert_array_equal(certain, (y[:, None] == classifier.classes_).astype(float))
    assert_allclose(classifier.set_params(temperature=1e9).fit().predict_proba(X), 1 / 3, atol=1e-8)


@pytest.mark.parametrize("aligner", [None, ProcrustesTeacher()])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_scale_of_prompts_and_rows_does_not_matter(planted, rng, aligner, pooling):
    _, X, y, _, _ = planted
    prompts, classes = X[::3], y[::3]
    if aligner is not None:
        aligner = clone(aligner).fit(X, X)
    found = ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=classes, pooling=pooling).fit()
    scaled = clone(found).set_params(aligner=aligner, prompts=prompts * rng.uniform(0.01, 100, (len(prompts), 1))).fit()
    assert_allclose(scaled.decision_function(X * 1e3), found.decision_function(X), atol=1e-12)


def test_a_prompt_given_twice_counts_twice_in_the_mean_only(planted, classifier):
    _, X, _, prompts, classes = planted
    again = {"prompts": np.vstack([prompts, prompts[:1]]), "prompt_classes": np.append(classes, classes[0])}
    for pooling, same in (("mean", False), ("max", True)):
        once = classifier.set_params(pooling=pooling).fit().decision_function(X)
        twice = ZeroShotClassifier(classifier.aligner, **again, pooling=pooling).fit().decision_function(X)
        assert np.allclose(once, twice, atol=1e-12) == same


@pytest.mark.parametrize("names", [np.array([10, -3, 7]), CLASSES.astype(object), np.array([True, False])])
def test_classes_are_of_any_kind(planted, names):
    aligner, X, y, prompts, classes = planted
    code = dict(zip(CLASSES, names, strict=False))
    X, prompts = X[np.isin(y, list(code))], prompts[np.isin(classes, list(code))]
    y, classes = (np.array([code[n] for n in names_of if n in code], dtype=names.dtype) for names_of in (y, classes))
    found = ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=classes).fit(X, y)
    assert_array_equal(found.classes_, np.unique(names))
    assert found.score(X, y) == 1
    assert found.predict(X).dtype == names.dtype


@pytest.mark.filterwarnings("ignore:X has feature names")  # the aligner was fitted on arrays
@pytest.mark.parametrize("kind", ["frame", "tensor", "list", "float16", "reversed"])
def test_kinds_of_arrays_agree(planted, classifier, kind):
    _, X, y, prompts, classes = planted
    as_kind = {
        "frame": lambda Z: pd.DataFrame(Z).add_prefix("c"),
        "tensor": torch.from_numpy,
        "list": np.ndarray.tolist,
        "float16": lambda Z: Z.astype(np.float16),
        "reversed": lambda Z: np.ascontiguousarray(Z[::-1])[::-1],
    }[kind]
    labels = {"frame": pd.Series, "list": np.ndarray.tolist}.get(kind, lambda y: y)
    expected = classifier.fit().decision_function(X)
    given = ZeroShotClassifier(classifier.aligner, prompts=as_kind(prompts), prompt_classes=labels(classes))
    atol = 5e-3 if kind == "float16" else 1e-5  # lists are read as float32
    assert_allclose(given.fit(as_kind(X), labels(y)).decision_function(as_kind(X)), expected, atol=atol)
    assert_allclose(given.fit().predict_proba(as_kind(X)).sum(axis=1), 1)


def test_column_names_are_those_the_aligner_knows(planted):
    aligner, X, _, prompts, classes = planted
    frame, prompts = pd.DataFrame(X).add_prefix("x"), pd.DataFrame(prompts).add_prefix("y")
    aligner = clone(aligner).fit(frame, pd.DataFrame(X @ np.eye(7, 11)).add_prefix("y"))
    found = ZeroShotClassifier(aligner, prompts=prompts, prompt_classes=classes).fit()
    assert found.n_features_in_ == 7
    assert_array_equal(found.feature_names_in_, frame.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(frame.iloc[:, ::-1])
    found.set_params(aligner=None, prompts=prompts.to_numpy()).fit()
    assert found.n_features_in_ == 11
    assert not hasattr(found, "feature_names_in_")


@pytest.mark.slow  # starts processes
def test_a_search_over_temperature_and_pooling_keeps_the_frozen_aligner(planted, classifier):
    aligner, X, y, *_ = planted
    frozen = clone(classifier.set_params(aligner=FrozenEstimator(aligner)))
    assert_allclose(cross_val_score(frozen, X, y, cv=3), 1)
    y[::10] = "cat"  # so that certainty costs
    grid = {"temperature": [1e-3, 0.1, 10], "pooling": ["mean", "max"]}
    search = GridSearchCV(frozen, grid, cv=3, scoring="neg_log_loss", n_jobs=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["temperature"] == 0.1
    assert search.best_estimator_.aligner.estimator is aligner


def test_a_search_over_a_bare_aligner_says_that_cloning_dropped_its_fit(planted, classifier):
    _, X, y, *_ = planted
    for grid in ({"temperature": [0.1, 1]}, {"aligner__center": ["pairs", "all"]}):
        with pytest.raises(NotFittedError, match=r"whatever else clones, .* pass FrozenEstimator\(aligner\)"):
            GridSearchCV(classifier, grid, error_score="raise").fit(X, y)


def test_a_search_over_the_parameters_of_a_frozen_aligner_is_refused(planted, classifier):
    aligner, X, y, *_ = planted
    frozen = classifier.set_params(aligner=FrozenEstimator(aligner))
    with pytest.raises(ValueError, match=r"Invalid parameter|cannot set parameters of the inner"):
        GridSearchCV(frozen, {"aligner__center": ["pairs", "all"]}, error_score="raise").fit(X, y)


def test_aligners_themselves_are_compared_when_each_is_fitted(planted, classifier):
    aligner, X, y, *_ = planted
    broken = ProcrustesTeacher().fit(X, np.random.default_rng(1).standard_normal((90, 11)))
    grid = {"aligner": [FrozenEstimator(broken), FrozenEstimator(aligner)]}
    search = GridSearchCV(classifier, grid, cv=3).fit(X, y)
    assert search.best_params_["aligner"].estimator is aligner
    assert search.cv_results_["mean_test_score"][0] < 0.9


def test_pipelines_prepare_rows_and_calibration_follows(planted, classifier):
    aligner, X, y, *_ = planted
    classifier.set_params(aligner=FrozenEstimator(aligner))
    pipeline = make_pipeline(FrozenEstimator(StandardScaler(with_std=False).fit(X)), classifier).fit(X, y)
    assert_array_equal(pipeline.predict(X), classifier.fit().predict(X - X.mean(axis=0)))
    assert make_pipeline(Normalizer(), classifier).fit(X, y).score(X, y) == 1
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier.set_params(temperature=1.0).fit())).fit(X, y)
    assert log_loss(y, calibrated.predict_proba(X)) < log_loss(y, classifier.predict_proba(X))


def test_unseen_classes_may_be_absent_from_y_and_labels_change_nothing(planted, classifier):
    _, X, y, *_ = planted
    expected = classifier.fit().decision_function(X)
    assert_array_equal(classifier.fit(X[:20], y[:20]).decision_function(X), expected)
    assert_array_equal(classifier.fit(X).decision_function(X), expected)


def test_pickle_keeps_the_probabilities():
    data = make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, random_state=0)
    aligner = HubnessCorrection(CCATeacher(reg=0.1), random_state=0).fit(data.X, data.Y, data.paired_idx)
    found = ZeroShotClassifier(aligner, prompts=data.Y_test[:9], prompt_classes=np.arange(9) % 4).fit()
    restored = pickle.loads(pickle.dumps(found))
    assert_array_equal(restored.predict_proba(data.X_test), found.predict_proba(data.X_test))


def test_wrong_prompts_are_refused(planted, classifier):
    *_, prompts, classes = planted
    bad = prompts.copy()
    bad[3, 2] = np.nan
    for changes, message in (
        ({"prompts": bad}, "Input prompts contains NaN"),
        ({"prompts": prompts[0]}, "Expected 2D array"),
        ({"prompts": prompts[:, :5]}, "Y has 5 features"),
        ({"prompt_classes": classes[:9]}, "there are 9 classes and 16 prompts"),
        ({"prompt_classes": None}, "`prompts` need `prompt_classes`"),
        ({"prompts": None}, "`prompts` is None. Pass both or neither"),
        ({"prompts": None, "prompt_classes": None}, "requires y to be passed"),
        ({"prompt_classes": np.linspace(0, 1, 16)}, "`prompt_classes` must be .* whole numbers.*Unknown label type"),
        (
            {"prompt_classes": np.array(["a", 1] * 8, dtype=object)},
            "`prompt_classes` must be .* text or of whole numbers",
        ),
        ({"prompt_classes": [*classes[:15].tolist(), None]}, "`prompt_classes` must be .* none of them missing"),
        ({"prompts": {"owl": prompts[0]}}, "it is a dict. Stack its values"),
        ({"pooling": "median"}, "The 'pooling' parameter"),
        ({"temperature": 0}, "The 'temperature' parameter"),
    ):
        original = classifier.get_params(deep=False)
        with pytest.raises(ValueError, match=message):
            classifier.set_params(**changes).fit()
        classifier.set_params(**original)


def test_wrong_rows_and_labels_are_refused_and_lose_nothing(planted, classifier):
    _, X, y, prompts, _ = planted
    expected = classifier.fit().predict(X)
    with pytest.raises(ValueError, match=r"y has classes without a prompt: \['cow', 'emu'\]"):
        classifier.fit(X[:3], ["cow", "cat", "emu"])
    with pytest.raises(ValueError, match="X has 5 columns, but the aligner takes 7"):
        classifier.fit(X[:, :5], y)
    with pytest.raises(ValueError, match="X has 7 columns, but the prompts have 11"):
        clone(classifier).set_params(aligner=None).fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(X, y[:-1])
    with pytest.raises(ValueError, match="X has 11 features, but ZeroShotClassifier is expecting 7"):
        classifier.predict(prompts)
    with pytest.raises(ValueError, match="contains NaN"):
        classifier.predict(np.full((2, 7), np.nan))
    assert_array_equal(classifier.predict(X), expected)


def test_an_unfitted_one_says_so(planted, classifier):
    _, X, *_ = planted
    with pytest.raises(NotFittedError, match="instance is not fitted yet"):
        classifier.predict(X)
    with pytest.raises(NotFittedError, match="this ProcrustesTeacher is not fitted"):
        classifier.set_params(aligner=ProcrustesTeacher()).fit()
