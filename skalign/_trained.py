"""Aligners whose heads are trained: what they share, and the contrastive teacher. Knows torch through the core."""

import contextlib
import copy
import functools
import warnings
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._arrays import resolve_device, resolve_precision, to_tensor
from ._base import BaseAligner, all_or_nothing, warn_zero_rows
from ._callbacks import CallbackSupportMixin, Steps
from ._checkpoints import CHECKPOINT_CONSTRAINTS, Checkpoint, SameTeacher
from ._core.distributed import ALONE, alone, current
from ._core.heads import HEADS, build_head, draw_back, n_weights, start_from
from ._core.layers import UnitRows
from ._core.objectives import PairsAndTeacher
from ._core.reading import StreamedRows
from ._core.rows import normalize_rows
from ._core.training import OPTIMIZERS, Share, TrainingViews, embed, train_heads, undisturbed
from ._pairs import PairedViews, group_pairs
from ._sources import JoinedRows, Rows
from ._stream import Continued, Stream, even
from ._together import common_random_state, refuse_unlike

_MAX_DIMENSION = 1024  # of the shared space by default, as in the paper
_FEW = 100  # pairs by which a teacher is known again
LOOK_EVERY = 10  # steps between two looks at the held-out pairs
_DISTRACTORS = (
    2000  # unpaired rows of each view among which held-out pairs must be found; without, few pairs tell little
)


TRAINING_CONSTRAINTS = {
    "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "warmup": [Interval(Real, 0, 1, closed="left")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "early_stopping": ["boolean"],
    "device": "no_validation",  # resolve_device judges it
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}


