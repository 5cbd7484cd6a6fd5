"""Powers of 2 of rows that are logarithms: by one kernel on a GPU where Triton is, else by torch. Knows torch."""

import math
import warnings
from functools import cache

import torch

FLOOR = -100.0  # log2: entries below 2^-100 of their row's maximum change no digit, and exp2 is slow in underflow
_KERNEL_DEVICES = {"cuda"}


def exp2_rows_(block):
    """``2^(block - row maximum)`` in place; returns the row maxima and the new row sums."""
    top = block.amax(dim=1)
    block.sub_(top[:, None]).clamp_(min=FLOOR).exp2_()
    return top, block.sum(dim=1)


def exp2_shares_(block):
    """`exp2_rows_` over the row sums, in place; returns the row maxima and those sums.

    The kernel reads a block twice and writes it once, where torch moves it ten times.
    """
    kernel = _kernel(block.device, block.dtype) if block.device.type in _KERNEL_DEVICES else None
    if kernel:
        return kernel(block, FLOOR)
    top, total = exp2_rows_(block)
    block.div_(total[:, None])
    return top, total


@cache
def _kernel(device, dtype):
    """The kernel, if there is Triton and it does on this device what torch does; else None."""
    generator = torch.Generator().manual_seed(0)
    wide = (30 * torch.randn(5, 5010, dtype=torch.float64, generator=generator)).to(device, dtype)
    wide[1, 7] = -math.inf
    expected, found = wide[:, 5:5005].clone(), wide[:, 5:5005]  # rows that are not end to end
    top, total = exp2_rows_(expected)
    expected.div_(total[:, None])
    try:
        from .kernels import exp2_shares_

        results = zip((expected, top, total), (found, *exp2_shares_(found, FLOOR)), strict=True)
        rtol = 1e3 * torch.finfo(dtype).eps
        if all(torch.allclose(*both, rtol=rtol, atol=0) for both in results):
            return exp2_shares_
        reason = "it gives other numbers than torch"
    except ImportError:
        return None
    except Exception as error:  # a missing compiler or a card it does not know: of any kind, and all is done without it
        reason = f"it failed with {type(error).__name__}: {error}"
    warnings.warn(
        f"The Triton kernel for plans is not used on {device}, where {reason}. Results are the same, but come more slowly.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None
