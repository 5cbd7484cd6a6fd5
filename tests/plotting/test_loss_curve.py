"""Laws of the loss curve: it is `loss_curve_`, and the mark stands where the held-out pairs were best."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, ContrastiveTeacher, HubnessCorrection, SOTAlign, SOTAlignTransformer
from skalign.baselines import STRUCTURE
from skalign.plotting import LossCurveDisplay


def test_lines_are_the_loss_curve(data):
    aligner = SOTAlign(max_iter=7, random_state=0).fit(data.X, data.Y, data.paired_idx)
    display = LossCurveDisplay.from_estimator(aligner)
    assert display.lines_.keys() == {"loss", "siglip", "divergence"}
    for name, line in display.lines_.items():
        assert_array_equal(line.get_ydata(), aligner.loss_curve_[name])
        assert_array_equal(line.get_xdata(), np.arange(1, 8))
    assert display.ax_.get_yscale() == "log"
    assert display.validation_ax_ is display.best_line_ is None
    assert display.ax_.get_title() == "SOTAlign"


@pytest.mark.parametrize("max_iter", [37, 40])
def test_the_mark_stands_at_the_best_look(data, max_iter):
    aligner = SOTAlignTransformer(init="random", max_iter=max_iter, early_stopping=True, random_state=0)
    aligner.fit(data.X, data.Y, data.paired_idx)
    display = LossCurveDisplay.from_estimator(aligner)
    steps, looks = display.lines_["validation"].get_data()
    assert_array_equal(looks, aligner.loss_curve_["validation"])
    assert steps[-1] == max_iter
    assert display.best_line_.get_xdata()[0] == steps[np.argmax(looks)] == aligner.best_iter_ > 0
    assert f"kept: step {aligner.best_iter_}" in [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert display.validation_ax_.get_ylim()[0] == 0


def test_terms_that_tell_nothing_are_left_out(data):
    plain = ContrastiveTeacher(max_iter=3, random_state=0).fit(data.X, data.Y, data.paired_idx)
    assert LossCurveDisplay.from_estimator(plain).lines_.keys() == {"loss"}
    rival = STRUCTURE(max_iter=3, random_state=0).fit(data.X, data.Y, data.paired_idx)
    assert LossCurveDisplay.from_estimator(rival).lines_.keys() == {"loss", "info_nce", "structure"}


def test_a_loss_that_is_not_positive_has_a_linear_scale():
    display = LossCurveDisplay({"loss": [2.0, 1.0, -0.5]}).plot()
    assert display.ax_.get_yscale() == "linear"
    assert_array_equal(display.lines_["loss"].get_ydata(), [2, 1, -0.5])


def test_pipelines_searches_and_corrections_are_walked_through(data):
    aligner = SOTAlignTransformer(max_iter=4, random_state=0)
    X, Y = data.X[:40], data.Y[:40]
    pipeline = make_pipeline(StandardScaler(), HubnessCorrection(aligner, random_state=0)).fit(X, Y)
    line = LossCurveDisplay.from_estimator(pipeline).lines_["loss"]
    assert_array_equal(line.get_ydata(), pipeline[1].estimator_.loss_curve_["loss"])
    search = GridSearchCV(aligner, {"alpha": [1.0]}, cv=2).fit(X, Y)
    line = LossCurveDisplay.from_estimator(search, name="searched").lines_["loss"]
    assert_array_equal(line.get_ydata(), search.best_estimator_.loss_curve_["loss"])
    assert line.axes.get_title() == "searched"


def test_what_was_not_trained_is_refused(aligner, data):
    unfitted = SOTAlign()
    for estimator in (aligner, unfitted, make_pipeline(StandardScaler(), CCATeacher())):
        name = "SOTAlign" if estimator is unfitted else "CCATeacher"
        with pytest.raises(
            ValueError, match=f"{name} has no `loss_curve_`: it is not fitted, or solved in closed form"
        ):
            LossCurveDisplay.from_estimator(estimator)
