"""Laws of the maximum mean discrepancy and of the network that lowers it. Knows torch, knows nothing of estimators."""

import numpy as np
import torch
from helpers import LAW
from numpy.testing import assert_allclose

from skalign._core.mmd import ResidualNetwork, match_distribution, mean_squared_distance, mmd


def samples(rng, n=9, m=7, k=3):
    return torch.from_numpy(rng.normal(size=(n, k))), torch.from_numpy(rng.normal(size=(m, k)))


def test_mmd_is_the_mean_of_kernels(rng):
    F, G = samples(rng)
    Z = torch.cat([F, G]).numpy()
    width = np.mean([[np.sum((x - y) ** 2) for y in Z] for x in Z])
    assert_allclose(mean_squared_distance(F, G), width)

    def mean(A, B):
        return np.mean([[sum(np.exp(-np.sum((x - y) ** 2) / (s * width)) for s in (0.5, 1, 2)) for y in B] for x in A])

    assert_allclose(
        mmd(F, G, width), mean(F.numpy(), F.numpy()) + mean(G.numpy(), G.numpy()) - 2 * mean(F.numpy(), G.numpy())
    )


def test_mmd_of_a_sample_with_itself_is_zero_and_else_positive(rng):
    F, G = samples(rng)
    assert_allclose(mmd(F, F, 1.0), 0, **LAW[np.float64])
    assert mmd(F, G + 1, 1.0) > mmd(F, G, 1.0) > 0


def test_matching_undoes_a_shift(rng):
    F, G = (Z.float() for Z in samples(rng, 300, 200))
    torch.manual_seed(0)
    network = match_distribution(F + 2, G, n_epochs=30, batch_size=32, learning_rate=3e-3, seed=0)
    with torch.no_grad():
        moved = network(F + 2)
    width = mean_squared_distance(F, G)
    assert mmd(moved, G, width) < 0.1 * mmd(F + 2, G, width)
    assert_allclose(moved.mean(dim=0), G.mean(dim=0), atol=0.3)


def test_the_start_is_kept_if_nothing_is_better(rng):
    F, G = (Z.float() for Z in samples(rng, 100, 100))
    torch.manual_seed(0)
    expected = ResidualNetwork(3)(F)
    torch.manual_seed(0)
    worse = match_distribution(F, G, n_epochs=3, batch_size=32, learning_rate=100.0, seed=0)
    assert_allclose(worse(F).detach(), expected.detach())
