"""Laws of what training on a GPU brings: heads in bfloat16, memory that does not suffice, numbers the host waits for.

They hold on the CPU, too, and most are tested there. What needs a CUDA device says so.
"""

import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch.utils._python_dispatch import TorchDispatchMode

from skalign import CCATeacher, ContrastiveTeacher, SOTAlign, SOTAlignTransformer
from skalign._arrays import resolve_precision
from skalign._core import divergences
from skalign._core.affinity import StoredAffinity
from skalign._core.sinkhorn import check_problem, solve
from skalign.datasets import make_two_views
from skalign.metrics import mean_recall

ALIGNERS = [ContrastiveTeacher, SOTAlignTransformer, SOTAlign]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def data():
    """60 pairs, then free rows; 9 and 13 columns."""
    return make_two_views(60, 150, 170, 200, n_features_x=9, n_features_y=13, n_latent=6, noise=0.3, random_state=0)


def fitted(data, estimator=SOTAlignTransformer, **settings):
    return estimator(**{"max_iter": 10, "random_state": 0, **settings}).fit(data.X, data.Y, data.paired_idx)


def arrays(aligner):
    """Those of the trained heads."""
    heads = getattr(aligner, "aligner_", aligner)
    return [*heads.x_head_.values(), *heads.y_head_.values()]


# the type the heads compute in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "device", "has_bfloat16", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda:1", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_has_it(monkeypatch, precision, device, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert resolve_precision(precision, torch.device(device)) == expected


@pytest.mark.parametrize("estimator", ALIGNERS)
def test_auto_is_float32_on_the_cpu(data, estimator):
    auto, full, half = (
        fitted(data, estimator, precision=precision, device="cpu") for precision in ("auto", "float32", "bfloat16")
    )
    assert_array_equal(auto.transform(data.X_test), full.transform(data.X_test))
    assert np.abs(half.transform(data.X_test) - full.transform(data.X_test)).max() > 0


@pytest.mark.parametrize("estimator", ALIGNERS)
def test_bfloat16_heads_find_what_float32_heads_find_and_are_kept_in_float32(estimator):
    settings = {"learning_rate": 0.03} if estimator is ContrastiveTeacher else {}  # it starts at random weights
    recalls = {"float32": [], "bfloat16": []}
    for seed in range(4):
        data = make_two_views(60, 150, 170, 200, n_features_x=9, n_features_y=13, n_latent=6, random_state=seed)
        for precision, found in recalls.items():
            aligner = fitted(data, estimator, precision=precision, max_iter=30, **settings)
            assert {array.dtype for array in arrays(aligner)} == {np.dtype(np.float32)}
            found.append(mean_recall(*aligner.transform(data.X_test, data.Y_test), data.test_idx))
    assert np.mean(recalls["float32"]) > 0.5
    assert abs(np.mean(recalls["bfloat16"]) - np.mean(recalls["float32"])) < np.std(recalls["float32"])


def test_embedding_does_not_depend_on_the_precision(data):
    aligner = fitted(data, precision="bfloat16")
    before = aligner.transform(data.X_test)
    assert before.dtype == data.X_test.dtype
    assert_array_equal(aligner.set_params(precision="float32").transform(data.X_test), before)


def test_sotalign_hands_its_precision_on(data):
    aligner = fitted(data, SOTAlign, teacher="contrastive", precision="bfloat16", max_iter=2)
    assert aligner.aligner_.precision == aligner.teacher_.precision == "bfloat16"


@pytest.mark.parametrize("estimator", ALIGNERS)
def test_other_precisions_are_refused(data, estimator):
    with pytest.raises(ValueError, match="The 'precision' parameter of .* must be a str among .*'bfloat16'"):
        fitted(data, estimator, precision="float16")


# memory that does not suffice --------------------------------------------------------------------------------------


