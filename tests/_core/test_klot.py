"""Laws of KLOT and its explicit gradient; autograd through plain Sinkhorn referees. Knows the core, no estimators."""

import weakref

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import affinity
from skalign._core import sinkhorn as solver
from skalign._core.klot import klot, klot_from_features

EPSILON, EPSILON_TEACHER = 0.3, 0.1
TIGHT = {"tol": 1e-13, "max_iter": 5000}


def unit_rows(rng, n, d=3):
    Z = rng.normal(size=(n, d))
    return torch.from_numpy(Z / np.linalg.norm(Z, axis=1)[:, None])


def affinities(rng, n=7, m=11):
    """Cosines of a student and of a teacher, (n, m) each."""
    return (unit_rows(rng, n) @ unit_rows(rng, m).T for _ in range(2))


def weights(rng, n):
    a = torch.from_numpy(rng.uniform(0.2, 2, size=n))
    return a / a.sum()


def referee_log_plan(K, epsilon, a=None, b=None, n_iter=400):
    """log of the transport plan by plain log-domain Sinkhorn, iteration after iteration recorded by autograd."""
    n, m = K.shape
    log_a = torch.full((n,), 1 / n, dtype=K.dtype).log() if a is None else a.log()
    log_b = torch.full((m,), 1 / m, dtype=K.dtype).log() if b is None else b.log()
    v = torch.zeros_like(log_b)
    for _ in range(n_iter):
        u = log_a - torch.logsumexp(K / epsilon + v, dim=1)
        v = log_b - torch.logsumexp(K / epsilon + u[:, None], dim=0)
    log_P = K / epsilon + u[:, None] + v
    if a is not None:
        assert_allclose(log_P.detach().exp().sum(dim=1), a, rtol=0, atol=1e-13)  # it did converge
    return log_P


def kl(log_T, log_P):
    return (log_T.exp() * (log_T - log_P)).sum()


def gradient(K, *args, **kwargs):
    """Gradient of KLOT in its first affinity, with both results."""
    K = K.clone().requires_grad_()
    value, student, teacher = klot(K, *args, **kwargs)
    value.backward()
    return K.grad, student, teacher


@pytest.mark.parametrize(("n", "m", "weighted"), [(8, 8, False), (7, 11, False), (11, 7, False), (7, 11, True)])
def test_gradient_equals_autograd_through_sinkhorn(rng, n, m, weighted):
    K, K_teacher = affinities(rng, n, m)
    a, b = (weights(rng, n), weights(rng, m)) if weighted else (None, None)
    found, student, teacher = gradient(K, K_teacher, EPSILON, EPSILON_TEACHER, a, b, **TIGHT)
    assert student.converged
    assert teacher.converged
    K.requires_grad_()
    kl(referee_log_plan(K_teacher, EPSILON_TEACHER, a, b), referee_log_plan(K, EPSILON, a, b)).backward()
    assert_allclose(found, K.grad, **LAW[np.float64])


