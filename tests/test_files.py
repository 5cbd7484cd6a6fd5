"""Laws of files: what is saved is loaded bit by bit, what is damaged or forged is refused, what stood there is never lost."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file
from sklearn import config_context
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import VarianceThreshold
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.random_projection import GaussianRandomProjection

from skalign import (
    CCATeacher,
    ContrastiveTeacher,
    HubnessCorrection,
    ProcrustesTeacher,
    SOTAlign,
    SOTAlignTransformer,
    _files,
    load,
)
from skalign.datasets import make_two_views

N_KILLS = 100
_SHORT = {"max_iter": 2, "random_state": 0}


@pytest.fixture(scope="module")
def data():
    return make_two_views(40, 25, 35, 30, n_features_x=7, n_features_y=11, n_latent=4, random_state=0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "aligner.safetensors"


def fitted(aligner, data):
    return aligner.fit(data.X, data.Y, data.paired_idx)


def reloaded(aligner, path):
    aligner.save(path)
    return load(path)


def forge(path, change):
    """Rewrite a file, with a right checksum, after ``change(metadata, arrays)``."""
    metadata, arrays = _files._read(path)
    metadata.pop("sha256")
    change(metadata, arrays)
    metadata["sha256"] = _files._checksum(metadata, arrays)
    save_file(arrays, path, metadata)


def replacing(old, new):
    """A change of the JSON of a file."""

    def change(metadata, arrays):
        assert old in metadata["estimator"]
        metadata["estimator"] = metadata["estimator"].replace(old, new)

    return change


@pytest.mark.slow
def test_another_process_embeds_bit_by_bit_alike(data, tmp_path):
    aligners = {
        "cca": CCATeacher(),
        "mlp": ContrastiveTeacher(head="mlp", **_SHORT),
        "whole": SOTAlign(x_transformer=make_pipeline(StandardScaler(), PCA(5)), **_SHORT),
    }
    np.savez(tmp_path / "data.npz", X=data.X_test, Y=data.Y_test)
    for name, aligner in aligners.items():
        fitted(aligner, data).save(tmp_path / name)
    code = (
        "import sys, numpy as np, skalign; folder, *names = sys.argv[1:]; data = np.load(f'{folder}/data.npz'); "
        "[np.savez(f'{folder}/{name}.npz', *skalign.load(f'{folder}/{name}').transform(data['X'], data['Y'])) "
        "for name in names]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *aligners], check=True)
    for name, aligner in aligners.items():
        there = np.load(tmp_path / f"{name}.npz")
        for view, embedded in zip(("arr_0", "arr_1"), aligner.transform(data.X_test, data.Y_test), strict=True):
            assert_array_equal(there[view], embedded)


TRANSFORMERS = [
    PCA(0.9, whiten=True),
    PCA(3, svd_solver="randomized", random_state=0),
    PCA(3, svd_solver="arpack"),
    TruncatedSVD(3),
    VarianceThreshold(),
    MaxAbsScaler(),
    MinMaxScaler(clip=True),
    Normalizer(),
    PowerTransformer(),
    QuantileTransformer(n_quantiles=20),
    RobustScaler(),
    StandardScaler(),
    GaussianRandomProjection(4, random_state=np.random.RandomState(0)),
    make_pipeline(StandardScaler(), "passthrough", PCA(4)),
]


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=lambda transformer: type(transformer).__name__)
def test_preprocessing_is_kept(transformer, data, path):
    aligner = fitted(SOTAlign(x_transformer=transformer, **_SHORT), data)
    assert_array_equal(reloaded(aligner, path).transform(data.X_test), aligner.transform(data.X_test))


def test_every_class_of_scikit_learn_that_a_file_may_name_is_tried_here():
    tried = {type(transformer).__name__ for transformer in TRANSFORMERS} | {"FrozenEstimator"}
    assert {name.rpartition(".")[2] for name in _files._FROM_SCIKIT_LEARN} == tried


def test_a_frozen_aligner_is_kept(data, path):
    aligner = fitted(HubnessCorrection(FrozenEstimator(fitted(ProcrustesTeacher(), data)), random_state=0), data)
    restored = reloaded(aligner, path)
    assert isinstance(restored.estimator, FrozenEstimator)
    assert_array_equal(restored.transform(data.X_test), aligner.transform(data.X_test))


def test_parameters_and_attributes_keep_value_and_type(data, path):
    aligner = SOTAlignTransformer(
        alpha=np.float32(0.1), batch_size_unpaired=(np.int64(9), 8), device=torch.device("cpu"), **_SHORT
    )
    frames = pd.DataFrame(data.X).add_prefix("x"), pd.DataFrame(data.Y).add_prefix("y")
    aligner.fit(*frames, data.paired_idx)
    aligner.sinkhorn_error_ = {"student": float("nan"), "teacher": float("inf")}
    restored = reloaded(aligner, path)
    assert type(restored.alpha) is np.float32
    assert restored.alpha == aligner.alpha
    assert restored.batch_size_unpaired == (9, 8)
    assert restored.device == "cpu"
    assert restored.loss_curve_ == aligner.loss_curve_
    assert repr(restored.sinkhorn_error_) == "{'student': nan, 'teacher': inf}"
    assert_array_equal(restored.feature_names_in_, aligner.feature_names_in_)
    assert restored.feature_names_in_.dtype == object
    assert_array_equal(restored.fit(*frames, data.paired_idx).x_coef_, aligner.x_coef_)


def test_the_order_of_arrays_in_memory_is_kept(data, path):
    aligner = fitted(CCATeacher(reg=0.1), data)
    aligner.x_coef_ = np.asfortranarray(aligner.x_coef_)
    restored = reloaded(aligner, path)
    assert restored.x_coef_.flags.f_contiguous
    assert restored.y_coef_.flags.c_contiguous
    assert_array_equal(restored.x_coef_, aligner.x_coef_)


def test_arrays_that_are_shared_are_stored_once(data, path):
    restored = reloaded(fitted(SOTAlign(**_SHORT), data), path)
    assert restored.teacher_.x_coef_ is restored.aligner_.teacher_.x_coef_


def test_random_states_and_requests_are_left_behind(data, path):
    with config_context(enable_metadata_routing=True):
        aligner = CCATeacher(reg=0.1, random_state=np.random.RandomState(0)).set_score_request(sample_weight=True)
        restored = reloaded(fitted(aligner, data), path)
    assert restored.random_state is None
    assert not hasattr(restored, "_metadata_request")


def test_a_device_that_is_not_there_becomes_auto(data, path):
    aligner = fitted(ContrastiveTeacher(**_SHORT), data)
    aligner.save(path)
    forge(path, replacing('"device": "auto"', '"device": "cuda:99"'))
    with pytest.warns(UserWarning, match=r"The loaded aligner has device='auto'"):
        restored = load(path)
    assert restored.device == "auto"
    assert_array_equal(restored.transform(data.X_test), aligner.transform(data.X_test))


def test_an_unfitted_aligner_is_not_saved(path):
    with pytest.raises(NotFittedError):
        CCATeacher().save(path)
    assert not path.exists()


class _Own(CCATeacher):
    """A subclass, whose code no file could bring along."""


@pytest.mark.parametrize(
    ("aligner", "told"),
    [
        (ContrastiveTeacher(head=torch.nn.Linear, **_SHORT), "`head` is <class"),
        (ContrastiveTeacher(optimizer=torch.optim.SGD, **_SHORT), "`optimizer` is <class"),
        (SOTAlign(x_transformer=FunctionTransformer(), **_SHORT), r"`x_transformer` is FunctionTransformer\(\)"),
        (HubnessCorrection(_Own(reg=0.1)), "`estimator` is _Own"),
        (_Own(reg=0.1), "The aligner is _Own"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_anything_is_written(aligner, told, data, path):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=f"{told}.* use joblib.dump"):
        fitted(aligner, data).save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_an_aligner_that_cannot_embed_never_replaces_one_that_can(data, path):
    aligner = fitted(CCATeacher(reg=0.1), data)
    aligner.save(path)
    old = path.read_bytes()
    aligner.x_coef_[2, 1] = np.nan
    with pytest.raises(ValueError, match="would not load again: `x_coef_` is not finite"):
        aligner.save(path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(data, path, monkeypatch):
    fitted(CCATeacher(reg=0.1), data).save(path)
    old = path.read_bytes()

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        fitted(CCATeacher(reg=1.0), data).save(path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_told(data, tmp_path):
    with pytest.raises(FileNotFoundError):
        fitted(CCATeacher(reg=0.1), data).save(tmp_path / "nowhere" / "aligner")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_a_link_keeps_pointing_to_the_file(data, path):
    link = path.with_name("link")
    try:
        link.symlink_to(path)
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    fitted(CCATeacher(reg=0.1), data).save(link)
    assert link.is_symlink()
    assert load(path).reg == 0.1


_SAVE_UNTIL_KILLED = """
import itertools, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from skalign import ProcrustesTeacher, load

