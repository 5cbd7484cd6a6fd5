"""How close is close: the tolerances every test compares with. Knows NumPy, knows nothing of skalign."""

import numpy as np

# two roads to the same number (laws, gradients): what rounding leaves after a few thousand additions
LAW = {np.float64: {"rtol": 1e-7, "atol": 1e-10}, np.float32: {"rtol": 1e-4, "atol": 1e-6}}

# the same quantity from another library, which stops at a tolerance of its own
LIBRARY = {np.float64: {"rtol": 1e-6, "atol": 1e-9}, np.float32: {"rtol": 1e-3, "atol": 1e-6}}

# L1 error of a converged plan's marginals, in units of the tolerance it was solved to: the check itself rounds
MARGINAL = 2
