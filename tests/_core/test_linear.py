"""Laws of the closed-form maps, against textbook formulas. Knows the core and SciPy, knows nothing of estimators."""

import numpy as np
import pytest
import scipy.linalg
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import linear
from skalign._core.linear import procrustes, ridge_cca, rounding_noise, thin_view
from skalign._core.rows import normalize_rows

EXACT = LAW[np.float64]
SHAPES = [(40, 7, 11), (40, 11, 7), (13, 17, 19), (13, 5, 19)]  # pairs, columns of A, columns of B
REG = (0.1, 0.3)  # unlike, so that swapped ridges show


def centred(rng, p, d_x, d_y):
    """Two correlated views of p centred pairs."""
    A = rng.normal(size=(p, d_x)) * rng.uniform(0.5, 2, size=d_x)
    B = A @ rng.normal(size=(d_x, d_y)) / d_x**0.5 + rng.normal(size=(p, d_y))
    return A - A.mean(axis=0), B - B.mean(axis=0)


def covariances(A, B, reg=(0.0, 0.0)):
    p = len(A) - 1
    return (
        A.T @ A / p + reg[0] * np.eye(A.shape[1]),
        A.T @ B / p,
        B.T @ B / p + reg[1] * np.eye(B.shape[1]),
    )


def solve_procrustes(A, B, *args):
    return procrustes(thin_view(A), thin_view(B), *args)


def solve_cca(A, B, *args, **kwargs):
    return ridge_cca(thin_view(A), thin_view(B), *args, **kwargs)


SOLVERS = [solve_procrustes, lambda A, B, *args: solve_cca(A, B, REG, *args)]


def largest_entry_positive(W_x, W_y):
    sign = np.sign(W_x[np.abs(W_x).argmax(axis=0), np.arange(W_x.shape[1])])
    return W_x * sign, W_y * sign


def assert_same_maps(actual, desired, **tolerance):
    for found, expected in zip(actual, desired, strict=True):
        assert_allclose(found, expected, **(tolerance or EXACT))


def inverse_root(S):
    values, vectors = np.linalg.eigh(S)
    return vectors / np.sqrt(values) @ vectors.T


# Procrustes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_procrustes_reaches_the_sum_of_leading_singular_values(rng, shape, k):
    A, B = centred(rng, *shape)
    maps = solve_procrustes(A, B, k)
    assert maps.W_x.shape == (shape[1], k) and maps.W_y.shape == (shape[2], k)
    best = np.linalg.svd(A.T @ B, compute_uv=False)[:k]
    assert_allclose(maps.s, best, **EXACT)
    assert_allclose(np.sum((A @ maps.W_x) * (B @ maps.W_y)), best.sum(), **EXACT)


def test_no_orthonormal_maps_beat_procrustes(rng):
    A, B = centred(rng, 40, 7, 11)
    best = solve_procrustes(A, B, 3).s.sum()
    for _ in range(100):
        U, V = (np.linalg.qr(rng.normal(size=(d, 3)))[0] for d in (7, 11))
        assert np.sum((A @ U) * (B @ V)) < best


@pytest.mark.parametrize("shape", SHAPES)
def test_procrustes_maps_are_orthonormal(rng, shape):
    maps = solve_procrustes(*centred(rng, *shape))
    k = min(shape[0] - 1, *shape[1:])
    assert len(maps.s) == k
    assert_allclose(maps.W_x.T @ maps.W_x, np.eye(k), **EXACT)
    assert_allclose(maps.W_y.T @ maps.W_y, np.eye(k), **EXACT)


def test_square_procrustes_is_the_classical_rotation(rng):
    A, B = centred(rng, 40, 9, 9)
    maps = solve_procrustes(A, B)
    assert_allclose(maps.W_x @ maps.W_y.T, scipy.linalg.orthogonal_procrustes(A, B)[0], **EXACT)


# Ridge CCA


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reg", [REG, (1e-3, 10.0)])
def test_cca_whitens_and_diagonalizes(rng, shape, reg):
    A, B = centred(rng, *shape)
    maps = solve_cca(A, B, reg)
    S_xx, S_xy, S_yy = covariances(A, B, reg)
    k = min(shape[0] - 1, *shape[1:])
    assert_allclose(maps.W_x.T @ S_xx @ maps.W_x, np.eye(k), **EXACT)
    assert_allclose(maps.W_y.T @ S_yy @ maps.W_y, np.eye(k), **EXACT)
    assert_allclose(maps.W_x.T @ S_xy @ maps.W_y, np.diag(maps.s), **EXACT)
    assert (np.diff(maps.s) <= 0).all() and maps.s.min() > 0 and maps.s.max() < 1


@pytest.mark.parametrize("reg", [(0.0, 0.0), REG])
def test_cca_equals_the_textbook_eigenproblem(rng, reg):
    A, B = centred(rng, 40, 7, 11)
    S_xx, S_xy, S_yy = covariances(A, B, reg)
    values, W_x = scipy.linalg.eigh(S_xy @ np.linalg.solve(S_yy, S_xy.T), S_xx)
    rho, W_x = np.sqrt(values[::-1]), W_x[:, ::-1]
    W_y = np.linalg.solve(S_yy, S_xy.T @ W_x) / rho
    assert_same_maps(solve_cca(A, B, reg), (*largest_entry_positive(W_x, W_y), rho))


