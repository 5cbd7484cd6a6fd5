"""Laws of BridgeFlow: what it learns from a plan and from classes, what it refuses, and its manners."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier

from skalign import BridgeFlow
from skalign._core.bridges import ridge
from skalign.datasets import make_two_views

SMALL = {"hidden_layer_sizes": (32, 32), "random_state": 0}


@pytest.fixture(scope="module")
def data():
    """30 pairs first, then 100 x and 90 y; 7 and 11 columns."""
    return make_two_views(30, 100, 90, 60, n_features_x=7, n_features_y=11, n_latent=4, random_state=0)


@pytest.fixture(scope="module")
def classes():
    """Three far classes in both views, 60 x and 50 y, nobody paired; which class each row has."""
    rng = np.random.default_rng(0)
    of_x, of_y = np.arange(60) % 3, np.arange(50) % 3
    X = 4 * np.eye(3, 7)[of_x] + 0.3 * rng.standard_normal((60, 7))
    Y = 4 * np.eye(3, 11)[of_y] + 0.3 * rng.standard_normal((50, 11)) + 10
    return X, Y, of_x, of_y


def fitted(data, **settings):
    return BridgeFlow(**SMALL | {"max_iter": 20} | settings).fit(data.X, data.Y, data.paired_idx)


def known(labels, n):
    """The first n labels, the others unknown."""
    return np.where(np.arange(len(labels)) < n, labels, -1)


def accuracy(flow, classes):
    X, Y, of_x, of_y = classes
    return KNeighborsClassifier(1).fit(Y, of_y).score(flow.transform(X), of_x)


def test_unpaired_rows_raise_the_score_on_unseen_pairs():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((700, 4))
    X, Y = (np.tanh(z @ rng.standard_normal((4, 20)) / 2) @ rng.standard_normal((20, d)) for d in (8, 12))
    seen, unseen = slice(0, 500), slice(500, None)
    settings = {"hidden_layer_sizes": (64, 64), "max_iter": 500, "random_state": 0}
    alone = BridgeFlow(**settings).fit(X[:25], Y[:25])
    mask = np.arange(500) < 25
    with_plan = BridgeFlow(**settings).fit(X[seen], Y[seen], mask)
    assert with_plan.cost_ == "linear"
    assert with_plan.coupling_.diagonal().sum() > 0.9
    assert with_plan.score(X[unseen], Y[unseen]) > alone.score(X[unseen], Y[unseen]) + 0.15


def test_plan_holds_the_unpaired_rows_alone(data):
    flow = fitted(data)
    assert flow.coupling_.shape == (100, 90)
    assert_allclose(flow.coupling_.sum(), 1)
    pooled = BridgeFlow(**SMALL, max_iter=20).fit(
        data.X[:40], data.Y[:30], np.column_stack([np.arange(30)] * 2), X_unpaired=data.X[40:], Y_unpaired=data.Y[30:]
    )
    assert_allclose(pooled.coupling_.toarray(), flow.coupling_.toarray())


def test_without_unpaired_rows_of_a_view_the_pairs_alone_are_trained_on(data):
    flow = BridgeFlow(**SMALL, max_iter=5).fit(data.X[:30], data.Y[:30], X_unpaired=data.X[30:])
    assert flow.coupling_.shape == (100, 0)
    assert np.isfinite(flow.transform(data.X_test)).all()


@pytest.mark.parametrize("mode", ["ot", "exemplar"])
def test_labels_carry_a_class_to_its_own_without_a_pair(classes, mode):
    X, Y, of_x, of_y = classes
    flow = BridgeFlow(mode, **SMALL, max_iter=300)
    flow.fit(X, Y, [], labels_x=known(of_x, 12), labels_y=known(of_y, 12))
    assert flow.n_pairs_ == 0
    assert accuracy(flow, classes) == 1
    assert (flow.cost_ == "chain") is (mode == "ot")
    assert (flow.coupling_ is None) is (mode == "exemplar")


def test_exemplars_alone_depend_on_labelled_rows_and_scale(classes):
    X, Y, of_x, of_y = classes
    labels = {"labels_x": known(of_x, 12), "labels_y": known(of_y, 12)}
    swapped = X.copy()
    swapped[12:] = X[12:][::-1]
    first, second = (
        BridgeFlow("exemplar", self_training=False, **SMALL, max_iter=20).fit(Z, Y, [], **labels) for Z in (X, swapped)
    )
    assert_allclose(first.transform(X), second.transform(X))


def test_means_of_classes_join_the_pairs_as_bridges(data):
    labels_x, labels_y = np.full(len(data.X), -1), np.full(len(data.Y), -1)
    labels_x[[40, 50]], labels_y[[60, 70]] = 3, 3
    flow = BridgeFlow(**SMALL, max_iter=2)
    flow.fit(data.X, data.Y, data.paired_idx, labels_x=labels_x, labels_y=labels_y)
    assert len(flow.bridges_x_) == len(flow.bridges_y_) == 31
    assert_allclose(flow.bridges_x_[-1] * flow.x_scale_ + flow.x_mean_, data.X[[40, 50]].mean(axis=0))
    assert_allclose(flow.bridges_y_[-1] * flow.y_scale_ + flow.y_mean_, data.Y[[60, 70]].mean(axis=0))


def test_prepared_views_have_mean_zero_and_scale_one_over_all_rows(data):
    flow = fitted(data, max_iter=1)
    assert_allclose(flow.x_mean_, data.X.mean(axis=0))
    assert_allclose(flow.y_scale_, np.sqrt(np.mean((data.Y - data.Y.mean(axis=0)) ** 2)))


@pytest.mark.parametrize("source", ["lift", "noise", "teacher"])
def test_a_row_maps_alike_in_any_company_and_follows_the_units_of_y(data, source):
    flow = fitted(data, source=source)
    F = flow.transform(data.X_test)
    assert F.shape == (60, 11)
    assert_allclose(flow.transform(data.X_test[7:8]), F[7:8])
    moved = BridgeFlow(**SMALL, max_iter=20, source=source).fit(data.X, 100 * data.Y + 5, data.paired_idx)
    assert_allclose(moved.transform(data.X_test), 100 * F + 5, rtol=1e-3, atol=1)


def test_samples_differ_and_their_mean_is_near_the_answer(data):
    flow = fitted(data, source="noise", max_iter=100, n_draws=64)
    G = flow.sample(data.X_test[:4], 500, random_state=0)
    assert G.shape == (4, 500, 11)
    assert (G.std(axis=1) > 0).all()
    assert_array_equal(G, flow.sample(data.X_test[:4], 500, random_state=0))
    assert not np.array_equal(G, flow.sample(data.X_test[:4], 500, random_state=1))
    standard_error = np.hypot(G.std(axis=1) / np.sqrt(500), G.std(axis=1) / 8)
    assert (np.abs(G.mean(axis=1) - flow.transform(data.X_test[:4])) < 5 * standard_error).all()
    assert isinstance(flow.sample(torch.from_numpy(data.X_test[:4])), torch.Tensor)
    assert fitted(data, source="teacher").sample(data.X_test[:4], 2).shape == (4, 2, 11)
    with pytest.raises(
        ValueError, match="fitted with source='auto'.* starts at the lifted row.* Fit it with source='noise'"
    ):
        fitted(data).sample(data.X_test)


def test_inverse_brings_rows_back():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    Y = X @ np.linalg.qr(rng.standard_normal((5, 3)))[0].T + 7
    flow = BridgeFlow(hidden_layer_sizes=(64, 64), max_iter=400, inverse=True, random_state=0).fit(X[:200], Y[:200])
    back = flow.inverse_transform(Y[200:])
    assert np.mean((back - X[200:]) ** 2) < 0.05 * np.var(X)
    once = BridgeFlow(hidden_layer_sizes=(64, 64), max_iter=400, random_state=0).fit(X[:200], Y[:200])
    assert_array_equal(once.transform(X), flow.transform(X))
    with pytest.raises(AttributeError, match="inverse_transform"):
        once.inverse_transform(Y)


def test_coupling_of_given_rows_is_that_of_fit_on_the_same_rows(data):
    flow = fitted(data, cost="linear")
    assert_array_equal(flow.couple(data.X[30:], data.Y[30:]).toarray(), flow.coupling_.toarray())
    plan = flow.couple(data.X_test[:9], data.Y_test[:7])
    assert plan.shape == (9, 7)
    assert_allclose(plan.sum(axis=0), 1 / 7)


def test_score_is_by_cosines_around_the_mean_of_y(data):
    flow = fitted(data)
    F, G = (Z - flow.y_mean_ for Z in flow.transform(data.X_test, data.Y_test))
    C = (F / np.linalg.norm(F, axis=1, keepdims=True)) @ (G / np.linalg.norm(G, axis=1, keepdims=True)).T
    expected = np.mean([C.argmax(axis=1) == np.arange(60), C.argmax(axis=0) == np.arange(60)])
    assert_allclose(flow.score(data.X_test, data.Y_test), expected)


def test_grid_search_compares_flows(data):
    search = GridSearchCV(BridgeFlow(**SMALL, source="lift"), {"max_iter": [1, 150]}, cv=3)
    search.fit(data.X[:30], data.Y[:30])
    assert search.best_params_ == {"max_iter": 150}


def test_early_stopping_hides_the_held_out_pairs_and_keeps_the_best_state(data):
    flow = fitted(data, max_iter=300, early_stopping=True, validation_fraction=0.2, n_iter_no_change=100)
    assert len(flow.bridges_x_) == 24
    assert flow.coupling_.shape == (100, 90)
    curve = flow.loss_curve_["validation"]
    assert flow.best_iter_ == 100 * int(np.argmax(curve))
    with pytest.raises(ValueError, match="needs two that share no row"):
        BridgeFlow(early_stopping=True).fit(data.X[:2], data.Y[:2], [[0, 0], [0, 1]])


def test_an_interrupted_fit_is_fitted(data):
    class Interrupting(torch.optim.AdamW):
        def step(self, closure=None):
            self.n_steps = getattr(self, "n_steps", 0) + 1
            if self.n_steps == 4:
                raise KeyboardInterrupt
            return super().step(closure)

    with pytest.warns(ConvergenceWarning, match="interrupted after 3 of 20 steps"):
        flow = fitted(data, optimizer=Interrupting)
    assert flow.n_iter_ == len(flow.loss_curve_["loss"]) == 3
    assert np.isfinite(flow.transform(data.X_test)).all()


def test_a_failed_fit_leaves_the_old_one(data):
    flow = fitted(data)
    before = flow.transform(data.X_test)
    with pytest.raises(ValueError, match="at least 3 distinct bridges"):
        flow.set_params(cost="profile").fit(data.X, data.Y, [0, 1])
    assert_array_equal(flow.transform(data.X_test), before)
    with pytest.raises(NotFittedError):
        BridgeFlow().transform(data.X_test)


def test_many_rows_are_matched_in_blocks(data):
    flow = fitted(data, cost="linear", plan_size=40)
    assert flow.coupling_.shape == (100, 90)
    assert_allclose(flow.coupling_.sum(axis=1), 1 / 100, rtol=0.05)


def test_verbose_shows_progress(data, capsys):
    fitted(data, verbose=1)
    assert "20/20" in capsys.readouterr().err


def test_a_users_cost_is_used(data):
    def cost(X, Y, A, B):
        return np.abs(X[:, :1] - Y[:, 0])

    flow = fitted(data, cost=cost)
    assert flow.cost_ is cost
    gap = np.abs(
        (data.X[30:, :1] - flow.x_mean_[0]) / flow.x_scale_ - (data.Y[30:, 0] - flow.y_mean_[0]) / flow.y_scale_
    )
    assert (flow.coupling_.toarray() * gap).sum() < 0.5 * gap.mean()


def test_float32_and_float64_rows_map_alike(data):
    flow = fitted(data)
    assert_allclose(flow.transform(data.X_test.astype(np.float32)), flow.transform(data.X_test), **LAW[np.float32])


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"cost": "nearest"}, {}, "The 'cost' parameter of BridgeFlow must be"),
        ({"hidden_layer_sizes": (8, 0)}, {}, "must hold integers of at least 1"),
        ({}, {"labels_x": "all"}, "Labels must come for both views, but `labels_y` is None"),
        (
            {},
            {"labels_x": "all", "labels_y": "short"},
            r"`labels_y` must hold an integer for each row of Y, shape \(120,\)",
        ),
        ({}, {"labels_x": "all", "labels_y": "float"}, "its type float64. Encode classes as 0, 1, 2"),
        ({}, {"labels_x": "all", "labels_y": "negative"}, "at least -1"),
        ({}, {"labels_x": "all", "labels_y": "other"}, "No class is labelled in both views"),
        (
            {},
            {"labels_x": "all", "labels_y": "unlike"},
            "Row 4 of X and row 4 of Y are a pair, but their labels are 1 and 2",
        ),
    ],
)
def test_bad_settings_and_labels_are_refused(data, settings, labels, message):
    kinds = {
        "all": np.ones(130, dtype=int),
        "short": np.ones(7, dtype=int),
        "float": np.ones(120),
        "negative": np.full(120, -2),
        "other": np.where(np.arange(120) < 30, -1, 5),
        "unlike": np.where(np.arange(120) == 4, 2, 1),
    }
    with pytest.raises(ValueError, match=message):
        BridgeFlow(**SMALL | settings).fit(
            data.X, data.Y, data.paired_idx, **{name: kinds[kind] for name, kind in labels.items()}
        )


def test_neither_pairs_nor_labels_is_refused(data):
    for nothing in ([], np.zeros(120, dtype=bool)):
        with pytest.raises(ValueError, match="Expected at least one pair"):
            BridgeFlow().fit(data.X[:120], data.Y, nothing)


def test_a_class_of_one_view_alone_is_left_out_with_a_warning(classes):
    X, Y, of_x, of_y = classes
    with pytest.warns(UserWarning, match="1 classes are labelled in one view only and are left out, the first being 2"):
        flow = BridgeFlow(**SMALL, max_iter=2).fit(X, Y, [], labels_x=of_x, labels_y=np.where(of_y == 2, -1, of_y))
    assert len(flow.bridges_x_) == 2


def test_a_plan_without_mass_is_refused_where_there_is_no_pair(classes):
    X, Y, of_x, of_y = classes
    settings = {"coupling": "unbalanced", "rho": 1e-6, "epsilon": 1e-6}
    with pytest.raises(ValueError, match="Nothing is left to train on: .* Raise `rho`"):
        BridgeFlow(**SMALL, **settings).fit(X, Y, [], labels_x=of_x, labels_y=of_y)


def test_a_labelled_row_that_is_missing_has_no_label(classes):
    X, Y, of_x, of_y = classes
    X = X.copy()
    X[0] = np.nan
    flow = BridgeFlow("exemplar", **SMALL, max_iter=2).fit(X, Y, [], labels_x=of_x, labels_y=of_y)
    assert np.isfinite(flow.bridges_x_).all()


@pytest.mark.parametrize("n_pairs", [1, 2])
def test_too_few_bridges_for_profile(data, n_pairs):
    with pytest.raises(ValueError, match=f"needs at least 3 distinct bridges .* but there are {n_pairs}"):
        BridgeFlow(cost="profile").fit(data.X, data.Y, np.arange(n_pairs))


def test_bridges_that_stand_twice_count_once(data):
    X, Y = data.X.copy(), data.Y.copy()
    X[:5], Y[:5] = X[0], Y[0]
    flow = BridgeFlow(cost="chain", **SMALL, max_iter=2).fit(X, Y, data.paired_idx)
    assert len(flow.bridges_x_) == 26


def test_output_has_the_columns_of_y(data):
    frame = pd.DataFrame(data.Y).add_prefix("pixel")
    flow = BridgeFlow(**SMALL, max_iter=2).set_output(transform="pandas").fit(data.X, frame, data.paired_idx)
    assert list(flow.transform(data.X_test).columns) == list(frame.columns)


def test_a_labelled_row_keeps_its_class_and_a_held_out_one_has_none(classes):
    X, Y, of_x, of_y = classes
    settings = SMALL | {"max_iter": 5}
    labels = {"labels_x": (of_x + np.arange(60) // 30) % 3, "labels_y": of_y}  # half of the x far from their class
    joined, alone = (
        BridgeFlow("exemplar", self_training=s, **settings).fit(X, Y, [], **labels).transform(X) for s in (True, False)
    )
    assert_array_equal(joined, alone)
    pairs = np.column_stack([np.arange(50)] * 2)
    settings |= {"early_stopping": True, "validation_fraction": 0.5}
    labels = {"labels_x": known(of_x, 50), "labels_y": known(of_y, 50)}
    held, none = (
        BridgeFlow("exemplar", self_training=s, **settings).fit(
            X[:50], Y, pairs, **labels | {"labels_x": labels["labels_x"][:50]}
        )
        for s in (True, False)
    )
    assert_array_equal(held.transform(X), none.transform(X))


def test_exemplars_take_rows_on_disk_as_those_in_memory(classes, tmp_path):
    X, Y, of_x, of_y = classes
    labels = {"labels_x": of_x[:12], "labels_y": of_y[:12]}
    in_memory = {"X_unpaired": X[12:], "Y_unpaired": Y[12:]}
    on_disk = {name: tmp_path / f"{name}.npy" for name in in_memory}
    for name, path in on_disk.items():
        np.save(path, in_memory[name])
    flow = BridgeFlow("exemplar", **SMALL, max_iter=5)
    expected, found = (flow.fit(X[:12], Y[:12], [], **pools, **labels).transform(X) for pools in (in_memory, on_disk))
    assert_array_equal(found, expected)


def test_a_users_classifier_tells_who_joins(classes):
    X, Y, of_x, of_y = classes
    labels = {"labels_x": known(of_x, 12), "labels_y": known(of_y, 12)}
    settings = SMALL | {"max_iter": 300, "self_training": DummyClassifier(strategy="constant", constant=0)}
    flow = BridgeFlow("exemplar", **settings).fit(X, Y, [], **labels)
    assert accuracy(flow, classes) < 1  # all joined one class
    with pytest.raises(ValueError, match="'self_training' parameter"):
        BridgeFlow("exemplar", self_training=3).fit(X, Y, [], **labels)


def test_what_is_auto_depends_on_whether_the_plan_can_be_trusted(data):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(data.Y.shape)

    def mapped(Y, **settings):
        flow = BridgeFlow(**SMALL, max_iter=5, **settings).fit(data.X, Y, data.paired_idx)
        return flow.transform(data.X_test), max(flow.cv_scores_.values())

    trusted, score = mapped(data.Y)
    assert score > 0.5
    assert_array_equal(trusted, mapped(data.Y, source="lift", pair_share=0.25)[0])
    blind, score = mapped(noise)
    assert score < 0.5
    assert_array_equal(blind, mapped(noise, source="teacher", pair_share=0.75)[0])
    assert "coef" in BridgeFlow(**SMALL, max_iter=1).fit(data.X[:30], data.Y[:30]).source_  # there is no plan


def test_the_regression_learns_from_the_partners_in_the_plan(data):
    flow = fitted(data, max_iter=1, source="teacher")
    x, y = (
        (Z - mean) / scale
        for Z, mean, scale in ((data.X, flow.x_mean_, flow.x_scale_), (data.Y, flow.y_mean_, flow.y_scale_))
    )
    partners = flow.coupling_.toarray() @ y[30:] * 100
    coef, _ = ridge(np.concatenate([x[:30], x[30:]]), np.concatenate([y[:30], partners]))
    assert_allclose(flow.source_["coef"], coef, rtol=1e-6, atol=1e-9)


def test_labels_reach_fit_through_fit_transform(classes):
    X, Y, of_x, of_y = classes
    flow = BridgeFlow("exemplar", **SMALL, max_iter=2)
    F = flow.fit_transform(X, Y, [], labels_x=of_x, labels_y=of_y)
    assert_array_equal(F, flow.transform(X))


def test_rows_join_a_class_only_if_asked(classes):
    X, Y, of_x, of_y = classes
    labels = {"labels_x": known(of_x, 12), "labels_y": known(of_y, 12)}
    joined, alone = (
        BridgeFlow("exemplar", **SMALL, max_iter=20, self_training=s).fit(X, Y, [], **labels) for s in (True, False)
    )
    assert not np.allclose(joined.transform(X), alone.transform(X))
