"""Laws of SOTAlignTransformer, SOTAlign and ContrastiveTeacher beyond those every aligner keeps."""

import re
import warnings

import numpy as np
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skalign._trained
from skalign import CCATeacher, ContrastiveTeacher, HubnessCorrection, ProcrustesTeacher, SOTAlign, SOTAlignTransformer
from skalign._core.rows import normalize_rows
from skalign.datasets import load_emoji, make_two_views
from skalign.metrics import mean_recall


@pytest.fixture(scope="module")
def data():
    """60 pairs, then free rows; 9 and 13 columns; a nonlinear, noisy truth, so that nobody is perfect."""
    return make_two_views(60, 150, 170, 200, n_features_x=9, n_features_y=13, n_latent=6, noise=0.3, random_state=0)


def fitted(data, estimator=SOTAlignTransformer, **settings):
    return estimator(**{"max_iter": 10, "random_state": 0, **settings}).fit(data.X, data.Y, data.paired_idx)


def test_alpha_zero_is_exactly_sail(data):
    settings = {"learning_rate": 1e-3, "n_components": 5, "early_stopping": True}
    sail = fitted(data, ContrastiveTeacher, **settings)
    sotalign = fitted(data, alpha=0, **settings)
    assert sotalign.teacher_ is None
    for name, weights in sail.x_head_.items():
        assert_array_equal(sotalign.x_head_[name], weights)
    assert_array_equal(sotalign.transform_y(data.Y_test), sail.transform_y(data.Y_test))
    assert sotalign.loss_curve_["siglip"] == sail.loss_curve_["siglip"]


def test_unpaired_rows_help_on_emoji():
    data = load_emoji()
    teacher = CCATeacher().fit(data.X, data.Y, data.paired_idx)
    settings = {"teacher_weight": 0, "hubness_correction": False}  # the training alone
    aligner = SOTAlign(random_state=0, max_iter=100, **settings).fit(data.X, data.Y, data.paired_idx)
    before, after = (mean_recall(*e.transform(data.X_test, data.Y_test), data.test_idx) for e in (teacher, aligner))
    assert after > before + 0.05


@pytest.mark.parametrize("divergence", ["klot", "info_nce", "cka"])
def test_training_lowers_the_divergence_to_the_teacher(data, divergence):
    settings = {"init": "random", "alpha": 100, "learning_rate": 5e-3, "max_iter": 40}
    curve = fitted(data, divergence=divergence, **settings).loss_curve_["divergence"]
    assert curve[-1] < 0.9 * curve[0]


def test_the_teacher_weight_mixes_start_and_end(data):
    start, end, mixed = (fitted(data, max_iter=5, teacher_weight=weight) for weight in (1, 0, 0.4))
    for name in ("x_head_", "y_head_"):
        for first, last, actual in zip(*(getattr(e, name).values() for e in (start, end, mixed)), strict=True):
            assert_allclose(actual, 0.6 * last + 0.4 * first, **LAW[np.float32])
    assert_allclose(start.transform(data.X_test), start.teacher_.transform(data.X_test), **LAW[np.float32])


def test_the_teacher_weight_leaves_heads_alone_that_started_elsewhere(data):
    expected = fitted(data, init="random").transform(data.X_test)
    assert_array_equal(fitted(data, init="random", teacher_weight=0.4).transform(data.X_test), expected)


def test_without_unpaired_rows_sotalign_is_its_teacher(data):
    p = len(data.paired_idx)
    settings = {"max_iter": 3, "random_state": 0, "hubness_correction": False, "n_landmarks": 0}
    aligner = SOTAlign(**settings).fit(data.X[:p], data.Y[:p])
    assert_allclose(aligner.transform(data.X_test), aligner.teacher_.transform(data.X_test), **LAW[np.float32])
    one_more = SOTAlign(**settings).fit(data.X[:p], data.Y[:p], Y_unpaired=data.Y[p : p + 1])
    assert np.abs(one_more.transform(data.X_test) - one_more.teacher_.transform(data.X_test)).max() > 1e-3