@pytest.mark.parametrize("mass", [1.0, 7.0])
def test_gradient_equals_finite_differences(rng, mass):
    K, K_teacher = affinities(rng, 4, 6)
    a, b = mass * weights(rng, 4), mass * weights(rng, 6)

    def value(K):
        return klot(K, K_teacher, EPSILON, EPSILON_TEACHER, a, b, **TIGHT)[0]

    assert torch.autograd.gradcheck(value, K.requires_grad_(), eps=1e-5, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilons", [(0.3, 0.1), (0.1, 0.3), (0.05, 0.01), (0.005, 0.01)])
def test_value_equals_the_dense_sum(rng, epsilons, weighted):
    # at the smallest epsilon most of the student's plan lies below 2^-100
    K, K_teacher = affinities(rng)
    a, b = (weights(rng, 7), weights(rng, 11)) if weighted else (None, None)
    value, student, teacher = klot(K, K_teacher, *epsilons, a, b, tol=1e-10, max_iter=5000)
    assert student.converged
    assert teacher.converged
    log_P = (K + student.f[:, None] + student.g) / epsilons[0]
    log_T = (K_teacher + teacher.f[:, None] + teacher.g) / epsilons[1]
    assert_allclose(value, kl(log_T, log_P), **LAW[np.float64])
    if epsilons == (0.3, 0.1):
        expected = kl(referee_log_plan(K_teacher, epsilons[1], a, b), referee_log_plan(K, epsilons[0], a, b))
        assert_allclose(value, expected, **LAW[np.float64])


@pytest.mark.parametrize("max_iter", [1, 2, 5, 20, 1000])
def test_value_is_never_negative(rng, max_iter):
    for _ in range(20):
        K, K_teacher = affinities(rng)
        for teacher in (K_teacher, K + 0.01 * K_teacher, K):
            assert klot(K, teacher, 0.05, 0.04, tol=1e-9, max_iter=max_iter)[0] >= 0


def test_value_is_zero_iff_the_plans_agree(rng):
    K_teacher, other = affinities(rng)
    r, c = torch.from_numpy(rng.normal(size=(7, 1))), torch.from_numpy(rng.normal(size=11))
    K = EPSILON / EPSILON_TEACHER * K_teacher + r + c
    agreeing = klot(K, K_teacher, EPSILON, EPSILON_TEACHER, **TIGHT)[0]
    assert_allclose(agreeing, 0, rtol=0, atol=1e-12)
    assert_allclose(gradient(K, K_teacher, EPSILON, EPSILON_TEACHER, **TIGHT)[0], 0, rtol=0, atol=1e-11)
    for different in (K + 0.1 * other, K_teacher, other):
        assert klot(different, K_teacher, EPSILON, EPSILON_TEACHER, **TIGHT)[0] > 1e-4


@pytest.mark.parametrize("epsilon", [0.3, 0.03])
def test_value_is_convex_in_the_affinity(rng, epsilon):
    for _ in range(20):
        K, K_teacher = affinities(rng)
        L, _ = affinities(rng)
        at_k, at_l, between = (
            klot(Z, K_teacher, epsilon, 0.05, tol=1e-11, max_iter=5000)[0] for Z in (K, L, 0.3 * K + 0.7 * L)
        )
        assert between < 0.3 * at_k + 0.7 * at_l


def test_value_ignores_row_and_column_shifts(rng):
    K, K_teacher = affinities(rng)
    r, c = torch.from_numpy(rng.normal(size=(7, 1))), torch.from_numpy(rng.normal(size=11))
    plain, shifted = (klot(*Z, **TIGHT)[0] for Z in ((K, K_teacher), (K + r + c, K_teacher - c)))
    assert_allclose(shifted, plain, **LAW[np.float64])


def test_transposed_affinities_have_the_same_value(rng):
    K, K_teacher = affinities(rng)
    a, b = weights(rng, 7), weights(rng, 11)
    assert_allclose(
        klot(K.T, K_teacher.T, a=b, b=a, **TIGHT)[0], klot(K, K_teacher, a=a, b=b, **TIGHT)[0], **LAW[np.float64]
    )


def test_rows_and_columns_of_the_gradient_sum_to_zero(rng):
    K, K_teacher = affinities(rng)
    found = gradient(K, K_teacher, **TIGHT)[0]
    assert found.abs().max() > 0.01
    assert_allclose(found.sum(dim=0), 0, rtol=0, atol=1e-10)
    assert_allclose(found.sum(dim=1), 0, rtol=0, atol=1e-10)


def test_teacher_receives_no_gradient(rng):
    K, K_teacher = (Z.requires_grad_() for Z in affinities(rng))
    value, student, teacher = klot(K, K_teacher)
    value.backward()
    assert K_teacher.grad is None
    assert K.grad is not None
    assert not any(Z.requires_grad for result in (student, teacher) for Z in (result.f, result.g, result.plan))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("epsilon_teacher", "options"),
    [(0.001, {"tol": 1e-13, "max_iter": 26}), (EPSILON_TEACHER, {"tol": 1e-13, "tol_teacher": 0.2, "max_iter": 5000})],
)
def test_student_is_given_the_marginals_of_an_unconverged_teacher(rng, epsilon_teacher, options, weighted):
    K, K_teacher = affinities(rng)
    a, b = (weights(rng, 7), weights(rng, 11)) if weighted else (torch.ones(7) / 7.0, torch.ones(11) / 11.0)
    found, student, teacher = gradient(K, K_teacher, EPSILON, epsilon_teacher, a, b, **options)
    assert student.converged
    assert teacher.error > 1e-3
    T = teacher.plan
    assert (T.sum(dim=0) - b).abs().max() > 1e-4
    assert_allclose(student.plan.sum(dim=0), T.sum(dim=0), **LAW[np.float64])
    # T held constant: KL(T || OT(K) with the marginals of T), of which the mass terms are constant
    K.requires_grad_()
    value = kl(T.log(), referee_log_plan(K, EPSILON, T.sum(dim=1), T.sum(dim=0)))
    value.backward()
    assert_allclose(found, K.grad, **LAW[np.float64])
    assert_allclose(
        klot(K, K_teacher, EPSILON, epsilon_teacher, a, b, **options)[0].detach(), value.detach(), rtol=1e-7
    )


