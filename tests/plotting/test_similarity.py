"""Laws of the cosines' histograms: they are the cosines, and the area under the curve counts couples."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skalign.metrics import foscttm
from skalign.plotting import SimilarityDisplay


def cosines(F, G):
    F, G = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (F, G))
    return F @ G.T


def test_pairs_and_non_pairs_are_all_couples(captions, rng):
    F, G = rng.standard_normal((30, 5)), rng.standard_normal((64, 5))
    display = SimilarityDisplay.from_predictions(F, G, captions.paired_idx)
    K = cosines(F, G)
    is_pair = np.zeros(K.shape, dtype=bool)
    is_pair[tuple(captions.paired_idx.T)] = True
    assert_allclose(np.sort(display.pairs), np.sort(K[is_pair]))
    assert_allclose(np.sort(display.non_pairs), np.sort(K[~is_pair]))
    closer = K[is_pair][:, None] > K[~is_pair]
    assert display.auc == pytest.approx(closer.mean())
    assert f"pairs, AUC {display.auc:.3f}" in [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_histograms_are_densities_over_one_set_of_bins(aligner, data):
    display = SimilarityDisplay.from_estimator(aligner, data.X_test, data.Y_test, bins=20)
    for patch, values in zip(display.histograms_, (display.non_pairs, display.pairs), strict=True):
        density, edges, _ = patch.get_data()
        assert len(edges) == 21
        assert_allclose(np.sum(density * np.diff(edges)), 1)
        assert_allclose(density * np.diff(edges) * len(values), np.histogram(values, edges)[0], atol=1e-9)
    assert display.ax_.get_title() == "CCATeacher"


def test_perfect_embeddings_leave_no_non_pair_above_a_pair(rng):
    Q = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert SimilarityDisplay.from_predictions(Q, Q).auc == 1 == 1 - foscttm(Q, Q)
    assert SimilarityDisplay.from_predictions(Q, -Q).auc == 0


def test_some_non_pairs_stand_for_all(rng):
    F, G = rng.standard_normal((2, 50, 4))
    everything = SimilarityDisplay.from_predictions(F, G)
    some, again, other = (
        SimilarityDisplay.from_predictions(F, G, n_non_pairs=1500, random_state=seed) for seed in (0, 0, 1)
    )
    assert len(everything.non_pairs) == 50 * 49
    assert len(some.non_pairs) == 1500
    assert np.isin(some.non_pairs.round(9), everything.non_pairs.round(9)).all()
    assert_array_equal(some.non_pairs, again.non_pairs)
    assert (some.non_pairs != other.non_pairs).any()
    assert some.auc == pytest.approx(everything.auc, abs=0.05)


def test_without_a_non_pair_there_is_nothing_to_compare(aligner, data):
    with pytest.raises(ValueError, match="Every couple of rows is a pair"):
        SimilarityDisplay.from_estimator(aligner, data.X_test[:1], data.Y_test[:1])
    with pytest.raises(ValueError, match="`n_non_pairs` must be an integer of at least 1, but it is 0"):
        SimilarityDisplay.from_estimator(aligner, data.X_test, data.Y_test, n_non_pairs=0)