def test_heads_that_torch_cannot_copy_are_trained(data):
    class Head(torch.nn.Linear):
        def __init__(self, d_in, d_out):
            super().__init__(d_in, d_out)
            self.start = self.weight.norm()  # no leaf of the graph, which deepcopy refuses

    assert fitted(data, ContrastiveTeacher, head=Head, max_iter=2).n_iter_ == 2


def test_sotalign_corrects_hubs_as_the_wrapper_does(data):
    plain = fitted(data, SOTAlign, hubness_correction=False)
    wrapped = HubnessCorrection(plain, random_state=0).fit(data.X, data.Y, data.paired_idx)
    aligner = fitted(data, SOTAlign)
    for actual, desired in zip(*(e.transform(data.X_test, data.Y_test) for e in (aligner, wrapped)), strict=True):
        assert_allclose(actual, desired, **LAW[np.float32])
    assert aligner.n_components_ == plain.n_components_ + 4
    assert plain.local_scaling_ is None


def test_heads_start_at_the_teacher(data):
    aligner = fitted(data, teacher=CCATeacher(center="all"), learning_rate=1e-12, max_iter=1)
    F, G = aligner.teacher_.transform(data.X_test, data.Y_test)
    k = aligner.teacher_.n_components_
    x_head = (aligner._prepared_x(data.X_test) @ aligner.x_coef_ + aligner.x_intercept_)[:, :k]
    y_head = (aligner._prepared_y(data.Y_test) @ aligner.y_coef_ + aligner.y_intercept_)[:, :k]
    assert_allclose(x_head / np.linalg.norm(x_head, axis=1, keepdims=True), F, atol=1e-5)
    assert_allclose(y_head / np.linalg.norm(y_head, axis=1, keepdims=True), G, atol=1e-5)


@pytest.mark.parametrize("settings", [{"head": "mlp"}, {"teacher": CCATeacher(normalize=False)}])
def test_heads_that_cannot_start_at_the_teacher_say_so(data, settings):
    assert fitted(data, **settings).n_iter_ == 10  # "auto" starts at random weights
    with pytest.raises(ValueError, match="init='teacher' needs linear heads and a linear teacher"):
        fitted(data, init="teacher", **settings)


def test_a_frozen_teacher_is_used_as_it_is(data):
    teacher = ProcrustesTeacher(n_components=4).fit(data.X, data.Y, data.paired_idx)
    coef = teacher.x_coef_.copy()
    aligner = SOTAlignTransformer(FrozenEstimator(teacher), max_iter=3, random_state=0)
    aligner.fit(data.X[:80], data.Y[:80], data.paired_idx[:20])
    assert_array_equal(aligner.teacher_.x_coef_, coef)
    assert aligner.teacher_.n_pairs_ == 60


@pytest.mark.parametrize("name", ["cca", "procrustes", "contrastive", "auto"])
def test_teachers_by_name(data, name):
    classes = {
        "cca": CCATeacher,
        "procrustes": ProcrustesTeacher,
        "contrastive": ContrastiveTeacher,
        "auto": CCATeacher,
    }
    assert isinstance(fitted(data, SOTAlign, teacher=name, max_iter=2).teacher_, classes[name])


@pytest.mark.parametrize(
    "head", ["linear", "layernorm", "mlp", lambda d_in, d_out: torch.nn.Linear(d_in, d_out, bias=False)]
)
def test_every_head_embeds_and_comes_back_from_its_arrays(data, head):
    aligner = fitted(data, head=head, n_components=5)
    assert aligner.transform(data.X_test).shape == (200, 5)
    assert all(isinstance(array, np.ndarray) for array in aligner.x_head_.values())
    assert hasattr(aligner, "x_coef_") == (head == "linear")


@pytest.mark.parametrize("optimizer", ["adamw", "lion", torch.optim.SGD])
def test_optimisers_by_name_and_by_class(data, optimizer):
    curve = fitted(data, optimizer=optimizer, max_iter=30, init="random").loss_curve_["loss"]
    assert curve[-1] < curve[0]


