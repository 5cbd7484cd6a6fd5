"""Laws of the alignment heads. Knows torch, knows nothing of estimators."""

import math

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose
from torch import nn

from skalign._core.heads import HEADS, build_head, start_from


def factory(d_in, d_out):
    return nn.Sequential(nn.Linear(d_in, 5), nn.Dropout(), nn.Linear(5, d_out))


KINDS = [*HEADS, factory]


def tensors(head):
    return list(head.state_dict().values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d_in", "d_out"), [(7, 11), (11, 7), (1, 1)])
def test_head_maps_the_view_into_the_shared_space(kind, d_in, d_out):
    head = build_head(kind, d_in, d_out, seed=0)
    assert head(torch.randn(4, d_in, generator=torch.Generator().manual_seed(0))).shape == (4, d_out)
    assert {Z.dtype for Z in tensors(head)} == {torch.float32}
    assert all(Z.requires_grad for Z in head.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_the_weights(kind):
    first, again, other = (tensors(build_head(kind, 7, 11, seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_stays(kind):
    before = torch.get_rng_state()
    build_head(kind, 7, 11, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_global_random_state_does_not_matter(kind):
    first = tensors(build_head(kind, 7, 11, seed=0))
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, tensors(build_head(kind, 7, 11, seed=0)), strict=True))


@pytest.mark.parametrize("kind", HEADS)
def test_weights_fill_the_xavier_bound(kind):
    layers = [module for module in build_head(kind, 70, 110, seed=0).modules() if isinstance(module, nn.Linear)]
    assert len(layers) == (2 if kind == "mlp" else 1)
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert_allclose(layer.weight.detach().square().mean(), bound**2 / 3, rtol=0.05)  # uniform
        assert (layer.bias == 0).all()


def test_layernorm_head_ignores_shift_and_scale_of_rows():
    head, Z = build_head("layernorm", 7, 11, seed=0), torch.arange(21.0).reshape(3, 7).sin()
    assert_allclose(head(1000 * Z + 5).detach(), head(1000 * Z).detach(), atol=1e-4)
    linear = build_head("linear", 7, 11, seed=0)
    assert (linear(Z + 5) - linear(Z)).abs().max() > 0.1


def test_mlp_is_as_wide_as_its_wider_end_and_bends():
    for d_in, d_out in ((7, 11), (11, 7)):
        head = build_head("mlp", d_in, d_out, seed=0)
        assert head[0].out_features == head[2].in_features == 11
    Z = torch.ones(1, 11)
    assert (head(2 * Z) - 2 * head(Z)).abs().max() > 1e-2


@pytest.mark.parametrize("d_out", [3, 5])
def test_head_starts_as_the_linear_map_it_is_given(rng, d_out):
    coef, intercept = rng.normal(size=(7, 3)), rng.normal(size=3)
    head = build_head("linear", 7, d_out, seed=0)
    before = head.weight.detach().clone()
    start_from(head, coef, intercept)
    Z = rng.normal(size=(11, 7))
    found = head(torch.from_numpy(Z).float())[:, :3].detach().numpy()
    expected = Z @ coef + intercept
    assert_allclose(found / found[0, 0], expected / expected[0, 0], **LAW[np.float32])  # the scale is free
    assert (found * expected > 0).all()  # its sign is not
    assert_allclose(head.weight[:3].detach().norm() ** 2, 3, **LAW[np.float32])
    assert_allclose(head.weight[3:].detach(), 0.03 * before[3:], **LAW[np.float32])
    assert all(Z.requires_grad for Z in head.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_factory_head_keeps_its_mode(training):
    head = build_head(lambda d_in, d_out: factory(d_in, d_out).train(training), 7, 11, seed=0)
    assert all(module.training == training for module in head.modules())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda d_in, d_out: None, r"must return a torch.nn.Module, but it returned NoneType"),
        (lambda d_in, d_out: nn.Linear, r"must return a torch.nn.Module, but it returned type"),
        (lambda d_in, d_out: nn.Linear(d_in, 5), r"maps \(2, 7\) to \(2, 11\), but it maps to \(2, 5\)"),
        (lambda d_in, d_out: nn.Flatten(0), r"maps \(2, 7\) to \(2, 11\), but it maps to \(14,\)"),
        (
            lambda d_in, d_out: nn.Linear(d_out, d_in),
            r"maps \(2, 7\) to \(2, 11\), but it fails: .*factory\(d_in, d_out\)",
        ),
    ],
)
def test_factory_must_return_a_fitting_module(bad, message):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        build_head(bad, 7, 11, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
