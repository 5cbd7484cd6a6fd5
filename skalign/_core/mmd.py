"""A small network that moves one sample onto another in distribution. Knows torch, knows nothing of estimators."""

import copy
import math

import torch
from torch import nn

_HIDDEN = 32
_SCALES = (0.5, 1.0, 2.0)  # of the kernel's width
_HELD_OUT = 0.1  # share of the rows on which the best state is chosen
_JUDGED = 1000  # at most so many of them


def mmd(F, G, width):
    r"""Squared maximum mean discrepancy of two samples (n, k) and (m, k), biased estimate.

    With the kernel :math:`\sum_s \exp(-\|x - y\|^2 / (s w))`, s in {1/2, 1, 2} and w the `width`.
    """
    Z = torch.cat([F, G])
    squared = torch.cdist(Z, Z).square()
    kernel = sum((-squared / (scale * width)).exp() for scale in _SCALES)
    n = len(F)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def mean_squared_distance(F, G):
    """Of all couples of rows of both samples together."""
    Z = torch.cat([F, G])
    return float(2 * (Z - Z.mean(dim=0)).square().sum(dim=1).mean())


class ResidualNetwork(nn.Module):
    """``z + network(z)``, three layers; it starts near the identity."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, width))
        ).float()

    def forward(self, Z):
        return Z + self.layers(Z)


def match_distribution(F, G, *, n_epochs, batch_size, learning_rate, seed):
    """A `ResidualNetwork` that makes `mmd` between its values on F (n, k) and G (m, k) small, the best on held-out rows.

    The kernel's width is the mean squared distance at the start. An epoch passes once through F; weights are drawn from torch's
    global state, batches from `seed`.
    """
    width = max(mean_squared_distance(F, G), torch.finfo(F.dtype).tiny)
    network, generator = ResidualNetwork(F.shape[1]), torch.Generator().manual_seed(seed)
    stepper = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    (F_held, F), (G_held, G) = (_split(Z, generator) for Z in (F, G))
    lowest, best = math.inf, copy.deepcopy(network.state_dict())
    for epoch in range(n_epochs + 1):
        if epoch:
            for rows in torch.randperm(len(F), generator=generator).split(batch_size):
                others = torch.randint(len(G), (min(batch_size, len(G)),), generator=generator)
                stepper.zero_grad()
                mmd(network(F[rows]), G[others], width).backward()
                stepper.step()
        with torch.no_grad():
            value = float(mmd(network(F_held), G_held, width))
        if value < lowest:
            lowest, best = value, copy.deepcopy(network.state_dict())
    network.load_state_dict(best)
    return network


def _split(Z, generator):
    """Rows held out, and the others; of few rows all are both."""
    n_held = min(round(_HELD_OUT * len(Z)), _JUDGED)
    if n_held < 2:
        return Z, Z
    order = torch.randperm(len(Z), generator=generator)
    return Z[order[:n_held]], Z[order[n_held:]]
