"""Laws of the entropic transport solver. POT and SciPy referee. Knows torch, knows nothing of estimators."""

import math

import numpy as np
import pytest
import torch
from helpers import LAW, LIBRARY, MARGINAL
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import linear_sum_assignment
from torch.utils._python_dispatch import TorchDispatchMode

from skalign._core import affinity
from skalign._core import sinkhorn as module
from skalign._core.relaxation import Relaxation
from skalign._core.sinkhorn import _LargeEntries, sinkhorn, sinkhorn_from_features

DTYPES = {np.float32: torch.float32, np.float64: torch.float64}


def cosines(rng, n=7, m=11, d=3):
    """Cosines of random rows, (n, m), as the estimators form them."""
    F, G = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    return torch.from_numpy(
        (F / np.linalg.norm(F, axis=1)[:, None]) @ (G / np.linalg.norm(G, axis=1)[:, None]).T  # (n, m)
    )


def weights(rng, n):
    a = rng.uniform(0.2, 2, size=n)
    return a / a.sum()


def solved(K, epsilon, a=None, b=None, tol=1e-12, max_iter=5000):
    result = sinkhorn(K, epsilon, a, b, tol=tol, max_iter=max_iter)
    assert result.converged
    return result


def errors(result, a=None, b=None):
    """L1 errors of the row and of the column sums of the plan, over the mass; uniform marginals if None."""
    P = result.plan.double().numpy()
    a = np.full(P.shape[0], 1 / P.shape[0]) if a is None else a
    b = np.full(P.shape[1], 1 / P.shape[1]) if b is None else b
    return abs(P.sum(axis=1) - a).sum() / a.sum(), abs(P.sum(axis=0) - b).sum() / a.sum()


def is_finite(result):
    return all(torch.isfinite(Z).all() for Z in (result.f, result.g, result.column_sums, result.plan))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "m", "weighted", "epsilon"), [(9, 9, False, 0.05), (7, 11, False, 0.2), (11, 7, True, 0.05), (8, 8, True, 1)]
)
def test_plan_equals_pot(rng, n, m, weighted, epsilon, dtype):
    import ot

    K = cosines(rng, n, m)
    a, b = (weights(rng, n), weights(rng, m)) if weighted else (np.full(n, 1 / n), np.full(m, 1 / m))
    result = solved(K.to(DTYPES[dtype]), epsilon, a, b, tol=1e-12 if dtype is np.float64 else 3e-6)
    expected = ot.bregman.sinkhorn_log(a, b, -K.numpy(), epsilon, numItermax=100_000, stopThr=1e-13)
    assert result.plan.dtype == DTYPES[dtype]
    assert_allclose(result.plan, expected, **LIBRARY[dtype])


