"""CrossModalRetriever: brute force is the referee, in both directions, for each similarity and each index."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from helpers import INDEXES
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from skalign import CCATeacher, CrossModalRetriever, HubnessCorrection, SOTAlign
from skalign.datasets import make_two_views

SIMILARITIES = ["cosine", "csls", "inverted_softmax"]


@pytest.fixture(scope="module")
def data():
    return make_two_views(40, 25, 35, 60, n_features_x=7, n_features_y=11, random_state=0)


@pytest.fixture(scope="module")
def aligner(data):
    return SOTAlign(max_iter=3, random_state=0, hubness_correction=False).fit(data.X, data.Y, data.paired_idx)


def views(data, gallery):
    """Rows of a gallery, queries, and reference queries."""
    if gallery == "x":
        return data.X_test, data.Y_test[:50], data.Y
    return data.Y_test, data.X_test[:50], data.X


def embedded(aligner, data, gallery):
    rows, queries, references = views(data, gallery)
    own, other = aligner.transform, aligner.transform_y
    if gallery == "y":
        own, other = other, own
    return own(rows), other(queries), other(references)


def distances_by_definition(similarity, G, Q, R, *, k=4, temperature=0.1):
    """Row by row from the published formulas; k neighbours for CSLS."""
    D = np.empty((len(Q), len(G)))
    for j, g in enumerate(G):
        cosines = Q @ g
        if similarity == "cosine":
            D[:, j] = 1 - cosines
        elif similarity == "csls":
            D[:, j] = 1 - (2 * cosines - np.mean(sorted(R @ g)[-k:])) / 2
        else:
            log_odds = cosines / temperature - logsumexp(R @ g / temperature)
            D[:, j] = 1 - temperature * (log_odds + np.log(len(R)))
    return D


@pytest.mark.parametrize("gallery", ["x", "y"])
def test_it_agrees_with_scikit_learn(data, aligner, gallery):
    G, Q, _ = embedded(aligner, data, gallery)
    expected = NearestNeighbors(n_neighbors=5, metric="cosine").fit(G).kneighbors(Q)
    rows, queries, _ = views(data, gallery)
    retriever = CrossModalRetriever(aligner, n_neighbors=5, gallery=gallery).fit(rows)
    distances, found = retriever.kneighbors(queries)
    assert_array_equal(found, expected[1])
    assert_allclose(distances, expected[0], atol=1e-12)
    assert_array_equal(retriever.kneighbors(queries, 3, return_distance=False), found[:, :3])


@pytest.mark.parametrize("index", ["exact", *INDEXES])
@pytest.mark.parametrize("gallery", ["x", "y"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_each_similarity_is_its_published_formula(data, aligner, similarity, gallery, index):
    rows, queries, references = views(data, gallery)
    D = distances_by_definition(similarity, *embedded(aligner, data, gallery))
    expected = np.argsort(D, axis=1, kind="stable")[:, :6]
    retriever = CrossModalRetriever(
        aligner,
        n_neighbors=6,
        gallery=gallery,
        similarity=similarity,
        csls_neighbors=4,
        temperature=0.1,
        index=index,
    )
    distances, found = retriever.fit(rows, queries=references).kneighbors(queries)
    assert found.dtype == np.int64
    assert_allclose(distances, np.take_along_axis(D, found, axis=1), atol=1e-12)
    if index == "usearch":  # chooses in half precision
        assert_allclose(distances, np.take_along_axis(D, expected, axis=1), atol=1e-3)
    else:
        assert_array_equal(found, expected)
    assert_allclose(np.linalg.norm(retriever.gallery_, axis=1), 1)


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_the_inverted_softmax_lies_between_the_mean_and_the_nearest_query(data, aligner, temperature):
    rows, _, references = views(data, "y")
    G, _, R = embedded(aligner, data, "y")
    retriever = CrossModalRetriever(aligner, similarity="inverted_softmax", temperature=temperature)
    hubness = retriever.fit(rows, queries=references).hubness_
    limit = (G @ R.T).max(axis=1) if temperature < 1 else (G @ R.T).mean(axis=1)
    assert_allclose(hubness, limit, atol=1e-2)


@pytest.mark.parametrize("similarity", ["csls", "inverted_softmax"])
def test_a_planted_hub_is_found_less_often_and_partners_more_often(rng, similarity):
    F = normalize(rng.standard_normal((400, 20)) + 0.5)  # all lean to one side
    G = normalize(F + 0.35 * rng.standard_normal(F.shape))
    G[0] = 20**-0.5  # and this one is near to all of them

    def first(similarity):
        retriever = CrossModalRetriever(AsItIs(), n_neighbors=1, similarity=similarity).fit(G[:200], queries=F[200:])
        return retriever.kneighbors(F[:200], return_distance=False)[:, 0]

    plain, corrected = first("cosine"), first(similarity)
    assert np.count_nonzero(plain == 0) > 2 * np.count_nonzero(corrected == 0)
    assert np.mean(corrected == np.arange(200)) > np.mean(plain == np.arange(200))


class AsItIs(BaseEstimator):
    """An aligner of rows that are embedded already."""

    def fit(self, X=None, Y=None):
        return self

    def transform(self, X):
        return X

    transform_y = transform


def test_cosines_of_corrected_embeddings_rank_as_csls_with_their_anchors(data, aligner):
    corrected = HubnessCorrection(FrozenEstimator(aligner), n_neighbors=4, random_state=0)
    corrected.fit(data.X, data.Y, data.paired_idx)
    by_cosine = CrossModalRetriever(corrected, n_neighbors=60).fit(data.Y_test)
    by_csls = CrossModalRetriever(aligner, n_neighbors=60, similarity="csls", csls_neighbors=4)
    assert_array_equal(
        by_cosine.kneighbors(data.X_test, return_distance=False),
        by_csls.fit(data.Y_test, queries=data.X).kneighbors(data.X_test, return_distance=False),
    )


def test_few_reference_queries_count_by_a_tenth(data, aligner):
    G, _, R = embedded(aligner, data, "y")
    retriever = CrossModalRetriever(aligner, similarity="csls").fit(data.Y_test, queries=data.X[:13])
    expected = [np.mean(sorted(R[:13] @ g)[-2:]) / 2 for g in G]
    assert_allclose(retriever.hubness_, expected)


@pytest.mark.parametrize("index", ["exact", *INDEXES, NearestNeighbors(metric="cosine")], ids=str)
@pytest.mark.parametrize("similarity", ["cosine", "csls"])
def test_tensors_go_in_and_pickles_come_back(data, aligner, similarity, index):
    retriever = CrossModalRetriever(aligner, n_neighbors=4, similarity=similarity, index=index)
    retriever.fit(torch.from_numpy(data.Y_test), queries=torch.from_numpy(data.X))
    expected = retriever.kneighbors(data.X_test)
    for again in (pickle.loads(pickle.dumps(retriever)), copy.deepcopy(retriever)):
        for actual, desired in zip(again.kneighbors(torch.from_numpy(data.X_test)), expected, strict=True):
            assert_array_equal(actual, desired)


@pytest.mark.parametrize("index", ["exact", "voyager"])
def test_types_follow_the_gallery(data, aligner, index):
    retriever = CrossModalRetriever(aligner, n_neighbors=4, index=index, similarity="csls")
    expected = retriever.fit(data.Y_test, queries=data.X).kneighbors(data.X_test)[0]
    assert_allclose(retriever.kneighbors(data.X_test.astype(np.float32))[0], expected, atol=1e-5)
    narrow = retriever.fit(data.Y_test.astype(np.float32), queries=data.X).kneighbors(data.X_test)[0]
    assert narrow.dtype == retriever.gallery_.dtype == retriever.hubness_.dtype == np.float32
    assert_allclose(narrow, expected, atol=1e-5)


class Sorted:
    """The smallest index that keeps the protocol; returns rows in an order of its own."""

    def fit(self, G):
        self.G = G

    def kneighbors(self, Q, n_neighbors, return_distance):
        assert return_distance is False
        return np.sort(np.argsort(-Q @ self.G.T, axis=1, kind="stable")[:, :n_neighbors], axis=1).astype(np.uint32)


@pytest.mark.parametrize(
    "index",
    [Sorted(), *(NearestNeighbors(metric=m) for m in ("cosine", "euclidean"))],
    ids=["own", "cosine", "euclidean"],
)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_an_index_of_the_user_is_cloned_and_its_rows_are_ranked(data, aligner, similarity, index):
    exact = CrossModalRetriever(aligner, n_neighbors=7, similarity=similarity)
    expected = exact.fit(data.Y_test, queries=data.X).kneighbors(data.X_test)
    before = vars(index).copy()
    retriever = clone(exact.set_params(aligner=FrozenEstimator(aligner))).set_params(index=index)
    found = retriever.fit(data.Y_test, queries=data.X).kneighbors(data.X_test)
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-12)
    assert vars(index) == before
    assert clone(retriever).fit(data.Y_test, queries=data.X).index_ is not retriever.index_


class Answers(Sorted):
    """Answers what it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def kneighbors(self, Q, n_neighbors, return_distance):
        return self.answer(super().kneighbors(Q, n_neighbors, return_distance).astype(np.int64))