def test_unconverged_student_has_the_gradient_at_its_potentials(rng):
    K, K_teacher = affinities(rng)
    value, student, teacher = klot(K.requires_grad_(), K_teacher, 0.02, 0.02, tol=1e-13, max_iter=9)
    assert not student.converged
    value.backward()
    L = K.detach().clone().requires_grad_()
    log_P = (L + student.f[:, None] + student.g) / 0.02
    expected = kl(teacher.plan.log(), log_P) + log_P.exp().sum() - teacher.plan.sum()
    expected.backward()
    assert_allclose(value.detach(), expected.detach(), **LAW[np.float64])
    assert_allclose(K.grad, L.grad, **LAW[np.float64])


def test_gradient_uses_the_epsilon_of_the_student(rng):
    K, K_teacher = affinities(rng)
    found, student, teacher = gradient(K, K_teacher, EPSILON, EPSILON_TEACHER)
    assert_allclose(found * EPSILON, student.plan - teacher.plan, **LAW[np.float64])


def test_single_precision_is_close_to_double(rng):
    F, G, F_teacher, G_teacher = (unit_rows(rng, n, d=8) for n in (61, 83, 61, 83))
    K, K_teacher = F @ G.T, F_teacher @ G_teacher.T
    single, student, teacher = gradient(K.float(), K_teacher.float(), 0.05, 0.005, tol=1e-5, max_iter=5000)
    double, *exact = gradient(K, K_teacher, 0.05, 0.005, tol=1e-12, max_iter=20_000)
    assert all(result.converged for result in (student, teacher, *exact))
    assert single.dtype == torch.float32
    assert float((single - double).abs().sum() / double.abs().sum()) < 1e-4
    values = [
        klot(Z, Z_teacher, 0.05, 0.005, tol=1e-5)[0]
        for Z, Z_teacher in ((K.float(), K_teacher.float()), (K, K_teacher))
    ]
    assert_allclose(*values, rtol=1e-4)


def test_gradient_scales_with_what_comes_from_above(rng):
    K, K_teacher = affinities(rng)
    plain, value = gradient(K, K_teacher)[0], klot(K, K_teacher)[0]
    K.requires_grad_()
    (-3 * klot(K, K_teacher)[0] + 5).backward()
    assert_allclose(K.grad, -3 * plain, **LAW[np.float64])
    (klot(K, K_teacher)[0] ** 2).backward()  # adds up
    assert_allclose(K.grad, (-3 + 2 * value) * plain, **LAW[np.float64])


