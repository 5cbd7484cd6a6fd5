"""Laws of the retrieval metrics. The ranks have their own tests; here the views, the directions and the averages."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skalign import metrics
from skalign.metrics import (
    foscttm,
    mean_recall,
    mean_reciprocal_rank,
    median_rank,
    recall_at_k,
    retrieval_report,
)

DIRECTED = [recall_at_k, median_rank, mean_reciprocal_rank]
EVERY = [*DIRECTED, mean_recall, foscttm]
SWAPPED = {"x_to_y": "y_to_x", "y_to_x": "x_to_y", "mean": "mean"}


@pytest.fixture
def views(rng):
    """Two noisy copies of a latent, 23 x 31 rows, with pairs of every kind and rows in no pair."""
    latent = rng.normal(size=(8, 5))
    F = np.vstack([latent, latent, rng.normal(size=(7, 5))]) + 0.4 * rng.normal(size=(23, 5))
    G = np.vstack([latent, latent, latent, rng.normal(size=(7, 5))]) + 0.4 * rng.normal(size=(31, 5))
    i = np.arange(8)
    blocks = [(i, i), (i[:5], i[:5] + 8), (i[:4], i[:4] + 16), (i[2:] + 8, i[2:])]  # the last is many-to-one
    return F, G, rng.permutation(np.concatenate([np.column_stack(block) for block in blocks]))


def referee(F, G, pairs):
    """Ranks and fractions of closer rows for each query of F, by plain loops."""
    ranks, fractions = [], []
    for i in sorted({i for i, _ in pairs}):
        own = {j for q, j in pairs if q == i}
        cosine = [sum(F[i] * g) / (sum(F[i] ** 2) * sum(g**2)) ** 0.5 for g in G]
        best = max(cosine[j] for j in own)
        before = sum(c >= best for j, c in enumerate(cosine) if j not in own)
        ranks.append(before + 1)
        fractions.append(before / (len(G) - len(own)))
    return ranks, fractions


def expected_report(F, G, pairs):
    """The whole report by plain loops."""
    expected, closer = {}, []
    for way, view in {"x_to_y": (F, G, pairs), "y_to_x": (G, F, pairs[:, ::-1])}.items():
        ranks, fractions = referee(*view)
        for k in (1, 5, 10):
            expected[f"{way}_r{k}"] = sum(r <= k for r in ranks) / len(ranks)
        expected[f"{way}_median_rank"] = (sorted(ranks)[(len(ranks) - 1) // 2] + sorted(ranks)[len(ranks) // 2]) / 2
        expected[f"{way}_mrr"] = sum(1 / r for r in ranks) / len(ranks)
        closer.append(sum(fractions) / len(fractions))
    for name in ("r1", "r5", "r10", "median_rank", "mrr"):
        expected[f"mean_{name}"] = (expected[f"x_to_y_{name}"] + expected[f"y_to_x_{name}"]) / 2
    recalls = [expected[f"{way}_r{k}"] for way in ("x_to_y", "y_to_x") for k in (1, 5, 10)]
    return expected | {"mean_recall": sum(recalls) / 6, "foscttm": sum(closer) / 2}


def assert_same_report(actual, desired):
    assert actual.keys() == desired.keys()
    for name, value in desired.items():
        assert_allclose(actual[name], value, rtol=1e-12, err_msg=name)


def test_report_equals_plain_loops(views):
    expected = expected_report(*views)
    assert 0 < expected["y_to_x_r1"] < expected["y_to_x_r5"] < 1  # or the views would test nothing
    assert expected["x_to_y_r1"] != expected["y_to_x_r1"]
    assert_same_report(retrieval_report(*views), expected)


def test_report_agrees_with_each_metric(views):
    report = retrieval_report(*views)
    single = {"mean_recall": mean_recall(*views), "foscttm": foscttm(*views)}
    for way in SWAPPED:
        single |= {f"{way}_r{k}": recall_at_k(*views, k=k, direction=way) for k in (1, 5, 10)}
        single[f"{way}_median_rank"] = median_rank(*views, direction=way)
        single[f"{way}_mrr"] = mean_reciprocal_rank(*views, direction=way)
    assert_same_report(report, single)
    assert all(type(value) is float for value in report.values())


@pytest.mark.parametrize(
    ("metric", "options", "passes"),
    [
        (retrieval_report, {}, 2),
        (mean_recall, {}, 2),
        (foscttm, {}, 2),
        (recall_at_k, {"direction": "x_to_y"}, 1),
        (median_rank, {"direction": "y_to_x"}, 1),
    ],
)
def test_each_direction_is_ranked_once_and_only_if_asked(views, monkeypatch, metric, options, passes):
    calls = []

    def counted(*args):
        calls.append(args)
        return best_match_ranks(*args)

    best_match_ranks = metrics.best_match_ranks
    monkeypatch.setattr(metrics, "best_match_ranks", counted)
    metric(*views, **options)
    assert len(calls) == passes


def test_perfect_embedding_is_perfect(rng):
    F = rng.normal(size=(29, 6))
    perfect = {name: 0.0 if name == "foscttm" else 1.0 for name in retrieval_report(F, F)}
    assert_same_report(retrieval_report(F, F), perfect)


def test_constant_embedding_is_worst():
    F, G = np.ones((12, 4)), np.ones((12, 4))
    report = retrieval_report(F, G, np.arange(12))
    assert report["mean_recall"] == 0 and report["foscttm"] == 1 and report["mean_median_rank"] == 12
    assert_allclose(report["mean_mrr"], 1 / 12)


def test_single_pair_is_perfect():
    assert recall_at_k([[1.0, 0.0]], [[0.0, 1.0]]) == 1
    assert foscttm([[1.0, 0.0]], [[0.0, 1.0]]) == 0


def test_foscttm_of_unrelated_views_is_a_half(rng):
    F, G = rng.normal(size=(2, 600, 20))
    assert_allclose(foscttm(F, G), 0.5, atol=0.03)  # a standard error is 0.29 / sqrt(1200) = 0.008


def test_recall_reaches_one_at_the_size_of_the_gallery(views):
    recalls = [recall_at_k(*views, k=k) for k in range(1, 32)]
    assert np.all(np.diff(recalls) >= 0)
    assert recalls[-1] == 1


def test_order_of_rows_changes_nothing(views, rng):
    F, G, pairs = views
    p, q = rng.permutation(len(F)), rng.permutation(len(G))
    moved = np.column_stack([np.argsort(p)[pairs[:, 0]], np.argsort(q)[pairs[:, 1]]])
    assert_same_report(retrieval_report(F[p], G[q], moved), retrieval_report(F, G, pairs))


def test_lengths_of_rows_change_nothing(views, rng):
    F, G, pairs = views
    F_scaled, G_scaled = (A * rng.uniform(0.01, 100, size=(len(A), 1)) for A in (F, G))
    assert_same_report(retrieval_report(F_scaled, G_scaled, pairs), retrieval_report(F, G, pairs))


def test_common_rotation_changes_nothing(views, rng):
    F, G, pairs = views
    Q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert_same_report(retrieval_report(F @ Q, G @ Q, pairs), retrieval_report(F, G, pairs))


@pytest.mark.parametrize("metric", DIRECTED)
@pytest.mark.parametrize("direction", SWAPPED)
def test_swapping_views_swaps_directions(views, metric, direction):
    F, G, pairs = views
    swapped = metric(G, F, pairs[:, ::-1], direction=SWAPPED[direction])
    assert_allclose(metric(F, G, pairs, direction=direction), swapped)


@pytest.mark.parametrize("metric", [mean_recall, foscttm])
def test_metrics_without_direction_are_symmetric(views, metric):
    F, G, pairs = views
    assert_allclose(metric(F, G, pairs), metric(G, F, pairs[:, ::-1]))


@pytest.mark.parametrize("metric", EVERY)
def test_forms_of_pairs_agree(views, metric):
    F, G = views[0], views[1][:23]
    rows = np.arange(3, 19)
    explicit = metric(F, G, np.column_stack([rows, rows]))
    assert metric(F, G, rows) == explicit
    assert metric(F, G, np.isin(np.arange(23), rows)) == explicit
    assert metric(F, G) == metric(F, G, np.arange(23)) != explicit


def test_gallery_is_every_row_and_queries_are_the_rows_named():
    F = np.array([[1.0, 0.0], [0.0, 1.0]])
    G = np.array([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0]])  # row 2 is in no pair, and closer to F[0] than its match
    assert median_rank(F, G, [[0, 0]], direction="x_to_y") == 2
    assert median_rank(F, G, [[1, 1]], direction="x_to_y") == 1


@pytest.mark.parametrize("metric", EVERY)
def test_containers_agree(views, metric):
    pd, torch = pytest.importorskip("pandas", reason="needs pandas"), pytest.importorskip("torch", reason="needs torch")
    F, G, pairs = views
    desired = metric(F, G, pairs)
    for convert in (
        np.ndarray.tolist,
        pd.DataFrame,
        np.asfortranarray,
        np.float32,
        lambda A: torch.tensor(A, requires_grad=True),
        lambda A: torch.tensor(A, dtype=torch.float32),
    ):
        assert_allclose(metric(convert(F), convert(G), pairs), desired, rtol=1e-12)
    assert_allclose(metric(np.float32(F), torch.tensor(G), pairs), desired, rtol=1e-12)


@pytest.mark.parametrize("metric", EVERY)
@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.int64])
def test_narrow_numbers_agree_with_double(views, metric, dtype):
    F, G = (np.round(8 * A).astype(dtype) for A in views[:2])
    desired = metric(F.astype(np.float64), G.astype(np.float64), views[2])
    assert_allclose(metric(F, G, views[2]), desired, rtol=1e-12)


@pytest.mark.parametrize("direction", SWAPPED)
def test_equal_weights_change_nothing(views, direction):
    unweighted = recall_at_k(*views, direction=direction)
    assert_allclose(recall_at_k(*views, direction=direction, sample_weight=np.full(23, 0.3)), unweighted)


def test_integer_weights_repeat_queries(views, rng):
    F, G, _ = views
    weight = rng.integers(4, size=23)  # zeros too: such a query is not asked
    rows = np.repeat(np.arange(23), weight)
    copies = np.arange(len(rows))
    for direction, repeated in (
        ("x_to_y", (F[rows], G, np.column_stack([copies, rows]))),
        ("y_to_x", (F, G[rows], np.column_stack([rows, copies]))),
    ):
        one_to_one = np.column_stack([np.arange(23), np.arange(23)])
        weighted = recall_at_k(F, G, one_to_one, k=2, direction=direction, sample_weight=weight)
        assert_allclose(weighted, recall_at_k(*repeated, k=2, direction=direction))
        assert weighted != recall_at_k(F, G, one_to_one, k=2, direction=direction)


def test_query_from_y_has_the_weight_of_its_first_partner():
    F, G = np.eye(2), np.eye(2)
    weight = [1.0, 3.0]  # G[0] is found by whichever partner, G[1] is missed
    for pairs, share in (([[1, 0], [0, 0], [0, 1]], 3 / 4), ([[0, 0], [1, 0], [0, 1]], 1 / 2)):
        assert_allclose(recall_at_k(F, G, pairs, direction="y_to_x", sample_weight=weight), share)


def test_inputs_are_left_as_they_were(views):
    before = [A.copy() for A in views]
    retrieval_report(*views)
    for A, A_before in zip(views, before, strict=True):
        assert_array_equal(A, A_before)


@pytest.mark.parametrize("metric", [*EVERY, retrieval_report])
def test_illegal_views_are_refused(metric):
    F = np.arange(12.0).reshape(4, 3)
    for value in (np.nan, np.inf):
        bad = F.copy()
        bad[2:, 1] = value
        with pytest.raises(ValueError, match=r"G must be finite, but 2 of its 4 rows hold .* first being row 2"):
            metric(F, bad)
        with pytest.raises(ValueError, match="F must be finite, but 2 of its 4 rows"):
            metric(bad, F)
    with pytest.raises(ValueError, match="F has 3 columns and G has 5"):
        metric(F, np.arange(20.0).reshape(4, 5))
    with pytest.raises(ValueError, match="X has 4 and Y has 7"):
        metric(F, np.ones((7, 3)))
    with pytest.raises(ValueError, match="points to row 9 of Y, but Y has 7 rows"):
        metric(F, np.ones((7, 3)), [[0, 9]])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array"):
        metric(F[0], F)


@pytest.mark.parametrize("k", [0, -1, 1.5, None])
def test_illegal_k_is_refused(k):
    with pytest.raises(ValueError, match=f"`k` must be an integer of at least 1, but it is {k}"):
        recall_at_k(np.eye(3), np.eye(3), k=k)


@pytest.mark.parametrize("metric", DIRECTED)
def test_unknown_direction_is_refused(metric):
    with pytest.raises(ValueError, match="'mean', 'x_to_y' or 'y_to_x', but it is 'both'"):
        metric(np.eye(3), np.eye(3), direction="both")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 1], r"must have shape \(3,\), one weight a row of F, but its shape is \(2,\)"),
        ([[1], [1], [1]], r"its shape is \(3, 1\)"),
        ([1, -2, 1], "must not be negative, but its smallest entry is -2.0"),
        ([0, 0, 5], "sums to zero over the queries of x_to_y"),  # the third row is in no pair
        ([1, np.nan, 1], "Input sample_weight contains NaN"),
    ],
)
def test_illegal_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(np.eye(3), np.eye(3), [0, 1], sample_weight=weight)


def test_public_names_are_listed():
    assert {metric.__name__ for metric in [*EVERY, retrieval_report]} <= set(metrics.__all__)


@pytest.mark.parametrize("metric", [*EVERY, retrieval_report])
def test_copies_are_told_where_row_i_is_to_find_row_i(metric):
    rng = np.random.default_rng(0)
    F, G = rng.normal(size=(5, 4)), rng.normal(size=(10, 4))
    with pytest.warns(UserWarning, match="5 of the 10 rows of F are copies of others"):
        metric(np.repeat(F, 2, axis=0), G)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(F, G, np.column_stack([np.arange(10) // 2, np.arange(10)]))
        metric(G, G[::-1])
