"""Affinities that are read in blocks of rows: a stored matrix, or rows of features whose product is never formed whole.

Knows torch, knows nothing of transport or estimators.
"""

import contextlib
import math
import mmap
from functools import cached_property

import torch

from .distributed import ALONE
from .threads import Shared

_STORED_BLOCK = 1 << 18  # entries treated at a time: 1 MiB of float32 stays in cache
_FACTORED_BLOCK = 1 << 21  # wider, for the matrix product to be worth its start
_ROOMY = 1 << 22  # entries up to which blocks of a product are taken from the heap: fresh memory is slow
_DEVICE_BLOCK = 1 << 24  # on a GPU, where every operation has a start to pay and there is no such cache
_POWER_ITER = 3  # steps towards the direction in which rows vary most


def check_features(F, G):
    """Refuse features that have no product; lift half precision to float32."""
    if F.ndim != 2 or G.ndim != 2 or F.numel() == 0 or G.numel() == 0 or F.shape[1] != G.shape[1]:
        raise ValueError(
            "The features must be matrices with rows and with equally many columns, but their shapes are "
            f"{tuple(F.shape)} and {tuple(G.shape)}."
        )
    if not (_is_finite(F) and _is_finite(G)):
        raise ValueError("The features hold NaN or infinity. Expected finite rows, usually of unit length.")
    F, G = lifted(F), lifted(G)
    return F, G.to(F.dtype)


def _is_finite(Z):
    """Whether no entry is NaN or infinite; reads Z once and allocates nothing, unlike ``isfinite``."""
    return math.isfinite(sum(_extremes(Z.detach(), ALONE).tolist()))


def lifted(Z):
    """float32 at least: a half-precision kernel costs 2 to 12 percent of row error."""
    return Z if Z.dtype in (torch.float32, torch.float64) else Z.float()


@contextlib.contextmanager
def full_precision(device):
    """float32 products as such: TF32 or autocast would blur an affinity that is divided by epsilon. All is put back."""
    with _HIGHEST, torch.autocast(device.type, enabled=False):
        yield


@contextlib.contextmanager
def _highest_precision():
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


_HIGHEST = Shared(_highest_precision)


