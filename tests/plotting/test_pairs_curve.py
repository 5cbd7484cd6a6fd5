"""Laws of the curve over pairs: it is what fits on some of the pairs score, and nested."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, HubnessCorrection, ProcrustesTeacher
from skalign.metrics import mean_recall, recall_at_k
from skalign.model_selection import PairedKFold
from skalign.plotting import PairsCurveDisplay


@pytest.fixture
def draw(data, captions):
    """Draw the curve of an aligner on the captions, and on other rows if told so."""

    def draw(estimator, X=data.X, Y=data.Y, paired_idx=data.paired_idx, **settings):
        test = {"X_test": captions.X, "Y_test": captions.Y, "test_idx": captions.paired_idx}
        return PairsCurveDisplay.from_estimator(estimator, X, Y, paired_idx, random_state=0, **test | settings)

    return draw


class Spy(CCATeacher):
    """Keeps what its clones were fitted on."""

    seen = []

    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        self.seen.append((len(X), len(Y), paired_idx, X_unpaired))
        return super().fit(X, Y, paired_idx, X_unpaired=X_unpaired, Y_unpaired=Y_unpaired)


def test_the_last_point_is_the_metric_after_a_fit_on_all_pairs(draw, aligner, captions):
    F, G = aligner.transform(captions.X, captions.Y)
    display = draw(CCATeacher(reg=0.1), n_repeats=2)
    assert_allclose(display.lines_[0].get_ydata()[-1], mean_recall(F, G, captions.paired_idx))
    display = draw(CCATeacher(reg=0.1), n_repeats=2, k=3, direction="both")
    for way, line in zip(("x_to_y", "y_to_x"), display.lines_, strict=True):
        assert_allclose(line.get_ydata()[-1], recall_at_k(F, G, captions.paired_idx, k=3, direction=way))


def test_pools_that_would_miss_the_steps_of_a_pipeline_are_refused(draw, data):
    with pytest.raises(ValueError, match="pools would not pass the steps of the pipeline"):
        draw(make_pipeline(StandardScaler(), CCATeacher(reg=0.1)), n_pairs=[5], n_repeats=1, X_unpaired=data.X[:4])


def test_subsets_are_nested_and_other_rows_stay(draw, data):
    Spy.seen = []
    draw(Spy(reg=0.1), n_pairs=[5, 12, 30], n_repeats=3, X_unpaired=data.X[:4])
    assert {(n_x, n_y) for n_x, n_y, *_ in Spy.seen} == {(65, 75)}
    assert all(pool is not None for *_, pool in Spy.seen)
    fitted = np.array([{tuple(pair) for pair in pairs} for _, _, pairs, _ in Spy.seen], dtype=object).reshape(3, 3)
    assert [[len(pairs) for pairs in row] for row in fitted] == [[5] * 3, [12] * 3, [30] * 3]
    assert all(
        few < many < {tuple(pair) for pair in data.paired_idx} for few, many in zip(fitted[0], fitted[1], strict=True)
    )
    assert all(few < many for few, many in zip(fitted[1], fitted[2], strict=True))
    assert fitted[0, 0] != fitted[0, 1]


def test_line_and_band_are_mean_and_deviation(draw):
    display = draw(ProcrustesTeacher(), n_pairs=[6, 20], n_repeats=4, direction="x_to_y")
    values = display.recall["x_to_y"]
    assert values.shape == (2, 4)
    assert np.ptp(values[0]) > 0
    assert_allclose(display.lines_[0].get_ydata(), values.mean(axis=1))
    band = display.bands_[0].get_paths()[0].vertices
    at_first = band[band[:, 0] == 6, 1]
    assert_allclose([at_first.min(), at_first.max()], values[0].mean() + values[0].std() * np.array([-1, 1]))


def test_one_draw_has_no_band_and_seeds_repeat(draw):
    first, second = (draw(ProcrustesTeacher(), n_pairs=[6], n_repeats=1) for _ in range(2))
    assert first.bands_ == []
    assert_array_equal(first.recall["x_to_y"], second.recall["x_to_y"])


def test_more_pairs_find_more(draw):
    means = draw(CCATeacher(reg=0.1), n_pairs=[3, 40]).lines_[0].get_ydata()
    assert means[1] > means[0] + 0.1


def test_rows_that_are_missing_keep_their_numbers(draw, data):
    expected = draw(CCATeacher(reg=0.1), data.X[:40], data.Y[:40], None, n_pairs=[4, 40])
    X, Y = (np.insert(Z[:40], 0, np.nan, axis=0) for Z in (data.X, data.Y))
    shown = draw(CCATeacher(reg=0.1), X, Y, None, n_pairs=[4, 40])
    assert_allclose(shown.recall["x_to_y"], expected.recall["x_to_y"])


def test_pipelines_with_and_without_routing(draw, data):
    pipeline = make_pipeline(StandardScaler(), CCATeacher(reg=0.1))
    plain = draw(pipeline, n_pairs=[10, 40], n_repeats=2)
    with sklearn.config_context(enable_metadata_routing=True):
        routed = draw(pipeline, n_pairs=[10, 40], n_repeats=2)
    assert_array_equal(plain.recall["y_to_x"], routed.recall["y_to_x"])
    assert plain.name == "CCATeacher"


def test_a_search_gets_a_mask(draw, data):
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(ProcrustesTeacher(), {"n_components": [3]}, cv=PairedKFold(2))
        searched = draw(search, data.X[:60], data.Y[:60], np.arange(60) < 40, n_pairs=[10, 40], n_repeats=2)
    expected = draw(ProcrustesTeacher(3), data.X[:60], data.Y[:60], np.arange(60) < 40, n_pairs=[10, 40], n_repeats=2)
    assert_allclose(searched.recall["x_to_y"], expected.recall["x_to_y"])


def test_aligners_share_axes(draw):
    first = draw(HubnessCorrection(CCATeacher(reg=0.1), random_state=0), n_pairs=[10, 40], n_repeats=2)
    second = draw(ProcrustesTeacher(), n_pairs=[20, 40], n_repeats=2, ax=first.ax_)
    assert [text.get_text() for text in second.ax_.get_legend().get_texts()] == [
        "HubnessCorrection",
        "ProcrustesTeacher",
    ]
    assert_array_equal(second.ax_.get_xticks(), [10, 20, 40])
    assert len(plt.get_fignums()) == 1


def test_shares_of_the_pairs_are_numbers_of_them(draw):
    assert_array_equal(draw(ProcrustesTeacher(), n_pairs=[0.05, 0.5, 1.0], n_repeats=1).n_pairs, [2, 20, 40])


@pytest.mark.parametrize("n_pairs", [[0, 5], [41], [0.0, 0.5], [1.5], [], ["all"]])
def test_numbers_of_pairs_out_of_range_are_refused(draw, n_pairs):
    with pytest.raises(ValueError, match="`n_pairs` must hold integers from 1 to 40"):
        draw(ProcrustesTeacher(), n_pairs=n_pairs)


def test_no_draw_and_no_aligner_are_refused(draw, monkeypatch):
    with pytest.raises(ValueError, match="`n_repeats` must be an integer of at least 1, but it is 0"):
        draw(ProcrustesTeacher(), n_repeats=0)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1"):
        draw(ProcrustesTeacher(), k=0)
    with pytest.raises(ValueError, match="Expected an aligner"):
        draw(Plain(), n_repeats=1)
    Spy.seen = []
    with pytest.raises(ValueError, match="`direction` must be"):
        draw(Spy(reg=0.1), n_repeats=1, direction="up")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(ImportError, match=r'pip install "skalign\[plots\]"'):
        draw(Spy(reg=0.1), n_repeats=1)
    assert Spy.seen == []  # nothing was fitted in vain


class Plain(BaseEstimator):
    def fit(self, X, Y, paired_idx=None):
        return self
