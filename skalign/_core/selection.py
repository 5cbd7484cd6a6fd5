"""Choosing a teacher's ridge on held-out pairs. Knows NumPy, knows nothing of estimators or torch."""

import numpy as np

from .linear import ridge_cca, rounding_noise, thin_view
from .ranks import best_match_ranks


def cross_validated_ridge(
    A, B, pairs, groups, regs, *, others=None, n_components, power, n_folds, n_repeats, n_enough, rng
):
    r"""Held-out loss of `ridge_cca` for each of some ridges.

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
    others : pair of ndarray of shape (u_x, d_x) and (u_y, d_y), or None
        Rows without a partner, which stand among those that a held-out row is searched in.
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
    losses : ndarray of shape (q,)
        Mean logarithm of the ranks of held-out pairs, both directions, among the held-out rows of the fold and the
        others; NaN if there are fewer than two groups. Of a few pairs the reciprocal rank, which only sees the first places,
        tells less: with it the choice depends on how the folds fell.
    """
    n_groups = groups.max() + 1
    others = others or (A[:0], B[:0])
    n_folds = min(n_folds, n_groups)
    if n_folds < 2:
        return np.full(len(regs), np.nan)
    totals, n_ranked = np.zeros(len(regs)), 0
    for _ in range(n_repeats):
        fold = (rng.permutation(n_groups) % n_folds)[groups]  # (p,)
        for k in range(n_folds):
            totals += _fold_losses(A, B, others, pairs, fold == k, regs, n_components, power)
            n_ranked += np.count_nonzero(fold == k)
            if n_ranked >= n_enough:
                return totals / n_ranked
    return totals / n_ranked


def parabola_minimum(losses):
    """Where evenly spaced losses are least, in steps from the first.

    It is the vertex of the parabola through the least of them and both of its neighbours, at most half a step away; at an
    end it is that end.
    """
    least = int(np.argmin(losses))
    if least in (0, len(losses) - 1):
        return float(least)
    left, middle, right = losses[least - 1 : least + 2]
    bend = left - 2 * middle + right
    return least + (left - right) / (2 * bend) if bend > 0 else float(least)


def _fold_losses(A, B, others, pairs, test, regs, n_components, power):
    """Mean logarithm of the ranks of one test part, times its number of pairs, for each candidate."""
    train = ~test
    mean_a, mean_b = A[train].mean(axis=0, dtype=np.float64), B[train].mean(axis=0, dtype=np.float64)
    thin_a = thin_view(A[train] - mean_a, rounding_noise(A[train]))
    thin_b = thin_view(B[train] - mean_b, rounding_noise(B[train]))
    # one row a sample, and the pairs as positions among them
    a_rows, a_of = np.unique(pairs[test, 0], return_index=True, return_inverse=True)[1:]
    b_rows, b_of = np.unique(pairs[test, 1], return_index=True, return_inverse=True)[1:]
    gallery_a = (np.concatenate([A[test][a_rows], others[0]]) - mean_a) @ thin_a.Vt.T
    gallery_b = (np.concatenate([B[test][b_rows], others[1]]) - mean_b) @ thin_b.Vt.T
    # from here on in the coordinates of the training part, which are fewer than the columns where pairs are few
    short_a, short_b = (thin._replace(Vt=np.eye(len(thin.s))) for thin in (thin_a, thin_b))
    local, cross = np.column_stack([a_of, b_of]), thin_a.U.T @ thin_b.U
    losses = np.empty(len(regs))
    for i, reg in enumerate(regs):
        maps = ridge_cca(short_a, short_b, reg, n_components, power, cross)
        losses[i] = _mean_log_rank(gallery_a @ maps.W_x, gallery_b @ maps.W_y, local)
    return losses * np.count_nonzero(test)


def _mean_log_rank(F, G, pairs):
    """Average of both directions; where the map has no direction left, all rows are ties, which count as wrong."""
    if F.shape[1] == 0:
        F, G = np.zeros((len(F), 1)), np.zeros((len(G), 1))
    forward, backward = best_match_ranks(F, G, pairs), best_match_ranks(G, F, pairs[:, ::-1])
    return (np.mean(np.log(forward.ranks)) + np.mean(np.log(backward.ranks))) / 2