@pytest.mark.parametrize("shape", SHAPES)
def test_thin_views_equal_the_dense_formula(rng, shape):
    A, B = centred(rng, *shape)
    S_xx, S_xy, S_yy = covariances(A, B, REG)
    U, s, Vt = np.linalg.svd(inverse_root(S_xx) @ S_xy @ inverse_root(S_yy))  # (d_x, d_y), also where d > p
    k = min(shape[0] - 1, *shape[1:])
    W_x, W_y = largest_entry_positive(inverse_root(S_xx) @ U[:, :k], inverse_root(S_yy) @ Vt[:k].T)
    assert_same_maps(solve_cca(A, B, REG), (W_x, W_y, s[:k]))


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_power_weighs_directions_by_their_correlation(rng, power):
    A, B = centred(rng, 40, 7, 11)
    plain, weighed = solve_cca(A, B, REG), solve_cca(A, B, REG, power=power)
    assert_same_maps(weighed, (plain.W_x * plain.s**power, plain.W_y * plain.s**power, plain.s))


def test_equal_views_shrink_by_the_ridge_alone(rng):
    A, _ = centred(rng, 40, 7, 11)
    values = np.linalg.eigvalsh(A.T @ A / 39)[::-1]
    assert_allclose(solve_cca(A, A, (0.1, 0.1)).s, values / (values + 0.1), **EXACT)
    assert_allclose(solve_cca(A, A, (0, 0)).s, 1, **EXACT)


def test_weights_stay_at_one_where_rounding_lifts_a_correlation_above_it():
    view = linear.ThinView(np.array([[1 + 1e-3], [0.0]]), np.array([1.0]), np.array([[1.0]]))  # U a little too long
    maps, plain = ridge_cca(view, view, (0.0, 0.0), power=5.0), ridge_cca(view, view, (0.0, 0.0))
    assert plain.s[0] > 1
    assert_array_equal(maps.W_x, plain.W_x)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_ridge_tends_to_procrustes(rng, shape):
    A, B = centred(rng, *shape)
    ridge, limit = solve_cca(A, B, (1e9, 1e9)), solve_procrustes(A, B)
    for found, expected in ((ridge.W_x, limit.W_x), (ridge.W_y, limit.W_y)):
        assert_allclose(found / np.linalg.norm(found, axis=0), expected, rtol=0, atol=1e-6)


# both solvers


