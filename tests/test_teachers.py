"""Laws of the closed-form teachers, as their users meet them. What every aligner keeps stands in `test_common.py`."""

import gc
import pickle
import re
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.sparse
import torch
from helpers import LAW, LIBRARY
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from sklearn.base import clone
from sklearn.cross_decomposition import CCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import KFold, cross_val_score
from threadpoolctl import threadpool_limits

import skalign._teachers
from skalign import CCATeacher, ProcrustesTeacher
from skalign._core.linear import variance_root
from skalign._core.rows import normalize_rows
from skalign._pairs import group_pairs
from skalign.datasets import load_emoji, make_two_views
from skalign.metrics import recall_at_k

EXACT = LAW[np.float64]
TEACHERS = [ProcrustesTeacher(), CCATeacher(reg=0.1)]
every_teacher = pytest.mark.parametrize("teacher", TEACHERS, ids=["procrustes", "cca"], indirect=True)
FITTED = ("x_coef_", "y_coef_", "x_mean_", "y_mean_", "singular_values_")


def refused(*parts, error=ValueError):
    """An error that says all of these, in this order."""
    return pytest.raises(error, match=".*".join(re.escape(part) for part in parts))


def warned(*parts):
    return pytest.warns(UserWarning, match=".*".join(re.escape(part) for part in parts))


@pytest.fixture
def teacher(request):
    """A fresh copy, so that no test sees what another one fitted."""
    return clone(request.param)


@pytest.fixture(autouse=True)
def no_other_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def views(rng):
    """Two related views of 20 rows, 7 and 11 columns."""
    Z = rng.normal(size=(20, 4))
    X, Y = (Z @ rng.normal(size=(4, d)) + 0.3 * rng.normal(size=(20, d)) for d in (7, 11))
    return X, Y


def orthonormal(rng, d_x, d_y):
    U, _, Vt = np.linalg.svd(rng.normal(size=(d_x, d_y)), full_matrices=False)
    return U @ Vt


def assert_same_fit(actual, desired, **tolerance):
    for name in FITTED:
        assert_allclose(getattr(actual, name), getattr(desired, name), err_msg=name, **(tolerance or EXACT))
    assert actual.n_components_ == desired.n_components_


# planted truth and referees


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (9, 9)])
def test_teacher_finds_planted_rotation(rng, shape, normalize):
    Q = orthonormal(rng, *shape)
    data = make_two_views(rotation=Q, noise=0.0, random_state=0)
    teacher = ProcrustesTeacher(normalize=normalize).fit(data.X, data.Y, data.paired_idx)
    assert teacher.n_components_ == min(shape)
    assert_allclose(teacher.x_coef_ @ teacher.y_coef_.T, Q, **EXACT)
    F, G = teacher.transform(data.X_test, data.Y_test)
    assert_allclose(F, G, **EXACT)
    assert teacher.score(data.X_test, data.Y_test) == 1


def test_noise_blurs_the_planted_rotation_a_little(rng):
    Q = orthonormal(rng, 9, 9)
    errors = []
    for noise in (0.03, 0.003):
        data = make_two_views(1000, rotation=Q, noise=noise, random_state=0)
        teacher = ProcrustesTeacher().fit(data.X, data.Y, data.paired_idx)
        errors.append(np.linalg.norm(teacher.x_coef_ @ teacher.y_coef_.T - Q, ord=2))
    assert 0 < errors[1] < errors[0] / 5 < 0.02


def test_cca_equals_scikit_learn_without_ridge(rng):
    Z = rng.normal(size=(300, 3))
    X = Z @ rng.normal(size=(3, 5)) + 0.5 * rng.normal(size=(300, 5))
    Y = Z @ rng.normal(size=(3, 4)) + 0.5 * rng.normal(size=(300, 4))
    referee = CCA(n_components=3, scale=False, max_iter=10_000, tol=1e-14).fit(X, Y)
    teacher = CCATeacher(n_components=3, reg=0, power=0, normalize=False).fit(X, Y)
    ours = (X - teacher.x_mean_) @ teacher.x_coef_, (Y - teacher.y_mean_) @ teacher.y_coef_
    theirs = referee.transform(X, Y)
    for k in range(3):
        assert_allclose(np.corrcoef(theirs[0][:, k], theirs[1][:, k])[0, 1], teacher.singular_values_[k], rtol=1e-6)
        for our, their in zip(ours, theirs, strict=True):
            assert_allclose(abs(np.corrcoef(our[:, k], their[:, k])[0, 1]), 1, **LIBRARY[np.float64])
            assert_allclose(our[:, k].std(ddof=1), 1, **EXACT)  # ours are white


def test_singular_values_are_those_of_the_prepared_pairs(views):
    A, B = (view - view.mean(axis=0) for view in map(normalize_rows, views))
    expected = np.linalg.svd(A.T @ B, compute_uv=False)
    assert_allclose(ProcrustesTeacher().fit(*views).singular_values_, expected, **EXACT)
    plain = CCATeacher(reg=0.1, power=0).fit(*views)
    weighed = CCATeacher(reg=0.1, power=0.5).fit(*views)
    assert_allclose(weighed.x_coef_, plain.x_coef_ * np.sqrt(plain.singular_values_), **EXACT)
    S_xx = A.T @ A / 19 + 0.1 * np.eye(7)
    assert_allclose(plain.x_coef_.T @ S_xx @ plain.x_coef_, np.eye(7), **EXACT)
    assert plain.reg_ == (0.1, 0.1)


# how many directions


@every_teacher
@pytest.mark.parametrize(("p", "k"), [(2, 1), (3, 2), (5, 4), (7, 6), (8, 7), (20, 7)])
def test_pairs_support_one_direction_less_than_their_number(teacher, views, p, k):
    X, Y = views
    fitted = teacher.fit(X, Y, np.arange(p))
    assert fitted.n_components_ == k
    assert fitted.n_pairs_ == p
    assert fitted.transform(X).shape == (20, k) and fitted.transform_y(Y).shape == (20, k)
    assert fitted.get_feature_names_out().shape == (k,)


@every_teacher
def test_one_pair_gives_one_direction_and_a_warning(teacher, views):
    X, Y = views
    with warned("The paired rows of X (1) do not vary", "one direction remains", "at least two distinct pairs"):
        teacher.fit(X, Y, [4])
    assert teacher.n_components_ == 1
    assert_array_equal(teacher.x_mean_, 0)  # the means are left in
    assert_array_equal(teacher.y_mean_, 0)
    assert_allclose(np.abs(teacher.transform(X)), 1, **EXACT)
    assert_allclose(teacher.transform(X[[4]]), teacher.transform_y(Y[[4]]), **EXACT)
    assert teacher.score(X, Y, paired_idx=[4]) == 1