@pytest.mark.parametrize(
    ("dtype", "epsilon", "tol"),
    [(np.float64, epsilon, 1e-9) for epsilon in (0.1, 0.05, 0.01, 0.005, 0.001)]
    + [(np.float32, epsilon, 1e-5) for epsilon in (0.1, 0.05, 0.01, 0.005)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_marginals_hold_at_the_tolerance(rng, dtype, epsilon, tol, weighted):
    K = cosines(rng, 29, 41, d=5).to(DTYPES[dtype])
    a, b = (weights(rng, 29), weights(rng, 41)) if weighted else (None, None)
    result = solved(K, epsilon, a, b, tol=tol)
    assert result.error <= tol
    row_error, column_error = errors(result, a, b)
    assert row_error <= MARGINAL * tol
    assert column_error <= MARGINAL * tol
    assert_allclose(column_error, result.error, rtol=0, atol=tol if dtype is np.float32 else 1e-12)
    assert_allclose(result.column_sums, result.plan.double().sum(dim=0), rtol=0, atol=tol)


def test_rows_are_exact_and_the_error_stands_in_the_columns(rng):
    result = sinkhorn(cosines(rng), 0.05, tol=1e-2)
    assert result.converged
    row_error, column_error = errors(result)
    assert row_error < 1e-12
    assert 1e-5 < column_error <= 1e-2
    assert_allclose(result.error, column_error, **LAW[np.float64])


def test_potentials_write_the_plan(rng):
    K = cosines(rng)
    result = solved(K, 0.05, weights(rng, 7), weights(rng, 11))
    log_P = (K + result.f[:, None] + result.g) / 0.05
    assert_allclose(result.plan.log(), log_P, **LAW[np.float64])


@pytest.mark.parametrize("n", [6, 9])
def test_small_epsilon_finds_the_assignment(rng, n):
    K = torch.from_numpy(rng.normal(size=(n, n)))
    rows, columns = linear_sum_assignment(-K)
    best = float(K[rows, columns].mean())
    for epsilon in (0.1, 0.01):
        result = solved(K, epsilon, tol=1e-9)
        reached = float((result.plan * K).sum())
        assert -1e-8 <= best - reached <= epsilon * math.log(n)  # the entropy of a plan lies between log n and 2 log n
    assert_array_equal(result.plan.argmax(dim=1), columns)
    assert (n * result.plan[rows, columns] > 0.95).all()


@pytest.mark.parametrize("wait", [0, 100])  # iterations before a model of large entries is asked
@pytest.mark.parametrize("seed", range(5))
def test_hard_problems_converge_in_some_hundred_iterations(seed, wait, monkeypatch):
    monkeypatch.setattr(module, "_WAIT", wait)
    rng = np.random.default_rng(seed)
    # plateaus of the dual on which acceleration loses its way; modes so slow that only acceleration ends
    for K, epsilon in ((cosines(rng), 0.005), (torch.from_numpy(rng.normal(size=(30, 30))), 0.01)):
        solved(K, epsilon, tol=1e-9, max_iter=500)


def test_large_epsilon_forgets_the_affinity(rng):
    a, b = weights(rng, 7), weights(rng, 11)
    result = solved(cosines(rng), 1e6, a, b)
    assert_allclose(result.plan, np.outer(a, b), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plan_ignores_row_and_column_shifts(rng, dtype):
    K = cosines(rng).to(DTYPES[dtype])
    r, c = torch.from_numpy(rng.normal(size=(7, 1))).to(K), torch.from_numpy(rng.normal(size=11)).to(K)
    tol = 1e-12 if dtype is np.float64 else 3e-6
    plan = solved(K, 0.1, tol=tol).plan
    for shift in (r, c, r + c):
        assert_allclose(solved(K + shift, 0.1, tol=tol).plan, plan, **LAW[dtype])


def test_transposed_problem_has_the_transposed_plan(rng):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    assert_allclose(solved(K.T, 0.05, b, a).plan, solved(K, 0.05, a, b).plan.T, **LAW[np.float64])


def test_plan_follows_a_permutation(rng):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    rows, columns = rng.permutation(7), rng.permutation(11)
    permuted = solved(K[rows][:, columns], 0.05, a[rows], b[columns])
    assert_allclose(permuted.plan, solved(K, 0.05, a, b).plan[rows][:, columns], **LAW[np.float64])


@pytest.mark.parametrize("factor", [1e-6, 7.0, 1e6])
def test_affinity_and_epsilon_scale_together(rng, factor):
    K = cosines(rng)
    plain, scaled = solved(K, 0.05), solved(factor * K, factor * 0.05)
    assert_allclose(scaled.plan, plain.plan, **LAW[np.float64])
    assert_allclose(scaled.f / factor, plain.f, **LAW[np.float64])


def test_plan_scales_with_the_mass(rng):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    plain, heavy = solved(K, 0.05, a, b), solved(K, 0.05, 300 * a, 300 * b)
    assert_allclose(heavy.plan, 300 * plain.plan, **LAW[np.float64])
    early, heavy = sinkhorn(K, 0.05, a, b, max_iter=12), sinkhorn(K, 0.05, 300 * a, 300 * b, max_iter=12)
    assert_allclose(heavy.error, early.error, **LAW[np.float64])  # over the total mass


def test_masses_that_differ_by_rounding_are_made_equal(rng):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    assert_allclose(solved(K, 0.05, a, 1.00001 * b).plan, solved(K, 0.05, a, b).plan, **LAW[np.float64])


def test_zero_weights_give_zero_rows_and_columns(rng):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    a[[0, 4]], b[[3, 9, 10]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    K[0], K[:, 3] = 5, -5  # what stands there does not matter
    result, reduced = solved(K, 0.05, a, b), solved(K[a > 0][:, b > 0], 0.05, a[a > 0], b[b > 0])
    assert result.plan.shape == (7, 11)
    assert result.plan[a == 0].max() < 1e-30
    assert result.plan[:, b == 0].max() < 1e-30
    assert_allclose(result.plan[a > 0][:, b > 0], reduced.plan, **LAW[np.float64])
    assert_array_equal(result.f == -math.inf, a == 0)
    assert_array_equal(result.g == -math.inf, b == 0)
    assert_allclose(result.column_sums, b, **LAW[np.float64])
    assert_allclose(result.error, reduced.error, **LAW[np.float64])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 11), (7, 1)])
def test_one_row_or_column_leaves_no_choice(rng, n, m):
    a, b = weights(rng, n), weights(rng, m)
    K = torch.from_numpy(100 * rng.normal(size=(n, m)))
    assert_allclose(solved(K, 0.05, a, b).plan, np.outer(a, b), **LAW[np.float64])


@pytest.mark.parametrize("value", [0.0, 1.0, -300.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_affinity_gives_the_product_of_the_marginals(rng, value, dtype):
    a, b = weights(rng, 7), weights(rng, 11)
    K = torch.full((7, 11), value, dtype=DTYPES[dtype])
    tol = 1e-12 if dtype is np.float64 else 1e-6 if value != -300 else 1e-4  # float32 exponents of 433 round by 3e-5
    result = solved(K, 1.0, a, b, tol=tol)
    assert_allclose(result.plan, np.outer(a, b), **(LAW[dtype] if value != -300 else {"rtol": 1e-3}))


ADVERSARIAL = {
    "near-duplicate rows": lambda K: K[:1] + 1e-12 * K,
    "a far row": lambda K: K - 100 * torch.eye(7, dtype=K.dtype)[:, 3:4],
    "a far column": lambda K: K - 100 * torch.eye(11, dtype=K.dtype)[4],
    "a dominating column": lambda K: K + 100 * torch.eye(11, dtype=K.dtype)[4],
    "zeros and ones": lambda K: (K > 0).to(K.dtype),
    "a product": lambda K: K[:, :1] * K[:1],
    "noise": lambda K: K,
}


@pytest.mark.parametrize("max_iter", [1, 4, 300])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1, 10])
@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_hard_problems_are_reported_honestly(rng, kind, epsilon, max_iter):
    K = ADVERSARIAL[kind](torch.from_numpy(rng.normal(size=(7, 11))))
    K *= 1e4 / K.abs().max()
    result = sinkhorn(K, epsilon, tol=1e-8, max_iter=max_iter)
    assert is_finite(result)
    row_error, column_error = errors(result)
    rounding = 2e-15 * 1e4 / epsilon + 1e-12  # of the exponents
    assert row_error < rounding
    assert abs(column_error - result.error) < rounding
    assert result.converged == (result.error <= 1e-8)
    assert result.n_iter <= max_iter


def test_acceleration_never_runs_away(rng):
    for _ in range(30):  # skewed marginals on zeros and ones leave directions in which nothing pulls back
        n, m = rng.integers(2, 12, size=2)
        K = 1e3 * torch.from_numpy(rng.integers(2, size=(n, m))).double()
        a, b = (rng.dirichlet(np.full(size, 0.3)) + 1e-9 for size in (n, m))
        a, b = a / a.sum(), b / b.sum()
        result = sinkhorn(K, 0.5, a, b, tol=1e-8, max_iter=300)
        assert abs(errors(result, a, b)[1] - result.error) < 1e-10
        forces = result.g.numpy() / 0.5 - np.log(b)  # a column update leaves at most the range of K between them
        assert forces.max() - forces.min() <= 2000 + 2 * 30


@settings(max_examples=200, deadline=None)
@given(
    K=arrays(np.float64, (5, 7), elements=st.floats(-1, 1)),
    log_epsilon=st.floats(-4, 1),
    max_iter=st.integers(1, 60),
)
def test_every_affinity_is_reported_honestly(K, log_epsilon, max_iter):
    result = sinkhorn(torch.from_numpy(K), 10**log_epsilon, tol=1e-9, max_iter=max_iter)
    assert is_finite(result)
    row_error, column_error = errors(result)
    assert row_error < 1e-9
    assert abs(column_error - result.error) < 1e-9
    assert result.n_iter <= max_iter


@pytest.mark.parametrize("max_iter", range(1, 13))
def test_cap_on_iterations_holds(rng, max_iter):
    result = sinkhorn(cosines(rng), 0.01, tol=1e-9, max_iter=max_iter)
    assert result.n_iter == max_iter
    assert not result.converged
    assert result.error > 1e-9
    assert_allclose(errors(result)[1], result.error, **LAW[np.float64])


def test_more_iterations_never_end_worse():
    K = 1000 * cosines(np.random.default_rng(3))
    found = [sinkhorn(K, 0.5, tol=0, max_iter=max_iter).error for max_iter in range(60, 300, 12)]
    assert all(np.diff(found) <= 0)
    assert found[-1] < found[0]


def test_acceleration_saves_most_iterations(rng):
    K = cosines(rng, 29, 41, d=5)
    n_iter = solved(K, 0.01, tol=1e-5).n_iter
    g = torch.zeros(41, dtype=K.dtype)
    for _ in range(3 * n_iter):  # plain Sinkhorn
        f = -0.01 * torch.logsumexp((K + g) / 0.01, dim=1, keepdim=True)
        column_sums = ((K + f + g) / 0.01).exp().sum(dim=0) / 29
        g -= 0.01 * (41 * column_sums).log()
    assert float((column_sums - 1 / 41).abs().sum()) > 1e-5


@pytest.mark.parametrize("block", [1, 25, 30, 10**6])  # one row at a time, two (no divisor of 7), two, all
def test_blocks_of_rows_change_nothing(rng, block, monkeypatch):
    K, a, b = cosines(rng), weights(rng, 7), weights(rng, 11)
    whole = solved(K, 0.02, a, b)
    monkeypatch.setattr(affinity, "_STORED_BLOCK", block)
    assert_allclose(solved(K, 0.02, a, b).plan, whole.plan, **LAW[np.float64])


@pytest.mark.parametrize("block", [1, 25, 10**6])
def test_a_sweep_makes_the_rows_of_the_plan_exact(rng, block, monkeypatch):
    monkeypatch.setattr(affinity, "_STORED_BLOCK", block)
    K, ln2, scale = 10 * cosines(rng), math.log(2), 3.0
    psi, a = torch.from_numpy(rng.normal(size=11)), torch.from_numpy(weights(rng, 7))
    b = torch.from_numpy(weights(rng, 11))
    state, model = module._sweep(affinity.StoredAffinity(K), scale, psi, a, b, None)
    expected = a.log2() - torch.logsumexp(ln2 * (scale * K + psi), dim=1) / ln2
    assert_allclose(state.phi, expected, **LAW[np.float64])
    plan = (ln2 * (scale * K + state.phi[:, None] + psi)).exp()
    assert_allclose(state.column_sums, plan.sum(dim=0), **LAW[np.float64])
    assert_allclose(state.error, (plan.sum(dim=0) - b).abs().sum(), **LAW[np.float64])
    assert_allclose(a[:, None] * model.G, plan, **LAW[np.float64])


@pytest.mark.parametrize("few", [0.0, 1.0])  # without and with a model of large entries
def test_a_kept_plan_is_read_as_a_sweep_would_find_it(rng, few, monkeypatch):
    monkeypatch.setattr(module, "_FEW", few)
    K, scale = affinity.StoredAffinity(cosines(rng)), 50.0
    psi, a, b = torch.from_numpy(rng.normal(size=11)), *(torch.from_numpy(weights(rng, n)) for n in (7, 11))
    _, model = module._sweep(K, scale, psi, a, b, None)
    assert (model.part is None) == (few == 0)
    moved = psi + 100 + 5 * torch.from_numpy(rng.normal(size=11))  # a shift of all columns changes nothing
    found, (expected, swept) = model.read(moved, a, b), module._sweep(K, scale, moved, a, b, None)
    for name in ("error", "dual", "phi", "psi", "column_sums"):
        assert_allclose(getattr(found, name), getattr(expected, name), **LAW[np.float64])
    if few:
        v, u = rng.uniform(size=11), rng.uniform(size=7)
        assert_allclose(model.asked().row_sums(v), swept.asked().row_sums(v), **LAW[np.float64])
        assert_allclose(
            model.asked().column_sums(u, u.sum())[0], swept.asked().column_sums(u, u.sum())[0], **LAW[np.float64]
        )
    moved[3] += 70
    assert model.read(moved, a, b) is None


@pytest.mark.parametrize("relaxation", [(0.3, 0.0), (0.0, 2.0), (0.9, 0.1)])
def test_a_kept_plan_is_read_as_a_sweep_would_find_it_where_marginals_give_way(rng, relaxation):
    K, scale, relaxation = affinity.StoredAffinity(cosines(rng)), 50.0, Relaxation(*relaxation)
    psi, a, b = torch.from_numpy(rng.normal(size=11)), *(torch.from_numpy(weights(rng, n)) for n in (7, 11))
    _, model = module._sweep(K, scale, psi, a, b, None, relaxation)
    moved = psi + 100 + 5 * torch.from_numpy(rng.normal(size=11))
    found, (expected, _) = model.read(moved, a, b, relaxation), module._sweep(K, scale, moved, a, b, None, relaxation)
    for name in expected._fields:
        assert_allclose(getattr(found, name), getattr(expected, name), **LAW[np.float64])
    assert_allclose(found.column_sums.sum(), 1, **LAW[np.float64])
    assert_allclose(found.target.sum(), 1, **LAW[np.float64])


def features(rng, n=29, m=41, d=5):
    """Unit rows of two views."""
    return tuple(torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(size, d))), dim=1) for size in (n, m))


