"""Choosing a teacher's ridge on held-out pairs. Knows NumPy, knows nothing of estimators or torch."""

import numpy as np

from .linear import ridge_cca, rounding_noise, thin_view
from .ranks import best_match_ranks


def cross_validated_ridge(A, B, pairs, groups, regs, *, n_components, power, n_folds, n_repeats, n_enough, rng):
    """Held-out score of `ridge_cca` for each of some ridges.

    Parameters
    ----------
    A, B : ndarray of shape (p, d_x) and (p, d_y)
        Pairs, row by row, not centred: each fold centres on its own training pairs.
    pairs : ndarray of int, shape (p, 2)
        Which samples of the two views the rows of A and B are; a sample may stand in several pairs.
    groups : ndarray of int, shape (p,)
        Pairs of one group share a row; they stay on one side of every split.
    regs : ndarray of shape (q, 2)
        Candidates: ridge of A and of B.
    n_components, power : see `ridge_cca`
    n_folds : int
        Number of folds, cut down to the number of groups.
    n_repeats : int
        How often the pairs are dealt into folds anew.
    n_enough : int
        The folds end once so many pairs have been ranked.
    rng : numpy.random.RandomState
        Draws the folds.

    Returns
    -------
    scores : ndarray of shape (q,)
        Mean reciprocal rank of the held-out pairs among themselves, both directions, averaged over the pairs
        ranked; NaN if there are fewer than two groups.
    """
    n_groups = groups.max() + 1
    n_folds = min(n_folds, n_groups)
    if n_folds < 2:
        return np.full(len(regs), np.nan)
    totals, n_ranked = np.zeros(len(regs)), 0
    for _ in range(n_repeats):
        fold = (rng.permutation(n_groups) % n_folds)[groups]  # (p,)
        for k in range(n_folds):
            totals += _fold_scores(A, B, pairs, fold == k, regs, n_components, power)
            n_ranked += np.count_nonzero(fold == k)
            if n_ranked >= n_enough:
                return totals / n_ranked
    return totals / n_ranked


def _fold_scores(A, B, pairs, test, regs, n_components, power):
    """Mean reciprocal rank of one test part, times its number of pairs, for each candidate."""
    train = ~test
    mean_a, mean_b = A[train].mean(axis=0, dtype=np.float64), B[train].mean(axis=0, dtype=np.float64)
    thin_a = thin_view(A[train] - mean_a, rounding_noise(A[train]))
    thin_b = thin_view(B[train] - mean_b, rounding_noise(B[train]))
    # one row a sample, and the pairs as positions among them
    a_rows, a_of = np.unique(pairs[test, 0], return_index=True, return_inverse=True)[1:]
    b_rows, b_of = np.unique(pairs[test, 1], return_index=True, return_inverse=True)[1:]
    held_a, held_b = (A[test][a_rows] - mean_a) @ thin_a.Vt.T, (B[test][b_rows] - mean_b) @ thin_b.Vt.T
    # from here on in the coordinates of the training part, which are fewer than the columns where pairs are few
    short_a, short_b = (thin._replace(Vt=np.eye(len(thin.s))) for thin in (thin_a, thin_b))
    local, cross = np.column_stack([a_of, b_of]), thin_a.U.T @ thin_b.U
    scores = np.empty(len(regs))
    for i, reg in enumerate(regs):
        maps = ridge_cca(short_a, short_b, reg, n_components, power, cross)
        scores[i] = _mean_reciprocal_rank(held_a @ maps.W_x, held_b @ maps.W_y, local)
    return scores * np.count_nonzero(test)


def _mean_reciprocal_rank(F, G, pairs):
    """Average of both directions; 0 where the map has no direction left."""
    if F.shape[1] == 0:
        return 0.0
    forward, backward = best_match_ranks(F, G, pairs), best_match_ranks(G, F, pairs[:, ::-1])
    return (np.mean(1 / forward.ranks) + np.mean(1 / backward.ranks)) / 2