@every_teacher
def test_two_pairs_stand_on_opposite_sides(teacher, views):
    X, Y = views
    F, G = teacher.fit(X, Y, [4, 9]).transform(X[[4, 9]], Y[[4, 9]])
    assert_allclose(F, G, **EXACT)
    assert_allclose(F[0], -F[1], **EXACT)


@every_teacher
def test_copies_of_one_pair_are_one_pair(teacher, views):
    X, Y = views
    with warned("The paired rows of X (3) do not vary"):
        teacher.fit(X[[4, 4, 4]], Y[[4, 4, 4]])
    assert teacher.n_components_ == 1


@every_teacher
def test_more_components_than_columns_are_refused(teacher, views):
    expected = (
        "`n_components` must not exceed the columns of the narrower view, 7, but it is 8",
        "Lower it, or pass None",
    )
    with refused(*expected):
        teacher.set_params(n_components=8).fit(*views)
    with refused(*expected):
        teacher.fit(*views[::-1])
    assert teacher.set_params(n_components=7).fit(*views).n_components_ == 7


@every_teacher
def test_more_components_than_pairs_support_are_left_out_with_a_warning(teacher, views):
    with warned("5 pairs support 4 directions, fewer than n_components=6", "Lower `n_components` or add pairs"):
        teacher.set_params(n_components=6).fit(*views, np.arange(5))
    assert teacher.n_components_ == 4
    assert teacher.set_params(n_components=4).fit(*views, np.arange(5)).n_components_ == 4  # in silence


@every_teacher
def test_fewer_components_are_the_leading_ones(teacher, views):
    everything = clone(teacher).fit(*views)
    few = teacher.set_params(n_components=3).fit(*views)
    assert_allclose(few.x_coef_, everything.x_coef_[:, :3], **EXACT)
    assert_allclose(few.y_coef_, everything.y_coef_[:, :3], **EXACT)


# columns and rows that carry nothing


@every_teacher
def test_constant_columns_change_nothing(teacher, views):
    X, Y = views
    teacher.set_params(normalize=False)
    plain = clone(teacher).fit(X, Y)
    padded = np.insert(X, [0, 3], [5.0, -2.0], axis=1)
    assert_allclose(teacher.fit(padded, Y).transform(padded), plain.transform(X), **EXACT)
    assert_allclose(teacher.x_coef_[[0, 4]], 0, atol=1e-12)


@every_teacher
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("side", [0, 1])
def test_constant_view_keeps_one_direction_and_warns(teacher, views, rng, side, dtype):
    views = [view.astype(dtype) for view in views]
    views[side][:] = rng.normal(size=views[side].shape[1])
    with warned(f"The paired rows of {'XY'[side]} (20) do not vary"):
        teacher.fit(*views)
    assert teacher.n_components_ == 1
    for embedded in teacher.transform(*views):
        assert np.isfinite(embedded).all()


@every_teacher
def test_zero_rows_among_pairs_are_reported(teacher, views):
    X, Y = views
    X[[2, 5]], Y[7] = 0, 0
    with pytest.warns(UserWarning) as record:
        teacher.fit(X, Y)
    assert len(record) == 2
    assert "2 of the 20 paired rows of X are zero" in str(record[0].message)
    assert "1 of the 20 paired rows of Y are zero" in str(record[1].message)
    assert np.isfinite(teacher.transform(X)).all()
    teacher.fit(X, Y, [0, 1, 3, 4])  # in no pair: in silence


