"""Laws of the choice of a ridge on held-out pairs. Knows the core, knows nothing of estimators."""

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import selection
from skalign._core.selection import cross_validated_ridge, parabola_minimum

RIDGES = np.outer(10.0 ** np.arange(-4, 4), [1, 1])


def row_by_row(p):
    return np.column_stack([np.arange(p), np.arange(p)])


def select(A, B, pairs=None, groups=None, regs=RIDGES, seed=0, rng=None, **changes):
    pairs = row_by_row(len(A)) if pairs is None else pairs
    groups = np.arange(len(A)) if groups is None else groups
    settings = {"n_components": None, "power": 0.5, "n_folds": 5, "n_repeats": 2, "n_enough": np.inf, **changes}
    return cross_validated_ridge(A, B, pairs, groups, regs, rng=rng or np.random.RandomState(seed), **settings)


def noiseless(rng, p=60):
    """One cloud seen twice without noise; what is wide in A is narrow in B, so only whitening brings them together."""
    Z = rng.normal(size=(p, 12))
    spread = np.arange(1, 13) ** 1.5
    U, V = (np.linalg.qr(rng.normal(size=(d, 12)))[0] for d in (20, 25))
    return Z / spread @ U.T, Z * spread @ V.T


def noisy(rng, p=60):
    """Three shared directions under much noise."""
    Z = rng.normal(size=(p, 3))
    U, V = (np.linalg.qr(rng.normal(size=(d, 3)))[0] for d in (30, 40))
    return Z @ U.T + 0.7 * rng.normal(size=(p, 30)), Z @ V.T + 0.7 * rng.normal(size=(p, 40))


def with_shared_rows(rng):
    """23 pairs of 18 and 19 samples in 14 groups: some samples stand in several pairs, and two pairs close a chain."""
    pairs = np.vstack([row_by_row(16), [[0, 16], [0, 17], [1, 18], [16, 2], [17, 3], [5, 6], [8, 7]]])
    groups = np.array([0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 1, 2, 3, 5, 6])
    X, Y = noisy(rng, 19)
    return X[pairs[:, 0]], Y[pairs[:, 1]], pairs, groups


@pytest.fixture
def held_out(monkeypatch):
    """The test part of every fold, in the order of evaluation."""
    masks, fold_losses = [], selection._fold_losses

    def spy(A, B, others, pairs, test, *args):
        masks.append(test.copy())
        return fold_losses(A, B, others, pairs, test, *args)

    monkeypatch.setattr(selection, "_fold_losses", spy)
    return masks


@pytest.mark.parametrize("seed", range(3))
def test_noise_asks_for_a_large_ridge_and_exact_views_for_a_small_one(seed):
    rng = np.random.default_rng(seed)
    exact, noise = select(*noiseless(rng)), select(*noisy(rng))
    assert RIDGES[exact.argmin(), 0] <= 1e-1
    assert exact[0] < 0.001 and exact[-1] > 0.7
    assert RIDGES[noise.argmin(), 0] >= 10
    assert noise[-1] < noise[0] - 0.05


def dense_maps(A, B, reg, n_components, power):
    """Ridge CCA by inverse roots of the d x d covariances."""
    roots = []
    for view, ridge in zip((A, B), reg, strict=True):
        S = view.T @ view / (len(view) - 1)
        values, vectors = np.linalg.eigh(S + ridge * np.eye(len(S)))
        roots.append(vectors / np.sqrt(values) @ vectors.T)
    U, s, Vt = np.linalg.svd(roots[0] @ (A.T @ B / (len(A) - 1)) @ roots[1])
    k = min(n_components or len(s), len(A) - 1, len(s))
    return roots[0] @ U[:, :k] * s[:k] ** power, roots[1] @ Vt[:k].T * s[:k] ** power


def mean_log_rank(F, G, others, pairs):
    """Of the best match of each distinct sample of the first view, among the second's of these pairs and others, by loops."""
    result = []
    for i in sorted({i for i, _ in pairs}):
        own = {j for q, j in pairs if q == i}
        gallery = {j: G[j] for j in {j for _, j in pairs}} | {("other", j): g for j, g in enumerate(others)}
        cosine = {j: F[i] @ g / (np.linalg.norm(F[i]) * np.linalg.norm(g)) for j, g in gallery.items()}
        best = max(cosine[j] for j in own)
        result.append(np.log(1 + sum(c >= best for j, c in cosine.items() if j not in own)))
    return np.mean(result)


@pytest.mark.parametrize("n_others", [(0, 0), (9, 14)])
@pytest.mark.parametrize(("n_components", "power"), [(None, 0.5), (4, 0.0)])
def test_losses_equal_plain_loops_over_held_out_parts(rng, held_out, n_components, power, n_others):
    A, B, pairs, groups = with_shared_rows(rng)
    others = noisy(rng, n_others[0])[0], noisy(rng, n_others[1])[1]
    regs = np.array([[0.1, 0.2], [10.0, 5.0]])
    settings = {"n_components": n_components, "power": power, "n_folds": 3, "n_repeats": 2}
    losses = select(A, B, pairs, groups, regs, others=others if any(n_others) else None, **settings)
    expected = np.zeros(2)
    for test in held_out:
        mean_a, mean_b = A[~test].mean(axis=0), B[~test].mean(axis=0)  # the held-out pairs move nothing
        for q, reg in enumerate(regs):
            W_x, W_y = dense_maps(A[~test] - mean_a, B[~test] - mean_b, reg, n_components, power)
            F = {i: (a - mean_a) @ W_x for (i, _), a in zip(pairs, A, strict=True)}
            G = {j: (b - mean_b) @ W_y for (_, j), b in zip(pairs, B, strict=True)}
            far_f, far_g = (others[0] - mean_a) @ W_x, (others[1] - mean_b) @ W_y
            ways = mean_log_rank(F, G, far_g, pairs[test]), mean_log_rank(G, F, far_f, pairs[test][:, ::-1])
            expected[q] += np.mean(ways) * test.sum() / (2 * len(pairs))  # a fold weighs by its pairs
    assert 0.2 < expected.min() < expected.max() < 2.5  # or the views would test nothing
    assert_allclose(losses, expected, **LAW[np.float64])


