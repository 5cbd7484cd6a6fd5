"""Conditional flow matching from one view to another: velocity, training, integration. Knows torch, no estimators."""

import itertools
import math

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .bridges import ridge
from .heads import random_numbers
from .ranks import recalls
from .training import descend

_FREQUENCIES = 8
_ROWS = 8192  # mapped at once
_CLIP = 1.0  # norm of a gradient
_LOOK_EVERY = 100  # steps between two looks at the held-out pairs, each of which integrates the flow


def fit_source(kind, rows, A, B, n_draws, rng):
    """Arrays of a `Source`: "lift" of rows (n, d_x) into d_y columns, "noise", or the "teacher" of points (A, B)."""
    d_x, d_y = A.shape[1], B.shape[1]
    if kind == "lift" and d_x <= d_y:
        return {"lift": np.eye(d_x, d_y)}
    if kind == "lift":
        rows = rows - rows.mean(axis=0, dtype=np.float64)
        return {"lift": np.ascontiguousarray(np.linalg.eigh(rows.T @ rows)[1][:, : -d_y - 1 : -1])}
    half = rng.standard_normal((-(-n_draws // 2), d_y))
    noise = {"noise": np.concatenate([half, -half])[:n_draws]}  # in opposite couples their mean is that of all noise
    return noise if kind == "noise" else noise | dict(zip(("coef", "intercept"), ridge(A, B), strict=True))


class Source:
    """Where a flow starts and what its velocity sees of a row, from the arrays of `fit_source`.

    "noise" is a bank (k, d_y) of starts for those who want one answer, the mean of where they lead. It is the same for
    every row, so that the answer depends on the row alone. With the "coef" and "intercept" of a teacher it lies around
    the regression of the row, and that is all the velocity sees of it: a regression shrinks the directions in which it
    finds nothing, and a network that saw them would fit their noise.
    """

    def __init__(self, arrays, device, dtype):
        self.arrays = {name: torch.tensor(array, device=device, dtype=dtype) for name, array in arrays.items()}

    @property
    def is_random(self):
        return "noise" in self.arrays

    def seen(self, x):
        """What the velocity is conditioned on: the row, (n, d_x), or its regression, (n, d_y)."""
        return x @ self.arrays["coef"] + self.arrays["intercept"] if "coef" in self.arrays else x

    def start(self, x, noise=None):
        """A start for each row, (n, d_y), given noise (n, d_y) or (d_y,)."""
        if "lift" in self.arrays:
            return x @ self.arrays["lift"]
        return self.seen(x) + noise if "coef" in self.arrays else noise.expand(len(x), -1)

    def draw(self, x, generator):
        """A start for each row, (n, d_y), with noise from a generator on the CPU."""
        if not self.is_random:
            return self.start(x)
        shape = len(x), self.arrays["noise"].shape[1]
        return self.start(x, torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device))

    def answer(self, velocity, x, n_steps):
        """Where the flow takes each row, (n, d_y); with noise the mean over the bank."""
        seen = self.seen(x)
        if not self.is_random:
            return integrate(velocity, seen, self.start(x), n_steps)
        bank = self.arrays["noise"]
        return sum(integrate(velocity, seen, self.start(x, noise), n_steps) for noise in bank) / len(bank)


class Velocity(nn.Module):
    """``v(t, z | x)``: an MLP on the state z (d_y), Fourier features of the time t, and the condition x (d_x)."""

    def __init__(self, d_x, d_y, hidden, seed=0):
        super().__init__()
        widths = (d_y + 2 * _FREQUENCIES + d_x, *hidden, d_y)
        layers = []
        with random_numbers(seed):
            for d_in, d_out in itertools.pairwise(widths):
                layers += [nn.Linear(d_in, d_out, dtype=torch.float32), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, t, z, x):
        angles = t[:, None] * (2 * math.pi * torch.arange(1, _FREQUENCIES + 1, device=t.device, dtype=t.dtype))
        return self.layers(torch.cat([z, angles.sin(), angles.cos(), x], dim=1))


def flow_matching_loss(velocity, x, z0, z1, t):
    """Mean square of ``v(t, z_t | x) - (z1 - z0)`` on the straight path ``z_t = (1 - t) z0 + t z1``."""
    z = torch.lerp(z0, z1, t[:, None])
    return (velocity(t, z, x) - (z1 - z0)).square().mean()


def integrate(velocity, x, z, n_steps):
    """Follow the flow from t = 0 to exactly t = 1 by the midpoint rule in equal steps."""
    h = 1 / n_steps
    for k in range(n_steps):
        t = z.new_full((len(z),), k * h)
        middle = z + h / 2 * velocity(t, z, x)
        z = z + h * velocity(t + h / 2, middle, x)
    return z


def follow(weights, source, rows, n_steps, device, generator=None):
    """Where a trained flow takes rows (n, d_x), on the CPU: its answer, or with a generator one draw of the noise each."""
    shapes = [weight.shape for weight in weights.values() if weight.ndim == 2]
    *hidden, d_y = (d_out for d_out, _ in shapes)
    velocity = Velocity(shapes[0][1] - 2 * _FREQUENCIES - d_y, d_y, hidden)
    velocity.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    velocity.to(device=device, dtype=rows.dtype)
    source = Source(source, device, rows.dtype)
    ends = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for x in rows.split(_ROWS):
            x = x.to(device)
            if generator is None:
                ends.append(source.answer(velocity, x, n_steps).cpu())
            else:
                ends.append(integrate(velocity, source.seen(x), source.draw(x, generator), n_steps).cpu())
    return torch.cat(ends)


def train_flow(velocity, source, X, Y, draw, *, batch_size, ema, seed, n_steps, held_out, parts=None, **settings):
    """Train a velocity in place on couples of rows of X and Y, and leave the moving average of its weights in it.

    ``draw(n)`` returns rows (of X, of Y) of n couples; `held_out` is None, or rows of X and of Y and the pairs (q, 2) among
    them; `parts` are those, by name, whose state `draw` changes; `settings` are those of :func:`descend`. Returns its record.
    """
    source = Source(source, X.device, X.dtype)

    def average(mean, weights, n):
        # at first over fewer steps, so that the random weights of the start are soon forgotten
        return torch.lerp(weights, mean, min(ema, (1 + float(n)) / (10 + float(n))))

    averaged = AveragedModel(velocity, avg_fn=average)
    generator = torch.Generator().manual_seed(seed)

    def next_step():
        i, j = (torch.as_tensor(rows, device=X.device) for rows in draw(batch_size))
        x, z1 = X[i], Y[j]
        z0 = source.draw(x, generator)
        # one time in each of n equal parts of the unit interval, in no order
        start = torch.rand((), generator=generator)
        t = (start + torch.randperm(len(x), generator=generator) / len(x)).remainder(1).to(x)
        return lambda: {"loss": flow_matching_loss(velocity, source.seen(x), z0, z1, t)}

    def recall():
        with torch.no_grad():
            found = source.answer(averaged.module, held_out[0], n_steps)
        return float(recalls(found.cpu().numpy(), held_out[1].cpu().numpy(), held_out[2]).mean())

    parts = {"velocity": velocity, "averaged": averaged, "generator": generator, **(parts or {})}
    record = descend(
        lambda: (list(velocity.parameters()), next_step, parts),
        (averaged,),
        ["loss"],
        look=None if held_out is None else recall,
        validation_interval=_LOOK_EVERY,
        clip=_CLIP,
        after_step=lambda: averaged.update_parameters(velocity),
        **settings,
    )
    velocity.load_state_dict(averaged.module.state_dict())
    return record
