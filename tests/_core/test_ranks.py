"""Laws of the rank computation. Knows the core, knows nothing of estimators."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from skalign._core.ranks import best_match_ranks


def referee(F, G, pairs, cosine):
    """Queries, ranks and numbers of non-matches by plain loops."""
    queries, ranks, n_others = [], [], []
    for i in sorted({i for i, _ in pairs}):
        own = {j for q, j in pairs if q == i}
        best = max(cosine(F[i], G[j]) for j in own)
        others = [j for j in range(len(G)) if j not in own]
        queries.append(i)
        ranks.append(1 + sum(cosine(F[i], G[j]) >= best for j in others))
        n_others.append(len(others))
    return queries, ranks, n_others


def float_cosine(f, g):
    return sum(f * g) / (sum(f * f) * sum(g * g)) ** 0.5


def exact_cosine(f, g):
    """A rational number that orders gallery rows as their cosine with `f` does; exact for integer rows."""
    f, g = [int(v) for v in f], [int(v) for v in g]
    dot = sum(a * b for a, b in zip(f, g, strict=True))
    return Fraction(dot * abs(dot), sum(v * v for v in g) or 1)


def random_pairs(rng, n_f, n_g, p):
    return np.column_stack([rng.integers(n_f, size=p), rng.integers(n_g, size=p)])


@pytest.mark.parametrize("block_bytes", [1, 1000, 2**26])  # one query, a few (no divisor), all of them at once
@pytest.mark.parametrize(
    ("n_f", "n_g", "d", "p"), [(1, 1, 1, 1), (7, 11, 3, 5), (23, 17, 5, 60), (13, 40, 2, 13), (40, 3, 4, 100)]
)
def test_ranks_equal_plain_loops(rng, n_f, n_g, d, p, block_bytes):
    F, G = rng.normal(size=(n_f, d)), rng.normal(size=(n_g, d))
    pairs = random_pairs(rng, n_f, n_g, p)  # many-to-one, one-to-many and repeated pairs
    found = best_match_ranks(F, G, pairs, block_bytes=block_bytes)
    queries, ranks, n_others = referee(F, G, pairs, float_cosine)
    assert_array_equal(found.queries, queries)
    assert_array_equal(found.ranks, ranks)
    assert_array_equal(found.n_others, n_others)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_rounding_never_breaks_a_tie(data, dtype):
    rows = st.integers(1, 8)
    # cosines of such rows are equal or at least 1 / (2 * 27**3) = 2.5e-5 apart, which float32 can tell
    F = data.draw(arrays(np.int64, (data.draw(rows), 3), elements=st.integers(-3, 3)))
    G = data.draw(arrays(np.int64, (data.draw(rows), 3), elements=st.integers(-3, 3)))
    pair = st.tuples(st.integers(0, len(F) - 1), st.integers(0, len(G) - 1))
    pairs = data.draw(st.lists(pair, min_size=1, max_size=8))
    found = best_match_ranks(F.astype(dtype), G.astype(dtype), np.array(pairs))
    assert_array_equal(found.ranks, referee(F, G, pairs, exact_cosine)[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_copies_of_the_match_stand_before_it(rng, dtype):
    F = rng.normal(size=(50, 37)).astype(dtype)
    G = np.repeat(F, 3, axis=0)
    found = best_match_ranks(F, G, np.column_stack([np.arange(50), 3 * np.arange(50) + 1]))
    assert_array_equal(found.ranks, 3)


def test_constant_embeddings_take_the_last_rank():
    found = best_match_ranks(np.ones((7, 3)), np.ones((11, 3)), np.array([[0, 0], [1, 4], [1, 5], [6, 10]]))
    assert_array_equal(found.ranks, [11, 10, 11])
    assert_array_equal(found.fractions_closer, 1)


def test_zero_rows_are_equally_far_from_everything(rng):
    F, G = rng.normal(size=(3, 4)), rng.normal(size=(5, 4))
    F[1] = 0
    assert best_match_ranks(F, G, np.array([[1, 2]])).ranks == 5
    G[:] = -F[0]
    G[2] = 0  # cosine 0 beats cosine -1
    assert best_match_ranks(F, G, np.array([[0, 2]])).ranks == 1


def test_another_true_match_never_pushes_a_match_down():
    F = np.array([[1.0, 0.0]])
    G = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    for others, rank in (([], 3), ([1], 2), ([3], 3), ([1, 3], 2), ([0, 1], 1)):
        pairs = np.array([(0, j) for j in [2, *others]])
        assert best_match_ranks(F, G, pairs).ranks == rank


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lengths_of_rows_change_nothing(rng, dtype):
    F, G = rng.normal(size=(7, 3)).astype(dtype), rng.normal(size=(11, 3)).astype(dtype)
    pairs = random_pairs(rng, 7, 11, 15)
    limit = np.log10(np.finfo(dtype).max) - 2  # the square of such a row overflows, or is zero
    length_f, length_g = (10 ** rng.uniform(-limit, limit, size=(n, 1)).astype(dtype) for n in (7, 11))
    scaled = best_match_ranks(F * length_f, G * length_g, pairs)
    assert_array_equal(scaled.ranks, best_match_ranks(F, G, pairs).ranks)


def test_half_precision_is_computed_in_single(rng):
    F, G = rng.normal(size=(60, 16)).astype(np.float16), rng.normal(size=(300, 16)).astype(np.float16)
    pairs = random_pairs(rng, 60, 300, 90)
    half, single = best_match_ranks(F, G, pairs), best_match_ranks(F.astype(np.float32), G.astype(np.float32), pairs)
    assert_array_equal(half.ranks, single.ranks)


@pytest.mark.parametrize(
    ("dtype", "gap", "rank"),
    [(np.float32, 5e-5, 1), (np.float32, 5e-7, 2), (np.float64, 5e-13, 1), (np.float64, 5e-16, 2)],
)
def test_precision_decides_what_is_a_tie(dtype, gap, rank):
    F = np.array([[1.0, 0.0]], dtype=dtype)
    G = np.array([[1.0, 0.0], [1.0, np.sqrt(2 * gap)]], dtype=dtype)  # cosines 1 and 1 - gap
    assert best_match_ranks(F, G, np.array([[0, 0]])).ranks == rank


def test_views_are_left_as_they_were(rng):
    F, G = rng.normal(size=(7, 3)), rng.normal(size=(11, 3))
    before = F.copy(), G.copy()
    best_match_ranks(F, G, random_pairs(rng, 7, 11, 9))
    assert_array_equal(F, before[0])
    assert_array_equal(G, before[1])


def test_fraction_closer_is_zero_where_every_gallery_row_is_a_match():
    found = best_match_ranks(np.eye(2), np.eye(2), np.array([[0, 0], [0, 1], [1, 0]]))
    assert_array_equal(found.n_others, [0, 1])
    assert_allclose(found.fractions_closer, [0, 1])


def test_pair_past_the_end_is_refused():
    with pytest.raises(IndexError):
        best_match_ranks(np.eye(3), np.eye(3), np.array([[0, 3]]))


def test_memory_is_bound_by_the_block(rng):
    n = 20_000  # all scores at once would take 1.6 GB
    F = rng.normal(size=(n, 2)).astype(np.float32)
    pairs = np.column_stack([np.arange(n), np.arange(n)])
    tracemalloc.start()
    try:
        best_match_ranks(F, F, pairs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20  # the block and its comparison, 64 + 16 MiB, and the views