class TrainedAligner(CallbackSupportMixin, BaseAligner):
    """Base class of aligners with trained heads; a subclass's `fit` calls `_train`."""

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "head": [StrOptions(set(HEADS)), callable],
        "normalize": ["boolean"],
        "center": [StrOptions({"pairs", "all"})],
        "warm_start": ["boolean"],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        **TRAINING_CONSTRAINTS,
        **CHECKPOINT_CONSTRAINTS,
    }

    def _train(
        self,
        views,
        objective,
        *,
        teacher=None,
        teacher_weight=0.0,
        with_unpaired=False,
        batch_size_unpaired=(0, 0),
        in_shares=False,
    ):
        """Train both heads and store them as NumPy arrays.

        ``objective(data)`` makes the objective for `TrainingViews`. ``teacher(views, pairs, random_state)`` fits the teacher,
        if there is one, on the training pairs and returns it; heads that start there go back by `teacher_weight` of their way
        in the end. The data hold the unpaired rows only `with_unpaired`; if `in_shares`, each process of the group that trains
        has some of them. Callbacks see the steps, those of `_steps` if somebody lent us some, in the first process.
        """
        group = current()
        lent = vars(self).pop("_steps", None)
        steps = lent or (Steps.of(self, views, self.max_iter) if group.is_first else None)
        is_watched = group.first(steps is not None)
        device = resolve_device(self.device)
        names = "x_head_", "y_head_", "x_mean_", "y_mean_"
        former = [getattr(self, name) for name in names] if self.warm_start and hasattr(self, "x_head_") else None
        refuse_unlike(group, self, views, device.type, former)
        checkpoint = Checkpoint.of(self, views, device, former, group=group)
        random_state = common_random_state(group, self.random_state if checkpoint is None else checkpoint.random_state)
        rng = check_random_state(random_state)
        pairs, held_out = hold_out(views.pairs, self.validation_fraction if self.early_stopping else None, rng)
        *seeds, seed_batches = rng.randint(2**31 - 1, size=3).tolist()
        if former is None:  # else the former heads go with the former means
            self._fit_means(views)
            self.x_mean_, self.y_mean_ = group.first((self.x_mean_, self.y_mean_))
        self.head_ = self.head
        if teacher is None:
            warn_zero_rows(views, depth=1)
        fitted = None if teacher is None else teacher(views, pairs, random_state)
        heads, starts = self._first_heads(fitted, former, seeds)
        holders = group if in_shares else ALONE
        data = self._training_views(views, pairs, held_out, fitted, device, with_unpaired, batch_size_unpaired, holders)

        def attributes(record):
            x_head, y_head = _drawn_back(record.kept, starts, teacher_weight)
            return {
                "x_head_": to_arrays(x_head),
                "y_head_": to_arrays(y_head),
                "loss_curve_": copy.deepcopy(record.curves),
                "n_iter_": record.n_iter,
                "best_iter_": record.best_iter,
            }

        def announce():
            if steps:
                with alone():
                    steps.begin()

        def report(record):
            show(record)
            with alone():
                is_enough = bool(steps and steps.end(record, lambda: attributes(record)))
            return group.first(is_enough) if is_watched else is_enough

        progress = progress_bar(self.verbose if group.is_first else 0, type(self).__name__, self.max_iter)
        with progress as show, self._undisturbed(device, seed_batches) as parts:
            if checkpoint is not None and fitted is not None:
                few = pairs[:_FEW]
                embeddings = fitted.transform(views.X[few[:, 0]]), fitted.transform_y(views.Y[few[:, 1]])
                parts["teacher"] = SameTeacher(*embeddings)
            record = train_heads(
                *(head.to(device) for head in heads),
                data,
                objective(data),
                **self._training_settings(),
                batch_size_unpaired=batch_size_unpaired,
                warmup=self.warmup,
                max_iter=self.max_iter,
                seed=seed_batches,
                announce=announce,
                report=report,
                checkpoint=checkpoint,
                parts=parts,
                group=group,
            )
        vars(self).update(group.first(attributes(record)))
        vars(self).pop("_stream", None)  # of calls of `partial_fit` before
        if steps and not lent:
            steps.close()
        warn_of_ending(record, self.max_iter)

    def _train_further(
        self, given, objective, *, teacher=None, teacher_weight=0.0, with_unpaired=False, batch_size_unpaired=(0, 0)
    ):
        """Go once over what a call of `partial_fit` is given, from where the call before has left the heads.

        The arguments are those of `_train`. What is fitted already stays, the means among it; `_stream` holds the rest.
        """
        device = resolve_device(self.device)
        stream = getattr(self, "_stream", None) or Stream.begin(given, self.random_state)
        rng = stream.rng()
        *seeds, seed_batches = rng.integers(2**31 - 1, size=3).tolist()
        X, Y = given.X_unpaired, given.Y_unpaired
        stream = stream.with_pairs(given, rng)
        views = PairedViews(stream.X, stream.Y, stream.pairs, X if len(X) else None, Y if len(Y) else None)
        fitted = None if teacher is None else teacher(views, stream.pairs, self.random_state)
        if not hasattr(self, "x_head_"):
            if teacher is None:
                warn_zero_rows(views, depth=1)
            self._fit_means(views)
            self.head_ = self.head
            heads, starts = self._first_heads(fitted, None, seeds)
            stream = stream._replace(starts=starts and [to_arrays(head.state_dict()) for head in starts])
        else:
            heads = self._heads(stream.heads or (self.x_head_, self.y_head_))
            starts = stream.starts and self._heads(stream.starts)

        n_steps, sizes = -(-len(given.pairs) // self.batch_size), batch_size_unpaired
        if with_unpaired:
            n_steps = max(n_steps, -(-len(X) // sizes[0]), -(-len(Y) // sizes[1]))
            # what a call lacks of a batch is filled up: few rows alone tell nothing of the plan
            X_pool, Y_pool = stream.x_sample.fill(X, sizes[0], rng), stream.y_sample.fill(Y, sizes[1], rng)
            views = replace(views, X_pool=X_pool, Y_pool=Y_pool)
            sizes = even(len(X_pool), sizes[0]), even(len(Y_pool), sizes[1])
        data = self._training_views(views, stream.pairs, None, fitted, device, with_unpaired, sizes)
        continued = Continued(stream)
        with progress_bar(self.verbose, type(self).__name__, n_steps) as show, self._undisturbed(device, seed_batches):
            record = train_heads(
                *(head.to(device) for head in heads),
                data,
                objective(data),
                **self._training_settings(),
                batch_size_unpaired=sizes,
                warmup=None,
                max_iter=n_steps,
                seed=seed_batches,
                announce=lambda: None,
                report=show,
                checkpoint=continued,
            )
        refuse_ending(record)
        self._stream = stream.with_unpaired(X, Y, rng)._replace(
            heads=[to_arrays(state) for state in record.kept],
            optimizer=continued.optimizer,
            objective=continued.objective,
        )
        x_head, y_head = _drawn_back(record.kept, starts, teacher_weight)
        self.x_head_, self.y_head_ = to_arrays(x_head), to_arrays(y_head)
        curves = getattr(self, "loss_curve_", {})
        self.loss_curve_ = curves | {name: curves.get(name, []) + curve for name, curve in record.curves.items()}
        self.n_iter_ = getattr(self, "n_iter_", 0) + record.n_iter
        self.best_iter_, self.n_pairs_ = None, len(stream.pairs)

    def _first_heads(self, teacher, former, seeds):
        """Both heads as they start, and copies of them if that is at the teacher's maps, else None."""
        at_teacher = former is None and teacher is not None and self._starts_from(teacher)
        if former is None or self.n_components is not None:  # else that of the former heads
            limit = min(self.n_features_in_, self.n_features_in_y_, _MAX_DIMENSION)
            if at_teacher:
                most = getattr(self, "_most_components", None)  # lent by an estimator around this one
                limit = teacher.n_components_ if most is None else min(teacher.n_components_, most)
            self.n_components_ = self.n_components or limit
        head_x = build_head(self.head_, self.n_features_in_, self.n_components_, seeds[0])
        head_y = build_head(self.head_, self.n_features_in_y_, self.n_components_, seeds[1])
        if at_teacher:
            self._start(head_x, teacher, "x")
            self._start(head_y, teacher, "y")
            return (head_x, head_y), copy.deepcopy((head_x, head_y))
        if former is not None:
            _go_on_from(head_x, former[0], "X")
            _go_on_from(head_y, former[1], "Y")
        return (head_x, head_y), None

    def _training_views(
        self, views, pairs, held_out, teacher, device, with_unpaired, batch_size_unpaired, holders=ALONE
    ):
        """What the heads are trained on, as tensors or read batch by batch; of unpaired rows, the holders have a share each."""

        def tensor_x(rows):
            return to_tensor(self._prepared_x(rows), device, torch.float32)

        def tensor_y(rows):
            return to_tensor(self._prepared_y(rows), device, torch.float32)

        X, Y = views.X_unpaired, views.Y_unpaired
        held = None if held_out is None else held_out_rows(views, held_out, X, Y, tensor_x, tensor_y)
        unpaired = {}
        if with_unpaired:
            if teacher is not None:
                # a view without unpaired rows lends its paired ones, so that the other view's still count
                X = X if len(X) else views.X[np.unique(pairs[:, 0])]
                Y = Y if len(Y) else views.Y[np.unique(pairs[:, 1])]
            # rows of which every step takes all may as well be in memory
            pools = zip((X, Y), batch_size_unpaired, strict=True)
            X, Y = (rows[:] if len(rows) <= size else rows for rows, size in pools)
        if with_unpaired and (isinstance(X, Rows) or isinstance(Y, Rows)):
            streamed = functools.partial(self._streamed, teacher=teacher, device=device, holders=holders)
            unpaired = {"X": streamed(X, "x"), "Y": streamed(Y, "y")}
        elif with_unpaired:
            shares = tuple(Share(holders.share(len(rows)), len(rows)) for rows in (X, Y))
            X, Y = X[shares[0].own], Y[shares[1].own]
            unpaired = {"X": tensor_x(X), "Y": tensor_y(Y), "shares": shares}
            if teacher is not None:
                unpaired |= {
                    "F_teacher": to_tensor(_unit_rows(teacher.transform, X), device, torch.float32),
                    "G_teacher": to_tensor(_unit_rows(teacher.transform_y, Y), device, torch.float32),
                }
        return TrainingViews(
            A=tensor_x(views.X[pairs[:, 0]]),
            B=tensor_y(views.Y[pairs[:, 1]]),
            pairs=to_tensor(pairs, device),
            held_out=held,
            **unpaired,
        )

    def _training_settings(self):
        """Settings of the steps that are parameters, and the same in every training."""
        return {
            "batch_size": self.batch_size,
            "dtype": resolve_precision(self.precision, resolve_device(self.device)),
            "optimizer": OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "n_iter_no_change": self.n_iter_no_change,
            "validation_interval": LOOK_EVERY,
        }

    def _undisturbed(self, device, seed):
        """The context to train in; what a user gives may draw from torch's random numbers, as dropout does."""
        return undisturbed(device, seed if callable(self.head_) or callable(self.optimizer) else None)

    def _streamed(self, rows, view, teacher, device, holders):
        """Unpaired rows of a view that are prepared, and embedded by the teacher, batch by batch, by those who hold them."""
        rows = rows if isinstance(rows, Rows) else JoinedRows([rows])
        return StreamedRows(
            rows,
            prepare=torch.nn.Sequential(*self._preparing_layers(view)).to(device),
            teacher=None if teacher is None else _map_of(teacher, view, device),
            own=holders.share(len(rows), rows.read_together),
        )

    def _starts_from(self, teacher):
        """Whether the heads can start as the teacher: both linear, on rows scaled alike."""
        if self.init == "random":
            return False
        linear = hasattr(teacher, "x_coef_") and hasattr(teacher, "x_mean_")
        possible = self.head_ == "linear" and linear and getattr(teacher, "normalize", None) == self.normalize
        if self.init == "teacher" and not possible:
            raise ValueError(
                "init='teacher' needs linear heads and a linear teacher with the same `normalize`, but the head is "
                f"{self.head_!r} and the teacher {type(teacher).__name__}. Use init='auto' or 'random'."
            )
        return possible

    def _start(self, head, teacher, view):
        """Give a linear head the teacher's map of one view; the means of the two may differ (`center`)."""
        k = min(teacher.n_components_, self.n_components_)
        coef = getattr(teacher, f"{view}_coef_")[:, :k]
        moved = getattr(self, f"{view}_mean_") - getattr(teacher, f"{view}_mean_")
        start_from(head, coef, moved @ coef + getattr(teacher, f"{view}_intercept_", np.zeros(k))[:k])

    def _embed_x(self, X):
        return self._embed(self.x_head_, self._prepared_x(X))

    def _embed_y(self, Y):
        return self._embed(self.y_head_, self._prepared_y(Y))

    def _embed(self, state, prepared):
        device = resolve_device(self.device)
        head = self._head(state, prepared.shape[1])
        rows = to_tensor(prepared, dtype=torch.float32 if device.type == "mps" else None)
        return embed(head.to(device=device, dtype=rows.dtype), rows, device).numpy().astype(prepared.dtype, copy=False)

    def _heads(self, states):
        """Both heads with these weights."""
        x_state, y_state = states
        return self._head(x_state, self.n_features_in_), self._head(y_state, self.n_features_in_y_)

    def _head(self, state, d_in):
        n_given = sum(array.size for array in state.values())
        if not callable(self.head_) and n_given != n_weights(self.head_, d_in, self.n_components_):  # of a forged file
            raise ValueError(f"a {self.head_} head of {d_in} by {self.n_components_} does not hold {n_given} numbers")
        head = build_head(self.head_, d_in, self.n_components_, seed=0)
        load_arrays(head, state)
        return head

    def _layers(self, view):
        head = self._head(getattr(self, f"{view}_head_"), len(getattr(self, f"{view}_mean_")))
        return [*self._preparing_layers(view), head, UnitRows()]

    @property
    def x_coef_(self):
        """Weights of a linear head of X, shape (d_x, k): ``z = (x - x_mean_) @ x_coef_ + x_intercept_``."""
        return self._linear("x_head_", "weight").T

    @property
    def y_coef_(self):
        """Weights of a linear head of Y, shape (d_y, k)."""
        return self._linear("y_head_", "weight").T

    @property
    def x_intercept_(self):
        """Bias of a linear head of X, shape (k,)."""
        return self._linear("x_head_", "bias")

    @property
    def y_intercept_(self):
        """Bias of a linear head of Y, shape (k,)."""
        return self._linear("y_head_", "bias")

    def _linear(self, attribute, name):
        if getattr(self, "head_", None) != "linear":
            raise AttributeError(
                f"Only a fitted linear head has coefficients; `{attribute}` holds the weights of others."
            )
        return getattr(self, attribute)[name]


class ContrastiveTeacher(TrainedAligner):
    r"""Linear heads trained with the SigLIP loss on the pairs (supervised SAIL with linear heads).

    With unit rows F, G of the heads' outputs and :math:`z_{ij} = 1` for a known match, -1 otherwise,

    .. math:: \min -\frac{1}{n} \sum_{ij} \log \sigma\bigl(z_{ij} (s\, F_i \cdot G_j + b)\bigr),

    with learned scale s (from 20) and bias b (from -10) [1]_ (section 6), [2]_.

    Parameters
    ----------
    n_components : int, default=None
        Dimension of the shared space; None is ``min(d_x, d_y, 1024)``.
    head : {"linear", "layernorm", "mlp"} or callable, default="linear"
        See :class:`SOTAlignTransformer`.
    normalize : bool, default=True
        Scale each row to unit length first, here and in `transform`.
    center : {"pairs", "all"}, default="pairs"
        Rows whose mean is subtracted: the pairs, or every row given to `fit`.
    optimizer : {"adamw", "lion"} or class, default="adamw"
        A class is called as ``optimizer(params, lr=..., weight_decay=...)``.
    learning_rate : float, default=1e-3
        Highest learning rate, after warm-up.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    warmup : float, default=0.1
        Fraction of the steps with rising learning rate; a cosine down to 0 follows.
    max_iter : int, default=100
        Training steps. With few pairs, more overfit.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer. Time and memory grow with its square.
    early_stopping : bool, default=False
        Hold pairs out, stop when their recall no longer rises, keep the best state; see :class:`SOTAlignTransformer`.
    validation_fraction : float, default=0.1
        Share of the pairs held out if `early_stopping`.
    n_iter_no_change : int, default=100
        Patience of `early_stopping`, in steps.
    warm_start : bool, default=False
        Start from the heads of the `fit` before, if there is one; see :class:`SOTAlignTransformer`.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`SOTAlignTransformer`.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type in which the heads compute while they are trained; see :class:`SOTAlignTransformer`.
    random_state : int, RandomState instance or None, default=None
        Draws weights, batches and held-out pairs.
    verbose : bool or int, default=0
        Show a progress bar with loss, validation recall and time left (needs tqdm).

    Attributes
    ----------
    x_head_, y_head_ : dict of str to ndarray
        Weights of the heads.
    head_ : str or callable
        Their kind, `head` as it was in `fit`.
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the heads as matrices, if they are linear.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases, if they are linear.
    loss_curve_ : dict of str to list of float
        "loss" and "siglip" of each step (the same here), "divergence" (0); "validation" if pairs were held out.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling.
    n_iter_ : int
        Steps taken.
    best_iter_ : int or None
        Step whose state was kept, with `early_stopping`; 0 is the start.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    Notes
    -----
    Callbacks of scikit-learn are taken as by :class:`SOTAlignTransformer`.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 8.
    .. [2] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.

    Examples
    --------
    >>> from skalign import ContrastiveTeacher
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> teacher = ContrastiveTeacher(max_iter=50, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> teacher.transform(data.X_test).shape
    (100, 20)
    """

    def __init__(
        self,
        n_components=None,
        *,
        head="linear",
        normalize=True,
        center="pairs",
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-5,
        warmup=0.1,
        max_iter=100,
        batch_size=2048,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=100,
        warm_start=False,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        precision="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.head = head
        self.normalize = normalize
        self.center = center
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Train the heads on the pairs.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`~skalign.SOTAlignTransformer.fit`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner; they only move the means, and only if ``center="all"``.

        Returns
        -------
        self : object
            The fitted teacher.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, or the device is not there.
        OSError
            If rows that are not in memory cannot be read, or `checkpoint_dir` cannot be written to.
        ImportError
            If `verbose` and tqdm is not installed.
        """
        self._train(self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired), lambda data: PairsAndTeacher())
        return self


def hold_out(pairs, fraction, rng):
    """Pairs to train on and a fraction held out (None without one); pairs that share a row stay together."""
    seed = rng.randint(2**31 - 1)
    if fraction is None:
        return pairs, None
    groups = group_pairs(pairs)
    n_groups = groups.max(initial=-1) + 1
    if n_groups < 2:
        raise ValueError(
            "`early_stopping` holds pairs out and needs two that share no row, but there are not two such groups among "
            f"the {len(pairs)} pairs. Set early_stopping=False or add pairs."
        )
    n_held = min(max(round(fraction * n_groups), 1), n_groups - 1)
    held = np.random.RandomState(seed).permutation(n_groups)[:n_held]
    is_held = np.isin(groups, held)
    return pairs[~is_held], pairs[is_held]


def held_out_rows(views, held_out, X, Y, tensor_x, tensor_y):
    """Each held-out row once, then unpaired rows to tell it from, as tensors; and the pairs as positions among them."""
    x_rows, x_of = np.unique(held_out[:, 0], return_inverse=True)
    y_rows, y_of = np.unique(held_out[:, 1], return_inverse=True)
    X_seen = tensor_x(np.concatenate([views.X[x_rows], X[:_DISTRACTORS]]))
    Y_seen = tensor_y(np.concatenate([views.Y[y_rows], Y[:_DISTRACTORS]]))
    return X_seen, Y_seen, np.column_stack([x_of, y_of])


def two(sizes):
    """One batch size for both views, or one each."""
    if isinstance(sizes, Integral):
        return int(sizes), int(sizes)
    sizes = tuple(sizes)
    if len(sizes) != 2 or not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise ValueError(
            f"`batch_size_unpaired` must be an integer of at least 1, or two of them (for X, for Y), but it is {sizes}."
        )
    return int(sizes[0]), int(sizes[1])


def _go_on_from(head, state, view):
    """Give a head the weights of a former fit."""
    try:
        load_arrays(head, state)
    except RuntimeError as error:
        raise ValueError(
            f"warm_start=True goes on from the fitted heads, but the weights of that of {view} do not fit the one now asked "
            "for. Keep `head`, `n_components` and the columns of both views, or set warm_start=False. torch says: "
            f"{error}"
        ) from error


def load_arrays(head, state):
    """The other way round than `to_arrays`."""
    head.load_state_dict({name: torch.as_tensor(np.array(array)) for name, array in state.items()})


def _map_of(teacher, view, device):
    """A function from a tensor of rows to their unit rows by a teacher, on the device if the teacher has layers."""
    if hasattr(teacher, "to_torch"):
        with contextlib.suppress(NotImplementedError):
            return torch.nn.Sequential(teacher.to_torch()[view], UnitRows()).to(device)
    embed_rows = teacher.transform if view == "x" else teacher.transform_y
    return lambda rows: to_tensor(_unit_rows(embed_rows, rows.cpu().numpy()), device, torch.float32)


def _unit_rows(embed_rows, rows):
    """Unit rows by a teacher, who may refuse to map no rows."""
    given = rows if len(rows) else np.zeros((1, rows.shape[1]), dtype=rows.dtype)
    return normalize_rows(embed_rows(given))[: len(rows)]


def _drawn_back(states, starts, weight):
    """The states of trained heads, moved towards the heads they started as, if there are such."""
    if starts is None:
        return states
    drawn = copy.deepcopy(starts)
    for head, state, start in zip(drawn, states, starts, strict=True):
        head.load_state_dict(state)
        draw_back(head, start, weight)
    return [head.state_dict() for head in drawn]


def to_arrays(state):
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def warn_of_ending(record, max_iter):
    step = record.n_iter if record.best_iter is None else record.best_iter
    kept = f"the best state so far (step {step}) is kept and the estimator is fitted"
    if record.ended == "interrupted":
        warnings.warn(
            f"`fit` was interrupted after {record.n_iter} of {max_iter} steps; {kept}.",
            ConvergenceWarning,
            stacklevel=6,
        )
    elif record.ended == "out of memory":
        warnings.warn(
            f"Memory did not suffice for the step after {record.n_iter} of {max_iter} steps; {kept}. "
            "Lower the batch sizes, or see to it that nothing else takes memory of the device.",
            ConvergenceWarning,
            stacklevel=6,
        )
    elif record.ended == "diverged":
        warnings.warn(
            f"A step made the weights infinite after {record.n_iter} of {max_iter} steps; {kept}. "
            "Lower `learning_rate`, or check the views for extreme values.",
            ConvergenceWarning,
            stacklevel=6,
        )


def refuse_ending(record):
    """Refuse the steps of a call of `partial_fit` that did not end well; the estimator is put back to what it was before."""
    if record.ended == "interrupted":  # a loop over a stream is to end, too
        raise KeyboardInterrupt
    if record.ended == "diverged":
        raise ValueError(
            f"Expected rows that can be learned from, but a step made the weights infinite after {record.n_iter} steps on "
            "the rows of this call. The estimator is as it was before it. Lower `learning_rate`, or leave these rows out."
        )
    if record.ended == "out of memory":
        raise MemoryError(
            f"Memory did not suffice for the step after {record.n_iter} steps on the rows of this call. The estimator is as it "
            "was before it. Lower the batch sizes."
        )


@contextlib.contextmanager
def progress_bar(verbose, name, max_iter):
    """A function to call after every step: shows loss, validation recall and time left if verbose, else nothing."""
    if not verbose:
        yield lambda record: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "verbose > 0 draws its progress bar with tqdm: pip install tqdm, or set verbose=0."
        ) from error
    with tqdm(total=max_iter, desc=name, unit="step") as bar:

        def show(record):
            shown = {"loss": f"{record.curves['loss'][-1]:.3f}"}
            if record.curves.get("validation"):
                shown["validation recall"] = f"{record.curves['validation'][-1]:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update(record.n_iter - bar.n)  # which is more than one where a training is resumed

        yield show
