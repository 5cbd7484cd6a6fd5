"""Exact search: brute force is the referee, blocks and ties included."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import search, search_torch


def with_torch(Q, G, k):
    found = search_torch.largest_products_torch(torch.from_numpy(Q), torch.from_numpy(G), k)
    return tuple(tensor.numpy() for tensor in found)


@pytest.fixture(params=[(search, search.largest_products), (search_torch, with_torch)], ids=["numpy", "torch"])
def way(request):
    """A module, and its search of arrays."""
    return request.param


@pytest.mark.parametrize("k", [1, 7, 90])
@pytest.mark.parametrize("sizes", [(256, 1 << 16), (4, 13), (50, 7), (1, 1)])
def test_it_finds_what_a_full_sort_finds(rng, monkeypatch, way, sizes, k):
    module, largest_products = way
    monkeypatch.setattr(module, "_QUERIES", sizes[0])
    monkeypatch.setattr(module, "_GALLERY", sizes[1])
    Q, G = rng.standard_normal((11, 5)), rng.standard_normal((90, 5))
    products, rows = largest_products(Q, G, k)
    expected = np.argsort(-(Q @ G.T), axis=1, kind="stable")[:, :k]
    assert_array_equal(rows, expected)
    assert_allclose(products, np.take_along_axis(Q @ G.T, expected, axis=1))


@pytest.mark.parametrize("block", [3, 100])
def test_among_equals_the_lower_row_comes_first(monkeypatch, way, block):
    module, largest_products = way
    monkeypatch.setattr(module, "_GALLERY", block)
    G = np.array([[0.0, 1.0], [1.0, 0.0]])[[0, 1, 1, 0, 1, 0, 1]].astype(np.float32)
    assert_array_equal(largest_products(G[1:2], G, 2)[1], [[1, 2]])
    assert_array_equal(largest_products(G[1:2], G, 5)[1], [[1, 2, 4, 6, 0]])


def test_no_query_finds_nothing(way):
    products, rows = way[1](np.empty((0, 3)), np.eye(3), 2)
    assert products.shape == rows.shape == (0, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_another_found_are_ranked_by_their_products(rng, dtype):
    Q, G = (rng.standard_normal((n, 5)).astype(dtype) for n in (11, 90))
    G[7] = G[60]
    expected_products, expected = search.largest_products(Q, G, 40)
    products, rows = search.products_of_rows(Q, G, rng.permuted(expected, axis=1))
    assert products.dtype == dtype
    assert_array_equal(rows, expected)
    assert_allclose(products, expected_products, rtol=1e-5, atol=1e-6)
