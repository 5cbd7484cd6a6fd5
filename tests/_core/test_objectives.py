"""Laws of the training objectives. Knows torch, knows nothing of estimators."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn.functional import normalize

from skalign._core import objectives
from skalign._core.losses import siglip
from skalign._core.objectives import Batch
from skalign._core.training import TrainingViews

N, U, V = 5, 7, 6  # pairs, unpaired rows of X and of Y


@pytest.fixture
def batch(rng):
    """Rows of both views, 4 and 3 wide, in float64; row 2 of A belongs to rows 2 and 3 of B."""
    sizes = {"A": (N, 4), "B": (N, 3), "X": (U, 4), "Y": (V, 3)}
    matches = torch.eye(N, dtype=torch.bool)
    matches[2, 3] = True
    return Batch(
        **{name: torch.from_numpy(rng.normal(size=size)) for name, size in sizes.items()},
        matches=matches,
        at=slice(None),
    )


@pytest.fixture
def embeddings(rng):
    """Two linear maps to unit rows of width 3."""
    maps = [torch.from_numpy(rng.normal(size=(d, 3))) for d in (4, 3)]
    return tuple(lambda rows, W=W: normalize(rows @ W, dim=1) for W in maps)


def sigmoid_loss(K, matches, n):
    """SigLIP at scale 20 and bias -10, entry by entry, over the number of pairs."""
    total = 0.0
    for k, is_match in zip(np.ravel(K), np.ravel(matches), strict=True):
        total += math.log1p(math.exp(-(20 * k - 10) if is_match else 20 * k - 10))
    return total / n


def contrast(logits, matches):
    """Symmetric InfoNCE, row by row and column by column."""
    means = []
    for L, M in ((logits, matches), (logits.T, matches.T)):
        log_p = L - np.log(np.exp(L).sum(axis=1, keepdims=True))
        means.append(np.mean([-log_p[i][M[i]].mean() for i in range(len(L))]))
    return np.mean(means)


def test_pairs_against_all_takes_unpaired_rows_as_negatives(batch, embeddings):
    F_pairs, F_free = (embeddings[0](Z).numpy() for Z in (batch.A, batch.X))
    G_pairs, G_free = (embeddings[1](Z).numpy() for Z in (batch.B, batch.Y))
    matches = batch.matches.numpy()
    x_to_y = sigmoid_loss(F_pairs @ G_pairs.T, matches, N) + sigmoid_loss(F_pairs @ G_free.T, np.zeros((N, V)), N)
    y_to_x = sigmoid_loss(G_pairs @ F_pairs.T, matches.T, N) + sigmoid_loss(G_pairs @ F_free.T, np.zeros((N, U)), N)
    found = objectives.PairsAgainstAll().double()(*embeddings, batch)
    assert_allclose(found["loss"].detach(), (x_to_y + y_to_x) / 2, **LAW[np.float64])


@pytest.mark.parametrize("levels", [1, 3])
def test_structure_compares_neighbourhoods_before_and_after(batch, embeddings, levels):
    def steps(Z):
        Z = Z - Z.mean(axis=0)
        Q = np.exp(Z @ Z.T / 0.3)
        return Q / Q.sum(axis=1, keepdims=True)

    def change(before, after):
        total = 0.0
        for level in range(1, levels + 1):
            Q, P = (np.linalg.matrix_power(steps(Z), level) for Z in (before, after))
            M = (Q + P) / 2
            total += sum((M * np.log(M / part)).sum(axis=1).mean() for part in (Q, P)) / (2 * level)
        return total / levels

    rows = torch.cat([batch.A, batch.X]), torch.cat([batch.B, batch.Y])
    F, G = (embed(Z).numpy() for embed, Z in zip(embeddings, rows, strict=True))
    structure = (change(rows[0].numpy(), F) + change(rows[1].numpy(), G)) / 2
    supervised = contrast(F[:N] @ G[:N].T / 0.3, batch.matches.numpy())
    found = objectives.PairsAndStructure(2.5, levels, 0.3)(*embeddings, batch)
    assert_allclose(found["structure"], structure, **LAW[np.float64])
    assert_allclose(found["info_nce"], supervised, **LAW[np.float64])
    assert_allclose(found["loss"], supervised + 2.5 * structure, **LAW[np.float64])


def test_structure_that_is_kept_costs_nothing(batch):
    rotation = torch.linalg.qr(batch.A.T @ batch.A).Q
    kept = objectives.PairsAndStructure(1.0, 2, 0.05)._change(batch.X, batch.X @ rotation + 3)
    assert_allclose(kept, 0, **LAW[np.float64])


@pytest.mark.parametrize("levels", [1, 2])
def test_structure_has_a_gradient_where_neighbourhoods_underflow(batch, levels):
    after = (2 * batch.X.roll(1, 0)).float().requires_grad_()
    change = objectives.PairsAndStructure(1.0, levels, 1e-4)._change(batch.X.float(), after)
    change.backward()
    assert math.isfinite(change.detach())
    assert after.grad.isfinite().all()


@pytest.mark.parametrize("entries", [1, 100, 1 << 22])  # one row at a time, some, all
def test_neighbours_are_the_nearest_other_rows(entries, monkeypatch):
    """Rows on a circle, in float32: the nearest are those beside, however close."""
    monkeypatch.setattr(objectives, "_ENTRIES", entries)
    angles = torch.cumsum(torch.linspace(0.03, 0.06, 50, dtype=torch.float64), 0)  # each gap wider than the one before
    pool = torch.stack([angles.cos(), angles.sin()], dim=1).float()
    own = torch.arange(1, 49)
    assert objectives._nearest(pool, own, 1)[:, 0].tolist() == list(range(48))
    everything = objectives._nearest(pool, own, 1000)
    assert everything.shape == (48, 49)
    for row, near in zip(own.tolist(), everything.tolist(), strict=True):
        assert sorted(near) == [i for i in range(50) if i != row]


def test_a_row_that_is_alone_is_its_own_neighbour():
    assert objectives._nearest(torch.ones(1, 3), torch.zeros(2, dtype=torch.long), 4).tolist() == [[0], [0]]


def test_a_sample_in_several_pairs_is_once_in_the_pool():
    samples = torch.tensor([4, 4, 7, 2, 7])
    rows = samples[:, None].double() + torch.arange(3)
    pool, own = objectives._pool(rows, samples, torch.full((2, 3), 9.0, dtype=torch.float64))
    assert_array_equal(pool[:, 0], [2, 4, 7, 9, 9])
    assert_array_equal(pool[own], rows)


def with_neighbours(batch, n_neighbors=1, weight_x=0.3, weight_y=0.7):
    """The objective on these pairs, every row a sample of its own, and the pools of both views."""
    pairs = torch.arange(N)[:, None].expand(-1, 2)
    views = TrainingViews(A=batch.A, B=batch.B, pairs=pairs, X=batch.X, Y=batch.Y)
    pools = torch.cat([batch.A, batch.X]), torch.cat([batch.B, batch.Y])
    return objectives.PairsAndNeighbours(views, n_neighbors, weight_x, weight_y).double(), pools


@pytest.mark.parametrize("rows", [slice(None), [3, 0]])  # all pairs, and a batch of them
def test_neighbours_stand_in_for_their_rows(batch, embeddings, rows):
    objective, pools = with_neighbours(batch)
    at = rows if isinstance(rows, slice) else torch.tensor(rows)
    A, B, matches = batch.A[at], batch.B[at], batch.matches[at][:, at]
    near = [pool[objectives._nearest(pool, torch.arange(N), 1)[at, 0]] for pool in pools]
    F, G, F_near, G_near = (embed(Z).numpy() for embed, Z in zip(embeddings * 2, (A, B, *near), strict=True))
    losses = [sigmoid_loss(K, matches.numpy(), len(A)) for K in (F @ G.T, F_near @ G.T, F @ G_near.T)]
    found = objective(*embeddings, Batch(A=A, B=B, matches=matches, at=at))
    assert_allclose(found["siglip"].detach(), losses[0], **LAW[np.float64])
    assert_allclose(found["loss"].detach(), np.dot([1, 0.3, 0.7], losses), **LAW[np.float64])


def test_every_neighbour_is_drawn(batch):
    objective, _ = with_neighbours(batch, n_neighbors=3)
    drawn = torch.stack([objective._one_of(objective.pool_x, objective.near_x, batch) for _ in range(200)])
    for i, near in enumerate(objective.near_x):
        assert {tuple(row) for row in drawn[:, i].tolist()} == {tuple(row) for row in objective.pool_x[near].tolist()}


@pytest.mark.parametrize("labels", ["ot", "soft", "hard"])
def test_unpaired_rows_learn_the_partners_of_what_they_resemble(batch, embeddings, labels):
    def unit(Z):
        return Z / np.linalg.norm(Z, axis=1, keepdims=True)

    def cross_entropy(rows, paired, logits):
        K = unit(rows.numpy()) @ unit(paired.numpy()).T
        q = np.exp(20 * K)
        if labels == "ot":  # a plain Sinkhorn loop
            for _ in range(2000):
                q /= q.sum(axis=0) * len(paired)
                q /= q.sum(axis=1, keepdims=True) * len(rows)
        if labels == "hard":
            q = (K.max(axis=1, keepdims=True) == K).astype(float)
        q /= q.sum(axis=1, keepdims=True)
        return -(q * (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))).sum(axis=1).mean()

    F, G = embeddings[0](batch.A).numpy(), embeddings[1](batch.B).numpy()
    in_x = cross_entropy(batch.X, batch.A, 20 * embeddings[0](batch.X).numpy() @ G.T)
    in_y = cross_entropy(batch.Y, batch.B, 20 * embeddings[1](batch.Y).numpy() @ F.T)
    found = objectives.PairsAndPseudoCaptions(0.3, 0.7, labels).double()(*embeddings, batch)
    tolerance = {"rtol": 5e-3} if labels == "ot" else LAW[np.float64]  # the plan is solved to 1e-3
    assert_allclose(found["pseudo"].detach(), 0.3 * in_x + 0.7 * in_y, **tolerance)
    assert_allclose(found["info_nce"].detach(), contrast(20 * F @ G.T, batch.matches.numpy()), **LAW[np.float64])
    assert_allclose(found["loss"].detach(), (found["info_nce"] + found["pseudo"]).detach())


def test_the_learned_scale_of_pseudo_captions_stays_where_plans_can_be_solved(batch, embeddings):
    objective = objectives.PairsAndPseudoCaptions(1.0, 1.0, "ot").double()
    objective.log_scale.data.fill_(1000.0)
    far = objective(*embeddings, batch)["loss"]
    objective.log_scale.data.fill_(math.log(100))
    assert_allclose(far.detach(), objective(*embeddings, batch)["loss"].detach(), **LAW[np.float64])


@pytest.mark.parametrize(
    "make",
    [
        objectives.PairsAgainstAll,
        lambda: objectives.PairsAndStructure(1.0, 1, 0.05),
        lambda: objectives.PairsAndPseudoCaptions(1.0, 1.0, "ot"),
    ],
)
def test_without_unpaired_rows_the_pairs_are_left(batch, embeddings, make):
    empty = {"X": batch.X[:0], "Y": batch.Y[:0]}
    terms = make().double()(*embeddings, Batch(**vars(batch) | empty))
    assert tuple(terms) == make().terms
    assert all(math.isfinite(term.detach()) for term in terms.values())


def test_the_divergence_sees_unpaired_rows_and_the_teacher_only_with_alpha(batch, embeddings):
    seen = []

    def divergence(F, G, F_teacher, G_teacher, same_rows):
        seen.append((F, G, F_teacher, G_teacher, same_rows))
        return F.sum()

    teacher = SimpleNamespace(F=batch.X[:, :2], G=batch.Y[:, :2])
    with_teacher = Batch(**vars(batch) | {"F_teacher": teacher.F, "G_teacher": teacher.G, "same_rows": True})
    terms = objectives.PairsAndTeacher(0.5, divergence).double()(*embeddings, with_teacher)
    F, G = embeddings[0](batch.X), embeddings[1](batch.Y)
    assert [torch.equal(a, b) for a, b in zip(seen[0][:4], (F, G, teacher.F, teacher.G), strict=True)] == 4 * [True]
    assert seen[0][4] is True
    supervised = siglip(embeddings[0](batch.A) @ embeddings[1](batch.B).T, batch.matches, 20.0, -10.0)
    assert_allclose(terms["loss"].detach(), supervised + 0.5 * F.sum(), **LAW[np.float32])
    assert objectives.PairsAndTeacher(0.0, divergence)(*embeddings, batch)["divergence"] == 0
    assert len(seen) == 1
