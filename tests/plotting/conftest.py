"""What the tests of displays share: no window, data with rows in no pair, and figures closed. Knows matplotlib."""

import matplotlib
import numpy as np
import pytest
from sklearn.utils import Bunch

from skalign import CCATeacher
from skalign.datasets import make_two_views

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    """Every test draws on figures of its own."""
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture(scope="session")
def data():
    """40 pairs first, then free rows, 7 and 11 columns."""
    return make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, n_latent=4, noise=0.4, random_state=0)


@pytest.fixture(scope="session")
def aligner(data):
    return CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)


@pytest.fixture(scope="session")
def captions(data):
    """30 rows of X with one to three captions each among 64 rows of Y; 9 of Y are in no pair, and 4 of X."""
    rng = np.random.default_rng(1)
    of = np.repeat(np.arange(26), np.arange(26) % 3 + 1)  # 51 captions
    Y = np.concatenate([data.Y_test[of], data.Y[-13:]])
    Y += 0.1 * rng.standard_normal(Y.shape)
    order = rng.permutation(len(Y))
    places = np.argsort(order)[: len(of)]
    return Bunch(X=data.X_test, Y=Y[order], paired_idx=np.column_stack([of, places])[rng.permutation(len(of))])
