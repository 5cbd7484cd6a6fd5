"""Hubness correction that embeddings carry themselves: cosines that rank as CSLS does. Knows NumPy only."""

from typing import NamedTuple

import numpy as np

from .rows import normalize_rows

N_FURTHER = 4  # columns that the correction adds
_BLOCK = 1 << 22  # cosines held at a time


class LocalScaling(NamedTuple):
    """How near to the other view's anchors a row of either view is on average, and how embeddings tell.

    With r(x) the mean cosine of x to its nearest anchors of the other view, CSLS ranks by ``cos(x, y) - r(x)/2 - r(y)/2``: a
    row that is near to everything, a hub, is moved away. Unit rows of four more columns have just that inner product:

        [F, -p/c, c, sqrt(h - p^2/h), 0] / R   and   [G, c, -q/c, 0, sqrt(h - q^2/h)] / R

    with p = r(x)/2 and q = r(y)/2 less a constant, both within [-h, h], c^2 = h and R^2 = 1 + 2h.

    x_anchors, y_anchors : unit rows of either view; n_neighbors : how many of them count as near; x_middle, y_middle : the
    constants taken from p and q; reach : h.
    """

    x_anchors: np.ndarray
    y_anchors: np.ndarray
    n_neighbors: int
    x_middle: float
    y_middle: float
    reach: float

    @classmethod
    def fit(cls, F, G, n_neighbors):
        """From embedded rows of both views, which become the anchors; at most a tenth of them count as near."""
        F, G = normalize_rows(F), normalize_rows(G)
        n_neighbors = min(n_neighbors, -(-min(len(F), len(G)) // 10))
        sides = [_half_nearness(F, G, n_neighbors), _half_nearness(G, F, n_neighbors)]
        x_middle, y_middle = (float(side.max() + side.min()) / 2 for side in sides)
        reach = max(float(np.ptp(side)) / 2 for side in sides)
        return cls(F, G, n_neighbors, x_middle, y_middle, max(reach, 1e-6))  # all equally near: nothing to correct

    def lift_x(self, F):
        """Unit rows of X with four more columns; zero rows stay zero."""
        F, p, rest = self._parts(F, self.y_anchors, self.x_middle)
        c = np.full_like(p, self.reach**0.5)
        return self._joined(F, -p / c, c, rest, np.zeros_like(p))

    def lift_y(self, G):
        """Unit rows of Y with four more columns; zero rows stay zero."""
        G, q, rest = self._parts(G, self.x_anchors, self.y_middle)
        c = np.full_like(q, self.reach**0.5)
        return self._joined(G, c, -q / c, np.zeros_like(q), rest)

    def _parts(self, rows, anchors, middle):
        rows = normalize_rows(rows)
        shift = _half_nearness(rows, anchors.astype(rows.dtype, copy=False), self.n_neighbors) - middle
        shift = shift.clip(-self.reach, self.reach)
        return rows, shift, np.sqrt((self.reach - shift**2 / self.reach).clip(0))

    def _joined(self, rows, *columns):
        lifted = np.column_stack([rows, *columns]) / (1 + 2 * self.reach) ** 0.5
        lifted[~rows.any(axis=1)] = 0
        return lifted.astype(rows.dtype, copy=False)


def _half_nearness(rows, anchors, n_neighbors):
    """Half the mean cosine to the nearest anchors, for unit rows."""
    means = np.empty(len(rows), dtype=rows.dtype)
    step = max(1, _BLOCK // len(anchors))
    for start in range(0, len(rows), step):
        cosines = rows[start : start + step] @ anchors.T
        nearest = np.partition(cosines, -n_neighbors, axis=1)[:, -n_neighbors:]
        means[start : start + step] = nearest.mean(axis=1) / 2
    return means
