"""Rows that are not in memory: files, memory maps, HDF5, zarr, and shards of these. Knows NumPy and SciPy, reads by blocks."""

import math
import os
from itertools import pairwise
from numbers import Integral

import numpy as np
from scipy.sparse import issparse

from ._arrays import is_tensor, to_numpy

_BLOCK_BYTES = 1 << 23  # of rows held at a time where all are read
_READ_TOGETHER = (256, 2048)  # neighbouring rows that training reads together: by default, and at most
_GAP = 16  # rows between two that are wanted are read along rather than left out, up to so many


def stored_rows(given, name, allow_missing=False):
    """What a user gave as `name`, as `Rows` if it is out of core; None if it is an array in memory.

    Rows that are not finite are refused when they are read, unless they may be missing, which somebody else judges then.

    Out of core are a path of a ``.npy`` file, a memory map, whatever else has shape, dtype and slices but is no array (HDF5
    datasets, zarr arrays), and a list or tuple of such and of matrices in memory, which are shards.

    Raises
    ------
    ValueError
        If it, or a shard, is no matrix of real numbers or no ``.npy`` file, or the shards differ in width.
    OSError
        If a file is not there.
    """
    if isinstance(given, Rows):
        return given
    if isinstance(given, list | tuple) and len(given) and (_is_stored(given[0]) or _is_matrix_in_memory(given[0])):
        return StoredRows(list(given), name, allow_missing)
    return StoredRows([given], name, allow_missing) if _is_stored(given) else None


