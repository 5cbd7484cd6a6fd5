"""Laws of canonical similarity analysis."""

import numpy as np
import pytest
from helpers import LAW, LIBRARY
from numpy.testing import assert_allclose
from sklearn.cross_decomposition import CCA

from skalign import CCATeacher
from skalign.baselines import CSA


@pytest.fixture
def views(rng):
    latent = rng.normal(size=(60, 3))
    noisy = [latent @ rng.normal(size=(3, d)) + 0.5 * rng.normal(size=(60, d)) for d in (7, 11)]
    return (*noisy, rng.normal(size=(5, 7)), rng.normal(size=(6, 11)))


@pytest.mark.parametrize("k", [None, 3])
def test_inner_products_are_the_weighted_similarity(views, k):
    X, Y, X_test, Y_test = views
    csa = CSA(k, reg=0.01).fit(X, Y)
    F, G = csa.transform(X_test, Y_test)
    teacher = CCATeacher(k, reg=0.01, power=0).fit(X, Y)
    z_x = teacher._prepared_x(X_test) @ teacher.x_coef_
    z_y = teacher._prepared_y(Y_test) @ teacher.y_coef_
    rho = teacher.singular_values_
    expected = [[rho @ (x * y) / (np.linalg.norm(x) * np.linalg.norm(y)) for y in z_y] for x in z_x]
    assert_allclose(F @ G.T, expected, **LAW[np.float64])
    assert F.shape == (5, (k or 7) + 2)


def test_correlations_without_ridge_are_those_of_scikit_learn(views):
    X, Y, *_ = views
    csa = CSA(3, normalize=False).fit(X, Y)
    x_scores, y_scores = CCA(3, scale=False, tol=1e-12, max_iter=10_000).fit(X, Y).transform(X, Y)
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(x_scores.T, y_scores.T, strict=True)]
    assert_allclose(csa.singular_values_, expected, **LIBRARY[np.float64])


def test_warnings_point_to_the_caller(views):
    X, Y, *_ = views
    with pytest.warns(UserWarning, match="4 pairs support 3 directions") as caught:
        CSA(5).fit(X[:4], Y[:4])
    assert caught[0].filename == __file__


def test_fewer_pairs_than_columns_correlate_perfectly(rng):
    csa = CSA().fit(rng.normal(size=(5, 7)), rng.normal(size=(5, 11)))
    assert_allclose(csa.singular_values_, np.ones(4), **LAW[np.float64])
