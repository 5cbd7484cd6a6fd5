"""Laws of transport whose marginals give way: unbalanced and semi-relaxed. POT, SciPy and closed forms referee."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import LAW, LIBRARY
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from skalign._core import affinity
from skalign._core.relaxation import tilted
from skalign._core.sinkhorn import sinkhorn, sinkhorn_from_features

INF = math.inf
RHOS = [(0.1, 0.1), (1, 0.3), (20, 20), (0.01, 1), (0.2, INF), (INF, 0.05)]  # unbalanced, then semi-relaxed


def problem(rng, n=7, m=11, mass_a=1.0, mass_b=1.7):
    """Negative costs between 0 and 1, and weights of unlike masses."""
    a, b = rng.uniform(0.2, 2, size=n), rng.uniform(0.2, 2, size=m)
    return torch.from_numpy(-rng.uniform(size=(n, m))), mass_a * a / a.sum(), mass_b * b / b.sum()


def solved(K, epsilon, a=None, b=None, rho=(INF, INF), tol=1e-12, max_iter=3000):
    result = sinkhorn(K, epsilon, a, b, rho_a=rho[0], rho_b=rho[1], tol=tol, max_iter=max_iter)
    assert result.converged
    return result


def kl(p, q):
    return (p * np.log(p / q) - p + q).sum()


def pot(a, b, C, epsilon, rho):
    """POT's plain iterations; its stabilised ones end at another plan (its issue 711)."""
    import ot

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it only warns where it has overflowed
        return ot.unbalanced.sinkhorn_unbalanced(
            a, b, C, epsilon, rho, method="sinkhorn", reg_type="kl", numItermax=200_000, stopThr=1e-15
        )


