"""Laws that all displays keep: light import, axes given are used, every kind of input, clear errors."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, HubnessCorrection, SOTAlign, plotting
from skalign.plotting import (
    LossCurveDisplay,
    PairsCurveDisplay,
    PlanDisplay,
    RecallCurveDisplay,
    SimilarityDisplay,
    SpacesDisplay,
)

OF_ROWS = [RecallCurveDisplay, PlanDisplay, SimilarityDisplay, SpacesDisplay]


def numbers(display):
    """What a display shows, as one array."""
    if isinstance(display, RecallCurveDisplay):
        return np.stack([*display.recall.values(), *display.chance.values()])
    if isinstance(display, PlanDisplay):
        return display.plan
    if isinstance(display, SimilarityDisplay):
        return np.concatenate([display.pairs, display.non_pairs])
    return np.abs(np.concatenate([display.F, display.G]))  # the sign of a component is free


@pytest.fixture(params=OF_ROWS, ids=lambda display: display.__name__)
def display(request):
    return request.param


def test_importing_loads_neither_matplotlib_nor_torch():
    code = (
        "import sys, skalign.plotting as p; dir(p); p.RecallCurveDisplay; p.PairsCurveDisplay; p.SpacesDisplay; "
        "print(*{'matplotlib', 'torch'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


def test_without_matplotlib_the_extra_is_named(display, aligner, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    with pytest.raises(ImportError, match=r'pip install "skalign\[plots\]"'):
        display.from_estimator(aligner, data.X_test, data.Y_test)


@pytest.mark.parametrize("name", plotting.__all__)
def test_every_public_name_is_there(name):
    assert getattr(plotting, name).__name__ == name
    assert name in dir(plotting)
    with pytest.raises(AttributeError, match="has no attribute 'HeatDisplay'"):
        plotting.HeatDisplay  # noqa: B018


def test_estimators_and_their_embeddings_give_one_picture(display, aligner, captions):
    by_estimator = display.from_estimator(aligner, captions.X, captions.Y, captions.paired_idx)
    views = (captions.X, captions.Y) if display is SpacesDisplay else ()
    F, G = aligner.transform(captions.X, captions.Y)
    settings = {"epsilon": 0.1} if display is PlanDisplay else {}
    by_rows = display.from_predictions(*views, F, G, captions.paired_idx, **settings)
    assert_allclose(numbers(by_rows), numbers(by_estimator))


@pytest.mark.parametrize("kind", [pd.DataFrame, torch.from_numpy, np.ndarray.tolist], ids=["pandas", "torch", "list"])
def test_kinds_of_arrays_agree(display, aligner, captions, kind):
    expected = display.from_estimator(aligner, captions.X, captions.Y, captions.paired_idx)
    shown = display.from_estimator(aligner, kind(captions.X), kind(captions.Y), captions.paired_idx)
    assert_allclose(numbers(shown), numbers(expected), atol=1e-4)  # a list is read as float32


def test_missing_rows_are_left_out(display, aligner, data):
    X, Y = (np.insert(Z, 3, np.nan, axis=0) for Z in (data.X_test, data.Y_test))
    expected = display.from_estimator(aligner, data.X_test, data.Y_test)
    assert_allclose(numbers(display.from_estimator(aligner, X, Y)), numbers(expected))
    with pytest.raises(ValueError, match="pairs row 3 of X, but that row is entirely NaN"):
        display.from_estimator(aligner, X, Y, np.arange(5))


def test_pipelines_and_searches_are_walked_through(display, data):
    pipeline = make_pipeline(StandardScaler(), CCATeacher(reg=0.1))
    pipeline.fit(data.X, data.Y, ccateacher__paired_idx=data.paired_idx)
    shown = display.from_estimator(pipeline, data.X_test, data.Y_test)
    scaled = pipeline[0].transform(data.X_test)
    expected = display.from_estimator(pipeline[1], scaled, data.Y_test)
    assert_allclose(numbers(shown), numbers(expected))


def test_axes_given_are_drawn_on(display, aligner, data):
    figure, axes = plt.subplots(1, 3)
    shown = display.from_estimator(aligner, data.X_test, data.Y_test, ax=axes if display is SpacesDisplay else axes[0])
    assert shown.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert shown.plot() is shown
    assert shown.figure_ is not figure


def test_what_is_no_aligner_is_refused(display, aligner, data):
    with pytest.raises(ValueError, match="Expected an aligner, which has `transform_y`"):
        display.from_estimator(LinearRegression().fit(data.X_test, data.Y_test), data.X_test, data.Y_test)
    for unfitted in (CCATeacher(), SOTAlign(), HubnessCorrection()):
        with pytest.raises(NotFittedError):
            display.from_estimator(unfitted, data.X_test, data.Y_test)
    with pytest.raises(ValueError, match="NaN in 1 of 30 rows"):
        X = data.X_test.copy()
        X[4, 2] = np.nan
        display.from_estimator(aligner, X, data.Y_test)
    with pytest.raises(ValueError, match="Without `paired_idx`, X and Y must have equally many rows"):
        display.from_estimator(aligner, data.X_test, data.Y_test[:20])


def test_colours_mean_the_same_everywhere(aligner, data):
    test = data.X_test, data.Y_test
    recall = RecallCurveDisplay.from_estimator(aligner, *test)
    number = PairsCurveDisplay.from_estimator(
        aligner,
        data.X,
        data.Y,
        data.paired_idx,
        X_test=data.X_test,
        Y_test=data.Y_test,
        n_pairs=[40],
        n_repeats=1,
        direction="both",
    )
    spaces = SpacesDisplay.from_estimator(aligner, *test)
    for view in range(2):
        color = plt.matplotlib.colors.to_rgb(recall.lines_[view].get_color())
        assert color == plt.matplotlib.colors.to_rgb(number.lines_[view].get_color())
        assert_allclose(spaces.points_[view].get_facecolor()[0, :3], color)
        assert_allclose(spaces.points_[2 + view].get_facecolor()[0, :3], color)
    trained = SOTAlign(max_iter=2, random_state=0).fit(data.X, data.Y, data.paired_idx)
    siglip = LossCurveDisplay.from_estimator(trained).lines_["siglip"]
    pairs = SimilarityDisplay.from_estimator(aligner, *test).histograms_[1]
    assert_allclose(pairs.get_facecolor()[:3], plt.matplotlib.colors.to_rgb(siglip.get_color()))
