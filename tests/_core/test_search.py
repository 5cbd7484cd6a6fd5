"""Exact search: brute force is the referee, blocks and ties included."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core import search


@pytest.mark.parametrize("k", [1, 7, 90])
@pytest.mark.parametrize("sizes", [(256, 1 << 16), (4, 13), (50, 7), (1, 1)])
def test_it_finds_what_a_full_sort_finds(rng, monkeypatch, sizes, k):
    monkeypatch.setattr(search, "_QUERIES", sizes[0])
    monkeypatch.setattr(search, "_GALLERY", sizes[1])
    Q, G = rng.standard_normal((11, 5)), rng.standard_normal((90, 5))
    products, rows = search.largest_products(Q, G, k)
    expected = np.argsort(-(Q @ G.T), axis=1, kind="stable")[:, :k]
    assert_array_equal(rows, expected)
    assert_allclose(products, np.take_along_axis(Q @ G.T, expected, axis=1))


@pytest.mark.parametrize("block", [3, 100])
def test_among_equals_the_lower_row_comes_first(monkeypatch, block):
    monkeypatch.setattr(search, "_GALLERY", block)
    G = np.array([[0.0, 1.0], [1.0, 0.0]])[[0, 1, 1, 0, 1, 0, 1]].astype(np.float32)
    assert_array_equal(search.largest_products(G[1:2], G, 5)[1], [[1, 2, 4, 6, 0]])


def test_no_query_finds_nothing():
    products, rows = search.largest_products(np.empty((0, 3)), np.eye(3), 2)
    assert products.shape == rows.shape == (0, 2)
