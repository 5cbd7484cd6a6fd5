"""Laws of the trained rivals beyond those of every aligner."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skalign import ContrastiveTeacher
from skalign.baselines import NNCLR, SAIL, SCLIP, STRUCTURE
from skalign.baselines import _trained as module
from skalign.datasets import make_two_views

SETTINGS = {"random_state": 0, "learning_rate": 0.01, "max_iter": 40}
RIVALS = [SAIL(negatives="all"), STRUCTURE(), NNCLR(), SCLIP()]


@pytest.fixture(scope="module")
def data():
    return make_two_views(60, 100, 100, 50, random_state=0)


def fitted(rival, data, **pools):
    p = len(data.paired_idx)
    return clone(rival).set_params(**SETTINGS).fit(data.X[:p], data.Y[:p], **pools)


def test_sail_on_pairs_is_the_contrastive_teacher(data):
    expected = fitted(ContrastiveTeacher(), data).transform(data.X_test)
    assert_array_equal(fitted(SAIL(), data).transform(data.X_test), expected)


@pytest.mark.parametrize("rival", [SAIL(), *RIVALS], ids=repr)
def test_training_finds_the_pairs_without_unpaired_rows_too(data, rival):
    aligner = fitted(rival, data)
    curve = aligner.loss_curve_["loss"]
    assert curve[-1] < 0.7 * curve[0]
    assert aligner.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.2  # 0.02 by chance


@pytest.mark.parametrize("rival", [SAIL(), *RIVALS], ids=repr)
@pytest.mark.parametrize("view", ["X", "Y"])
def test_unpaired_rows_count_where_the_method_has_them(data, rival, view):
    pool = {f"{view}_unpaired": data[view][len(data.paired_idx) :]}
    without, within = (fitted(rival, data, **pools).transform(data.X_test) for pools in ({}, pool))
    assert np.array_equal(without, within) == (rival.get_params().get("negatives") == "pairs")


@pytest.mark.parametrize(
    ("rival", "objective", "expected"),
    [
        (STRUCTURE(weight=3.0, levels=2, temperature=0.4), "PairsAndStructure", (3.0, 2, 0.4)),
        (NNCLR(n_neighbors=7, weight_x=0.2, weight_y=0.6), "PairsAndNeighbours", (7, 0.2, 0.6)),
        (SCLIP(weight_x=0.2, weight_y=0.6, labels="soft"), "PairsAndPseudoCaptions", (0.2, 0.6, "soft")),
        (SAIL(negatives="all"), "PairsAgainstAll", ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_reach_the_objective(data, rival, objective, expected, monkeypatch):
    made, shapes = [], set()

    class Spy(getattr(module, objective)):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

        def forward(self, embed_x, embed_y, batch):
            shapes.add((len(batch.A), *(None if Z is None else len(Z) for Z in (batch.X, batch.Y))))
            return super().forward(embed_x, embed_y, batch)

    monkeypatch.setattr(module, objective, Spy)
    sizes = {"batch_size": 9} | ({} if isinstance(rival, NNCLR) else {"batch_size_unpaired": (7, 11)})
    fitted(rival.set_params(**sizes), data, X_unpaired=data.X[60:], Y_unpaired=data.Y[60:])
    assert made[0][len(made[0]) - len(expected) :] == expected
    assert shapes == {(9, None, None) if isinstance(rival, NNCLR) else (9, 7, 11)}


@pytest.mark.parametrize("rival", RIVALS, ids=repr)
def test_many_captions_of_few_images_train_too(data, rival):
    pairs = np.column_stack([np.arange(60) // 5, np.arange(60)])
    aligner = clone(rival).set_params(**SETTINGS).fit(data.X, data.Y, pairs)
    assert np.isfinite(aligner.transform(data.X_test)).all()
    assert aligner.loss_curve_["loss"][-1] < aligner.loss_curve_["loss"][0]


@pytest.mark.parametrize("rival", RIVALS, ids=repr)
def test_seed_decides_everything(data, rival):
    one, same = (fitted(rival, data, X_unpaired=data.X[60:]).transform(data.X_test) for _ in range(2))
    assert_array_equal(one, same)


def test_weights_of_zero_leave_the_pairs(data):
    pools = {"X_unpaired": data.X[60:], "Y_unpaired": data.Y[60:]}
    assert_array_equal(
        fitted(NNCLR(weight_x=0, weight_y=0), data, **pools).transform(data.X_test),
        fitted(SAIL(), data).transform(data.X_test),
    )
    free = fitted(SCLIP(weight_x=0, weight_y=0), data, **pools)
    assert set(free.loss_curve_["pseudo"]) == {0.0}
