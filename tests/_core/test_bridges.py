"""Laws of the bridge costs: closed forms, isometries, and the choice between them."""

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, jensenshannon
from sklearn.linear_model import RidgeCV

from skalign._core.bridges import COSTS, choose, fit_cost, held_out_score, reciprocal_rank, ridge
from skalign._core.couplings import entropic_plan


def two_views(rng, n, noise=0.02):
    """Two rotated images of one latent of dimension 3, with 5 and 7 columns."""
    z = rng.standard_normal((n, 3))
    turns = (np.linalg.qr(rng.standard_normal((d, 3)))[0].T for d in (5, 7))
    return tuple(z @ turn + noise * rng.standard_normal((n, turn.shape[1])) for turn in turns)


def matrix(cost, A, B, X, Y, metric="euclidean"):
    model = fit_cost(cost, A, B, X, Y, metric)
    return model.between(model.codes_x(X), model.codes_y(Y))


def balanced(C):
    return entropic_plan(C, "sinkhorn", epsilon=0.05, rho=1.0)


def test_profile_is_two_minus_twice_the_correlation_of_standardised_distances(rng):
    X, Y = two_views(rng, 20)
    profiles = []
    for rows, points in ((X, X[:6]), (Y[:17], Y[:6])):
        D = cdist(rows, points)
        profiles.append((D - D.mean(axis=0)) / D.std(axis=0))
    expected = 2 - 2 * np.array([[np.corrcoef(u, v)[0, 1] for v in profiles[1]] for u in profiles[0]])
    assert_allclose(matrix("profile", X[:6], Y[:6], X, Y[:17]), expected, **LAW[np.float64])


def test_chain_is_the_shortest_way_through_a_bridge(rng):
    X, Y = two_views(rng, 9)
    to, back = cdist(X, X[:4]), cdist(Y[:8], Y[:4])
    expected = [[min(u / to.mean() + v / back.mean()) for v in back] for u in to]
    assert_allclose(matrix("chain", X[:4], Y[:4], X, Y[:8]), expected)


def test_relation_is_the_jensen_shannon_divergence_of_softmaxes(rng):
    X, Y = two_views(rng, 9)
    relations = []
    for rows, points in ((X, X[:4]), (Y[:8], Y[:4])):
        D = cdist(rows, points)
        R = np.exp(-2 * D**2 / (0.3 * D.max() ** 2))
        relations.append(R / R.sum(axis=1, keepdims=True))
    expected = [[jensenshannon(u, v) ** 2 for v in relations[1]] for u in relations[0]]
    assert_allclose(matrix("relation", X[:4], Y[:4], X, Y[:8]), expected, atol=1e-12)


def test_ridge_and_its_strength_are_those_of_scikit_learn(rng):
    X, Y = two_views(rng, 12, noise=1.0)
    regs = np.logspace(-1, 4, 11)
    referee = RidgeCV(regs).fit(X, Y)
    coef, intercept = ridge(X, Y)
    assert regs[0] < referee.alpha_ < regs[-1]
    assert_allclose(coef, referee.coef_.T, **LAW[np.float64])
    assert_allclose(intercept, referee.intercept_, **LAW[np.float64])
    assert_allclose(matrix("linear", X, Y, X[:5], Y), cdist(referee.predict(X[:5]), Y, "sqeuclidean"))


@pytest.mark.parametrize("cost", COSTS)
def test_costs_ignore_a_rotation_of_a_view(rng, cost):
    X, Y = two_views(rng, 15)
    Q = np.linalg.qr(rng.standard_normal((7, 7)))[0]
    assert_allclose(matrix(cost, X[:5], (Y @ Q)[:5], X, Y @ Q), matrix(cost, X[:5], Y[:5], X, Y), atol=1e-9)


@pytest.mark.parametrize("cost", ["profile", "chain", "relation"])
def test_cosine_costs_ignore_the_length_of_rows(rng, cost):
    X, Y = two_views(rng, 15)
    longer = X * rng.uniform(1, 9, size=(15, 1))
    found = matrix(cost, longer[:5], Y[:5], longer, Y, "cosine")
    assert_allclose(found, matrix(cost, X[:5], Y[:5], X, Y, "cosine"), atol=1e-9)


@pytest.mark.parametrize("cost", ["profile", "relation", "linear"])
def test_true_partners_are_found_unless_the_bridges_are_shuffled(rng, cost):
    X, Y = two_views(rng, 120)
    found = linear_sum_assignment(matrix(cost, X[:20], Y[:20], X[20:], Y[20:]))[1]
    assert np.mean(found == np.arange(100)) > 0.8
    shuffled = linear_sum_assignment(matrix(cost, X[:20], Y[rng.permutation(20)], X[20:], Y[20:]))[1]
    assert np.mean(shuffled == np.arange(100)) < 0.1


