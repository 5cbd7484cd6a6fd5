"""Laws of streams: `partial_fit` learns as `fit` does, from calls of any length, and a call that fails has not been."""

import pickle

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.fixes import parse_version

from skalign import CCATeacher, ProcrustesTeacher, SOTAlign, SOTAlignTransformer, _stream, load
from skalign._core import training
from skalign._core.divergences import Divergence
from skalign.datasets import make_two_views

P = 40
_SETTINGS = {"teacher": ProcrustesTeacher(), "batch_size_unpaired": 50, "random_state": 0}  # which is quick
ALIGNERS = [SOTAlignTransformer(**_SETTINGS), SOTAlign(**_SETTINGS)]
VIEWS_OF_A_CALL = {"both": (70, 90), "one row of each": (1, 1), "only X": (70, 0), "only Y": (0, 1)}


@pytest.fixture(scope="module")
def data():
    """40 pairs, then free rows; 7 and 11 columns."""
    return make_two_views(P, 300, 340, 30, n_features_x=7, n_features_y=11, n_latent=4, noise=0.3, random_state=0)


@pytest.fixture(params=ALIGNERS, ids=lambda estimator: type(estimator).__name__)
def aligner(request):
    return clone(request.param)


def begun(aligner, data):
    """After a first call, of the pairs and some unpaired rows."""
    return aligner.partial_fit(data.X[:P], data.Y[:P], X_unpaired=data.X[P:100], Y_unpaired=data.Y[P:100])


def unpaired(data, n_x, n_y, start=100):
    views = {"X_unpaired": data.X[start : start + n_x], "Y_unpaired": data.Y[start : start + n_y]}
    return {name: rows for name, rows in views.items() if len(rows)}


def trained(aligner):
    return getattr(aligner, "aligner_", aligner)


def weights_of(aligner):
    return [*trained(aligner).x_head_.values(), *trained(aligner).y_head_.values()]


def assert_same_weights(actual, expected, **tolerance):
    for one, other in zip(weights_of(actual), weights_of(expected), strict=True):
        assert_allclose(one, other, **{"rtol": 0, **tolerance})


@pytest.mark.slow
def test_a_stream_ends_as_good_as_a_fit_on_all_its_rows():
    scores = []
    for seed in range(4):
        sizes = {"n_features_x": 20, "n_features_y": 30, "n_latent": 16}
        data = make_two_views(P, 3000, 2900, 300, noise=0.15, random_state=seed, **sizes)
        settings = {"teacher": CCATeacher(reg=0.01), "batch_size_unpaired": 128, "random_state": seed}
        settings["n_landmarks"] = P  # which are the pairs in both
        stream = SOTAlign(**settings).partial_fit(data.X[:P], data.Y[:P])
        first = stream.score(data.X_test, data.Y_test)
        for X, Y in zip(np.array_split(data.X[P:], 5), np.array_split(data.Y[P:], 5), strict=True):
            stream.partial_fit(X_unpaired=X, Y_unpaired=Y)
        whole = SOTAlign(max_iter=stream.n_iter_, **settings).fit(data.X, data.Y, data.paired_idx)
        scores.append([first, *(e.score(data.X_test, data.Y_test) for e in (stream, whole))])
    first, last, whole = np.mean(scores, axis=0)
    assert last > whole - 0.01
    assert last > first + 0.01  # unpaired rows taught it something


