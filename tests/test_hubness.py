"""Hubness correction: the embeddings' cosines are CSLS, by brute force and on a planted hub."""

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from skalign import CCATeacher, ContrastiveTeacher, HubnessCorrection, SOTAlignTransformer
from skalign._core.hubness import LocalScaling
from skalign.datasets import load_emoji, make_two_views
from skalign.metrics import foscttm


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def csls(F, G, x_anchors, y_anchors, k):
    """The published formula, row by row."""
    r_x = np.array([np.mean(sorted(y_anchors @ f)[-k:]) for f in F])
    r_y = np.array([np.mean(sorted(x_anchors @ g)[-k:]) for g in G])
    return 2 * F @ G.T - r_x[:, None] - r_y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosines_are_a_quarter_of_csls(rng, dtype):
    F, G = (unit(rng.standard_normal((n, 6)) + 0.5).astype(dtype) for n in (80, 130))
    scaling = LocalScaling.fit(F, G, 7)
    U, V = scaling.lift_x(F), scaling.lift_y(G)
    assert U.dtype == V.dtype == dtype
    assert_allclose(np.linalg.norm(U, axis=1), 1, **LAW[dtype])
    assert_allclose(np.linalg.norm(V, axis=1), 1, **LAW[dtype])
    assert_allclose(4 * U @ V.T, csls(F, G, F, G, 7), **(LAW[dtype] | {"atol": 10 * LAW[dtype]["atol"]}))


@pytest.mark.parametrize("is_new", [False, True])
def test_a_hub_no_longer_comes_first(rng, is_new):
    F = unit(rng.standard_normal((60, 20)) + 0.5)  # all lean to one side
    G = unit(F + 0.35 * rng.standard_normal((60, 20)))
    G[0] = unit(np.ones((1, 20)))  # and this one is near to all of them
    scaling = LocalScaling.fit(F, G[1:] if is_new else G, 5)
    first = np.argmax(F @ G.T, axis=1)
    corrected = np.argmax(scaling.lift_x(F) @ scaling.lift_y(G).T, axis=1)
    assert np.count_nonzero(first == 0) > 2 * np.count_nonzero(corrected == 0)
    assert np.mean(corrected == np.arange(60)) > np.mean(first == np.arange(60)) + 0.1


def test_every_row_comes_at_unit_length_but_zero_rows(rng):
    F, G = unit(rng.standard_normal((40, 9))), unit(rng.standard_normal((40, 9)))
    few = np.concatenate([G[:1], -G[:1], 7 * F[:1], np.zeros((1, 9))])
    assert_allclose(np.linalg.norm(LocalScaling.fit(F, G, 1).lift_x(few), axis=1), [1, 1, 1, 0])


@pytest.mark.parametrize("n", [1, 5])
def test_rows_all_alike_are_defined(n):
    rows = np.tile([[1.0, 0, 0]], (n, 1))
    scaling = LocalScaling.fit(rows, rows, 25)
    assert_allclose(
        4 * scaling.lift_x(rows) @ scaling.lift_y(np.eye(3)).T, np.tile([[0.0, -1, -1]], (n, 1)), atol=1e-12
    )


def test_blocks_of_rows_do_not_show(rng, monkeypatch):
    F, G = rng.standard_normal((2, 30, 5))
    expected = LocalScaling.fit(F, G, 3).lift_x(F)
    monkeypatch.setattr("skalign._core.hubness._BLOCK", 70)
    assert_allclose(LocalScaling.fit(F, G, 3).lift_x(F), expected)


def test_it_wraps_a_fitted_aligner_and_passes_pools_on():
    data = make_two_views(40, 25, 35, 30, random_state=0)
    p = len(data.paired_idx)
    teacher = CCATeacher().fit(data.X, data.Y, data.paired_idx)
    frozen = HubnessCorrection(FrozenEstimator(teacher), random_state=0).fit(data.X, data.Y, data.paired_idx)
    pooled = HubnessCorrection(random_state=0).fit(data.X[:p], data.Y[:p], X_unpaired=data.X[p:], Y_unpaired=data.Y[p:])
    assert_allclose(frozen.transform(data.X_test), pooled.transform(data.X_test))
    assert len(pooled.local_scaling_.x_anchors) == len(data.X)
    few = clone(pooled).set_params(n_anchors=16).fit(data.X[:p], data.Y[:p])
    assert len(few.local_scaling_.x_anchors) == len(few.local_scaling_.y_anchors) == 16


def test_one_seed_is_one_fit_what_is_nested_included():
    data = make_two_views(40, 25, 35, 30, random_state=0)
    fits = [
        HubnessCorrection(ContrastiveTeacher(max_iter=2), random_state=0).fit(data.X, data.Y, data.paired_idx)
        for _ in range(2)
    ]
    assert_array_equal(*(fit.transform(data.X_test) for fit in fits))


def test_it_helps_cca_on_emoji():
    data = load_emoji()
    plain = CCATeacher().fit(data.X, data.Y, data.paired_idx)
    corrected = HubnessCorrection(FrozenEstimator(plain), random_state=0).fit(data.X, data.Y, data.paired_idx)
    before, after = (foscttm(*e.transform(data.X_test, data.Y_test), data.test_idx) for e in (plain, corrected))
    assert after < before - 0.01


def test_without_a_seed_what_is_nested_draws_its_own():
    data = make_two_views(30, 20, 20, random_state=0)
    nested = SOTAlignTransformer(max_iter=1)
    for seed in (None, 0):
        fitted = HubnessCorrection(nested, random_state=seed).fit(data.X, data.Y, data.paired_idx)
        assert (fitted.estimator_.random_state is None) == (seed is None)
