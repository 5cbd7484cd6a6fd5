"""Files of fitted aligners: arrays as safetensors, the rest as JSON beside them. Knows NumPy; reading runs nothing from a file.

The JSON is a tree of plain values. What plain JSON lacks is an object with a word of its own: {"float": "nan"},
{"scalar": 2.5, "dtype": "float32"}, {"tuple": [...]}, {"dict": {...}}, {"array": name, "order": "C"}, {"strings": [...]},
{"class": name, "state": {...}}, {"csr": [data, columns, starts], "shape": [n, m]}.
"""

import contextlib
import functools
import hashlib
import importlib
import json
import math
import os
import secrets
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from . import __version__
from ._arrays import resolve_device

_VERSION = "1"  # of the format; a reader refuses others
_DTYPES = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}

_ALIGNERS = {
    "skalign.BridgeFlow",
    "skalign.CCATeacher",
    "skalign.ContrastiveTeacher",
    "skalign.HubnessCorrection",
    "skalign.ProcrustesTeacher",
    "skalign.SOTAlign",
    "skalign.SOTAlignTransformer",
    "skalign.baselines.ASIF",
    "skalign.baselines.CSA",
    "skalign.baselines.NNCLR",
    "skalign.baselines.RelativeRepresentation",
    "skalign.baselines.SAIL",
    "skalign.baselines.SCLIP",
    "skalign.baselines.STRUCTURE",
    "skalign.baselines.SUE",
}
_FROM_SCIKIT_LEARN = {  # all their state is arrays, numbers and strings
    "sklearn.decomposition.PCA",
    "sklearn.decomposition.TruncatedSVD",
    "sklearn.feature_selection.VarianceThreshold",
    "sklearn.frozen.FrozenEstimator",
    "sklearn.pipeline.Pipeline",
    "sklearn.preprocessing.MaxAbsScaler",
    "sklearn.preprocessing.MinMaxScaler",
    "sklearn.preprocessing.Normalizer",
    "sklearn.preprocessing.PowerTransformer",
    "sklearn.preprocessing.QuantileTransformer",
    "sklearn.preprocessing.RobustScaler",
    "sklearn.preprocessing.StandardScaler",
    "sklearn.random_projection.GaussianRandomProjection",
}
_PARTS = {
    "skalign._core.hubness.LocalScaling",
    "skalign._core.landmarks.GaussianFeatures",
    "skalign._stream.Sample",
    "skalign._stream.Stream",
    "skalign.baselines._sue._SpectralEmbedding",
}
_FOLDERS = {"memory", "checkpoint_dir"}  # parameters that name one of this machine, which a fit would read and write
# the only classes a file may name, by their last name
_CLASSES = {name.rpartition(".")[2]: name for name in _ALIGNERS | _FROM_SCIKIT_LEARN | _PARTS}

# shapes of the arrays of an aligner, where it has them; a letter is a length they share
_SHAPES = {
    "feature_names_in_": ("n_features_in_",),
    "feature_names_in_y_": ("n_features_in_y_",),
    "x_mean_": ("n_features_in_",),
    "y_mean_": ("n_features_in_y_",),
    "x_coef_": ("n_features_in_", "k"),
    "y_coef_": ("n_features_in_y_", "k"),
    "singular_values_": ("k",),
    "x_anchors_": ("n_pairs_", "n_features_in_"),
    "y_anchors_": ("n_pairs_", "n_features_in_y_"),
}


def load(path):
    """Read a fitted aligner from a file that ``aligner.save(path)`` wrote.

    No code in the file is run, for it can hold none: arrays and JSON, which may name the aligners of skalign and some
    transformers of scikit-learn, and nothing else. A file that is cut off, damaged or carelessly edited is refused; its
    checksum does not keep a forger from writing another one, so embeddings deserve the trust you have in who made it.

    A `device` that is not there becomes "auto", with a warning.

    Parameters
    ----------
    path : str or path-like
        File to read.

    Returns
    -------
    aligner : estimator
        Fitted; its `transform` returns what it returned when saved, bit by bit on the same machine and libraries.

    Raises
    ------
    OSError
        If the file is not there or cannot be read.
    ValueError
        If it is no such file, is not whole, does not match its checksum, was written in another version of the format,
        or its parts do not fit together.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import skalign
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> teacher = skalign.CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     teacher.save(Path(folder) / "teacher.safetensors")
    ...     loaded = skalign.load(Path(folder) / "teacher.safetensors")
    >>> loaded
    CCATeacher(reg=0.1)
    >>> bool((loaded.transform(data.X_test) == teacher.transform(data.X_test)).all())
    True
    """
    metadata, arrays = _read(path)
    if metadata.get("format") != "skalign":
        raise ValueError(
            f"{path} is a safetensors file, but not of an aligner. Expected one that `aligner.save` wrote."
        )
    if metadata.get("format_version") != _VERSION:
        raise ValueError(
            f"{path} has version {metadata.get('format_version')} of the file format, written by skalign "
            f"{metadata.get('skalign_version')}, but skalign {__version__} reads version {_VERSION}. Load it with the "
            "skalign that wrote it, or update skalign."
        )
    if metadata.pop("sha256", None) != _checksum(metadata, arrays):
        raise ValueError(
            f"{path} does not match its checksum: it was damaged or edited. Expected the file as `aligner.save` wrote it; "
            "copy or save it again."
        )
    try:
        for name, array in arrays.items():
            if array.dtype.name not in _DTYPES or not np.isfinite(array).all():
                what = "not finite" if array.dtype.name in _DTYPES else f"of type {array.dtype}"
                raise ValueError(f"`{name}` is {what}")
        aligner = _decode(json.loads(metadata["estimator"], parse_constant=_refuse_constant), arrays)
        if _public_name(type(aligner)) not in _ALIGNERS or not hasattr(aligner, "n_components_"):
            raise ValueError(f"a fitted aligner was expected, but it is {type(aligner).__name__}")
    except Exception as error:  # whatever a forged file provokes in the classes it may name
        raise ValueError(f"{path} holds no aligner that works: {error}. Save it again with `aligner.save`.") from error
    return aligner


