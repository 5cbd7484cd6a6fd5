"""Ranks of the true matches by cosine, block by block. Knows NumPy, knows nothing of estimators or torch."""

from dataclasses import dataclass

import numpy as np

from .rows import normalize_rows

_BLOCK_BYTES = 64 * 2**20
_TIE_EPS = 32  # BLAS may give identical gallery rows scores that differ by a few eps


@dataclass(frozen=True)
class MatchRanks:
    """Where each query finds its best true match.

    Attributes
    ----------
    queries : ndarray of int, shape (q,)
        Distinct rows of F that stand in a pair, ascending.
    ranks : ndarray of int, shape (q,)
        One-based rank of the best true match, between 1 and ``n_others + 1``.
    n_others : ndarray of int, shape (q,)
        Number of gallery rows that are no match of the query.
    """

    queries: np.ndarray
    ranks: np.ndarray
    n_others: np.ndarray

    @property
    def fractions_closer(self):
        """Share of the non-matching rows that stand before the best true match, shape (q,); 0 where there are none."""
        return (self.ranks - 1) / np.maximum(self.n_others, 1)


def best_match_ranks(F, G, pairs, *, block_bytes=_BLOCK_BYTES):
    """Rank of every query's best true match among all rows of the gallery.

    With the cosine :math:`c_{ij}` and the true matches :math:`M_i` of query i,

    .. math:: r_i = 1 + |\\{j \\notin M_i : c_{ij} \\ge \\max_{m \\in M_i} c_{im} - 32\\,\\mathrm{eps}\\}|

    so another true match never pushes a match down, and a tie counts against the model.

    Parameters
    ----------
    F : ndarray of shape (n_f, d)
        Queries, finite. Rows are normalised here; a zero row has cosine 0 with everything.
    G : ndarray of shape (n_g, d)
        Gallery, finite, normalised the same way.
    pairs : ndarray of int, shape (p, 2)
        Rows (of F, of G) that belong together; a row may stand in several pairs.
    block_bytes : int, default=64 MiB
        Bound on the block of scores held at once; one query always fits.

    Returns
    -------
    matches : MatchRanks
        Computed in float32 for float32 and float16, in float64 for float64.

    Raises
    ------
    IndexError
        If a pair names a row past the end; legal pairs are the business of ``_pairs.check_pairs``.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign._core.ranks import best_match_ranks
    >>> F = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> G = np.array([[2.0, 0.1], [1.0, 0.0], [0.0, 3.0]])
    >>> best_match_ranks(F, G, np.array([[0, 0], [1, 2]])).ranks
    array([2, 1])
    """
    dtype = np.result_type(F.dtype, G.dtype, np.float32)
    pairs = np.unique(pairs, axis=0)  # sorted by query, so the matches of one query are neighbours
    queries, first, n_matches = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    F, G = normalize_rows(F[queries], dtype), normalize_rows(G, dtype)
    ranks = np.empty(len(queries), dtype=np.int64)
    step = max(1, block_bytes // (len(G) * dtype.itemsize))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        ranks[block] = _block_ranks(F[block] @ G.T, n_matches[block], pairs[first[start] :, 1])
    return MatchRanks(queries=queries, ranks=ranks, n_others=len(G) - n_matches)


def _block_ranks(scores, n_matches, matches):
    """Ranks from a block of scores (b, n_g), which is overwritten; `matches` starts with its true columns by row."""
    rows = np.repeat(np.arange(len(scores)), n_matches)
    columns = matches[: len(rows)]
    best = np.maximum.reduceat(scores[rows, columns], np.cumsum(n_matches) - n_matches)  # (b,)
    scores[rows, columns] = -np.inf  # a true match never pushes another one down
    threshold = best - _TIE_EPS * np.finfo(scores.dtype).eps
    return 1 + np.count_nonzero(scores >= threshold[:, None], axis=1)


def recalls(F, G, pairs, ks=(1, 5, 10), weights=(None, None)):
    """R@k of both directions.

    Parameters
    ----------
    F, G, pairs : see `best_match_ranks`
    ks : sequence of int
        How many nearest rows count.
    weights : pair of ndarray or None
        Weights of the distinct paired rows of F and of G, ascending, as queries.

    Returns
    -------
    recalls : ndarray of shape (2, len(ks))
        Fractions; first F asking G, then G asking F.
    """
    found = best_match_ranks(F, G, pairs), best_match_ranks(G, F, pairs[:, ::-1])
    return np.array([[np.average(f.ranks <= k, weights=w) for k in ks] for f, w in zip(found, weights, strict=True)])