@pytest.mark.parametrize("epsilon", [1, 0.1, 0.05])
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(
    ("n", "m", "mass_b"), [(7, 11, 1.0), (7, 11, 1.7), (11, 7, 0.4), (60, 50, 1.3), (1, 5, 2.0), (5, 1, 2.0)]
)
def test_plan_equals_pot(rng, n, m, mass_b, rho, epsilon):
    K, a, b = problem(rng, n, m, mass_b=mass_b)
    result = solved(K, epsilon, a, b, rho)
    expected = pot(a, b, -K.numpy(), epsilon, rho)
    assert_allclose(result.plan, expected, rtol=0, atol=1e-8)
    assert_allclose(result.row_sums, expected.sum(axis=1), rtol=0, atol=1e-8)
    assert_allclose(result.column_sums, expected.sum(axis=0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("rho", RHOS)
def test_plan_in_single_precision_equals_pot(rng, rho):
    K, a, b = problem(rng)
    result = solved(K.float(), 0.05, a, b, rho, tol=3e-6)
    assert result.plan.dtype == torch.float32
    assert_allclose(result.plan, pot(a, b, -K.numpy(), 0.05, rho), rtol=1e-3, atol=1e-5)


TWO_POINTS = np.array([0.3, 0.7]), np.array([0.7, 0.3]), np.array([[0.0, 1], [1, 0]])  # of POT's issue 711


def test_two_points_of_pot_issue_711():
    a, b, C = TWO_POINTS
    plan = solved(torch.from_numpy(-C), 0.01, a, b, (100, 100)).plan
    assert_allclose(plan, [[0.3014896, 0], [0.3950266, 0.3014896]], rtol=0, atol=1e-7)
    # as it is stated there: entropy of the plan itself, which is the divergence from a b' at another affinity
    K = -C - 0.01 * np.log(np.outer(a, b))
    plan = solved(torch.from_numpy(K), 0.01, a, b, (100, 100)).plan
    assert_allclose(plan, [[0.3015259, 0], [0.3950152, 0.3015259]], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_two_points_of_pot_issue_711_equal_pot():
    a, b, C = TWO_POINTS
    plan = solved(torch.from_numpy(-C), 0.01, a, b, (100, 100)).plan
    assert_allclose(plan, pot(a, b, C, 0.01, 100), rtol=0, atol=1e-8)


@pytest.mark.parametrize("rho", [(0.1, 0.1), (1, 0.3), (5, 2)])
def test_no_plan_is_better(rng, rho):
    K, a, b = problem(rng, 3, 4)
    K, epsilon = K.numpy(), 0.1

    def loss(log_P):
        """What is minimised, and its gradient in log P."""
        P = np.exp(log_P.reshape(3, 4))
        rows, columns = P.sum(axis=1), P.sum(axis=0)
        value = epsilon * kl(P, np.outer(a, b)) + rho[0] * kl(rows, a) + rho[1] * kl(columns, b) - (P * K).sum()
        force = epsilon * np.log(P / np.outer(a, b)) + rho[0] * np.log(rows / a)[:, None] + rho[1] * np.log(columns / b)
        return value, (P * (force - K)).ravel()

    plan = solved(torch.from_numpy(K), epsilon, a, b, rho).plan.numpy()
    best = minimize(loss, np.log(np.outer(a, b)).ravel(), jac=True, method="BFGS", options={"gtol": 1e-10})
    assert loss(np.log(plan))[0] <= best.fun + 1e-12
    assert_allclose(plan, np.exp(best.x).reshape(3, 4), rtol=0, atol=1e-7)


def slack(result, a, b, rho, epsilon, K):
    """What the first-order condition of an unbalanced problem is off by, in units of epsilon, where the plan has mass."""
    P = result.plan
    gain = K - rho[0] * (result.row_sums / a).log()[:, None] - rho[1] * (result.column_sums / b).log()
    log_P = P.log() - (a[:, None] * b).log()
    return ((log_P - gain / epsilon) * P).abs().sum() / P.sum()


@st.composite
def problems(draw):
    """Features of some shape, weights, an epsilon and two penalties, from a drawn seed."""
    n, m, d = (draw(st.integers(1, size)) for size in (9, 12, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    F, G = (torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(size, d))), dim=1) for size in (n, m))
    a, b = (torch.from_numpy(rng.dirichlet(np.full(size, draw(st.sampled_from([0.5, 2, 50]))))) for size in (n, m))
    rho = tuple(10 ** draw(st.floats(-1.5, 4)) for _ in "ab")
    return F, G, a + 1e-6, 10 ** draw(st.floats(-1, 1)) * b + 1e-6, 10 ** draw(st.floats(-2, 1)), rho, rng


@settings(max_examples=60, deadline=None)
@given(problems())
def test_laws_hold_for_all_shapes_weights_and_penalties(problem):
    F, G, a, b, epsilon, rho, rng = problem
    K = F @ G.T - 1
    ones = torch.ones(len(F), 1, dtype=F.dtype), -torch.ones(len(G), 1, dtype=G.dtype)
    F, G = torch.cat([F, ones[0]], dim=1), torch.cat([G, ones[1]], dim=1)
    options = {"rho_a": rho[0], "rho_b": rho[1], "tol": 1e-11, "max_iter": 2000}
    dense, streamed = sinkhorn(K, epsilon, a, b, **options), sinkhorn_from_features(F, G, epsilon, a, b, **options)
    for result in (dense, streamed):
        P = result.plan
        assert torch.isfinite(P).all()
        assert_allclose(P.sum(dim=1), result.row_sums, rtol=1e-9, atol=1e-13)
        assert_allclose(P.sum(dim=0), result.column_sums, rtol=1e-9, atol=1e-13)
        assert result.converged == (result.error <= 1e-11)
    assume(dense.converged and streamed.converged)
    P, close = dense.plan, {"rtol": 1e-5, "atol": 1e-9}
    assert slack(dense, a, b, rho, epsilon, K) <= 1e-9 * (1 + sum(rho)) / epsilon  # the sums round, rho / epsilon-fold
    assert_allclose(streamed.plan, P, **close)
    rows, columns = rng.permutation(len(a)), rng.permutation(len(b))
    permuted = sinkhorn(K[rows][:, columns], epsilon, a[rows], b[columns], **options)
    if permuted.converged:
        assert_allclose(permuted.plan, P[rows][:, columns], **close)
    turned = sinkhorn(K.T, epsilon, b, a, **options | {"rho_a": rho[1], "rho_b": rho[0]})
    if turned.converged:
        assert_allclose(turned.plan, P.T, **close)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(
    ("K", "epsilon", "a", "b"), [(-0.7, 0.05, 1.0, 1.0), (0.4, 1.0, 0.3, 2.0), (-3.0, 0.2, 5.0, 0.1)]
)
def test_one_row_and_one_column_have_a_closed_form(K, epsilon, a, b, rho):
    if INF in rho:
        expected = b if rho[1] == INF else a
    else:
        force = K + (epsilon + rho[0]) * math.log(a) + (epsilon + rho[1]) * math.log(b)
        expected = math.exp(force / (epsilon + sum(rho)))
    result = solved(torch.full((1, 1), K).double(), epsilon, [a], [b], rho)
    assert_allclose(result.plan, [[expected]], rtol=1e-6)  # the force is a float32 literal's
    assert result.n_iter == 1


@pytest.mark.parametrize("rho", RHOS)
def test_a_constant_scales_an_unbalanced_plan_and_no_other(rng, rho):
    K, a, b = problem(rng)
    factor = math.exp(0.3 / (0.1 + sum(rho)))  # 1 if one is infinite
    assert_allclose(solved(K + 0.3, 0.1, a, b, rho).plan, factor * solved(K, 0.1, a, b, rho).plan, **LAW[np.float64])


@pytest.mark.parametrize("rho", [rho for rho in RHOS if INF not in rho])
def test_mass_grows_by_a_power_of_the_marginals(rng, rho):
    K, a, b = problem(rng)
    factor = 300 ** ((0.2 + sum(rho)) / (0.1 + sum(rho)))  # the entropy is measured from a b', which grows twice
    heavy = solved(K, 0.1, 300 * a, 300 * b, rho)
    assert_allclose(heavy.plan, factor * solved(K, 0.1, a, b, rho).plan, **LAW[np.float64])


@pytest.mark.parametrize("factor", [1e-6, 7.0, 1e6])
@pytest.mark.parametrize("rho", RHOS)
def test_affinity_epsilon_and_penalties_scale_together(rng, rho, factor):
    K, a, b = problem(rng)
    scaled = solved(factor * K, factor * 0.1, a, b, tuple(factor * r for r in rho))
    assert_allclose(scaled.plan, solved(K, 0.1, a, b, rho).plan, **LAW[np.float64])


@pytest.mark.parametrize("relaxed", [(1, 1), (1, INF), (INF, 1)])
def test_a_large_penalty_is_near_a_held_marginal(rng, relaxed):
    K, a, b = problem(rng, mass_b=1.0)
    held, gaps = solved(K, 0.05, a, b).plan, []
    for rho in (1e2, 1e4, 1e6):
        plan = solved(K, 0.05, a, b, tuple(rho * r for r in relaxed)).plan
        gaps.append(float((plan - held).abs().sum()))
    assert gaps[0] < 1e-2
    assert_allclose(gaps[1:], [gaps[0] / 1e2, gaps[0] / 1e4], rtol=0.05)


def test_infinite_penalties_are_the_balanced_problem(rng):
    K, a, b = problem(rng, mass_b=1.0)
    plain, relaxed = sinkhorn(K, 0.05, a, b), sinkhorn(K, 0.05, a, b, rho_a=INF, rho_b=INF)
    assert_array_equal(relaxed.plan, plain.plan)
    assert_array_equal(plain.row_sums, a)


def test_a_held_marginal_is_met_and_the_other_gives_way(rng):
    K, a, b = problem(rng)
    rows_relaxed, columns_relaxed = solved(K, 0.05, a, b, (0.1, INF)), solved(K, 0.05, a, b, (INF, 0.1))
    assert_allclose(rows_relaxed.plan.sum(dim=0), b, **LAW[np.float64])
    assert_allclose(columns_relaxed.plan.sum(dim=1), a, **LAW[np.float64])
    assert abs(rows_relaxed.row_sums.numpy() - 1.7 * a).sum() > 0.05
    assert abs(columns_relaxed.column_sums.numpy() - b / 1.7).sum() > 0.05


def test_rows_that_fit_nowhere_give_up_their_mass(rng):
    K, a, b = problem(rng, mass_b=1.0)
    masses = []
    for distance in (0, 1, 3, 1e4):
        far = K.clone()
        far[2:4] -= distance
        result = solved(far, 0.02, a, b, (0.2, 0.2), tol=1e-9)
        masses.append(float(result.row_sums[2:4].sum()))
        assert float(result.row_sums.sum()) > 0.4  # of the others
    assert masses == sorted(masses, reverse=True)
    assert masses[1] < 0.1 * masses[0]
    assert masses[3] == 0


def test_zero_weights_give_zero_rows_and_columns(rng):
    K, a, b = problem(rng)
    a[[0, 4]], b[[3, 9]] = 0, 0
    result, reduced = (
        solved(K, 0.05, a, b, (0.1, 0.3)),
        solved(K[a > 0][:, b > 0], 0.05, a[a > 0], b[b > 0], (0.1, 0.3)),
    )
    assert_allclose(result.plan[a > 0][:, b > 0], reduced.plan, **LAW[np.float64])
    for sums, weights in ((result.row_sums, a), (result.column_sums, b)):
        assert_array_equal(sums == 0, weights == 0)


@pytest.mark.parametrize("rho", RHOS)
def test_start_at_the_solution_is_the_solution(rng, rho):
    K, a, b = problem(rng)
    cold = solved(K, 0.05, a, b, rho, tol=1e-10)
    warm = sinkhorn(K, 0.05, a, b, rho_a=rho[0], rho_b=rho[1], tol=1e-9, init=cold.g + 3)  # up to a constant
    assert warm.converged
    assert warm.n_iter == 1
    assert_allclose(warm.plan, cold.plan, **LIBRARY[np.float64])


@pytest.mark.parametrize("block", [1, 25, 30])
def test_blocks_of_rows_change_nothing(rng, block, monkeypatch):
    K, a, b = problem(rng)
    K[:, 2] -= torch.arange(7)  # row weights are gathered from small to large and back
    whole = solved(K, 0.02, a, b, (0.01, 0.1))
    monkeypatch.setattr(affinity, "_STORED_BLOCK", block)
    for order in (slice(None), list(range(6, -1, -1))):
        assert_allclose(solved(K[order], 0.02, a[order], b, (0.01, 0.1)).plan, whole.plan[order], **LAW[np.float64])


@pytest.mark.parametrize("rho", [(1, 1), (100, 100), (1e6, 1e6), (1, INF), (INF, 100)])
def test_hard_problems_converge_in_some_hundred_iterations(rho):
    rng = np.random.default_rng(0)
    for K in (problem(rng, 60, 50)[0], torch.from_numpy(rng.normal(size=(30, 30)) - 3)):
        solved(K, 0.005, None, None, rho, tol=1e-9, max_iter=600)  # plain ones need rho / epsilon times as many


@pytest.mark.parametrize("max_iter", [1, 4, 200])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 10])
@pytest.mark.parametrize("rho", [(1e-3, 1e-3), (10, 0.1), (1e6, 1e6), (INF, 1e-3), (1e4, INF), (1e6, 1e-3)])
@pytest.mark.parametrize("kind", ["noise", "zeros and ones", "a far row", "a far column", "near-duplicate rows"])
def test_hard_problems_are_reported_honestly(rng, kind, rho, epsilon, max_iter):
    K = torch.from_numpy(rng.normal(size=(7, 11)))
    K = {
        "noise": K,
        "zeros and ones": (K > 0).double(),
        "a far row": K - 100 * torch.eye(7, dtype=K.dtype)[:, 3:4],
        "a far column": K - 100 * torch.eye(11, dtype=K.dtype)[4],
        "near-duplicate rows": K[:1] + 1e-12 * K,
    }[kind]
    K = (K - K.max()) * (1e4 / K.abs().max())
    result = sinkhorn(K, epsilon, rho_a=rho[0], rho_b=rho[1], tol=1e-8, max_iter=max_iter)
    P, mass = result.plan, float(result.column_sums.sum())
    assert all(torch.isfinite(Z).all() for Z in (result.f, result.g, result.row_sums, result.column_sums, P))
    assert result.converged == (result.error <= 1e-8)
    assert result.n_iter <= max_iter
    rounding = 2e-15 * 2e4 / epsilon + 1e-9
    assert float((P.sum(dim=1) - result.row_sums).abs().sum()) <= rounding * mass
    assert float((P.sum(dim=0) - result.column_sums).abs().sum()) <= rounding * mass
    if INF not in rho:
        assert mass <= 1 + 1e-9  # nothing is gained by a move


