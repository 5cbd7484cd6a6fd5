"""What the heads are trained for: SAIL, SOTAlign and their rivals, as modules. Knows torch, knows nothing of estimators.

An objective is called with both embeddings, ``embed_x(rows)`` and ``embed_y(rows)`` that return unit rows, and a `Batch`.
It returns its `terms` by name; "loss" is what is minimised, the others are what it is made of. Its own parameters are
trained along.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize, one_hot, pad

from .losses import siglip
from .sinkhorn import sinkhorn

_ENTRIES = 1 << 22  # cosines held at a time in the search for neighbours
_SCALES = 0.0, math.log(100.0)  # lowest and highest logarithm of a learned scale that divides


@dataclass(frozen=True)
class Batch:
    """Rows of one training step.

    A, B : (n, d_x), (n, d_y) pairs, row by row; `matches` (n, n) says which rows of A belong to which of B; `at` says where
    they stand among all pairs. X, Y : (u_x, d_x), (u_y, d_y) unpaired rows, None if the objective takes none; F_teacher,
    G_teacher their rows of the teacher; `same_rows` says that they are those of the step before. `generator` is for what an
    objective draws.
    """

    A: torch.Tensor
    B: torch.Tensor
    matches: torch.Tensor
    at: torch.Tensor | slice
    X: torch.Tensor | None = None
    Y: torch.Tensor | None = None
    F_teacher: torch.Tensor | None = None
    G_teacher: torch.Tensor | None = None
    same_rows: bool = False
    generator: torch.Generator | None = None


class _SigLIP(nn.Module):
    """The sigmoid loss with its learned scale and bias."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0), dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(-10.0, dtype=torch.float32))

    def forward(self, K, matches):
        return siglip(K, matches, self.log_scale.exp(), self.bias)


class PairsAndTeacher(nn.Module):
    """``SigLIP(pairs) + alpha * divergence(unpaired batch)`` (SOTAlign, eq. 5); with alpha 0 it is supervised SAIL.

    ``divergence(F, G, F_teacher, G_teacher, same_rows)`` takes unit rows and returns a scalar.
    """

    terms = ("loss", "siglip", "divergence")

    def __init__(self, alpha: float = 0.0, divergence: Callable | None = None):
        super().__init__()
        self.siglip, self.alpha, self.divergence = _SigLIP(), alpha, divergence

    @property
    def takes_unpaired(self):
        return self.alpha > 0

    def forward(self, embed_x, embed_y, batch):
        supervised = self.siglip(embed_x(batch.A) @ embed_y(batch.B).T, batch.matches)
        regulariser = torch.zeros((), device=supervised.device)
        if self.takes_unpaired:
            F, G = embed_x(batch.X), embed_y(batch.Y)
            regulariser = self.divergence(F, G, batch.F_teacher, batch.G_teacher, batch.same_rows)
        loss = supervised + self.alpha * regulariser
        return {"loss": loss, "siglip": supervised, "divergence": regulariser}


class PairsAgainstAll(nn.Module):
    """SigLIP in which the unpaired rows are further negatives: semi-supervised SAIL."""

    terms = ("loss",)
    takes_unpaired = True

    def __init__(self):
        super().__init__()
        self.siglip = _SigLIP()

    def forward(self, embed_x, embed_y, batch):
        F, G = embed_x(torch.cat([batch.A, batch.X])), embed_y(torch.cat([batch.B, batch.Y]))
        n = len(batch.A)
        x_to_y = self.siglip(F[:n] @ G.T, _padded(batch.matches, len(G)))
        y_to_x = self.siglip(G[:n] @ F.T, _padded(batch.matches.T, len(F)))
        return {"loss": (x_to_y + y_to_x) / 2}


class PairsAndStructure(nn.Module):
    """``InfoNCE(pairs) + weight * R``: what is near in a view is to stay near in the shared space (STRUCTURE).

    R is the mean over both views of the divergence between the row-wise softmaxes of the similarities before and after,
    each of the first `levels` powers of which, level l with weight 1 / l, is a neighbourhood of l steps.
    """

    terms = ("loss", "info_nce", "structure")
    takes_unpaired = True

    def __init__(self, weight: float, levels: int, temperature: float):
        super().__init__()
        self.weight, self.levels, self.temperature = weight, levels, temperature

    def forward(self, embed_x, embed_y, batch):
        n = len(batch.A)
        rows_x, rows_y = torch.cat([batch.A, batch.X]), torch.cat([batch.B, batch.Y])
        F, G = embed_x(rows_x), embed_y(rows_y)
        supervised = _contrast(F[:n] @ G[:n].T / self.temperature, batch.matches)
        structure = (self._change(rows_x, F) + self._change(rows_y, G)) / 2
        return {"loss": supervised + self.weight * structure, "info_nce": supervised, "structure": structure}

    def _change(self, before, after):
        log_q, log_p = self._log_neighbourhoods(before), self._log_neighbourhoods(after)
        Q, P, total = log_q.exp(), log_p.exp(), 0.0
        power_q, power_p = Q, P
        for level in range(1, self.levels + 1):
            if level > 1:
                power_q, power_p = power_q @ Q, power_p @ P
                log_q, log_p = _log(power_q), _log(power_p)
            middle = (power_q + power_p) / 2
            # from the mixture to its parts, as the authors' code has it, not the other way as in Jensen-Shannon
            total = total + (middle * (_log(middle) - (log_q + log_p) / 2)).sum(dim=1).mean() / level
        return total / self.levels

    def _log_neighbourhoods(self, Z):
        Z = Z - Z.mean(dim=0)
        return (Z @ Z.T / self.temperature).log_softmax(dim=1)


