"""Laws of the losses besides KLOT, against plain loops and dense formulas. Knows torch, knows nothing of estimators."""

import math

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose
from torch.nn.functional import cross_entropy

from skalign._core.losses import cka, info_nce, siglip


def normal(rng, *shape):
    return torch.from_numpy(rng.normal(size=shape))


def softmax(K, epsilon):
    weights = np.exp(K.numpy() / epsilon)
    return weights / weights.sum(axis=1, keepdims=True)


def value_and_gradient(loss, K, *args, **kwargs):
    K = K.clone().requires_grad_()
    value = loss(K, *args, **kwargs)
    value.backward()
    return float(value.detach()), K.grad


def test_siglip_equals_the_double_loop(rng):
    K, matches = normal(rng, 7, 11), torch.from_numpy(rng.uniform(size=(7, 11)) < 0.3)
    expected = 0
    for i in range(7):
        for j in range(11):
            logit = (1 if matches[i, j] else -1) * (3.0 * float(K[i, j]) - 2.0)
            expected += math.log(1 + math.exp(-logit)) / 7
    assert_allclose(siglip(K, matches, 3.0, -2.0), expected, **LAW[np.float64])
    assert_allclose(siglip(K, matches.double(), 3.0, -2.0), expected, **LAW[np.float64])


def test_siglip_knows_each_match_of_many(rng):
    # captions 0, 1, 2 describe image 0: the loss falls as any of them comes closer, and rises for the others
    matches = torch.zeros(2, 4)
    matches[0, :3], matches[1, 3] = 1, 1
    _, gradient = value_and_gradient(siglip, normal(rng, 2, 4), matches, 5.0, -1.0)
    assert ((gradient < 0) == (matches > 0)).all()


def test_siglip_gradient_is_the_sigmoid(rng):
    K, matches = normal(rng, 7, 11), torch.eye(7, 11)
    _, gradient = value_and_gradient(siglip, K, matches, 3.0, -2.0)
    assert_allclose(gradient, 3 * (torch.sigmoid(3 * K - 2) - matches) / 7, **LAW[np.float64])


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_siglip_is_stable_at_big_scales(scale):
    K = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])  # wrong at (0, 0) and (1, 0)
    value, gradient = value_and_gradient(siglip, K, torch.eye(2), scale, 0.0)
    assert_allclose(value, scale, **LAW[np.float32])
    assert_allclose(gradient, [[-scale / 2, 0], [scale / 2, 0]], **LAW[np.float32])


def test_siglip_hands_gradients_to_scale_and_bias(rng):
    K, matches = normal(rng, 7, 11), torch.eye(7, 11, dtype=torch.bool)
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -2.0))
    assert torch.autograd.gradcheck(lambda s, b: siglip(K, matches, s, b), (scale, bias))


@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_becomes_cross_entropy_for_a_certain_teacher(rng, symmetric):
    K, target = normal(rng, 9, 9), torch.arange(9)
    expected = cross_entropy(K / 0.3, target)
    if symmetric:
        expected = (expected + cross_entropy(K.T / 0.3, target)) / 2
    found = info_nce(K, torch.eye(9, dtype=K.dtype), 0.3, 1e-3, symmetric)
    assert_allclose(found, expected, **LAW[np.float64])


@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_equals_the_sum_over_softmaxes(rng, symmetric):
    K, K_teacher = normal(rng, 7, 11), normal(rng, 7, 11)

    def one_way(K, K_teacher):
        P, T = softmax(K, 0.5), softmax(K_teacher, 0.8)
        return (T * np.log(T / P)).sum() / len(K)

    expected = one_way(K, K_teacher)
    if symmetric:
        expected = (expected + one_way(K.T, K_teacher.T)) / 2
    assert_allclose(info_nce(K, K_teacher, 0.5, 0.8, symmetric), expected, **LAW[np.float64])


def test_info_nce_is_symmetric_by_default(rng):
    K, K_teacher = normal(rng, 7, 11), normal(rng, 7, 11)
    plain, turned = info_nce(K, K_teacher, 0.5, 0.8), info_nce(K.T, K_teacher.T, 0.5, 0.8)
    assert_allclose(plain, turned, **LAW[np.float64])
    assert abs(info_nce(K, K_teacher, 0.5, 0.8, False) - info_nce(K.T, K_teacher.T, 0.5, 0.8, False)) > 1e-3


