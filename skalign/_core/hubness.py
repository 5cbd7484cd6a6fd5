"""Hubness: how near rows are to all of the other view, and embeddings that take it off their cosines. Knows NumPy only."""

from typing import NamedTuple

import numpy as np

from .rows import normalize_rows

N_FURTHER = 4  # columns that the correction adds
_BLOCK = 1 << 22  # cosines held at a time


class LocalScaling(NamedTuple):
    """How near to the other view's anchors a row of either view is on average, and how embeddings tell.

    With r(x) the mean cosine of x to its nearest anchors of the other view, and r(y) likewise, CSLS ranks by
    ``2 cos(x, y) - r(x) - r(y)``: a row that is near to everything, a hub, is moved away. A quarter of it is the inner
    product of

        [F, -r / 2^0.5, 1 / 2^0.5, ((1 - r^2) / 2)^0.5, 0] / 2^0.5   with r = r(x), and
        [G, 1 / 2^0.5, -r / 2^0.5, 0, ((1 - r^2) / 2)^0.5] / 2^0.5   with r = r(y),

    which are unit rows if F and G are.

    x_anchors, y_anchors : unit rows of either view; n_neighbors : how many of them count as near.
    """

    x_anchors: np.ndarray
    y_anchors: np.ndarray
    n_neighbors: int

    @classmethod
    def fit(cls, F, G, n_neighbors):
        """From embedded rows of both views, which become the anchors; at most a tenth of them count as near."""
        return cls(normalize_rows(F), normalize_rows(G), n_local(n_neighbors, min(len(F), len(G))))

    def lift_x(self, F):
        """Unit rows of X with four more columns; zero rows stay zero."""
        F, own, one, rest = self._columns(F, self.y_anchors)
        return _joined(F, own, one, rest, np.zeros_like(rest))

    def lift_y(self, G):
        """Unit rows of Y with four more columns; zero rows stay zero."""
        G, own, one, rest = self._columns(G, self.x_anchors)
        return _joined(G, one, own, np.zeros_like(rest), rest)

    def _columns(self, rows, anchors):
        rows = normalize_rows(rows)
        own = -mean_of_nearest(rows, anchors.astype(rows.dtype, copy=False), self.n_neighbors) / 2**0.5
        return rows, own, np.full_like(own, 0.5**0.5), np.sqrt((0.5 - own**2).clip(0))


def _joined(rows, *columns):
    lifted = np.column_stack([rows, *columns]) / 2**0.5
    lifted[~rows.any(axis=1)] = 0
    return lifted.astype(rows.dtype, copy=False)


def n_local(n_neighbors, n_anchors):
    """At most a tenth of the anchors, rounded up, can count as near."""
    return min(n_neighbors, -(-n_anchors // 10))


def mean_of_nearest(rows, anchors, n_neighbors):
    """Mean cosine to the nearest anchors, for unit rows."""

    def mean(cosines):
        return np.partition(cosines, -n_neighbors, axis=1)[:, -n_neighbors:].mean(axis=1)

    return _of_cosines(mean, rows, anchors)


def soft_maximum(rows, anchors, temperature):
    """``T log mean exp(cos / T)`` over all anchors, for unit rows: from their mean (T large) to their maximum (T small)."""

    def log_mean_exp(cosines):
        top = cosines.max(axis=1, keepdims=True)
        return top[:, 0] + temperature * np.log(np.exp((cosines - top) / temperature).mean(axis=1))

    return _of_cosines(log_mean_exp, rows, anchors)


def _of_cosines(summary, rows, anchors):
    """A number for each row from its cosines to all anchors, which are computed block by block."""
    numbers = np.empty(len(rows), dtype=rows.dtype)
    step = max(1, _BLOCK // len(anchors))
    for start in range(0, len(rows), step):
        numbers[start : start + step] = summary(rows[start : start + step] @ anchors.T)
    return numbers


def lift_gallery(G, hubness):
    """Rows whose inner product with those of `lift_queries`, times a scale, is ``q @ g - hubness``; and the scale.

    They are unit rows if those of G are, so that an index may rank by inner product, cosine or Euclidean distance alike.
    """
    bound = np.abs(hubness).max()
    length = np.sqrt(1 + bound**2)
    lifted = np.column_stack([G, -hubness, np.sqrt((bound**2 - hubness**2).clip(0))]) / length
    return lifted, float(2**0.5 * length)


def lift_queries(Q):
    """Unit rows of two more columns, for a lifted gallery."""
    one = np.ones(len(Q), dtype=Q.dtype)
    return np.column_stack([Q, one, 0 * one]) / 2**0.5