def test_what_an_index_does_not_find_is_searched_exactly(data, aligner):
    expected = CrossModalRetriever(aligner, n_neighbors=5).fit(data.Y_test).kneighbors(data.X_test)

    def forgets(rows):
        rows[3:5, 2:] = -1
        return rows

    retriever = CrossModalRetriever(aligner, n_neighbors=5, index=Answers(forgets)).fit(data.Y_test)
    with pytest.warns(UserWarning, match="fewer than 5 rows for 2 of 60 queries") as record:
        found = retriever.kneighbors(data.X_test)
    assert record[0].filename == __file__
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-12)


@pytest.mark.parametrize(
    "answer", [lambda rows: rows[:, 1:], lambda rows: rows + 60, lambda rows: rows / 1, lambda rows: rows[0]]
)
def test_an_index_that_returns_no_rows_of_the_gallery_is_refused(data, aligner, answer):
    retriever = CrossModalRetriever(aligner, n_neighbors=5, index=Answers(answer)).fit(data.Y_test)
    with pytest.raises(ValueError, match=r"must return integers below 60, the rows of the gallery, in shape \(60, 5\)"):
        retriever.kneighbors(data.X_test)


@pytest.mark.parametrize("index", INDEXES)
def test_of_equal_rows_no_library_loses_any(aligner, data, index):
    Y = np.tile(data.Y_test[:2], (1000, 1))
    retriever = CrossModalRetriever(aligner, n_neighbors=2000, index=index).fit(Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "searched exactly": where a library lost some, which depends on its threads
        rows = retriever.kneighbors(data.X_test[:3], return_distance=False)
    assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(2000), (3, 1)))