class Rows:
    """Rows that are read when asked for, by a slice or an array of row numbers, in the type `dtype`.

    A subclass has `shape`, `dtype`, `read_together` (how many neighbouring rows are best read at once),
    ``_read(start, stop)``, and ``check()``, which refuses rows that are not finite if some have not been read as yet.
    """

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(start, stop)
            rows = np.arange(start, stop, step)
        order = np.argsort(rows, kind="stable")
        ascending = np.asarray(rows)[order]
        apart = (np.diff(ascending) > _GAP) | (np.diff(ascending // self._block_length) > 0)
        found = np.empty((len(order), self.shape[1]), dtype=self.dtype)
        for run in np.split(np.arange(len(order)), np.flatnonzero(apart) + 1) if len(order) else ():
            first, last = ascending[run[0]], ascending[run[-1]]
            found[order[run]] = self._read(first, last + 1)[ascending[run] - first]
        return found

    def __array__(self, dtype=None, copy=None):
        """All rows at once, for those who need them so."""
        return np.array(self[:], dtype=dtype, copy=copy)

    def blocks(self):
        """All rows, some MiB at a time, in blocks of nearly the same length."""
        n_blocks = -(-len(self) // self._block_length)
        for start, stop in pairwise(np.linspace(0, len(self), n_blocks + 1).astype(int).tolist()):
            yield self._read(start, stop)

    @property
    def _block_length(self):
        return max(1, _BLOCK_BYTES // (self.shape[1] * self.dtype.itemsize))


class JoinedRows(Rows):
    """Rows of several arrays or `Rows`, one after the other."""

    def __init__(self, parts):
        self.parts = parts
        self.ends = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()
        self.shape = (self.ends[-1], parts[0].shape[1])
        self.dtype = np.result_type(*(self._type(k) for k in range(len(parts))))
        self.read_together = max(_read_together(part) for part in parts)

    def check(self):
        for part in self.parts:
            if isinstance(part, Rows):
                part.check()

    def _read(self, start, stop):
        pieces = [
            self._piece(k, max(start, low) - low, min(stop, high) - low)
            for k, (low, high) in enumerate(pairwise(self.ends))
            if low < stop and start < high
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty((0, self.shape[1]), dtype=self.dtype), *pieces])

    def _type(self, k):
        return self.parts[k].dtype

    def _piece(self, k, start, stop):
        return self.parts[k][start:stop].astype(self.dtype, copy=False)


class StoredRows(JoinedRows):
    """Rows as a user gave them, in one or several shards; a row that is not finite is refused when it is first read."""

    def __init__(self, shards, name, allow_missing=False):
        self.name, self._n_checked = name, math.inf if allow_missing else 0
        self._is_sharded = len(shards) > 1
        self.origins = [_origin(shard) for shard in shards]
        super().__init__([self._opened(k, shard) for k, shard in enumerate(shards)])

    def check(self):
        if self._n_checked < len(self):
            for _ in self.blocks():
                pass

    def _opened(self, k, shard):
        if isinstance(shard, str | os.PathLike):
            try:
                shard = _NpyFile(shard)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"`{self.name}`{self._of(k)} is the path of a .npy file, but there is none. Check the path."
                ) from error
            except (ValueError, EOFError) as error:
                raise ValueError(
                    f"`{self.name}`{self._of(k)} must be a whole .npy file of numbers, but reading it fails: {error} Write it "
                    "anew with np.save; open other formats yourself and pass the dataset (h5py, zarr)."
                ) from error
        shape = tuple(getattr(shard, "shape", ()))
        if len(shape) != 2 or shape[1] == 0:
            raise ValueError(
                f"`{self.name}`{self._of(k)} must be two-dimensional, one row a sample, but its shape is {shape}. "
                "Pass a matrix, its path, or a list of these as shards."
            )
        self._width = shape[1] if k == 0 else self._width
        if shape[1] != self._width:
            raise ValueError(
                f"The shards of `{self.name}` must have equally many columns, {self._width} as shard 0, but there are "
                f"{shape[1]}{self._of(k)}. Embed all shards with one encoder."
            )
        return shard

    def _type(self, k):
        shard = self.parts[k]
        dtype = to_numpy(shard[:0]).dtype if is_tensor(shard) else np.dtype(shard.dtype)
        if dtype.kind not in "fiub" and dtype.name != "bfloat16":
            raise ValueError(
                f"`{self.name}`{self._of(k)} must hold real numbers, but it holds {dtype}. Store the rows as float16, float32 "
                "or float64."
            )
        return np.dtype(np.float64 if dtype == np.float64 else np.float32)

    def _piece(self, k, start, stop):
        try:
            piece = np.asarray(to_numpy(self.parts[k][start:stop]))
        except Exception as error:  # of whatever library reads
            raise OSError(
                f"Rows {start} to {stop - 1} of `{self.name}`{self._of(k)} cannot be read: {error} Expected the "
                f"{self.parts[k].shape[0]} rows that were there at first; write the file anew if it is damaged."
            ) from error
        with np.errstate(over="ignore"):
            piece = piece.astype(self.dtype, copy=False)
        self._check_piece(piece, k, start)
        return piece

    def _check_piece(self, piece, k, start):
        first = self.ends[k] + start
        if first + len(piece) <= self._n_checked:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            in_doubt = not np.isfinite(piece.sum())
        finite = np.isfinite(piece).all(axis=1) if in_doubt else np.array(True)
        if not finite.all():
            row = int(np.argmin(finite))
            kind = "NaN" if np.isnan(piece[row]).any() else "infinity"
            where = f"row {start + row} of shard {k}, {self.origins[k]}" if self._is_sharded else self.origins[k]
            raise ValueError(
                f"`{self.name}` contains {kind} in row {first + row} ({where}). Expected finite numbers; drop or impute such "
                "rows."
            )
        if first <= self._n_checked:  # all rows before this piece have been looked at
            self._n_checked = first + len(piece)

    def _of(self, k):
        return f" (shard {k}, {self.origins[k]})" if self._is_sharded else f" ({self.origins[k]})"


class OtherRows(Rows):
    """Rows without some of them, whose numbers are `left_out`, ascending."""

    def __init__(self, rows, left_out):
        self.rows = rows
        self.shape = (len(rows) - len(left_out), rows.shape[1])
        self._n_before = left_out - np.arange(len(left_out))  # rows that stay before each one left out
        self.dtype, self.read_together = rows.dtype, rows.read_together

    def check(self):
        self.rows.check()

    def _read(self, start, stop):
        stay = np.arange(start, stop)
        numbers = stay + np.searchsorted(self._n_before, stay, side="right")
        is_run = len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1
        return self.rows[numbers[0] : numbers[-1] + 1] if is_run else self.rows[numbers]


class MappedRows(Rows):
    """Rows after a function of blocks of them."""

    def __init__(self, rows, function):
        self.rows, self.function = rows, function
        self.shape = (len(rows), self._read(0, 1).shape[1])
        self.dtype, self.read_together = rows.dtype, _read_together(rows)

    def check(self):
        if isinstance(self.rows, Rows):
            self.rows.check()

    def _read(self, start, stop):
        return self.function(self.rows[start:stop])


class _NpyFile:
    """The matrix in a .npy file. Rows are read, not mapped: mapped pages count as memory of the process."""

    def __init__(self, path):
        mapped = np.load(path, mmap_mode="r")  # looks at the head and the size of the file
        if not isinstance(mapped, np.memmap):
            raise ValueError("It is an archive.")
        self.path, self.shape, self.dtype, self._offset = path, mapped.shape, mapped.dtype, mapped.offset
        self._columnwise = None if mapped.flags.c_contiguous else mapped

    def __getitem__(self, rows):
        if self._columnwise is not None:
            return self._columnwise[rows]
        start, stop, _ = rows.indices(self.shape[0])
        offset = self._offset + start * self.shape[1] * self.dtype.itemsize
        flat = np.fromfile(self.path, dtype=self.dtype, count=(stop - start) * self.shape[1], offset=offset)
        return flat.reshape(stop - start, self.shape[1])


def _is_stored(given):
    if isinstance(given, str | os.PathLike):
        return True
    if isinstance(given, np.ndarray):
        # not what joblib makes of arrays for its workers: a result must not depend on `n_jobs`
        mapped = isinstance(given, np.memmap) and given.filename is not None and given.ndim == 2
        return mapped and "joblib_memmapping_folder" not in str(given.filename)
    in_memory = ("columns", "__array_namespace__")  # of frames; of arrays of other libraries, such as JAX
    if is_tensor(given) or issparse(given) or any(hasattr(given, name) for name in in_memory):
        return False
    return all(hasattr(given, name) for name in ("shape", "dtype", "__getitem__")) and len(given.shape) == 2


def _is_matrix_in_memory(given):
    return (isinstance(given, np.ndarray) or is_tensor(given)) and given.ndim == 2


def _origin(shard):
    """Where rows are stored, for messages."""
    if isinstance(shard, str | os.PathLike):
        return os.fspath(shard)
    if isinstance(getattr(shard, "filename", None), str | os.PathLike):  # a memory map
        return os.fspath(shard.filename)
    if hasattr(shard, "file") and hasattr(shard, "name"):  # HDF5
        return f"{shard.file.filename}{shard.name}"
    return str(getattr(shard, "store_path", f"a {type(shard).__name__}"))  # zarr


def _read_together(part):
    if isinstance(part, Rows):
        return part.read_together
    chunks = getattr(part, "chunks", None)  # of HDF5 and zarr, which are read whole
    lowest, highest = _READ_TOGETHER
    return min(max(chunks[0], lowest), highest) if chunks and isinstance(chunks[0], Integral) else lowest
