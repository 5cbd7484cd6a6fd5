"""Divergences between student and teacher affinities, by name, from unit rows. Knows torch, knows nothing of estimators."""

from .klot import klot
from .losses import cka, info_nce

DIVERGENCES = ("klot", "info_nce", "cka")


class Divergence:
    """``divergence(F, G, F_teacher, G_teacher)`` as a scalar; for KLOT it remembers the worst marginal errors.

    worst_error : dict of str to float, the largest L1 marginal error of the "student" and of the "teacher" plan so far.
    n_unconverged : dict of str to int, how many plans missed their tolerance.
    """

    def __init__(self, name, epsilon, epsilon_teacher, *, tol, tol_teacher, max_iter):
        self.name, self.epsilon, self.epsilon_teacher = name, epsilon, epsilon_teacher
        self.options = {"tol": tol, "tol_teacher": tol_teacher, "max_iter": max_iter}
        self.worst_error = {"student": 0.0, "teacher": 0.0}
        self.n_unconverged = {"student": 0, "teacher": 0}

    def __call__(self, F, G, F_teacher, G_teacher):
        if self.name == "cka":
            return cka(F, G, F_teacher, G_teacher)
        K, K_teacher = F @ G.T, F_teacher @ G_teacher.T  # (n, m)
        if self.name == "info_nce":
            return info_nce(K, K_teacher, self.epsilon, self.epsilon_teacher)
        value, student, teacher = klot(K, K_teacher, self.epsilon, self.epsilon_teacher, **self.options)
        for who, result in (("student", student), ("teacher", teacher)):
            self.worst_error[who] = max(self.worst_error[who], result.error)
            self.n_unconverged[who] += not result.converged
        return value
