"""Laws of plans and of draws from them."""

import itertools

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array

from skalign._core.couplings import (
    KEPT,
    ExemplarSampler,
    MixedSampler,
    PairSampler,
    PlanSampler,
    entropic_plan,
    partners_in_mean,
    plan_in_blocks,
    solve_plan,
)

SETTINGS = {"epsilon": 0.05, "rho": 0.1, "mass": 0.5}


class Squared:
    """Cost of rows that are their own codes."""

    def codes_x(self, X):
        return X

    codes_y = codes_x

    def between(self, U, V):
        return (U[:, :1] - V[:, 0]) ** 2


def test_exact_plan_of_equal_views_is_the_best_permutation(rng):
    C = rng.random((5, 5))
    best = min(itertools.permutations(range(5)), key=lambda order: sum(C[range(5), order]))
    assert_allclose(solve_plan(C, "exact", **SETTINGS).toarray(), np.eye(5)[list(best)] / 5)


def test_exact_plan_of_unlike_views_has_both_marginals_and_the_dual_value(rng):
    x, y = np.sort(rng.random(6)), np.sort(rng.random(9))
    P = solve_plan((x[:, None] - y) ** 2, "exact", **SETTINGS).toarray()
    assert_allclose(P.sum(axis=1), 1 / 6)
    assert_allclose(P.sum(axis=0), 1 / 9)
    # on the line the best plan goes by quantiles
    at = (np.arange(18) + 0.5) / 18
    expected = np.mean((x[(at * 6).astype(int)] - y[(at * 9).astype(int)]) ** 2)
    assert_allclose((P * (x[:, None] - y) ** 2).sum(), expected)


def test_partial_plan_matches_the_best_share_of_the_smaller_view(rng):
    C = rng.random((5, 4))
    for n_matched, mass in ((4, 1.0), (2, 0.5)):
        best = min(
            sum(C[i, j] for i, j in zip(rows, columns, strict=True))
            for rows in itertools.combinations(range(5), n_matched)
            for columns in itertools.permutations(range(4), n_matched)
        )
        P = solve_plan(C, "partial", **SETTINGS | {"mass": mass}).toarray()
        assert_allclose(P.sum(), mass)
        assert P.sum(axis=1).max() <= 1 / 4 + 1e-12
        assert P.sum(axis=0).max() <= 1 / 4 + 1e-12
        assert_allclose((P * C).sum() * 4, best)


def test_entropic_plans_keep_the_marginals_they_must(rng):
    C = rng.random((6, 9))
    C[0] += 20  # a row without a partner
    sums = {
        name: (P.sum(axis=1) * 6, P.sum(axis=0) * 9)
        for name in ("sinkhorn", "unbalanced", "semi_relaxed")
        for P in [entropic_plan(C, name, epsilon=0.1, rho=0.1)]
    }
    assert_allclose(sums["sinkhorn"][0], 1, atol=0.01)
    assert_allclose(sums["sinkhorn"][1], 1, atol=0.01)
    assert_allclose(sums["semi_relaxed"][1], 1, atol=0.01)
    assert sums["semi_relaxed"][0][0] < 0.01
    assert sums["unbalanced"][0][0] < 0.01
    assert sums["unbalanced"][1].max() < 1


def test_a_plan_does_not_depend_on_the_unit_of_the_cost(rng):
    C = rng.random((6, 9))
    for name in ("sinkhorn", "unbalanced"):
        found = entropic_plan(1024 * C, name, epsilon=0.1, rho=0.1)
        assert_allclose(found, entropic_plan(C, name, epsilon=0.1, rho=0.1), **LAW[np.float32])


def test_stored_entries_are_the_largest_and_keep_the_mass_of_the_row(rng):
    C = rng.random((4, 3 * KEPT))
    full = entropic_plan(C, "sinkhorn", epsilon=0.5, rho=1.0)
    kept = solve_plan(C, "sinkhorn", **SETTINGS | {"epsilon": 0.5}).toarray()
    assert_array_equal(np.count_nonzero(kept, axis=1), KEPT)
    assert_allclose(kept.sum(axis=1), full.sum(axis=1))
    for row, of in zip(kept, full, strict=True):
        assert of[row > 0].min() >= of[row == 0].max()


def test_views_within_the_size_are_solved_at_once(rng):
    X, Y = rng.random((9, 1)), rng.random((9, 1))
    found = plan_in_blocks(Squared(), X, Y, 9, 5, np.random.RandomState(0), coupling="exact", **SETTINGS)
    assert_array_equal(found.toarray(), solve_plan((X - Y.T) ** 2, "exact", **SETTINGS).toarray())


