"""Approximate search: each library finds what exact search finds, keeps it in a file, and says so where it does not."""

import pickle
import sys

import numpy as np
import pytest
from helpers import INDEXES as NAMES
from numpy.testing import assert_array_equal

from skalign._core.search import largest_products
from skalign._indexes import INDEXES


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def clustered(rng, n, d=24):
    """Unit rows around 30 centres, float64."""
    rows = rng.standard_normal((30, d))[rng.integers(30, size=n)] + 0.5 * rng.standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_it_finds_what_exact_search_finds(rng, name):
    rows = clustered(rng, 3100)
    Q, G = rows[:100], rows[100:]
    expected = largest_products(Q, G, 10)[1]
    found = INDEXES[name]().fit(G).kneighbors(Q, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, expected, strict=True)]) >= 0.95


@pytest.mark.parametrize("n_queries", [1, 5])
def test_it_takes_a_gallery_of_any_size_and_finds_all_of_it(rng, name, n_queries):
    for n in (1, 2, 40):
        found = INDEXES[name]().fit(clustered(rng, n)).kneighbors(clustered(rng, n_queries), n)
        assert_array_equal(np.sort(found.astype(np.int64), axis=1), np.tile(np.arange(n), (n_queries, 1)))


def test_one_thread_builds_the_same_graph_twice_and_a_file_keeps_it(rng, name):
    G, Q = rng.standard_normal((2000, 16)), rng.standard_normal((50, 16))  # no structure, where graphs would differ
    fitted = [INDEXES[name]().fit(G) for _ in range(2)]
    restored = pickle.loads(pickle.dumps(fitted[0]))
    expected = fitted[0].kneighbors(Q, 150)
    assert_array_equal(fitted[1].kneighbors(Q, 150), expected)
    assert_array_equal(restored.kneighbors(Q, 150), expected)


def test_threads_find_the_same_in_a_given_graph(rng, name):
    rows = clustered(rng, 600)
    index = INDEXES[name](n_jobs=2).fit(rows[100:])
    expected = index.kneighbors(rows[:100], 10)
    index.n_jobs = 1
    assert_array_equal(index.kneighbors(rows[:100], 10), expected)


def test_where_a_graph_falls_apart_rows_are_negative_and_none_comes_twice(name):
    G = np.tile([[1.0, 0.0, 0.0]], (3000, 1))  # equal rows: a node keeps links to few of them
    found = INDEXES[name]().fit(G).kneighbors(np.eye(3), 1500).astype(np.int64)
    assert found.shape == (3, 1500)
    assert (found < 0).any()
    for rows in found:
        assert len(set(rows[rows >= 0])) == np.count_nonzero(rows >= 0)


def test_a_missing_library_is_named_with_its_extra(name, monkeypatch):
    for module in (name, f"{name}.index"):
        monkeypatch.setitem(sys.modules, module, None)
    extra = "hnswlib" if name == "hnswlib" else "index"
    with pytest.raises(ImportError, match=rf'index="{name}" needs the library {name}.*skalign\[{extra}\]'):
        INDEXES[name]().fit(np.eye(3))
