"""Fixtures every test may ask for. Knows pytest and NumPy, knows nothing of skalign."""

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)