MODELS = {  # of a plan whose affinity is not stored: what fits is kept
    "whole": {},
    "whole, large entries": {"_WAIT": 0, "_LOST": 1.0, "_FEW": 2.0},
    "some rows": {"_ROOM": {"cpu": 400}, "_LOST": -1.0},
    "some rows, in torch as on a GPU": {"_ROOM": {"cpu": 400}, "_LOST": -1.0, "_native": lambda tensor: tensor},
    "large entries": {"_ROOM": {"cpu": 400}, "_LOST": 1.0, "_FEW": 2.0},
}
MODELS["large entries, without MKL"] = MODELS["large entries"] | {"_has_sparse_products": lambda: False}
MODELS["large entries, few groups"] = MODELS["large entries"] | {"_GROUPS": 5}  # of 9 columns, the last of 5


@pytest.fixture(params=MODELS)
def model(request, monkeypatch):
    """The kind of model that is kept; `kinds` are those that were."""
    for name, value in MODELS[request.param].items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(affinity, "_FACTORED_BLOCK", 5 * 41)
    kinds, new_model = [], module._new_model

    def spy(*args):
        kinds.append(new_model(*args))
        return kinds[-1]

    monkeypatch.setattr(module, "_new_model", spy)
    yield request.param
    kinds_of_model = {"some rows": module._SomeRows, "large entries": module._LargeEntries}
    assert type(kinds[0]) is kinds_of_model.get(request.param.split(",")[0], module._WholePlan)
    if request.param == "whole, large entries":
        assert type(kinds[0].part) is module._LargeEntries
        assert kinds[0].wait == 0