@every_teacher
@pytest.mark.parametrize("side", [0, 1])
def test_zero_view_is_refused(teacher, views, side):
    views = list(views)
    views[side] = np.zeros_like(views[side])
    with refused("share no direction", "check `paired_idx`"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher.fit(*views)


@every_teacher
def test_views_that_vary_apart_are_refused(teacher):
    X, Y = np.ones((4, 2)), np.ones((4, 3))
    X[:2, 0] = 2, 0
    Y[2:, 1] = 2, 0
    with refused("share no direction: their cross-covariance is zero"):
        teacher.set_params(normalize=False).fit(X, Y)


@every_teacher
def test_warnings_point_to_the_line_of_the_user(teacher, views):
    X, Y = views[0].copy(), views[1]
    X[0] = 0
    with pytest.warns(UserWarning) as record:
        teacher.fit(X, Y)  # zero row
        teacher.fit(views[0], Y, [1])  # one pair
        teacher.set_params(n_components=7).fit(views[0], Y, [1, 2, 3])  # too few pairs
    assert [warning.filename for warning in record] == [__file__] * 3


# what comes in and what goes out

# float32 and float64 stay what they are; anything else becomes float32
KINDS = {
    "float16": (lambda view: view.astype(np.float16), np.float32),
    "float32": (lambda view: view.astype(np.float32), np.float32),
    "float64": (lambda view: view, np.float64),
    "longdouble": (lambda view: view.astype(np.longdouble), np.float32),
    "int": (lambda view: np.rint(view * 1000).astype(int), np.float32),
    "list": (np.ndarray.tolist, np.float32),
    "columns first": (np.asfortranarray, np.float64),
    "frame": (pd.DataFrame, np.float64),
    "named frame": (lambda view: pd.DataFrame(view, dtype=np.float32).add_prefix("f"), np.float32),
    "half tensor": (lambda view: torch.tensor(view, dtype=torch.float16), torch.float32),
    "bfloat16 tensor": (lambda view: torch.tensor(view, dtype=torch.bfloat16), torch.float32),
    "float tensor": (lambda view: torch.tensor(view, dtype=torch.float32), torch.float32),
    "double tensor": (torch.tensor, torch.float64),
    "tensor with gradient": (lambda view: torch.tensor(view, requires_grad=True), torch.float64),
}
ROUNDING = {"float16": 1e-2, "half tensor": 1e-2, "bfloat16 tensor": 5e-2, "int": 1e-2}


@every_teacher
@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_input_decides_kind_of_output(teacher, views, kind):
    convert, dtype = KINDS[kind]
    expected = clone(teacher).fit(*views).transform(*views)
    X, Y = map(convert, views)
    for embedded, desired in zip(teacher.fit(X, Y).transform(X, Y), expected, strict=True):
        assert embedded.dtype == dtype
        assert isinstance(embedded, torch.Tensor if "tensor" in kind else np.ndarray)
        assert_allclose(np.asarray(embedded), desired, rtol=0, atol=ROUNDING.get(kind, 1e-4))
    assert teacher.x_coef_.dtype == teacher.x_mean_.dtype == np.float64  # the solution is in double precision


@every_teacher
def test_views_need_not_be_of_one_kind(teacher, views):
    X, Y = torch.tensor(views[0], dtype=torch.float32), views[1]
    F, G = teacher.fit(X, Y).transform(X, Y)
    assert isinstance(F, torch.Tensor) and F.dtype == torch.float32 and F.device == X.device
    assert isinstance(G, np.ndarray) and G.dtype == np.float64


class FarTensor(torch.Tensor):
    """Stands for a tensor on another device: NumPy cannot read it unless it is fetched."""

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert this tensor to numpy; fetch it first")


@every_teacher
def test_tensors_are_fetched_wherever_they_are_passed(teacher, views):
    X, Y = views
    mask, weight, pool = np.arange(20) < 15, np.arange(20.0), X[:3] + 1
    far = {
        name: torch.tensor(array).as_subclass(FarTensor)
        for name, array in {"X": X, "Y": Y, "mask": mask, "weight": weight, "pool": pool}.items()
    }
    with pytest.raises(TypeError):
        np.asarray(far["X"])  # or the test would be about nothing
    near = clone(teacher).set_params(center="all").fit(X, Y, mask, X_unpaired=pool)
    teacher.set_params(center="all").fit(far["X"], far["Y"], far["mask"], X_unpaired=far["pool"])
    assert_same_fit(teacher, near)
    score = teacher.score(far["X"], far["Y"], far["weight"], paired_idx=far["mask"])
    assert score == near.score(X, Y, weight, paired_idx=mask)


@every_teacher
def test_one_column_is_a_view(teacher, views):
    X, y = views[0], views[1][:, 0]
    flat, upright = clone(teacher).fit(X, y), teacher.fit(X, y[:, None])
    assert_same_fit(flat, upright)
    assert_allclose(flat.transform_y(y), upright.transform_y(y[:, None]), **EXACT)
    assert flat.transform_y(y).shape == (20, 1)


@every_teacher
def test_rows_are_unit_and_independent(teacher, views):
    X, Y = views
    F, G = teacher.fit(X, Y, np.arange(12)).transform(X, Y[:5])
    assert F.shape == (20, 7) and G.shape == (5, 7)
    assert_allclose(np.linalg.norm(F, axis=1), 1, **EXACT)
    assert_allclose(np.linalg.norm(G, axis=1), 1, **EXACT)
    assert_allclose(teacher.transform(X[3:5]), F[3:5], **EXACT)
    assert_allclose(teacher.transform(3 * X), F, **EXACT)  # `normalize` takes the length of a row away


@every_teacher
@pytest.mark.parametrize("normalize", [True, False])
def test_transform_is_the_stated_formula(teacher, views, normalize):
    X, Y = views
    teacher.set_params(normalize=normalize).fit(X, Y)
    F, G = ((normalize_rows(view) if normalize else view) for view in views)
    F, G = (F - teacher.x_mean_) @ teacher.x_coef_, (G - teacher.y_mean_) @ teacher.y_coef_
    assert_allclose(teacher.transform(X), normalize_rows(F), **EXACT)
    assert_allclose(teacher.transform_y(Y), normalize_rows(G), **EXACT)


@every_teacher
def test_transform_of_both_views_is_both_transforms(teacher, views):
    X, Y = views
    both = teacher.fit(X, Y).transform(X, Y[:6])
    assert isinstance(both, tuple) and len(both) == 2
    assert_array_equal(both[0], teacher.transform(X))
    assert_array_equal(both[1], teacher.transform_y(Y[:6]))
    assert_array_equal(clone(teacher).fit_transform(X, Y), both[0])


# means and unpaired rows


@pytest.fixture
def unpaired(rng, views):
    """Views with 12 pairs, a missing row each, and pools that lie elsewhere."""
    X, Y = views
    X[15], Y[17] = np.nan, np.nan
    pools = {"X_unpaired": 2 + rng.normal(size=(9, 7)), "Y_unpaired": rng.normal(size=(4, 11)) - 1}
    return X, Y, np.arange(12), pools


@every_teacher
@pytest.mark.parametrize("normalize", [True, False])
def test_means_are_those_of_the_pairs_or_of_every_row(teacher, unpaired, normalize):
    X, Y, rows, pools = unpaired
    prepare = normalize_rows if normalize else np.asarray
    teacher.set_params(normalize=normalize).fit(X, Y, rows, **pools)
    assert_allclose(teacher.x_mean_, prepare(X[rows]).mean(axis=0), **EXACT)
    assert_allclose(teacher.y_mean_, prepare(Y[rows]).mean(axis=0), **EXACT)
    teacher.set_params(center="all").fit(X, Y, rows, **pools)
    everything = (
        np.vstack([np.delete(X, 15, 0), pools["X_unpaired"]]),
        np.vstack([np.delete(Y, 17, 0), pools["Y_unpaired"]]),
    )
    assert_allclose(teacher.x_mean_, prepare(everything[0]).mean(axis=0), **EXACT)
    assert_allclose(teacher.y_mean_, prepare(everything[1]).mean(axis=0), **EXACT)


@every_teacher
def test_unpaired_rows_do_nothing_unless_they_are_asked_for(teacher, unpaired):
    X, Y, rows, pools = unpaired
    assert_same_fit(clone(teacher).fit(X, Y, rows, **pools), clone(teacher).fit(X[rows], Y[rows]))
    teacher.set_params(center="all")
    with_pools, without = clone(teacher).fit(X, Y, rows, **pools), clone(teacher).fit(X, Y, rows)
    assert np.abs(with_pools.x_coef_ - without.x_coef_).max() > 1e-3


@every_teacher
def test_a_row_in_several_pairs_counts_once_in_the_mean_of_all_rows(teacher, views):
    X, Y = views
    pairs = [[0, 0], [0, 1], [0, 2], [1, 3], [2, 4], [3, 5]]
    teacher.set_params(normalize=False, center="all").fit(X, Y, pairs)
    assert_allclose(teacher.x_mean_, X.mean(axis=0), **EXACT)
    teacher.set_params(center="pairs").fit(X, Y, pairs)
    assert_allclose(teacher.x_mean_, X[[0, 0, 0, 1, 2, 3]].mean(axis=0), **EXACT)


@every_teacher
@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (np.zeros((3, 11)), "`X_unpaired` must have the columns of X, 7, but it has 11"),
        (np.full((2, 7), np.nan), "Input X_unpaired contains NaN"),
        (np.full((2, 7), np.inf), "Input X_unpaired contains infinity"),
        (np.empty((0, 7)), "`X_unpaired` has 0 rows. Pass at least one unpaired row, or leave it out (None)"),
        ([], "`X_unpaired` has 0 rows"),
        (torch.empty(0, 7), "`X_unpaired` has 0 rows"),
        (np.zeros(7), "Expected 2D array"),
    ],
)
def test_bad_pools_are_refused(teacher, views, pool, message):
    with refused(message):
        teacher.fit(*views, X_unpaired=pool)
    if np.shape(pool)[-1] != 11:
        with refused(message.replace("X_unpaired", "Y_unpaired").split(" must")[0]):
            teacher.fit(*views[::-1], Y_unpaired=pool)