def test_a_torch_device_finds_the_same_and_is_left_out_of_files(data, aligner, monkeypatch):
    retriever = CrossModalRetriever(aligner, n_neighbors=5).fit(data.Y_test)
    expected = retriever.kneighbors(data.X_test)
    monkeypatch.setattr("skalign._retrieval._torch_device", lambda device: torch.device("cpu"))
    found = retriever.kneighbors(data.X_test)
    assert all(isinstance(part, np.ndarray) for part in found)
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-12)
    assert len(retriever._on_device) == 1
    assert pickle.loads(pickle.dumps(retriever))._on_device == {}
    retriever.fit(data.Y_test[30:])
    assert_array_equal(retriever.kneighbors(data.X_test)[1].max(), 29)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same(data, aligner):
    expected = CrossModalRetriever(aligner, device="cpu").fit(data.Y_test).kneighbors(data.X_test)
    found = CrossModalRetriever(aligner, device="cuda").fit(data.Y_test).kneighbors(data.X_test)
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-6)


def test_without_torch_nothing_loads_it():
    code = (
        "import sys, numpy as np; from skalign import CCATeacher, CrossModalRetriever; "
        "A, B = np.random.default_rng(0).standard_normal((2, 20, 5)); aligner = CCATeacher().fit(A, B); "
        "CrossModalRetriever(aligner, similarity='csls').fit(B, queries=A).kneighbors(A); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


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
    with pytest.raises(NotFittedError, match=r"pass FrozenEstimator\(aligner\)"):
        clone(retriever).fit(data.Y_test)
    with pytest.raises(NotFittedError):
        CrossModalRetriever(aligner).kneighbors(data.X_test)


@pytest.mark.parametrize(("gallery", "view"), [("x", "Y"), ("y", "X")])
def test_a_similarity_without_its_reference_queries_is_refused(data, aligner, gallery, view):
    rows, _, references = views(data, gallery)
    for similarity in ("csls", "inverted_softmax"):
        retriever = CrossModalRetriever(aligner, gallery=gallery, similarity=similarity)
        with pytest.raises(ValueError, match=rf"`queries` is None .*Pass rows of {view}.*similarity=\"cosine\""):
            retriever.fit(rows)
        with pytest.raises(ValueError, match="features"):
            retriever.fit(rows, queries=rows)
        with pytest.raises(ValueError, match="contains NaN"):
            retriever.fit(rows, queries=np.full_like(references, np.nan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": "faiss"}, "'index' parameter"),
        ({"index": object()}, "'index' parameter"),
        ({"similarity": "dot"}, "'similarity' parameter"),
        ({"temperature": 0}, "'temperature' parameter"),
        ({"csls_neighbors": 0}, "'csls_neighbors' parameter"),
        ({"device": "abacus"}, "`device` must be 'auto'"),
        ({"n_jobs": 0, "index": "voyager"}, "n_jobs"),
    ],
)
def test_settings_out_of_range_are_refused(data, aligner, settings, message):
    with pytest.raises(ValueError, match=message):
        CrossModalRetriever(aligner, **settings).fit(data.Y_test)


def test_pipelines_and_searches_are_taken_and_rows_need_not_have_unit_length(data, aligner):
    pipeline = make_pipeline(StandardScaler(), CCATeacher(reg=0.1)).fit(data.X[:40], data.Y[:40])
    found = CrossModalRetriever(pipeline, n_neighbors=4).fit(data.Y_test).kneighbors(data.X_test)
    by_hand = CrossModalRetriever(pipeline[-1], n_neighbors=4).fit(data.Y_test)
    expected = by_hand.kneighbors(pipeline[:-1].transform(data.X_test))
    assert_array_equal(found[1], expected[1])

    class Longer:
        def transform(self, X):
            return 3 * aligner.transform(X)

        def transform_y(self, Y):
            return aligner.transform_y(Y) * np.arange(1, len(Y) + 1)[:, None]

    expected = CrossModalRetriever(aligner, n_neighbors=4).fit(data.Y_test).kneighbors(data.X_test)
    found = CrossModalRetriever(Longer(), n_neighbors=4).fit(data.Y_test).kneighbors(data.X_test)
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-12)


def test_without_an_aligner_rows_are_in_one_space_already(data, aligner):
    F, G = aligner.transform(data.X_test, data.Y_test)
    expected = CrossModalRetriever(aligner, n_neighbors=4).fit(data.Y_test).kneighbors(data.X_test)
    found = CrossModalRetriever(n_neighbors=4).fit(2 * G).kneighbors(3 * F)
    assert_array_equal(found[1], expected[1])
    assert_allclose(found[0], expected[0], atol=1e-12)
    with pytest.raises(ValueError, match="features"):
        CrossModalRetriever().fit(G).kneighbors(F[:, 1:])


def test_the_view_of_the_gallery_is_that_of_the_fit(data, aligner):
    retriever = CrossModalRetriever(aligner, n_neighbors=4, gallery="x").fit(data.X_test)
    expected = retriever.kneighbors(data.Y_test)
    assert_array_equal(retriever.set_params(gallery="y").kneighbors(data.Y_test), expected)
