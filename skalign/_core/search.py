"""Exact search for the nearest rows by inner product, block by block. Knows NumPy only."""

import numpy as np

_QUERIES, _GALLERY = 256, 1 << 16  # rows of either side in a block: 64 MiB of float32 products


def largest_products(Q, G, k):
    """The k rows of G with the largest inner products with each row of Q.

    Parameters
    ----------
    Q, G : ndarray of shape (q, d) and (n, d), of one type
    k : int
        At most n.

    Returns
    -------
    products : ndarray of shape (q, k)
        Descending.
    rows : ndarray of int64, shape (q, k)
        Of G; among equal products the lower row comes first.
    """
    products, rows = np.empty((len(Q), k), dtype=Q.dtype), np.empty((len(Q), k), dtype=np.int64)
    for start in range(0, len(Q), _QUERIES):
        some = slice(start, start + _QUERIES)
        products[some], rows[some] = _of_a_block(Q[some], G, k)
    return products, rows


def products_of_rows(Q, G, rows):
    """The inner products of each row of Q with rows of G that another found for it, in the order of `largest_products`.

    Parameters
    ----------
    Q, G : ndarray of shape (q, d) and (n, d), of one type
    rows : ndarray of int64, shape (q, k)
        Of G.

    Returns
    -------
    products : ndarray of shape (q, k)
        Descending.
    rows : ndarray of int64, shape (q, k)
        Those given; among equal products the lower row comes first.
    """
    products, ordered = np.empty(rows.shape, dtype=Q.dtype), np.empty_like(rows)
    for query, found in enumerate(rows):
        values = np.einsum("ij,j->i", G[found], Q[query])  # unlike BLAS, the same for equal rows wherever they stand
        order = np.lexsort((found, -values))
        products[query], ordered[query] = values[order], found[order]
    return products, ordered


def _of_a_block(Q, G, k):
    """Walk through the gallery; only what beats the k-th best so far is looked at."""
    best = np.full((len(Q), k), -np.inf, dtype=Q.dtype)
    found = np.full((len(Q), k), len(G), dtype=np.int64)
    for start in range(0, len(G), _GALLERY):
        block = Q @ G[start : start + _GALLERY].T
        if start == 0 and block.shape[1] > k:
            candidates = block >= np.partition(block, -k, axis=1)[:, -k, None]
        else:
            candidates = block > best[:, -1:]
        for query in np.flatnonzero(candidates.any(axis=1)):
            columns = np.flatnonzero(candidates[query])
            values = np.concatenate([best[query], block[query, columns]])
            rows = np.concatenate([found[query], start + columns])
            order = np.lexsort((rows, -values))[:k]
            best[query], found[query] = values[order], rows[order]
    return best, found
