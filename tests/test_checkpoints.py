"""Laws of checkpoints and warm starts: a training that was killed ends as if it had not been, nothing is mixed or lost."""

import errno
import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils.fixes import parse_version

import skalign._checkpoints
from skalign import BridgeFlow, CCATeacher, ContrastiveTeacher, ProcrustesTeacher, SOTAlign, SOTAlignTransformer, load
from skalign._core import training
from skalign._sources import stored_rows
from skalign.baselines import NNCLR, SAIL, SCLIP, STRUCTURE
from skalign.datasets import make_two_views
from skalign.model_selection import PairedKFold

MAX_ITER, INTERVAL = 8, 3
has_callbacks = parse_version(sklearn.__version__) >= parse_version("1.9")


def with_dropout(d_in, d_out):
    return torch.nn.Sequential(torch.nn.Linear(d_in, d_out), torch.nn.BatchNorm1d(d_out), torch.nn.Dropout(0.3))


_SETTINGS = {"max_iter": MAX_ITER, "random_state": 0}
_BATCHES = {"batch_size": 15, "batch_size_unpaired": (20, 30)}
TRAINED = {
    "SOTAlign": SOTAlign("procrustes", **_SETTINGS, **_BATCHES),
    "SOTAlign, held-out pairs": SOTAlign("contrastive", early_stopping=True, **_SETTINGS, **_BATCHES),
    "SOTAlignTransformer, all rows": SOTAlignTransformer(batch_size_unpaired=1000, teacher_weight=0.3, **_SETTINGS),
    "SOTAlignTransformer, MLP and Lion": SOTAlignTransformer(head="mlp", optimizer="lion", **_SETTINGS, **_BATCHES),
    "SOTAlignTransformer, head and optimizer of the user": SOTAlignTransformer(
        head=with_dropout, optimizer=torch.optim.RMSprop, early_stopping=True, **_SETTINGS, **_BATCHES
    ),
    "ContrastiveTeacher": ContrastiveTeacher(batch_size=15, **_SETTINGS),
    "SAIL": SAIL(negatives="all", **_SETTINGS, **_BATCHES),
    "STRUCTURE": STRUCTURE(**_SETTINGS, **_BATCHES),
    "NNCLR": NNCLR(batch_size=15, **_SETTINGS),
    "SCLIP": SCLIP(**_SETTINGS, **_BATCHES),
    "BridgeFlow": BridgeFlow(
        source="noise", hidden_layer_sizes=(16,), batch_size=40, early_stopping=True, plan_size=20, **_SETTINGS
    ),
}


@pytest.fixture(scope="module")
def data():
    """40 pairs, then free rows; 7 and 11 columns."""
    return make_two_views(40, 55, 65, 30, n_features_x=7, n_features_y=11, n_latent=4, noise=0.3, random_state=0)


def fitted(aligner, data):
    return aligner.fit(data.X, data.Y, data.paired_idx)


def kept_in(folder, aligner=None):
    return clone(TRAINED["SOTAlign"] if aligner is None else aligner).set_params(
        checkpoint_dir=folder, checkpoint_interval=INTERVAL
    )


class Killed(BaseException):
    """What ends a training as a kill does, which nobody catches."""


class Death:
    """Counts the steps of trainings, and raises in the middle of the `n`-th from now: the weights have moved, no more."""

    def __init__(self, monkeypatch):
        self.alive, self.n_steps, self.left = training._all_finite, 0, None
        self.error = Killed
        monkeypatch.setattr(training, "_all_finite", self)

    def __call__(self, *tensors):
        if self.left == 0:
            self.left = None
            raise self.error
        self.left = None if self.left is None else self.left - 1
        self.n_steps += 1
        return self.alive(*tensors)

    def after(self, n, aligner, data):
        self.left = n
        with pytest.raises(Killed):
            fitted(aligner, data)


@pytest.fixture
def death(monkeypatch):
    return Death(monkeypatch)


def weights_of(aligner):
    trained = getattr(aligner, "aligner_", aligner)
    names = ("x_head_", "y_head_", "flow_", "inverse_flow_")
    return [weights for name in names for weights in getattr(trained, name, {}).values()]


