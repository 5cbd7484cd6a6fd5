"""Divergences between student and teacher affinities, by name, from unit rows. Knows torch, knows nothing of estimators."""

import torch
from torch import nn

from .distributed import ALONE
from .klot import klot, klot_from_features, klot_of_shares
from .losses import cka, info_nce

DIVERGENCES = ("klot", "info_nce", "cka")
_DENSE_ENTRIES = 1 << 26  # n * m up to which KLOT holds its matrices: up to 3 times as fast, in 3 to 4 of 268 MB


class Divergence(nn.Module):
    """``divergence(F, G, F_teacher, G_teacher)`` as a scalar; for KLOT it remembers the worst marginal errors.

    The processes of a `group` hold some of the rows each if it `takes_shares`, else all of them.

    worst_error : dict of str to float, the largest L1 marginal error of the "student" and of the "teacher" plan so far.
    n_unconverged : dict of str to int, how many plans missed their tolerance.
    streams : bool, whether KLOT works from the features whatever the size of the batch, see `stream`.
    """

    def __init__(self, name, epsilon, epsilon_teacher, *, tol, tol_teacher, max_iter, group=ALONE):
        super().__init__()
        self.group = group
        self.name, self.epsilon, self.epsilon_teacher = name, epsilon, epsilon_teacher
        self.options = {"tol": tol, "tol_teacher": tol_teacher, "max_iter": max_iter}
        self.worst_error = {"student": 0.0, "teacher": 0.0}
        self.n_unconverged = {"student": 0, "teacher": 0}
        self.streams, self._held_matrices, self._former = False, False, {}

    @property
    def takes_shares(self):
        """Whether each process gives its own share of the rows."""
        return self.name == "klot" and self.group.size > 1

    def forward(self, F, G, F_teacher, G_teacher, same_rows=False):
        """`same_rows` says that the rows are those of the call before, so that its potentials are a good start."""
        if self.name == "cka":
            return cka(F, G, F_teacher, G_teacher)
        if self.name == "info_nce":
            return info_nce(F @ G.T, F_teacher @ G_teacher.T, self.epsilon, self.epsilon_teacher)
        start = {name: g.to(F.device) for name, g in self._former.items()} if same_rows else {}
        value, student, teacher = self._klot((F, G, F_teacher, G_teacher), **start)
        self._former = {"init": student.g, "init_teacher": teacher.g}
        for who, result in (("student", student), ("teacher", teacher)):
            self.worst_error[who] = max(self.worst_error[who], result.error)
            self.n_unconverged[who] += not result.converged
        return value

    def stream(self):
        """Save memory from now on by forming no matrices; whether the last call did and so the next one needs less."""
        self.streams, changes = self.streams or self._held_matrices, self._held_matrices
        return changes

    def _klot(self, views, **start):
        options = self.options | start | {"epsilon": self.epsilon, "epsilon_teacher": self.epsilon_teacher}
        F, G, F_teacher, G_teacher = views
        if self.takes_shares:
            n, m = (int(total) for total in self.group.total(torch.tensor(len(F)), torch.tensor(len(G))))
            stores = not self.streams and n * m <= _DENSE_ENTRIES * self.group.size
            return klot_of_shares(*views, self.group, stores=stores, **options)
        self._held_matrices = not self.streams and len(F) * len(G) <= _DENSE_ENTRIES
        if self._held_matrices:
            return klot(F @ G.T, F_teacher @ G_teacher.T, **options)
        return klot_from_features(*views, **options)

    def get_extra_state(self):
        """What torch's `state_dict` is to hold."""
        return {name: getattr(self, name) for name in ("worst_error", "n_unconverged", "streams", "_former")}

    def set_extra_state(self, state):
        """What `get_extra_state` gave; who holds the errors sees them change."""
        self.worst_error.update(state["worst_error"])
        self.n_unconverged.update(state["n_unconverged"])
        self.streams, self._former = state["streams"], state["_former"]