@pytest.mark.parametrize(
    ("dtype", "epsilon", "tol"),
    [(np.float64, epsilon, 1e-9) for epsilon in (1, 0.1, 0.02, 0.005)] + [(np.float32, 0.02, 1e-5)],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_features_give_the_plan_of_their_product(rng, model, dtype, epsilon, tol, weighted):
    F, G = (Z.to(DTYPES[dtype]) for Z in features(rng))
    a, b = (weights(rng, 29), weights(rng, 41)) if weighted else (None, None)
    result = sinkhorn_from_features(F, G, epsilon, a, b, tol=tol, max_iter=5000)
    assert result.converged
    row_error, column_error = errors(result, a, b)
    assert row_error <= MARGINAL * tol
    assert column_error <= MARGINAL * tol
    expected = solved(F.double() @ G.double().T, epsilon, a, b)
    assert_allclose(result.plan, expected.plan, **LIBRARY[dtype] if dtype is np.float64 else {"atol": 1e-5})


@pytest.mark.parametrize("rho", [(0.1, 0.1), (10, 1), (0.2, math.inf), (math.inf, 0.05)])
def test_features_give_the_relaxed_plan_of_their_product(rng, model, rho):
    F, G = features(rng)
    F, G = torch.cat([F, torch.ones(29, 1)], dim=1), torch.cat([G, -torch.ones(41, 1)], dim=1)  # K between -2 and 0
    a, b, rho = weights(rng, 29), 1.7 * weights(rng, 41), {"rho_a": rho[0], "rho_b": rho[1]}
    for epsilon in (1, 0.1, 0.01):
        result = sinkhorn_from_features(F, G, epsilon, a, b, **rho, tol=1e-10, max_iter=5000)
        expected = sinkhorn(F @ G.T, epsilon, a, b, **rho, tol=1e-12, max_iter=5000)
        assert result.converged
        assert expected.converged
        assert_allclose(result.plan, expected.plan, **LIBRARY[np.float64])
        assert_allclose(result.row_sums, result.plan.sum(dim=1), **LAW[np.float64])
        assert_allclose(result.column_sums, result.plan.sum(dim=0), **LAW[np.float64])


def test_features_meet_in_a_matrix_only_if_it_fits(rng, model, monkeypatch):
    monkeypatch.setattr(affinity, "_FACTORED_BLOCK", 1)
    F, G = features(rng, 90, 120)
    with Matrices(size=90 * 120) as new:
        sinkhorn_from_features(F, G, 0.02, tol=1e-7)
    assert (new.count > 0) == model.startswith("whole")


@pytest.mark.parametrize("width", [None, 9])  # of the groups of columns
@pytest.mark.parametrize("has_mkl", [True, False])
def test_large_entries_are_the_plan_above_their_threshold(rng, has_mkl, width, monkeypatch):
    if has_mkl and not torch.backends.mkl.is_available():
        pytest.skip("this torch comes without MKL")
    monkeypatch.setattr(module, "_has_sparse_products", lambda: has_mkl)
    monkeypatch.setattr(module, "_COMPACTED", 5)
    P = torch.from_numpy(rng.dirichlet(np.full(41, 0.05), size=29))  # rows of sum one, few of them large
    a = torch.from_numpy(weights(rng, 29))
    problem = affinity.FactoredAffinity(P, torch.eye(41).double(), width=width) if width else affinity.StoredAffinity(P)
    for room in (29 * 41, 300, 60):
        monkeypatch.setattr(module._LargeEntries, "room", staticmethod(lambda shape, is_stored, room=room: room))
        kept = module._LargeEntries(problem, 20, None)
        for start in range(0, 29, 4):
            kept.keep(slice(start, min(start + 4, 29)), P[start : start + 4].clone())
        kept.close(a, module._State(0.0, 0.0, None, torch.zeros(41).double(), a @ P))
        large = P.masked_fill(P.le(2.0**-kept.bits), 0)
        assert_array_equal(kept.G.to_dense() if has_mkl else kept.G.toarray(), large)
        assert kept.bits == 20 if room == 29 * 41 else kept.bits < 20
        assert (large > 0).sum() <= room
        assert_allclose(kept.lost, 1 - large.sum(dim=1).mean(), **LAW[np.float64])
        # what is left out goes on weighing on rows and columns, as the plan does where whole groups move
        of_group = np.arange(41) // (width or 41)
        v, u = rng.uniform(size=5)[of_group], rng.uniform(size=29)
        assert_allclose(kept.row_sums(v), P.numpy() @ v, **LAW[np.float64])
        assert_allclose(kept.column_sums(a.numpy(), 1.0)[0], a @ P, **LAW[np.float64])
        sums = (np.bincount(of_group, weights=sums) for sums in (kept.column_sums(u, 1.0)[0], u @ P.numpy()))
        assert_allclose(*sums, **LAW[np.float64])


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_kept_plan_is_multiplied_by_any_number_of_threads(rng, n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    for shape in ((1, 5), (2, 3), (7, 4), (9, 1)):
        G, v, u = (torch.from_numpy(rng.normal(size=size)) for size in (shape, shape[1], shape[0]))
        for dtype, law in ((torch.float64, LAW[np.float64]), (torch.float32, LAW[np.float32])):
            assert_allclose(module._times_whole(G.to(dtype), v), G @ v, **law)
            assert_allclose(module._times_whole(G.to(dtype), u, is_transposed=True), G.T @ u, **law)


def test_a_kept_plan_is_not_touched_by_its_large_entries(rng, monkeypatch):
    monkeypatch.setattr(module, "_FEW", 1.0)
    problem, b = affinity.StoredAffinity(cosines(rng)), torch.from_numpy(weights(rng, 11))
    _, model = module._sweep(problem, 50.0, torch.zeros(11).double(), torch.from_numpy(weights(rng, 7)), b, None)
    before = model.G.clone()
    assert len(model.part.values)
    assert_array_equal(model.G, before)


def test_like_columns_come_in_one_group(rng):
    centres, of = rng.normal(size=(8, 6)), rng.permutation(np.arange(40) // 5)
    G = torch.from_numpy(centres[of] + 1e-3 * rng.normal(size=(40, 6)))
    problem, order = affinity.FactoredAffinity(G[:7], G).in_groups(8)
    assert problem.width == 5
    assert_array_equal(problem.G, G[order])
    assert_array_equal(order.sort().values, np.arange(40))
    assert (np.ptp(of[order].reshape(8, 5), axis=1) == 0).all()


@pytest.mark.parametrize("n_groups", [1, 4, 11, 64])
def test_columns_that_do_not_differ_stay_columns(n_groups):
    _, order = affinity.FactoredAffinity(torch.ones(3, 2), torch.ones(11, 2)).in_groups(n_groups)
    assert_array_equal(order.sort().values, np.arange(11))


def clustered(n_clusters, noise, n=1024, d=32):
    """Features whose rows lie about common centres."""
    generator = torch.Generator().manual_seed(0)

    def unit_normal(n):
        return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)

    centres = unit_normal(n_clusters)
    F, G = (centres[torch.randint(n_clusters, (n,), generator=generator)] + noise * unit_normal(n) for _ in range(2))
    return [torch.nn.functional.normalize(Z, dim=1) for Z in (F, G)]


def test_a_large_step_of_the_acceleration_is_not_taken_for_the_reach_of_the_model(monkeypatch):
    monkeypatch.setattr(module, "_ROOM", {"cpu": 1 << 14})
    result = sinkhorn_from_features(*clustered(16, 0.7), 0.05, tol=1e-4)
    assert result.converged
    assert result.n_iter <= 12  # 3; where such a step ended the solution on the model, 16


def test_few_clusters_are_solved_without_a_matrix_too(monkeypatch):
    monkeypatch.setattr(module, "_ROOM", {"cpu": 1 << 14})
    result = sinkhorn_from_features(*clustered(8, 0.5), 0.005, tol=1e-4)  # large entries in an eighth of the columns
    assert result.converged
    assert result.n_iter <= 12  # 4; with half as many large entries, 20


def test_groups_of_columns_connect_clusters(monkeypatch):
    F, G = clustered(8, 0.03, 3000, d=64)
    result = sinkhorn_from_features(F, G, 0.005, tol=1e-4)
    assert result.converged
    assert result.n_iter <= 10  # 6
    monkeypatch.setattr(module, "_GROUPS", 1)
    assert sinkhorn_from_features(F, G, 0.005, tol=1e-4).n_iter > 20  # 31


def test_start_at_the_solution_is_the_solution(rng):
    K, b = cosines(rng), weights(rng, 11)
    cold = solved(K, 0.05, None, b, tol=1e-9)
    warm = sinkhorn(K, 0.05, None, b, tol=1e-8, init=cold.g + 3)  # up to a constant
    assert warm.converged
    assert warm.n_iter == 1
    assert_allclose(warm.plan, cold.plan, **LIBRARY[np.float64])
    moved = sinkhorn(K + 0.01 * cosines(rng), 0.05, None, b, tol=1e-9, init=cold.g)
    assert moved.converged
    assert moved.n_iter < cold.n_iter


@pytest.mark.parametrize("max_iter", [1, 2, 3, 1000])
def test_start_far_off_is_dropped(rng, max_iter):
    K = cosines(rng)
    start = torch.from_numpy(rng.normal(size=11))
    result = sinkhorn(K, 0.01, tol=1e-9, max_iter=max_iter, init=start)
    assert result.n_iter <= max_iter
    assert_allclose(errors(result)[1], result.error, **LAW[np.float64])
    if max_iter == 1000:
        assert result.n_iter == solved(K, 0.01, tol=1e-9).n_iter + 1


def test_start_may_hold_minus_infinity_where_the_weight_is_zero(rng):
    K, b = cosines(rng), weights(rng, 11)
    b[3] = 0
    b /= b.sum()
    cold = solved(K, 0.05, None, b, tol=1e-9)
    assert sinkhorn(K, 0.05, None, b, tol=1e-8, init=cold.g).n_iter == 1


@pytest.mark.parametrize("init", [torch.zeros(7), torch.full((11,), math.nan)])
def test_start_must_be_a_potential(rng, init):
    with pytest.raises(ValueError, match=r"`init` must be a finite potential of shape \(11,\)"):
        sinkhorn(cosines(rng), 0.05, init=init)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 10])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5000), (5000, 3), (2, 2)])
