"""Checkpoints of a training: one file a fit, named after what is fitted. Knows torch; reading runs nothing from a file."""

import contextlib
import hashlib
import io
import os
import pickle
import tempfile
import time
import warnings
from numbers import Integral
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from . import __version__
from ._core.distributed import ALONE
from ._files import replacing
from ._sources import Rows

CHECKPOINT_CONSTRAINTS = {
    "checkpoint_dir": [str, os.PathLike, None],
    "checkpoint_interval": [Interval(Integral, 1, None, closed="left")],
}
_SAMPLE = 100_000, 10_000  # rows of an array, and of what lies on disk, that are read to tell data apart
_OLD = 3600  # seconds after which nobody is still writing a file
_SAME = 1e-3  # of cosines: what other numbers of threads or another machine may change by rounding
_DIGEST = hashlib.sha256().digest_size  # bytes in front of what torch writes, which has no checksum that torch reads
_IRRELEVANT = {"verbose", "device", "distributed", "checkpoint_dir", "checkpoint_interval"}  # to what a fit ends with


class Checkpoint:
    """The file that a training is kept in, and what it held when the fit began.

    `random_state` is that of the estimator or, without one, a seed, the same for all runs that go on from one another.
    `others` are what else tells this training from others.
    """

    writes = True  # whether it is this process that does

    def __init__(self, estimator, views, device, *others):
        folder = Path(estimator.checkpoint_dir)
        self.fingerprint = _fingerprint(estimator, views, device, others)
        self.interval = estimator.checkpoint_interval
        self.path = folder / f"{type(estimator).__name__}-{self.fingerprint}.checkpoint"
        _make(folder)
        _clear(folder.glob(f"{self.path.name}.*.tmp"))
        held = self._read() if self.path.exists() else {}
        self.random_state, self.seed, self.state = estimator.random_state, None, held.get("state")
        if self.random_state is None:
            drawn = check_random_state(None).randint(2**31 - 1)
            self.random_state = self.seed = held.get("seed", drawn)

    @classmethod
    def of(cls, estimator, *args, group=ALONE):
        """The checkpoint of an estimator's fit, or None if it is to have none; of a group the first process has the file."""
        if estimator.checkpoint_dir is None:
            return None
        checkpoint = group.first(cls(estimator, *args) if group.is_first else None)
        checkpoint.writes = group.is_first
        return checkpoint

    def restore(self, parts):
        """Give the parts of a training, by name, the state in the file; False if there is none."""
        if self.state is None:
            return False
        try:
            for name, part in parts.items():
                _set_state(part, self.state[name])
        except Exception as error:  # whatever modules and optimizers of the user's say to a state that is not theirs
            raise ValueError(
                f"{self.path} does not fit what is to be trained. If code has changed, or the training of the teacher was "
                "interrupted, delete the file to train from the start, or set another `checkpoint_dir`. "
                f"{type(error).__name__}: {error}"
            ) from error
        self.state = None  # which may be large
        return True

    def step(self, parts, n_iter, is_last):
        """Write the parts after a step if it is time: after the first, every `interval` and the last.

        The first must succeed, for not much is lost yet; of later ones that fail a warning tells, and training goes on.
        """
        if not self.writes or not (n_iter == 1 or is_last or n_iter % self.interval == 0):
            return
        try:
            state = _plain({name: _state(part) for name, part in parts.items()})
            self._write({"fingerprint": self.fingerprint, "seed": self.seed, "state": state})
        except (OSError, ValueError) as error:  # a state may come to hold what no file can
            if n_iter == 1:
                raise
            warnings.warn(
                f"The checkpoint of step {n_iter} could not be written ({error}); training goes on, and {self.path} still "
                "holds an earlier step. Make room in the folder, or see to its permissions.",
                UserWarning,
                stacklevel=8,
            )

    def _write(self, held):
        buffer = io.BytesIO()
        torch.save(held, buffer)
        with replacing(self.path) as temporary, open(temporary, "wb") as file:
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.write(buffer.getbuffer())

    def _read(self):
        content = memoryview(self.path.read_bytes())
        digest, payload = content[:_DIGEST], content[_DIGEST:]
        try:
            if hashlib.sha256(payload).digest() != digest:
                raise ValueError("it does not match its checksum")
            held = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            if held["fingerprint"] != self.fingerprint:
                raise ValueError(f"expected the fingerprint {self.fingerprint}, but it holds {held['fingerprint']}")
        except Exception as error:  # whatever a forged file provokes in torch
            raise ValueError(
                f"{self.path} is no whole checkpoint of this fit: {error}. Delete it to train from the start, copy it "
                "again, or set another `checkpoint_dir`."
            ) from error
        return held