def test_gradient_flows_on_to_the_features(rng):
    F, G = (unit_rows(rng, n).requires_grad_() for n in (7, 11))
    _, K_teacher = affinities(rng)
    value, student, teacher = klot(F @ G.T, K_teacher, EPSILON, EPSILON_TEACHER)
    value.backward()
    gamma = (student.plan - teacher.plan) / EPSILON  # (n, m)
    assert_allclose(F.grad, gamma @ G.detach(), **LAW[np.float64])
    assert_allclose(G.grad, gamma.T @ F.detach(), **LAW[np.float64])


def test_second_derivatives_are_refused(rng):
    K, K_teacher = affinities(rng)
    (first,) = torch.autograd.grad(klot(K.requires_grad_(), K_teacher)[0] ** 2, K, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class Saved:
    """Stands in the autograd graph for a tensor saved for backward; `alive` are those the graph still holds."""

    alive = weakref.WeakSet()

    def __init__(self, tensor):
        self.tensor = tensor
        self.alive.add(self)


def saving():
    return torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor)


@pytest.mark.parametrize("max_iter", [3, 30, 300])
def test_nothing_new_is_saved_but_one_matrix_whatever_the_iterations(rng, max_iter):
    K, K_teacher = affinities(rng)
    with saving():
        value, student, _ = klot(K.requires_grad_(), K_teacher, 0.02, 0.02, tol=0, max_iter=max_iter)
    assert student.n_iter == max_iter
    assert [saved.tensor.data_ptr() for saved in Saved.alive] == [K.data_ptr()]
    (place,) = (Z.data_ptr() for Z in value.grad_fn.gradients)
    value.backward()
    assert K.grad.data_ptr() == place
    assert value.grad_fn.gradients is None
    assert not Saved.alive


@pytest.mark.parametrize("weighted", [False, True])
def test_both_plans_and_the_gradient_lie_in_one_matrix_after_the_other(rng, weighted, monkeypatch):
    K, K_teacher = affinities(rng)
    seen = []
    empty = affinity.StoredAffinity.empty
    monkeypatch.setattr(affinity.StoredAffinity, "empty", lambda *size: seen.append(empty(*size)) or seen[-1])
    monkeypatch.setattr(affinity, "_STORED_BLOCK", 22)  # blocks are two rows
    marginals = {"a": weights(rng, 7), "b": weights(rng, 11)} if weighted else {}
    value, student, teacher = klot(K.requires_grad_(), K_teacher, EPSILON, EPSILON_TEACHER, **marginals, **TIGHT)
    (found,) = torch.autograd.grad(value, K)
    (whole,) = (Z for Z in seen if len(Z) == 7)
    assert found.data_ptr() == whole.data_ptr()
    assert_allclose(found, (student.plan - teacher.plan) / EPSILON, **LAW[np.float64])


@pytest.mark.parametrize("from_features", [False, True])
def test_a_second_backward_pass_gives_the_same(rng, from_features):
    F, G, F_teacher, G_teacher = (unit_rows(rng, n) for n in (7, 11, 7, 11))
    F.requires_grad_(), G.requires_grad_()
    value, *_ = (
        klot_from_features(F, G, F_teacher, G_teacher) if from_features else klot(F @ G.T, F_teacher @ G_teacher.T)
    )
    value.backward(retain_graph=True)
    first = F.grad.clone(), G.grad.clone()
    F.grad.zero_(), G.grad.zero_()  # a step in place must not reach what is kept
    (2 * value).backward(retain_graph=True)
    for Z, expected in zip((F, G), first, strict=True):
        assert expected.abs().max() > 0
        assert_allclose(Z.grad, 2 * expected, **LAW[np.float64])