class PairsAndNeighbours(nn.Module):
    """``SigLIP(x, y) + weight_y SigLIP(x, y') + weight_x SigLIP(x', y)`` with random neighbours x' of x and y' of y (NNCLR)."""

    terms = ("loss", "siglip")
    takes_unpaired = False

    def __init__(self, views, n_neighbors: int, weight_x: float, weight_y: float):
        super().__init__()
        self.siglip, self.weight_x, self.weight_y = _SigLIP(), weight_x, weight_y
        self.pool_x, own_x = _pool(views.A, views.pairs[:, 0], views.X)
        self.pool_y, own_y = _pool(views.B, views.pairs[:, 1], views.Y)
        self.near_x = _nearest(self.pool_x, own_x, n_neighbors)
        self.near_y = _nearest(self.pool_y, own_y, n_neighbors)

    def forward(self, embed_x, embed_y, batch):
        F, G = embed_x(batch.A), embed_y(batch.B)
        loss = supervised = self.siglip(F @ G.T, batch.matches)
        if self.weight_y:
            loss = loss + self.weight_y * self.siglip(
                F @ embed_y(self._one_of(self.pool_y, self.near_y, batch)).T, batch.matches
            )
        if self.weight_x:
            loss = loss + self.weight_x * self.siglip(
                embed_x(self._one_of(self.pool_x, self.near_x, batch)) @ G.T, batch.matches
            )
        return {"loss": loss, "siglip": supervised}

    @staticmethod
    def _one_of(pool, near, batch):
        near = near[batch.at]
        choice = torch.randint(near.shape[1], (len(near), 1), generator=batch.generator).to(near.device)
        return pool[near.gather(1, choice)[:, 0]]


class PairsAndPseudoCaptions(nn.Module):
    """InfoNCE on pairs, and unpaired rows that learn the partners of the paired rows they resemble (S-CLIP, captions).

    An unpaired row u of X has a distribution over the paired rows of X, by transport ("ot"), softmax ("soft") or the nearest
    alone ("hard"), of their cosines; its cross-entropy with the softmax of the cosines of f(u) and g(B) is added.
    """

    terms = ("loss", "info_nce", "pseudo")
    takes_unpaired = True

    def __init__(self, weight_x: float, weight_y: float, labels: str):
        super().__init__()
        self.weight_x, self.weight_y, self.labels = weight_x, weight_y, labels
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0), dtype=torch.float32))

    def forward(self, embed_x, embed_y, batch):
        scale, F, G = self.log_scale.clamp(*_SCALES).exp(), embed_x(batch.A), embed_y(batch.B)
        supervised = _contrast(scale * (F @ G.T), batch.matches)
        pseudo = torch.zeros((), device=F.device)
        if self.weight_x and len(batch.X):
            pseudo = pseudo + self.weight_x * self._soft(scale, batch.X, batch.A, embed_x(batch.X) @ G.T)
        if self.weight_y and len(batch.Y):
            pseudo = pseudo + self.weight_y * self._soft(scale, batch.Y, batch.B, embed_y(batch.Y) @ F.T)
        return {"loss": supervised + pseudo, "info_nce": supervised, "pseudo": pseudo}

    def _soft(self, scale, rows, paired, K):
        with torch.no_grad():
            labels = self._distribution(normalize(rows, dim=1) @ normalize(paired, dim=1).T, float(scale))
        return -(labels * (scale * K).log_softmax(dim=1)).sum(dim=1).mean()

    def _distribution(self, K, scale):
        """Row by row, over the paired rows."""
        if self.labels == "hard":
            return one_hot(K.argmax(dim=1), K.shape[1]).to(K.dtype)
        if self.labels == "soft":
            return (scale * K).softmax(dim=1)
        return sinkhorn(K, 1 / scale, tol=1e-3).plan * len(K)


def _padded(matches, width):
    """Matches of the first columns; the others match nothing."""
    return pad(matches.float(), (0, width - matches.shape[1]))


def _contrast(logits, matches):
    """Symmetric InfoNCE; a row with several matches is to spread over them evenly."""
    targets = matches.to(logits.dtype)
    rows = (targets / targets.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    columns = (targets / targets.sum(dim=0) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return -(rows + columns) / 2


def _log(P):
    """Logarithm of what may be 0."""
    return P.clamp(min=torch.finfo(P.dtype).tiny).log()


def _pool(paired, samples, unpaired):
    """Each paired row once, though it may be in several pairs, then the unpaired ones; and which of them each pair has."""
    distinct, own = samples.unique(return_inverse=True)
    at = torch.empty_like(distinct).scatter_(0, own, torch.arange(len(own), device=own.device))  # in any of its pairs
    return torch.cat([paired[at], unpaired]), own


def _nearest(pool, own, n_neighbors):
    """Where the nearest rows of the pool are, by cosine, of each of its rows `own` (n,); not that row itself, (n, k)."""
    k = min(n_neighbors, max(len(pool) - 1, 1))  # a row that is alone is all there is
    unit_pool, found = normalize(pool, dim=1), []
    for rows in own.split(max(_ENTRIES // len(pool), 1)):
        K = unit_pool[rows] @ unit_pool.T
        found.append(K.scatter_(1, rows[:, None], -math.inf).topk(k, dim=1).indices)
    return torch.cat(found)
