"""Laws of torch modules and ONNX graphs: they embed as transform does, can be trained on, and hold nothing of ours."""

import io
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler

from skalign import CCATeacher, ContrastiveTeacher, HubnessCorrection, ProcrustesTeacher, SOTAlign
from skalign.baselines import ASIF, CSA
from skalign.datasets import make_two_views

_SHORT = {"max_iter": 2, "random_state": 0}
CLOSE = {"rtol": 0, "atol": 1e-5}  # float32 on both sides, entries of unit rows


@pytest.fixture(scope="module")
def data():
    return make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, n_latent=4, random_state=0)


def fitted(aligner, data):
    return aligner.fit(data.X, data.Y, data.paired_idx)


def rows(view):
    """Rows in float32, of which one is zero, one huge and one tiny."""
    view = view.astype(np.float32)
    view[2] = 0
    view[3] *= 1e15
    view[4] *= 1e-15
    return view


def head_with_dropout(d_in, d_out):
    return torch.nn.Sequential(torch.nn.Linear(d_in, d_out), torch.nn.Dropout(0.9))


@pytest.mark.parametrize(
    "aligner",
    [
        ContrastiveTeacher(head="layernorm", normalize=False, **_SHORT),
        ContrastiveTeacher(head="mlp", **_SHORT),
        ContrastiveTeacher(head=head_with_dropout, **_SHORT),
        CCATeacher(reg=0.1, normalize=False, center="all"),
        ASIF(5, power=2, center="all"),
        HubnessCorrection(ContrastiveTeacher(**_SHORT), n_neighbors=2, random_state=0),
        SOTAlign(x_transformer=make_pipeline(StandardScaler(), PCA(5)), y_transformer=Normalizer(), **_SHORT),
        SOTAlign(x_transformer=PCA(5, whiten=True), y_transformer=StandardScaler(with_mean=False), **_SHORT),
        SOTAlign(x_transformer=StandardScaler(with_std=False), hubness_correction=False, **_SHORT),
    ],
)
def test_modules_embed_as_transform_does(aligner, data):
    aligner = fitted(aligner, data)
    X, Y = rows(data.X_test), rows(data.Y_test)
    modules = aligner.to_torch()
    with torch.no_grad():
        assert_allclose(modules.x(torch.from_numpy(X)), aligner.transform(X), **CLOSE)
        assert_allclose(modules.y(torch.from_numpy(Y)), aligner.transform_y(Y), **CLOSE)


def test_a_frozen_aligner_has_modules(data):
    teacher = fitted(ProcrustesTeacher(), data)
    modules = fitted(HubnessCorrection(FrozenEstimator(teacher), random_state=0), data).to_torch()
    with torch.no_grad():
        F = modules.x(torch.from_numpy(data.X_test).float())
    assert_allclose(F[:, :-4] * 2**0.5, teacher.transform(data.X_test), **CLOSE)


@pytest.mark.parametrize(
    "aligner", [HubnessCorrection(CCATeacher(reg=0.1), random_state=0), CSA(reg=0.1), ASIF(5, power=2, center="pairs")]
)
def test_gradients_are_those_of_finite_differences(aligner, data):
    modules = fitted(aligner, data).to_torch().double()
    for module, view in ((modules.x, data.X_test), (modules.y, data.Y_test)):
        assert torch.autograd.gradcheck(module, torch.from_numpy(view[:5].copy()).requires_grad_())


@pytest.mark.parametrize("aligner", [HubnessCorrection(random_state=0), CSA(reg=0.1), ContrastiveTeacher(**_SHORT)])
def test_a_zero_row_leaves_gradients_finite(aligner, data):
    X = torch.zeros(3, 7, requires_grad=True)
    module = fitted(aligner, data).to_torch().x
    module(X)[:, 0].sum().backward()
    assert X.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_modules_are_copies_that_can_be_trained_and_stored(data):
    aligner = fitted(SOTAlign(**_SHORT), data)
    before = aligner.transform(data.X_test)
    modules = aligner.to_torch()
    assert not modules.training
    X = torch.from_numpy(data.X_test).float()
    start = modules.x(X).detach()
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    modules.x(X)[:, 0].sum().backward()
    optimizer.step()
    trained = modules.x(X).detach()
    assert trained[:, 0].sum() < start[:, 0].sum()
    assert_array_equal(aligner.transform(data.X_test), before)

    stored = io.BytesIO()
    torch.save(modules.state_dict(), stored)
    stored.seek(0)
    again = aligner.to_torch()
    again.load_state_dict(torch.load(stored, weights_only=True))
    assert_array_equal(again.x(X).detach(), trained)


def test_every_tensor_of_a_module_moves_with_it(data):
    modules = fitted(SOTAlign(x_transformer=StandardScaler(), **_SHORT), data).to_torch().to("meta")
    assert modules.x(torch.empty(4, 7, device="meta")).device.type == "meta"  # an operand left behind would raise


class _Stranger:
    """An aligner of another package, which has no layers."""

    def fit(self, X, Y, paired_idx=None, **pools):
        return self

    def transform(self, X):
        return X[:, :3]

    def transform_y(self, Y):
        return Y[:, :3]

    def get_params(self, deep=True):
        return {}


@pytest.mark.parametrize(
    ("aligner", "told"),
    [
        (SOTAlign(x_transformer=MinMaxScaler(), **_SHORT), r"MinMaxScaler\(\) has no torch layers; StandardScaler"),
        (HubnessCorrection(_Stranger(), random_state=0), "_Stranger has no torch layers"),
    ],
)
def test_what_has_no_layers_is_named(aligner, told, data):
    aligner = fitted(aligner, data)
    with pytest.raises(NotImplementedError, match=told):
        aligner.to_torch()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("aligner", "view"),
    [
        (SOTAlign(y_transformer=make_pipeline(StandardScaler(), PCA(5)), head="mlp", **_SHORT), "y"),
        (ASIF(5, power=2), "x"),
        (CSA(reg=0.1), "y"),
    ],
    ids=["SOTAlign", "ASIF", "CSA"],
)
def test_onnx_runs_with_the_same_output(aligner, view, data, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is an optional package")
    pytest.importorskip("onnxscript", reason="onnxscript is an optional package")
    path = tmp_path / "aligner.onnx"
    aligner = fitted(aligner, data)
    aligner.to_onnx(path, view=view)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert b".py" not in path.read_bytes()  # no paths of the files that made it
    session = onnxruntime.InferenceSession(path)
    Z, embed = (rows(data.X_test), aligner.transform) if view == "x" else (rows(data.Y_test), aligner.transform_y)
    for n in (1, 2, 30):
        (embedded,) = session.run(["embedding"], {view.upper(): Z[:n]})
        assert_allclose(embedded, embed(Z[:n]), **CLOSE)


def test_an_export_that_fails_leaves_the_old_graph(data, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="onnxscript is an optional package")

    def failing(*args, **kwargs):
        raise RuntimeError("no graph today")

    monkeypatch.setattr(torch.onnx, "export", failing)
    path = tmp_path / "aligner.onnx"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="no graph today"):
        fitted(ProcrustesTeacher(), data).to_onnx(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_view_is_x_or_y(data, tmp_path):
    with pytest.raises(ValueError, match="`view` must be 'x' or 'y', but it is 'images'"):
        fitted(ProcrustesTeacher(), data).to_onnx(tmp_path / "aligner.onnx", view="images")


def test_without_onnx_the_extra_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'skalign\[onnx\]'"):
        fitted(ProcrustesTeacher(), data).to_onnx(tmp_path / "aligner.onnx")