def test_blocks_deal_out_every_row_of_both_views(rng):
    X, Y = rng.random((30, 1)), rng.random((7, 1))
    plan = plan_in_blocks(Squared(), X, Y, 10, 99, np.random.RandomState(0), coupling="exact", **SETTINGS)
    assert plan.shape == (30, 7)
    assert_allclose(plan.sum(axis=1), 1 / 30)
    assert_allclose(plan.sum(axis=0), 1 / 7)


def test_no_more_blocks_are_solved_than_asked_for(rng):
    sizes = []

    class Counted(Squared):
        def between(self, U, V):
            sizes.append((len(U), len(V)))
            return super().between(U, V)

    X, Y = rng.random((1000, 1)), rng.random((7, 1))
    plan_in_blocks(Counted(), X, Y, 10, 3, np.random.RandomState(0), coupling="exact", **SETTINGS)
    assert sizes == [(10, 7)] * 3


def test_partners_are_meant_by_mass_where_there_is_any():
    plan = csr_array([[0.1, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.2]])
    rows = np.array([[0.0, 4.0], [4.0, 8.0], [7.0, 9.0]], dtype=np.float32)
    at, means = partners_in_mean(plan, rows)
    assert_array_equal(at, [0, 2])
    assert_allclose(means, [[3, 7], [7, 9]], rtol=1e-6)
    assert means.dtype == np.float32
    back, _ = partners_in_mean(plan.T, rows)
    assert_array_equal(back, [0, 1, 2])
    assert partners_in_mean(csr_array((3, 0)), np.empty((0, 2)))[1].shape == (0, 2)


def test_couples_are_drawn_in_proportion_to_the_plan(rng):
    P = rng.random((5, 8)) * (rng.random((5, 8)) < 0.5)
    P[2] = 0
    draw = PlanSampler(csr_array(P), np.random.RandomState(0))
    counts = np.zeros((5, 8))
    np.add.at(counts, draw(20_000), 1)
    assert_allclose(counts / 20_000, P / P.sum(), atol=0.01)
    assert_array_equal(counts[P == 0], 0)


def test_rows_of_equal_mass_come_once_an_epoch(rng):
    P = rng.random((6, 4))
    P /= P.sum(axis=1, keepdims=True)
    draw = PlanSampler(csr_array(P), np.random.RandomState(0))
    first, second = draw(6)[0], np.concatenate([draw(4)[0], draw(2)[0]])
    assert_array_equal(np.sort(first), np.arange(6))
    assert_array_equal(np.sort(second), np.arange(6))
    assert not np.array_equal(first, second)


def test_pairs_come_once_an_epoch():
    i, j = PairSampler(7, np.random.RandomState(0))(14)
    assert_array_equal(i, j)
    assert_array_equal(np.bincount(i), 2)


def test_exemplars_share_their_class_and_every_class_comes_equally_often():
    of_x, of_y = np.array([0] * 50 + [1, 1]), np.array([1] * 9 + [0])
    members = [[np.flatnonzero(labels == c) for c in (0, 1)] for labels in (of_x, of_y)]
    i, j = ExemplarSampler(*members, np.random.RandomState(0))(4000)
    assert_array_equal(of_x[i], of_y[j])
    assert abs(np.mean(of_x[i]) - 0.5) < 0.03
    assert len(np.unique(i)) == 52


def test_a_batch_mixes_pairs_with_others_behind_them():
    draw = MixedSampler(3, lambda n: (np.zeros(n, dtype=int), np.ones(n, dtype=int)), 0.25, np.random.RandomState(0))
    i, j = draw(12)
    assert_array_equal(np.sort(i[:3]), [0, 1, 2])
    assert_array_equal(i[:3], j[:3])
    assert_array_equal(i[3:], 3)
    assert_array_equal(j[3:], 4)
    without_others = MixedSampler(3, None, 0.25, np.random.RandomState(0))
    pairs_alone = MixedSampler(3, PlanSampler(csr_array(np.ones((1, 1))), None), 1.0, np.random.RandomState(0))
    for draw in (without_others, pairs_alone):
        assert_array_equal(np.bincount(draw(6)[0]), 2)


@pytest.mark.parametrize("coupling", ["unbalanced", "partial"])
def test_rows_without_a_partner_keep_little_mass(rng, coupling):
    X = np.concatenate([rng.random(20), 5 + rng.random(10)])[:, None]  # ten rows far from everything
    plan = plan_in_blocks(
        Squared(), X, rng.random((20, 1)), 99, 1, np.random.RandomState(0), coupling=coupling, **SETTINGS
    )
    mass = plan.sum(axis=1)
    assert mass[20:].mean() < 0.01 * mass[:20].mean()
