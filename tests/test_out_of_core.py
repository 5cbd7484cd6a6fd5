"""Laws of rows that are not in memory: same fit, same embedding, read bit by bit, and errors that name file and row."""

import threading
from contextlib import ExitStack

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

import skalign._core.reading
import skalign._sources
from skalign import BridgeFlow, CCATeacher, ContrastiveTeacher, CrossModalRetriever, SOTAlign, SOTAlignTransformer
from skalign._core.reading import StreamedRows, StreamedSampler, batches_of, draw_order
from skalign._pairs import read_pairs
from skalign._sources import OtherRows, StoredRows, stored_rows
from skalign.baselines import SUE
from skalign.datasets import make_two_views

KINDS = ["path", "memory map", "shards", "h5py", "zarr"]


@pytest.fixture(scope="module")
def data():
    """60 pairs in float32, 500 and 600 unpaired rows in float16; 9 and 13 columns."""
    views = make_two_views(60, 500, 600, 70, n_features_x=9, n_features_y=13, n_latent=6, noise=0.3, random_state=0)
    views.pairs = views.X[:60].astype(np.float32), views.Y[:60].astype(np.float32)
    views.pools = {"X_unpaired": views.X[60:].astype(np.float16), "Y_unpaired": views.Y[60:].astype(np.float16)}
    return views


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small data are many blocks."""
    monkeypatch.setattr(skalign._sources, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(skalign._sources, "_READ_TOGETHER", (8, 32))
    monkeypatch.setattr(skalign._core.reading, "_SHUFFLED", (100, 2))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if "skalign" in name}


def stored(kind, rows, folder, name="rows"):
    """Rows as they lie on disk."""
    path = folder / f"{name}.npy"
    if kind == "path":
        np.save(path, rows)
        return str(path)
    if kind == "memory map":
        np.save(path, rows)
        return np.load(path, mmap_mode="r")
    if kind == "shards":
        third = len(rows) // 3
        np.save(path, rows[:third])
        np.save(folder / f"{name}_columnwise.npy", np.asfortranarray(rows[2 * third :]))
        return [path, rows[third : 2 * third], folder / f"{name}_columnwise.npy"]
    library = pytest.importorskip(kind, reason=f"{kind} is an optional package")
    if kind == "h5py":
        return library.File(folder / f"{name}.h5", "w").create_dataset("rows", data=rows)
    array = library.open_array(folder / f"{name}.zarr", mode="w", shape=rows.shape, dtype=rows.dtype, chunks=(8, 5))
    array[:] = rows
    return array


def on_disk(data, folder, kind="path"):
    return {name: stored(kind, rows, folder, name) for name, rows in data.pools.items()}


def fitted(data, pools, estimator=SOTAlign, **settings):
    settings = {"max_iter": 10, "random_state": 0, "batch_size_unpaired": (30, 70), **settings}
    return estimator(settings.pop("teacher", CCATeacher(reg=0.01)), **settings).fit(*data.pairs, **pools)


class Counting:
    """An array that counts the rows of each read, and may fail at one."""

    def __init__(self, rows, fails_at=None):
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.n_read, self.fails_at = [], fails_at

    def __getitem__(self, rows):
        if len(self.n_read) == self.fails_at:
            raise RuntimeError("the disk is gone.")
        found = self.rows[rows]
        self.n_read.append(len(found))
        return found


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_batch_is_the_pool_the_fit_is_that_of_memory(data, tmp_path, kind):
    settings = {"batch_size_unpaired": 600}
    aligner, expected = (fitted(data, pools, **settings) for pools in (on_disk(data, tmp_path, kind), data.pools))
    assert aligner.loss_curve_ == expected.loss_curve_
    for actual, desired in zip(*(e.transform(data.X_test, data.Y_test) for e in (aligner, expected)), strict=True):
        assert_array_equal(actual, desired)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_batches_do_not_depend_on_how_rows_are_stored(data, tmp_path, kind):
    aligner, expected = (fitted(data, on_disk(data, tmp_path, way)) for way in (kind, "path"))
    assert aligner.loss_curve_ == expected.loss_curve_
    assert_array_equal(aligner.transform(data.X_test), expected.transform(data.X_test))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_embedded_as_in_memory(data, tmp_path, kind):
    aligner = fitted(data, data.pools, max_iter=2)
    X, Y = data.pools.values()
    F, G = aligner.transform(stored(kind, X, tmp_path, "X"), stored(kind, Y, tmp_path, "Y"))
    assert F.dtype == np.float32
    assert_allclose(F, aligner.transform(X), **LAW[np.float32])
    assert_allclose(G, aligner.transform_y(Y), **LAW[np.float32])


@pytest.mark.parametrize("kind", ["memory map", "h5py", "zarr"])
def test_an_embedding_is_written_where_it_shall_be(data, tmp_path, kind):
    aligner = fitted(data, data.pools, max_iter=2)
    X, Y = data.pools.values()
    n_components = aligner.n_components_
    out = stored(kind, np.zeros((500, n_components), dtype=np.float32), tmp_path, "out")
    if kind == "memory map":
        out = np.load(out.filename, mmap_mode="r+")
    assert aligner.transform(stored("path", X, tmp_path), out=out) is out
    assert_allclose(out[:], aligner.transform(X), **LAW[np.float32])
    out[:] = 0
    assert aligner.transform(X, out=out) is out  # what is in memory may be written there, too
    assert_allclose(out[:], aligner.transform(X), **LAW[np.float32])
    with pytest.raises(ValueError, match=rf"`out` must have a row for each row of Y .* \(600, {n_components}\)"):
        aligner.transform_y(Y, out=out)


def test_a_gallery_may_lie_on_disk(data, tmp_path):
    aligner = fitted(data, data.pools, max_iter=2)
    gallery = data.pools["Y_unpaired"]
    expected = CrossModalRetriever(aligner).fit(gallery).kneighbors(data.X_test, return_distance=False)
    found = CrossModalRetriever(aligner).fit(stored("path", gallery, tmp_path)).kneighbors(data.X_test)[1]
    assert_array_equal(found, expected)


def test_one_seed_is_one_fit(data, tmp_path):
    pools = on_disk(data, tmp_path)
    first, again, other = (fitted(data, pools, random_state=seed) for seed in (0, 0, 1))
    assert first.loss_curve_ == again.loss_curve_
    assert_array_equal(first.transform(data.X_test), again.transform(data.X_test))
    assert first.loss_curve_ != other.loss_curve_


def test_training_on_rows_from_disk_is_worth_that_in_memory(data, tmp_path):
    settings = {"init": "random", "learning_rate": 5e-3, "max_iter": 40, "alpha": 100}
    losses = []
    for pools in (data.pools, on_disk(data, tmp_path)):
        curve = fitted(data, pools, SOTAlignTransformer, **settings).loss_curve_["divergence"]
        losses.append(np.mean(curve[-20:]) / curve[0])
    assert losses[0] < 0.9
    assert_allclose(*losses, rtol=0.1)


def test_means_are_of_all_rows(data, tmp_path):
    pools = on_disk(data, tmp_path), data.pools
    on_all, expected = (CCATeacher(reg=0.01, center="all").fit(*data.pairs, **pool) for pool in pools)
    assert_allclose(on_all.x_mean_, expected.x_mean_, rtol=1e-6, atol=1e-9)
    assert_allclose(on_all.y_mean_, expected.y_mean_, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "teacher", [CCATeacher(), SUE(n_components=3, max_iter=1, random_state=0), ContrastiveTeacher()]
)
def test_a_batch_holds_the_teachers_rows_of_its_own_rows(data, tmp_path, teacher, monkeypatch):
    batches = []

    def spy(divergence, F, G, F_teacher, G_teacher, same_rows):
        batches.append((F, G, F_teacher, G_teacher))
        return (F - F).sum()

    monkeypatch.setattr("skalign._core.divergences.Divergence.forward", spy)
    settings = {"learning_rate": 1e-12, "teacher": teacher, "max_iter": 3}
    aligner = fitted(data, on_disk(data, tmp_path), SOTAlignTransformer, **settings)
    X, Y = data.pools.values()
    for own, embedded in ((0, aligner.transform(X)), (1, aligner.transform_y(Y))):
        taught = (aligner.teacher_.transform, aligner.teacher_.transform_y)[own]((X, Y)[own])
        for batch in batches:
            rows = np.argmax(batch[own].detach().numpy() @ embedded.T, axis=1)
            assert len(set(rows)) == len(rows) == (30, 70)[own]
            assert_allclose(batch[2 + own], taught[rows], atol=1e-4)


def test_one_view_may_lie_on_disk_and_the_other_in_memory_or_be_absent(data, tmp_path):
    disk = on_disk(data, tmp_path)
    both, mixed = fitted(data, disk), fitted(data, {**disk, "Y_unpaired": data.pools["Y_unpaired"]})
    assert both.loss_curve_ == mixed.loss_curve_
    alone = fitted(data, {"X_unpaired": disk["X_unpaired"]})
    assert np.isfinite(alone.transform(data.X_test)).all()


def test_free_rows_of_the_views_stand_before_the_pool(data, tmp_path):
    X, Y = (np.concatenate(parts).astype(np.float32) for parts in zip(data.pairs, data.pools.values(), strict=True))
    pools = {"X_unpaired": stored("path", X[200:], tmp_path, "X"), "Y_unpaired": stored("path", Y[100:], tmp_path, "Y")}
    settings = {"teacher": CCATeacher(reg=0.01), "max_iter": 5, "random_state": 0, "batch_size_unpaired": 50}
    apart = SOTAlign(**settings).fit(X[:200], Y[:100], np.arange(60), **pools)
    whole = {
        "X_unpaired": stored("path", X[60:], tmp_path, "all_X"),
        "Y_unpaired": stored("path", Y[60:], tmp_path, "all_Y"),
    }
    at_once = SOTAlign(**settings).fit(X[:60], Y[:60], **whole)
    assert apart.loss_curve_ == at_once.loss_curve_


@pytest.fixture
def table(data):
    """Views of 560 and 660 rows, and 60 pairs among them in no order; some rows stand in two pairs."""
    rng = np.random.default_rng(0)
    views = [np.concatenate(parts).astype(np.float32) for parts in zip(data.pairs, data.pools.values(), strict=True)]
    orders = [rng.permutation(len(view)) for view in views]
    pairs = np.column_stack([np.argsort(order)[:60] for order in orders])
    return *(view[order] for view, order in zip(views, orders, strict=True)), np.concatenate(
        [pairs, pairs[:5, [0]] + [0, 1]]
    )


@pytest.mark.parametrize("estimator", [CCATeacher, SOTAlign])
@pytest.mark.parametrize("kind", KINDS)
def test_paired_rows_are_found_in_views_on_disk(table, tmp_path, kind, estimator):
    X, Y, pairs = table
    given = pairs.copy()
    views = stored(kind, X, tmp_path, "X"), stored(kind, Y, tmp_path, "Y")
    # a batch of all rows, whatever their order
    settings = {"max_iter": 5, "batch_size_unpaired": 1000, "random_state": 0} if estimator is SOTAlign else {}
    found, expected = (estimator(**settings).fit(*given_as, given) for given_as in (views, (X, Y)))
    assert found.n_pairs_ == len(pairs)
    assert_allclose(found.transform(X), expected.transform(X), rtol=1e-4, atol=1e-5)
    assert_array_equal(given, pairs)
    assert found.score(*views, paired_idx=given) == found.score(X, Y, paired_idx=given)
    weights = np.linspace(0, 1, len(X))
    assert found.score(*views, weights, given) == found.score(X, Y, weights, given)


def test_only_the_paired_rows_of_a_view_on_disk_are_held(table, tmp_path):
    X, Y, pairs = table
    path = stored("path", X, tmp_path)
    read_X, read_Y, read, X_rest, Y_rest = read_pairs(path, Y, pairs)
    assert read_Y is Y and Y_rest is None
    assert_array_equal(read_X, X[np.unique(pairs[:, 0])])
    assert_array_equal(read_X[read[:, 0]], X[pairs[:, 0]])
    assert_array_equal(read[:, 1], pairs[:, 1])
    free = np.setdiff1d(np.arange(len(X)), pairs[:, 0])
    assert_array_equal(X_rest, X[free])
    assert_array_equal(np.concatenate(list(X_rest.blocks())), X[free])
    some = np.array([3, 0, 499, 77, 78])
    assert_array_equal(X_rest[some], X[free][some])


def test_a_view_on_disk_of_which_all_rows_are_paired_leaves_no_pool(data, tmp_path):
    X, Y = data.pairs
    *_, X_rest, Y_rest = read_pairs(stored("path", X, tmp_path), Y, np.arange(60))
    assert X_rest is None and Y_rest is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [True, False])
def test_a_table_on_disk_is_read_whole_and_may_miss_rows(data, tmp_path, kind, masked):
    X, Y = (view.copy() for view in data.pairs)
    X[7], Y[30:40] = np.nan, np.nan
    mask = ~np.isnan(X[:, 0] + Y[:, 0]) if masked else None
    found = CCATeacher().fit(stored(kind, X, tmp_path, "X"), stored(kind, Y, tmp_path, "Y"), mask)
    expected = CCATeacher().fit(X, Y, mask)
    assert found.n_pairs_ == 49
    assert_array_equal(found.x_coef_, expected.x_coef_)


def test_a_pair_beyond_a_view_on_disk_is_named(table, tmp_path):
    X, Y, pairs = table
    with pytest.raises(ValueError, match="points to row 560 of X, but X has 560 rows"):
        CCATeacher().fit(stored("path", X, tmp_path), Y, np.concatenate([pairs, [[560, 0]]]))


def test_labels_follow_the_rows_of_views_on_disk(data, tmp_path):
    X, Y = data.pairs
    labels = np.arange(60) % 3
    views = stored("path", X, tmp_path, "X"), stored("path", Y, tmp_path, "Y")
    flows = [
        BridgeFlow(mode="exemplar", max_iter=5, random_state=0).fit(
            *given, np.arange(10), labels_x=labels, labels_y=labels
        )
        for given in (views, (X, Y))
    ]
    assert flows[0].loss_curve_ == flows[1].loss_curve_


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "together"), [(1000, 7, 16), (997, 50, 8), (33, 32, 256), (260, 129, 1)]
)
def test_an_epoch_draws_every_row_at_most_once_and_misses_less_than_a_batch(n_rows, batch_size, together):
    order = draw_order(n_rows, batch_size, together, torch.Generator().manual_seed(0))
    epochs = []
    for _ in range(2):
        drawn, n_read = [], 0
        while n_read + batch_size <= n_rows:
            slices, batches = next(order)
            rows = np.concatenate([np.arange(part.start, part.stop) for part in slices])
            assert all(part.stop - part.start <= together for part in slices)
            drawn.append(rows[batches])
            n_read += len(rows)
        drawn = np.concatenate(drawn)
        assert drawn.shape[1] == batch_size
        assert len(np.unique(drawn)) == drawn.size > n_rows - batch_size
        epochs.append(drawn)
    assert not np.array_equal(*epochs)


def test_neighbours_in_storage_are_spread_over_batches():
    _, batches = next(draw_order(10_000, 50, 8, torch.Generator().manual_seed(0)))
    assert batches.shape == (2, 50)
    blocks = batches.numpy() // 8
    assert min(len(np.unique(batch)) for batch in blocks) > 10  # of the 13 that 100 rows lie in


def test_no_source_is_read_whole_nor_more_often_than_needed(data):
    sources = {name: Counting(rows) for name, rows in data.pools.items()}
    fitted(data, sources)
    for source, batch in zip(sources.values(), (30, 70), strict=True):
        drawn_ahead = 14 * batch + 200  # ten steps, four ahead, and what is shuffled with them
        assert max(source.n_read) <= 32
        # a pass to check and to preprocess; the landmarks; and the anchors
        assert sum(source.n_read) <= 3 * len(source.rows) + drawn_ahead
    plain = {name: Counting(rows) for name, rows in data.pools.items()}
    fitted(data, plain, SOTAlignTransformer)
    for source, batch in zip(plain.values(), (30, 70), strict=True):
        assert sum(source.n_read) <= len(source.rows) + 14 * batch + 200


def test_rows_by_number_equal_those_of_an_array(rng):
    rows = rng.standard_normal((300, 5)).astype(np.float32)
    shards = StoredRows([Counting(rows[:100]), Counting(rows[:0]), Counting(rows[100:])], "X")
    for wanted in (rng.permutation(300), rng.integers(300, size=40), np.array([], dtype=int), [7], slice(3, 290, 40)):
        assert_array_equal(shards[wanted], rows[wanted])
    assert_array_equal(shards[90:120], rows[90:120])
    assert_array_equal(np.asarray(shards), rows)
    assert_array_equal(np.concatenate(list(shards.blocks())), rows)


@pytest.mark.parametrize("given", ["f2", "f4", "f8", ">f4", "i2", "?"])
def test_rows_come_as_float32_or_float64(rng, tmp_path, given):
    rows = (10 * rng.standard_normal((40, 3))).astype(given)
    found = stored_rows(stored("path", rows, tmp_path), "X")[:]
    assert found.dtype == (np.float64 if given == "f8" else np.float32)
    assert_array_equal(found, rows)


def test_bfloat16_shards_are_read_as_they_are(rng):
    rows = torch.from_numpy(rng.standard_normal((40, 3))).bfloat16()
    assert_array_equal(stored_rows([rows[:30], rows[30:]], "X")[:], rows.float().numpy())


@pytest.mark.parametrize("transformer", [StandardScaler(), MinMaxScaler(), PCA(4), Normalizer(), FrozenEstimator])
def test_preprocessing_is_fitted_on_all_rows(data, tmp_path, transformer):
    if transformer is FrozenEstimator:
        transformer = FrozenEstimator(StandardScaler().fit(data.X_test))
    aligner, expected = (
        fitted(data, pools, x_transformer=transformer) for pools in (on_disk(data, tmp_path), data.pools)
    )
    step, desired = aligner.x_transformer_, expected.x_transformer_
    assert_allclose(step.transform(data.X_test), desired.transform(data.X_test), **LAW[np.float32])


def test_auto_preprocessing_sees_uneven_columns_on_disk(data, tmp_path):
    scale = 10.0 ** np.arange(-4, 5)
    pools = {"X_unpaired": stored("path", data.pools["X_unpaired"] * scale, tmp_path)}
    X, Y = data.pairs
    settings = {"max_iter": 2, "random_state": 0, "batch_size_unpaired": 30}
    aligner = SOTAlign(CCATeacher(reg=0.01), **settings).fit(X * scale, Y, **pools)
    whole = np.concatenate([X, data.pools["X_unpaired"]]) * scale
    assert_allclose(aligner.x_transformer_.scale_, whole.std(axis=0), rtol=1e-4)
    assert aligner.y_transformer_ is None


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
@pytest.mark.parametrize("estimator", [SOTAlign, SOTAlignTransformer])
def test_a_row_that_is_not_finite_is_named(data, tmp_path, estimator, value, kind):
    rows = data.pools["X_unpaired"].copy()
    rows[[333, 444], 2] = value
    whole = {"X_unpaired": stored("path", rows, tmp_path)}
    with pytest.raises(ValueError, match=rf"`X_unpaired` contains {kind} in row 333 \(\S*rows.npy\). Expected finite"):
        fitted(data, whole, estimator)
    with pytest.raises(ValueError, match=r"in row 333 \(row 1 of shard 2, \S*rows_columnwise.npy\)"):
        fitted(data, {"X_unpaired": stored("shards", rows, tmp_path)}, estimator)
    aligner = fitted(data, data.pools, estimator, max_iter=1)
    with pytest.raises(ValueError, match=rf"`X` contains {kind} in row 333 \(\S*rows.npy\)"):
        aligner.transform(stored("path", rows, tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((5, 9), "a"), r"must hold real numbers, but it holds <U1"),
        (np.ones((5, 9), dtype=complex), r"must hold real numbers, but it holds complex128"),
        (np.ones((5, 8)), r"must have the columns of X, 9, but it has 8"),
        (np.ones(9), r"must be two-dimensional, one row a sample, but its shape is \(9,\)"),
        (np.ones((0, 9)), r"has 0 rows"),
        (np.full((5, 9), object()), r"must be a whole .npy file of numbers"),
    ],
)
def test_what_is_no_matrix_of_the_view_is_refused(data, tmp_path, rows, message):
    np.save(tmp_path / "rows.npy", rows, allow_pickle=True)
    for source in (tmp_path / "rows.npy", [tmp_path / "rows.npy"]):
        with pytest.raises(ValueError, match=rf"`X_unpaired`.* {message}"):
            fitted(data, {"X_unpaired": source})


def test_files_that_are_none_are_refused(data, tmp_path):
    path = stored("path", data.pools["X_unpaired"], tmp_path)
    with open(path, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(ValueError, match=r"`X_unpaired` \(\S*rows.npy\) must be a whole .npy file of numbers"):
        fitted(data, {"X_unpaired": path})
    np.savez(tmp_path / "rows.npz", np.ones((5, 9)))
    with pytest.raises(ValueError, match=r"`X_unpaired` \(shard 1, \S*rows.npz\) must be .* It is an archive"):
        fitted(data, {"X_unpaired": [np.ones((5, 9)), tmp_path / "rows.npz"]})
    with pytest.raises(FileNotFoundError, match=r"nowhere.npy"):
        fitted(data, {"X_unpaired": "nowhere.npy"})
    with pytest.raises(ValueError, match=r"equally many columns, 9 as shard 0, but there are 7 \(shard 1, a ndarray\)"):
        fitted(data, {"X_unpaired": [np.ones((5, 9)), np.ones((5, 7))]})


def test_a_file_cut_after_it_was_opened_is_named(data, tmp_path):
    path = stored("path", data.pools["X_unpaired"], tmp_path)
    rows = stored_rows([data.pools["X_unpaired"], path], "X_unpaired")
    with open(path, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(OSError, match=r"of `X_unpaired` \(shard 1, \S*rows.npy\) cannot be read: .*the 500 rows"):
        rows.check()


def test_a_read_that_fails_in_training_fails_the_fit_and_leaves_the_estimator(data, tmp_path):
    aligner = fitted(data, data.pools, max_iter=1)
    before = aligner.transform(data.X_test)
    n_reads = len(list(stored_rows(Counting(data.pools["X_unpaired"]), "X").blocks()))
    aligner.set_params(x_transformer=None, max_iter=50)
    pools = {**data.pools, "X_unpaired": Counting(data.pools["X_unpaired"], fails_at=n_reads + 30)}
    with pytest.raises(
        OSError, match=r"Rows \d+ to \d+ of `X_unpaired` \(a Counting\) cannot be read: the disk is gone"
    ):
        aligner.fit(*data.pairs, **pools)
    assert_array_equal(aligner.transform(data.X_test), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_when_a_step_fails(data, tmp_path, error):
    class Failing(torch.optim.AdamW):
        def step(self, closure=None):
            assert any("skalign" in thread.name for thread in threading.enumerate())
            raise error

    pools, settings = on_disk(data, tmp_path), {"estimator": SOTAlignTransformer, "optimizer": Failing}
    if error is KeyboardInterrupt:
        with pytest.warns(ConvergenceWarning, match="interrupted after 0 of 10 steps"):
            assert fitted(data, pools, **settings).n_iter_ == 0
    else:
        with pytest.raises(RuntimeError):
            fitted(data, pools, **settings)


@pytest.mark.slow  # it starts processes
def test_arrays_that_joblib_maps_for_its_workers_count_as_memory(data, tmp_path):
    mapped = stored("memory map", np.ones((200, 9)), tmp_path)
    given = [np.ones((200, 9)), mapped]
    found = joblib.Parallel(n_jobs=2, max_nbytes=1000)(joblib.delayed(_is_out_of_core)(rows) for rows in given)
    assert found == [(True, False), (True, True)]


def _is_out_of_core(rows):
    return isinstance(rows, np.memmap), stored_rows(rows, "X") is not None


def test_lists_of_rows_are_arrays():
    frame = pd.DataFrame(np.ones((3, 2)), columns=["dtype", "shape"])
    for given in ([[1.0, 2.0]], [np.ones(3)], list(np.ones((4, 3))), [], torch.ones(3, 2), np.ones((3, 2)), frame):
        assert stored_rows(given, "X") is None


def test_an_embedding_of_a_file_may_be_a_frame(data, tmp_path):
    aligner = fitted(data, data.pools, max_iter=1).set_output(transform="pandas")
    for kind in ("path", "shards"):
        frame = aligner.transform(stored(kind, data.pools["X_unpaired"], tmp_path))
        assert isinstance(frame, pd.DataFrame)
        assert frame.shape == (500, aligner.n_components_)


def test_a_sampler_goes_on_where_another_was(data):
    rows = StoredRows([data.pools["X_unpaired"]], "X")
    pool = StreamedRows(rows, prepare=torch.nn.Identity(), teacher=None)

    def sampler(reading):
        generator = torch.Generator().manual_seed(0)
        return StreamedSampler(pool, pool, (30, 70), generator, torch.device("cpu"), reading)

    with ExitStack() as reading:
        first, second = sampler(reading), sampler(reading)
        states, batches = zip(*[(first.state_dict(), first()) for _ in range(40)], strict=True)  # epochs have 16 and 7
        second.load_state_dict(states[19])
        for batch in batches[19:]:
            going_on = second()
            assert_array_equal(going_on["X"], batch["X"])
            assert_array_equal(going_on["Y"], batch["Y"])


def test_the_shares_of_a_batch_are_the_batch_and_no_other_rows_are_read():
    values = np.random.default_rng(0).normal(size=(900, 3)).astype(np.float32)

    class Watched(StoredRows):
        def __init__(self):
            super().__init__([values], "X")
            self.read_together, self.seen = 64, set()

        def _read(self, start, stop):
            self.seen |= set(range(start, stop))
            return super()._read(start, stop)

    def batches(own, size):
        rows = Watched()
        drawn = batches_of(rows, size, torch.Generator().manual_seed(0), n_skipped=1, own=own)
        return [next(drawn).numpy() for _ in range(30)], rows.seen

    shares = [slice(0, 0), slice(0, 256), slice(256, 900)]
    for size in (70, 900):
        whole, _ = batches(None, size)
        parts, seen = zip(*(batches(own, size) for own in shares), strict=True)
        assert seen == tuple(set(range(900)[own]) for own in shares)
        for batch, *of_shares in zip(whole, *parts, strict=True):
            joined = np.concatenate(of_shares)
            assert_array_equal(joined[np.lexsort(joined.T)], batch[np.lexsort(batch.T)])


def test_whole_numbers_are_no_place_for_an_embedding(data):
    aligner = CCATeacher(reg=0.1).fit(*data.pairs)
    out = np.ones((len(data.X_test), aligner.n_components_), dtype=int)
    with pytest.raises(ValueError, match="must hold floating-point numbers, but it holds int64"):
        aligner.transform(data.X_test, out=out)
    assert (out == 1).all()


def test_rows_left_out_between_two_are_not_read(tmp_path, monkeypatch):
    rows = np.arange(4000.0, dtype=np.float32).reshape(2000, 2)
    read, piece = [], StoredRows._piece
    monkeypatch.setattr(
        StoredRows, "_piece", lambda self, k, start, stop: read.append(stop - start) or piece(self, k, start, stop)
    )
    others = OtherRows(stored_rows(stored("path", rows, tmp_path), "X"), np.arange(5, 1995))
    assert_array_equal(others[:], np.delete(rows, np.arange(5, 1995), axis=0))
    assert sum(read) == len(others) == 10
