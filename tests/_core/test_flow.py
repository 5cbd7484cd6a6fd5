"""Laws of the flow: its integral, its loss, where it starts, and what training makes of it."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core.bridges import ridge
from skalign._core.flow import Source, Velocity, fit_source, flow_matching_loss, follow, integrate, train_flow
from skalign._core.training import undisturbed

SETTINGS = {
    "optimizer": torch.optim.AdamW,
    "learning_rate": 3e-3,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "n_iter_no_change": 100,
    "report": lambda record: None,
    "batch_size": 64,
    "seed": 0,
    "n_steps": 5,
    "held_out": None,
}


def trained(rng, max_iter=300, ema=0.995, **settings):
    """A flow from 3 columns to 5 on couples of a linear map; the velocity, its record, rows and where they belong."""
    X = torch.as_tensor(rng.standard_normal((200, 3)), dtype=torch.float32)
    Y = X @ torch.as_tensor(rng.standard_normal((3, 5)), dtype=torch.float32)
    draw = np.random.RandomState(0)
    source = fit_source("lift", X.numpy(), X.numpy(), Y.numpy(), 2, draw)
    velocity = Velocity(3, 5, (32, 32), seed=0)

    def couples(n):
        rows = draw.randint(150, size=n)
        return rows, rows

    with undisturbed(torch.device("cpu"), 0):
        record = train_flow(velocity, source, X, Y, couples, max_iter=max_iter, ema=ema, **SETTINGS | settings)
    return velocity, source, record, X, Y


def test_midpoint_is_exact_for_a_velocity_linear_in_time_and_ends_at_one():
    times = []

    def velocity(t, z, x):
        times.append(float(t[0]))
        return 2 * t[:, None] * x

    x, z = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)
    assert_allclose(integrate(velocity, x, z, 4), 1 + x)
    assert_allclose(times, np.arange(8) / 8)


def test_midpoint_is_of_second_order():
    z = torch.ones(1, 1, dtype=torch.float64)
    errors = [abs(float(integrate(lambda t, z, x: z, z, z, n)) - np.e) for n in (10, 20)]
    assert 3.8 < errors[0] / errors[1] < 4.2


def test_loss_is_zero_for_the_velocity_of_the_straight_path(rng):
    x, z0, z1 = torch.as_tensor(rng.standard_normal((3, 8, 4)))
    t = torch.as_tensor(rng.random(8))
    assert flow_matching_loss(lambda t, z, x: z1 - z0, x, z0, z1, t) == 0
    # the state stands on the path: from there, the way left over the time left is the velocity
    found = flow_matching_loss(lambda t, z, x: (z1 - z) / (1 - t[:, None]), x, z0, z1, t)
    assert_allclose(found, 0, atol=1e-20)


def test_lift_pads_or_keeps_the_leading_directions(rng):
    rows = rng.standard_normal((50, 4)) * [1, 9, 0.1, 3]
    wide = fit_source("lift", rows, rows[:2], np.ones((2, 6)), 2, None)
    assert_allclose(rows @ wide["lift"], np.pad(rows, ((0, 0), (0, 2))))
    narrow = fit_source("lift", rows, rows[:2], np.ones((2, 2)), 2, None)
    assert_allclose(narrow["lift"].T @ narrow["lift"], np.eye(2), atol=1e-12)
    _, _, Vt = np.linalg.svd(rows - rows.mean(axis=0))
    assert_allclose(np.abs(Vt[:2] @ narrow["lift"]), np.eye(2), atol=1e-9)


def test_teacher_starts_around_the_regression_and_shows_it_alone(rng):
    A, B = rng.standard_normal((9, 3)), rng.standard_normal((9, 5))
    source = Source(fit_source("teacher", A, A, B, 2, np.random.RandomState(0)), "cpu", torch.float64)
    coef, intercept = ridge(A, B)
    rows = torch.as_tensor(A)
    assert_allclose(source.seen(rows), A @ coef + intercept)
    drawn = source.draw(rows.repeat(2000, 1), torch.Generator().manual_seed(0)).reshape(2000, 9, 5)
    assert_allclose(drawn.mean(dim=0), source.seen(rows), atol=5 / np.sqrt(2000))
    assert_allclose(drawn.std(dim=0), np.ones((9, 5)), atol=0.1)
    still = Velocity(5, 5, (8,), seed=0).double()
    torch.nn.init.zeros_(still.layers[-1].weight), torch.nn.init.zeros_(still.layers[-1].bias)
    with torch.no_grad():
        assert_allclose(source.answer(still, rows, 2), source.seen(rows), atol=1e-12)  # the bank is balanced


def test_noise_bank_is_balanced_and_its_answer_is_the_mean_of_where_it_leads(rng):
    arrays = fit_source("noise", None, np.ones((1, 3)), np.ones((1, 5)), 6, np.random.RandomState(0))
    assert arrays["noise"].shape == (6, 5)
    assert_allclose(arrays["noise"].sum(axis=0), 0, atol=1e-12)
    velocity = Velocity(3, 5, (8,), seed=0).double()
    x = torch.as_tensor(rng.standard_normal((4, 3)))
    with torch.no_grad():
        ends = [integrate(velocity, x, torch.as_tensor(z).expand(4, 5), 3) for z in arrays["noise"]]
        found = Source(arrays, "cpu", torch.float64).answer(velocity, x, 3)
    assert_allclose(found, torch.stack(ends).mean(dim=0))


def test_training_finds_a_planted_map(rng):
    velocity, source, record, X, Y = trained(rng)
    weights = {name: tensor.numpy() for name, tensor in velocity.state_dict().items()}
    found = follow(weights, source, X[150:], 5, torch.device("cpu"))
    error, spread = (found - Y[150:]).square().mean(), Y.square().mean()
    assert error < 0.05 * spread
    assert record.n_iter == len(record.curves["loss"]) == 300
    assert np.mean(record.curves["loss"][-20:]) < 0.1 * np.mean(record.curves["loss"][:20])


def test_equal_seeds_draw_equal_weights_in_threads_side_by_side():
    def weights(seed):
        return torch.nn.utils.parameters_to_vector(Velocity(3, 2, (16,) * 4, seed).parameters()).detach()

    interval = sys.getswitchinterval()
    expected = [weights(seed) for seed in range(40)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(weights, range(40)))
    finally:
        sys.setswitchinterval(interval)
    assert all(map(torch.equal, expected, found))


def test_equal_seeds_train_equal_flows():
    first, second = (trained(np.random.default_rng(0), max_iter=20)[0] for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert_array_equal(a.detach(), b.detach())


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_the_moving_average_of_the_weights_is_kept(rng, ema):
    steps = []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            steps.append(self.param_groups[0]["params"][0].detach().clone())

    velocity = trained(rng, max_iter=12, ema=ema, optimizer=Spy)[0]
    expected = steps[0]
    for n, weights in enumerate(steps[1:], start=1):
        decay = min(ema, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights
    assert_allclose(next(velocity.parameters()).detach(), expected, rtol=1e-5, atol=1e-7)


def test_held_out_pairs_choose_the_state_that_is_kept(rng):
    X = torch.as_tensor(rng.standard_normal((8, 3)), dtype=torch.float32)
    Y = torch.as_tensor(rng.standard_normal((8, 5)), dtype=torch.float32)
    _, _, record, *_ = trained(rng, held_out=(X, Y, np.column_stack([np.arange(8)] * 2)), n_iter_no_change=200)
    curve = record.curves["validation"]
    assert record.best_iter == 100 * int(np.argmax(curve))
    assert len(curve) == 1 + record.n_iter // 100


@pytest.mark.parametrize("n_rows", [1, 5])
def test_one_draw_of_noise_for_each_row(n_rows):
    velocity = Velocity(3, 5, (8,), seed=0)
    weights = {name: tensor.numpy() for name, tensor in velocity.state_dict().items()}
    arrays = fit_source("noise", None, np.ones((1, 3)), np.ones((1, 5)), 2, np.random.RandomState(0))
    x = torch.ones(n_rows, 3)
    found = follow(weights, arrays, x, 3, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert found.shape == (n_rows, 5)
    assert len(np.unique(found.numpy(), axis=0)) == n_rows
