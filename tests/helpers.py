"""How close is close: the tolerances every test compares with; and which libraries may be absent. Knows nothing of skalign."""

from importlib.util import find_spec

import numpy as np
import pytest

# two roads to the same number (laws, gradients): what rounding leaves after a few thousand additions
LAW = {np.float64: {"rtol": 1e-7, "atol": 1e-10}, np.float32: {"rtol": 1e-4, "atol": 1e-6}}

# the same quantity from another library, which stops at a tolerance of its own
LIBRARY = {np.float64: {"rtol": 1e-6, "atol": 1e-9}, np.float32: {"rtol": 1e-3, "atol": 1e-6}}

# L1 error of a converged plan's marginals, in units of the tolerance it was solved to: the check itself rounds
MARGINAL = 2

# libraries for approximate search; one has no wheels, and not every machine has a compiler
INDEXES = [
    "usearch",
    "voyager",
    pytest.param(
        "hnswlib",
        marks=pytest.mark.skipif(find_spec("hnswlib") is None, reason="hnswlib is not installed: it needs a compiler"),
    ),
]
