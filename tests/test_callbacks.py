"""scikit-learn's callbacks on trained aligners: they see every step, may stop it, and change nothing by looking."""

import pickle
import runpy
import sys

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.fixes import parse_version

import skalign._callbacks
from skalign import CCATeacher, ContrastiveTeacher, ProcrustesTeacher, SOTAlign, SOTAlignTransformer, load
from skalign.baselines import NNCLR, SAIL, SCLIP, STRUCTURE
from skalign.datasets import make_two_views
from skalign.metrics import make_retrieval_scorer
from skalign.model_selection import PairedKFold

_SHORT = {"max_iter": 5, "random_state": 0}
TRAINED = [
    SOTAlign(CCATeacher(reg=0.1), **_SHORT),
    SOTAlign(ProcrustesTeacher(), hubness_correction=False, early_stopping=True, **_SHORT),
    SOTAlignTransformer(CCATeacher(reg=0.1), head="mlp", **_SHORT),
    ContrastiveTeacher(**_SHORT),
    SAIL(negatives="all", **_SHORT),
    STRUCTURE(**_SHORT),
    NNCLR(**_SHORT),
    SCLIP(**_SHORT),
]
has_callbacks = parse_version(sklearn.__version__) >= parse_version("1.9")
needs_callbacks = pytest.mark.skipif(not has_callbacks, reason="callbacks came with scikit-learn 1.9")
trained = pytest.mark.parametrize("aligner", TRAINED, ids=lambda aligner: type(aligner).__name__)


@pytest.fixture(scope="module")
def data():
    return make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, n_latent=4, random_state=0)


def fitted(aligner, data):
    return aligner.fit(data.X, data.Y, data.paired_idx)


class Recorder:
    """Notes what it is told; `at_end(step)` may stop, raise or do nothing."""

    def __init__(self, at_end=lambda step: None):
        self.at_end = at_end
        self.told, self.losses, self.estimators = [], [], set()

    def note(self, what, estimator, context):
        self.told.append(what if context.parent is None else (what, context.task_id))
        self.estimators.add(id(estimator))

    def setup(self, estimator, context):
        self.note("setup", estimator, context)

    def on_fit_task_begin(self, estimator, context):
        self.note("begin", estimator, context)

    def on_fit_task_end(self, estimator, context):
        self.note("end", estimator, context)
        if context.parent is not None:
            self.losses.append(estimator.loss_curve_["loss"][-1])
            return self.at_end(context.task_id)

    def teardown(self, estimator, context):
        self.note("teardown", estimator, context)


class Copier(Recorder):
    """Keeps what an estimator that stopped after each step would be."""

    def __init__(self):
        super().__init__()
        self.copies = []

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.copies.append((fitted_estimator, fitted_estimator.transform(X[:30])))
        assert fitted_estimator.score(X, y, **metadata) >= 0


def stop_after(n_steps):
    return lambda step: step + 1 == n_steps


@needs_callbacks
@trained
def test_a_callback_sees_every_step_and_its_loss(aligner, data):
    aligner, recorder = clone(aligner), Recorder()
    fitted(aligner.set_callbacks(recorder), data)
    steps = [(what, step) for step in range(5) for what in ("begin", "end")]
    assert recorder.told == ["setup", "begin", *steps, "end", "teardown"]
    assert recorder.losses == aligner.loss_curve_["loss"]
    assert recorder.estimators == {id(aligner)}


@needs_callbacks
@trained
def test_looking_changes_nothing(aligner, data):
    alone, watched = fitted(clone(aligner), data), clone(aligner).set_callbacks(Recorder(), Copier())
    assert_array_equal(fitted(watched, data).transform(data.X_test), alone.transform(data.X_test))
    assert watched.loss_curve_ == alone.loss_curve_
    assert vars(watched).keys() - vars(alone).keys() == {"_skl_callbacks"}


@trained
def test_without_callbacks_nothing_is_done_for_them(aligner, data, monkeypatch):
    monkeypatch.setattr(skalign._callbacks.Steps, "__init__", None)  # whoever calls it fails
    assert fitted(clone(aligner), data).n_iter_ == 5


@needs_callbacks
@trained
def test_a_callback_stops_the_training(aligner, data):
    aligner = fitted(clone(aligner).set_callbacks(Recorder(stop_after(3))), data)
    assert aligner.n_iter_ == len(aligner.loss_curve_["loss"]) == 3
    assert np.isfinite(aligner.transform(data.X_test)).all()


