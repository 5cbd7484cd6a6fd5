"""Laws of searches on several processes: the results of one, from data that each process gets once."""

import contextlib
import sys

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from skalign import ProcrustesTeacher, SOTAlign
from skalign.datasets import make_two_views
from skalign.model_selection import PairedKFold, to_row_aligned


@pytest.fixture
def one_thread():
    """As many threads as a worker has, since the number of threads decides how sums round."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(n_threads)


@contextlib.contextmanager
def loky(views, folder):
    with joblib.parallel_config("loky", n_jobs=2, max_nbytes=1000, temp_folder=folder):
        yield


@contextlib.contextmanager
def dask(views, folder):
    distributed = pytest.importorskip("distributed", reason="dask is an optional package")
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings, local_directory=folder) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask", scatter=list(views)),
    ):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("backend", [loky, dask])
def test_a_search_on_processes_is_the_serial_one_and_they_get_the_views_once(backend, tmp_path, one_thread):
    data = make_two_views(60, 80, 100, n_features_x=7, n_features_y=11, n_latent=6, noise=0.2, random_state=0)
    X, Y, _ = to_row_aligned(data.X[:110], data.Y[:120], data.paired_idx)
    pools = {"X_unpaired": tmp_path / "images.npy", "Y_unpaired": [tmp_path / "texts0.npy", tmp_path / "texts1.npy"]}
    np.save(pools["X_unpaired"], data.X[110:])
    for path, rows in zip(pools["Y_unpaired"], np.split(data.Y[120:], 2), strict=True):
        np.save(path, rows)

    def scores(estimator, X_test, Y_test):
        frame = sys._getframe()
        while frame.f_code.co_name != "_fit_and_score":
            frame = frame.f_back
        views = frame.f_locals["X"], frame.f_locals["y"]
        known = vars(sys).setdefault("_views_of_this_process", [])  # held, so that no address is used again
        for view in views:
            if not any(view is one for one in known):
                known.append(view)
        n_mapped = sum(isinstance(view, np.memmap) for view in views)
        return {"score": estimator.score(X_test, Y_test), "mapped": n_mapped, "known": len(known)}

    def search():
        aligner = SOTAlign(ProcrustesTeacher(), max_iter=4, random_state=0)
        grid = {"alpha": [0.0, 3.0, 30.0]}
        return GridSearchCV(aligner, grid, cv=PairedKFold(3), scoring=scores, refit="score").fit(X, Y, **pools)

    serial = search()
    with backend((X, Y), tmp_path):
        parallel = search()
    assert parallel.best_params_ == serial.best_params_
    found = {
        name: np.array([parallel.cv_results_[f"split{fold}_test_{name}"] for fold in range(3)])
        for name in ("score", "mapped", "known")
    }
    assert_array_equal(found["score"], [serial.cv_results_[f"split{fold}_test_score"] for fold in range(3)])
    if backend is loky:
        assert (found["mapped"] == 2).all()
    else:  # if each of the 9 fits had views of its own, a worker would know 10 in the end; a busy cluster may move them once
        assert found["known"].max() <= 4
    assert_array_equal(parallel.transform(data.X_test), serial.transform(data.X_test))
