"""Laws of labelled classes of a view: who joins them, and which classifier tells."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC

from skalign._classes import choose_classifier, classes_of


def three_classes(rng, n_rows=30):
    of_class = np.arange(n_rows) % 3
    return 5 * np.eye(3, 4)[of_class] + 0.2 * rng.standard_normal((n_rows, 4)), of_class


def test_rows_and_means_of_a_class_are_those_of_the_prepared_view(rng):
    view = rng.standard_normal((9, 4))
    classes = classes_of(view, [np.array([1, 7]), np.array([3])], lambda rows: 2 * rows)
    for members, rows, mean in zip(classes.members, ([1, 7], [3]), classes.means, strict=True):
        assert_array_equal(classes.rows[members], 2 * view[rows])
        assert_allclose(mean, 2 * view[rows].mean(axis=0))


def test_further_rows_join_the_class_a_classifier_gives_them(rng):
    known, of_known = three_classes(rng)
    rows, of_rows = three_classes(rng, 50)
    classes = classes_of(known, [np.flatnonzero(of_known == c) for c in range(3)], lambda rows: rows)
    for classifier in (None, KNeighborsClassifier(1)):
        joined = classes.joined_by(rows, classifier, np.random.RandomState(0))
        for c, members in enumerate(joined.members):
            expected = np.concatenate([known[of_known == c], rows[of_rows == c]])
            assert_array_equal(joined.rows[members], expected)
        assert_array_equal(joined.means, classes.means)
    one = classes_of(known, [np.arange(5)], lambda rows: rows)
    assert one.joined_by(rows, None, np.random.RandomState(0)) is one


def test_constant_columns_are_no_matter_for_a_warning(rng):
    known, of_known = three_classes(rng)
    known[:, 3] = 1
    classes = classes_of(known, [np.flatnonzero(of_known == c) for c in range(3)], lambda rows: rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes.joined_by(known, None, np.random.RandomState(0))


def test_partners_are_the_means_of_the_class_in_the_other_view(rng):
    X, Y = rng.standard_normal((6, 4)), rng.standard_normal((5, 3))
    of_x = classes_of(X, [np.array([0, 2]), np.array([5])], lambda rows: rows)
    of_y = classes_of(Y, [np.array([1]), np.array([3, 4])], lambda rows: rows)
    at, means = of_x.partners_in_mean(of_y)
    assert_array_equal(of_x.rows[at], X[[0, 2, 5]])
    assert_allclose(means, [Y[1], Y[1], Y[[3, 4]].mean(axis=0)])


@pytest.mark.parametrize("kind", ["means", "covariance", "rings"])
def test_the_classifier_is_chosen_for_the_data(rng, kind):
    n = 60
    labels = np.arange(n) % 2
    if kind == "means":  # far means, too few rows to learn a covariance of 40 columns from
        rows, labels = rng.standard_normal((8, 40)) + 3 * (labels[:8, None] * 2 - 1), labels[:8]
        expected = NearestCentroid
    elif kind == "covariance":  # what tells the classes apart is drowned by a direction that does not
        rows = rng.standard_normal((n, 2)) * [0.2, 30] + np.column_stack([labels, np.zeros(n)])
        expected = Pipeline
    else:
        angles = rng.uniform(0, 2 * np.pi, n)
        rows = (0.3 + labels)[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])
        expected = SVC
    assert isinstance(choose_classifier(rows, labels, np.random.RandomState(0)), expected)


def test_one_row_in_a_class_leaves_the_nearest_mean(rng):
    chosen = choose_classifier(rng.standard_normal((5, 3)), np.array([0, 0, 1, 1, 2]), np.random.RandomState(0))
    assert isinstance(chosen, NearestCentroid)