def test_narrow_problems_are_reported_honestly(rng, n, m, epsilon):
    F, G = features(rng, n, m)
    for result in (sinkhorn(F @ G.T, epsilon, max_iter=200), sinkhorn_from_features(F, G, epsilon, max_iter=200)):
        assert is_finite(result)
        row_error, column_error = errors(result)
        assert row_error < 1e-9
        assert abs(column_error - result.error) < 1e-9


@st.composite
def problems(draw):
    """Features of some shape, weights and an epsilon, from a drawn seed."""
    n, m, d = (draw(st.integers(1, size)) for size in (9, 12, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    F, G = features(rng, n, m, d)
    a, b = (torch.from_numpy(rng.dirichlet(np.full(size, draw(st.sampled_from([0.5, 2, 50]))))) for size in (n, m))
    return F, G, 10 ** draw(st.floats(-2, 1)), a + 1e-6, b + 1e-6, rng


@settings(max_examples=40, deadline=None)
@given(problems())
def test_laws_hold_for_all_shapes_weights_and_epsilons(problem):
    import ot

    F, G, epsilon, a, b, rng = problem
    a, b = a / a.sum(), b / b.sum()
    K, options = F @ G.T, {"tol": 1e-11, "max_iter": 2000}
    dense, streamed = sinkhorn(K, epsilon, a, b, **options), sinkhorn_from_features(F, G, epsilon, a, b, **options)
    for result in (dense, streamed):
        assert is_finite(result)
        row_error, column_error = errors(result, a.numpy(), b.numpy())
        assert row_error < 1e-10
        assert abs(column_error - result.error) < 1e-10
        assert result.converged == (result.error <= 1e-11)
    assume(dense.converged)  # the laws are those of the solution
    P, close = dense.plan, {"rtol": 1e-5, "atol": 1e-9}
    if streamed.converged:
        assert_allclose(streamed.plan, P, **close)
    rows, columns = rng.permutation(len(a)), rng.permutation(len(b))
    shifts = torch.from_numpy(rng.normal(size=(len(a), 1))) + torch.from_numpy(rng.normal(size=len(b)))
    for other, expected in (
        (sinkhorn(K.T, epsilon, b, a, **options), P.T),
        (sinkhorn(K + epsilon * shifts, epsilon, a, b, **options), P),
        (sinkhorn(K[rows][:, columns], epsilon, a[rows], b[columns], **options), P[rows][:, columns]),
    ):
        if other.converged:
            assert_allclose(other.plan, expected, **close)
    if epsilon > 0.05:
        expected = ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), -K.numpy(), epsilon, numItermax=100_000, stopThr=1e-13)
        assert_allclose(P, expected, **LIBRARY[np.float64])