def failing_at(monkeypatch, calls, name="klot", error=torch.OutOfMemoryError):
    """Let KLOT run out of memory at some of its calls, from 1 on."""
    original, n_calls = getattr(divergences, name), [0]

    def scarce(*args, **kwargs):
        n_calls[0] += 1
        if n_calls[0] in calls:
            raise error("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return original(*args, **kwargs)

    monkeypatch.setattr(divergences, name, scarce)


@pytest.mark.parametrize("estimator", [SOTAlignTransformer, SOTAlign])
def test_a_step_out_of_memory_warns_once_and_the_fit_is_what_streaming_gives(data, estimator, monkeypatch):
    monkeypatch.setattr(divergences, "_DENSE_ENTRIES", 0)
    expected = fitted(data, estimator)
    monkeypatch.undo()
    failing_at(monkeypatch, {1})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aligner = fitted(data, estimator)
    (warning,) = caught
    assert warning.category is UserWarning
    assert "To avoid it lower `batch_size_unpaired`, now 1024." in str(warning.message)
    assert_array_equal(aligner.transform(data.X_test), expected.transform(data.X_test))
    assert aligner.loss_curve_ == expected.loss_curve_


def test_where_streaming_is_not_enough_the_estimator_is_fitted_with_the_steps_done(data, monkeypatch):
    failing_at(monkeypatch, {4})
    failing_at(monkeypatch, {1}, "klot_from_features")
    ending = "did not suffice for the step after 3 of 10 steps; the best state"
    with pytest.warns(ConvergenceWarning, match=ending), pytest.warns(UserWarning, match="from the features"):
        aligner = fitted(data)
    assert aligner.n_iter_ == len(aligner.loss_curve_["loss"]) == 3
    monkeypatch.undo()
    assert_array_equal(arrays(aligner)[0], arrays(fitted_and_stopped(data, 3))[0])


def fitted_and_stopped(data, n_iter):
    """A fit that Ctrl-C ends after some steps."""
    steps = []

    class Stopped(torch.optim.AdamW):
        def step(self):
            steps.append(1)
            if len(steps) > n_iter:
                raise KeyboardInterrupt
            super().step()

    with pytest.warns(ConvergenceWarning, match=f"interrupted after {n_iter} of 10 steps"):
        return fitted(data, optimizer=Stopped)


def test_a_training_that_goes_on_later_does_so_from_the_features(data, monkeypatch, tmp_path):
    failing_at(monkeypatch, {3})
    with pytest.warns(UserWarning, match="from the features"):
        expected = fitted(data)
    monkeypatch.undo()
    failing_at(monkeypatch, {3})
    failing_at(monkeypatch, {4}, "klot_from_features", KeyboardInterrupt)
    kept = {"checkpoint_dir": tmp_path, "checkpoint_interval": 1}
    with pytest.warns(ConvergenceWarning, match="after 5 of 10 steps"), pytest.warns(UserWarning, match="the features"):
        fitted(data, **kept)
    monkeypatch.undo()
    monkeypatch.setattr(divergences, "klot", None)
    with pytest.warns(UserWarning, match="from the features"):
        resumed = fitted(data, **kept)
    assert resumed.loss_curve_ == expected.loss_curve_
    assert_array_equal(resumed.transform(data.X_test), expected.transform(data.X_test))


def test_where_not_one_step_fits_the_estimator_stays_as_it_was(data, monkeypatch):
    aligner = fitted(data)
    before = aligner.transform(data.X_test)
    for name in ("klot", "klot_from_features"):
        failing_at(monkeypatch, {1}, name)
    with pytest.raises(torch.OutOfMemoryError, match="lower its batch sizes"):
        aligner.set_params(alpha=10).fit(data.X, data.Y, data.paired_idx)
    assert_array_equal(aligner.transform(data.X_test), before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
def test_a_process_whose_memory_is_limited_ends_with_what_streaming_gives():
    """3,000 x 3,000: matrices of 34 MiB, of which a step holds three; 80 MiB are left to it, and streaming is enough."""
    script = """
        import resource, warnings
        from pathlib import Path
        import numpy as np
        from skalign import CCATeacher, SOTAlignTransformer
        from skalign._core import divergences

        rng = np.random.default_rng(0)
        X, Y = (rng.normal(size=(3100, 16)).astype(np.float32) for _ in "XY")

        def fit(size, max_iter):
            aligner = SOTAlignTransformer(CCATeacher(reg=0.1), max_iter=max_iter, batch_size_unpaired=size, random_state=0,
                epsilon_teacher=0.1, sinkhorn_tol=0.3, sinkhorn_tol_teacher=0.3)
            return aligner.fit(X[:100], Y[:100], X_unpaired=X[100:], Y_unpaired=Y[100:])

        fit(64, 1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20), before[1]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            limited = fit(3000, 2)
        resource.setrlimit(resource.RLIMIT_AS, before)
        divergences._DENSE_ENTRIES = 0
        same = (limited.x_coef_ == fit(3000, 2).x_coef_).all()
        print(same, [warning.category.__name__ for warning in caught])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert run.stdout.split("\n")[-2:] == ["True ['UserWarning']", ""], run.stderr


# numbers the host waits for ----------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts numbers that leave torch one by one, as by `item`, `float` and `bool`; `tolist` is none of them."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_iterations_read_nothing_but_how_good_the_plan_is(rng):
    K = torch.from_numpy(rng.uniform(-1, 1, size=(70, 110)))
    n_iter, n_reads = [], []
    for tol in (1e-1, 1e-6):
        affinity = StoredAffinity(K)  # which keeps its extremes
        with Reads() as reads:
            result = solve(affinity, 0.1, *check_problem(affinity, 0.1), tol=tol, max_iter=1000, init=None)
        assert result.converged
        n_iter.append(result.n_iter)
        n_reads.append(reads.n)
    assert n_iter[1] > n_iter[0] + 3
    assert n_reads[1] == n_reads[0] <= 3


def test_a_step_reads_nothing_but_its_record(data):
    counts = []
    for max_iter in (3, 9):
        with Reads() as reads:
            fitted(data, ContrastiveTeacher, optimizer=torch.optim.SGD, batch_size=20, max_iter=max_iter)
        counts.append(reads.n)
    assert counts[0] == counts[1]


# compiled heads ----------------------------------------------------------------------------------------------------

compiled = []


def backend(graph, inputs):
    """What is asked to compile, which it does not."""
    compiled.append(graph)
    return graph.forward


class CompiledHead(torch.nn.Linear):
    """A linear head that compiles itself."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out)
        self.compile(backend=backend)

    def forward(self, rows):
        return super().forward(rows)


@pytest.mark.slow
def test_a_head_may_compile_itself_and_nothing_compiled_is_stored(data):
    compiled.clear()
    aligner = fitted(data, ContrastiveTeacher, head=CompiledHead)
    assert compiled
    plain = fitted(data, ContrastiveTeacher, head=torch.nn.Linear)
    assert list(aligner.x_head_) == list(plain.x_head_) == ["weight", "bias"]
    assert all(type(array) is np.ndarray for array in arrays(aligner))
    expected = aligner.transform(data.X_test)
    assert_allclose(expected, plain.transform(data.X_test), atol=1e-6)
    assert_array_equal(pickle.loads(pickle.dumps(aligner)).transform(data.X_test), expected)
    again = clone(aligner).fit(data.X, data.Y, data.paired_idx)
    assert_array_equal(again.transform(data.X_test), expected)


# on the device -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("estimator", ALIGNERS)
def test_bfloat16_on_cuda_finds_what_float32_finds_on_the_cpu(data, estimator):
    recalls = []
    for settings in ({"device": "cuda"}, {"device": "cpu", "precision": "float32"}):
        aligner = fitted(data, estimator, max_iter=30, learning_rate=0.01, **settings)
        assert {array.dtype for array in arrays(aligner)} == {np.dtype(np.float32)}
        recalls.append(mean_recall(*aligner.transform(data.X_test, data.Y_test), data.test_idx))
    assert abs(recalls[0] - recalls[1]) < 0.03


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("estimator", ALIGNERS)
def test_tensors_on_the_device_come_back_there(data, estimator):
    aligner = fitted(data, estimator, device="cuda")
    X = torch.from_numpy(data.X_test).cuda()
    F = aligner.transform(X)
    assert F.device == X.device
    assert_allclose(F.cpu(), aligner.set_params(device="cpu").transform(data.X_test), atol=1e-5)


@pytest.mark.gpu
@needs_cuda
def test_a_device_whose_memory_is_limited_ends_with_what_streaming_gives(monkeypatch):
    """8,192 x 8,192: matrices of 256 MiB, of which a step holds three; 650 MiB are left to it."""
    rng = np.random.default_rng(0)
    X, Y = (rng.normal(size=(8400, 16)).astype(np.float32) for _ in "XY")

    def fit(size):
        settings = {"epsilon_teacher": 0.1, "batch_size_unpaired": size, "max_iter": 3, "random_state": 0}
        aligner = SOTAlignTransformer(CCATeacher(reg=0.1), device="cuda", **settings)
        return aligner.fit(X[:100], Y[:100], X_unpaired=X[100:], Y_unpaired=Y[100:])

    fit(64)
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + (650 << 20)
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.warns(UserWarning, match="To avoid it lower `batch_size_unpaired`, now 8192"):
            limited = fit(8192)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    monkeypatch.setattr(divergences, "_DENSE_ENTRIES", 0)
    assert limited.n_iter_ == 3
    assert_allclose(limited.x_coef_, fit(8192).x_coef_, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
def test_iterations_on_cuda_wait_once_each(rng):
    K = torch.from_numpy(rng.uniform(-1, 1, size=(700, 1100))).float().cuda()
    n_iter, n_waits = [], []
    for tol in (1e-1, 1e-4):
        affinity = StoredAffinity(K)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = solve(affinity, 0.1, *check_problem(affinity, 0.1), tol=tol, max_iter=1000, init=None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        n_iter.append(result.n_iter)
        n_waits.append(sum("synchronizing CUDA" in str(warning.message) for warning in caught))
    assert n_iter[1] > n_iter[0]
    assert n_waits[1] - n_waits[0] <= n_iter[1] - n_iter[0]
