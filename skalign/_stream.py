"""What `partial_fit` keeps from call to call, and the rows it makes of it. Knows torch, nothing of heads or settings."""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state

from ._core.rows import distinct_rows

_N_REMEMBERED = 2048  # rows of either view, as many as the hubness correction has anchors


class Sample(NamedTuple):
    """Rows drawn evenly from all that came by: those of the smallest random keys."""

    rows: np.ndarray
    keys: np.ndarray

    def joined(self, rows, rng):
        """The sample after more rows, of which those are read that come into it."""
        keys, n_before = np.concatenate([self.keys, rng.random(len(rows))]), len(self.keys)
        kept = np.sort(np.argsort(keys)[:_N_REMEMBERED])
        before, new = kept[kept < n_before], kept[kept >= n_before] - n_before
        return Sample(np.concatenate([self.rows[before], rows[new]]), keys[kept])

    def fill(self, rows, size, rng):
        """Rows, and of the sample as many as they lack of `size`."""
        if len(rows) >= size:
            return rows
        return np.concatenate([rows[:], self.rows[rng.permutation(len(self.rows))[: size - len(rows)]]])


class Stream(NamedTuple):
    """All that a call of `partial_fit` needs of those before it, beside the fitted attributes. Nothing in it is changed.

    seed, n_calls : where random numbers come from. n_unpaired : unpaired rows seen.
    X, Y : paired rows of either view, each once; pairs : (p, 2) among them.
    x_sample, y_sample : of all rows seen, paired or not.
    heads : weights of both as trained; starts : those they go back to by `teacher_weight`, or None.
    optimizer, objective : states of what trains them.
    """

    seed: int
    n_calls: int
    n_unpaired: int
    X: np.ndarray
    Y: np.ndarray
    pairs: np.ndarray
    x_sample: Sample
    y_sample: Sample
    heads: list | None = None
    starts: list | None = None
    optimizer: dict | None = None
    objective: dict | None = None

    @classmethod
    def begin(cls, given, random_state):
        """A stream of views as wide as those given, of which no row has come."""
        X, Y, keys = given.X[:0], given.Y[:0], np.empty(0)
        seed = check_random_state(random_state).randint(2**31 - 1)
        return cls(seed, 0, 0, X, Y, np.empty((0, 2), dtype=np.int64), Sample(X, keys), Sample(Y, keys))

    def rng(self):
        """Random numbers of the call to come, wherever the stream has been stored since the last."""
        return np.random.default_rng([self.seed, self.n_calls])

    def with_pairs(self, given, rng):
        """The stream after the pairs of a call; those it knows, by the content of their rows, change nothing."""
        X = np.concatenate([self.X[self.pairs[:, 0]], given.X_pairs])
        Y = np.concatenate([self.Y[self.pairs[:, 1]], given.Y_pairs])
        (x_first, x_of), (y_first, y_of) = distinct_rows(X), distinct_rows(Y)
        X, Y = X[x_first], Y[y_first]
        pairs = np.column_stack([x_of, y_of])
        return self._replace(
            X=X,
            Y=Y,
            pairs=pairs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])],
            x_sample=self.x_sample.joined(X[len(self.X) :], rng),
            y_sample=self.y_sample.joined(Y[len(self.Y) :], rng),
        )

    def with_unpaired(self, X, Y, rng):
        """The stream after the unpaired rows of a call."""
        return self._replace(
            n_calls=self.n_calls + 1,
            n_unpaired=self.n_unpaired + len(X) + len(Y),
            x_sample=self.x_sample.joined(X, rng),
            y_sample=self.y_sample.joined(Y, rng),
        )


class Continued:
    """Stands where a checkpoint does: what trains the heads starts as the call before left it, and is kept in the end."""

    def __init__(self, stream):
        self.optimizer, self.objective = stream.optimizer, stream.objective

    def restore(self, parts):
        """Give optimizer and objective their states; False, for the record of the steps is new."""
        stepper, objective = parts["optimizer"], parts["objective"]
        if self.objective is not None:
            objective.load_state_dict(_mapped(_tensor, self.objective), strict=False)
        if self.optimizer is not None and self.optimizer["name"] == type(stepper).__qualname__:
            state = {int(number): _mapped(_tensor, of) for number, of in self.optimizer["state"].items()}
            stepper.load_state_dict(stepper.state_dict() | {"state": state})
        return False

    def step(self, parts, n_iter, is_last):
        """Keep their states after the last step."""
        if is_last:
            stepper = parts["optimizer"]
            state = {str(number): _mapped(_array, of) for number, of in stepper.state_dict()["state"].items()}
            self.optimizer = {"name": type(stepper).__qualname__, "state": state}
            self.objective = _mapped(_array, dict(parts["objective"].named_parameters()))


def even(n_rows, batch_size):
    """The size of equal batches, at most `batch_size`, into which rows fall; fewer rows than batches are left over."""
    return n_rows // -(-n_rows // batch_size)


def _array(value):
    """A copy of a tensor as an array; anything else that an optimizer may keep as it is."""
    return value.detach().cpu().numpy().copy() if isinstance(value, torch.Tensor) else value


def _tensor(value):
    """The other way round; a copy, too, for optimizers write into what they are given."""
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _mapped(function, state):
    return {name: function(value) for name, value in state.items()}