def assert_same_fit(actual, expected, data):
    for one, other in zip(weights_of(actual), weights_of(expected), strict=True):
        assert_array_equal(one, other)
    assert_array_equal(actual.transform(data.X_test), expected.transform(data.X_test))
    assert_array_equal(actual.transform_y(data.Y_test), expected.transform_y(data.Y_test))
    for name in ("loss_curve_", "n_iter_", "best_iter_", "sinkhorn_error_"):
        assert getattr(actual, name, None) == getattr(expected, name, None)


# going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligner", TRAINED.values(), ids=TRAINED)
def test_a_fit_that_was_killed_ends_as_if_it_had_not_been(aligner, data, tmp_path, death):
    expected = fitted(clone(aligner), data)
    teacher_steps = death.n_steps - MAX_ITER  # of a teacher that is trained, too, and from the start each time
    for n_steps in (
        0,
        2,
        1,
        3,
    ):  # the steps of a run; so the last starts at 3, where the one before wrote its checkpoint
        death.after(teacher_steps + n_steps, kept_in(tmp_path, aligner), data)
    death.n_steps = 0
    assert_same_fit(fitted(kept_in(tmp_path, aligner), data), expected, data)
    assert death.n_steps == teacher_steps + MAX_ITER - INTERVAL


@pytest.mark.parametrize("aligner", TRAINED.values(), ids=TRAINED)
def test_what_has_ended_is_not_trained_again(aligner, data, tmp_path, death):
    expected = fitted(clone(aligner), data)
    teacher_steps = death.n_steps - MAX_ITER
    assert_same_fit(fitted(kept_in(tmp_path, aligner), data), expected, data)
    death.n_steps = 0
    assert_same_fit(fitted(kept_in(tmp_path, aligner), data), expected, data)
    assert death.n_steps == teacher_steps


@pytest.mark.parametrize("mode", ["ot", "exemplar"])
def test_a_flow_goes_on_in_either_direction(data, tmp_path, death, mode):
    labels = {"labels_x": np.arange(len(data.X)) % 3, "labels_y": np.arange(len(data.Y)) % 3}
    settings = {"inverse": True, "random_state": np.random.RandomState(0), "coupling": "sinkhorn"}
    aligner = clone(TRAINED["BridgeFlow"]).set_params(mode=mode, **settings)
    expected = clone(aligner).fit(data.X, data.Y, data.paired_idx, **labels)
    for n_steps in (5, MAX_ITER - INTERVAL + 2, 3):  # in the first flow, in the second, in the second
        death.left = n_steps
        with pytest.raises(Killed):
            kept_in(tmp_path, aligner).fit(data.X, data.Y, data.paired_idx, **labels)
    death.n_steps = 0
    actual = kept_in(tmp_path, aligner).fit(data.X, data.Y, data.paired_idx, **labels)
    assert_same_fit(actual, expected, data)
    assert_array_equal(actual.inverse_transform(data.Y_test), expected.inverse_transform(data.Y_test))
    assert actual.random_state.randint(1000) == expected.random_state.randint(1000)
    assert death.n_steps == MAX_ITER - INTERVAL
    other = labels | {"labels_x": np.where(np.arange(len(data.X)) < 60, labels["labels_x"], -1)}
    kept_in(tmp_path, aligner).fit(data.X, data.Y, data.paired_idx, **other)
    assert death.n_steps == MAX_ITER - INTERVAL + 2 * MAX_ITER


def test_rows_on_disk_are_drawn_on_from_where_they_were(data, tmp_path, death):
    pools = {"X_unpaired": tmp_path / "x.npy", "Y_unpaired": tmp_path / "y.npy"}
    for path, rows in zip(pools.values(), (data.X[40:], data.Y[40:]), strict=True):
        np.save(path, rows)

    def fitted_from_disk(aligner):
        return aligner.fit(data.X[:40], data.Y[:40], **pools)

    expected = fitted_from_disk(clone(TRAINED["SOTAlign"]))
    death.left, death.n_steps = 4, 0
    with pytest.raises(Killed):
        fitted_from_disk(kept_in(tmp_path))
    assert_same_fit(fitted_from_disk(kept_in(tmp_path)), expected, data)
    assert death.n_steps == 4 + MAX_ITER - INTERVAL


