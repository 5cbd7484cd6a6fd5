"""Laws of the plan's picture: it is Sinkhorn's plan, sorted by the known pairs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skalign import CCATeacher, HubnessCorrection, SOTAlign, SOTAlignTransformer
from skalign.losses import sinkhorn
from skalign.plotting import PlanDisplay


@pytest.fixture(scope="module")
def trained(data):
    return SOTAlign(n_landmarks=0, max_iter=5, random_state=0).fit(data.X, data.Y, data.paired_idx)


def test_the_image_is_the_plan_in_units_of_the_uniform_one(aligner, captions):
    display = PlanDisplay.from_estimator(aligner, captions.X, captions.Y, captions.paired_idx, epsilon=0.2)
    F, G = aligner.transform(captions.X, captions.Y)
    plan = sinkhorn(torch.from_numpy(F @ G.T), epsilon=0.2).plan.numpy()
    assert_allclose(display.plan, plan, atol=1e-7)
    i, j = 3, 17
    shown = display.image_.get_array()[np.flatnonzero(display.x_order == i)[0], np.flatnonzero(display.y_order == j)[0]]
    assert_allclose(shown, max(plan[i, j] * 30 * 64, 1), rtol=1e-5)
    assert display.mass_on_pairs == pytest.approx(sum(plan[i, j] for i, j in captions.paired_idx), abs=1e-6)
    assert display.chance == 51 / (30 * 64)
    assert f"{100 * display.mass_on_pairs:.1f} % on the pairs" in display.ax_.get_title()


def test_sharp_plans_have_their_mass_on_the_diagonal(rng):
    Q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    order = rng.permutation(20)
    display = PlanDisplay.from_predictions(Q, Q[order], np.column_stack([order, np.arange(20)]), epsilon=0.05)
    assert display.mass_on_pairs > 0.999
    shown = display.image_.get_array()
    assert_allclose(np.diag(shown), 20, rtol=1e-3)
    assert display.image_.norm.vmax == 20  # the most that uniform marginals allow


def test_pairs_descend_and_rows_in_no_pair_come_last(captions):
    display = PlanDisplay(np.ones((30, 64)), captions.paired_idx)
    place_x, place_y = np.argsort(display.x_order), np.argsort(display.y_order)
    assert_array_equal(np.sort(display.x_order), np.arange(30))
    assert_array_equal(np.sort(display.y_order), np.arange(64))
    by_row = np.array(sorted(zip(place_x[captions.paired_idx[:, 0]], place_y[captions.paired_idx[:, 1]], strict=True)))
    assert_array_equal(by_row[:, 1], np.arange(51))  # one step right for each pair
    assert_array_equal(np.unique(by_row[:, 0]), np.arange(26))
    assert display.mass_on_pairs == pytest.approx(display.chance)
    across, down = display.plot().ax_.lines  # the first rows in no pair lie beyond
    assert across.get_ydata()[0] == 25.5
    assert down.get_xdata()[0] == 50.5


def test_student_and_teacher_are_those_of_the_training(trained, data):
    stage = trained.aligner_  # nothing is preprocessed here
    assert trained.x_transformer_ is None
    for which, model, epsilon in (("student", stage, 0.1), ("teacher", stage.teacher_, 0.02)):
        shown = PlanDisplay.from_estimator(trained, data.X_test, data.Y_test, which=which)
        expected = PlanDisplay.from_predictions(*model.transform(data.X_test, data.Y_test), epsilon=epsilon)
        assert_allclose(shown.plan, expected.plan, atol=1e-9)
        assert shown.ax_.get_title().startswith(which)


def test_preprocessing_and_corrections_are_walked_through(data):
    stage = SOTAlignTransformer(max_iter=3, random_state=0)
    aligner = SOTAlign(x_transformer=StandardScaler(), max_iter=3, random_state=0)
    aligner.fit(data.X, data.Y, data.paired_idx)
    X = aligner.x_features_(aligner.x_transformer_.transform(data.X_test))
    shown = PlanDisplay.from_estimator(aligner, data.X_test, data.Y_test, which="teacher")
    expected = PlanDisplay.from_estimator(aligner.aligner_, X, aligner.y_features_(data.Y_test), which="teacher")
    assert_array_equal(shown.plan, expected.plan)
    corrected = make_pipeline(StandardScaler(), HubnessCorrection(stage, random_state=0))
    corrected.fit(data.X, data.Y, hubnesscorrection__paired_idx=data.paired_idx)
    shown = PlanDisplay.from_estimator(corrected, data.X_test, data.Y_test)
    inner = corrected[1].estimator_
    expected = PlanDisplay.from_estimator(inner, corrected[0].transform(data.X_test), data.Y_test)
    assert_array_equal(shown.plan, expected.plan)


def test_a_plan_of_any_kind_and_total(rng):
    plan = rng.random((4, 6))
    shown = PlanDisplay(torch.from_numpy(3 * plan), [[0, 1], [2, 5]]).plot()
    assert shown.plan.sum() == pytest.approx(1)
    assert_allclose(shown.plan * plan.sum(), plan)
    assert shown.ax_.get_title().startswith(f"{100 * shown.mass_on_pairs:.1f} % on the pairs")


def test_illegal_input_is_refused(aligner, data, trained):
    with pytest.raises(ValueError, match="A plan must hold mass, at least 0, but its smallest entry is -1"):
        PlanDisplay(-np.eye(3))
    with pytest.raises(ValueError, match="`which` must be 'student' or 'teacher', but it is 'pupil'"):
        PlanDisplay.from_estimator(trained, data.X_test, data.Y_test, which="pupil")
    for estimator in (aligner, SOTAlign(alpha=0, max_iter=1).fit(data.X, data.Y, data.paired_idx)):
        with pytest.raises(ValueError, match="was fitted without a teacher"):
            PlanDisplay.from_estimator(estimator, data.X_test, data.Y_test, which="teacher")
    with pytest.raises(ValueError, match="epsilon"):
        PlanDisplay.from_estimator(aligner, data.X_test, data.Y_test, epsilon=0.0)


def test_a_plan_that_misses_its_marginals_is_told(rng):
    F, G = rng.standard_normal((2, 60, 3))
    with pytest.warns(ConvergenceWarning, match="The plan drawn misses its marginals by"):
        PlanDisplay.from_predictions(F, G, epsilon=1e-5)


def test_one_pair_is_drawn(data):
    aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    display = PlanDisplay.from_estimator(aligner, data.X_test[:1], data.Y_test[:1])
    assert display.mass_on_pairs == display.chance == 1