class SameTeacher:
    """A part that must not change: the embeddings of a teacher, which is fitted again when a training goes on."""

    def __init__(self, *embeddings):
        self.embeddings = [np.asarray(embedding) for embedding in embeddings]

    def state_dict(self):
        """The embeddings, as torch's modules give their state."""
        return {"embeddings": self.embeddings}

    def load_state_dict(self, state):
        """Refuse the state of another teacher."""
        for before, now in zip(state["embeddings"], self.embeddings, strict=True):
            if before.shape != now.shape or np.abs(before.numpy() - now).max() > _SAME:
                raise ValueError("the teacher maps the pairs elsewhere than when the training began")


def _make(folder):
    """The folder, into which files can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"`checkpoint_dir` must be a folder to write to, but {folder} is not: {error}. Set another one."
        ) from error


def _clear(temporary_files):
    """Remove what processes left that were killed while they wrote; a young one may be of a twin that is alive."""
    for file in temporary_files:
        with contextlib.suppress(OSError):  # a twin was faster
            if time.time() - file.stat().st_mtime > _OLD:
                file.unlink()


def _fingerprint(estimator, views, device, others):
    """What tells a training from others: version, kind of device, parameters, pairs and rows, and what else there is."""
    arrays = views.X, views.Y, views.X_pool, views.Y_pool
    rows = [None if rows is None else sample(rows) for rows in arrays]
    return hashed([__version__, device.type, described(estimator), views.pairs, rows, others])


def hashed(value):
    """A hexadecimal digest of parameters or data."""
    try:
        return joblib.hash(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "Ranks that train together compare their parameters, and a checkpoint is found again by them, but one of them has "
            f"no name that lasts ({error.args[0]}). Define what you give (a head, an optimizer, a teacher) at the top level of "
            "a module, not in a function or as a lambda."
        ) from error


def sample(rows, n_read=None):
    """Shape, type and some rows of a view, evenly spaced; all if there are no more."""
    n_read = n_read or _SAMPLE[isinstance(rows, Rows)]
    return rows.shape, str(rows.dtype), np.asarray(rows[:: -(-len(rows) // n_read) or 1])


def described(value):
    """A parameter without what makes no difference; an estimator by its name and its parameters, unless it comes fitted."""
    if isinstance(value, type | FrozenEstimator) or not hasattr(value, "get_params"):
        return value
    parameters = value.get_params(deep=False).items()
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return name, {name: described(value) for name, value in parameters if name not in _IRRELEVANT}


def _state(part):
    if isinstance(part, np.random.RandomState):
        return part.get_state(legacy=False)
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _set_state(part, state):
    if isinstance(part, torch.Generator | np.random.RandomState):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def _plain(node, name=""):
    """A state of what `torch.load` reads back without running code; objects, as an optimizer may keep them, are refused."""
    if isinstance(node, dict):
        return {_plain(key, name): _plain(value, f"{name}.{key}".lstrip(".")) for key, value in node.items()}
    if type(node) in (list, tuple):
        return type(node)(_plain(value, f"{name}.{i}") for i, value in enumerate(node))
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, np.ndarray):
        return torch.from_numpy(node)
    if node is None or isinstance(node, torch.Tensor) or type(node) in (bool, int, float, str):
        return node
    raise ValueError(
        f"A checkpoint holds tensors, numbers and strings, but `{name}` of the state of this training is {node!r:.80} "
        f"({type(node).__name__}). Give another head or optimizer, or set checkpoint_dir=None."
    )