def test_one_seed_gives_one_fit_and_another_seed_another(data):
    one, same, other = (fitted(data, init="random", batch_size_unpaired=32, random_state=seed) for seed in (3, 3, 4))
    assert_array_equal(one.transform(data.X_test), same.transform(data.X_test))
    assert np.abs(one.transform(data.X_test) - other.transform(data.X_test)).max() > 1e-3


def test_batch_sizes_may_differ_between_the_views(data):
    sizes = []

    class Spy(torch.nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    fitted(data, head=Spy, batch_size_unpaired=(7, 11), max_iter=1)
    assert {7, 11, 60} <= set(sizes)


def test_a_view_without_unpaired_rows_lends_its_pairs(data):
    X, Y = data.X[:60], data.Y[:60]
    aligner = SOTAlignTransformer(max_iter=5, random_state=0).fit(X, Y, Y_unpaired=data.Y[60:])
    assert aligner.loss_curve_["divergence"][0] > 0
    assert SOTAlignTransformer(max_iter=5).fit(X, Y).n_pairs_ == 60


def test_early_stopping_keeps_the_best_state_and_hides_the_held_out_pairs(data):
    aligner = fitted(data, early_stopping=True, validation_fraction=0.25, max_iter=60)
    curve = aligner.loss_curve_["validation"]
    assert len(curve) == 7  # before the first step and every ten steps
    assert aligner.best_iter_ == 10 * int(np.argmax(curve))
    assert aligner.teacher_.n_pairs_ == 45
    assert aligner.n_pairs_ == 60


def test_early_stopping_needs_two_pairs(data):
    with pytest.raises(ValueError, match="`early_stopping` holds pairs out and needs two"):
        SOTAlignTransformer(early_stopping=True).fit(data.X, data.Y, [[0, 0], [0, 1]])


def test_ctrl_c_keeps_the_steps_done_and_leaves_a_fitted_estimator(data, monkeypatch):
    train = skalign._trained.train_heads

    def interrupted(*args, report, **kwargs):
        def report_then_interrupt(record):
            report(record)
            if record.n_iter == 4:
                raise KeyboardInterrupt

        return train(*args, report=report_then_interrupt, **kwargs)

    monkeypatch.setattr(skalign._trained, "train_heads", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted after 4 of 10 steps; the best state so far"):
        aligner = fitted(data, SOTAlign)
    assert aligner.n_iter_ == 4
    assert np.isfinite(aligner.transform(data.X_test)).all()


def test_a_step_to_infinity_keeps_the_last_finite_state(data):
    with pytest.warns(ConvergenceWarning, match="Lower `learning_rate`"):
        aligner = fitted(data, learning_rate=1e38, warmup=0.0, optimizer=torch.optim.SGD)
    assert np.isfinite(aligner.transform(data.X_test)).all()


def test_plans_that_miss_their_tolerance_are_reported_with_the_knob(data):
    message = (
        r"10 of 10 plans of the teacher \(epsilon_teacher=0.002\).*Raise `sinkhorn_max_iter`, `sinkhorn_tol_teacher`"
    )
    with pytest.warns(ConvergenceWarning, match=message):
        aligner = fitted(data, epsilon_teacher=0.002, sinkhorn_max_iter=3, sinkhorn_tol=0.5)
    assert aligner.sinkhorn_error_["teacher"] > 1e-3


def test_verbose_shows_loss_recall_and_time_left(data, capsys):
    fitted(data, verbose=1, early_stopping=True, max_iter=20)
    shown = capsys.readouterr().err
    assert re.search(r"SOTAlignTransformer: 100%.*20/20 \[\d\d:\d\d<.*loss=[\d.]+, validation recall=[\d.]+", shown)


def test_silent_when_not_verbose(data, capsys):
    fitted(data, SOTAlign)
    out, err = capsys.readouterr()
    assert out == err == ""


def test_parameters_of_a_teacher_need_an_estimator():
    with pytest.raises(ValueError, match=r"`teacher__reg` .* the name 'auto', which has none.*teacher=CCATeacher"):
        SOTAlign().set_params(teacher__reg=0.1)
    assert SOTAlign().set_params(teacher=CCATeacher(), teacher__reg=0.1).teacher.reg == 0.1


def test_a_frozen_aligner_without_a_seed_is_nested_as_it_is(data):
    frozen = FrozenEstimator(fitted(data, ContrastiveTeacher, random_state=None))
    aligner = HubnessCorrection(frozen, random_state=0).fit(data.X, data.Y, data.paired_idx)
    assert_array_equal(aligner.estimator_.transform(data.X_test), frozen.transform(data.X_test))
    assert fitted(data, teacher=frozen).teacher_ is not None


def test_a_frozen_preprocessing_is_used_as_it_is(data):
    scaler = StandardScaler().fit(data.X[:20])
    aligner = fitted(data, SOTAlign, x_transformer=FrozenEstimator(scaler))
    prescaled = SOTAlign(x_transformer=None, max_iter=10, random_state=0).fit(
        scaler.transform(data.X), data.Y, data.paired_idx
    )
    assert_allclose(aligner.transform(data.X_test), prescaled.transform(scaler.transform(data.X_test)))


def test_transformers_see_all_rows_and_may_change_the_width(data):
    aligner = fitted(data, SOTAlign, x_transformer=PCA(5), y_transformer=StandardScaler(), n_components=4)
    assert aligner.x_transformer_.n_samples_ == len(data.X)
    assert aligner.x_features_.landmarks.shape[1] == 5
    assert aligner.transform(data.X_test, data.Y_test)[1].shape == (200, 4 + 4)  # four carry the hubness correction


@pytest.mark.parametrize(("p", "exponent"), [(30, 0.25), (149, 0.25), (150, 0.0)])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_unpaired_rows_shape_the_ridge_of_the_automatic_teacher_where_pairs_are_few(p, exponent, method):
    data = make_two_views(150, 30, 30, n_features_x=9, n_features_y=7, random_state=0)
    aligner = getattr(SOTAlign(max_iter=2), method)(data.X, data.Y, data.paired_idx[:p])
    assert aligner.teacher_.reg_exponent == exponent
    assert getattr(SOTAlign("cca", max_iter=2), method)(data.X, data.Y, data.paired_idx[:p]).teacher_.reg_exponent == 0
    assert getattr(SOTAlign(max_iter=2), method)(data.X[:p], data.Y[:p]).teacher_.reg_exponent == 0  # none is unpaired


def test_auto_preprocessing_standardises_mixed_units_and_leaves_embeddings_alone(data):
    mixed = data.X * np.logspace(0, 4, 9)
    aligner = SOTAlign(max_iter=2).fit(mixed, data.Y, data.paired_idx)
    assert isinstance(aligner.x_transformer_, StandardScaler)
    assert aligner.y_transformer_ is None
    with_constants = np.column_stack([mixed, np.ones((len(mixed), 3))])
    assert SOTAlign(max_iter=2).fit(with_constants, data.Y, data.paired_idx).x_transformer_ is not None


def test_landmarks_are_paired_rows_first_then_unpaired_ones_evenly_spaced(data):
    unit_x, unit_y = normalize_rows(data.X), normalize_rows(data.Y)
    few = fitted(data, SOTAlign, n_landmarks=20)
    paired = data.paired_idx[np.linspace(0, 59, 20).astype(int)]
    assert_array_equal(few.x_features_.landmarks, unit_x[np.sort(paired[:, 0])])
    pool = {"Y_unpaired": data.Y[100:]}
    more = SOTAlign(n_landmarks=80, max_iter=1).fit(data.X, data.Y[:100], data.paired_idx, **pool)
    free = 60 + np.linspace(0, len(data.Y) - 61, 20).astype(int)
    assert_array_equal(more.y_features_.landmarks, np.concatenate([unit_y[:60], unit_y[free]]))
    every = fitted(data, SOTAlign).y_features_.landmarks
    assert_array_equal(every, unit_y)  # there are fewer than 1,000


def test_kernel_features_are_what_both_stages_see(data):
    aligner = fitted(data, SOTAlign, hubness_correction=False)
    X, Y = aligner.x_features_(data.X), aligner.y_features_(data.Y)
    within = SOTAlignTransformer(max_iter=10, random_state=0, teacher=CCATeacher(reg_exponent=0.25), teacher_weight=0.4)
    expected = within.fit(X, Y, data.paired_idx).transform_y(aligner.y_features_(data.Y_test))
    assert_allclose(aligner.transform_y(data.Y_test), expected, atol=1e-6)


def test_without_landmarks_the_map_is_linear(data):
    aligner = fitted(data, SOTAlign, n_landmarks=0, hubness_correction=False)
    assert aligner.x_features_ is None
    within = SOTAlignTransformer(max_iter=10, random_state=0, teacher=CCATeacher(reg_exponent=0.25), teacher_weight=0.4)
    expected = within.fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    assert_allclose(aligner.transform(data.X_test), expected, atol=1e-6)


def test_kernel_features_find_what_no_linear_map_does(rng):
    angle = rng.uniform(-np.pi, np.pi, size=500)

    def turned(k):  # the views share the angle, one of them told by its double and fivefold alone
        return np.column_stack([np.cos(k * angle), np.sin(k * angle)])

    X, Y = np.hstack([turned(1), turned(3)]), np.hstack([turned(2), turned(5)])
    mask, recalls = np.arange(500) < 150, []
    for n_landmarks in (0, 300):
        aligner = SOTAlign(n_landmarks=n_landmarks, max_iter=20, random_state=0).fit(X[:400], Y[:400], mask[:400])
        recalls.append(mean_recall(*aligner.transform(X[400:], Y[400:])))
    assert recalls[1] > recalls[0] + 0.2


def test_a_frozen_teacher_sees_the_views_as_they_are(data):
    frozen = FrozenEstimator(CCATeacher().fit(data.X, data.Y, data.paired_idx))
    aligner = fitted(data, SOTAlign, teacher=frozen)
    assert aligner.x_features_ is aligner.y_features_ is None


def test_the_shared_space_of_kernel_features_has_512_columns_at_most(monkeypatch, data):
    assert fitted(data, SOTAlign, hubness_correction=False).n_components_ == 59
    monkeypatch.setattr("skalign._sotalign._MOST_COMPONENTS", 40)
    assert fitted(data, SOTAlign, hubness_correction=False).n_components_ == 40
    assert fitted(data, SOTAlign, hubness_correction=False, n_components=50).n_components_ == 50
    assert fitted(data, SOTAlign, hubness_correction=False, teacher=CCATeacher()).n_components_ == 59


def test_a_warm_start_keeps_its_landmarks(data):
    aligner = fitted(data, SOTAlign, warm_start=True, n_landmarks=70)
    former = aligner.x_features_
    aligner.fit(data.X[::-1], data.Y, data.paired_idx[:40])
    assert aligner.x_features_ is former


@pytest.mark.parametrize("pools", [False, True])
def test_rows_whose_features_would_not_fit_are_preprocessed_as_they_are_read(monkeypatch, data, pools):
    given = (data.X, data.Y, data.paired_idx), {}
    if pools:
        given = (data.X[:60], data.Y[:60]), {"X_unpaired": data.X[60:], "Y_unpaired": data.Y[60:]}
    settings = {"max_iter": 1, "random_state": 0, "batch_size_unpaired": 1000}  # all rows, in whatever order
    expected = SOTAlign(**settings).fit(*given[0], **given[1])
    monkeypatch.setattr("skalign._preprocessing._LARGE", 100)
    monkeypatch.setattr("skalign._preprocessing._BLOCK", 7)
    aligner = SOTAlign(**settings).fit(*given[0], **given[1])
    assert_allclose(aligner.transform(data.X_test), expected.transform(data.X_test), atol=1e-5)


def test_missing_rows_pass_preprocessing(data):
    X = np.concatenate([data.X, np.full((3, 9), np.nan)])
    aligner = fitted(data, SOTAlign, x_transformer=PCA(5))
    with_gaps = SOTAlign(x_transformer=PCA(5), max_iter=10, random_state=0).fit(X, data.Y, data.paired_idx)
    assert_allclose(with_gaps.transform(data.X_test), aligner.transform(data.X_test), atol=1e-6)


def test_scale_of_the_raw_embeddings_does_not_matter(data):
    aligner = fitted(data, SOTAlign)
    scaled = SOTAlign(max_iter=10, random_state=0).fit(1e6 * data.X, 1e-6 * data.Y, data.paired_idx)
    assert_allclose(scaled.transform(1e6 * data.X_test), aligner.transform(data.X_test), atol=1e-5)


class Troubled(ProcrustesTeacher):
    """A teacher that gives up."""

    def fit(self, X, Y, paired_idx=None, **pools):
        raise RuntimeError("gave up")


@pytest.mark.parametrize("cause", [{"teacher": Troubled()}, {"device": "gpu9"}])
def test_a_failed_refit_leaves_the_fitted_state_whole(data, cause):
    aligner = fitted(data, SOTAlign)
    expected = aligner.transform(data.X_test)
    with pytest.raises((RuntimeError, ValueError)):
        aligner.set_params(**cause).fit(3 * data.X + 5, data.Y, data.paired_idx)
    assert_array_equal(aligner.set_params(device="cpu").transform(data.X_test), expected)


def test_a_failed_first_fit_leaves_an_unfitted_estimator(data):
    aligner = SOTAlign(device="gpu9")
    with pytest.raises(ValueError, match="`device` must be"):
        aligner.fit(data.X, data.Y, data.paired_idx)
    with pytest.raises(NotFittedError):
        aligner.transform(data.X)


def test_ctrl_c_before_the_first_step_leaves_the_start(data, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setitem(skalign._trained.OPTIMIZERS, "adamw", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted after 0 of 10 steps"):
        aligner = fitted(data)
    assert aligner.transform(data.X_test).shape == (200, aligner.n_components_)


@pytest.mark.parametrize("estimator", [SOTAlignTransformer, SOTAlign])
@pytest.mark.parametrize("broken", [{"reg": -1.0}, {"power": -3.0}, {"center": "median"}])
def test_settings_of_a_nested_teacher_are_checked(data, estimator, broken):
    with pytest.raises(ValueError, match=f"The '{next(iter(broken))}' parameter of CCATeacher must be"):
        fitted(data, estimator, teacher=CCATeacher(**broken))


def test_a_model_trained_elsewhere_runs_on_the_device_asked_for(data):
    aligner = fitted(data, SOTAlign)
    expected = aligner.transform(data.X_test)
    aligner.aligner_.device = "cuda:7"  # as a file from another machine would say
    assert_array_equal(aligner.set_params(device="cpu").transform(data.X_test), expected)


def test_what_the_caller_set_in_torch_neither_matters_nor_changes(data):
    expected = fitted(data, SOTAlign).transform(data.X_test)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert_array_equal(fitted(data, SOTAlign).transform(data.X_test), expected)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")


def dropout_head(d_in, d_out):
    return torch.nn.Sequential(torch.nn.Linear(d_in, d_out), torch.nn.Dropout(0.5))


def test_one_seed_covers_the_random_numbers_of_a_users_head_and_of_the_teacher(data):
    settings = {"head": dropout_head, "teacher": ContrastiveTeacher(max_iter=5)}
    before = torch.get_rng_state()
    first, second = (fitted(data, **settings).transform(data.X_test) for _ in range(2))
    assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_preprocessing_may_put_out_data_frames(data):
    aligner = fitted(data, SOTAlign, x_transformer=StandardScaler().set_output(transform="pandas"))
    assert aligner.transform(data.X_test).shape == (200, aligner.n_components_)


def test_a_teacher_needs_no_pools(data):
    class Plain(ProcrustesTeacher):
        def fit(self, X, Y, paired_idx):
            return super().fit(X, Y, paired_idx)

    assert fitted(data, teacher=Plain()).teacher_.n_pairs_ == 60


# -- a mask in searches and pipelines ------------------------------------------------------------------------------


@pytest.fixture
def table(data):
    """One row-aligned table: 60 pairs scattered among 150 rows, the other rows unpaired."""
    order = np.random.default_rng(0).permutation(150)
    return data.X[:150][order], data.Y[:150][order], (np.arange(150) < 60)[order]


class MaskSpy(ProcrustesTeacher):
    """Keeps what `fit` was given, to see whether the mask followed its rows."""

    seen = None

    def fit(self, X, Y, paired_idx=None, **pools):
        type(self).seen.append((X.copy(), Y.copy(), paired_idx.copy()))
        return super().fit(X, Y, paired_idx, **pools)


def test_a_mask_follows_its_rows_through_grid_search_and_a_scaler_pipeline(table):
    X, Y, mask = table
    MaskSpy.seen = []
    fold = np.where(mask, np.arange(150) % 3, -1)  # unpaired rows stay in every training part
    pipeline = make_pipeline(StandardScaler(), MaskSpy())
    search = GridSearchCV(pipeline, {"maskspy__n_components": [2, 6]}, cv=PredefinedSplit(fold), error_score="raise")
    search.fit(X, Y, maskspy__paired_idx=mask)
    assert len(MaskSpy.seen) == 7  # 2 candidates, 3 folds, 1 refit
    for X_fold, Y_fold, mask_fold in MaskSpy.seen:
        rows = [int(np.flatnonzero((y == Y).all(axis=1))[0]) for y in Y_fold]
        assert_array_equal(mask_fold, mask[rows])
        assert_allclose(X_fold, StandardScaler().fit(X[rows]).transform(X[rows]))
    assert search.best_params_ == {"maskspy__n_components": 6}
    assert search.best_score_ > 0.3
    F = search.best_estimator_.transform(X)
    assert F.shape == (150, 6)


def test_grid_search_over_the_hyperparameters_of_sotalign(table):
    X, Y, mask = table
    fold = np.where(mask, np.arange(150) % 2, -1)
    grid = {"alpha": [1.0, 30.0], "teacher__n_components": [2, 6]}
    search = GridSearchCV(
        SOTAlignTransformer(CCATeacher(), max_iter=10, random_state=0),
        grid,
        cv=PredefinedSplit(fold),
        error_score="raise",
    ).fit(X, Y, paired_idx=mask)
    assert search.best_params_["teacher__n_components"] == 6
    assert len(search.cv_results_["params"]) == 4


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "The 'epsilon' parameter of SOTAlign must be a float in the range (0.0, inf)"),
        ({"epsilon_teacher": -1.0}, "The 'epsilon_teacher' parameter of SOTAlign must be"),
        ({"teacher": "ridge"}, "The 'teacher' parameter of SOTAlign must be a str among"),
        ({"device": "gpu9"}, "`device` must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps', but it is 'gpu9'"),
        ({"batch_size_unpaired": (3, 0)}, "`batch_size_unpaired` must be an integer of at least 1, or two of them"),
        (
            {"head": lambda d_in, d_out: torch.nn.Linear(d_in, d_out + 1)},
            "A head factory must return a module that maps",
        ),
    ],
)
def test_bad_settings_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fitted(data, SOTAlign, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_asked_for_and_absent_is_refused(data):
    with pytest.raises(ValueError, match="torch sees 0 CUDA devices here. Use device='auto' or 'cpu'"):
        fitted(data, SOTAlign, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_cuda_agree(data):
    cpu, cuda = (fitted(data, SOTAlign, device=device, precision="float32") for device in ("cpu", "cuda"))
    assert_allclose(cuda.transform(data.X_test), cpu.transform(data.X_test), atol=1e-3)


def test_extreme_but_finite_views_stay_finite(data):
    X = data.X.astype(np.float32)
    X[70] *= 1e30
    X[71] = 1e-38
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        aligner = SOTAlign(x_transformer=None, max_iter=5).fit(X, data.Y, data.paired_idx)
        assert np.isfinite(aligner.transform(X)).all()