# forms of pairs


@every_teacher
def test_forms_of_pairs_say_the_same(teacher, views):
    X, Y = views
    mask = np.arange(20) % 3 > 0
    rows = np.flatnonzero(mask)
    X_nan, Y_nan = X.copy(), Y.copy()
    X_nan[~mask & (np.arange(20) < 10)], Y_nan[~mask & (np.arange(20) >= 10)] = np.nan, np.nan
    fits = [
        clone(teacher).fit(X, Y, mask),
        clone(teacher).fit(X, Y, torch.tensor(mask)),
        clone(teacher).fit(X, Y, rows),
        clone(teacher).fit(X, Y, np.column_stack([rows, rows])),
        clone(teacher).fit(X_nan, Y_nan),
        clone(teacher).fit(X_nan, Y_nan, mask),
        clone(teacher).fit(X[rows], Y[rows]),
        clone(teacher).fit(X[rows], Y[::-1], np.column_stack([np.arange(13), 19 - rows])),
    ]
    for fit in fits[1:]:
        assert_same_fit(fit, fits[0])
        assert fit.n_pairs_ == 13


def test_forms_of_unpaired_rows_say_the_same(views):
    X, Y = views
    mask = np.arange(20) % 3 > 0
    rows = np.flatnonzero(mask)
    teacher = CCATeacher(cv=2)
    fits = [
        clone(teacher).fit(X, Y, mask),
        clone(teacher).fit(X, Y[::-1], np.column_stack([rows, 19 - rows])),
        clone(teacher).fit(X[mask], Y[mask], X_unpaired=X[~mask], Y_unpaired=Y[~mask]),
        clone(teacher).fit(X, Y[mask], np.column_stack([rows, np.arange(13)]), Y_unpaired=Y[~mask][::-1]),
    ]
    for fit in fits[1:]:
        assert_same_fit(fit, fits[0])
        assert_allclose(fit.cv_results_["geometric_mean_rank"], fits[0].cv_results_["geometric_mean_rank"], **EXACT)


@every_teacher
def test_order_of_pairs_is_of_no_account(teacher, views, rng):
    X, Y = views
    pairs = np.column_stack([rng.permutation(20)[:15], rng.permutation(20)[:15]])
    expected = clone(teacher).fit(X, Y, pairs)
    assert_same_fit(clone(teacher).fit(X, Y, rng.permutation(pairs)), expected)
    order = rng.permutation(20)
    assert_same_fit(
        clone(teacher).fit(X[order], Y, np.column_stack([np.argsort(order)[pairs[:, 0]], pairs[:, 1]])), expected
    )