CROWDS = {
    "near-duplicates": lambda F: F[:1] + 1e-9 * F,
    "a far row": lambda F: torch.cat([F[1:], -100 * F[:1]]),
    "two clusters": lambda F: torch.sign(F[:, :1]) * F[:1] + 0.01 * F,
    "zero rows": lambda F: F * (torch.arange(len(F)) % 3 > 0)[:, None],
    "long rows": lambda F: 100 * F,
}


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1, 10])
@pytest.mark.parametrize("kind", CROWDS)
def test_hard_features_are_reported_honestly(rng, model, kind, epsilon):
    F, G = features(rng)
    F = CROWDS[kind](F)
    for max_iter in (1, 7, 100):
        result = sinkhorn_from_features(F, G, epsilon, tol=1e-8, max_iter=max_iter)
        assert is_finite(result)
        row_error, column_error = errors(result)
        rounding = 1e-14 * float((F @ G.T).abs().max()) / epsilon + 1e-11
        assert row_error < rounding
        assert abs(column_error - result.error) < rounding
        assert result.n_iter <= max_iter


@pytest.mark.parametrize("shapes", [((7, 3), (11, 4)), ((7,), (11, 3)), ((0, 3), (11, 3)), ((7, 0), (11, 0))])
def test_features_must_be_matrices_of_one_width(shapes):
    with pytest.raises(ValueError, match="must be matrices with rows and with equally many columns"):
        sinkhorn_from_features(*(torch.ones(shape) for shape in shapes), 0.1)


