"""Gaussian kernels between rows and landmarks, as features that linear maps work on. Knows NumPy and SciPy only."""

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from .rows import normalize_rows

_LEAST = 1e-6  # of the largest eigenvalue of the landmarks' kernel: smaller ones are rounding in float32
_BLOCK = 1 << 22  # kernel entries held at a time


class GaussianFeatures(NamedTuple):
    r"""Nyström features of the Gaussian kernel between rows of unit length.

    With landmarks :math:`l_j` the features of a row are :math:`K^{-1/2} k(x)`, where
    :math:`k(x)_j = \exp(-\gamma \|x - l_j\|^2)` and K is the kernel of the landmarks; their inner products are those of the
    kernel for landmarks, and about so for other rows. They are computed in float64: :math:`K^{-1/2}` magnifies rounding, by
    which a row would depend on those beside it.

    landmarks : (m, d) unit rows; gamma : inverse of their mean squared distance; whitening : (m, m) :math:`K^{-1/2}`.
    """

    landmarks: np.ndarray
    gamma: float
    whitening: np.ndarray

    @classmethod
    def fit(cls, rows):
        """From rows that become the landmarks."""
        landmarks = normalize_rows(rows)
        Z = landmarks.astype(np.float64)
        spread = 2 * Z.var(axis=0).sum()
        gamma = float(1 / spread) if spread > 0 else 1.0
        variances, vectors = eigh(_kernel(Z, Z, gamma))
        keep = variances > _LEAST * variances[-1]
        return cls(landmarks, gamma, (vectors[:, keep] / np.sqrt(variances[keep])) @ vectors[:, keep].T)

    def __call__(self, rows):
        """Features of rows (n, d), shape (n, m), in the type they have."""
        landmarks = self.landmarks.astype(np.float64, copy=False)
        features = np.empty((len(rows), len(landmarks)), dtype=rows.dtype)
        step = max(1, _BLOCK // len(landmarks))
        for start in range(0, len(rows), step):
            block = normalize_rows(rows[start : start + step], np.float64)
            features[start : start + step] = _kernel(block, landmarks, self.gamma) @ self.whitening
        return features


def _kernel(rows, landmarks, gamma):
    """``exp(-gamma |x - l|^2)`` for unit rows; one of zeros is as far from all."""
    exponents = rows @ landmarks.T
    exponents -= 1
    exponents *= 2 * gamma
    return np.exp(exponents, out=exponents)