@pytest.mark.parametrize("sizes", VIEWS_OF_A_CALL.values(), ids=VIEWS_OF_A_CALL)
def test_calls_may_bring_any_number_of_rows(aligner, data, sizes):
    begun(aligner, data)
    before, n_before = weights_of(aligner), aligner.n_iter_
    aligner.partial_fit(**unpaired(data, *sizes))
    assert aligner.n_iter_ - n_before == max(-(-n // 50) for n in sizes)
    assert np.abs(weights_of(aligner)[0] - before[0]).max() > 1e-5  # one row comes with those that are remembered
    F, G = aligner.transform(data.X_test, data.Y_test)
    assert np.isfinite(F).all()
    assert np.isfinite(G).all()


def test_the_first_call_of_pairs_alone_is_good_for_use(data):
    teacher = CCATeacher().fit(data.X[:P], data.Y[:P])
    aligner = SOTAlign(n_landmarks=0, hubness_correction=False, random_state=0).partial_fit(data.X[:P], data.Y[:P])
    assert_allclose(aligner.transform(data.X_test), teacher.transform(data.X_test), **LAW[np.float32])


def test_moments_of_the_optimizer_go_on_from_call_to_call(data, monkeypatch):
    settings = {"divergence": "cka", "batch_size_unpaired": (300, 340), "random_state": 0, "teacher_weight": 0.3}
    monkeypatch.setattr(training, "_warm_cosine", lambda stepper, *_: torch.optim.lr_scheduler.ConstantLR(stepper, 1.0))
    whole = SOTAlignTransformer(max_iter=3, **settings).fit(data.X, data.Y, data.paired_idx)
    stream = SOTAlignTransformer(**settings).partial_fit(data.X, data.Y, data.paired_idx)
    for _ in range(2):
        stream.partial_fit(X_unpaired=data.X[P:], Y_unpaired=data.Y[P:])
    assert stream.n_iter_ == 3
    assert_same_weights(stream, whole, **LAW[np.float32])
    for name, curve in whole.loss_curve_.items():
        assert_allclose(stream.loss_curve_[name], curve, **LAW[np.float32])


@pytest.mark.parametrize("optimizer", ["adamw", "lion", torch.optim.RMSprop])
def test_another_optimizer_starts_with_moments_of_its_own(data, optimizer):
    for former in ("adamw", "lion"):
        aligner = begun(SOTAlignTransformer(optimizer=former, random_state=0), data)
        aligner.set_params(optimizer=optimizer).partial_fit(**unpaired(data, 70, 90))
        assert aligner.n_iter_ == 2


def stored(aligner, way, folder):
    if way == "pickle":
        return pickle.loads(pickle.dumps(aligner))
    if way == "file":
        aligner.save(folder / "aligner.safetensors")
        return load(folder / "aligner.safetensors")
    skops = pytest.importorskip("skops.io", reason="skops is an optional package")
    held = skops.dumps(aligner)
    return skops.loads(held, trusted=skops.get_untrusted_types(data=held))


@pytest.mark.parametrize("way", ["pickle", "file", "skops"])
def test_a_stream_that_was_stored_goes_on_as_if_it_had_not_been(aligner, data, way, tmp_path):
    aligner.set_params(x_transformer=PCA(5)) if isinstance(aligner, SOTAlign) else aligner.set_params(head="mlp")
    other = stored(begun(aligner, data), way, tmp_path)
    for start in (100, 200):
        aligner.partial_fit(**unpaired(data, 70, 90, start))
        other = stored(other.partial_fit(**unpaired(data, 70, 90, start)), way, tmp_path)
    assert_same_weights(other, aligner, atol=0)
    assert_array_equal(other.transform(data.X_test), aligner.transform(data.X_test))
    assert other.loss_curve_ == aligner.loss_curve_
    assert other.sinkhorn_error_ == aligner.sinkhorn_error_


def interrupted(*tensors):
    raise KeyboardInterrupt


def with_nan(rows):
    rows = rows.copy()
    rows[3, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("expected", "message", "arguments"),
    [
        (ValueError, "contains NaN", lambda data: {"X_unpaired": with_nan(data.X[P:])}),
        (ValueError, "contains NaN in 1 of 40 rows", lambda data: {"X": with_nan(data.X[:P]), "Y": data.Y[:P]}),
        (ValueError, "contains NaN in row 3", lambda data: {"Y_unpaired": "Y.npy"}),
        (ValueError, "must have the columns of Y, 11, but it has 7", lambda data: {"Y_unpaired": data.X}),
        (ValueError, "X and Y come together", lambda data: {"X": data.X}),
        (ValueError, "X and Y come together", lambda data: {"paired_idx": [0], "X_unpaired": data.X}),
        (ValueError, "needs rows, but got none", lambda data: {}),
        (FileNotFoundError, "missing.npy", lambda data: {"X_unpaired": "missing.npy"}),
    ],
)
def test_a_call_that_is_refused_leaves_the_estimator_as_it_was(
    aligner, data, expected, message, arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("Y.npy", with_nan(data.Y))
    before = pickle.dumps(begun(aligner, data))
    with pytest.raises(expected, match=message):
        aligner.partial_fit(**arguments(data))
    assert pickle.dumps(aligner) == before


def test_ctrl_c_ends_the_loop_and_loses_nothing(aligner, data, monkeypatch):
    before = pickle.dumps(begun(aligner, data))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_all_finite", interrupted)  # after the weights of the step have moved
        aligner.partial_fit(**unpaired(data, 70, 90))
    assert pickle.dumps(aligner) == before
    fresh = clone(aligner)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "_all_finite", interrupted)
        begun(fresh, data)
    assert vars(fresh).keys() == vars(clone(aligner)).keys()


def test_steps_to_infinity_are_refused(aligner, data, monkeypatch):
    before = pickle.dumps(begun(aligner, data))
    monkeypatch.setattr(training, "_all_finite", lambda *tensors: torch.tensor(False))
    with pytest.raises(ValueError, match="made the weights infinite after 0 steps.*The estimator is as it was"):
        aligner.partial_fit(**unpaired(data, 70, 90))
    assert pickle.dumps(aligner) == before


def test_clones_and_fits_start_anew(aligner, data):
    expected = clone(aligner).set_params(max_iter=3).fit(data.X, data.Y, data.paired_idx)
    begun(aligner, data).set_params(max_iter=3)
    assert vars(clone(aligner)).keys() == aligner.get_params(deep=False).keys()
    aligner.fit(data.X, data.Y, data.paired_idx)
    assert_same_weights(aligner, expected, atol=0)
    assert vars(trained(aligner)).keys() == vars(trained(expected)).keys()  # no row of the stream is kept


def test_a_warm_start_goes_on_from_a_stream(data):
    aligner = begun(SOTAlignTransformer(random_state=0), data)
    for start in (100, 170):
        aligner.partial_fit(**unpaired(data, 70, 70, start))
    expected = [weights.copy() for weights in weights_of(aligner)]
    aligner.set_params(warm_start=True, learning_rate=1e-12, max_iter=1).fit(data.X, data.Y, data.paired_idx)
    for actual, desired in zip(weights_of(aligner), expected, strict=True):
        assert_allclose(actual, desired, atol=1e-7)


def test_pairs_come_first_also_after_a_fit_whose_heads_go_on(aligner, data):
    with pytest.raises(ValueError, match=r"first call of `partial_fit` must bring pairs, for the teacher"):
        aligner.partial_fit(**unpaired(data, 70, 90))
    aligner.set_params(max_iter=3).fit(data.X, data.Y, data.paired_idx)
    expected = [weights.copy() for weights in weights_of(aligner)]
    with pytest.raises(ValueError, match="also after `fit`, which keeps no rows"):
        aligner.partial_fit(**unpaired(data, 70, 90))
    begun(aligner.set_params(learning_rate=1e-12), data)
    for actual, desired in zip(weights_of(aligner), expected, strict=True):
        assert_allclose(actual, desired, atol=1e-7)
    assert aligner.n_iter_ == 3 + 2


def test_pairs_that_are_known_change_nothing_and_new_ones_join(aligner, data):
    again = begun(clone(aligner), data).partial_fit(data.X[:P], data.Y[:P], **unpaired(data, 70, 90))
    begun(aligner, data).partial_fit(**unpaired(data, 70, 90))
    assert_same_weights(again, aligner, atol=0)
    assert again.n_pairs_ == P
    caption = data.Y[:1] + 0.1  # a second one of the first image
    again.partial_fit(np.concatenate([data.X[:2], data.X_test]), np.concatenate([caption, data.Y[1:2], data.Y_test]))
    assert again.n_pairs_ == P + 1 + 30
    stream = trained(again)._stream
    assert (len(stream.X), len(stream.Y)) == (P + 30, P + 31)
    assert_array_equal(stream.pairs[P], [0, P])


def test_means_preprocessing_and_teacher_are_those_of_the_first_call(data):
    aligner = begun(SOTAlign(x_transformer=PCA(5), random_state=0), data)
    before = aligner.x_transformer_, aligner.teacher_, trained(aligner).x_mean_
    aligner.partial_fit(data.X_test + 1, data.Y_test, **unpaired(data, 70, 90))
    after = aligner.x_transformer_, aligner.teacher_, trained(aligner).x_mean_
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_heads_that_come_out_lie_between_those_trained_and_the_start(data):
    aligner = SOTAlignTransformer(teacher_weight=0.4, random_state=0, batch_size_unpaired=50)
    for call in (begun(aligner, data), aligner.partial_fit(**unpaired(data, 70, 90))):
        stream = call._stream
        for actual, state, start in zip((call.x_head_, call.y_head_), stream.heads, stream.starts, strict=True):
            for name, weights in actual.items():
                assert_allclose(weights, 0.6 * state[name] + 0.4 * start[name], **LAW[np.float32])
                assert np.abs(weights - start[name]).max() > 1e-5


def test_anchors_are_of_all_calls_and_where_the_heads_put_them_now(data):
    aligner = begun(SOTAlign(n_landmarks=0, random_state=0, batch_size_unpaired=50), data)
    aligner.partial_fit(**unpaired(data, 70, 90))
    anchors = aligner.aligner_.transform(np.concatenate([data.X[:100], data.X[100:170]]))
    assert_allclose(aligner.local_scaling_.x_anchors, anchors, **LAW[np.float32])
    assert len(aligner.local_scaling_.y_anchors) == 100 + 90


def test_all_rows_of_a_stream_are_equally_likely_to_be_remembered(monkeypatch):
    monkeypatch.setattr(_stream, "_N_REMEMBERED", 20)
    counts = np.zeros(100)
    for seed in range(500):
        rng, sample = np.random.default_rng(seed), _stream.Sample(np.empty((0, 1)), np.empty(0))
        for call in np.split(np.arange(100.0)[:, None], [1, 9, 70]):
            sample = sample.joined(call, rng)
        counts[sample.rows[:, 0].astype(int)] += 1
    assert counts.sum() == 500 * 20
    assert np.abs(counts / 500 - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 500)


def test_a_pass_falls_into_equal_batches():
    for n_rows, batch_size in [(1, 50), (50, 50), (51, 50), (149, 50), (1000, 7)]:
        n_steps, size = -(-n_rows // batch_size), _stream.even(n_rows, batch_size)
        assert 1 <= size <= batch_size
        assert 0 <= n_rows - n_steps * size < n_steps


@pytest.mark.parametrize("n_rows", [30, 200])
def test_rows_on_disk_are_learned_from_as_those_in_memory(aligner, data, tmp_path, n_rows):
    in_memory = begun(clone(aligner), data).partial_fit(**unpaired(data, n_rows, n_rows))
    paths = {name: tmp_path / f"{name}.npy" for name in ("X_unpaired", "Y_unpaired")}
    for name, rows in unpaired(data, n_rows, n_rows).items():
        np.save(paths[name], rows)
    mapped = {"X_unpaired": np.load(paths["X_unpaired"], mmap_mode="r"), "Y_unpaired": paths["Y_unpaired"]}
    begun(aligner, data).partial_fit(**mapped)
    assert aligner.n_iter_ == in_memory.n_iter_
    # in which order batches come does not matter much, and there is one alone of 30 rows
    assert_same_weights(aligner, in_memory, atol=1e-6 if n_rows == 30 else 5e-3)


def test_frames_and_tensors_and_halves_may_come(aligner, data):
    X, Y = data.X.astype(np.float16), data.Y.astype(np.float16)
    expected = begun(clone(aligner), type(data)(X=X, Y=Y)).transform(X)
    tensors = begun(clone(aligner), type(data)(X=torch.from_numpy(X), Y=torch.from_numpy(Y)))
    assert_array_equal(tensors.transform(X), expected)
    frames = type(data)(X=pd.DataFrame(X).add_prefix("x"), Y=pd.DataFrame(Y).add_prefix("y"))
    assert_array_equal(begun(aligner, frames).transform(frames.X), expected)
    with pytest.raises(ValueError, match="columns of `X_unpaired` must be those of X"):
        aligner.partial_fit(X_unpaired=frames.X.iloc[:, ::-1])


def test_what_a_stream_cannot_do_is_refused(aligner, data):
    with pytest.raises(ValueError, match="`partial_fit` holds no pairs out, but early_stopping=True"):
        begun(aligner.set_params(early_stopping=True), data)


def test_without_a_divergence_unpaired_rows_only_become_anchors(data):
    aligner = begun(SOTAlign(alpha=0, random_state=0), data)
    before = weights_of(aligner)
    aligner.partial_fit(**unpaired(data, 70, 90))
    for one, other in zip(weights_of(aligner), before, strict=True):
        assert_array_equal(one, other)
    assert len(aligner.local_scaling_.x_anchors) == 170
    aligner.set_params(alpha=30).partial_fit(**unpaired(data, 70, 90))
    assert aligner.teacher_ is not None


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.9"), reason="scikit-learn has no callbacks")
def test_callbacks_are_left_in_peace(aligner, data):
    from sklearn.callback import ProgressBar

    pytest.importorskip("rich", reason="rich draws the bars of scikit-learn")
    aligner.set_callbacks(ProgressBar())
    assert begun(aligner, data).partial_fit(**unpaired(data, 70, 90)).n_iter_ == 4


def plans_missed(match):
    return pytest.warns(ConvergenceWarning, match=match)


def test_the_plans_that_missed_their_tolerance_are_counted_by_call(data):
    settings = {"sinkhorn_max_iter": 1, "sinkhorn_tol": 1e-9, "random_state": 0, "batch_size_unpaired": 50}
    with plans_missed("2 of 2 plans of the student"), plans_missed("2 of 2 plans of the teacher"):
        aligner = begun(SOTAlignTransformer(**settings), data)
    worst = aligner.sinkhorn_error_["student"]
    with plans_missed("1 of 1 plans of the student"), plans_missed("1 of 1 plans of the teacher"):
        aligner.partial_fit(**unpaired(data, 1, 1))
    assert aligner.sinkhorn_error_["student"] >= worst


def test_a_call_that_memory_does_not_suffice_for_is_refused(aligner, data, monkeypatch):
    before = pickle.dumps(begun(aligner, data))
    forward, calls = Divergence.forward, []

    def fails_late(divergence, *views):
        calls.append(None)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("no memory")
        return forward(divergence, *views)

    monkeypatch.setattr(Divergence, "forward", fails_late)
    with pytest.raises(MemoryError, match="after 1 steps on the rows of this call. The estimator is as it was"):
        aligner.set_params(batch_size_unpaired=20).partial_fit(**unpaired(data, 70, 90))
    assert len(calls) > 2  # it was tried again
    monkeypatch.undo()
    aligner.set_params(batch_size_unpaired=pickle.loads(before).batch_size_unpaired)
    assert pickle.dumps(aligner) == before


@pytest.mark.parametrize("change", [{"head": "mlp"}, {"n_components": 3}])
def test_the_heads_of_a_stream_cannot_be_others(aligner, data, change):
    begun(aligner, data).set_params(**change)
    with pytest.raises(ValueError, match="goes on with the heads there are, 'linear' of"):
        aligner.partial_fit(**unpaired(data, 70, 90))


def test_the_curve_of_a_fit_before_the_stream_is_kept(data):
    aligner = SOTAlignTransformer(max_iter=20, early_stopping=True, random_state=0).fit(data.X, data.Y, data.paired_idx)
    looks = aligner.loss_curve_["validation"]
    begun(aligner.set_params(early_stopping=False), data)
    assert aligner.loss_curve_["validation"] == looks
    assert len(aligner.loss_curve_["loss"]) == aligner.n_iter_ > 20
