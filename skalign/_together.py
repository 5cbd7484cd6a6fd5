"""One fit in all processes that were started together, as torchrun does. Thin over the core, which connects them."""

import contextlib
import functools
import warnings

import torch
from sklearn.utils import check_random_state

from . import __version__
from ._base import restored_on_error
from ._checkpoints import described, hashed, sample
from ._core.distributed import together

_SAMPLE = 100  # rows of an array by which it is told from another


def on_all_ranks(fit):
    """`all_or_nothing` of a `fit` that is one for all processes started together, if `distributed` says so.

    The first of them warns for all.
    """

    @functools.wraps(fit)
    def fit_together(self, *args, **kwargs):
        with restored_on_error(self), together(self.distributed) as group, _silence(not group.is_first):
            return fit(self, *args, **kwargs)

    return fit_together


@contextlib.contextmanager
def _silence(wanted):
    if not wanted:  # the filters belong to all threads of a process: they are left alone where they can be
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refuse_unlike(group, estimator, views, *others):
    """Refuse to train together what is not the same in all processes of a group; `others` are its device and former heads."""
    if group.size == 1:
        return
    given = {
        "versions of skalign and torch": (__version__, torch.__version__),
        "parameters": described(estimator),
        "device or fitted heads": others,
        "pairs": views.pairs,
    }
    given |= {name: _some(getattr(views, name)) for name in ("X", "Y", "X_pool", "Y_pool")}
    called = {"X_pool": "X_unpaired", "Y_pool": "Y_unpaired"}
    unlike = group.unlike({called.get(name, name): hashed(value) for name, value in given.items()})
    if unlike:
        raise ValueError(
            f"All ranks must call `fit` with the same parameters and data, but rank {unlike.rank} differs from rank 0 in: "
            f"{', '.join(unlike.names)}. Give every rank the same, or set distributed=False for separate fits."
        )


def common_random_state(group, random_state):
    """A random state that is the same for all: where there is none, a seed drawn by the first process."""
    if random_state is not None or group.size == 1:
        return random_state
    return group.first(check_random_state(None).randint(2**31 - 1))


def _some(rows):
    return None if rows is None else sample(rows, _SAMPLE)