path, n_kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)
A, B = np.random.default_rng(0).standard_normal((2, 200, 300))
versions = [ProcrustesTeacher(n_components=k).fit(A, B) for k in (60, 80)]
embedded = [version.transform(A).tobytes() for version in versions]
versions[0].save(path)
for kill in range(n_kills):
    pid = os.fork()
    if pid == 0:
        end = time.monotonic() + 10
        for version in itertools.cycle(versions):
            version.save(path)
            if time.monotonic() > end:
                os._exit(1)
    time.sleep(random.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert load(path).transform(A).tobytes() in embedded, kill
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes, which this system does not have")
def test_a_save_that_is_killed_leaves_a_whole_file(path):
    subprocess.run([sys.executable, "-c", _SAVE_UNTIL_KILLED, str(path), str(N_KILLS)], check=True, timeout=300)
    left = sorted(file.name for file in path.parent.iterdir() if file != path)
    assert left  # some of the kills came while a file was being written
    assert all(re.fullmatch(r"aligner\.safetensors\.[0-9a-f]{8}\.tmp", name) for name in left)


@pytest.fixture
def small(path):
    """A file of about two kilobytes, and the aligner in it."""
    views = make_two_views(6, 0, 0, 5, n_features_x=2, n_features_y=3, n_latent=2, random_state=0)
    ProcrustesTeacher().fit(views.X, views.Y).save(path)
    return path.read_bytes()


def test_every_flipped_bit_is_found(small, path, rng):
    for position in range(len(small)):
        damaged = bytearray(small)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"is no whole safetensors file|not of an aligner|has version|its checksum"
        ):
            load(path)


