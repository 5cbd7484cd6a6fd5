"""SOTAlign: both stages for raw embeddings, with settings that follow the data. Thin over the core."""

import copy
from numbers import Integral, Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._base import BaseAligner, all_or_nothing
from ._callbacks import CallbackSupportMixin, Steps, with_attributes
from ._core.distributed import current
from ._core.hubness import N_FURTHER, LocalScaling
from ._core.landmarks import GaussianFeatures
from ._core.layers import HubnessColumns, KernelColumns
from ._export import preprocessing_layers
from ._hubness import N_ANCHORS, N_NEIGHBORS, fit_local_scaling
from ._pairs import spread_rows
from ._preprocessing import apply, apply_to_all, block_by_block, chain, check_width, fit_transformer
from ._sotalign_transformer import SOTAlignTransformer
from ._teachers import CCATeacher, ProcrustesTeacher
from ._together import common_random_state, on_all_ranks, refuse_unlike
from ._trained import ContrastiveTeacher

_TEACHERS = {"cca": CCATeacher, "procrustes": ProcrustesTeacher, "contrastive": ContrastiveTeacher}
_REG_EXPONENT = 0.25  # of the automatic teacher where there are unpaired rows and
_FEW_PAIRS = 150  # fewer pairs than these: see docs/what_moves_the_needle.rst
_N_LANDMARKS = 1000  # of either view
_MOST_COMPONENTS = 512  # of the shared space, from a CCA on kernel features
_TEACHER_WEIGHT = 0.4  # where there are unpaired rows to train on
_SHARED = (  # settings that SOTAlign hands on to its second stage as they are
    "alpha",
    "divergence",
    "epsilon",
    "epsilon_teacher",
    "teacher_weight",
    "n_components",
    "head",
    "learning_rate",
    "max_iter",
    "sinkhorn_tol",
    "sinkhorn_tol_teacher",
    "sinkhorn_max_iter",
    "batch_size",
    "batch_size_unpaired",
    "early_stopping",
    "warm_start",
    "checkpoint_dir",
    "checkpoint_interval",
    "device",
    "precision",
    "distributed",
    "random_state",
    "verbose",
)