@needs_callbacks
@trained
def test_a_fitted_copy_is_what_stopping_there_gives(aligner, data):
    copier = Copier()
    fitted(clone(aligner).set_callbacks(copier), data)
    for n_steps in (1, 3):
        stopped = fitted(clone(aligner).set_callbacks(Recorder(stop_after(n_steps))), data)
        copy, embedding = copier.copies[n_steps - 1]
        assert copy.loss_curve_ == stopped.loss_curve_
        assert_array_equal(embedding, stopped.transform(data.X[:30]))
        assert_array_equal(copy.transform_y(data.Y_test), stopped.transform_y(data.Y_test))


@needs_callbacks
def test_ctrl_c_in_a_callback_keeps_the_steps_done(data):
    def interrupt(step):
        if step == 2:
            raise KeyboardInterrupt

    recorder = Recorder(interrupt)
    with pytest.warns(ConvergenceWarning, match="interrupted after 3 of 5 steps"):
        aligner = fitted(SOTAlign(**_SHORT).set_callbacks(recorder), data)
    assert recorder.told[-1] == "teardown"
    assert np.isfinite(aligner.transform(data.X_test)).all()


@needs_callbacks
@pytest.mark.parametrize("estimator", [SOTAlign, SOTAlignTransformer, SAIL])
def test_a_failed_fit_tears_callbacks_down_and_leaves_the_estimator_as_it_was(estimator, data):
    recorder = Recorder(lambda step: 1 / 0)
    aligner = estimator(**_SHORT).set_callbacks(recorder)
    before = dict(vars(aligner))
    with pytest.raises(ZeroDivisionError):
        fitted(aligner, data)
    assert recorder.told[-1] == "teardown"
    assert vars(aligner) == before
    with pytest.raises(NotFittedError):
        aligner.transform(data.X)


@needs_callbacks
def test_a_nested_teacher_keeps_its_callbacks(data):
    recorder = Recorder()
    fitted(SOTAlign(ContrastiveTeacher(**_SHORT).set_callbacks(recorder), max_iter=2), data)
    assert recorder.told.count(("end", 4)) == 1


@needs_callbacks
def test_a_file_leaves_them_out(data, tmp_path):
    aligner = fitted(SOTAlign(CCATeacher(reg=0.1), **_SHORT).set_callbacks(Recorder()), data)
    aligner.save(tmp_path / "aligner.safetensors")
    restored = load(tmp_path / "aligner.safetensors")
    assert_array_equal(restored.transform(data.X_test), aligner.transform(data.X_test))
    assert not hasattr(restored, "_skl_callbacks")


@pytest.mark.slow
@needs_callbacks
def test_a_monitor_logs_the_score_of_every_step_of_every_candidate_and_process(data):
    from sklearn.callback import ScoringMonitor

    X, Y, mask = data.X[:60], data.Y[:60], np.arange(60) < 40
    monitor = ScoringMonitor(scoring={"recall": make_retrieval_scorer("mean_recall")})
    aligner = SOTAlign(**_SHORT).set_callbacks(monitor)
    search = GridSearchCV(aligner, {"alpha": [3, 30]}, cv=PairedKFold(2, paired=mask), n_jobs=2)
    search.fit(X, Y, paired_idx=mask)
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "step"]
    assert len(rows) == (2 * 2 + 1) * 5  # candidates, folds and the refit, steps
    assert all(0 <= row["recall"] <= 1 for row in rows)
    restored = pickle.loads(pickle.dumps(search.best_estimator_))
    assert_array_equal(restored.transform(data.X_test), search.best_estimator_.transform(data.X_test))


@needs_callbacks
def test_the_progress_bar_counts_the_steps_inside_a_search(data, capsys):
    pytest.importorskip("rich", reason="scikit-learn's ProgressBar draws with rich")
    from sklearn.callback import ProgressBar

    aligner = fitted(SOTAlign(**_SHORT).set_callbacks(ProgressBar()), data)
    assert "SOTAlign" in capsys.readouterr().out
    assert pickle.loads(pickle.dumps(aligner)).n_iter_ == 5
    search = GridSearchCV(SOTAlign(**_SHORT), {"alpha": [3, 30]}, cv=2, n_jobs=2)
    search.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(data.X[:40], data.Y[:40])
    shown = capsys.readouterr().out
    assert "SOTAlign" in shown
    assert "GridSearchCV" in shown


def test_older_versions_refuse_with_the_next_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    older = runpy.run_path(skalign._callbacks.__file__)["CallbackSupportMixin"]
    with pytest.raises(ImportError, match="Callbacks need scikit-learn 1.9 or newer.*or set verbose=1"):
        older().set_callbacks(Recorder())


@pytest.mark.skipif(has_callbacks, reason="the guard is for older versions")
def test_aligners_refuse_on_older_versions():
    with pytest.raises(ImportError, match="Callbacks need scikit-learn 1.9 or newer"):
        SOTAlign().set_callbacks(Recorder())
