"""Laws of SUE and of its spectral embedding."""

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ortho_group

from skalign._core.mmd import mean_squared_distance, mmd
from skalign.baselines import SUE
from skalign.baselines import _sue as module


@pytest.fixture
def rows(rng):
    """Five clusters of 40 rows in 4 dimensions."""
    return np.repeat(3 * rng.normal(size=(5, 4)), 40, axis=0) + rng.normal(size=(200, 4))


def spectral(rows, rng, **changes):
    return module._SpectralEmbedding(rows, "X", **{"n_eigenvectors": 6, "n_neighbors": 10, "rng": rng} | changes)


def test_eigenvectors_are_those_of_the_random_walk(rows, rng):
    found = spectral(rows, rng)
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    order = np.argsort(distances, axis=1)[:, :11]
    width = np.median(np.take_along_axis(distances, order, axis=1)[:, 5])
    W = np.zeros((200, 200))
    np.put_along_axis(W, order, np.exp(-(np.take_along_axis(distances, order, axis=1) ** 2) / (2 * width**2)), axis=1)
    W = (W + W.T) / 2
    walk = W / W.sum(axis=1, keepdims=True)
    assert_allclose(walk @ found.vectors, found.vectors * found.eigenvalues, **LAW[np.float64])
    assert_allclose(found.eigenvalues, np.sort(np.linalg.eigvals(walk).real)[::-1][1:7], **LAW[np.float64])
    assert_allclose(found.vectors.std(axis=0), 1)


def test_iterated_eigenvectors_equal_all_of_them(rows, rng, monkeypatch):
    expected = spectral(rows, rng)
    monkeypatch.setattr(module, "_DENSE", 0)
    found = spectral(rows, rng)
    assert_allclose(found.eigenvalues, expected.eigenvalues, **LAW[np.float64])
    assert_allclose(abs(found.vectors[:, 2:]), abs(expected.vectors[:, 2:]), atol=1e-6)  # the first two share a value


def test_new_rows_take_the_mean_of_their_neighbours(rows, rng):
    embedding = spectral(rows, rng, n_neighbors=3)
    new = rows[:1] + 0.1
    distances = np.linalg.norm(rows - new, axis=1)
    near = np.argsort(distances)[:4]
    weights = np.exp(-(distances[near] ** 2) / (2 * embedding.width**2))
    expected = weights @ embedding.vectors[near] / weights.sum() / embedding.eigenvalues
    assert_allclose(embedding(new)[0], expected, **LAW[np.float64])


def test_a_row_far_from_all_is_embedded_too(rows, rng):
    embedded = spectral(rows, rng)(np.full((1, 4), 1e6))
    assert np.isfinite(embedded).all()
    assert embedded.any()


def test_a_view_and_its_rotation_become_one(rows, rng):
    """The graph does not see a rotation, so canonical correlations are 1 and new rows find their copies."""
    rotation = ortho_group.rvs(4, random_state=rng)
    new = rows[::10] + 0.05 * rng.normal(size=(20, 4))
    sue = SUE(3, n_eigenvectors=6, n_neighbors=10, max_iter=0, random_state=0)
    F, G = sue.fit(rows, rows @ rotation, np.arange(40) * 5).transform(new, new @ rotation)
    assert_allclose(sue.cca_.singular_values_, 1, **LAW[np.float64])
    assert_allclose(F, G, atol=1e-5)
    assert sue.n_iter_ == 0


def test_matching_brings_the_distributions_together(rows, rng):
    """X holds the clusters in other shares than Y, and its embedding is off; the network makes up for it."""
    X, Y = rows[:150], rows[50:] @ ortho_group.rvs(4, random_state=rng)
    pairs = np.column_stack([np.arange(50, 150, 10), np.arange(0, 100, 10)])
    settings = {"n_components": 3, "n_eigenvectors": 6, "n_neighbors": 10, "random_state": 0}
    before, after = (SUE(max_iter=n, **settings).fit(X, Y, pairs) for n in (0, 30))
    assert_array_equal(before.transform_y(Y), after.transform_y(Y))

    F, G = torch.from_numpy(before._rotated_x(X)), torch.from_numpy(before._rotated_y(Y))
    width = mean_squared_distance(F, G)

    with torch.no_grad():
        network = module.ResidualNetwork(3)
        network.load_state_dict({name: torch.from_numpy(Z) for name, Z in after.network_.items()})
        moved = network(F.float()).double()
    assert mmd(moved, G, width) < 0.7 * mmd(F, G, width)


def test_rows_that_do_not_differ_are_refused(rows):
    with pytest.raises(ValueError, match=r"The rows of Y \(n_features=4\) do not differ"):
        SUE().fit(rows, np.ones((200, 4)))