def save(aligner, path):
    """Write a fitted aligner into one file; what stands there is replaced by a whole file that loads, or left alone."""
    safetensors = _safetensors()
    arrays = {}
    metadata = {"format": "skalign", "format_version": _VERSION, "skalign_version": __version__}
    metadata["estimator"] = json.dumps(_encode(aligner, "", arrays), allow_nan=False)
    metadata["sha256"] = _checksum(metadata, arrays)
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays, metadata))
        try:
            load(temporary)
        except ValueError as error:
            raise ValueError(f"The aligner would not load again: {error.__cause__ or error}. Fit it again.") from error


@contextlib.contextmanager
def replacing(path):
    """A temporary file beside `path`, which takes its name once it is written, and is removed if that fails.

    A process that is killed leaves the old file whole, and perhaps ``<name>.<8 hexadecimal digits>.tmp`` beside it.
    """
    path = Path(os.path.realpath(path))  # a link keeps pointing to the file
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into. Make it first.")
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Files of aligners are written with safetensors: pip install 'skalign[files]', or use joblib.dump."
        ) from error
    return safetensors


def _read(path):
    """Metadata and arrays of a safetensors file."""
    safetensors = _safetensors()
    with open(path, "rb"):  # says plainly what is not there or not to be read
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, and what NumPy says of types and shapes it does not have
        raise ValueError(
            f"{path} is no whole safetensors file ({error}). Expected one that `aligner.save` wrote; copy or save it again."
        ) from error


def _checksum(metadata, arrays):
    """SHA-256 of all a file says: metadata, then names, types, shapes and bytes of the arrays."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _refuse_constant(name):
    raise ValueError(f"{name} is no number")


def _public_name(cls):
    """The name by which a file may call a class, or None."""
    name = _CLASSES.get(cls.__name__)
    return name if name is not None and _class(name) is cls else None


@functools.cache
def _class(name):
    if name not in _CLASSES.values():
        raise ValueError(f"{name!r} is none of the classes a file may name")
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def _encode(value, name, arrays):
    """A value as JSON holds it; its arrays go into `arrays`, by the name of where they stand."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        return _encode_array(value, name, arrays)
    if isinstance(value, csr_array):
        parts = value.data, value.indices, value.indptr
        return {"csr": _encode(list(parts), name, arrays), "shape": list(value.shape)}
    if isinstance(value, np.generic) and value.dtype.name in _DTYPES:
        return {"scalar": _encode(value.item(), name, arrays), "dtype": value.dtype.name}
    if type(value) in (list, tuple):
        items = [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": _encode_items(value, name, arrays)}
    if isinstance(value, np.random.RandomState):
        return None  # drawn from in `fit`; a fit to come draws anew
    if _is_torch_device(value):
        return str(value)
    public = _public_name(type(value))
    if public is None:
        raise ValueError(_not_stored(value, name))
    state = value._asdict() if isinstance(value, tuple) else dict(value.__getstate__())
    for matter_of_fit in ("_metadata_request", "_skl_callbacks"):  # how arguments are passed on, and who listens
        state.pop(matter_of_fit, None)
    for folder in _FOLDERS & state.keys():
        state[folder] = None
    return {"class": public, "state": _encode_items(state, name, arrays)}


def _encode_items(items, name, arrays):
    return {key: _encode(item, f"{name}.{key}".lstrip("."), arrays) for key, item in items.items()}


def _encode_array(value, name, arrays):
    if value.ndim == 1 and value.dtype.kind in "OU" and all(isinstance(item, str) for item in value):
        return {"strings": [str(item) for item in value]}
    if value.dtype.name not in _DTYPES:
        raise ValueError(_not_stored(value, name))
    # the order in memory is kept, for products of matrices round by it
    order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    stored = np.asarray(value.T if order == "F" else value, order="C")
    name = next((known for known, array in arrays.items() if array is stored), name)  # what is shared is stored once
    arrays[name] = stored
    return {"array": name, "order": order}


def _is_torch_device(value):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.device)