@every_teacher
def test_many_to_one_is_a_repeated_row(teacher, views):
    X, Y = views
    pairs = np.array([[i // 2, i] for i in range(20)])
    assert_same_fit(clone(teacher).fit(X, Y, pairs), clone(teacher).fit(X[pairs[:, 0]], Y))


@every_teacher
def test_duplicate_pairs_count_once(teacher, views):
    with warned("2 exact duplicates among its 7 pairs"):
        doubled = clone(teacher).fit(*views, [1, 2, 3, 2, 4, 5, 1])
    assert_same_fit(doubled, teacher.fit(*views, [1, 2, 3, 4, 5]))


# the ridge


def test_ridge_for_emoji_is_an_inner_point_of_the_grid():
    data = load_emoji()
    with threadpool_limits(1):  # on a busy machine, BLAS threads waiting for one another take minutes
        teacher = CCATeacher(random_state=0).fit(data.X, data.Y, data.paired_idx)
    results = teacher.cv_results_
    best = results["geometric_mean_rank"].argmin()
    assert 0 < best < len(results["reg"]) - 1
    assert 1.1 * results["geometric_mean_rank"][best] < results["geometric_mean_rank"][[0, -1]].min()
    assert_allclose(np.log(teacher.reg_), np.log(results["reg"][best]), rtol=0, atol=np.log(10) / 4)  # half a step
    assert abs(np.log(teacher.reg_[0] / results["reg"][best, 0])) > 1e-3  # between the candidates
    assert teacher.reg_[0] == teacher.reg_[1]  # rows of unit length have one scale
    assert teacher.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 10 / 400  # ten times chance


def test_ridge_of_each_view_follows_its_scale(views):
    X, Y = views
    plain = CCATeacher(normalize=False, cv=2).fit(X, Y)
    scaled = CCATeacher(normalize=False, cv=2).fit(100 * X, Y / 8)
    assert_allclose(scaled.reg_, np.multiply(plain.reg_, [1e4, 1 / 64]), **EXACT)
    assert_allclose(scaled.transform(100 * X), plain.transform(X), **EXACT)


@pytest.mark.parametrize("pairs", [[[0, 0]], [[0, 0], [0, 1], [0, 2]], [[0, 0], [1, 1]], [[0, 0], [1, 1], [2, 2]]])
def test_ridge_is_the_middle_of_the_grid_where_pairs_cannot_tell(views, pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first two do not vary
        teacher = CCATeacher(normalize=False).fit(*views, pairs)
    means = [
        view[column] - mean
        for view, column, mean in zip(views, np.transpose(pairs), (teacher.x_mean_, teacher.y_mean_), strict=True)
    ]
    scale = [np.sum(A**2) / max(len(A) - 1, 1) for A in means]
    assert_allclose(teacher.reg_, np.multiply(scale, 0.01), **EXACT)


def spied_on(monkeypatch):
    """What the cross-validation was given, call by call."""
    calls, select = [], skalign._teachers.cross_validated_ridge

    def spy(*args, **kwargs):
        calls.append((*args, kwargs))
        return select(*args, **kwargs)

    monkeypatch.setattr(skalign._teachers, "cross_validated_ridge", spy)
    return calls


def test_ridge_is_chosen_on_the_pairs_by_group(views, monkeypatch):
    X, Y = views
    X[19] = np.nan
    calls = spied_on(monkeypatch)
    pairs = np.array([[i // 2, i] for i in range(20)])
    teacher = CCATeacher(n_components=3, power=0.25, cv=4, random_state=0).fit(X, Y, pairs)
    A, B, seen, groups, regs, settings = calls[0]
    assert_allclose(A, normalize_rows(X[pairs[:, 0]]), **EXACT)
    assert_allclose(B, normalize_rows(Y), **EXACT)
    assert_array_equal(seen, pairs)
    assert_array_equal(groups, group_pairs(pairs))
    assert_array_equal(regs, teacher.cv_results_["reg"])
    names = "n_components", "power", "n_folds", "n_repeats", "n_enough"
    assert [settings[name] for name in names] == [3, 0.25, 4, 5, 2000]
    assert_allclose(settings["others"][0], normalize_rows(X[10:19]), **EXACT)  # the last row is missing
    assert len(settings["others"][1]) == 0  # each row of Y stands in a pair
    assert teacher.cv_results_["geometric_mean_rank"].shape == (len(regs),)


@pytest.mark.parametrize(("p", "n_repeats"), [(90, 5), (150, 3), (250, 2), (251, 1), (1500, 1)])
def test_few_pairs_are_dealt_more_often(monkeypatch, p, n_repeats):
    seen = []

    def spy(*args, n_repeats, **kwargs):
        seen.append(n_repeats)
        return np.arange(len(args[4]))

    monkeypatch.setattr(skalign._teachers, "cross_validated_ridge", spy)
    data = make_two_views(p, n_features_x=3, n_features_y=4, random_state=0)
    CCATeacher().fit(data.X, data.Y, data.paired_idx)
    assert seen == [n_repeats]


@pytest.mark.parametrize("exponent", [0.25, 1])
def test_ridge_is_shaped_by_the_variances_of_all_rows(views, rng, exponent):
    X, Y = views
    pools = X[:, ::-1] ** 2, rng.normal(size=(50, 11)) * np.arange(1, 12)
    teacher = CCATeacher(reg=0.1, power=0, reg_exponent=exponent, normalize=False)
    teacher.fit(X, Y, X_unpaired=pools[0], Y_unpaired=pools[1])
    maps = teacher.x_coef_, teacher.y_coef_
    spreads, ridged = [], []
    for view, pool in zip(views, pools, strict=True):
        C = np.cov(np.concatenate([view, pool]), rowvar=False, bias=True)
        shape = scipy.linalg.fractional_matrix_power(C / np.mean(np.diag(C)) + np.eye(len(C)) / 20, exponent).real
        spreads.append(view - view.mean(axis=0))
        ridged.append(np.cov(view, rowvar=False) + 0.1 * np.linalg.inv(shape * np.trace(C) / np.trace(shape @ C)))
    for W, S in zip(maps, ridged, strict=True):
        assert_allclose(W.T @ S @ W, np.eye(W.shape[1]), **LIBRARY[np.float64])
    assert (maps[0][abs(maps[0]).argmax(axis=0), np.arange(maps[0].shape[1])] > 0).all()
    cross = maps[0].T @ spreads[0].T @ spreads[1] @ maps[1] / 19
    assert_allclose(cross, np.diag(teacher.singular_values_), **LIBRARY[np.float64])


@pytest.mark.parametrize("d", [7, 70])
def test_shaped_ridge_is_chosen_on_the_rows_it_is_solved_on(rng, monkeypatch, d):
    calls = spied_on(monkeypatch)
    X, Y = rng.normal(size=(40, d)) * np.arange(1, d + 1), rng.normal(size=(40, 5))
    teacher = CCATeacher(power=0, reg_exponent=1, normalize=False, cv=2).fit(X, Y)
    C = np.cov(X, rowvar=False, bias=True)
    shape = C / np.mean(np.diag(C)) + np.eye(d) / 20
    root = scipy.linalg.sqrtm(shape * np.trace(C) / np.trace(shape @ C)).real
    assert_allclose(calls[0][0], X @ root, **LIBRARY[np.float64])
    A, maps = (X - X.mean(axis=0)) @ root, np.linalg.solve(root, teacher.x_coef_)
    S = A.T @ A / 39 + teacher.reg_[0] * np.eye(d)
    assert_allclose(maps.T @ S @ maps, np.eye(maps.shape[1]), **LIBRARY[np.float64])


def test_unpaired_rows_help_the_teacher_through_the_shape_of_its_ridge():
    gains = []
    for seed in range(5):
        data = make_two_views(30, 500, 500, 500, n_features_x=100, n_features_y=80, noise=0.2, random_state=seed)
        scores = [
            CCATeacher(reg_exponent=t)
            .fit(data.X, data.Y, data.paired_idx)
            .score(data.X_test, data.Y_test, paired_idx=data.test_idx)
            for t in (0, 0.25)
        ]
        gains.append(scores[1] - scores[0])
    assert min(gains) > 0.03


def test_unpaired_rows_are_not_looked_at_without_an_exponent(views):
    pools = {"X_unpaired": 100 * views[0], "Y_unpaired": views[1] ** 2}
    assert_same_fit(CCATeacher(reg=0.1).fit(*views, **pools), CCATeacher(reg=0.1).fit(*views), rtol=0)


def test_shape_of_the_ridge_has_no_unit_and_needs_no_variance(views):
    X, Y = views
    teacher = CCATeacher(cv=2, reg_exponent=0.25, normalize=False)
    expected = clone(teacher).fit(X, Y).transform(X)
    assert_allclose(clone(teacher).fit(100 * X, Y / 8).transform(100 * X), expected, **EXACT)
    same = np.full_like(X, 0.1)
    with warned("do not vary"):
        constant = clone(teacher).fit(same, Y)
    assert np.isfinite(constant.transform(same)).all()
    assert variance_root(same, 0.25) is None


def test_variances_are_told_by_some_of_many_rows(views, monkeypatch):
    monkeypatch.setattr(skalign._teachers, "_TELLING", 15)
    teacher = CCATeacher(reg=0.1, reg_exponent=0.5)
    maps = [clone(teacher).set_params(random_state=seed).fit(*views).x_coef_ for seed in (0, 0, 1)]
    assert_array_equal(maps[0], maps[1])
    assert abs(maps[0] - maps[2]).max() > 1e-6


@pytest.mark.parametrize("exponent", [0, 0.5])
def test_held_out_pairs_are_ranked_among_some_unpaired_rows(views, rng, monkeypatch, exponent):
    monkeypatch.setattr(skalign._teachers, "_GALLERY", 8)
    X, Y = views
    pools = rng.normal(size=(5, 7)), rng.normal(size=(900, 11))
    calls = spied_on(monkeypatch)
    for seed in (0, 0, 1):
        CCATeacher(cv=2, reg_exponent=exponent, random_state=seed).fit(X, Y, X_unpaired=pools[0], Y_unpaired=pools[1])
    (few, some), (_, again), (_, others) = (settings["others"] for *_, settings in calls)
    roots = [variance_root(normalize_rows(np.vstack(parts)), exponent) for parts in zip(views, pools, strict=True)]
    assert_allclose(few, roots[0](normalize_rows(pools[0])), **EXACT)
    assert_array_equal(some, again)
    assert 1 <= len(some) <= 8
    whole = {row.round(9).tobytes() for row in roots[1](normalize_rows(pools[1]))}
    assert {row.round(9).tobytes() for row in some} <= whole
    assert some.tobytes() != others.tobytes()


def test_unpaired_rows_make_the_choice_by_few_pairs_steadier():
    spread = np.empty((6, 2))
    for k in range(6):
        data = make_two_views(25, 500, 500, 0, n_features_x=40, n_features_y=30, noise=0.3, random_state=k)
        for with_others, n_rows in enumerate((25, None)):
            X, Y = data.X[:n_rows], data.Y[:n_rows]
            fits = [CCATeacher(random_state=seed).fit(X, Y, data.paired_idx) for seed in range(3)]
            spread[k, with_others] = np.std([np.log10(fit.reg_[0]) for fit in fits])
    assert spread[:, 1].mean() < 0.6 * spread[:, 0].mean()


def test_ridge_is_repeatable_and_the_seed_decides(views):
    scores = [
        CCATeacher(cv=2, random_state=seed).fit(*views).cv_results_["geometric_mean_rank"]
        for seed in (0, 0, 1, np.random.RandomState(0))
    ]
    assert_array_equal(scores[0], scores[1])
    assert_array_equal(scores[0], scores[3])
    assert (scores[0] != scores[2]).any()


# score


@pytest.fixture
def many_to_one(rng):
    """13 x 17 rows, related loosely, so that the score is neither 0 nor 1; pairs of every kind and rows in no pair."""
    Z = rng.normal(size=(17, 3))
    X, Y = (Z @ rng.normal(size=(3, d)) + 0.4 * rng.normal(size=(17, d)) for d in (7, 11))
    pairs = np.array(
        [[0, 0], [0, 13], [0, 14], [1, 1], [2, 2], [12, 3], [3, 3], [4, 4], [5, 5], [6, 6], [7, 7], [8, 8]]
    )
    return X[:13], Y, rng.permutation(pairs)


def local(pairs):
    """The paired rows of both views, and the pairs as positions among them."""
    x_rows, x_of = np.unique(pairs[:, 0], return_inverse=True)
    y_rows, y_of = np.unique(pairs[:, 1], return_inverse=True)
    return x_rows, y_rows, np.column_stack([x_of, y_of])


@every_teacher
def test_score_is_recall_at_one_on_the_paired_rows(teacher, many_to_one):
    X, Y, pairs = many_to_one
    teacher.fit(X, Y, pairs[:5])
    x_rows, y_rows, positions = local(pairs)
    F, G = teacher.transform(X[x_rows], Y[y_rows])
    score = teacher.score(X, Y, paired_idx=pairs)
    assert isinstance(score, float)
    assert 0 < score < 1  # or the views would test nothing
    assert score == recall_at_k(F, G, positions, k=1, direction="mean")
    assert score != recall_at_k(*teacher.transform(X, Y), pairs, k=1)  # there the unpaired rows stand in the gallery


@every_teacher
def test_score_takes_every_form_of_pairs(teacher, views):
    X, Y = views
    teacher.fit(X, Y, np.arange(6))
    mask = np.arange(20) % 3 > 0
    rows = np.flatnonzero(mask)
    X_nan, Y_nan = X.copy(), Y.copy()
    X_nan[~mask & (np.arange(20) < 10)], Y_nan[~mask & (np.arange(20) >= 10)] = np.nan, np.nan
    expected = teacher.score(X[rows], Y[rows])
    assert 0 < expected < 1
    for form in (mask, rows, np.column_stack([rows, rows])):
        assert teacher.score(X, Y, paired_idx=form) == expected
    assert teacher.score(X_nan, Y_nan) == expected


@every_teacher
def test_integer_weights_are_repetitions(teacher, many_to_one):
    X, Y, _ = many_to_one
    teacher.fit(X, Y, np.arange(5))
    X, Y, weight = X[:12], Y[:12], np.array([1, 3, 0, 2, 1, 1, 4, 1, 0, 2, 5, 1])
    weighted = teacher.score(X, Y, weight)
    assert weighted != teacher.score(X, Y)
    # all copies of a pair are matches of one another; rows of weight 0 stay in the gallery and ask nothing
    copy_of = np.repeat(np.arange(12), np.maximum(weight, 1))
    copies = np.argwhere(copy_of[:, None] == copy_of)
    assert_allclose(
        teacher.score(X[copy_of], Y[copy_of], (weight[copy_of] > 0).astype(float), paired_idx=copies),
        weighted,
        rtol=1e-12,
    )


@every_teacher
def test_equal_weights_change_nothing(teacher, many_to_one):
    X, Y, pairs = many_to_one
    teacher.fit(X, Y, pairs)
    assert_allclose(teacher.score(X, Y, np.full(13, 0.3), pairs), teacher.score(X, Y, paired_idx=pairs), rtol=1e-12)


def hits(F, G, pairs):
    """Whether the nearest row of G is a match, for each row of F, by plain loops."""
    cosine = F @ G.T
    for q in range(len(F)):
        own = pairs[pairs[:, 0] == q, 1]
        yield cosine[q, own].max() > np.delete(cosine[q], own).max()


@every_teacher
def test_weight_of_a_row_of_y_is_that_of_its_first_partner(teacher, many_to_one, rng):
    X, Y, pairs = many_to_one
    teacher.fit(X, Y, pairs[:5])
    weight = rng.uniform(0.1, 2, size=13)
    x_rows, y_rows, positions = local(pairs)
    F, G = teacher.transform(X[x_rows], Y[y_rows])
    first_partner = [next(i for i, j in pairs if j == row) for row in y_rows]
    forward = np.average(list(hits(F, G, positions)), weights=weight[x_rows])
    backward = np.average(list(hits(G, F, positions[:, ::-1])), weights=weight[first_partner])
    assert_allclose(teacher.score(X, Y, weight, pairs), (forward + backward) / 2, rtol=1e-12)


@every_teacher
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(19), "one weight >= 0 a row of X, shape (20,), but its shape is (19,)"),
        (np.ones((20, 1)), "shape (20,), but its shape is (20, 1)"),
        (-np.eye(20)[3], "its smallest entry -1"),
        (np.zeros(20), "must leave a query in both directions"),
        (1.0 * (np.arange(20) > 9), "must leave a query in both directions"),  # weight only on rows in no pair
        (np.full(20, np.nan), "Input sample_weight contains NaN"),
    ],
)
def test_bad_weights_are_refused(teacher, views, weight, message):
    with refused(message):
        teacher.fit(*views).score(*views, weight, paired_idx=np.arange(10))


@every_teacher
def test_score_drops_when_pairs_are_mixed_up(teacher, rng):
    data = make_two_views(noise=0.01, random_state=0)
    teacher.fit(data.X, data.Y, data.paired_idx)
    assert teacher.score(data.X_test, data.Y_test) > 0.95
    assert teacher.score(data.X_test, np.roll(data.Y_test, 1, axis=0)) < 0.1


# life of an estimator


@pytest.mark.parametrize("teacher", [*TEACHERS, CCATeacher(cv=2)], ids=["procrustes", "cca", "cca auto"], indirect=True)
def test_fit_twice_is_fit_once(teacher, views):
    X, Y = views
    fresh = clone(teacher).fit(X, Y)
    frames = pd.DataFrame(X[:, :4]).add_prefix("x"), pd.DataFrame(Y[:, :5]).add_prefix("y")
    refitted = teacher.fit(*frames, np.arange(9)).fit(X, Y)
    assert_equal(vars(refitted), vars(fresh))  # nothing more, nothing less, nothing else


def test_fit_with_a_given_ridge_forgets_the_search(views):
    teacher = CCATeacher(cv=2).fit(*views)
    assert hasattr(teacher, "cv_results_")
    assert not hasattr(teacher.set_params(reg=0.1).fit(*views), "cv_results_")


def test_grid_belongs_to_the_estimator(views):
    CCATeacher(cv=2).fit(*views).cv_results_["reg"][:] = 1
    assert len(np.unique(CCATeacher(cv=2).fit(*views).cv_results_["reg"])) > 1


@every_teacher
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_fitted_teacher_holds_no_data(teacher, views, dtype, normalize):
    X, Y = (view.astype(dtype) for view in views)
    teacher.set_params(normalize=normalize).fit(X, Y)
    alive = weakref.ref(X), weakref.ref(Y)
    before = teacher.transform(views[0])
    teacher.transform(X, Y)
    teacher.score(X, Y)
    X[:], Y[:] = 0, 0
    assert_array_equal(teacher.transform(views[0]), before)
    del X, Y
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


@every_teacher
def test_views_are_left_as_they_were(teacher, views):
    X, Y = views
    before = X.copy(), Y.copy()
    X.flags.writeable = Y.flags.writeable = False
    teacher.set_params(normalize=False).fit(X, Y, X_unpaired=X, Y_unpaired=Y).transform(X, Y)
    teacher.score(X, Y)
    assert_array_equal(X, before[0])
    assert_array_equal(Y, before[1])


@pytest.mark.parametrize("teacher", [*TEACHERS, CCATeacher(cv=2)], ids=["procrustes", "cca", "cca auto"], indirect=True)
def test_teacher_survives_pickle_and_clone(teacher, views):
    teacher.set_params(n_components=3).fit(*views)
    restored = pickle.loads(pickle.dumps(teacher))
    assert_same_fit(restored, teacher)
    assert_array_equal(restored.transform(views[0]), teacher.transform(views[0]))
    copy = clone(restored)
    assert copy.get_params() == teacher.get_params()
    assert not [name for name in vars(copy) if name.endswith("_")]
    assert_same_fit(copy.fit(*views), teacher)
    kinds = {type(value) for name, value in vars(teacher).items() if name.endswith("_")}
    assert kinds <= {np.ndarray, int, tuple, dict}  # no torch, no hidden solver


@every_teacher
def test_missing_rows_follow_the_folds(teacher, views):
    X, Y = views
    X[[3, 11]], Y[[6, 17]] = np.nan, np.nan
    folds = KFold(3)
    present = ~(np.isnan(X[:, 0]) | np.isnan(Y[:, 0]))
    expected = []
    for train, test in folds.split(X):
        train, test = train[present[train]], test[present[test]]
        expected.append(clone(teacher).fit(X[train], Y[train]).score(X[test], Y[test]))
    scores = cross_val_score(teacher, X, Y, cv=folds, error_score="raise")
    assert_allclose(scores, expected, rtol=1e-12)


@every_teacher
def test_integers_inside_cross_validation_are_refused_by_name(teacher, views):
    pairs = np.arange(10, 20)
    with refused("holds row numbers", "folds of cross-validation", "Pass a boolean mask"):
        cross_val_score(teacher, *views, cv=KFold(3), params={"paired_idx": pairs}, error_score="raise")


# what is refused


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        (ProcrustesTeacher(n_components=0), "n_components"),
        (ProcrustesTeacher(n_components=2.5), "n_components"),
        (ProcrustesTeacher(normalize="yes"), "normalize"),
        (ProcrustesTeacher(center="none"), "center"),
        (CCATeacher(n_components=-1), "n_components"),
        (CCATeacher(reg=-1e-9), "reg"),
        (CCATeacher(reg=np.inf), "reg"),
        (CCATeacher(reg=np.nan), "reg"),
        (CCATeacher(reg="best"), "reg"),
        (CCATeacher(power=-0.5), "power"),
        (CCATeacher(reg_exponent=-0.1), "reg_exponent"),
        (CCATeacher(reg_exponent=20), "reg_exponent"),
        (CCATeacher(cv=1), "cv"),
        (CCATeacher(random_state="x"), "random_state"),
    ],
    indirect=["teacher"],
)
def test_parameters_out_of_range_are_named(teacher, name, views):
    with refused(f"The '{name}' parameter of {type(teacher).__name__} must be"):
        teacher.fit(*views)


@every_teacher
@pytest.mark.parametrize("call", ["transform", "transform_y", "score"])
def test_unfitted_teacher_says_so(teacher, views, call):
    with refused("is not fitted yet", error=NotFittedError):
        getattr(teacher, call)(*views[: 1 + (call == "score")])


@every_teacher
def test_missing_second_view_is_named_as_scikit_learn_does(teacher, views):
    with refused(f"{type(teacher).__name__} requires y to be passed, but the target y is None"):
        teacher.fit(views[0], None)


@every_teacher
def test_wrong_number_of_columns_is_named_with_its_view(teacher, views):
    X, Y = views
    teacher.fit(X, Y)
    name = type(teacher).__name__
    with refused(f"X has 11 features, but {name} is expecting 7 features"):
        teacher.transform(Y)
    for call in (teacher.transform_y, lambda wrong: teacher.transform(X, wrong), lambda wrong: teacher.score(X, wrong)):
        with refused(f"Y has 7 features, but {name} is expecting 11 features", "the view that was given as Y"):
            call(X)


@every_teacher
def test_renamed_columns_of_x_are_refused(teacher, views):
    frame = pd.DataFrame(views[0]).add_prefix("x")
    teacher.fit(frame, views[1])
    with refused("feature names"):
        teacher.transform(frame[frame.columns[::-1]])


@every_teacher
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_only_finite_rows_are_transformed(teacher, views, side, value, kind):
    teacher.fit(*views)
    views[side][3] = value  # throughout: missing in `fit` and `score`, but there is no embedding of it
    with refused(f"Input {'XY'[side]} contains {kind}"):
        teacher.transform(*views)


@every_teacher
@pytest.mark.parametrize("side", [0, 1])
def test_partly_missing_rows_are_refused(teacher, views, side):
    teacher.fit(*views)
    views[side][3, 2] = np.nan
    for call in (teacher.fit, teacher.score):
        with refused(f"Input {'XY'[side]} contains NaN in 1 of 20 rows, the first being row 3"):
            call(*views)


@every_teacher
@pytest.mark.parametrize("side", [0, 1])
def test_sparse_views_are_refused(teacher, views, side):
    views = list(views)
    views[side] = scipy.sparse.csr_array(views[side])
    with refused(f"Sparse data was passed for {'XY'[side]}, but dense data is required", error=TypeError):
        teacher.fit(*views)


@every_teacher
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda view: np.full(view.shape, "cat", dtype=object), "could not convert string to float"),
        (lambda view: view + 1j, "Complex data not supported"),
        (lambda view: view[None], "Found array with dim 3"),
        (lambda view: view[:0], "Found array with 0 sample(s)"),
        (lambda view: view[:, :0], "0 feature(s)"),
    ],
    ids=["strings", "complex", "three axes", "no rows", "no columns"],
)
def test_other_kinds_of_views_are_refused(teacher, views, side, convert, message):
    views = list(views)
    views[side] = convert(views[side])
    with refused(message):
        teacher.fit(*views)