def test_info_nce_is_zero_iff_the_softmaxes_agree(rng):
    K = normal(rng, 7, 11)
    row_shift, column_shift = normal(rng, 7, 1), normal(rng, 11)
    assert_allclose(info_nce(K, K / 5, 0.5, 0.1), 0, rtol=0, atol=1e-12)
    assert_allclose(info_nce(K + row_shift, K, 0.5, 0.5, symmetric=False), 0, rtol=0, atol=1e-12)
    for other in (K + column_shift, 2 * K, normal(rng, 7, 11)):
        assert info_nce(other, K, 0.5, 0.5, symmetric=False) > 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_gradient_is_the_difference_of_softmaxes(rng, symmetric):
    K, K_teacher = normal(rng, 7, 11), normal(rng, 7, 11).requires_grad_()
    _, gradient = value_and_gradient(info_nce, K, K_teacher, 0.5, 0.8, symmetric)
    T = K_teacher.detach()
    expected = (softmax(K, 0.5) - softmax(T, 0.8)) / 0.5 / 7
    if symmetric:
        expected = (expected + (softmax(K.T, 0.5) - softmax(T.T, 0.8)).T / 0.5 / 11) / 2
    assert_allclose(gradient, expected, **LAW[np.float64])
    assert K_teacher.grad is None


def test_info_nce_is_stable_at_small_epsilons(rng):
    K, K_teacher = (normal(rng, 7, 11).float() for _ in range(2))
    value, gradient = value_and_gradient(info_nce, K, K_teacher, 1e-4, 1e-4)
    assert math.isfinite(value)
    assert torch.isfinite(gradient).all()


def dense_cka(F, G, F_teacher, G_teacher):
    """1 - cosine of H K H and H K* H, from the whole matrices."""

    def centred(F, G):
        H_n, H_m = np.eye(len(F)) - 1 / len(F), np.eye(len(G)) - 1 / len(G)
        return H_n @ F.numpy() @ G.numpy().T @ H_m

    K, K_teacher = centred(F, G), centred(F_teacher, G_teacher)
    return 1 - (K * K_teacher).sum() / (np.linalg.norm(K) * np.linalg.norm(K_teacher))


@pytest.fixture
def factors(rng):
    """Rows of student (width 3) and teacher (width 5), 7 x 11, far from centred."""
    return normal(rng, 7, 3) + 2, normal(rng, 11, 3) - 1, normal(rng, 7, 5) + 1, normal(rng, 11, 5) + 3


def test_cka_equals_the_dense_formula(factors, rng):
    assert_allclose(cka(*factors), dense_cka(*factors), **LAW[np.float64])
    square = normal(rng, 9, 3), normal(rng, 9, 3), normal(rng, 9, 2), normal(rng, 9, 2)  # F is not G: no symmetry
    assert_allclose(cka(*square), dense_cka(*square), **LAW[np.float64])


def test_cka_ignores_scales_shifts_and_common_rotations(factors, rng):
    F, G, F_teacher, G_teacher = factors
    Q = torch.linalg.qr(normal(rng, 3, 3))[0]
    value = float(cka(*factors))
    assert 0.1 < value < 1.9
    for changed in (
        (1e-4 * F, 300 * G, 7 * F_teacher, G_teacher),
        (F + normal(rng, 3), G + normal(rng, 3), F_teacher + normal(rng, 5), G_teacher),
        (F @ Q, G @ Q, F_teacher, G_teacher),
        (G, F, G_teacher, F_teacher),
    ):
        assert_allclose(cka(*changed), value, **LAW[np.float64])
    assert abs(float(cka(F @ Q, G, F_teacher, G_teacher)) - value) > 1e-3


def test_cka_runs_from_zero_to_two(factors):
    F, G, *_ = factors
    assert_allclose(cka(F, G, F, G), 0, rtol=0, atol=1e-12)
    assert_allclose(cka(F, G, -F, G), 2, **LAW[np.float64])


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_lengths_of_rows_neither_overflow_nor_vanish(factors, scale):
    single = [scale * Z.float() for Z in factors]
    assert_allclose(cka(*single), dense_cka(*factors), **LAW[np.float32])
    assert_allclose(cka(*single[:2], *single[:2]), 0, rtol=0, atol=1e-5)


def test_cka_gradient_equals_finite_differences(factors):
    F, G, F_teacher, G_teacher = factors
    assert torch.autograd.gradcheck(
        lambda F, G: cka(F, G, F_teacher, G_teacher), (F.requires_grad_(), G.requires_grad_())
    )
    F_teacher.requires_grad_()
    cka(F, G, F_teacher, G_teacher).backward()
    assert F_teacher.grad is None


def test_constant_rows_align_with_nothing(factors):
    F, G, F_teacher, G_teacher = factors
    F = torch.ones_like(F).requires_grad_()
    value = cka(F, G, F_teacher, G_teacher)
    value.backward()
    assert value == 1
    assert torch.isfinite(F.grad).all()