@pytest.mark.parametrize("solve", SOLVERS, ids=["procrustes", "cca"])
class TestBothSolvers:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_fewer_components_are_the_leading_ones(self, rng, solve, shape):
        A, B = centred(rng, *shape)
        everything, few = solve(A, B), solve(A, B, 3)
        assert_same_maps(few, (everything.W_x[:, :3], everything.W_y[:, :3], everything.s[:3]))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_pairs_support_one_direction_less_than_their_number(self, rng, solve, shape):
        for p in (2, 3, shape[0]):
            A, B = centred(rng, p, *shape[1:])
            assert len(solve(A, B, 10**6).s) == min(p - 1, *shape[1:])

    def test_signs_are_fixed(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        maps = solve(A, B)
        assert (maps.W_x[np.abs(maps.W_x).argmax(axis=0), np.arange(7)] > 0).all()
        assert (np.sum((A @ maps.W_x) * (B @ maps.W_y), axis=0) > 0).all()  # both views turn together
        assert_same_maps(solve(-A, -B), maps)
        assert_same_maps(solve(A, -B), (maps.W_x, -maps.W_y, maps.s))

    def test_order_of_pairs_is_of_no_account(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        order = rng.permutation(40)
        assert_same_maps(solve(A[order], B[order]), solve(A, B))

    def test_constant_columns_get_no_weight(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        padded = np.insert(A, [0, 4], 0.0, axis=1)  # centred constants
        maps, plain = solve(padded, B), solve(A, B)
        assert_allclose(maps.W_x[[0, 5]], 0, atol=1e-15)
        assert_same_maps(maps._replace(W_x=np.delete(maps.W_x, [0, 5], axis=0)), plain)

    def test_copied_columns_share_the_weight(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        maps = solve(np.hstack([A, A[:, :3]]), B)
        assert len(maps.s) == 7
        assert_allclose(maps.W_x[7:], maps.W_x[:3], **EXACT)

    def test_rotating_a_view_rotates_its_map(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        Q = np.linalg.qr(rng.normal(size=(11, 11)))[0]
        maps, turned = solve(A, B), solve(A, B @ Q)
        assert_same_maps(turned, (maps.W_x, Q.T @ maps.W_y, maps.s))

    def test_swapped_views_swap_their_maps(self, rng, solve):
        A, B = centred(rng, 40, 7, 11)
        swapped = solve_cca(B, A, REG[::-1]) if solve is SOLVERS[1] else solve(B, A)
        W_x, W_y = largest_entry_positive(swapped.W_y, swapped.W_x)
        assert_same_maps(solve(A, B), (W_x, W_y, swapped.s))

    def test_view_that_does_not_vary_has_no_direction(self, rng, solve):
        _, B = centred(rng, 40, 7, 11)
        maps = solve(np.zeros((40, 7)), B)
        assert [part.shape for part in maps] == [(7, 0), (11, 0), (0,)]

    def test_views_that_vary_apart_share_no_direction(self, solve):
        A, B = np.zeros((4, 2)), np.zeros((4, 3))
        A[:2, 0] = 1, -1
        B[2:, 1] = 1, -1
        assert [part.shape for part in solve(A, B)] == [(2, 0), (3, 0), (0,)]

    def test_plain_driver_steps_in_where_the_fast_one_fails(self, rng, solve, monkeypatch):
        A, B = centred(rng, 40, 7, 11)
        expected, drivers = solve(A, B), []

        def svd(M, full_matrices, lapack_driver="gesdd"):
            drivers.append(lapack_driver)
            if lapack_driver == "gesdd":
                raise scipy.linalg.LinAlgError("SVD did not converge")
            return scipy.linalg.svd(M, full_matrices=full_matrices, lapack_driver=lapack_driver)

        monkeypatch.setattr(linear, "svd", svd)
        assert_same_maps(solve(A, B), expected)
        assert drivers == ["gesdd", "gesvd"] * 3  # both views and their cross-covariance


def test_copied_columns_do_no_harm_without_a_ridge(rng):
    A, B = centred(rng, 40, 7, 11)
    plain, copied = solve_cca(A, B, (0, 0)), solve_cca(np.hstack([A, A[:, :3], A @ rng.normal(size=(7, 2))]), B, (0, 0))
    assert_allclose(copied.s, plain.s, **EXACT)
    assert_allclose(np.abs(copied.W_y), np.abs(plain.W_y), **EXACT)  # the largest entry of W_x may be another


# thin views


@pytest.mark.parametrize("shape", [(40, 7), (13, 17)])
def test_thin_view_is_the_view(rng, shape):
    A, _ = centred(rng, *shape, 2)
    thin = thin_view(A)
    rank = min(shape[0] - 1, shape[1])
    assert thin.U.shape == (shape[0], rank) and thin.Vt.shape == (rank, shape[1])
    assert_allclose(thin.U * thin.s @ thin.Vt, A, **EXACT)
    values = np.linalg.eigvalsh(A.T @ A / (shape[0] - 1))[::-1]
    assert_allclose(thin.eigenvalues, values[:rank], **EXACT)


def test_thin_view_reveals_the_rank(rng):
    A, _ = centred(rng, 40, 5, 2)
    repeated = np.hstack([A, A[:, :2], np.zeros((40, 3)), A @ rng.normal(size=(5, 4))])
    assert len(thin_view(repeated).s) == 5
    assert len(thin_view(repeated * 1e-150).s) == 5  # rank has no scale
    assert len(thin_view(np.zeros((40, 3))).s) == 0


def test_noise_floor_cuts_what_lies_at_or_below_it(rng):
    U, V = np.linalg.qr(rng.normal(size=(9, 3)))[0], np.linalg.qr(rng.normal(size=(4, 3)))[0]
    A = U * [3.0, 2.0, 1e-3] @ V.T
    assert_allclose(thin_view(A).s, [3, 2, 1e-3], **EXACT)
    assert_allclose(thin_view(A, noise=1.1e-3).s, [3, 2], **EXACT)
    assert_allclose(thin_view(A, noise=0.9e-3).s, [3, 2, 1e-3], **EXACT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(9, 7), (5, 40), (300, 20)])
def test_copies_of_one_direction_are_rounding_after_centring(rng, dtype, n, d):
    X = normalize_rows((rng.uniform(0.1, 9, size=(n, 1)) * rng.normal(size=d)).astype(dtype))
    A = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    assert A.any()  # or the test would be about nothing
    assert len(thin_view(A, rounding_noise(X)).s) == 0


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e-3), (np.float64, 1e-11)])
def test_small_differences_are_no_rounding(rng, dtype, size):
    X = (1 + size * rng.normal(size=(30, 7))).astype(dtype)
    A = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    assert len(thin_view(A, rounding_noise(X)).s) == 7


def test_rounding_noise_counts_in_the_precision_of_the_view(rng):
    X = rng.normal(size=(9, 40))
    assert_allclose(rounding_noise(X), 40 * 2.0**-52 * np.linalg.norm(X))
    assert_allclose(rounding_noise(X.T.astype(np.float32)), 40 * 2.0**-23 * np.linalg.norm(X), rtol=1e-6)
    huge = np.full((2, 3), 1e30, np.float32)  # squares overflow in float32
    assert np.isfinite(rounding_noise(huge))
