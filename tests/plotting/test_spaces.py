"""Laws of the spaces' picture: principal components of each view, and shared ones after; lines join the pairs."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import pdist

from skalign import CCATeacher, HubnessCorrection, SOTAlign
from skalign.plotting import SpacesDisplay


def test_flat_views_keep_their_shape(rng):
    X, Y = rng.standard_normal((9, 2)), rng.standard_normal((12, 2)) @ np.eye(2, 5)
    F, G = rng.standard_normal((9, 2)), rng.standard_normal((12, 2))
    display = SpacesDisplay.from_predictions(X, Y, F, G, [[0, 1], [4, 4]])
    assert_allclose(pdist(display.X), pdist(X))
    assert_allclose(pdist(display.Y), pdist(Y))
    assert_allclose(pdist(np.concatenate([display.F, display.G])), pdist(np.concatenate([F, G])))
    assert_allclose(display.explained.sum(axis=1), 1)


def test_points_and_lines_are_the_rows_and_the_pairs(aligner, captions):
    display = SpacesDisplay.from_estimator(aligner, captions.X, captions.Y, captions.paired_idx)
    for points, unpaired, rows, column in zip(
        display.points_, display.unpaired_, (display.X, display.Y, display.F, display.G), (0, 1, 0, 1), strict=True
    ):
        paired = np.unique(captions.paired_idx[:, column])
        assert_allclose(points.get_offsets(), rows[paired])
        assert len(unpaired.get_offsets()) == len(rows) - len(paired) > 0
    ends = np.stack(display.links_.get_segments())
    i, j = captions.paired_idx.T
    assert_allclose(ends, np.stack([display.F[i], display.G[j]], axis=1))
    assert_allclose([link.xy1 for link in display.links_before_], display.X[i])
    assert_allclose([link.xy2 for link in display.links_before_], display.Y[j])


def test_an_alignment_without_error_has_lines_without_length(data):
    X = data.X_test
    aligner = CCATeacher(reg=1e-9).fit(X, X)
    ends = np.stack(SpacesDisplay.from_estimator(aligner, X, X).links_.get_segments())
    assert_allclose(ends[:, 0], ends[:, 1], atol=1e-4)
    assert np.ptp(ends[:, 0], axis=0).min() > 0.1


@pytest.mark.parametrize(("n_links", "drawn"), [(0, 0), (1, 1), (7, 7), (1000, 30)])
def test_at_most_so_many_lines(aligner, data, n_links, drawn):
    display = SpacesDisplay.from_estimator(aligner, data.X_test, data.Y_test, n_links=n_links)
    assert len(display.links_.get_segments()) == len(display.links_before_) == drawn


def test_the_space_is_that_before_the_hubness_correction(aligner, data):
    corrected = HubnessCorrection(CCATeacher(reg=0.1), random_state=0).fit(data.X, data.Y, data.paired_idx)
    shown, expected = (SpacesDisplay.from_estimator(a, data.X_test, data.Y_test) for a in (corrected, aligner))
    assert_array_equal(shown.F, expected.F)
    trained = SOTAlign(n_landmarks=0, max_iter=2, random_state=0).fit(data.X, data.Y, data.paired_idx)
    shown, expected = (SpacesDisplay.from_estimator(a, data.X_test, data.Y_test) for a in (trained, trained.aligner_))
    assert_array_equal(shown.G, expected.G)


def test_views_of_one_column_are_drawn_on_a_line(data):
    Y = data.Y[:40, 0]
    aligner = CCATeacher(reg=0.1).fit(data.X[:40], Y)
    display = SpacesDisplay.from_estimator(aligner, data.X[:40], Y)
    assert_array_equal(display.Y[:, 1], 0)
    assert np.ptp(display.Y[:, 0]) > 0


def test_rows_that_are_all_alike_are_one_point(aligner, data):
    F, G = aligner.transform(data.X_test, data.Y_test)
    display = SpacesDisplay.from_predictions(np.ones((30, 7)), data.Y_test, F, G)
    assert_array_equal(display.X, 0)
    assert_array_equal(display.explained[0], 0)


def test_settings_of_the_points_are_handed_on(aligner, data):
    display = SpacesDisplay.from_estimator(aligner, data.X_test, data.Y_test, scatter_kw={"s": 3, "alpha": 0.5})
    for points in display.points_:
        assert_array_equal(points.get_sizes(), 3)
        assert points.get_alpha() == 0.5


def test_names_and_variance_are_written(aligner, data):
    display = SpacesDisplay.from_estimator(aligner, data.X_test, data.Y_test, view_names=("image", "caption"))
    assert [ax.get_title() for ax in display.axes_] == ["image, before", "caption, before", "both, after"]
    for ax, (first, second) in zip(display.axes_, 100 * display.explained, strict=True):
        assert f"{first:.0f} % and {second:.0f} %" in ax.get_xlabel()


def test_illegal_input_is_refused(aligner, data):
    test = data.X_test, data.Y_test
    with pytest.raises(ValueError, match=r"`ax` must hold three axes, but its shape is \(\)"):
        SpacesDisplay.from_estimator(aligner, *test, ax=object())
    with pytest.raises(ValueError, match="`n_links` must be an integer of at least 0, but it is -1"):
        SpacesDisplay.from_estimator(aligner, *test, n_links=-1)
    with pytest.raises(ValueError, match="a minimum of 2 is required"):
        SpacesDisplay.from_estimator(aligner, data.X_test[:1], data.Y_test[:1])
    with pytest.raises(ValueError, match="X and its embedding must have equally many rows, but they have 5 and 30"):
        SpacesDisplay.from_predictions(data.X_test[:5], data.Y_test, *aligner.transform(*test))