def test_features_must_be_finite():
    with pytest.raises(ValueError, match="features hold NaN or infinity"):
        sinkhorn_from_features(torch.eye(3), torch.eye(3) / 0, 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_to_single(rng, dtype):
    K = cosines(rng).to(dtype)
    half, single = solved(K, 0.05, tol=1e-5), solved(K.float(), 0.05, tol=1e-5)
    assert half.plan.dtype == torch.float32
    assert_array_equal(half.plan, single.plan)


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_autocast_changes_nothing(rng, dtype):
    K = cosines(rng).to(dtype)
    plain = solved(K, 0.05, tol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        result = solved(K, 0.05, tol=1e-5)
        plan = result.plan
    assert plan.dtype == dtype
    assert_array_equal(plan, plain.plan)


def test_nothing_is_recorded_for_a_gradient(rng):
    K = cosines(rng).requires_grad_()
    a, b = (torch.from_numpy(weights(rng, n)).requires_grad_() for n in (7, 11))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor), lambda tensor: tensor):
        result = solved(K, 0.05, a, b)
        plan = result.plan
    assert saved == []
    for tensor in (plan, result.f, result.g, result.column_sums):
        assert not tensor.requires_grad
    assert K.requires_grad


def test_given_tensors_are_left_as_they_were(rng):
    K, a, b = cosines(rng), torch.from_numpy(weights(rng, 7)), torch.from_numpy(weights(rng, 11))
    before = [Z.clone() for Z in (K, a, b)]
    _ = sinkhorn(K, 0.05, a, b).plan
    for Z, old in zip((K, a, b), before, strict=True):
        assert_array_equal(Z, old)


