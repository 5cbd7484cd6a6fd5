"""What every aligner shares: checks, transform, transform_y, score, files, tags. Loads torch in `to_torch` only."""

import contextlib
import functools
import warnings
from dataclasses import replace

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import _get_feature_names, check_is_fitted, validate_data

from ._arrays import FLOATS, floats_of, like_input, to_numpy
from ._core.ranks import recalls
from ._core.rows import distinct_rows, normalize_rows
from ._files import save
from ._folds import refuse_wrong_folds
from ._pairs import PairedViews, check_pairs, distinct_partners, judge_pairs, missing_rows, read_pairs, stack
from ._sources import Rows, stored_rows


def all_or_nothing(fit):
    """A `fit` that fails leaves the estimator as it was: fitted as before, or not at all.

    It stands above `_fit_context` where callbacks are supported, which that tears down by attributes taken back here.
    """

    @functools.wraps(fit)
    def fit_or_restore(self, *args, **kwargs):
        with restored_on_error(self):
            return fit(self, *args, **kwargs)

    return fit_or_restore


@contextlib.contextmanager
def restored_on_error(estimator):
    """An error inside leaves the attributes of an estimator as they were."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def fit_within(estimator, views, pairs, random_state):
    """Fit an aligner inside the fit of another, on these pairs; without a seed of its own it takes one from there.

    So a fit with one seed is one fit, what is nested included. Where there is none, what is nested draws its own.
    """
    unseeded = getattr(estimator, "random_state", 0) is None and not isinstance(estimator, FrozenEstimator)
    if unseeded and random_state is not None:
        estimator.set_params(random_state=check_random_state(random_state).randint(2**31 - 1))
    pools = {"X_unpaired": views.X_pool, "Y_unpaired": views.Y_pool}
    given = {name: pool for name, pool in pools.items() if pool is not None}
    return estimator.fit(views.X, views.Y, pairs, **given)


class BaseAligner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base class of aligners; a subclass fits its attributes and offers ``_embed_x(X)`` and ``_embed_y(Y)``."""

    _reads_pools = False  # whether `fit` needs all rows of a pool at once

    # with metadata routing on, a mask given to a search or pipeline reaches fit and score without further requests
    __metadata_request__fit = {"paired_idx": True, "X_unpaired": True, "Y_unpaired": True}
    __metadata_request__score = {"paired_idx": True}

    def fit_transform(self, X, Y=None, paired_idx=None, *, X_unpaired=None, Y_unpaired=None, y=None):
        """Fit, then map the rows of X alone into the shared space, as pipelines expect.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in `fit`; no row of X may be missing.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, as in `fit`.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, as in `fit`.
        y : array-like of shape (n_y, d_y), default=None
            Another name of Y, which some of scikit-learn's tools use.

        Returns
        -------
        F : ndarray or Tensor of shape (n_x, k)
            Rows of unit length.

        Raises
        ------
        ValueError
            As in `fit`, and if a row of X is missing.

        Examples
        --------
        >>> from skalign import CCATeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> CCATeacher(8, reg=0.1).fit_transform(data.X, data.Y, data.paired_idx).shape
        (300, 8)
        """
        Y = self._required(y if Y is None else Y)
        return self.fit(X, Y, paired_idx, X_unpaired=X_unpaired, Y_unpaired=Y_unpaired).transform(X)

    def transform(self, X, Y=None, *, out=None):
        """Map rows of X, and of Y if given, into the shared space.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite. Those that are not in memory (:meth:`~skalign.SOTAlignTransformer.fit` lists
            their kinds) are read and mapped block by block.
        Y : array-like of shape (m, d_y), default=None
            Rows of the second view; `m` may differ from `n`.
        out : array of shape (n, k), default=None
            Where to write the rows of X: an array, memory map, HDF5 dataset or zarr array of floating-point numbers, which
            is returned, unless `set_output` asks for a frame. So neither X nor its embedding needs to fit into memory.

        Returns
        -------
        F : ndarray or Tensor of shape (n, k)
            Rows of unit length, k is `n_components_`: inner products are cosines. A tensor on the device of X if X is one;
            `out` if it is given.
        G : ndarray or Tensor of shape (m, k)
            Only if Y is given.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If a view is not finite, has another number of columns than in `fit`, or `out` has another shape.

        Examples
        --------
        >>> from skalign import CCATeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> aligner = CCATeacher(8, reg=0.1).fit(data.X, data.Y, data.paired_idx)
        >>> F, G = aligner.transform(data.X_test, data.Y_test)
        >>> F.shape, G.shape
        ((100, 8), (100, 8))
        """
        check_is_fitted(self)
        F = self._mapped(X, "X", out)
        return F if Y is None else (F, self.transform_y(Y))

    def transform_y(self, Y, *, out=None):
        """Map rows of Y into the shared space.

        Parameters
        ----------
        Y : array-like of shape (m, d_y)
            Rows of the second view, finite, as in `transform`.
        out : array of shape (m, k), default=None
            Where to write the result, as in `transform`.

        Returns
        -------
        G : ndarray or Tensor of shape (m, k)
            Rows of unit length, k is `n_components_`. A tensor on the device of Y if Y is one; `out` if it is given.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If Y is not finite, has another number of columns than in `fit`, or `out` has another shape.

        Examples
        --------
        >>> from skalign import CCATeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> aligner = CCATeacher(8, reg=0.1).fit(data.X, data.Y, data.paired_idx)
        >>> aligner.transform_y(data.Y_test).shape
        (100, 8)
        """
        check_is_fitted(self)
        return self._mapped(self._required(Y), "Y", out)

    def score(self, X, Y=None, sample_weight=None, paired_idx=None, *, y=None):
        """MeanR@1 on the pairs present: how often the nearest row of the other view is a true match.

        Queries and gallery are the paired rows only, each once, and equal rows are one; the functions of
        :mod:`skalign.metrics` have every row in the gallery. R@1 falls as the gallery grows, so compare equal galleries.

        Parameters
        ----------
        X : array-like of shape (n_x, d_x)
            First view.
        Y : array-like of shape (n_y, d_y)
            Second view.
        sample_weight : array-like of shape (n_x,), default=None
            Weights of the rows of X as queries; a query from Y has the weight of its first partner, and what is one by being
            equal the sum of its weights.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            As in `fit`. Without it, rows that are NaN throughout in X or in Y are left out; unpaired rows that are
            present in both views would be scored as pairs.
        y : array-like of shape (n_y, d_y), default=None
            Another name of Y, which some of scikit-learn's tools use.

        Returns
        -------
        score : float
            Mean of both directions, between 0 and 1. Ties count against the model.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If there is no pair, a view is not finite, or the weights do not fit.

        Warns
        -----
        UserWarning
            If the table of `fit`, with its unpaired rows, seems to be scored without its mask.

        Examples
        --------
        >>> from skalign import CCATeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
        >>> aligner.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
        True
        """
        check_is_fitted(self)
        Y = self._required(y if Y is None else Y)
        weights = None if sample_weight is None else np.asarray(to_numpy(sample_weight))
        if weights is not None and (weights.dtype == bool or weights.shape[1:] == (2,)):
            raise ValueError(
                f"`sample_weight`, the third argument of `score`, must hold a weight a row of X, but it holds {weights.dtype} "
                f"of shape {weights.shape}. If these are the pairs, write score(X, Y, paired_idx=...)."
            )
        X, Y, pairs, *_ = read_pairs(X, Y, to_numpy(paired_idx), whole=sample_weight is not None)
        views = judge_pairs(self._check_x(X, allow_nan=True), self._check_y(Y, allow_nan=True), pairs)
        if paired_idx is None and len(views.pairs) == self._table_size_ > self.n_pairs_:
            warnings.warn(
                f"`score` takes all {self._table_size_} rows for pairs, but of a table with as many rows only {self.n_pairs_} "
                "were paired in `fit`. If it is the same, pass `paired_idx` here, too; through a pipeline or search that needs "
                "sklearn.set_config(enable_metadata_routing=True).",
                UserWarning,
                stacklevel=2,
            )
        x_rows, x_of = distinct_partners(views.X, views.pairs[:, 0])
        y_rows, y_of = distinct_partners(views.Y, views.pairs[:, 1])
        F = self._compared(self._embed_x(views.X[x_rows]))
        G = self._compared(self._embed_y(views.Y[y_rows]))
        matches = np.column_stack([x_of, y_of])
        weights = _query_weights(sample_weight, views, matches)
        return float(recalls(F, G, matches, ks=(1,), weights=weights).mean())

    def save(self, path):
        """Write the fitted aligner into one file, which :func:`skalign.load` reads: arrays as safetensors, the rest as JSON.

        The file is written beside `path`, read back, and only then takes its name: a save that fails or is killed leaves
        what was there whole. Killed, it may leave ``<name>.<8 hexadecimal digits>.tmp``, which may be deleted. All that
        ``transform`` needs is kept, and parameters and fitted attributes, except the state of a RandomState instance
        (None instead), callbacks and requests of metadata routing.

        Parameters
        ----------
        path : str or path-like
            File to write, by custom with the ending ``.safetensors``. An existing one is replaced.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If a parameter or attribute is neither number, string, numeric array, nor an estimator of the kinds a file may
            name, such as a `head` factory or a transformer of your own, or the aligner could not be loaded again. Nothing
            is replaced then. Use joblib or skops for what a file cannot hold.
        OSError
            If the folder is not there or cannot be written to.
        ImportError
            If safetensors is not installed.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> import skalign
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> aligner = skalign.ProcrustesTeacher().fit(data.X, data.Y, data.paired_idx)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     aligner.save(Path(folder) / "aligner.safetensors")
        ...     skalign.load(Path(folder) / "aligner.safetensors").n_components_
        20
        """
        check_is_fitted(self)
        save(self, path)

    def to_torch(self):
        """The maps of both views as torch modules, for training on, or for use without scikit-learn.

        ``modules = aligner.to_torch()`` has ``modules.x(X)`` and ``modules.y(Y)``, which map float32 tensors (n, d_x) and
        (m, d_y) into the shared space as `transform` and `transform_y` do, preprocessing included, up to rounding.
        They are differentiable, and hold copies.

        Returns
        -------
        modules : torch.nn.ModuleDict
            With the keys "x" and "y"; in float32, on the CPU and in evaluation mode. What was learned is a parameter;
            means, scales and anchors are buffers.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        NotImplementedError
            If a step has no layers: SUE, BridgeFlow, and transformers other than StandardScaler, Normalizer("l2"), PCA and
            pipelines of them.

        Examples
        --------
        >>> import torch
        >>> from skalign import CCATeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> modules = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx).to_torch()
        >>> images = torch.tensor(data.X_test, dtype=torch.float32)
        >>> modules.x(images).shape
        torch.Size([100, 20])
        """
        check_is_fitted(self)
        from torch import nn  # loaded for those who ask for it

        return nn.ModuleDict({view: nn.Sequential(*self._layers(view)) for view in ("x", "y")}).eval()

    def to_onnx(self, path, view="x"):
        """Write the map of one view as an ONNX graph, which runs without Python: `transform` or `transform_y`.

        Its input, "X" or "Y", is float32 (n, d) for any n; its output "embedding" (n, k). The file takes its
        name once it is whole.

        Parameters
        ----------
        path : str or path-like
            File to write. An existing one is replaced.
        view : {"x", "y"}, default="x"
            View whose map is written.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        NotImplementedError
            As in `to_torch`.
        ValueError
            If `view` is neither "x" nor "y".
        OSError
            If the folder is not there or cannot be written to.
        ImportError
            If onnx or onnxscript is not installed.

        Examples
        --------
        >>> import tempfile
        >>> from pathlib import Path
        >>> from skalign import ProcrustesTeacher
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(random_state=0)
        >>> aligner = ProcrustesTeacher().fit(data.X, data.Y, data.paired_idx)
        >>> import onnxruntime
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     aligner.to_onnx(Path(folder) / "images.onnx", view="x")
        ...     session = onnxruntime.InferenceSession(Path(folder) / "images.onnx")
        >>> (F,) = session.run(None, {"X": data.X_test.astype("float32")})
        >>> F.shape
        (100, 20)
        """
        if view not in ("x", "y"):
            raise ValueError(f"`view` must be 'x' or 'y', but it is {view!r}. Write one graph for each view you need.")
        module = self.to_torch()[view]
        from ._export import write_onnx

        write_onnx(module, self.n_features_in_ if view == "x" else self.n_features_in_y_, view.upper(), path)

    def _layers(self, view):
        """The torch layers of `_embed_x` or `_embed_y`, in their order."""
        raise NotImplementedError(
            f"{type(self).__name__} has no torch layers: new rows are compared with those of `fit`. Use another aligner."
        )

    def _preparing_layers(self, view):
        """The torch layers of `_prepared_x` or `_prepared_y`."""
        from ._core.layers import Standardize, UnitRows

        return [*([UnitRows()] if self.normalize else []), Standardize(getattr(self, f"{view}_mean_"))]

    def _judge(self, X, Y, paired_idx, X_unpaired, Y_unpaired, *, required=True, whole=False, check_pools=True):
        """Check everything `fit` was given; returns `PairedViews` in float32 or float64, with a pair if `required`.

        Of views out of core with pairs by number the unpaired rows become a pool, unless X and Y are wanted `whole`. Pools
        that are out of core are read for it once, unless ``check_pools=False``, if somebody else will read them.
        """
        refuse_wrong_folds()
        paired_idx = to_numpy(paired_idx)
        X, Y, paired_idx, X_rest, Y_rest = read_pairs(X, self._required(Y), paired_idx, whole=whole)
        with _telling_of_text("X"):
            X = validate_data(self, to_numpy(X), dtype=floats_of(X), order="C", ensure_all_finite=False)
        Y = self._check_y(Y, allow_nan=True, reset=True)
        X_pool, Y_pool = self._check_pools(X_unpaired, Y_unpaired, check_pools, X_rest, Y_rest)
        views = judge_pairs(X, Y, paired_idx, X_pool, Y_pool, required=required)
        self.n_pairs_ = len(views.pairs)
        self._table_size_ = 0  # rows of a table that holds more than pairs
        if len(X) == len(Y) and len(views.x_free) and len(views.y_free):
            self._table_size_ = np.count_nonzero(~(missing_rows(X) | missing_rows(Y)))
        return views

    def _judge_further(self, X, Y, paired_idx, X_unpaired, Y_unpaired, *, check_pools=True):
        """`_judge` for a call of `partial_fit`; once fitted, views must be as in the first call, and may be left out."""
        n_views = sum(view is not None for view in (X, Y))
        if not hasattr(self, "n_components_"):
            if n_views < 2:
                raise ValueError(
                    "The first call of `partial_fit` must bring pairs, for the teacher learns from them, but X or Y is None. "
                    "Pass partial_fit(X, Y, paired_idx); later calls may bring unpaired rows alone."
                )
            return self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired, check_pools=check_pools)
        if n_views == 1 or (n_views == 0 and paired_idx is not None):
            raise ValueError(
                "X and Y come together, with the pairs between them, but one is None. Pass rows that have no partner as "
                "`X_unpaired` or `Y_unpaired`."
            )
        rests = ()
        if n_views == 0:
            if X_unpaired is None and Y_unpaired is None:
                raise ValueError("`partial_fit` needs rows, but got none. Pass X and Y, `X_unpaired` or `Y_unpaired`.")
            no_rows = (np.empty((0, width), dtype=np.float32) for width in (self.n_features_in_, self.n_features_in_y_))
            views = PairedViews(*no_rows, pairs=np.empty((0, 2), dtype=np.int64))
        else:
            X, Y, paired_idx, *rests = read_pairs(X, Y, to_numpy(paired_idx))
            X, Y = self._check_x(X, allow_nan=True), self._check_y(Y, allow_nan=True)
            views = judge_pairs(X, Y, paired_idx, required=False)
        X_pool, Y_pool = self._check_pools(X_unpaired, Y_unpaired, check_pools, *rests)
        return replace(views, X_pool=X_pool, Y_pool=Y_pool)

    def _check_pools(self, X_unpaired, Y_unpaired, check_pools, X_rest=None, Y_rest=None):
        """The pools after the `Rows` that a view on disk leaves, if there are any of either."""
        X_pool = check_pool(X_unpaired, "X", self.n_features_in_, getattr(self, "feature_names_in_", None))
        Y_pool = check_pool(Y_unpaired, "Y", self.n_features_in_y_, getattr(self, "feature_names_in_y_", None))
        X_pool = X_pool if X_rest is None else stack(X_rest, X_pool)
        Y_pool = Y_pool if Y_rest is None else stack(Y_rest, Y_pool)
        for pool in (X_pool, Y_pool):
            if isinstance(pool, Rows) and check_pools:
                pool.check()
        if self._reads_pools:
            X_pool, Y_pool = (np.asarray(pool) if isinstance(pool, Rows) else pool for pool in (X_pool, Y_pool))
        return X_pool, Y_pool

    def _mapped(self, given, name, out):
        """Embedded rows of X or Y, in `out` if that is given; block by block if they are not in memory."""
        check, embed = (self._check_x, self._embed_x) if name == "X" else (self._check_y, self._embed_y)
        rows = stored_rows(given, name)
        embedded = embed(check(given if rows is None else rows[:1]))
        if rows is None and out is None:
            return like_input(embedded, given)
        shape = (len(embedded if rows is None else rows), embedded.shape[1])
        if out is None:
            out = np.empty(shape, dtype=embedded.dtype)
        elif not hasattr(out, "shape"):
            raise ValueError(
                f"`out` must be an array to write into, but it is a {type(out).__name__}. For a file pass "
                f"np.lib.format.open_memmap(path, 'w+', shape={shape})."
            )
        elif tuple(out.shape) != shape:
            raise ValueError(
                f"`out` must have a row for each row of {name} and `n_components_` columns, {shape}, but its shape is "
                f"{tuple(out.shape)}. Make it anew, on disk as with np.lib.format.open_memmap(path, 'w+', shape={shape})."
            )
        elif np.dtype(out.dtype).kind != "f":
            raise ValueError(f"`out` must hold floating-point numbers, but it holds {out.dtype}. Make it of float32.")
        start = 0
        for block in [embedded] if rows is None else (embed(check(block)) for block in rows.blocks()):
            out[start : start + len(block)] = block
            start += len(block)
        return out

    def _compared(self, Z):
        """Embedded rows as `score` takes cosines of them."""
        return Z

    def _required(self, Y):
        if Y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. Pass the second view as Y."
            )
        return Y

    def _fit_means(self, views):
        """Mean of each prepared view, over its pairs or over all its rows (`center`)."""
        x_rows, y_rows = (views.X_pairs, views.Y_pairs) if self.center == "pairs" else (views.X_all, views.Y_all)
        self.x_mean_, self.y_mean_ = self._mean(x_rows), self._mean(y_rows)

    def _mean(self, rows):
        if isinstance(rows, Rows):
            return sum(self._scaled(block).sum(axis=0, dtype=np.float64) for block in rows.blocks()) / len(rows)
        return self._scaled(rows).mean(axis=0, dtype=np.float64)

    def _scaled(self, rows):
        return normalize_rows(rows) if self.normalize else rows

    def _prepared_x(self, X):
        """Rows of X as the maps take them: scaled to unit length if asked for, then centred. Same dtype as X."""
        return self._scaled(X) - self.x_mean_.astype(X.dtype)

    def _prepared_y(self, Y):
        """Rows of Y as the maps take them."""
        return self._scaled(Y) - self.y_mean_.astype(Y.dtype)

    def _check_x(self, X, allow_nan=False):
        width = getattr(X, "shape", (0, 0))[1:]
        if width == (self.n_features_in_y_,) != (self.n_features_in_,):
            raise ValueError(
                f"X has {width[0]} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input. "
                "The second view has as many: its rows go through `transform_y`."
            )
        with _telling_of_text("X"):
            X = validate_data(self, to_numpy(X), reset=False, dtype=floats_of(X), order="C", ensure_all_finite=False)
        return X if allow_nan else _refuse_nonfinite(X, "X")

    def _check_y(self, Y, allow_nan=False, reset=False):
        names = _get_feature_names(Y)
        checks = {"ensure_2d": False, "ensure_all_finite": False, "input_name": "Y", "estimator": self}
        with _telling_of_text("Y"):
            Y = check_array(to_numpy(Y), dtype=floats_of(Y), order="C", **checks)
        if Y.ndim == 1 and not reset and self.n_features_in_y_ > 1:
            raise ValueError(
                f"Expected 2D array for Y, got 1D array of {len(Y)} numbers instead. Pass a single row as Y.reshape(1, -1)."
            )
        Y = Y.reshape(-1, 1) if Y.ndim == 1 else Y
        if reset:
            self.n_features_in_y_ = Y.shape[1]
            self.__dict__.pop("feature_names_in_y_", None)
            if names is not None:
                self.feature_names_in_y_ = names
            return Y
        if Y.shape[1] != self.n_features_in_y_:
            raise ValueError(
                f"Y has {Y.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_y_} features "
                "as the second view. Pass the view that was given as Y in `fit`."
            )
        fitted = getattr(self, "feature_names_in_y_", names)
        if names is not None and list(names) != list(fitted):
            raise ValueError(
                f"The columns of Y must be those of `fit` in their order, {list(fitted)[:5]} ..., but they are "
                f"{list(names)[:5]} .... Reorder them: Y[aligner.feature_names_in_y_]."
            )
        return Y if allow_nan else _refuse_nonfinite(Y, "Y")

    @property
    def _n_features_out(self):
        return self.n_components_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