class _Affinity:
    """What both kinds share: an n x m matrix of some type on some device, read in blocks of rows.

    The processes of a `group` hold some of the rows each, maybe none, and all of the columns.

    width : columns that lie side by side since they are alike come in groups of so many; None if they come as they are.
    """

    width = None

    @cached_property
    def n_rows(self):
        """Rows of all processes."""
        (n,) = self.group.total(torch.tensor(self.shape[0]))
        return int(n)

    def row_blocks(self):
        """Slices of the rows; an empty one where there are none."""
        n, step = self.shape[0], self._step()
        return [slice(start, min(start + step, n)) for start in range(0, max(n, 1), step)]

    def scratch(self):
        """Memory for a block of rows, to be filled again and again: freed blocks are not always given back."""
        return self.empty(self._step())

    def empty(self, n_rows):
        """Memory for some rows."""
        return torch.empty((n_rows, self.shape[1]), dtype=self.dtype, device=self.device)

    def _step(self):
        entries = self._block_entries() if self.device.type == "cpu" else _DEVICE_BLOCK
        return max(1, min(entries // self.shape[1], self.shape[0]))


class StoredAffinity(_Affinity):
    """A matrix K (n, m)."""

    is_stored = True

    def __init__(self, K, group=ALONE):
        self.K, self.group = K, group
        self.shape, self.dtype, self.device = K.shape, K.dtype, K.device

    @classmethod
    def checked(cls, K):
        """Of a matrix from outside: what is no affinity is refused, half precision lifted to float32."""
        if K.ndim != 2 or K.numel() == 0:
            raise ValueError(f"The affinity must be a matrix with rows and columns, but its shape is {tuple(K.shape)}.")
        affinity = cls(lifted(K))
        if not math.isfinite(sum(affinity._extremes.tolist())):
            raise ValueError(
                "The affinity holds NaN or infinity. Expected finite similarities; check the embeddings it comes from."
            )
        return affinity

    def _block_entries(self):
        return _STORED_BLOCK

    def scaled_rows(self, rows, scale, offset, out=None):
        """``scale * K[rows] + offset``."""
        return torch.add(offset, self.K[rows], alpha=scale, out=out)

    def transposed(self):
        return StoredAffinity(self.K.T)

    def select(self, rows, columns=slice(None)):
        return StoredAffinity(self.K[rows][:, columns], self.group)

    @cached_property
    def _extremes(self):
        return _extremes(self.K, self.group)

    @property
    def largest(self):
        """Largest entry."""
        return float(self._extremes[0])

    @cached_property
    def spread(self):
        """Largest entry less the smallest."""
        return float(sum(self._extremes))

    @property
    def typical_spread(self):
        return self.spread


class FactoredAffinity(_Affinity):
    """``K = F @ G.T`` from features F (n, d) and G (m, d)."""

    is_stored = False

    def __init__(self, F, G, group=ALONE, width=None):
        self.F, self.G, self.group, self.width = F, G, group, width
        self.shape, self.dtype, self.device = (len(F), len(G)), F.dtype, F.device

    def _block_entries(self):
        return _FACTORED_BLOCK

    def scratch(self):
        return super().scratch() if self.width is None else self._own_scratch

    @cached_property
    def _own_scratch(self):
        return super().scratch()

    def empty(self, n_rows):
        """Memory for some rows; that of a large product in `pages`."""
        if self.device.type != "cpu" or math.prod(self.shape) <= _ROOMY:
            return super().empty(n_rows)
        return pages(n_rows * self.shape[1], self.dtype).view(n_rows, -1)

    def scaled_rows(self, rows, scale, offset, out=None):
        """``scale * K[rows] + offset``."""
        return torch.addmm(offset, self.F[rows] * scale, self.G.T, out=out)

    def transposed(self):
        return FactoredAffinity(self.G, self.F)

    def select(self, rows, columns=slice(None)):
        return FactoredAffinity(self.F[rows], self.G[columns], self.group)

    def in_groups(self, n_groups):
        """The affinity with its columns in groups of like ones, and the order they have there, (m,)."""
        width = -(-self.shape[1] // n_groups)
        order = _like_side_by_side(self.G, width)
        (order,) = self.group.total(order * self.group.is_first)  # one for all processes
        return FactoredAffinity(self.F, self.G[order], self.group, width), order

    @cached_property
    def largest(self):
        """Largest entry, at most (Cauchy-Schwarz)."""
        longest, _ = _extremes(self.F.norm(dim=1), self.group)
        return float(longest * self.G.norm(dim=1).max())

    @property
    def spread(self):
        """Largest entry less the smallest, at most."""
        return 2 * self.largest

    @cached_property
    def typical_spread(self):
        """Largest entry less the smallest, in a sample of the rows."""
        return float(sum(_extremes(self.F[:: 1 + self.n_rows // 64] @ self.G.T, self.group)))


def _like_side_by_side(G, width):
    """An order of the rows of G in which like ones come together, `width` at a time.

    They are halved along the direction in which they vary most, about, and so is each half.
    """
    generator, done, todo = torch.Generator(G.device).manual_seed(0), [], [torch.arange(len(G), device=G.device)]
    while todo:
        part = todo.pop()
        if len(part) <= width:
            done.append(part)
            continue
        rows = G if len(part) == len(G) else G[part]
        direction = torch.randn(G.shape[1], generator=generator, dtype=G.dtype, device=G.device)
        for _ in range(_POWER_ITER):
            along = rows @ direction
            direction = torch.nn.functional.normalize(rows.T @ (along - along.mean()), dim=0)
        part = part[(rows @ direction).argsort()]
        half = -(-len(part) // width) // 2 * width
        todo += [part[half:], part[:half]]
    return torch.cat(done)


def pages(size, dtype):
    """A vector in pages of its own on the CPU, which are given back when it goes; what is freed on the heap may stay."""
    kind = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # there are no kinds on Windows
    return torch.frombuffer(mmap.mmap(-1, max(size, 1) * dtype.itemsize, **kind), dtype=dtype)[:size]


def _extremes(Z, group):
    """Largest entry over all processes, and minus the smallest."""
    if not Z.numel():
        low, high = math.inf, -math.inf
        return group.largest(Z.new_tensor([high, -low]))
    low, high = torch.aminmax(Z)
    return group.largest(torch.stack([high, -low]))
