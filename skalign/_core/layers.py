"""Layers that torch modules of fitted aligners are made of, each the twin of a NumPy function. Knows torch, not estimators."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

_TINY = 1e-12  # under a root, so that its derivative at 0 is finite


def tensor32(array):
    """A copy of an array as a float32 tensor."""
    return torch.from_numpy(np.array(array, dtype=np.float32))


def matrix(coef):
    """The layer ``x @ coef``."""
    layer = nn.utils.skip_init(nn.Linear, *coef.shape, bias=False, dtype=torch.float32)
    layer.weight = nn.Parameter(tensor32(coef.T))
    return layer


class UnitRows(nn.Module):
    """Rows at unit length; zero rows stay zero."""

    def forward(self, rows):
        # the largest entry goes first, so that squares of huge or tiny rows neither overflow nor vanish; as it cancels,
        # the gradient may take it for a constant
        largest = rows.detach().abs().amax(dim=1, keepdim=True)
        return normalize(rows / torch.where(largest > 0, largest, 1.0), dim=1)


class Standardize(nn.Module):
    """Rows less `mean`, divided by `scale`, which may be left out."""

    def __init__(self, mean=0.0, scale=1.0):
        super().__init__()
        self.register_buffer("mean", tensor32(mean))
        self.register_buffer("scale", tensor32(scale))

    def forward(self, rows):
        return (rows - self.mean) / self.scale


class KernelColumns(nn.Module):
    """`GaussianFeatures` of rows."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("landmarks", tensor32(features.landmarks))
        self.register_buffer("whitening", tensor32(features.whitening))
        self.gamma, self.unit = features.gamma, UnitRows()

    def forward(self, rows):
        return torch.exp(2 * self.gamma * (self.unit(rows) @ self.landmarks.T - 1)) @ self.whitening


class HubnessColumns(nn.Module):
    """`LocalScaling.lift_x` if ``view="x"``, else `lift_y`."""

    def __init__(self, local_scaling, view):
        super().__init__()
        anchors = local_scaling.y_anchors if view == "x" else local_scaling.x_anchors
        self.register_buffer("anchors", tensor32(anchors))
        self.n_neighbors, self.view, self.unit = local_scaling.n_neighbors, view, UnitRows()

    def forward(self, rows):
        rows = self.unit(rows)
        own = -(rows @ self.anchors.T).topk(self.n_neighbors, dim=1).values.mean(dim=1, keepdim=True) / 2**0.5
        one, rest = torch.full_like(own, 0.5**0.5), (0.5 - own.square()).clamp(min=_TINY).sqrt()
        none = torch.zeros_like(own)
        further = (own, one, rest, none) if self.view == "x" else (one, own, none, rest)
        return torch.cat([rows, *further], dim=1) / 2**0.5 * rows.any(dim=1, keepdim=True)


class CompletedVariates(nn.Module):
    """Unit variates times `weight`, made up to length 1 in a column where the other view is 0; see `CSA`."""

    def __init__(self, weight, view):
        super().__init__()
        self.register_buffer("weight", tensor32(weight))
        self.view, self.unit = view, UnitRows()

    def forward(self, rows):
        variates = self.unit(rows) * self.weight
        rest = (1 - variates.square().sum(dim=1, keepdim=True)).clamp(min=_TINY).sqrt()
        none = torch.zeros_like(rest)
        return torch.cat([variates, *((rest, none) if self.view == "x" else (none, rest))], dim=1)


class Sharpen(nn.Module):
    """The `n_neighbors` largest entries of each row, those above 0, raised to `power`; the others are 0."""

    def __init__(self, n_neighbors, power):
        super().__init__()
        self.n_neighbors, self.power = n_neighbors, float(power)

    def forward(self, cosines):
        kept, where = cosines.clamp(min=0).topk(min(self.n_neighbors, cosines.shape[1]), dim=1)
        kept = (kept / kept[:, :1].clamp(min=1e-30)) ** self.power
        return torch.zeros_like(cosines).scatter(1, where, kept)