@contextlib.contextmanager
def _telling_of_text(name):
    """Say of text more than that it is no number."""
    try:
        yield
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"{name} must hold numbers, one row of an embedding a sample, but it holds text ({error}). Embed it with an "
            "encoder first; drop columns of names."
        ) from error


def _refuse_nonfinite(view, name):
    """Rows that are to be embedded must be there; `fit` and `score` alone know what a missing row means."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(view.sum(dtype=np.float64)):
            return view
    bad = ~np.isfinite(view).all(axis=1)
    if bad.any():
        kind = "NaN" if np.isnan(view[np.argmax(bad)]).any() else "infinity"
        raise ValueError(
            f"Input {name} contains {kind} in {np.count_nonzero(bad)} of {len(view)} rows, the first being row "
            f"{np.argmax(bad)}. A missing row cannot be embedded; pass the rows that are present, and finite."
        )
    return view


def check_pool(pool, name, n_features, feature_names):
    """A pool of unpaired rows as an array, as `Rows` if it is out of core, or None."""
    if pool is None:
        return None
    stored = stored_rows(pool, f"{name}_unpaired")
    pool = pool if stored is None else stored
    names = _get_feature_names(pool)
    if names is not None and feature_names is not None and list(names) != list(feature_names):
        raise ValueError(
            f"The columns of `{name}_unpaired` must be those of {name} in their order, {list(feature_names)[:5]} ..., but "
            f"they are {list(names)[:5]} .... Reorder them: {name}_unpaired[{name}.columns]."
        )
    shape = getattr(pool, "shape", None) or (len(pool),)
    if shape[0] == 0:
        raise ValueError(f"`{name}_unpaired` has 0 rows. Pass at least one unpaired row, or leave it out (None).")
    if stored is None:
        pool = check_array(to_numpy(pool), dtype=floats_of(pool), order="C", input_name=f"{name}_unpaired")
    if pool.shape[1] != n_features:
        raise ValueError(
            f"`{name}_unpaired` must have the columns of {name}, {n_features}, but it has {pool.shape[1]}. "
            f"Embed the pool with the encoder that made {name}."
        )
    return pool


def check_embedded(F, G, paired_idx):
    """Both views as finite arrays in one space, and the pairs among their rows; for whatever is given embeddings."""
    F, G = _check_embedded_view(F, "F"), _check_embedded_view(G, "G")
    if paired_idx is None and len(F) == len(G):
        _warn_of_copies(F, G)
    if F.shape[1] != G.shape[1]:
        raise ValueError(
            f"F and G must live in one space, but F has {F.shape[1]} columns and G has {G.shape[1]}. "
            "Embed both views with a fitted aligner first: F, G = aligner.transform(X, Y)."
        )
    return F, G, check_pairs(to_numpy(paired_idx), len(F), len(G))


def _warn_of_copies(F, G):
    """Where row i is to find row i, copies of it are rivals."""
    for rows, name in ((F, "F"), (G, "G")):
        n_copies = len(rows) - len(distinct_rows(rows)[0])
        if n_copies:
            warnings.warn(
                f"{n_copies} of the {len(rows)} rows of {name} are copies of others. With row i paired with row i they are "
                "rivals of one another, and ties count against the model. List each row once, and let `paired_idx`, integers "
                "(p, 2), name all its matches.",
                UserWarning,
                stacklevel=4,
            )


def _check_embedded_view(view, name):
    view = check_array(to_numpy(view), dtype=FLOATS, ensure_all_finite=False, input_name=name)
    finite = np.isfinite(view).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name} must be finite, but {np.count_nonzero(~finite)} of its {len(view)} rows hold NaN or infinity, "
            f"the first being row {np.argmin(finite)}. Impute these rows, or drop them and renumber `paired_idx`."
        )
    return view


def _query_weights(sample_weight, views, matches):
    """Weights of the different paired rows of X and of Y as queries: of each the sum over the rows it stands for."""
    weight = np.ones(len(views.X))
    if sample_weight is not None:
        weight = check_array(to_numpy(sample_weight), ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weight.shape != (len(views.X),) or weight.min() < 0:
            raise ValueError(
                f"`sample_weight` must hold one weight >= 0 a row of X, shape ({len(views.X)},), but its shape is "
                f"{weight.shape} and its smallest entry {weight.min():g}. Use 0 to leave a query out."
            )
    weights = []
    for rows, of in zip(views.pairs.T, matches.T, strict=True):
        first = np.unique(rows, return_index=True)[1]  # a pair of each row
        weights.append(np.bincount(of[first], weight[views.pairs[first, 0]]))
    if 0 in (weights[0].sum(), weights[1].sum()):
        raise ValueError(
            "`sample_weight` must leave a query in both directions, but every query of one view has weight zero. "
            "Give a paired row of X a positive weight."
        )
    return weights


def warn_zero_rows(views, depth=0):
    """Tell of paired rows that are zero throughout; to be called by what takes the pairs last, so that it is said once.

    `depth` counts the functions between it and `fit`.
    """
    for rows, name in ((views.X_pairs, "X"), (views.Y_pairs, "Y")):
        n_zero = np.count_nonzero(~rows.any(axis=1))
        if n_zero:
            warnings.warn(
                f"{n_zero} of the {len(rows)} paired rows of {name} are zero throughout; they have no direction, and stand "
                "at the origin before centring. Drop these pairs, or check the encoder.",
                UserWarning,
                stacklevel=5 + depth,  # past fit and its two decorators
            )
