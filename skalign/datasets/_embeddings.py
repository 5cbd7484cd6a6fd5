"""Reader of a folder of embeddings (.npz, .npy). Knows NumPy and digests; it never unpickles and never converts."""

import hashlib
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np
from sklearn.utils import Bunch

_SUFFIXES = (".npy", ".npz")
_MMAP_MODES = (None, "r", "r+", "c")  # not "w+", which would wipe the file
# What a damaged file makes zipfile, zlib and numpy raise.
_DAMAGED = (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


def load_embeddings(folder, *, mmap_mode=None):
    """Load all arrays of a folder, such as the embeddings of two views and the rows of its splits.

    Every ``.npz`` gives its arrays by their keys, every ``.npy`` its array by the name of the file. They are returned
    as stored: float16 stays float16, and nothing is put into order. Where the folder has a ``SHA256SUMS`` (as
    ``sha256sum *.np? > SHA256SUMS`` writes it), the files it lists are checked first, which reads each of them once.

    Parameters
    ----------
    folder : str or path-like
        The folder; files in folders below it, and hidden files, are left alone.
    mmap_mode : {None, "r", "r+", "c"}, default=None
        Leave ``.npy`` files on disk and map them, as in :func:`numpy.load`. Arrays in ``.npz`` are always read.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        One entry per array, and ``DESCR``, the text of ``README.md`` (empty if there is none).

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file listed in ``SHA256SUMS`` is missing.
    ValueError
        If the folder holds no arrays, a key comes twice, a digest differs, or a file is damaged or holds Python
        objects (these are never unpickled, since that can run code).

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from skalign.datasets import load_embeddings
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", image=np.zeros((5, 3), dtype=np.float16), train=np.arange(4))
    ...     np.save(f"{folder}/text.npy", np.ones((7, 2)))
    ...     data = load_embeddings(folder)
    >>> sorted(data)
    ['DESCR', 'image', 'text', 'train']
    >>> data.image.shape, data.image.dtype
    ((5, 3), dtype('float16'))
    """
    if mmap_mode not in _MMAP_MODES:
        raise ValueError(
            f"Expected `mmap_mode` to be None, 'r', 'r+' or 'c', got {mmap_mode!r}. Pass 'r' to read from disk as needed."
        )
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of .npz or .npy files, but there is no folder {folder}. "
            "Check the path, and that the data were copied to this machine."
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(
            f"Expected at least one .npz or .npy file in {folder}, found none. "
            "Point to the folder that holds the arrays themselves; folders below it are not searched."
        )
    _check_digests(folder)

    data, origin = Bunch(), {"DESCR": "README.md"}
    for path in paths:
        for key, array in _read_arrays(path, mmap_mode):
            if key in origin:
                raise ValueError(
                    f"Expected each key once, but `{key}` comes from {origin[key]} and from {path.name}. "
                    "Rename one of the two, or move one file elsewhere."
                )
            data[key], origin[key] = array, path.name
    readme = folder / "README.md"
    data["DESCR"] = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    return data


def _check_digests(folder):
    """Compare the arrays' files with `SHA256SUMS`, if there is one; lines on other files are passed over."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return
    for line in filter(str.strip, sums.read_text(encoding="utf-8").splitlines()):
        expected, _, name = line.strip().partition(" ")
        name = PurePosixPath(name.lstrip(" *"))  # "*" marks binary mode
        if name.suffix not in _SUFFIXES or len(name.parts) != 1:
            continue
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"Expected {name}, since SHA256SUMS lists it, but it is not in {folder}. "
                "Copy the file there too, or take its line out of SHA256SUMS."
            )
        actual = _sha256(path)
        if actual != expected.lower():
            raise ValueError(
                f"Expected {path} to have sha256 {expected}, got {actual}. The file was changed or is damaged; "
                "copy it again, or write SHA256SUMS anew if you changed it on purpose."
            )


def _sha256(path):
    """Hexadecimal digest of a file, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_arrays(path, mmap_mode):
    """Yield the (key, array) of one file; whatever is wrong with it becomes a message that names it."""
    try:
        if path.suffix == ".npy":
            if mmap_mode is None:
                with open(path, "rb") as file:
                    yield path.stem, _read_array(file)
            else:
                yield path.stem, np.lib.format.open_memmap(path, mode=mmap_mode)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    yield name.removesuffix(".npy"), _read_array(file)
    except PermissionError:  # says what it is, and is not the content's fault
        raise
    except _DAMAGED as error:
        if "Object arrays" in str(error) or "Python objects" in str(error):  # read, and mapped
            raise ValueError(
                f"Expected plain arrays in {path}, got one of Python objects, which is pickled; reading it could run "
                "code, so it is refused. Save it as numbers or as fixed-length text, e.g. `array.astype(str)`."
            ) from error
        raise ValueError(
            f"Expected {path} to be a whole {path.suffix} file, but it could not be read ({error}). "
            "Copy it again, or write it anew with `numpy.save` or `numpy.savez`."
        ) from error


def _read_array(file):
    """Read one array to the last byte, so that a zip member's checksum is compared too."""
    array = np.lib.format.read_array(file, allow_pickle=False)
    if file.read(1):
        raise ValueError("bytes follow the end of the array")
    return array
