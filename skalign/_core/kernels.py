"""One kernel in Triton, for rows of a plan on a GPU; imported by `exp2` where a device has kernels. Knows Triton and torch."""

import contextlib

import torch
import triton
import triton.language as tl

_CHUNK = 4096  # columns of a row treated at a time


@triton.jit
def _exp2_row_(block, tops, totals, n_columns, stride, floor, chunk: tl.constexpr):
    """One row: its maximum and sum in one reading, its entries in a second."""
    row = tl.program_id(0).to(tl.int64)
    entries, columns = block + row * stride, tl.arange(0, chunk)
    lane_tops = tl.full([chunk], -3e38, block.dtype.element_ty)  # finite, for a lane may see no column
    lane_totals = tl.zeros([chunk], block.dtype.element_ty)
    for start in range(0, n_columns, chunk):
        x = tl.load(entries + start + columns, mask=start + columns < n_columns, other=-float("inf"))
        higher = tl.maximum(lane_tops, x)
        lane_totals = lane_totals * tl.exp2(lane_tops - higher) + tl.exp2(x - higher)
        lane_tops = higher
    top = tl.max(lane_tops, 0)
    total = tl.sum(lane_totals * tl.exp2(lane_tops - top), 0)
    for start in range(0, n_columns, chunk):
        here = start + columns < n_columns
        x = tl.load(entries + start + columns, mask=here, other=-float("inf"))
        tl.store(entries + start + columns, tl.exp2(tl.maximum(x - top, floor)) / total, mask=here)
    tl.store(tops + row, top)
    tl.store(totals + row, total)


def exp2_shares_(block, floor):
    """``2^max(block - row maximum, floor)`` over its row sums, in place; returns the row maxima and those sums.

    Entries of a row lie side by side; rows may lie apart.
    """
    n_rows, n_columns = block.shape
    tops, totals = block.new_empty(n_rows), block.new_empty(n_rows)
    chunk = min(_CHUNK, triton.next_power_of_2(n_columns))
    with torch.cuda.device(block.device) if block.is_cuda else contextlib.nullcontext():
        _exp2_row_[(n_rows,)](block, tops, totals, n_columns, block.stride(0), floor, chunk=chunk)
    return tops, totals