def test_teachers_never_load_torch():
    script = """
import sys
import numpy as np
from skalign import CCATeacher, ProcrustesTeacher
from skalign.datasets import make_two_views

data = make_two_views(random_state=0)
for teacher in (ProcrustesTeacher(), CCATeacher()):
    teacher.fit(data.X, data.Y, data.paired_idx, X_unpaired=data.X_test).transform(data.X_test, data.Y_test)
    teacher.score(data.X_test, data.Y_test, paired_idx=data.test_idx)
print([name for name in ("torch", "ot") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip(), run.returncode) == ("[]", 0), run.stderr


# what a newcomer passes


@every_teacher
def test_equal_rows_are_one_for_score(teacher, views):
    X, Y = views
    teacher.fit(X[:10], Y[:10])
    pairs = np.column_stack([np.arange(20) // 2, np.arange(20)])  # two captions an image
    listed_once = teacher.score(X, Y, paired_idx=pairs)
    assert 0 < listed_once < 1
    assert teacher.score(X[pairs[:, 0]], Y) == listed_once
    assert teacher.score(X[pairs[:, 0]], Y, np.ones(20)) == listed_once


@every_teacher
@pytest.mark.parametrize("name", ["X", "Y"])
def test_text_is_told_to_be_embedded(teacher, views, name):
    given = dict(zip("XY", views, strict=True))
    given[name] = [["a dog", "a cat"]] * 20
    with pytest.raises(ValueError, match=f"{name} must hold numbers.*it holds text.*Embed it"):
        teacher.fit(**given)


@every_teacher
def test_the_second_view_is_told_the_way(teacher, views):
    X, Y = views
    teacher.fit(X, Y)
    with pytest.raises(ValueError, match=f"X has {Y.shape[1]} features.*`transform_y`"):
        teacher.transform(Y)


@every_teacher
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinity")])
def test_rows_that_are_not_finite_are_counted_and_named(teacher, views, value, kind):
    X, Y = views
    teacher.fit(X, Y)
    Y = Y.copy()
    Y[[5, 9], 1] = value
    with pytest.raises(ValueError, match=f"Input Y contains {kind} in 2 of {len(Y)} rows, the first being row 5"):
        teacher.transform_y(Y)
    with pytest.raises(ValueError, match=f"Input Y contains {kind} in 2 of {len(Y)} rows, the first being row 5"):
        teacher.fit(X, Y)


@every_teacher
def test_pairs_in_the_place_of_weights_are_recognised(teacher, views):
    with pytest.raises(ValueError, match=r"third argument of `score`.*paired_idx="):
        teacher.fit(*views).score(*views, np.zeros((20, 2), dtype=int))


@every_teacher
def test_a_path_is_no_place_for_an_embedding(teacher, views):
    with pytest.raises(ValueError, match="open_memmap"):
        teacher.fit(*views).transform(views[0], out="embedded.npy")


@every_teacher
def test_parts_as_large_as_the_pairs_fitted_on_are_no_table(teacher, views):
    X, Y = (view.copy() for view in views)
    X[15:], Y[10:15] = np.nan, np.nan
    teacher.fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert teacher.score(views[0][10:], views[1][10:]) >= 0  # as many as were paired