def test_inputs_changed_before_the_gradient_are_refused(rng):
    K, K_teacher = affinities(rng)
    K = K.requires_grad_() * 1
    value = klot(K, K_teacher)[0]
    K.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_nothing_is_saved_where_no_gradient_is_asked(rng):
    K, K_teacher = affinities(rng)
    with saving():
        value = klot(K, K_teacher)[0]
        with torch.no_grad():
            same = klot(K.requires_grad_(), K_teacher)[0]
    assert not Saved.alive
    assert not value.requires_grad
    assert not same.requires_grad
    assert value == same


def test_zero_weights_leave_the_reduced_problem(rng):
    K, K_teacher = affinities(rng)
    a, b = weights(rng, 7), weights(rng, 11)
    a[[0, 4]], b[[3, 9]] = 0, 0
    a, b = a / a.sum(), b / b.sum()
    rows, columns = a > 0, b > 0
    options = {"a": a[rows], "b": b[columns], **TIGHT}
    found = gradient(K, K_teacher, a=a, b=b, **TIGHT)[0]
    reduced = gradient(K[rows][:, columns], K_teacher[rows][:, columns], **options)[0]
    assert found.shape == (7, 11)
    assert_array_equal(found[~rows], 0)
    assert_array_equal(found[:, ~columns], 0)
    assert_allclose(found[rows][:, columns], reduced, **LAW[np.float64])
    assert_allclose(
        klot(K, K_teacher, a=a, b=b, **TIGHT)[0],
        klot(K[rows][:, columns], K_teacher[rows][:, columns], **options)[0],
        **LAW[np.float64],
    )


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 11), (7, 1)])
def test_one_row_or_column_leaves_nothing_to_learn(rng, n, m):
    K, K_teacher = affinities(rng, n, m)
    assert_allclose(klot(K, K_teacher)[0], 0, rtol=0, atol=1e-12)
    assert_allclose(gradient(K, K_teacher)[0], 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 25])  # one row at a time, two (no divisor of 7)
