"""CrossModalRetriever: scikit-learn's brute force is the referee, in both directions."""

import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors

from skalign import CCATeacher, CrossModalRetriever, SOTAlign
from skalign.datasets import make_two_views


@pytest.fixture(scope="module")
def data():
    return make_two_views(40, 25, 35, 60, n_features_x=7, n_features_y=11, random_state=0)


@pytest.fixture(scope="module")
def aligner(data):
    return SOTAlign(max_iter=3, random_state=0).fit(data.X, data.Y, data.paired_idx)


@pytest.mark.parametrize("gallery", ["x", "y"])
def test_it_agrees_with_brute_force(data, aligner, gallery):
    F, G = aligner.transform(data.X_test, data.Y_test)
    rows, queries = (F, G) if gallery == "x" else (G, F)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(rows).kneighbors(queries)
    of_rows, of_queries = (data.X_test, data.Y_test) if gallery == "x" else (data.Y_test, data.X_test)
    retriever = CrossModalRetriever(aligner, n_neighbors=5, gallery=gallery).fit(of_rows)
    distances, found = retriever.kneighbors(of_queries)
    assert_array_equal(found, expected[1])
    assert_allclose(distances, expected[0], atol=1e-12)
    assert_array_equal(retriever.kneighbors(of_queries, 3, return_distance=False), found[:, :3])


def test_tensors_go_in_and_pickles_come_back(data, aligner):
    retriever = CrossModalRetriever(aligner, n_neighbors=4).fit(torch.from_numpy(data.Y_test))
    expected = retriever.kneighbors(data.X_test)
    copy = pickle.loads(pickle.dumps(retriever))
    for actual, desired in zip(copy.kneighbors(torch.from_numpy(data.X_test)), expected, strict=True):
        assert_array_equal(actual, desired)


def test_float32_queries_meet_a_float64_gallery(data, aligner):
    retriever = CrossModalRetriever(aligner, n_neighbors=4).fit(data.Y_test)
    expected = retriever.kneighbors(data.X_test)[0]
    assert_allclose(retriever.kneighbors(data.X_test.astype(np.float32))[0], expected, atol=1e-5)


def test_wrong_use_is_refused_and_loses_nothing(data, aligner):
    retriever = CrossModalRetriever(aligner, n_neighbors=4).fit(data.Y_test)
    before = retriever.gallery_
    with pytest.raises(ValueError, match="Y has 7 features"):
        retriever.fit(data.X_test)
    assert retriever.gallery_ is before
    with pytest.raises(ValueError, match="integer from 1 to 60, the rows of the gallery, but it is 61"):
        retriever.kneighbors(data.X_test, 61)
    with pytest.raises(ValueError, match="contains NaN"):
        retriever.kneighbors(np.full((1, 7), np.nan))
    with pytest.raises(NotFittedError):
        CrossModalRetriever(CCATeacher()).fit(data.Y_test)
    with pytest.raises(NotFittedError):
        CrossModalRetriever(aligner).kneighbors(data.X_test)
