"""Laws of affinities, stored or as products of features. Knows torch, knows nothing of transport or estimators."""

import math

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import affinity as module
from skalign._core.affinity import FactoredAffinity, StoredAffinity, check_features, full_precision


@pytest.fixture
def both(rng):
    """The same 7 x 11 matrix, stored and factored."""
    F, G = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (7, 11))
    return StoredAffinity(F @ G.T), FactoredAffinity(F, G)


@pytest.mark.parametrize("block", [1, 25, 10**6])
def test_blocks_make_the_matrix(both, rng, block, monkeypatch):
    monkeypatch.setattr(module, "_STORED_BLOCK", block)
    monkeypatch.setattr(module, "_FACTORED_BLOCK", block)
    offset = torch.from_numpy(rng.normal(size=11))
    for kind in both:
        scratch = kind.scratch()
        found = [
            kind.scaled_rows(rows, 3.0, offset, out=scratch[: rows.stop - rows.start]).clone()
            for rows in kind.row_blocks()
        ]
        assert_allclose(torch.cat(found), 3 * both[0].K + offset, **LAW[np.float64])
        assert max(len(rows) for rows in found) <= max(1, block // 11)


def test_blocks_are_large_on_a_device_without_such_caches():
    F = torch.empty(1 << 14, 3, device="meta")
    for kind in (FactoredAffinity(F, F), StoredAffinity(torch.empty(1 << 14, 1 << 14, device="meta"))):
        assert [rows.stop - rows.start for rows in kind.row_blocks()] == 16 * [1 << 10]


def test_transposing_and_selecting_commute_with_forming_the_matrix(both):
    K = both[0].K
    rows, columns = torch.tensor([True, False] * 3 + [True]), slice(None, None, 4)
    for kind in both:
        for part, expected in ((kind.transposed(), K.T), (kind.select(rows, columns), K[rows][:, columns])):
            assert part.shape == expected.shape
            found = part.scaled_rows(slice(None), 1.0, torch.zeros(part.shape[1], dtype=K.dtype))
            assert_allclose(found, expected, **LAW[np.float64])


def test_spread_is_the_range_or_bounds_it(both):
    stored, factored = both
    width = float(stored.K.max() - stored.K.min())
    assert stored.spread == stored.typical_spread == width
    assert factored.spread >= width
    assert_allclose(factored.typical_spread, width, **LAW[np.float64])  # few rows are their own sample


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    bad = torch.eye(3)
    bad[1, 2] = value
    with pytest.raises(ValueError, match="affinity holds NaN or infinity"):
        StoredAffinity.checked(bad)
    for views in ((bad, torch.eye(3)), (torch.eye(3), bad)):
        with pytest.raises(ValueError, match="features hold NaN or infinity"):
            check_features(*views)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_lifted_and_both_views_share_a_type(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert StoredAffinity.checked(torch.eye(3, dtype=dtype)).dtype == expected
    F, G = check_features(torch.eye(3, dtype=dtype), torch.eye(3, dtype=torch.float64))
    assert F.dtype == G.dtype == expected
    assert_array_equal(G, torch.eye(3))


def test_full_precision_puts_back_what_was_set():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(KeyError), full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