def test_plan_is_derived_when_read(rng):
    K = cosines(rng)
    result = solved(K, 0.05)
    large = [Z for part in (result, result.affinity) for Z in vars(part).values() if isinstance(Z, torch.Tensor)]
    large = [Z for Z in large if Z.numel() >= K.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == K.data_ptr()  # the affinity itself, no copy
    first, second = result.plan, result.plan
    assert first.data_ptr() != second.data_ptr()
    assert_array_equal(first, second)


def is_dense(Z):
    return isinstance(Z, torch.Tensor) and Z.layout == torch.strided


class Matrices(TorchDispatchMode):
    """Counts the new dense tensors of at least `size` entries."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if is_dense(result) and result.numel() >= self.size:
            given = [Z.data_ptr() for Z in (*args, *(kwargs or {}).values()) if is_dense(Z)]
            self.count += result.data_ptr() not in given  # neither in place nor a view from the start
        return result


def test_memory_does_not_grow_with_iterations(rng, monkeypatch):
    monkeypatch.setattr(affinity, "_STORED_BLOCK", 41)  # a block is one row, so that only whole matrices are counted
    K, counts = cosines(rng, 29, 41), []
    for max_iter in (5, 30, 100):
        with Matrices(size=29 * 41) as new:
            result = sinkhorn(K, 0.01, tol=0, max_iter=max_iter)
        assert result.n_iter == max_iter
        counts.append(new.count)
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, math.inf])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match=r"`epsilon` must be positive and finite, but it is"):
        sinkhorn(torch.eye(3), epsilon)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_affinity_must_be_finite(value):
    K = torch.eye(3)
    K[1, 2] = value
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        sinkhorn(K, 0.1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (2, 3, 4)])
def test_affinity_must_be_a_matrix(shape):
    with pytest.raises(ValueError, match=rf"must be a matrix.*{shape[0]}"):
        sinkhorn(torch.zeros(shape), 0.1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(11) / 11, None, r"marginal `a` must have shape \(7,\), but its shape is \(11,\)"),
        (None, np.ones((11, 1)) / 11, r"marginal `b` must have shape \(11,\), but its shape is \(11, 1\)"),
        (np.array([-0.1, *[1.1 / 6] * 6]), None, r"marginal `a` must hold finite weights >= 0"),
        (None, np.full(11, np.nan), r"marginal `b` must hold finite weights >= 0"),
        (np.zeros(7), np.zeros(11), r"marginal `a` must hold .* positive sum"),
        (np.ones(7), np.ones(11), r"equal mass, but `a` sums to 7 and `b` to 11"),
        (np.ones(7), None, r"equal mass, but `a` sums to 7 and `b` to 1"),
    ],
)
def test_marginals_must_fit(a, b, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.zeros(7, 11), 0.1, a, b)


def test_large_entries_of_a_large_plan_cost_a_tenth_of_its_memory():
    bytes_each = 8  # value and column
    for n in (1000, 2000):
        assert _LargeEntries.room((n, n), is_stored=True) * bytes_each <= 0.18 * 4 * n**2 + bytes_each
    for n in (2900, 4096, 20_000):
        assert 0 < _LargeEntries.room((n, n), is_stored=True) * bytes_each <= 0.09 * 4 * n**2 + bytes_each