def test_a_plan_of_little_mass_keeps_its_proportions():
    K = -torch.arange(6, dtype=torch.float64).reshape(2, 3)
    light, plain = solved(K - 30, 0.1, None, None, (0.05, 0.05)), solved(K, 0.1, None, None, (0.05, 0.05))
    assert 0 < light.plan.sum() < 1e-60
    assert_allclose(light.plan / light.plan.sum(), plain.plan / plain.plan.sum(), rtol=1e-7)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 40.0), (torch.float64, 300.0)])
def test_more_mass_than_numbers_hold_is_refused(dtype, large):
    K = torch.eye(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"mass of 2\^\d+, which torch.float\d\d does not hold.*Subtract its maximum"):
        sinkhorn(K + large, 0.1, rho_a=0.1, rho_b=0.1)
    assert sinkhorn(K + large, 0.1, rho_a=0.1).converged  # a held marginal holds the mass


@pytest.mark.parametrize("name", ["rho_a", "rho_b"])
@pytest.mark.parametrize("rho", [0, -1.0, math.nan, -math.inf])
def test_penalties_must_be_positive(name, rho):
    with pytest.raises(ValueError, match=rf"`{name}` must be positive, but it is {rho}.*infinity"):
        sinkhorn(torch.eye(3), 0.1, **{name: rho})
    with pytest.raises(ValueError, match=rf"`{name}` must be positive"):
        sinkhorn_from_features(torch.eye(3), torch.eye(3), 0.1, **{name: rho})