def test_every_cut_is_found(small, path):
    for length in range(len(small)):
        path.write_bytes(small[:length])
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            load(path)
    path.write_bytes(small + b"\0")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        load(path)


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def header(text, data=b"", length=None):
    text = text.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def test_foreign_files_are_refused_and_run_nothing(path, tmp_path):
    marker = tmp_path / "it ran"
    tensor = '{"a": {"dtype": "%s", "shape": %s, "data_offsets": [0, 8]}}'
    for content in (
        b"",
        pickle.dumps(_Payload(marker)),
        header("{}", length=2**63),
        header("{}", length=10**8),
        header(tensor % ("F64", f"[{2**62}, {2**62}]"), bytes(8)),
        header(tensor % ("F64", "[-1]"), bytes(8)),
        header(tensor % ("O", "[1]"), pickle.dumps(_Payload(marker))[:8]),
        header(tensor % ("F8_E4M3", "[8]"), bytes(8)),
        header(tensor % ("F64", str([1] * 100)), bytes(8)),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no whole safetensors file"):
            load(path)
    save_file({"weight": np.eye(2)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match="is a safetensors file, but not of an aligner"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "node",
    [
        '{"class": "os.mkdir", "state": {"path": "MARKER"}}',
        '{"class": "posix.mkdir", "state": {"dict": "MARKER"}}',
        '{"class": "builtins.eval", "state": {"source": "__import__(\'os\').mkdir(\'MARKER\')"}}',
        '{"class": "sklearn.preprocessing.FunctionTransformer", "state": {}}',
        '{"class": "skalign.datasets.load_embeddings", "state": {"folder": "MARKER"}}',
        '{"class": "skalign.baselines._sue._SpectralEmbedding.__init__", "state": {}}',
        '{"reduce": ["os.mkdir", "MARKER"]}',
    ],
)
def test_a_class_that_is_not_on_the_list_is_neither_imported_nor_called(node, data, path, tmp_path):
    marker = tmp_path / "it ran"
    fitted(CCATeacher(n_components=3, reg=0.1), data).save(path)
    forge(path, replacing('"n_components": 3', f'"n_components": {node.replace("MARKER", str(marker))}'))
    with pytest.raises(ValueError, match="is none of the classes a file may name|is no value of this format"):
        load(path)
    assert not marker.exists()


def test_a_part_of_an_aligner_is_no_aligner(data, path):
    fitted(CCATeacher(reg=0.1), data).save(path)
    part = (
        '{"class": "skalign._core.hubness.LocalScaling", "state": {"x_anchors": 1, "y_anchors": 1, "n_neighbors": 1}}'
    )
    for node in (part, "3", "null"):

        def change(metadata, arrays, node=node):
            metadata["estimator"] = node

        forge(path, change)
        with pytest.raises(ValueError, match="a fitted aligner was expected"):
            load(path)


def with_array(name, new):
    def change(metadata, arrays):
        arrays[name] = new(arrays[name])

    return change


def _deep(metadata, arrays):
    metadata["estimator"] = "[" * 100_000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_array("x_coef_", lambda W: W[:-1].copy()), r"`x_coef_` must be an array of shape \(7, 5\)"),
        (with_array("y_coef_", lambda W: W[:, :-1].copy()), r"`y_coef_` must be an array of shape \(11, 5\)"),
        (with_array("x_mean_", lambda m: m[:1].copy()), r"`x_mean_` must be an array of shape \(7,\)"),
        (with_array("x_mean_", lambda m: m[None].copy()), r"`x_mean_` must be an array of shape \(7,\)"),
        (with_array("x_coef_", lambda W: W.astype(np.int64)), "`x_coef_` must be an array"),
        (with_array("x_coef_", lambda W: W.astype(np.complex64)), "`x_coef_` is of type complex64"),
        (with_array("x_coef_", lambda W: W * np.inf), "`x_coef_` is not finite"),
        (replacing('"n_features_in_": 7', '"n_features_in_": 1000000000000'), "`n_features_in_` must be an integer"),
        (replacing('"n_features_in_": 7', '"n_features_in_": 7.0'), "`n_features_in_` must be an integer"),
        (replacing('"n_components_": 5', '"n_components_": 3'), "an embedded row must have 3 finite columns"),
        (replacing('"x_mean_"', '"z_mean_"'), "holds no aligner that works"),
        (replacing('"reg": 0.1', '"reg": -0.1'), "The 'reg' parameter of CCATeacher must be"),
        (replacing('"reg": 0.1, ', ""), "CCATeacher lacks reg"),
        (replacing('"reg": 0.1', '"reg": NaN'), "NaN is no number"),
        (replacing('"reg": 0.1', '"reg": {"scalar": 1, "dtype": "object"}'), "is no value of this format"),
        (replacing('"n_features_in_": 7, ', ""), "`n_features_in_` must be an integer"),
        (replacing('"reg": 0.1', '"reg": 0.1, "transform": "oops"'), "has no attribute transform"),
        (_deep, "holds no aligner that works"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change, told, data, path):
    fitted(CCATeacher(5, reg=0.1), data).save(path)
    forge(path, change)
    with pytest.raises(ValueError, match=told):
        load(path)


def test_heads_must_fit_the_sizes(data, path):
    fitted(ContrastiveTeacher(head="mlp", **_SHORT), data).save(path)
    forge(path, with_array("x_head_.0.weight", lambda W: W[:, :-1].copy()))
    with pytest.raises(ValueError, match="a mlp head of 7 by 7 does not hold 105 numbers"):
        load(path)


def test_a_head_larger_than_the_file_is_not_built(data, path):
    fitted(ContrastiveTeacher(head="mlp", **_SHORT), data).save(path)
    forge(path, replacing('"n_components_": 7', '"n_components_": 300'))  # as many as the file has numbers, squared
    with pytest.raises(ValueError, match="does not hold"):
        load(path)


def test_folders_of_a_cache_stay_behind(data, path, tmp_path):
    pipeline = make_pipeline(StandardScaler(), memory=str(tmp_path / "cache"))
    aligner = fitted(SOTAlign(CCATeacher(reg=0.1), x_transformer=pipeline, **_SHORT), data)
    assert reloaded(aligner, path).x_transformer.memory is None
    forge(path, replacing('"memory": null', '"memory": "elsewhere"'))
    with pytest.raises(ValueError, match="Pipeline has no attribute memory"):
        load(path)
    fitted(ContrastiveTeacher(**_SHORT), data).save(path)
    forge(path, replacing('"n_components_": 7', '"n_components_": 1000000000000'))
    with pytest.raises(ValueError, match="`n_components_` must be an integer from 1 to"):
        load(path)


def test_a_file_of_another_format_says_who_wrote_it(data, path):
    def newer(metadata, arrays):
        metadata.update(format_version="2", skalign_version="9.1")

    fitted(CCATeacher(reg=0.1), data).save(path)
    forge(path, newer)
    with pytest.raises(
        ValueError, match=r"has version 2 of the file format, written by skalign 9\.1, .* update skalign"
    ):
        load(path)


def test_without_safetensors_the_extra_is_named(data, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'skalign\[files\]'"):
        fitted(CCATeacher(reg=0.1), data).save(path)
    with pytest.raises(ImportError, match=r"pip install 'skalign\[files\]'"):
        load(path)