def test_an_early_stop_is_an_end(data, tmp_path, death):
    aligner = SOTAlignTransformer(
        max_iter=60, learning_rate=1e-12, early_stopping=True, n_iter_no_change=10, random_state=0
    )
    expected = fitted(clone(aligner), data)
    death.n_steps = 0
    death.after(5, kept_in(tmp_path, aligner), data)
    for _ in range(2):
        assert_same_fit(fitted(kept_in(tmp_path, aligner), data), expected, data)
    assert expected.n_iter_ == 10
    assert death.n_steps == 5 + 10 - INTERVAL


def test_random_state_instances_are_used_up_alike(data, tmp_path, death):
    expected_state, state = np.random.RandomState(7), np.random.RandomState(7)
    expected = fitted(clone(TRAINED["SOTAlign"]).set_params(random_state=expected_state), data)
    death.after(5, kept_in(tmp_path).set_params(random_state=np.random.RandomState(7)), data)
    assert_same_fit(fitted(kept_in(tmp_path).set_params(random_state=state), data), expected, data)
    assert state.randint(1000) == expected_state.randint(1000)


def test_without_random_state_the_first_draw_stays(data, tmp_path, death):
    settings = {"random_state": None, "hubness_correction": False}  # which draws its anchors after the training
    aligner = TRAINED["SOTAlign, held-out pairs"]  # whose teacher draws weights, too
    death.after(100 + 5, kept_in(tmp_path / "killed", aligner).set_params(**settings), data)
    ends = []
    for copy in "ab":
        shutil.copytree(tmp_path / "killed", tmp_path / copy)
        ends.append(fitted(kept_in(tmp_path / copy, aligner).set_params(**settings), data))
    assert_same_fit(*ends, data)
    assert death.n_steps == 100 + 5 + 2 * (100 + MAX_ITER - INTERVAL)
    other = fitted(kept_in(tmp_path / "other", aligner).set_params(**settings), data)
    assert other.loss_curve_ != ends[0].loss_curve_


def test_ctrl_c_keeps_the_best_state_and_the_checkpoint(data, tmp_path, death):
    expected = fitted(clone(TRAINED["SOTAlign"]), data)
    death.left, death.error = 5, KeyboardInterrupt
    with pytest.warns(ConvergenceWarning, match="interrupted after 5 of 8 steps"):
        stopped = fitted(kept_in(tmp_path), data)
    assert stopped.loss_curve_["loss"] == expected.loss_curve_["loss"][:5]
    assert_same_fit(fitted(kept_in(tmp_path), data), expected, data)


def test_another_teacher_after_ctrl_c_is_told_of(data, tmp_path, death):
    aligner = SOTAlignTransformer(ContrastiveTeacher(max_iter=20), **_SETTINGS)
    death.left, death.error = 10, KeyboardInterrupt
    with pytest.warns(ConvergenceWarning, match="interrupted after 10 of 20 steps"):
        fitted(kept_in(tmp_path, aligner), data)
    with pytest.raises(ValueError, match="training of the teacher was interrupted, delete the file.*elsewhere"):
        fitted(kept_in(tmp_path, aligner), data)


def test_a_flow_after_one_that_was_stopped_by_ctrl_c_is_not_gone_on_with(data, tmp_path, death):
    aligner = clone(TRAINED["BridgeFlow"]).set_params(inverse=True)
    expected = fitted(clone(aligner), data)
    death.left, death.error = 5, KeyboardInterrupt
    with pytest.warns(ConvergenceWarning, match="interrupted after 5 of 8 steps"):
        fitted(kept_in(tmp_path, aligner), data)
    assert_same_fit(fitted(kept_in(tmp_path, aligner), data), expected, data)


