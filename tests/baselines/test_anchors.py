"""Laws of relative representations and ASIF."""

import numpy as np
import pytest
from helpers import LAW
from numpy.testing import assert_allclose
from scipy.stats import ortho_group

from skalign.baselines import ASIF, RelativeRepresentation


@pytest.fixture
def views(rng):
    return rng.normal(size=(9, 7)), rng.normal(size=(9, 11)), rng.normal(size=(5, 7))


def unit(v):
    return v / np.linalg.norm(v)


@pytest.mark.parametrize("center", [None, "pairs"])
@pytest.mark.parametrize("aligner", [RelativeRepresentation(), ASIF(n_neighbors=4, power=3)])
def test_views_that_are_rotations_of_one_another_become_one(views, rng, aligner, center):
    X, _, X_test = views
    rotation = ortho_group.rvs(7, random_state=rng)
    F, G = aligner.set_params(center=center).fit(X, X @ rotation).transform(X_test, X_test @ rotation)
    assert_allclose(F, G, **LAW[np.float64])


def test_entries_are_cosines_with_the_anchors(views):
    X, Y, X_test = views
    found = RelativeRepresentation(center="pairs").fit(X, Y).transform(X_test)
    anchors = [unit(x) for x in X]
    mean = np.mean(anchors, axis=0)
    for i, x in enumerate(X_test):
        expected = [unit(unit(x) - mean) @ unit(anchor - mean) for anchor in anchors]
        assert_allclose(found[i], unit(np.array(expected)), **LAW[np.float64])


def test_asif_keeps_the_largest_positive_cosines(views):
    X, Y, X_test = views
    found = ASIF(n_neighbors=3, power=2.5).fit(X, Y).transform(X_test)
    for i, x in enumerate(X_test):
        cosines = [unit(x) @ unit(anchor) for anchor in X]
        third = sorted(cosines)[-3]
        expected = [max(c, 0) ** 2.5 if c >= third else 0 for c in cosines]
        assert_allclose(found[i], unit(np.array(expected)), **LAW[np.float64])


def test_a_high_power_does_not_vanish(views):
    X, Y, X_test = views
    F = ASIF(power=300).fit(X.astype(np.float32), Y.astype(np.float32)).transform(X_test.astype(np.float32))
    assert_allclose(np.linalg.norm(F, axis=1), 1, **LAW[np.float32])
    nearest = [np.argmax([unit(x) @ unit(anchor) for anchor in X]) for x in X_test]
    assert F.argmax(axis=1).tolist() == nearest


def test_asif_of_all_cosines_to_the_first_power_is_relative_where_they_are_positive(views):
    X, Y, X_test = (np.abs(view) for view in views)
    expected = RelativeRepresentation().fit(X, Y).transform(X_test)
    assert_allclose(ASIF(power=1).fit(X, Y).transform(X_test), expected, **LAW[np.float64])


def test_free_rows_move_the_mean_only_if_asked(views):
    X, Y, X_test = views
    fitted = {c: RelativeRepresentation(center=c).fit(X, Y, X_unpaired=X_test).x_mean_ for c in (None, "pairs", "all")}
    scaled = np.array([unit(x) for x in [*X, *X_test]])
    assert_allclose(fitted["pairs"], scaled[:9].mean(axis=0))
    assert_allclose(fitted["all"], scaled.mean(axis=0))
    assert_allclose(fitted[None], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, 7])
def test_pairs_that_do_not_vary_cannot_be_centred(views, n, dtype):
    X, Y = (np.repeat(view[:1], n, axis=0).astype(dtype) for view in views[:2])
    with pytest.raises(ValueError, match="paired rows of X do not differ.*or center=None"):
        RelativeRepresentation(center="pairs").fit(X, Y)
    assert RelativeRepresentation().fit(X, Y).n_components_ == n


@pytest.mark.filterwarnings("ignore:.* zero throughout")
def test_pairs_that_are_zero_are_no_anchors(views):
    X, Y, _ = views
    with pytest.raises(ValueError, match="The 9 paired rows of Y are zero throughout.*check the encoder"):
        RelativeRepresentation().fit(X, 0 * Y)


def test_a_row_without_a_positive_cosine_becomes_zero(views):
    X, Y, _ = views
    assert_allclose(ASIF().fit(X[:1], Y[:1]).transform(-X[:1]), [[0.0]])


def test_power_from_a_numpy_grid_keeps_the_type(views):
    X, Y, X_test = (view.astype(np.float32) for view in views)
    assert ASIF(power=np.float64(2)).fit(X, Y).transform(X_test).dtype == np.float32
