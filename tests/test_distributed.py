"""Laws of fits under torchrun: all ranks end with what one process would end with, and none waits for one that is gone.

This file is the script of the ranks, too: they run one of `SCENES` and write what they found, each into a file of its own.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold
from test_callbacks import Recorder, has_callbacks

import skalign
from skalign import SOTAlign, SOTAlignTransformer
from skalign._arrays import resolve_device
from skalign._core import distributed, divergences
from skalign.datasets import make_two_views

MAX_ITER, KILLED_AT, SILENCE = 8, 5, 6
BOUND = 60  # seconds in which the death of a rank is to be known
_SETTINGS = {"max_iter": MAX_ITER, "random_state": 0, "sinkhorn_tol": 1e-5, "sinkhorn_tol_teacher": 1e-5}
ALIGNERS = {
    "batches": SOTAlign(batch_size_unpaired=(150, 90), batch_size=20, **_SETTINGS),
    "all rows": SOTAlign(batch_size_unpaired=5000, **_SETTINGS),
    "few rows": SOTAlign(batch_size_unpaired=(1, 3), **_SETTINGS),
    "held-out pairs": SOTAlign("contrastive", early_stopping=True, batch_size_unpaired=90, **_SETTINGS),
    "from the features": SOTAlignTransformer(batch_size_unpaired=100, head="mlp", **_SETTINGS),
    "another divergence": SOTAlign(divergence="cka", **_SETTINGS),
    "on disk": SOTAlign(batch_size_unpaired=(150, 90), **_SETTINGS),
}


def planted():
    """40 pairs, then 900 and 1,100 unpaired rows of 7 and 11 columns."""
    return make_two_views(40, 900, 1100, 60, n_features_x=7, n_features_y=11, n_latent=4, noise=0.3, random_state=0)


def fitted(name, folder):
    """One of `ALIGNERS`, fitted."""
    data, aligner = planted(), clone(ALIGNERS[name])
    if name == "from the features":
        divergences._DENSE_ENTRIES, stored = 0, divergences._DENSE_ENTRIES
    if name != "on disk":
        aligner.fit(data.X, data.Y, data.paired_idx)
    else:
        n = len(data.paired_idx)
        pools = {f"{view}_unpaired": Path(folder) / f"{view}.npy" for view in "XY"}
        aligner.fit(data.X[:n], data.Y[:n], **pools)
    if name == "from the features":
        divergences._DENSE_ENTRIES = stored
    return aligner


def on_disk(folder):
    data = planted()
    for view in "XY":
        np.save(folder / f"{view}.npy", getattr(data, view)[len(data.paired_idx) :])


# What ranks do


def all_aligners(rank, folder):
    """Every aligner, and one without a seed; and how many files and sockets were open after each (Linux)."""
    found, n_open = {}, []
    for name in ALIGNERS:
        found[name] = fitted(name, folder)
        n_open.append(len(os.listdir("/proc/self/fd")))
    data = planted()
    return found | {"no seed": SOTAlign(max_iter=3).fit(data.X, data.Y, data.paired_idx), "files and sockets": n_open}


def failures(rank, folder):
    """What each of some attempts says, in the group of the script; in the end one that succeeds."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    data, aligner = planted(), SOTAlign(max_iter=3, random_state=0)
    broken = data.X.copy()
    broken[-1, 2] = np.nan

    def search():
        scoring = GridSearchCV(aligner, {"epsilon": [0.1, 0.2]}, cv=KFold(2), n_jobs=2, refit=False)
        return scoring.fit(data.X[:40], data.Y[:40]).cv_results_["mean_test_score"].tolist()

    def interrupted():
        called, klot_of_shares = [], divergences.klot_of_shares

        def impatient(*args, **kwargs):
            called.append(args)
            if rank == 0 and len(called) == 2:
                raise KeyboardInterrupt
            return klot_of_shares(*args, **kwargs)

        divergences.klot_of_shares = impatient
        try:
            clone(aligner).fit(*data_of(data))
        finally:
            divergences.klot_of_shares = klot_of_shares

    def stopped():
        patient = clone(aligner)
        if rank == 0 and has_callbacks:
            patient.set_callbacks(Recorder(lambda step: step == 1))
        return patient.fit(*data_of(data)).n_iter_

    def in_a_thread():
        here = []
        n = 50 + rank
        thread = threading.Thread(target=lambda: here.append(clone(aligner).fit(data.X[:n], data.Y[:n]).n_iter_))
        thread.start()
        thread.join()
        return here

    attempts = {
        "other seed": lambda: clone(aligner).set_params(random_state=rank).fit(data.X, data.Y, data.paired_idx),
        "other rows": lambda: clone(aligner).fit(data.X + rank, data.Y, data.paired_idx),
        "broken rows": lambda: clone(aligner).fit(broken if rank else data.X, data.Y, data.paired_idx),
        "bad parameter": lambda: clone(aligner).set_params(max_iter=3 - 9 * rank).fit(data.X, data.Y, data.paired_idx),
        "no name": lambda: clone(aligner).set_params(head=lambda d_in, d_out: None).fit(*data_of(data)),
        "interrupted": interrupted,
        "stopped": stopped,
        "separate": lambda: (
            clone(aligner).set_params(distributed=False).fit(data.X[: 60 + rank], data.Y[: 60 + rank]).n_iter_
        ),
        "search": search,
        "thread": in_a_thread,
        "good": lambda: clone(aligner).fit(data.X, data.Y, data.paired_idx).n_iter_,
    }
    said = {}
    for name, attempt in attempts.items():
        start = time.perf_counter()
        try:
            said[name] = attempt()
        except (Exception, KeyboardInterrupt) as error:
            said[name] = f"{type(error).__name__}: {error}"
        said[name] = said[name], time.perf_counter() - start
    return said