class SOTAlign(CallbackSupportMixin, BaseAligner):
    r"""Align two raw embedding spaces from few pairs and many unpaired rows, without tuning.

    Each view is preprocessed and turned into features of a Gaussian kernel, a linear teacher is fitted on the pairs, and linear
    heads are trained to agree with the pairs (SigLIP) and with the teacher's transport plan on unpaired batches (KLOT) [1]_:

    .. math:: \min_{f, g} \; \mathrm{SigLIP}\bigl(f(A), g(B)\bigr)
        + \alpha\, \mathrm{KL}\bigl(\mathrm{OT}_{\varepsilon^*}(K^*) \,\|\, \mathrm{OT}_{\varepsilon}(K)\bigr)

    with pairs (A, B) and the cosines K and K* of unpaired rows in the heads' and in the teacher's space, see
    :class:`SOTAlignTransformer`. Settings that are "auto" follow the data.

    Parameters
    ----------
    teacher : {"auto", "cca", "procrustes", "contrastive"} or estimator, default="auto"
        Teacher by name or instance, see :class:`SOTAlignTransformer`. "auto" is "cca", its ridge cross-validated on the
        pairs; with fewer than 150 of them, and unpaired rows, it has ``reg_exponent=0.25``, so that all rows shape the ridge.
        To set or search its parameters (``teacher__reg``) give the estimator, ``CCATeacher()``.
    x_transformer, y_transformer : "auto", None or transformer, default="auto"
        Preprocessing of each view, cloned and fitted on all its rows; where these are not in memory, block by block if it
        has ``partial_fit``, else on all of them, which then must fit into it. "auto" standardises the columns of a view whose
        standard deviations differ more than 20-fold between the lowest and the highest tenth (hand-made features of
        mixed units), and leaves embeddings alone. Rows are scaled to unit length and centred afterwards in any case.
    n_landmarks : int or "auto", default="auto"
        Rows of each view to which kernels are taken, paired ones first, then unpaired ones, evenly spaced. Preprocessed rows
        of unit length become :math:`K^{-1/2} k(x)` with :math:`k(x)_j = \exp(-\|x - l_j\|^2 / s^2)` for landmarks
        :math:`l_j`, K the kernel of the landmarks and :math:`s^2` their mean squared distance (Nyström [2]_): teacher and heads
        are linear in these. 0 leaves the views, and so the whole map, linear. "auto" is 1,000, and 0 with a frozen teacher,
        which knows the views as they are.
    alpha : float, default=30
        Weight of the divergence, at least 0.
    divergence : {"klot", "info_nce", "cka"}, default="klot"
        Divergence on unpaired batches.
    epsilon, epsilon_teacher : float, default=0.1 and 0.02
        Entropic temperatures of the student's and of the teacher's plan.
    teacher_weight : float or "auto", default="auto"
        Share of the teacher in the final heads, 0 to 1, see :class:`SOTAlignTransformer`. "auto" is 0.4, and 1 if there is
        no unpaired row in either view: on the pairs alone, heads only overfit.
    hubness_correction : bool, default=True
        Let cosines tell how near two rows are beyond how near each is to the other view in general (CSLS / 4), as
        :class:`HubnessCorrection` does; `transform` then has four more columns.
    n_components : int, default=None
        Dimension of the shared space; None is that of the teacher where the heads start there, with kernel features and
        "auto" or "cca" as teacher at most 512; else ``min(d_x, d_y, 1024)`` after preprocessing.
    head : {"linear", "layernorm", "mlp"} or callable, default="linear"
        Map of each view.
    learning_rate : float, default=5e-4
        Highest learning rate.
    max_iter : int, default=200
        Training steps.
    sinkhorn_tol, sinkhorn_tol_teacher : float, default=1e-3
        L1 marginal error at which the student's and the teacher's plan are accepted.
    sinkhorn_max_iter : int, default=1000
        Cap on the iterations of each plan.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer. Time and memory grow with its square.
    batch_size_unpaired : int or pair of int, default=1024
        Rows per step from the unpaired rows of X and of Y.
    early_stopping : bool, default=False
        Hold 10 % of the pairs out, stop when their recall no longer rises, keep the best state.
    warm_start : bool, default=False
        Start from the heads of the `fit` before, if there is one, on its landmarks; `teacher_weight` does nothing then.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`SOTAlignTransformer`. Without `random_state` the anchors of the hubness
        correction are drawn anew.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type in which the heads compute while they are trained; see :class:`SOTAlignTransformer`.
    distributed : bool, default=True
        Train together with the other processes that torchrun started, see :class:`SOTAlignTransformer`.
    random_state : int, RandomState instance or None, default=None
        Draws weights, batches, held-out pairs and the anchors of the hubness correction.
    verbose : bool or int, default=0
        Show a progress bar with loss, validation recall and time left (needs tqdm).

    Attributes
    ----------
    aligner_ : SOTAlignTransformer
        Fitted second stage, on the preprocessed views.
    teacher_ : estimator or None
        Fitted teacher, on the preprocessed views; None if ``alpha=0``.
    x_transformer_, y_transformer_ : transformer or None
        Fitted preprocessing.
    x_features_, y_features_ : tuple or None
        Landmarks, the inverse :math:`1 / s^2` of their mean squared distance, and :math:`K^{-1/2}`.
    loss_curve_ : dict of str to list of float
        "loss", "siglip" and "divergence" of each step; with `early_stopping` also "validation".
    sinkhorn_error_ : dict of str to float
        Worst L1 marginal error of the "student" and of the "teacher" plans met in training.
    n_iter_ : int
        Steps taken.
    best_iter_ : int or None
        Step whose state was kept, with `early_stopping`; 0 is the start.
    local_scaling_ : tuple or None
        Anchors of the hubness correction, and how many count as near.
    n_components_ : int
        Columns of `transform`: those of the heads, and four with `hubness_correction`.
    n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    Warns
    -----
    ConvergenceWarning
        If plans missed their tolerance, a step made the weights infinite or did not fit into memory, or `fit` was interrupted
        by Ctrl-C. The estimator is fitted all the same, with the best state so far.
    UserWarning
        If a step was tried again because memory did not suffice.

    Notes
    -----
    Callbacks of scikit-learn are taken as by :class:`SOTAlignTransformer`.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353, eq. 5.
    .. [2] Williams and Seeger, "Using the Nyström method to speed up kernel machines", NeurIPS 2000.

    Examples
    --------
    >>> from skalign import SOTAlign
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> aligner = SOTAlign(max_iter=50, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> aligner.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _parameter_constraints: dict = {
        **{name: SOTAlignTransformer._parameter_constraints[name] for name in _SHARED},
        "teacher": [StrOptions({"auto", *_TEACHERS}), HasMethods(["fit", "transform", "transform_y"])],
        "x_transformer": [StrOptions({"auto"}), HasMethods(["fit", "transform"]), None],
        "y_transformer": [StrOptions({"auto"}), HasMethods(["fit", "transform"]), None],
        "teacher_weight": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "n_landmarks": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "hubness_correction": ["boolean"],
    }

    __metadata_request__partial_fit = {"paired_idx": True, "X_unpaired": True, "Y_unpaired": True}

    def __init__(
        self,
        teacher="auto",
        *,
        x_transformer="auto",
        y_transformer="auto",
        n_landmarks="auto",
        alpha=30.0,
        divergence="klot",
        epsilon=0.1,
        epsilon_teacher=0.02,
        teacher_weight="auto",
        hubness_correction=True,
        n_components=None,
        head="linear",
        learning_rate=5e-4,
        max_iter=200,
        sinkhorn_tol=1e-3,
        sinkhorn_tol_teacher=1e-3,
        sinkhorn_max_iter=1000,
        batch_size=2048,
        batch_size_unpaired=1024,
        early_stopping=False,
        warm_start=False,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        precision="auto",
        distributed=True,
        random_state=None,
        verbose=0,
    ):
        self.teacher = teacher
        self.x_transformer = x_transformer
        self.y_transformer = y_transformer
        self.n_landmarks = n_landmarks
        self.alpha = alpha
        self.divergence = divergence
        self.epsilon = epsilon
        self.epsilon_teacher = epsilon_teacher
        self.teacher_weight = teacher_weight
        self.hubness_correction = hubness_correction
        self.n_components = n_components
        self.head = head
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.sinkhorn_tol = sinkhorn_tol
        self.sinkhorn_tol_teacher = sinkhorn_tol_teacher
        self.sinkhorn_max_iter = sinkhorn_max_iter
        self.batch_size = batch_size
        self.batch_size_unpaired = batch_size_unpaired
        self.early_stopping = early_stopping
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.precision = precision
        self.distributed = distributed
        self.random_state = random_state
        self.verbose = verbose

    @on_all_ranks
    @_fit_context(prefer_skip_nested_validation=False)  # what is nested comes from the user
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Preprocess both views, fit the teacher on the pairs, train the heads on pairs and unpaired rows.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, in memory or not, such as paths of ``.npy`` files. A row that is NaN throughout is a missing sample.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, by zero-based position; labels of a frame are not read. None: row i of X and row i of Y,
            except missing ones. A boolean mask is the form that is safe inside cross-validation. The rows in no pair are
            unpaired.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, of any number, in memory or not, see :meth:`SOTAlignTransformer.fit`.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, or the device is not there.
        RuntimeError
            If another of the ranks that train together failed or was lost.
        OSError
            If rows that are not in memory cannot be read, or `checkpoint_dir` cannot be written to.
        ImportError
            If `verbose` and tqdm is not installed.
        """
        # pools are read for the preprocessing, and the second stage checks what was not
        group = current()
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired, check_pools=False)
        refuse_unlike(group, self, views)
        random_state = common_random_state(group, self.random_state)

        def attributes_of(attributes):
            return self._around(with_attributes(aligner, attributes), views, copy.deepcopy(random_state))

        steps = Steps.of(self, views, self.max_iter, attributes_of) if group.is_first else None
        self._fit_transformers(views)
        self.x_transformer_, self.y_transformer_ = group.first((self.x_transformer_, self.y_transformer_))
        self.x_features_, self.y_features_ = group.first((self.x_features_, self.y_features_))
        n_unpaired = len(views.X_unpaired) + len(views.Y_unpaired)
        aligner = SOTAlignTransformer(teacher=self._teacher(len(views.pairs), n_unpaired), **self._settings(n_unpaired))
        aligner._steps, aligner._most_components = steps, self._most_components()
        if self.warm_start and hasattr(self, "aligner_"):
            vars(aligner).update(
                {
                    name: getattr(self.aligner_, name)
                    for name in ("x_head_", "y_head_", "x_mean_", "y_mean_", "n_components_")
                }
            )
        aligner.fit(*self._preprocessed(views.X, views.Y), views.pairs, **self._preprocessed_pools(views))
        vars(self).update(self._around(aligner, views, random_state))
        self.local_scaling_ = group.first(self.local_scaling_)
        if steps:
            steps.close()
        return self

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X=None, Y=None, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Train further on the rows of a stream: once over those of this call, all of which may be forgotten then.

        See :meth:`SOTAlignTransformer.partial_fit`, of which this is the form for raw embeddings. Preprocessing is that of
        the first call, and so are the landmarks and the shape of the teacher's ridge; give it rows enough to tell. The
        anchors of the hubness correction are drawn evenly from the rows of all calls of `partial_fit`, and move with the
        heads.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y), default=None
            Both views as in `fit`, of the first call or for new pairs, or None, both, in calls of unpaired rows alone.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows of X and Y belong together, as in `fit`.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Unpaired rows, of both views or of one, of any number, in memory or not, as in `fit`.

        Returns
        -------
        self : object
            The aligner, which can embed.

        Raises
        ------
        ValueError
            As by :meth:`SOTAlignTransformer.partial_fit`. The estimator is as it was then.
        OSError
            If rows that are not in memory cannot be read.

        Examples
        --------
        >>> import numpy as np
        >>> from skalign import SOTAlign
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(100, 900, 900, random_state=0)
        >>> aligner = SOTAlign(batch_size_unpaired=128, random_state=0).partial_fit(data.X[:100], data.Y[:100])
        >>> for x_rows, y_rows in zip(np.split(data.X[100:], 3), np.split(data.Y[100:], 3)):
        ...     aligner = aligner.partial_fit(X_unpaired=x_rows, Y_unpaired=y_rows)
        >>> aligner.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
        True
        """
        given = self._judge_further(X, Y, paired_idx, X_unpaired, Y_unpaired, check_pools=False)
        stream = getattr(getattr(self, "aligner_", None), "_stream", None)
        n_unpaired = len(given.X_unpaired) + len(given.Y_unpaired) + (stream.n_unpaired if stream else 0)
        if hasattr(self, "aligner_"):
            aligner = copy.copy(self.aligner_)
        else:
            self._fit_transformers(given)
            aligner = SOTAlignTransformer(teacher=self._teacher(len(given.pairs), n_unpaired))
            aligner._most_components = self._most_components()
        aligner.set_params(**self._settings(n_unpaired))
        views = self._preprocessed(given.X, given.Y) if len(given.X) else (None, None)
        aligner.partial_fit(*views, given.pairs if len(given.X) else None, **self._preprocessed_pools(given))
        self.n_pairs_ = aligner.n_pairs_
        vars(self).update(self._around(aligner, given, self.random_state))
        return self

    def _fit_transformers(self, views):
        """Preprocessing of both views, and kernel features behind it; these stay where heads on them go on (`warm_start`)."""
        self.x_transformer_ = fit_transformer(self.x_transformer, views.X_all)
        self.y_transformer_ = fit_transformer(self.y_transformer, views.Y_all)
        x_step, y_step = chain(self.x_transformer_), chain(self.y_transformer_)
        if self.warm_start and hasattr(self, "aligner_"):
            check_width("X", self.x_features_, apply(x_step, views.X_pairs[:1]))
            check_width("Y", self.y_features_, apply(y_step, views.Y_pairs[:1]))
            return
        n_landmarks = self.n_landmarks
        if n_landmarks == "auto":  # a frozen teacher knows the views as they are
            n_landmarks = 0 if isinstance(self.teacher, FrozenEstimator) else _N_LANDMARKS
        of_x = views.X, np.unique(views.pairs[:, 0]), views.x_free, views.X_pool
        of_y = views.Y, np.unique(views.pairs[:, 1]), views.y_free, views.Y_pool
        self.x_features_, self.y_features_ = (
            GaussianFeatures.fit(apply(step, spread_rows(*rows, n_landmarks))) if n_landmarks else None
            for step, rows in ((x_step, of_x), (y_step, of_y))
        )

    def _settings(self, n_unpaired):
        """Settings of the second stage, where so many rows are unpaired."""
        settings = {name: getattr(self, name) for name in _SHARED}
        if self.teacher_weight == "auto":
            settings["teacher_weight"] = _TEACHER_WEIGHT if n_unpaired else 1.0
        return settings

    def _x_step(self):
        return chain(self.x_transformer_, self.x_features_)

    def _y_step(self):
        return chain(self.y_transformer_, self.y_features_)

    def _preprocessed(self, X, Y):
        return apply_to_all(self._x_step(), self.x_features_, X), apply_to_all(self._y_step(), self.y_features_, Y)

    def _preprocessed_pools(self, views):
        pools = {
            "X_unpaired": (self._x_step(), self.x_features_, views.X_pool),
            "Y_unpaired": (self._y_step(), self.y_features_, views.Y_pool),
        }
        return {name: apply_to_all(*how, pool) for name, (*how, pool) in pools.items() if pool is not None}

    def _around(self, aligner, views, random_state):
        """Fitted attributes that follow from the fitted second stage."""
        names = ("teacher_", "loss_curve_", "n_iter_", "best_iter_", "sinkhorn_error_", "n_components_")
        attributes = {"aligner_": aligner, "local_scaling_": None} | {name: getattr(aligner, name) for name in names}
        if self.hubness_correction:
            scaling = self._local_scaling(aligner, views, random_state)
            attributes |= {"local_scaling_": scaling, "n_components_": aligner.n_components_ + N_FURTHER}
        return attributes

    def _local_scaling(self, aligner, views, random_state):
        stream = getattr(aligner, "_stream", None)
        if stream is not None:  # whose rows are those of all calls
            anchors = aligner._embed_x(stream.x_sample.rows), aligner._embed_y(stream.y_sample.rows)
            return LocalScaling.fit(*anchors, N_NEIGHBORS)

        def embed_x(X):
            return block_by_block(aligner._embed_x, self._x_step(), X)

        def embed_y(Y):
            return block_by_block(aligner._embed_y, self._y_step(), Y)

        return fit_local_scaling(embed_x, embed_y, views, N_NEIGHBORS, N_ANCHORS, random_state)

    def set_params(self, **params):
        """Set parameters; those of the teacher, as ``teacher__reg``, if it is an estimator.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        self : object
            The aligner.

        Raises
        ------
        ValueError
            If there is no such parameter, or the teacher is given by its name and has none.

        Examples
        --------
        >>> from skalign import CCATeacher, SOTAlign
        >>> SOTAlign(CCATeacher()).set_params(alpha=10, teacher__reg=0.1).teacher
        CCATeacher(reg=0.1)
        """
        nested = [name for name in params if name.startswith("teacher__")]
        if nested and isinstance(params.get("teacher", self.teacher), str):
            raise ValueError(
                f"`{nested[0]}` is a parameter of a teacher, but the teacher is the name {self.teacher!r}, which has none. "
                "Give an estimator, such as SOTAlign(teacher=CCATeacher())."
            )
        return super().set_params(**params)

    def _teacher(self, n_pairs, n_unpaired):
        """The teacher meant by its name, for so many rows; an instance is left for the second stage to clone."""
        if not isinstance(self.teacher, str):
            return self.teacher
        if self.teacher == "contrastive":
            return ContrastiveTeacher(device=self.device, precision=self.precision, random_state=self.random_state)
        if self.teacher == "auto" and n_unpaired and n_pairs < _FEW_PAIRS:
            return CCATeacher(reg_exponent=_REG_EXPONENT)
        return {"auto": CCATeacher, **_TEACHERS}[self.teacher]()

    def _most_components(self):
        """Of the shared space by default: kernel features have many directions, the last of which tell little."""
        by_name = isinstance(self.teacher, str) and self.teacher in ("auto", "cca")
        return _MOST_COMPONENTS if by_name and self.x_features_ is not None else None

    def _embed_x(self, X):
        F = block_by_block(self._second_stage()._embed_x, self._x_step(), X)
        return F if self.local_scaling_ is None else self.local_scaling_.lift_x(F)

    def _embed_y(self, Y):
        G = block_by_block(self._second_stage()._embed_y, self._y_step(), Y)
        return G if self.local_scaling_ is None else self.local_scaling_.lift_y(G)

    def _layers(self, view):
        features = getattr(self, f"{view}_features_")
        layers = preprocessing_layers(getattr(self, f"{view}_transformer_"))
        layers += [] if features is None else [KernelColumns(features)]
        layers += self.aligner_._layers(view)
        return layers if self.local_scaling_ is None else [*layers, HubnessColumns(self.local_scaling_, view)]

    def _second_stage_and_views(self, X, Y):
        """The fitted heads and the views as they take them: all that lies before the hubness correction."""
        check_is_fitted(self)
        steps = (self._x_step(), self._check_x(X)), (self._y_step(), self._check_y(Y))
        return self._second_stage(), *(apply(step, rows) for step, rows in steps)

    def _second_stage(self):
        """The fitted heads, on the device asked for now: what was trained on a GPU must run without one."""
        return self.aligner_.set_params(device=self.device)
