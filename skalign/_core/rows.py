"""Row-wise preparation of a view. Knows NumPy, knows nothing of estimators or torch."""

import hashlib

import numpy as np


def normalize_rows(X, dtype=None):
    """Rows of X divided by their Euclidean length, in `dtype` (that of X if None); zero rows stay zero."""
    X = np.asarray(X, dtype=dtype)
    # the largest entry goes first, so that squares of huge or tiny rows neither overflow nor vanish
    X = X / _positive(np.maximum(X.max(axis=1), -X.min(axis=1)))[:, None]
    X /= _positive(np.sqrt(np.einsum("ij,ij->i", X, X)))[:, None]
    return X


def distinct_rows(rows):
    """Where rows that are equal bit by bit stand first, ascending, and which of these each row is."""
    number = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)  # which are less to hold
    of = np.array([number.setdefault(digest, len(number)) for digest in digests], dtype=np.int64)
    return np.unique(of, return_index=True)[1], of


def _positive(lengths):
    return np.where(lengths > 0, lengths, 1)