def test_blocks_of_rows_change_nothing(rng, block, monkeypatch):
    K, K_teacher = affinities(rng)
    whole, value = gradient(K, K_teacher, **TIGHT)[0], klot(K, K_teacher, **TIGHT)[0]
    monkeypatch.setattr(affinity, "_STORED_BLOCK", block)
    assert_allclose(gradient(K, K_teacher, **TIGHT)[0], whole, **LAW[np.float64])
    assert_allclose(klot(K, K_teacher, **TIGHT)[0], value, **LAW[np.float64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_to_single(rng, dtype):
    K, K_teacher = (Z.to(dtype) for Z in affinities(rng))
    found, student, _ = gradient(K, K_teacher)
    single = gradient(K.float(), K_teacher.float())[0]
    assert found.dtype == dtype
    assert student.plan.dtype == torch.float32
    assert torch.equal(found, single.to(dtype))


def test_autocast_changes_nothing(rng):
    K, K_teacher = (Z.float() for Z in affinities(rng))
    plain = gradient(K, K_teacher)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = gradient(K, K_teacher)[0]
    assert_array_equal(found, plain)


def test_given_affinities_are_left_as_they_were(rng):
    K, K_teacher = affinities(rng)
    before = K.clone(), K_teacher.clone()
    gradient(K, K_teacher)
    assert_array_equal(K, before[0])
    assert_array_equal(K_teacher, before[1])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"must have one shape, but K has \(7, 11\) and K_teacher \(11, 7\)"):
        klot(torch.zeros(7, 11), torch.zeros(11, 7))


@pytest.mark.parametrize("epsilons", [(0, 0.1), (0.1, -1)])
def test_both_epsilons_must_be_positive(epsilons):
    with pytest.raises(ValueError, match=r"`epsilon` must be positive"):
        klot(torch.eye(3), torch.eye(3), *epsilons)


def feature_gradients(F, G, *args, **kwargs):
    F, G = F.clone().requires_grad_(), G.clone().requires_grad_()
    value = klot_from_features(F, G, *args, **kwargs)[0]
    value.backward()
    return value.detach(), F.grad, G.grad


@pytest.mark.parametrize("room", [1 << 20, 30])  # the plan fits, or only some of its rows
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_features_give_value_and_gradients_of_their_products(rng, monkeypatch, room, zeros, weighted):
    monkeypatch.setitem(solver._ROOM, "cpu", room)
    monkeypatch.setattr(affinity, "_FACTORED_BLOCK", 25)
    F, G, F_teacher, G_teacher = (unit_rows(rng, n) for n in (7, 11, 7, 11))
    a, b = (weights(rng, 7), weights(rng, 11)) if weighted or zeros else (None, None)
    if zeros:
        a[[0, 4]], b[[3, 9]] = 0, 0
        a, b = a / a.sum(), b / b.sum()
    value, dF, dG = feature_gradients(F, G, F_teacher, G_teacher, EPSILON, EPSILON_TEACHER, a, b, **TIGHT)
    expected = klot(F @ G.T, F_teacher @ G_teacher.T, EPSILON, EPSILON_TEACHER, a, b, **TIGHT)[0]
    dK = gradient(F @ G.T, F_teacher @ G_teacher.T, EPSILON, EPSILON_TEACHER, a, b, **TIGHT)[0]
    assert_allclose(value, expected, **LAW[np.float64])
    assert_allclose(dF, dK @ G, **LAW[np.float64])
    assert_allclose(dG, dK.T @ F, **LAW[np.float64])


def test_only_the_features_that_ask_get_a_gradient(rng):
    F, G, F_teacher, G_teacher = (unit_rows(rng, n).requires_grad_() for n in (7, 11, 7, 11))
    _, dF, dG = feature_gradients(F.detach(), G.detach(), F_teacher, G_teacher)
    klot_from_features(F, G.detach(), F_teacher, G_teacher)[0].backward()
    value = klot_from_features(F.detach(), G, F_teacher, G_teacher)[0]
    assert value.grad_fn.gradients[0] is None
    assert value.grad_fn.gradients[1].shape == G.shape
    (3 * value).backward()
    assert_allclose(F.grad, dF, **LAW[np.float64])
    assert_allclose(G.grad, 3 * dG, **LAW[np.float64])
    assert F_teacher.grad is None
    assert G_teacher.grad is None


def test_features_in_half_precision_are_lifted_to_single(rng):
    views = [unit_rows(rng, n).half() for n in (7, 11, 7, 11)]
    value, dF, _ = feature_gradients(*views)
    assert dF.dtype == torch.float16
    assert_allclose(value, klot_from_features(*(Z.float() for Z in views))[0], rtol=1e-3)


def test_autocast_changes_nothing_from_features(rng):
    views = [unit_rows(rng, n).float() for n in (7, 11, 7, 11)]
    plain = feature_gradients(*views)
    with torch.autocast("cpu", torch.bfloat16):
        found = feature_gradients(*views)
        plan = klot_from_features(*views)[1].plan
    for Z, expected in zip(found, plain, strict=True):
        assert_array_equal(Z, expected)
    assert_array_equal(plan, klot_from_features(*views)[1].plan)


def test_students_and_teachers_rows_must_agree(rng):
    F, G = unit_rows(rng, 7), unit_rows(rng, 11)
    with pytest.raises(ValueError, match="same rows, but there are 7 and 11 of the student, 11 and 7 of the teacher"):
        klot_from_features(F, G, G, F)


def test_warm_starts_change_nothing_but_the_iterations(rng):
    K, K_teacher = affinities(rng)
    options = {"tol": 1e-11, "max_iter": 5000}
    cold, value = klot(K, K_teacher, 0.05, 0.02, **options)[1:], klot(K, K_teacher, 0.05, 0.02, **options)[0]
    starts = {"init": cold[0].g, "init_teacher": cold[1].g}
    options["tol"] = 1e-10
    found, student, teacher = klot(K, K_teacher, 0.05, 0.02, **options, **starts)
    assert student.n_iter == teacher.n_iter == 1
    assert_allclose(found, value, **LAW[np.float64])
