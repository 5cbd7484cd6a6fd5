"""Marginals that give way: what the rows and columns of an unbalanced plan sum to. Knows torch and NumPy, nothing of plans.

The penalty ``rho KL(P 1 | a)`` lets the row sums be ``a exp(-f / rho)``, f being the potential beside ``log a``: the weights
tilted by a power of what the rows offer. So rows and columns are tilted weights, in a balanced problem by the power 0,
and all else is as there. The plan's mass is left out of the iterations, in which it would be the slowest part (a constant
that goes from f to g and changes no proportion): at all times the mass that is best has a closed form.
"""

import math
from typing import NamedTuple

import numpy as np
import torch


class Relaxation(NamedTuple):
    """Powers by which row and column sums give way; 0 is not at all."""

    rows: float
    columns: float

    @classmethod
    def at(cls, rho_a, rho_b, scale):
        """For penalties `rho_a` and `rho_b` at the epsilon of which `scale` is log2(e) / epsilon."""
        per_epsilon = scale * math.log(2)
        return cls(1 / (1 + rho_a * per_epsilon), 1 / (rho_b * per_epsilon))

    @property
    def damping(self):
        """Share of a balanced column update that is left of it."""
        return 1 / (1 + self.columns)

    def log2_mass(self, dual, log2_ratio):
        """log2 of the plan's mass over that of b, which is 2^log2_ratio of that of a; not for marginals that are both held.

        The dual is the level of the columns less that of the rows, of `tilted` weights at the mass of b.
        """
        # of the shift between f and g this is where rows and columns have one mass
        return -self.columns * (self.rows * dual + log2_ratio) / (self.rows + self.columns)


RIGID = Relaxation(0.0, 0.0)


def namespace(array):
    """NumPy for an array of NumPy, else torch; by it the same lines serve both."""
    return np if isinstance(array, np.ndarray) else torch


def tilted(weights, x, power):
    """``weights 2^(power x)`` brought back to the mass of `weights`, and the level of x, times that mass.

    The level is a mean of x: ``log2(mass before it was brought back / mass) / power``, and the weighted one at power 0.
    """
    if power == 0:
        return weights, weights @ x
    xp, mass = namespace(weights), weights.sum()
    logits = xp.log2(weights) + power * x
    top = logits.max()
    entries = xp.exp2(logits - top)
    total = entries.sum()
    level = (top + xp.log2(total / mass)) / power
    # a small power would divide the rounding of that: close to the mean there is a better way
    mean, unit = weights @ x / mass, power * math.log(2)
    excess = weights @ xp.expm1(unit * (x - mean)) / mass
    level = xp.where(abs(excess) < 0.5, mean + xp.log1p(excess) / unit, level)
    return entries * (mass / total), level * mass