def lost(rank, folder, how):
    """A fit in the middle of which rank 1 is gone."""
    distributed._SILENCE = timedelta(seconds=SILENCE)
    called, klot_of_shares = [], divergences.klot_of_shares

    def deadly(*args, **kwargs):
        called.append(time.time())
        if rank == 1 and len(called) == KILLED_AT:
            os.kill(os.getpid(), how)
        return klot_of_shares(*args, **kwargs)

    divergences.klot_of_shares = deadly
    try:
        kept(folder).fit(*data_of(planted()))
    except RuntimeError as error:
        return str(error), time.time() - called[-1]


SCENES = {
    "all aligners": all_aligners,
    "failures": failures,
    "killed": lambda rank, folder: lost(rank, folder, signal.SIGKILL),
    "stopped": lambda rank, folder: lost(rank, folder, signal.SIGSTOP),
}


def kept(folder):
    return clone(ALIGNERS["batches"]).set_params(checkpoint_dir=folder / "kept", checkpoint_interval=1)


def data_of(data):
    return data.X, data.Y, data.paired_idx


# What is true of them


def environment():
    package = str(Path(skalign.__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([package, *sys.path]), "OMP_NUM_THREADS": "1"}


def under_torchrun(scene, folder):
    """What both ranks found."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*run, __file__, scene, folder], capture_output=True, text=True, env=environment(), timeout=500
    )
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def without_torchrun(scene, folder):
    """What rank 0 found, and the process of rank 1, which may be gone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen([sys.executable, __file__, scene, folder], env=group | {"RANK": str(k)}) for k in range(2)
    ]
    try:
        assert ranks[0].wait(timeout=500) == 0
    finally:
        for process in ranks:
            process.kill()
    ranks[1].wait()
    return pickle.loads((folder / "0.pickle").read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every aligner, as one process and as both ranks have it."""
    folder = tmp_path_factory.mktemp("trained")
    on_disk(folder)
    return {name: fitted(name, folder) for name in ALIGNERS}, *under_torchrun("all aligners", folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALIGNERS, "no seed"])
def test_all_ranks_end_with_the_same_estimator(trained, name):
    _, first, second = trained
    assert joblib.hash(vars(first[name])) == joblib.hash(vars(second[name]))


@pytest.mark.slow
def test_a_fit_leaves_no_sockets_behind(trained):
    for rank in trained[1:]:
        assert rank["files and sockets"][-1] <= rank["files and sockets"][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIGNERS)
def test_ranks_train_as_one_process_does(trained, name):
    alone, together, _ = trained
    for term, curve in alone[name].loss_curve_.items():
        assert_allclose(together[name].loss_curve_[term], curve, rtol=1e-4, atol=1e-6)
    assert together[name].n_iter_ == alone[name].n_iter_
    data = planted()
    for found, expected in zip(
        together[name].transform(data.X_test, data.Y_test), alone[name].transform(data.X_test, data.Y_test), strict=True
    ):
        assert_allclose(found, expected, atol=1e-3)
    scores = [aligner[name].score(data.X_test, data.Y_test, paired_idx=data.test_idx) for aligner in (together, alone)]
    assert_allclose(*scores, atol=1 / len(data.test_idx))


@pytest.mark.slow
def test_what_one_rank_does_otherwise_is_told_to_all(tmp_path):
    first, second = under_torchrun("failures", tmp_path)
    assert first["other seed"][0] == second["other seed"][0]
    assert "rank 1 differs from rank 0 in: parameters." in first["other seed"][0]
    assert "rank 1 differs from rank 0 in: X." in second["other rows"][0]
    assert "distributed=False" in second["other rows"][0]
    assert second["broken rows"][0].startswith("ValueError: ")
    for name in ("broken rows", "bad parameter"):
        assert first[name][0].startswith("RuntimeError: Rank 1 of the 2 that train together failed: ")
        assert second[name][0].removeprefix("RuntimeError: ") in first[name][0]
        assert "checkpoint_dir" in first[name][0]
        assert first[name][1] < BOUND
    assert "max_iter" in second["bad parameter"][0]
    assert "no name that lasts" in first["no name"][0]
    assert first["interrupted"][0].startswith("KeyboardInterrupt")
    assert "Rank 0 of the 2 that train together failed: KeyboardInterrupt" in second["interrupted"][0]
    assert first["stopped"][0] == second["stopped"][0] == (2 if has_callbacks else 3)
    for name in ("separate", "thread", "search"):
        assert first[name][0] == second[name][0]
    assert first["separate"][0] == 3
    assert first["thread"][0] == [3]
    assert all(0 <= score <= 1 for score in first["search"][0])
    assert first["good"][0] == second["good"][0] == 3


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["killed", "stopped"])
def test_the_death_of_a_rank_is_known_soon_and_the_training_goes_on_from_its_checkpoint(tmp_path, scene, monkeypatch):
    error, seconds = without_torchrun(scene, tmp_path)
    assert "has died or cannot be reached" in error
    assert "with `checkpoint_dir` it goes on" in error
    assert seconds < BOUND / 2
    uninterrupted = clone(ALIGNERS["batches"]).fit(*data_of(planted()))
    steps, klot = [], divergences.klot
    monkeypatch.setattr(divergences, "klot", lambda *args, **kwargs: steps.append(1) or klot(*args, **kwargs))
    resumed = kept(tmp_path).fit(*data_of(planted()))
    assert len(steps) == MAX_ITER - (KILLED_AT - 1)  # on a single process, which is welcome, too
    assert_allclose(resumed.loss_curve_["loss"], uninterrupted.loss_curve_["loss"], rtol=1e-4)


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    with distributed.together() as group:
        assert group is distributed.ALONE
    monkeypatch.setenv("WORLD_SIZE", "1")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with distributed.together() as group:
        assert group is distributed.ALONE


def test_a_rank_trains_on_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert resolve_device("auto") == torch.device("cuda")
    for rank, index in ((2, 2), (5, 1)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert resolve_device("auto") == torch.device("cuda", index)


if __name__ == "__main__":
    scene, folder = sys.argv[1], Path(sys.argv[2])
    found = SCENES[scene](int(os.environ["RANK"]), folder)
    (folder / f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(found))
