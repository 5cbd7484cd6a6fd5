"""Laws of the recall curve: it is `recall_at_k`, and chance is what random galleries give."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skalign.metrics import recall_at_k
from skalign.plotting import RecallCurveDisplay


def test_the_curves_are_recall_at_k(aligner, captions):
    display = RecallCurveDisplay.from_estimator(aligner, captions.X, captions.Y, captions.paired_idx)
    F, G = aligner.transform(captions.X, captions.Y)
    assert_array_equal(display.k, np.arange(1, 65))  # the larger gallery has 64 rows
    for way, line in zip(("x_to_y", "y_to_x"), display.lines_, strict=True):
        expected = [recall_at_k(F, G, captions.paired_idx, k=k, direction=way) for k in display.k]
        assert_allclose(line.get_ydata(), expected)
        assert_array_equal(line.get_xdata(), display.k)
    assert 0 < display.recall["x_to_y"][0] < display.recall["x_to_y"][-1] == 1


@pytest.mark.parametrize("direction", ["mean", "x_to_y", "y_to_x"])
def test_one_curve_for_one_direction(aligner, captions, direction):
    F, G = aligner.transform(captions.X, captions.Y)
    display = RecallCurveDisplay.from_predictions(F, G, captions.paired_idx, k=[1, 7], direction=direction)
    expected = [recall_at_k(F, G, captions.paired_idx, k=k, direction=direction) for k in (1, 7)]
    assert_allclose(display.lines_[0].get_ydata(), expected)
    assert len(display.lines_) == len(display.chance_lines_) == 1


def test_chance_is_the_mean_of_random_galleries(captions, rng):
    n_x, n_y = len(captions.X), len(captions.Y)
    F, G = rng.standard_normal((n_x, 5)), rng.standard_normal((n_y, 5))
    display = RecallCurveDisplay.from_predictions(F, G, captions.paired_idx, k=[1, 5, 20])
    for way, line in zip(("x_to_y", "y_to_x"), display.chance_lines_, strict=True):
        found = []
        for _ in range(400):
            shuffled = rng.standard_normal((n_x, 40)), rng.standard_normal((n_y, 40))
            found.append([recall_at_k(*shuffled, captions.paired_idx, k=k, direction=way) for k in (1, 5, 20)])
        error = np.std(found, axis=0) / np.sqrt(len(found))
        assert (np.abs(np.mean(found, axis=0) - line.get_ydata()) < 4 * error).all()


def test_chance_reaches_one_at_the_whole_gallery(captions):
    F, G = np.ones((30, 2)), np.ones((64, 2))
    display = RecallCurveDisplay.from_predictions(F, G, captions.paired_idx, k=[30, 64])
    assert_allclose(display.chance["x_to_y"][1], 1)
    assert_allclose(display.chance["y_to_x"], 1)
    assert_array_equal(display.recall["x_to_y"], [0, 1])  # ties count against the model, and rank last


def test_aligners_share_axes_and_are_told_apart_by_name(aligner, captions):
    pairs, ax = captions.paired_idx, plt.subplots()[1]
    both = RecallCurveDisplay.from_estimator(aligner, captions.X, captions.Y, pairs)
    first = RecallCurveDisplay.from_estimator(aligner, captions.X, captions.Y, pairs, direction="mean", ax=ax)
    second = RecallCurveDisplay.from_estimator(
        aligner,
        captions.X,
        captions.Y,
        pairs,
        direction="mean",
        plot_chance_level=False,
        name="again",
        ax=first.ax_,
        line_kw={"linestyle": "--"},
    )
    assert second.ax_ is first.ax_
    assert second.chance_lines_ == []
    assert [text.get_text() for text in first.ax_.get_legend().get_texts()] == ["CCATeacher", "chance", "again"]
    assert second.lines_[0].get_linestyle() == "--"
    colors = [line.get_color() for line in (*both.lines_, *first.lines_, *second.lines_)]
    assert len(set(colors)) == 4  # a mean never has the colour of a direction


def test_views_have_the_names_given(aligner, captions):
    display = RecallCurveDisplay.from_estimator(
        aligner, captions.X, captions.Y, captions.paired_idx, view_names=("picture", "text"), plot_chance_level=False
    )
    labels = [line.get_label() for line in display.lines_]
    assert labels == ["CCATeacher, picture → text", "CCATeacher, text → picture"]


@pytest.mark.parametrize("k", [0, 2.5, [], [0, 3], "ten"])
def test_what_is_no_k_is_refused(aligner, data, k):
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1"):
        RecallCurveDisplay.from_estimator(aligner, data.X_test, data.Y_test, k=k)


def test_an_unknown_direction_is_refused(aligner, data):
    with pytest.raises(ValueError, match="`direction` must be 'both', 'mean', 'x_to_y' or 'y_to_x', but it is 'xy'"):
        RecallCurveDisplay.from_estimator(aligner, data.X_test, data.Y_test, direction="xy")
