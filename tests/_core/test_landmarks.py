"""Laws of the kernel features. Knows the core, knows nothing of estimators."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import rbf_kernel

from skalign._core.landmarks import GaussianFeatures
from skalign._core.rows import normalize_rows

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-10}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inner_products_of_landmarks_are_their_kernel(rng, dtype):
    rows = 3 * rng.normal(size=(40, 6)).astype(dtype)
    unit = normalize_rows(rows)
    squared = np.square(unit[:, None] - unit).sum(axis=2)
    features = GaussianFeatures.fit(rows)(rows)
    assert features.dtype == dtype
    assert_allclose(features @ features.T, np.exp(-squared / squared.mean()), atol=TOLERANCE[dtype])


def test_other_rows_have_the_features_of_scikit_learns_nystroem(rng):
    rows, others = rng.normal(size=(30, 8)), rng.normal(size=(50, 8))
    features = GaussianFeatures.fit(rows)
    landmarks = normalize_rows(rows)
    referee = Nystroem(gamma=features.gamma, n_components=30, random_state=0).fit(landmarks)
    kernel, expected = (Z @ Z.T for Z in (features(others), referee.transform(normalize_rows(others))))
    assert_allclose(kernel, expected, atol=1e-8)
    assert (
        np.abs(kernel - rbf_kernel(normalize_rows(others), gamma=features.gamma)).max() > 0.01
    )  # which it approximates


def test_equal_rows_share_their_place(rng):
    rows = rng.normal(size=(20, 5))
    twice = np.concatenate([rows, rows])
    once, again = GaussianFeatures.fit(rows)(rows), GaussianFeatures.fit(twice)(rows)
    assert_allclose(again @ again.T, once @ once.T, atol=1e-8)


@pytest.mark.parametrize("rows", [np.ones((1, 3)), np.ones((4, 3)), np.zeros((2, 3)), np.array([[1.0], [-2.0]])])
def test_rows_without_spread_have_finite_features(rows):
    features = GaussianFeatures.fit(rows)
    assert np.isfinite(features(np.array([[0.0], [1.0], [-5.0]]) * np.ones(rows.shape[1]))).all()


def test_blocks_of_many_rows_are_like_few(rng, monkeypatch):
    rows = rng.normal(size=(25, 4))
    features = GaussianFeatures.fit(rows[:5])
    whole = features(rows)
    monkeypatch.setattr("skalign._core.landmarks._BLOCK", 5 * 7)  # seven rows at a time
    assert_allclose(features(rows), whole, rtol=1e-12, atol=1e-14)
    assert_array_equal(features(rows[:0]).shape, (0, 5))