@pytest.mark.parametrize("power", [-3.0, -1e-9, 1e-12, 0.2, 1.0])
def test_tilted_weights_keep_their_mass_and_tell_the_level(rng, power):
    weights, x = torch.from_numpy(rng.uniform(size=9)), torch.from_numpy(5 * rng.normal(size=9))
    expected = weights * 2 ** (power * x)
    found, level = tilted(weights, x, power)
    assert_allclose(found, expected * (weights.sum() / expected.sum()), **LAW[np.float64])
    # over a small power, the second-order expansion about the mean
    mean = float(weights @ x / weights.sum())
    variance = float(weights @ (x - mean) ** 2 / weights.sum())
    exact = (
        mean + power * variance * math.log(2) / 2
        if abs(power) < 1e-6
        else math.log2(expected.sum() / weights.sum()) / power
    )
    assert_allclose(level / weights.sum(), exact, rtol=1e-12)


def test_tilting_survives_extremes():
    weights, x = torch.tensor([1e-300, 1.0, 0.5]).double(), torch.tensor([1e9, -1e9, 0.0]).double()
    for power in (1e-300, 1e-6, 1.0, 1e4):
        for sign in (-1, 1):
            found, level = tilted(weights, x, sign * power)
            assert_allclose(found.sum(), 1.5, rtol=1e-12)
            assert -1e9 <= level / 1.5 <= 1e9