@pytest.mark.parametrize(("n_enough", "n_looked_at"), [(1, 1), (12, 1), (13, 2), (60, 5), (61, 6), (1000, 10)])
def test_folds_end_once_enough_pairs_are_ranked(rng, held_out, n_enough, n_looked_at):
    A, B = noisy(rng)
    losses = select(A, B, n_enough=n_enough)
    looked_at = held_out.copy()
    assert len(looked_at) == n_looked_at
    none = A[:0], B[:0]
    parts = [selection._fold_losses(A, B, none, row_by_row(60), test, RIDGES, None, 0.5) for test in looked_at]
    assert_allclose(losses, np.mean(parts, axis=0) / 12, **LAW[np.float64])  # a fold has 12 of the 60 pairs


def test_groups_are_never_split(rng, held_out):
    A, B, pairs, groups = with_shared_rows(rng)
    select(A, B, pairs, groups, n_folds=4, n_repeats=3)
    assert len(held_out) == 12
    for test in held_out:
        assert test.any() and not test.all()
        assert not set(groups[test]) & set(groups[~test])
        assert not set(pairs[test, 0]) & set(pairs[~test, 0])
        assert not set(pairs[test, 1]) & set(pairs[~test, 1])


def test_each_repeat_holds_out_every_pair_once_and_deals_anew(rng, held_out):
    A, B, pairs, groups = with_shared_rows(rng)
    select(A, B, pairs, groups, n_folds=4, n_repeats=3)
    repeats = np.reshape(held_out, (3, 4, len(pairs)))
    assert_array_equal(repeats.sum(axis=1), 1)
    assert len({repeat.tobytes() for repeat in repeats}) == 3
    for test in held_out:
        assert 14 // 4 <= len(set(groups[test])) <= 14 // 4 + 1  # folds hold equally many groups, or one more


def test_folds_are_no_more_than_groups(rng, held_out):
    A, B = noisy(rng, 4)
    select(A, B, n_folds=50, n_repeats=1)
    assert_array_equal(np.sum(held_out, axis=1), [1, 1, 1, 1])


def test_seed_decides(rng):
    A, B = noisy(rng)
    assert_array_equal(select(A, B, seed=3), select(A, B, seed=3))
    assert (select(A, B, seed=3) != select(A, B, seed=4)).any()


def test_one_generator_serves_all_repeats(rng, held_out):
    A, B = noisy(rng)
    stream = np.random.RandomState(0)
    once = [select(A, B, n_repeats=1, rng=stream) for _ in range(2)]
    assert_allclose(select(A, B, seed=0, n_repeats=2), np.mean(once, axis=0), **LAW[np.float64])


def test_one_group_cannot_be_judged(rng, held_out):
    A, B = noisy(rng, 6)
    losses = select(A, B, groups=np.zeros(6, dtype=int))
    assert losses.shape == (len(RIDGES),)
    assert np.isnan(losses).all()
    assert not held_out


def test_where_the_training_part_does_not_vary_every_held_out_row_comes_last(rng):
    others = noisy(rng, 7)[0], noisy(rng, 4)[1]  # two folds, each trained on a single pair
    assert_allclose(select(*noisy(rng, 2), others=others), np.log([8, 5]).mean(), **LAW[np.float64])


def test_views_may_lie_anywhere(rng):
    A, B = noisy(rng)
    assert_allclose(select(A + 100, B - 30), select(A, B), **LAW[np.float64])


def test_ridge_of_each_view_follows_its_units(rng):
    A, B = noisy(rng)
    scaled = select(1000 * A, B / 50, regs=RIDGES * [1000**2, 1 / 50**2])
    assert_allclose(scaled, select(A, B), **LAW[np.float64])


def test_single_precision_gives_the_same_losses_but_for_near_ties(rng):
    A, B = noisy(rng)
    single = select(A.astype(np.float32), B.astype(np.float32))
    assert_allclose(single, select(A, B), rtol=0, atol=0.01)  # a few of 120 queries may move by a rank


def test_views_are_left_as_they_were(rng):
    A, B, pairs, groups = with_shared_rows(rng)
    parts = A, B, pairs, groups, *noisy(rng, 5)
    before = [part.copy() for part in parts]
    select(*parts[:4], others=parts[4:])
    for part, copy in zip(parts, before, strict=True):
        assert_array_equal(part, copy)


def test_the_least_loss_is_found_between_the_candidates():
    for vertex in (1.6, 2.0, 3.3):
        assert_allclose(parabola_minimum(5 + 0.2 * (np.arange(6) - vertex) ** 2), vertex, **LAW[np.float64])
    assert parabola_minimum(np.array([3.0, 2.0, 1.0])) == 2  # at an end there is no parabola
    assert parabola_minimum(np.array([0.0, 2.0, 1.0])) == 0
    assert parabola_minimum(np.array([1.0, 0.0, 0.0, 1.0])) == 1.5
    assert parabola_minimum(np.array([1.0, 1.0, 1.0])) == 0
