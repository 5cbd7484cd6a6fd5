"""Laws of the planted truth: without noise the map is exact, and every part stands on its own."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skalign.datasets import make_two_views

SHAPES = [(7, 11), (11, 7), (9, 9)]


def orthonormal(rng, d_x, d_y):
    """Random matrix with orthonormal rows or columns, whichever are fewer."""
    U, _, Vt = np.linalg.svd(rng.standard_normal((d_x, d_y)), full_matrices=False)
    return U @ Vt


def test_shapes_follow_the_arguments():
    data = make_two_views(13, 17, 19, 5, n_features_x=7, n_features_y=11, n_latent=3, random_state=0)
    assert {key: value.shape for key, value in data.items()} == {
        "X": (13 + 17, 7),
        "Y": (13 + 19, 11),
        "paired_idx": (13, 2),
        "X_test": (5, 7),
        "Y_test": (5, 11),
        "test_idx": (5, 2),
        "rotation": (7, 11),
        "x_map": (3, 7),
        "y_map": (3, 11),
        "latent_X": (30, 3),
        "latent_Y": (32, 3),
        "latent_test": (5, 3),
    }
    assert_array_equal(data.paired_idx, [[i, i] for i in range(13)])
    assert_array_equal(data.test_idx, [[i, i] for i in range(5)])


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_exact_without_noise(rng, shape):
    Q = orthonormal(rng, *shape)
    data = make_two_views(rotation=Q, noise=0.0, random_state=0)
    assert_array_equal(data.rotation, Q)
    x, y = data.paired_idx.T
    assert_allclose(data.Y[y], data.X[x] @ Q, rtol=0, atol=1e-12)
    assert_allclose(data.Y_test, data.X_test @ Q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_keeps_lengths_also_when_it_is_tall(rng, shape):
    data = make_two_views(rotation=orthonormal(rng, *shape), noise=0.0, random_state=0)
    assert_allclose(np.linalg.norm(data.Y_test, axis=1), np.linalg.norm(data.X_test, axis=1), rtol=1e-12)
    assert_allclose(data.X_test, data.Y_test @ data.rotation.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_procrustes_on_the_pairs_returns_the_rotation(rng, shape):
    """The rows show all of Q, so its polar factor from the cross-covariance is Q itself."""
    Q = orthonormal(rng, *shape)
    data = make_two_views(rotation=Q, noise=0.0, random_state=0)
    U, s, Vt = np.linalg.svd(data.X[:100].T @ data.Y[:100], full_matrices=False)
    assert s[-1] > 1e-3 * s[0]
    assert_allclose(U @ Vt, Q, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rotation_is_drawn_when_none_is_given(shape):
    data = make_two_views(n_features_x=shape[0], n_features_y=shape[1], n_latent=4, noise=0.0, random_state=0)
    assert_allclose(data.Y[:100], data.X[:100] @ data.rotation, rtol=0, atol=1e-12)
    assert_allclose(np.linalg.svd(data.rotation, compute_uv=False)[:5], [1, 1, 1, 1, 0], atol=1e-12)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_are_orthonormal_and_rebuild_every_row(rng, shape, rotate):
    rotation = orthonormal(rng, *shape) if rotate else None
    sizes = {} if rotate else {"n_features_x": shape[0], "n_features_y": shape[1]}
    data = make_two_views(n_latent=5, rotation=rotation, noise=0.0, random_state=1, **sizes)
    assert_allclose(data.x_map @ data.x_map.T, np.eye(5), atol=1e-12)
    assert_allclose(data.y_map @ data.y_map.T, np.eye(5), atol=1e-12)
    assert_allclose(data.x_map @ data.rotation, data.y_map, atol=1e-12)
    assert_allclose(data.latent_X @ data.x_map, data.X, atol=1e-12)
    assert_allclose(data.latent_Y @ data.y_map, data.Y, atol=1e-12)
    assert_allclose(data.latent_test @ data.x_map, data.X_test, atol=1e-12)


def test_latent_variance_decays_as_one_over_k():
    data = make_two_views(n_pairs=40_000, n_latent=4, n_features_x=4, n_features_y=5, random_state=0)
    covariance = np.cov(data.latent_X[:40_000].T)
    assert_allclose(covariance, np.diag([1, 1 / 2, 1 / 3, 1 / 4]), atol=0.03)  # 4 standard errors


def test_noise_has_the_stated_deviation_in_both_views():
    data = make_two_views(n_pairs=5_000, noise=0.3, random_state=0)
    e_x, e_y = data.X - data.latent_X @ data.x_map, data.Y - data.latent_Y @ data.y_map
    assert_allclose([e_x.std(), e_y.std()], 0.3, rtol=0.02)
    assert abs(np.corrcoef(e_x[:5_000, 0], e_y[:5_000, 0])[0, 1]) < 0.06  # the views' noises are independent


def test_only_the_pairs_share_latent_rows():
    data = make_two_views(n_pairs=10, n_unpaired_x=20, n_unpaired_y=30, n_test=40, random_state=0)
    assert_array_equal(data.latent_X[:10], data.latent_Y[:10])
    rows = np.concatenate([data.latent_X, data.latent_Y[10:], data.latent_test])
    assert len(np.unique(rows.round(9), axis=0)) == 10 + 20 + 30 + 40


def test_unpaired_rows_hold_no_hidden_pairs():
    """Not even in the same order: rows i of the two unpaired parts are as far apart as any."""
    data = make_two_views(n_pairs=5, n_unpaired_x=50, n_unpaired_y=50, noise=0.0, random_state=0)
    distances = np.linalg.norm((data.X[5:] @ data.rotation)[:, None] - data.Y[5:], axis=2)
    assert distances.min() > 0.1


def test_bend_leaves_x_alone_and_follows_its_formula():
    straight = make_two_views(noise=0.0, random_state=0)
    bent = make_two_views(noise=0.0, nonlinearity=0.4, random_state=0)
    assert_array_equal(bent.X, straight.X)
    s = np.sqrt(sum(1 / k for k in range(1, 9)) / 30)
    assert_allclose(bent.Y, 0.6 * straight.Y + 0.4 * s * np.tanh(2 * straight.Y / s), atol=1e-12)


def test_more_bend_is_less_linear():
    residuals = []
    for nonlinearity in (0.0, 0.5, 1.0):
        data = make_two_views(n_pairs=500, noise=0.0, nonlinearity=nonlinearity, random_state=0)
        X, Y = data.X[:500], data.Y[:500]
        residuals.append(np.linalg.norm(Y - X @ np.linalg.lstsq(X, Y)[0]) / np.linalg.norm(Y))
    assert residuals[0] < 1e-12
    assert 0.05 < residuals[1] < residuals[2]


def test_same_seed_same_data_other_seed_other_data():
    first, again, other = (make_two_views(random_state=seed) for seed in (3, 3, 4))
    for key in first:
        assert_array_equal(first[key], again[key])
    assert not np.isclose(first.X, other.X).any(axis=1).all()
    assert not np.allclose(first.rotation, other.rotation)


def test_a_random_state_moves_on_between_calls():
    state = np.random.RandomState(0)
    first, second = make_two_views(random_state=state), make_two_views(random_state=state)
    assert_array_equal(first.X, make_two_views(random_state=0).X)
    assert not np.allclose(first.X, second.X)


def test_global_numpy_state_is_not_consumed_when_a_seed_is_given():
    np.random.seed(0)
    expected = np.random.RandomState(0).standard_normal(3)
    make_two_views(random_state=1)
    assert_array_equal(np.random.standard_normal(3), expected)


@pytest.mark.parametrize("part", ["n_pairs", "n_unpaired_x", "n_unpaired_y", "n_test"])
def test_growing_one_part_leaves_all_rows_that_were_there(part):
    sizes = {"n_pairs": 10, "n_unpaired_x": 20, "n_unpaired_y": 30, "n_test": 40}
    small = make_two_views(**sizes, random_state=0)
    large = make_two_views(**{**sizes, part: sizes[part] + 7}, random_state=0)
    more = len(large.paired_idx) - 10
    for view in ("X", "Y"):
        assert_allclose(large[view][:10], small[view][:10], atol=1e-12)
        n_unpaired = len(small[view]) - 10
        assert_allclose(large[view][10 + more :][:n_unpaired], small[view][10:], atol=1e-12)
        assert_allclose(large[f"{view}_test"][:40], small[f"{view}_test"], atol=1e-12)


def test_unpaired_and_test_parts_may_be_empty():
    data = make_two_views(3, 0, 0, 0, random_state=0)
    assert data.X.shape == (3, 20)
    assert data.Y.shape == (3, 30)
    assert data.X_test.shape == (0, 20)
    assert data.test_idx.shape == (0, 2)


def test_default_latent_size_shows_all_of_a_given_rotation(rng):
    assert make_two_views(rotation=orthonormal(rng, 12, 15)).x_map.shape == (12, 12)
    assert make_two_views().x_map.shape == (8, 20)
    assert make_two_views(n_features_x=5).x_map.shape == (5, 5)


def test_float32_rotation_is_accepted_and_the_callers_array_is_not_kept(rng):
    Q = orthonormal(rng, 7, 11)
    assert make_two_views(rotation=Q.astype(np.float32)).rotation.dtype == np.float64
    data = make_two_views(rotation=Q)
    Q[:] = 0
    assert data.rotation.any()


@pytest.mark.parametrize(
    "name, value, least",
    [
        ("n_pairs", 0, 1),
        ("n_pairs", 2.5, 1),
        ("n_unpaired_x", -1, 0),
        ("n_unpaired_y", True, 0),
        ("n_test", "5", 0),
        ("n_features_x", 0, 1),
        ("n_features_y", -3, 1),
        ("n_latent", 0, 1),
    ],
)
def test_counts_out_of_range_are_refused(name, value, least):
    message = f"Expected `{name}` to be an int of at least {least}, got {value!r}. Round or raise it."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_two_views(**{name: value})


@pytest.mark.parametrize(
    "name, value, bound",
    [
        ("noise", -0.1, "of at least 0"),
        ("noise", np.nan, "of at least 0"),
        ("noise", np.inf, "of at least 0"),
        ("noise", "0.1", "of at least 0"),
        ("nonlinearity", 1.5, "between 0 and 1"),
        ("nonlinearity", -0.5, "between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, bound):
    message = f"Expected `{name}` to be a finite number {bound}, got {value!r}. Pass 0 to do without it."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_two_views(**{name: value})


def test_too_many_latent_columns_are_refused(rng):
    message = "Expected `n_latent` to be at most the smaller number of features, min(7, 11) = 7, got 8. Lower it"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_two_views(n_features_x=7, n_features_y=11, n_latent=8)
    with pytest.raises(ValueError, match=re.escape(message)):
        make_two_views(rotation=orthonormal(rng, 7, 11), n_latent=8)


@pytest.mark.parametrize("rotation", [np.zeros(3), np.zeros((0, 4)), 1.0])
def test_rotation_that_is_no_matrix_is_refused(rotation):
    message = "Expected `rotation` to be a matrix of shape (n_features_x, n_features_y), got shape "
    with pytest.raises(ValueError, match=re.escape(f"{message}{np.shape(rotation)}. Pass one row per feature of X")):
        make_two_views(rotation=rotation)


@pytest.mark.parametrize("spoil", [lambda Q: 1.01 * Q, lambda Q: np.where(Q.max() == Q, np.nan, Q)])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_that_is_not_orthonormal_is_refused(rng, shape, spoil):
    message = "Expected `rotation` to have orthonormal rows or columns, got one that misses by "
    with pytest.raises(ValueError, match=re.escape(message) + r"(0\.02|nan)\. Take an orthonormal factor"):
        make_two_views(rotation=spoil(orthonormal(rng, *shape)))