def _not_stored(value, name):
    where = f"`{name}`" if name else "The aligner"
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.80} ({type(value).__name__})"
    known = ", ".join(sorted(public.rpartition(".")[2] for public in _FROM_SCIKIT_LEARN))
    return (
        f"{where} is {what}, but a file holds numbers, strings, numeric arrays, aligners of skalign and, of scikit-learn, "
        f"{known}. If `fit` alone uses it, as it does an optimizer, give it another value before (aligner.set_params); "
        "else use joblib.dump(aligner, path) or skops.io.dump(aligner, path)."
    )


def _decode(node, arrays):
    """The value that `_encode` turned into this node."""
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list):
        return [_decode(item, arrays) for item in node]
    match node:
        case {"float": "nan" | "inf" | "-inf" as text}:
            return float(text)
        case {"scalar": value, "dtype": str(dtype)} if dtype in _DTYPES:
            return np.dtype(dtype).type(_decode(value, arrays))
        case {"tuple": list(items)}:
            return tuple(_decode(items, arrays))
        case {"dict": dict(items)}:
            return {key: _decode(item, arrays) for key, item in items.items()}
        case {"array": str(name), "order": "C" | "F" as order}:
            return _decode_array(name, order, arrays)
        case {"strings": list(items)} if all(isinstance(item, str) for item in items):
            return np.array(items, dtype=object)
        case {"csr": [_, _, _] as parts, "shape": [int(), int()] as shape}:
            matrix = csr_array(tuple(_decode(parts, arrays)), shape=tuple(shape))
            matrix.check_format(full_check=True)
            return matrix
        case {"class": str(name), "state": dict(state)}:
            return _build(_class(name), _decode({"dict": state}, arrays), sum(array.size for array in arrays.values()))
    raise ValueError(f"{node!s:.80} is no value of this format")


def _decode_array(name, order, arrays):
    return arrays[name].T if order == "F" else arrays[name]


def _build(cls, state, n_numbers):
    """An instance with this state, checked; `n_numbers` are all the numbers the file holds."""
    if issubclass(cls, tuple):
        return cls(**state)
    instance = cls.__new__(cls)
    if not hasattr(cls, "get_params"):
        instance.__setstate__(state)
        return instance
    parameters = set(cls._get_param_names())
    missing = parameters - state.keys()
    if missing:
        raise ValueError(f"{cls.__name__} lacks {', '.join(sorted(missing))}")
    hidden = sorted(name for name in state.keys() - parameters if hasattr(cls, name))
    hidden += sorted(name for name in _FOLDERS if state.get(name) is not None)
    if hidden:
        raise ValueError(f"{cls.__name__} has no attribute {', '.join(hidden)} of its own in a file")
    if "device" in state:
        state["device"] = _device_here(state["device"])
    instance.__setstate__(state)
    if hasattr(cls, "_parameter_constraints"):
        instance._validate_params()
    if _public_name(cls) in _ALIGNERS and any(name.endswith("_") for name in state):
        _check_fitted_state(instance, n_numbers)
    return instance


def _device_here(device):
    try:
        resolve_device(device)
    except ValueError as error:
        warnings.warn(f"{error} The loaded aligner has device='auto'.", UserWarning, stacklevel=2)
        return "auto"
    return device


def _check_fitted_state(aligner, n_numbers):
    """Refuse a fitted aligner whose parts do not fit together: by their shapes, then by embedding a row of each view."""
    known = dict(vars(aligner))
    for size in ("n_features_in_", "n_features_in_y_", "n_components_"):
        # a size beyond all that is stored would make us allocate what the file only claims
        if type(known.get(size)) is not int or not 1 <= known[size] <= n_numbers:
            raise ValueError(f"`{size}` must be an integer from 1 to {n_numbers}, but it is {known.get(size)!r:.80}")
    for name in [name for name in _SHAPES if name in known]:
        shape, kind = getattr(known[name], "shape", None), "O" if name.startswith("feature") else "f"
        expected = tuple(known.get(length) for length in _SHAPES[name])
        if shape is not None and len(shape) == len(expected):
            expected = tuple(known.setdefault(*length) for length in zip(_SHAPES[name], shape, strict=True))
        if shape != expected or known[name].dtype.kind != kind:
            raise ValueError(f"`{name}` must be an array of shape {expected}, but its shape is {shape}")
    for embed, d in ((aligner._embed_x, aligner.n_features_in_), (aligner._embed_y, aligner.n_features_in_y_)):
        row = embed(np.zeros((1, d)))
        if row.shape != (1, aligner.n_components_) or not np.isfinite(row).all():
            raise ValueError(f"an embedded row must have {aligner.n_components_} finite columns, but it is {row!r:.80}")