def test_a_users_cost_sees_rows_and_bridges(rng):
    X, Y = two_views(rng, 6)

    def cost(X, Y, A, B):
        return np.add.outer(X[:, 0] - A[0, 0], Y[:, 1] - B[0, 1])

    assert_allclose(matrix(cost, X[:2], Y[:2], X, Y[:4]), np.add.outer(X[:, 0] - X[0, 0], Y[:4, 1] - Y[0, 1]))
    with pytest.raises(ValueError, match=r"`cost` must return finite costs of shape \(6, 4\)"):
        matrix(lambda X, Y, A, B: X, X[:2], Y[:2], X, Y[:4])


def test_reciprocal_rank_averages_both_directions_and_counts_ties_against():
    P = np.array([[3.0, 3.0, 0.0], [0.0, 2.0, 1.0], [4.0, 0.0, 9.0]])
    forward, backward = [1 / 2, 1], [1 / 2, 1 / 2]  # (0, 0) ties in its row; 4 and 3 stand above in the columns
    assert_allclose(reciprocal_rank(P, 2), (np.mean(forward) + np.mean(backward)) / 2)


def test_held_out_score_of_a_perfect_cost_is_one_and_of_none_is_low(rng):
    X, Y = two_views(rng, 60, noise=0)
    problem = X[:15], Y[:15], np.arange(15), X[15:], Y[15:], "euclidean", balanced, 0
    assert held_out_score("linear", *problem) == 1
    assert held_out_score(lambda X, Y, A, B: np.ones((len(X), len(Y))), *problem) < 0.05


def test_pairs_that_share_a_row_are_held_out_together(rng):
    X, Y = two_views(rng, 30)
    groups = np.repeat(np.arange(10), 3)
    seen = []

    def cost(X, Y, A, B):
        seen.append({tuple(row) for row in A})
        return np.zeros((len(X), len(Y)))

    held_out_score(cost, X, Y, groups, X[:0], Y[:0], "euclidean", balanced, 0)
    whole = [{tuple(row) for row in X[groups == g]} for g in range(10)]
    assert len(seen) == 5
    assert all(group <= bridges or not group & bridges for bridges in seen for group in whole)


def chosen(cost, X, Y, n_pairs, rng, means=None, refine=False, n_free=60):
    means = (X[:0], Y[:0]) if means is None else means
    A, B = X[:n_pairs], Y[:n_pairs]
    U, V = X[n_pairs : n_pairs + n_free], Y[n_pairs : n_pairs + n_free]
    return choose(
        cost, A, B, np.arange(n_pairs), means, U, V, metric="euclidean", refine=refine, solve=balanced, rng=rng
    )


def test_auto_takes_the_cost_with_the_best_score(rng):
    X, Y = two_views(rng, 90)
    choice = chosen("auto", X, Y, 20, np.random.RandomState(0))
    assert set(choice.scores) == set(COSTS)
    assert choice.cost == max(choice.scores, key=choice.scores.get)
    assert_array_equal(choice.A, X[:20])


def test_auto_does_not_judge_by_a_handful_of_pairs(rng):
    X, Y = two_views(rng, 90)
    few = chosen("auto", X, Y, 9, np.random.RandomState(0))
    assert (few.cost, few.scores) == ("linear", {})
    none = chosen("auto", X, Y, 0, np.random.RandomState(0), means=(X[:4], Y[:4]))
    assert (none.cost, none.scores) == ("chain", {})
    assert_array_equal(none.B, Y[:4])


def test_a_given_cost_is_judged_too(rng):
    X, Y = two_views(rng, 90)
    everything = chosen("auto", X, Y, 20, np.random.RandomState(0)).scores
    assert chosen("chain", X, Y, 20, np.random.RandomState(0)).scores == {"chain": everything["chain"]}


def test_bridges_that_stand_twice_count_once(rng):
    X, Y = two_views(rng, 90)
    X[:5], Y[:5] = X[0], Y[0]
    assert len(chosen("chain", X, Y, 8, np.random.RandomState(0)).A) == 4
    with pytest.raises(ValueError, match="cost='profile' needs at least 3 distinct bridges .* but there are 2"):
        chosen("profile", X, Y, 6, np.random.RandomState(0))


def test_refining_adds_true_couples_where_that_helps(rng):
    X, Y = two_views(rng, 400, noise=0.05)
    choice = chosen("profile", X, Y, 15, np.random.RandomState(0), refine=True, n_free=385)
    assert choice.scores["profile, refined"] > choice.scores["profile"]
    added = {tuple(row) for row in np.column_stack([choice.A, choice.B])[12:]}
    true = {tuple(row) for row in np.column_stack([X, Y])}
    assert len(added) > 50
    assert len(added & true) > 0.8 * len(added)


def test_refining_is_left_out_where_it_does_not_help(rng):
    X, Y = rng.standard_normal((100, 5)), rng.standard_normal((100, 7))
    choice = chosen("profile", X, Y, 12, np.random.RandomState(0), refine=True)
    assert "profile, refined" in choice.scores
    assert len(choice.A) == 12
