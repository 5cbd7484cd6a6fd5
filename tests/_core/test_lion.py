"""Laws of the Lion optimiser; lion-pytorch referees. Knows torch, knows nothing of estimators."""

import pytest
import torch
from numpy.testing import assert_allclose

from skalign._core.lion import Lion


def parameters(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, dtype=dtype, generator=generator)) for shape in ((7, 11), (11,))]


def gradients(step):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((7, 11), (11,))]


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.8)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_every_step_equals_lion_pytorch(betas, weight_decay):
    import lion_pytorch

    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.03, "betas": betas, "weight_decay": weight_decay}
    mine, referee = Lion(ours, **settings), lion_pytorch.Lion(theirs, **settings)
    for step in range(20):
        for mine_p, their_p, gradient in zip(ours, theirs, gradients(step), strict=True):
            mine_p.grad, their_p.grad = gradient.clone(), gradient.clone()
        mine.step()
        referee.step()
        for mine_p, their_p in zip(ours, theirs, strict=True):
            assert_allclose(mine_p.detach(), their_p.detach(), rtol=1e-12)


def test_first_step_has_the_size_of_the_learning_rate():
    before, after = parameters(), parameters()
    for parameter, gradient in zip(after, gradients(0), strict=True):
        parameter.grad = 1e-6 * gradient  # only its sign counts
    Lion(after, lr=0.03).step()
    for old, new, gradient in zip(before, after, gradients(0), strict=True):
        assert_allclose((new - old).detach(), -0.03 * gradient.sign(), rtol=1e-9)


def test_weight_decay_is_decoupled():
    before, after = parameters(), parameters()
    for parameter in after:
        parameter.grad = torch.zeros_like(parameter)
    Lion(after, lr=0.1, weight_decay=0.5).step()
    for old, new in zip(before, after, strict=True):
        assert_allclose(new.detach(), 0.95 * old.detach(), rtol=1e-12)


def test_parameters_without_gradient_stay():
    moved, still = parameters()
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    Lion([moved, still], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still.detach(), before)


def test_closure_is_called_with_gradients_on():
    (parameter, _) = parameters()
    optimizer = Lion([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    expected = float((parameter.detach() ** 2).sum())
    sign = parameter.detach().sign()
    before = parameter.detach().clone()
    assert float(optimizer.step(closure).detach()) == expected
    assert_allclose(parameter.detach(), before - 0.1 * sign, rtol=1e-12)


def test_training_continues_from_a_saved_state():
    straight, resumed = parameters(), parameters()
    first, second = Lion(straight, lr=0.03), Lion(resumed, lr=0.03)
    for step in range(6):
        if step == 3:
            second, state = Lion(resumed, lr=0.03), second.state_dict()
            second.load_state_dict(state)
        for a, b, gradient in zip(straight, resumed, gradients(step), strict=True):
            a.grad, b.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    for a, b in zip(straight, resumed, strict=True):
        assert torch.equal(a, b)
