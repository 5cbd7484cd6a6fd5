"""The public face of the torch core: names, defaults and words. The laws are tested in `_core`."""

import inspect

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose

from skalign import losses
from skalign._core import klot as core_klot
from skalign._core import losses as core
from skalign._core import sinkhorn as core_sinkhorn


@pytest.fixture
def affinities(rng):
    """Cosine-like affinities of student and teacher, 7 x 11."""
    return [torch.from_numpy(rng.uniform(-1, 1, size=(7, 11))) for _ in range(2)]


@pytest.fixture
def marginals(rng):
    return [torch.from_numpy(rng.dirichlet(np.ones(n))) for n in (7, 11)]


def test_every_public_name_is_there():
    assert losses.__all__ == sorted(losses.__all__)
    functions = {"cka", "info_nce", "klot", "klot_from_features", "siglip", "sinkhorn", "sinkhorn_from_features"}
    assert set(losses.__all__) == {"SinkhornResult", *functions}
    for name in losses.__all__:
        assert getattr(losses, name).__doc__


def test_sinkhorn_hands_everything_to_the_core(affinities, marginals):
    K, _ = affinities
    plain, expected = losses.sinkhorn(K, 0.05), core_sinkhorn.sinkhorn(K, 0.05)
    assert isinstance(plain, losses.SinkhornResult)
    assert plain.converged
    assert plain.n_iter == expected.n_iter
    assert_allclose(plain.plan, expected.plan, **LAW[np.float64])
    options = {"tol": 1e-11, "max_iter": 77}
    found, expected = (
        losses.sinkhorn(K, 0.05, *marginals, **options),
        core_sinkhorn.sinkhorn(K, 0.05, *marginals, **options),
    )
    assert (found.n_iter, found.error) == (expected.n_iter, expected.error)
    assert_allclose(found.plan.sum(dim=1), marginals[0], **LAW[np.float64])
    assert losses.sinkhorn(K, 0.05, tol=0, max_iter=3).n_iter == 3
    assert losses.sinkhorn(K, 0.05, init=plain.g).n_iter == 1
    relaxed, expected = (door(K, 0.05, rho_a=0.1, rho_b=0.7) for door in (losses.sinkhorn, core_sinkhorn.sinkhorn))
    assert_allclose(relaxed.plan, expected.plan, **LAW[np.float64])


def test_functions_from_features_hand_everything_to_the_core(rng, marginals):
    F, G, F_teacher, G_teacher = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (7, 11, 7, 11))
    options = {"tol": 1e-11, "max_iter": 77}
    found = losses.sinkhorn_from_features(F, G, 0.5, *marginals, **options)
    expected = core_sinkhorn.sinkhorn_from_features(F, G, 0.5, *marginals, **options)
    assert (found.n_iter, found.error) == (expected.n_iter, expected.error)
    assert losses.sinkhorn_from_features(F, G, 0.5, tol=0, max_iter=3).n_iter == 3
    doors = losses.sinkhorn_from_features, core_sinkhorn.sinkhorn_from_features
    relaxed, expected = (door(F, G, 0.5, rho_a=0.1, rho_b=0.7).plan for door in doors)
    assert_allclose(relaxed, expected, **LAW[np.float64])
    assert losses.sinkhorn_from_features(F, G, 0.5, *marginals, init=found.g).n_iter == 1
    views = F, G, F_teacher, G_teacher
    for args, kwargs in (((), {}), ((0.3, 0.1, *marginals), {"tol": 1e-11}), ((), {"max_iter": 4})):
        expected = core_klot.klot_from_features(*views, *args, **kwargs)[0]
        assert_allclose(losses.klot_from_features(*views, *args, **kwargs), expected, **LAW[np.float64])


def test_klot_hands_everything_to_the_core(affinities, marginals):
    for args, options in (
        ((), {}),
        ((0.3, 0.1), {"tol": 1e-11}),
        ((0.3, 0.1, *marginals), {"tol": 1e-11}),
        ((), {"max_iter": 4}),
    ):
        expected = core_klot.klot(*affinities, *args, **options)[0]
        assert_allclose(losses.klot(*affinities, *args, **options), expected, **LAW[np.float64])


def test_info_nce_hands_everything_to_the_core(affinities):
    expected = core.info_nce(*affinities, 0.05, 0.01, True)
    assert_allclose(losses.info_nce(*affinities), expected, **LAW[np.float64])
    expected = core.info_nce(*affinities, 0.3, 0.1, False)
    assert_allclose(losses.info_nce(*affinities, 0.3, 0.1, symmetric=False), expected, **LAW[np.float64])


@pytest.mark.parametrize(("n", "m"), [(7, 11), (11, 7), (8, 8)])
def test_siglip_pairs_the_diagonal_unless_told(rng, n, m):
    K = torch.from_numpy(rng.uniform(-1, 1, size=(n, m))).requires_grad_()
    diagonal = torch.eye(n, m, dtype=torch.bool)
    value = losses.siglip(K)
    value.backward()
    assert_allclose(value.detach(), core.siglip(K, diagonal, 20.0, -10.0).detach(), **LAW[np.float64])
    assert_allclose(value.detach(), losses.siglip(K, diagonal).detach(), **LAW[np.float64])
    assert torch.equal(K.grad < 0, diagonal)


def test_siglip_hands_everything_to_the_core(affinities):
    K, matches = affinities[0], affinities[1] > 0.5
    assert_allclose(losses.siglip(K, matches, 3.0, -2.0), core.siglip(K, matches, 3.0, -2.0), **LAW[np.float64])


def test_cka_hands_everything_to_the_core(rng):
    factors = [torch.from_numpy(rng.normal(size=size)) for size in ((7, 3), (11, 3), (7, 5), (11, 5))]
    assert_allclose(losses.cka(*factors), core.cka(*factors), **LAW[np.float64])


@pytest.mark.parametrize("name", ["klot", "info_nce"])
def test_losses_of_the_paper_share_their_defaults(name):
    defaults = {key: value.default for key, value in inspect.signature(getattr(losses, name)).parameters.items()}
    assert (defaults["epsilon"], defaults["epsilon_teacher"]) == (0.05, 0.01)


@pytest.mark.parametrize("name", ["klot", "info_nce"])
def test_only_the_student_receives_a_gradient(affinities, name):
    K, K_teacher = (Z.requires_grad_() for Z in affinities)
    getattr(losses, name)(K, K_teacher).backward()
    assert K.grad.abs().sum() > 0
    assert K_teacher.grad is None


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"`epsilon` must be positive and finite, but it is -1\. Typical values are"):
        losses.sinkhorn(torch.eye(3), -1)
    with pytest.raises(ValueError, match=r"holds NaN or infinity\. Expected finite similarities; check the embeddings"):
        losses.klot(torch.full((3, 3), torch.nan), torch.eye(3))
    with pytest.raises(ValueError, match=r"one shape, but K has \(3, 3\) and K_teacher \(3, 4\)"):
        losses.klot(torch.eye(3), torch.eye(3, 4))
    for shapes in (((7, 3), (11, 1), (7, 5), (11, 5)), ((7, 3), (11, 3), (11, 5), (7, 5)), ((7,), (7,), (7,), (7,))):
        with pytest.raises(ValueError, match=r"must have shapes \(n, d\), .* but they have"):
            losses.cka(*map(torch.ones, shapes))
