"""Laws that every public estimator keeps: scikit-learn's checks and the family's own. Add new estimators to its lists."""

import inspect
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import LAW
from numpy.testing import assert_allclose, assert_array_equal
from numpydoc.docscrape import NumpyDocString
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from skalign import (
    BridgeFlow,
    CCATeacher,
    ContrastiveTeacher,
    CrossModalRetriever,
    HubnessCorrection,
    ProcrustesTeacher,
    SOTAlign,
    SOTAlignTransformer,
    ZeroShotClassifier,
    load,
)
from skalign.baselines import ASIF, CSA, NNCLR, SAIL, SCLIP, STRUCTURE, SUE, RelativeRepresentation
from skalign.datasets import make_two_views

_SHORT = {"max_iter": 5, "random_state": 0}
INTO_SHARED_SPACE = [
    ProcrustesTeacher(),
    CCATeacher(),
    CCATeacher(reg_exponent=0.25, normalize=False),
    ContrastiveTeacher(**_SHORT),
    SOTAlignTransformer(**_SHORT),
    SOTAlign(**_SHORT),
    HubnessCorrection(random_state=0),
    RelativeRepresentation(),
    ASIF(),
    CSA(),
    SAIL(negatives="all", **_SHORT),
    STRUCTURE(**_SHORT),
    NNCLR(**_SHORT),
    SCLIP(**_SHORT),
    SUE(**_SHORT),
]
INTO_SPACE_OF_Y = [BridgeFlow(hidden_layer_sizes=(16,), **_SHORT)]
ALIGNERS = INTO_SHARED_SPACE + INTO_SPACE_OF_Y
CLASSIFIERS = [ZeroShotClassifier(), ZeroShotClassifier(pooling="max")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # the checks' targets are class numbers, of which 0 is a zero row
@parametrize_with_checks(ALIGNERS + CLASSIFIERS + [CrossModalRetriever()])
def test_scikit_learn_checks_pass_without_exception(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    """40 pairs first, then free rows, 7 and 11 columns; unequal lengths."""
    return make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, n_latent=4, random_state=0)


@pytest.fixture(params=ALIGNERS, ids=lambda estimator: type(estimator).__name__)
def aligner(request):
    return clone(request.param)


def row_aligned(data):
    """The same data as one table with a mask: free rows of X and of Y cut to equal lengths."""
    n = min(len(data.X), len(data.Y))
    return data.X[:n], data.Y[:n], np.arange(n) < len(data.paired_idx)


def test_fit_transform_equals_fit_then_transform(aligner, data):
    at_once = clone(aligner).fit_transform(data.X, data.Y, data.paired_idx)
    assert_allclose(at_once, aligner.fit(data.X, data.Y, data.paired_idx).transform(data.X))


@pytest.mark.parametrize("aligner", INTO_SHARED_SPACE, ids=lambda estimator: type(estimator).__name__)
def test_embedded_rows_have_unit_length(aligner, data):
    F, G = clone(aligner).fit(data.X, data.Y, data.paired_idx).transform(data.X_test, data.Y_test)
    assert F.shape == G.shape
    assert F.shape[0] == 30
    assert_allclose(np.linalg.norm(F, axis=1), 1)
    assert_allclose(np.linalg.norm(G, axis=1), 1)


@pytest.mark.parametrize("aligner", INTO_SPACE_OF_Y, ids=lambda estimator: type(estimator).__name__)
def test_rows_of_y_stay_where_they_are(aligner, data):
    F, G = clone(aligner).fit(data.X, data.Y, data.paired_idx).transform(data.X_test, data.Y_test)
    assert F.shape == data.Y_test.shape
    assert_array_equal(G, data.Y_test)


def test_both_views_at_once_equal_each_alone(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    F, G = aligner.transform(data.X_test[:9], data.Y_test)
    assert_array_equal(F, aligner.transform(data.X_test[:9]))
    assert_array_equal(G, aligner.transform_y(data.Y_test))


def test_every_form_of_pairs_gives_the_same_fit(aligner, data):
    X, Y, mask = row_aligned(data)
    rows = np.flatnonzero(mask)
    expected = clone(aligner).fit(X, Y, mask).transform(data.X_test)
    for form in (rows, np.column_stack([rows, rows]), torch.from_numpy(mask), pd.Series(mask), mask.tolist()):
        assert_array_equal(clone(aligner).fit(X, Y, form).transform(data.X_test), expected)


def test_pools_equal_free_rows(aligner, data):
    p = len(data.paired_idx)
    expected = clone(aligner).fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    pooled = aligner.fit(data.X[:p], data.Y[:p], X_unpaired=data.X[p:], Y_unpaired=data.Y[p:])
    assert_allclose(pooled.transform(data.X_test), expected)


def test_pools_on_disk_equal_pools_in_memory(aligner, data, tmp_path):
    p = len(data.paired_idx)
    pools = {"X_unpaired": data.X[p:], "Y_unpaired": data.Y[p:]}
    paths = {name: tmp_path / f"{name}.npy" for name in pools}
    for name, pool in pools.items():
        np.save(paths[name], pool)
    expected = clone(aligner).fit(data.X[:p], data.Y[:p], **pools)
    aligner.fit(data.X[:p], data.Y[:p], **paths)
    assert_allclose(aligner.transform(data.X_test), expected.transform(data.X_test))
    np.save(tmp_path / "Y.npy", data.Y_test)
    assert_allclose(aligner.transform_y(tmp_path / "Y.npy"), expected.transform_y(data.Y_test))


def test_nan_rows_mark_missing_partners(aligner, data):
    p = len(data.paired_idx)
    X = np.concatenate([data.X, np.full((len(data.Y) - p, 7), np.nan)])
    Y = np.concatenate([data.Y[:p], np.full((len(data.X) - p, 11), np.nan), data.Y[p:]])
    expected = clone(aligner).fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    assert_allclose(aligner.fit(X, Y).transform(data.X_test), expected)


def test_kinds_of_arrays_agree(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    expected = aligner.transform(data.X_test)
    tensor = aligner.transform(torch.from_numpy(data.X_test))
    assert isinstance(tensor, torch.Tensor)
    assert_array_equal(tensor.numpy(), expected)
    assert_allclose(aligner.transform(data.X_test.tolist()), expected, atol=1e-5)  # a list is read as float32
    reversed_twice = np.ascontiguousarray(data.X_test[::-1])[::-1]  # negative strides
    assert_allclose(aligner.transform(reversed_twice), expected)


def test_fit_takes_frames_and_tensors(aligner, data):
    expected = clone(aligner).fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    frames = clone(aligner).fit(
        pd.DataFrame(data.X).add_prefix("x"), pd.DataFrame(data.Y).add_prefix("y"), data.paired_idx
    )
    assert list(frames.feature_names_in_[:2]) == ["x0", "x1"]
    assert list(frames.feature_names_in_y_[:2]) == ["y0", "y1"]
    assert_allclose(frames.transform(pd.DataFrame(data.X_test).add_prefix("x")), expected, **LAW[np.float32])
    with pytest.raises(ValueError, match="The columns of Y must be those of `fit` in their order"):
        frames.transform_y(pd.DataFrame(data.Y_test).add_prefix("y").iloc[:, ::-1])
    tensors = clone(aligner).fit(torch.from_numpy(data.X), torch.from_numpy(data.Y), torch.from_numpy(data.paired_idx))
    assert_allclose(tensors.transform(data.X_test), expected, **LAW[np.float32])


@pytest.mark.parametrize(("given", "returned"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i8", "f4")])
def test_dtype_of_the_embedding_follows_the_input(aligner, data, given, returned):
    scale = 100 if given == "i8" else 1
    X, Y = (data.X * scale).astype(given), (data.Y * scale).astype(given)
    F = aligner.fit(X, Y, data.paired_idx).transform(X)
    assert F.dtype == np.dtype(returned)
    assert np.isfinite(F).all()


def test_read_only_memory_maps_are_accepted(aligner, data, tmp_path):
    for name in ("X", "Y"):
        np.save(tmp_path / f"{name}.npy", data[name].astype(np.float32))
    X, Y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("X", "Y"))
    assert aligner.fit(X, Y, data.paired_idx).transform(X).shape == (65, aligner.n_components_)


def test_pickle_keeps_the_embedding(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    restored = pickle.loads(pickle.dumps(aligner))
    assert_array_equal(restored.transform(data.X_test), aligner.transform(data.X_test))
    assert_array_equal(restored.transform_y(data.Y_test), aligner.transform_y(data.Y_test))


def test_a_file_keeps_the_embedding(aligner, data, tmp_path):
    aligner.fit(data.X, data.Y, data.paired_idx)
    aligner.save(tmp_path / "aligner.safetensors")
    restored = load(tmp_path / "aligner.safetensors")
    assert repr(restored) == repr(aligner)
    assert vars(restored).keys() == vars(aligner).keys()
    for dtype in (np.float32, np.float64):
        assert_array_equal(restored.transform(data.X_test.astype(dtype)), aligner.transform(data.X_test.astype(dtype)))
        assert_array_equal(
            restored.transform_y(data.Y_test.astype(dtype)), aligner.transform_y(data.Y_test.astype(dtype))
        )


def test_skops_keeps_the_embedding_and_needs_trust_in_few(aligner, data):
    skops = pytest.importorskip("skops.io", reason="skops is an optional package")
    aligner.fit(data.X, data.Y, data.paired_idx)
    stored = skops.dumps(aligner)
    named = skops.get_untrusted_types(data=stored)
    assert {name.split(".")[0] for name in named} <= {"skalign", "scipy"}  # a sparse matrix is SciPy's
    restored = skops.loads(stored, trusted=named)
    assert_array_equal(restored.transform(data.X_test), aligner.transform(data.X_test))
    assert_array_equal(restored.transform_y(data.Y_test), aligner.transform_y(data.Y_test))


def test_torch_modules_embed_as_transform_does(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    if isinstance(aligner, SUE | BridgeFlow):
        with pytest.raises(NotImplementedError, match="has no torch layers"):
            aligner.to_torch()
        return
    X, Y = data.X_test.astype(np.float32), data.Y_test.astype(np.float32)
    X[2] = 0
    modules = aligner.to_torch()
    with torch.no_grad():
        F, G = modules.x(torch.from_numpy(X)), modules.y(torch.from_numpy(Y))
    assert F.dtype == G.dtype == torch.float32
    assert_allclose(F, aligner.transform(X), rtol=0, atol=1e-5)
    assert_allclose(G, aligner.transform_y(Y), rtol=0, atol=1e-5)


def test_fitting_twice_changes_nothing(aligner, data):
    first = aligner.fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    assert_array_equal(aligner.fit(data.X, data.Y, data.paired_idx).transform(data.X_test), first)


def test_parameters_and_data_are_left_alone(aligner, data):
    X, Y, params = data.X.copy(), data.Y.copy(), aligner.get_params()
    aligner.fit(X, Y, data.paired_idx).transform(X, Y)
    assert_array_equal(X, data.X)
    assert_array_equal(Y, data.Y)
    assert repr(aligner.get_params()) == repr(params)


def test_global_random_states_are_left_alone(aligner, data):
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    aligner.fit(data.X, data.Y, data.paired_idx).transform(data.X_test)
    assert_array_equal(np.random.get_state()[1], numpy_state)
    assert_array_equal(torch.get_rng_state().numpy(), torch_state.numpy())


def test_one_pair_is_enough(aligner, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the teachers tell that one direction remains
        F, G = aligner.fit(data.X, data.Y, [[3, 3]]).transform(data.X_test, data.Y_test)
    assert np.isfinite(F).all()
    assert np.isfinite(G).all()


def test_score_is_one_for_its_own_separable_pairs_and_takes_every_form(data):
    X, Y, mask = row_aligned(data)
    aligner = CCATeacher(reg=1e-6, power=0).fit(X, Y, mask)
    by_mask = aligner.score(X, Y, paired_idx=mask)
    assert by_mask == aligner.score(X, Y, paired_idx=np.flatnonzero(mask))
    assert by_mask == aligner.score(X[mask], Y[mask])
    with pytest.warns(UserWarning, match="takes all 65 rows for pairs"):
        assert by_mask > aligner.score(X, Y)


def test_pool_columns_must_stand_in_the_order_of_the_view(aligner, data):
    frame = pd.DataFrame(data.X).add_prefix("x")
    with pytest.raises(ValueError, match="The columns of `X_unpaired` must be those of X in their order"):
        aligner.fit(frame, data.Y, data.paired_idx, X_unpaired=frame.iloc[:, ::-1])


def test_a_mask_in_the_place_of_weights_is_refused(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    with pytest.raises(ValueError, match=r"write score\(X, Y, paired_idx="):
        aligner.score(data.X_test, data.Y_test, np.arange(30) < 20)


def test_a_single_row_of_y_must_be_a_matrix(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    with pytest.raises(ValueError, match="Expected 2D array for Y, got 1D array of 11 numbers"):
        aligner.transform_y(data.Y_test[0])


def test_y_is_another_name_of_the_second_view(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    assert aligner.score(data.X_test, y=data.Y_test) == aligner.score(data.X_test, data.Y_test)
    with pytest.raises(ValueError, match="requires y to be passed"):
        aligner.score(data.X_test)


def test_a_missing_row_cannot_be_embedded(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    X = data.X_test.copy()
    X[4] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN in 1 of 30 rows, the first being row 4"):
        aligner.transform(X)


def test_output_names_count_the_components(aligner, data):
    aligner.fit(data.X, data.Y, data.paired_idx)
    names = aligner.get_feature_names_out()
    assert len(names) == aligner.n_components_
    frame = aligner.set_output(transform="pandas").transform(data.X_test)
    assert list(frame.columns) == list(names)


def fitted_attributes(estimator):
    """Public names that end in an underscore, whether stored or computed."""
    names = [*vars(estimator), *(name for name in dir(type(estimator)) if hasattr(estimator, name))]
    return {name for name in names if name.endswith("_") and not name.startswith("_")}


def documented_attributes(estimator):
    entries = NumpyDocString(inspect.getdoc(estimator))["Attributes"]
    return {name for entry in entries for name in entry.name.split(", ")}


def test_fitted_attributes_are_those_documented(aligner, data):
    if isinstance(aligner, BridgeFlow):
        aligner.set_params(inverse=True)  # whose flow has attributes of its own
    aligner.fit(data.X, data.Y, data.paired_idx)
    assert fitted_attributes(aligner) == documented_attributes(aligner)


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, CrossModalRetriever()], ids=str)
def test_fitted_attributes_of_its_users_are_those_documented(estimator, data):
    estimator = clone(estimator).fit(data.X, np.arange(len(data.X)) % 3)
    assert fitted_attributes(estimator) == documented_attributes(estimator)
