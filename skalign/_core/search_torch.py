"""Exact search for the nearest rows by inner product on a torch device. Knows torch, knows nothing of estimators."""

import torch

from .affinity import full_precision

_QUERIES, _GALLERY = 256, 1 << 16  # rows of either side in a block: 64 MiB of float32 products, six times that in all


def largest_products_torch(Q, G, k):
    """As `search.largest_products`, for tensors of one type on one device; the order of equal products is the same."""
    with full_precision(Q.device), torch.no_grad():
        found = [_of_a_block(some, G, k) for some in Q.split(_QUERIES)]
    return torch.cat([products for products, _ in found]), torch.cat([rows for _, rows in found])


def _of_a_block(Q, G, k):
    """Walk through the gallery, whose blocks come after the best so far: so columns to the left are lower rows."""
    best = Q.new_empty(len(Q), 0)
    found = torch.empty(len(Q), 0, dtype=torch.int64, device=Q.device)
    for start in range(0, len(G), _GALLERY):
        block = Q @ G[start : start + _GALLERY].T
        rows = torch.arange(start, start + block.shape[1], device=Q.device).expand(len(Q), -1)
        best, found = torch.cat([best, block], dim=1), torch.cat([found, rows], dim=1)
        columns = _largest_columns(best, min(k, best.shape[1]))
        best, found = best.gather(1, columns), found.gather(1, columns)
    return best, found


def _largest_columns(values, k):
    """Columns of the k largest values in each row, descending; among equals from the left, which ``topk`` leaves open."""
    threshold = values.topk(k, dim=1).values[:, -1:]
    above, ties = values > threshold, values == threshold
    room = k - above.sum(dim=1, keepdim=True)
    kept = above | (ties & (ties.cumsum(dim=1, dtype=torch.int32) <= room))
    columns = kept.nonzero()[:, 1].view(len(values), k)
    order = values.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)