@pytest.mark.skipif(not has_callbacks, reason="callbacks came with scikit-learn 1.9")
def test_a_callback_that_stops_does_so_again_and_without_it_training_goes_on(data, tmp_path):
    class Stop:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            return context.parent is not None and estimator.n_iter_ == 2 * INTERVAL

        def teardown(self, estimator, context):
            pass

    for _ in range(2):
        assert fitted(kept_in(tmp_path).set_callbacks(Stop()), data).n_iter_ == 2 * INTERVAL
    assert_same_fit(fitted(kept_in(tmp_path), data), fitted(clone(TRAINED["SOTAlign"]), data), data)


def test_the_progress_bar_counts_the_steps_before(data, tmp_path, death, capsys):
    pytest.importorskip("tqdm", reason="the bar is drawn by tqdm")
    death.after(5, kept_in(tmp_path), data)
    fitted(kept_in(tmp_path).set_params(verbose=1), data)
    assert "8/8" in capsys.readouterr().err


_SCRIPT = """
import os, random, signal, sys
from pathlib import Path
import numpy as np
import torch  # imported only: what has not computed yet can be forked
from skalign import ProcrustesTeacher, SOTAlignTransformer
from skalign.datasets import make_two_views

data = make_two_views(40, 55, 65, 30, n_features_x=7, n_features_y=11, n_latent=4, noise=0.3, random_state=0)
here = Path(sys.argv[1])
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports more of torch, once for all


def train(checkpoint_dir, result):
    torch.set_num_threads(1)
    aligner = SOTAlignTransformer(
        ProcrustesTeacher(), max_iter=25, batch_size=15, batch_size_unpaired=20, early_stopping=True, random_state=0,
        checkpoint_dir=checkpoint_dir, checkpoint_interval=1,
    )
    aligner.fit(data.X, data.Y, data.paired_idx)
    np.savez(result, *aligner.x_head_.values(), *aligner.y_head_.values(), *aligner.loss_curve_.values())


def written(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("*.checkpoint")}


def run(folder, result, n_writes=None):
    '''Whether it came to its end: after that many checkpoints it is killed, wherever it is then.'''
    child, status, last = os.fork(), None, written(folder) if folder else None
    if not child:
        try:
            train(folder, result)
        finally:
            os._exit(int(sys.exc_info()[0] is not None))
    while n_writes is not None and status is None:
        n_writes, last = n_writes - (written(folder) != last), written(folder)
        if n_writes < 0:
            os.kill(child, signal.SIGKILL)
            break
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
    status = os.waitpid(child, 0)[1] if status is None else status
    assert os.WIFSIGNALED(status) or status == 0, "the training failed"
    return not os.WIFSIGNALED(status)


def arrays(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


run(None, here / "expected.npz")
expected, n_kills, n_resumed, n_rounds = arrays(here / "expected.npz"), 0, 0, 0
random.seed(0)
while n_kills < 20:
    n_rounds += 1
    folder, result = here / f"checkpoints_{n_rounds}", here / f"{n_rounds}.npz"
    while True:
        n_resumed += any(folder.glob("*.checkpoint"))
        if run(folder, result, random.randrange(5) if n_kills < 20 else None):
            break
        n_kills += 1
    assert len(list(folder.glob("*.checkpoint"))) == 1
    for array, other in zip(arrays(result), expected, strict=True):
        np.testing.assert_array_equal(array, other)
print(n_kills, n_resumed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="twenty processes that all import torch take long")
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    root = Path(skalign.__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert run.returncode == 0, run.stderr
    n_kills, n_resumed = map(int, run.stdout.split())
    assert n_kills == 20
    assert n_resumed >= 5


# another fit ---------------------------------------------------------------------------------------------------------


def test_a_fit_that_differs_starts_from_the_start(data, tmp_path, death):
    frozen = [FrozenEstimator(fitted(ProcrustesTeacher(n_components=k), data)) for k in (3, 4)]
    settings = (
        {"alpha": 3.0},
        {"random_state": 1},
        {"random_state": np.random.RandomState(0)},
        {"teacher": CCATeacher(reg=0.1)},
        {"teacher": CCATeacher(reg=0.2)},
        {"teacher": frozen[0]},
        {"teacher": frozen[1]},
        {"head": with_dropout},
    )
    for n_files, changed in enumerate(({}, *settings), 1):
        death.n_steps = 0
        fitted(kept_in(tmp_path).set_params(**changed), data)
        assert death.n_steps == MAX_ITER
        assert len(list(tmp_path.iterdir())) == n_files


@pytest.mark.parametrize("what", ["a row", "a pair", "a pool", "an order"])
def test_other_data_start_from_the_start(data, tmp_path, death, what):
    fitted(kept_in(tmp_path), data)
    X, Y, pairs, pools = data.X.copy(), data.Y, data.paired_idx, {}
    if what == "a row":
        X[-1, -1] += 1e-6
    elif what == "a pair":
        pairs = pairs[1:]
    elif what == "a pool":
        pools = {"Y_unpaired": data.Y_test}
    else:
        pairs = pairs[::-1]
    death.n_steps = 0
    kept_in(tmp_path).fit(X, Y, pairs, **pools)
    assert death.n_steps == MAX_ITER


def test_what_makes_no_difference_goes_on(data, tmp_path, death):
    fitted(kept_in(tmp_path), data)
    death.n_steps = 0
    fitted(kept_in(str(tmp_path)).set_params(checkpoint_interval=5, device="cpu"), data)
    assert death.n_steps == 0


def test_rows_beyond_the_sample_are_taken_evenly(data, tmp_path, monkeypatch):
    monkeypatch.setattr(skalign._checkpoints, "_SAMPLE", (20, 10))
    shape, _, rows = skalign._checkpoints.sample(data.X)
    assert shape == data.X.shape == (95, 7)
    assert_array_equal(rows, data.X[::5])
    assert_array_equal(skalign._checkpoints.sample(data.X[:20])[2], data.X[:20])
    np.save(tmp_path / "rows.npy", data.X)
    assert_array_equal(skalign._checkpoints.sample(stored_rows(tmp_path / "rows.npy", "X_unpaired"))[2], data.X[::10])


def test_the_fits_of_a_search_share_a_folder(data, tmp_path, death):
    X, Y, mask = data.X[:60], data.Y[:60], np.arange(60) < 40
    grid = {"learning_rate": np.logspace(-4, -3, 2)}

    def searched(aligner):
        return GridSearchCV(aligner, grid, cv=PairedKFold(2, paired=mask)).fit(X, Y, paired_idx=mask)

    expected = searched(clone(TRAINED["SOTAlign"]))
    for n_fits in (5, 0):  # candidates in folds, and the refit; then they are all there
        death.n_steps = 0
        search = searched(kept_in(tmp_path))
        assert death.n_steps == n_fits * MAX_ITER
        assert_array_equal(search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"])
        assert_same_fit(search.best_estimator_, expected.best_estimator_, data)
    assert len(list(tmp_path.iterdir())) == 5


# files that are not as they should be --------------------------------------------------------------------------------


def checkpoint(folder):
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        *(lambda content, i=i: content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in (0, 40, 3000, -30)),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(data, tmp_path, death, damage):
    death.after(5, kept_in(tmp_path), data)
    file = checkpoint(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"{file.name} is no whole checkpoint of this fit: .*Delete it"):
        fitted(kept_in(tmp_path), data)
    file.unlink()
    assert_same_fit(fitted(kept_in(tmp_path), data), fitted(clone(TRAINED["SOTAlign"]), data), data)


def test_the_checkpoint_of_another_fit_is_refused(data, tmp_path):
    fitted(kept_in(tmp_path), data)
    first = checkpoint(tmp_path)
    content = first.read_bytes()
    first.unlink()
    other = kept_in(tmp_path).set_params(alpha=3)
    fitted(other, data)
    checkpoint(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match="expected the fingerprint [0-9a-f]{32}, but it holds [0-9a-f]{32}"):
        fitted(other, data)


class Malice:
    def __reduce__(self):
        return print, ("code of the file runs",)


def test_reading_runs_no_code(data, tmp_path, capsys):
    fitted(kept_in(tmp_path), data)
    buffer = io.BytesIO()
    torch.save({"state": Malice()}, buffer)
    checkpoint(tmp_path).write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    with pytest.raises(ValueError, match="is no whole checkpoint of this fit"):
        fitted(kept_in(tmp_path), data)
    assert capsys.readouterr().out == ""


def head_of_width(d_in, d_out):
    return torch.nn.Sequential(torch.nn.Linear(d_in, WIDTH), torch.nn.Linear(WIDTH, d_out))


WIDTH = 5


def test_code_that_changed_is_told_of(data, tmp_path, death, monkeypatch):
    aligner = kept_in(tmp_path).set_params(head=head_of_width)
    death.after(5, aligner, data)
    monkeypatch.setitem(globals(), "WIDTH", 6)
    with pytest.raises(
        ValueError, match="(?s)does not fit what is to be trained.* delete the file .*size mismatch for 0.weight"
    ):
        fitted(aligner, data)


# folders and disks ---------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(data, tmp_path, death):
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(OSError, match="`checkpoint_dir` must be a folder to write to, but .*file"):
            fitted(kept_in(folder), data)
    assert death.n_steps == 0


class FullDisk:
    """Lets `n_writes` checkpoints through, then has no room for the next."""

    def __init__(self, monkeypatch, n_writes):
        self.fsync, self.left = os.fsync, n_writes
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, file):
        self.left -= 1
        if self.left == -1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.fsync(file)


def test_a_disk_that_is_full_from_the_start_is_an_error(data, tmp_path, death, monkeypatch):
    FullDisk(monkeypatch, 0)
    with pytest.raises(OSError, match="No space left on device"):
        fitted(kept_in(tmp_path), data)
    assert death.n_steps == 1
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_later_is_told_and_loses_nothing(data, tmp_path, death, monkeypatch):
    expected = fitted(clone(TRAINED["SOTAlign"]), data)
    FullDisk(monkeypatch, 2)
    with pytest.warns(UserWarning, match="checkpoint of step 6 could not be written .*No space left"):
        death.after(7, kept_in(tmp_path), data)
    death.n_steps = 0
    FullDisk(monkeypatch, 0)
    with pytest.warns(UserWarning, match="checkpoint of step 6 could not be written .*No space left"):
        assert_same_fit(fitted(kept_in(tmp_path), data), expected, data)
    assert death.n_steps == MAX_ITER - INTERVAL  # it had gone on from step 3


def test_what_a_killed_process_left_is_cleared_away(data, tmp_path):
    fitted(kept_in(tmp_path), data)
    file = checkpoint(tmp_path)
    left, of_a_twin, of_another = (
        tmp_path / f"{name}.tmp"
        for name in (f"{file.name}.01234567", f"{file.name}.89abcdef", "other.checkpoint.01234567")
    )
    for temporary, age in ((left, 4000), (of_a_twin, 10), (of_another, 4000)):
        temporary.touch()
        os.utime(temporary, (time.time() - age,) * 2)
    fitted(kept_in(tmp_path), data)
    assert set(tmp_path.iterdir()) == {file, of_a_twin, of_another}


# what cannot be kept -------------------------------------------------------------------------------------------------


class Secretive(torch.optim.SGD):
    """Keeps an object in its state."""

    def step(self, closure=None):
        super().step(closure)
        self.state[self.param_groups[0]["params"][0]]["past"] = {1, 2}


def test_an_optimizer_whose_state_is_no_plain_values_is_refused(data, tmp_path):
    aligner = SOTAlignTransformer(optimizer=Secretive, **_SETTINGS)
    with pytest.raises(ValueError, match=r"`optimizer.state.0.past` of the state of this training is \{1, 2\} \(set\)"):
        fitted(kept_in(tmp_path, aligner), data)
    assert fitted(aligner, data).n_iter_ == MAX_ITER


def test_a_head_without_a_name_is_refused(data, tmp_path):
    class Local(torch.nn.Linear):
        pass

    for head in (lambda d_in, d_out: torch.nn.Linear(d_in, d_out), Local):
        aligner = SOTAlignTransformer(head=head, **_SETTINGS)
        with pytest.raises(ValueError, match="one of them has no name that lasts .* top level of a module"):
            fitted(aligner.set_params(checkpoint_dir=tmp_path), data)
        assert fitted(aligner.set_params(checkpoint_dir=None), data).n_iter_ == MAX_ITER


def test_a_file_of_an_aligner_names_no_folder(data, tmp_path):
    aligner = fitted(kept_in(tmp_path / "checkpoints"), data)
    aligner.save(tmp_path / "aligner.safetensors")
    restored = load(tmp_path / "aligner.safetensors")
    assert restored.checkpoint_dir is restored.aligner_.checkpoint_dir is None
    assert_same_fit(restored, aligner, data)


# warm starts ---------------------------------------------------------------------------------------------------------


WARM = {
    "SOTAlign": SOTAlign("procrustes", teacher_weight=0.4, warm_start=True, **_SETTINGS),
    "SOTAlignTransformer": SOTAlignTransformer(ProcrustesTeacher(), head="mlp", warm_start=True, **_SETTINGS),
    "ContrastiveTeacher": ContrastiveTeacher(n_components=3, warm_start=True, **_SETTINGS),
}
warm = pytest.mark.parametrize("aligner", WARM.values(), ids=WARM)


@warm
def test_a_warm_start_is_where_the_fit_before_ended(aligner, data):
    aligner = fitted(clone(aligner), data)
    first = [weights.copy() for weights in weights_of(aligner)]
    fitted(aligner.set_params(learning_rate=1e-20), data)
    for before, after in zip(first, weights_of(aligner), strict=True):
        assert_array_equal(before, after)
    fitted(aligner.set_params(warm_start=False), data)
    assert not all(np.array_equal(before, after) for before, after in zip(first, weights_of(aligner), strict=True))


@warm
def test_a_warm_start_on_other_pairs_maps_as_before(aligner, data):
    aligner = clone(aligner).fit(data.X, data.Y, data.paired_idx[:15])
    before = aligner.transform(data.X_test)
    fitted(aligner.set_params(learning_rate=1e-12), data)
    if "hubness_correction" in aligner.get_params():
        before, after = before[:, :-4], aligner.transform(data.X_test)[:, :-4]
        before, after = (Z / np.linalg.norm(Z, axis=1, keepdims=True) for Z in (before, after))
    else:
        after = aligner.transform(data.X_test)
    assert_allclose(after, before, atol=1e-5)


@warm
def test_the_first_fit_and_clones_start_as_ever(aligner, data):
    expected = fitted(clone(aligner).set_params(warm_start=False), data)
    first = fitted(clone(aligner), data)
    assert_same_fit(first, expected, data)
    assert_same_fit(fitted(clone(first), data), expected, data)
    assert fitted(first, data).loss_curve_ != expected.loss_curve_


@warm
def test_heads_of_other_sizes_are_refused_and_the_fitted_ones_stay(aligner, data):
    aligner = fitted(clone(aligner), data)
    before = aligner.transform(data.X_test)
    for X, settings in ((data.X[:, :-1], {}), (data.X, {"n_components": 2})):
        aligner.set_params(**settings)
        with pytest.raises(
            ValueError, match="warm_start=True goes on from the fitted heads, but the weights of that of X"
        ):
            aligner.fit(X, data.Y, data.paired_idx)
        assert_array_equal(aligner.transform(data.X_test), before)


@warm
def test_a_warm_start_has_a_checkpoint_of_its_own(aligner, data, tmp_path, death):
    expected = fitted(fitted(clone(aligner), data), data)
    once = fitted(kept_in(tmp_path, aligner), data)
    again = pickle.loads(pickle.dumps(once))
    death.after(5, once, data)
    death.n_steps = 0
    assert_same_fit(fitted(again, data), expected, data)
    assert death.n_steps == MAX_ITER - INTERVAL
