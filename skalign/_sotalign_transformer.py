"""SOTAlignTransformer: heads trained on pairs and unpaired rows, the second stage of SOTAlign. Thin over the core."""

import warnings
from numbers import Integral, Real

from sklearn.base import _fit_context, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ._base import all_or_nothing, fit_within
from ._core.distributed import ALONE, alone, current
from ._core.divergences import DIVERGENCES, Divergence
from ._core.objectives import PairsAndTeacher
from ._teachers import CCATeacher
from ._together import on_all_ranks
from ._trained import TrainedAligner, two


class SOTAlignTransformer(TrainedAligner):
    r"""Heads trained on few pairs and many unpaired rows, held to a teacher by optimal transport.

    With heads f, g, pairs (A, B) and unpaired batches X, Y, it minimises [1]_ (eq. 5)

    .. math:: \mathrm{SigLIP}\bigl(f(A), g(B)\bigr)
        + \alpha\, \mathrm{KL}\bigl(\mathrm{OT}_{\varepsilon^*}(K^*) \,\|\, \mathrm{OT}_{\varepsilon}(K)\bigr),

    where K and K* are the cosines of the unpaired batch in the heads' space and in the teacher's. SigLIP is the sum over
    all couples divided by the number of pairs, and both plans have mass 1, so `alpha` does not depend on the number of
    pairs: the paper's 1e-4 at 10,000 pairs is ``alpha=1`` here.

    Parameters
    ----------
    teacher : estimator, default=None
        Aligner with ``fit(X, Y, paired_idx)``, ``transform`` and ``transform_y``; cloned and fitted on the pairs. A
        :class:`sklearn.frozen.FrozenEstimator` is used as it is. None is :class:`CCATeacher`.
    alpha : float, default=30
        Weight of the divergence, at least 0. 0 leaves the teacher and the unpaired rows out: supervised SAIL.
    divergence : {"klot", "info_nce", "cka"}, default="klot"
        KL between transport plans (the formula above); row- and column-wise KL between softmaxes (eq. 10); or one minus
        the centred kernel alignment (eq. 9), which has no epsilon.
    epsilon, epsilon_teacher : float, default=0.1 and 0.02
        Entropic temperatures of the student's and of the teacher's plan, positive, in units of cosine. The paper has
        0.05 and 0.01.
    teacher_weight : float, default=0
        Share of the teacher in the final heads, 0 to 1: ``(1 - w) * trained + w * start``, weight by weight (WiSE-FT
        [2]_), where the heads start at the teacher's maps; no effect where they do not. `loss_curve_` and `best_iter_` are
        of the trained weights, before.
    sinkhorn_tol, sinkhorn_tol_teacher : float, default=1e-3
        L1 marginal error at which the student's and the teacher's plan are accepted.
    sinkhorn_max_iter : int, default=1000
        Cap on the iterations of each plan; plans that miss their tolerance are reported in a `ConvergenceWarning`.
    batch_size_unpaired : int or pair of int, default=1024
        Rows per step from the unpaired rows of X and of Y. A view without unpaired rows lends its paired ones. Above 67
        million couples KLOT works from the features, in memory O((n + m) d).
    n_components : int, default=None
        Dimension of the shared space; None is that of the teacher where the heads start there, else
        ``min(d_x, d_y, 1024)``.
    head : {"linear", "layernorm", "mlp"} or callable, default="linear"
        Map of each view: linear; LayerNorm, then linear; Linear-GELU-Linear; or a factory ``head(d_in, d_out)`` that
        returns a `torch.nn.Module`.
    init : {"auto", "teacher", "random"}, default="auto"
        Where the heads start: at the teacher's maps, or at random weights (as in the paper). "auto" is "teacher" if
        head and teacher are linear and take rows scaled alike, else "random".
    normalize : bool, default=True
        Scale each row to unit length first, here and in `transform`.
    center : {"pairs", "all"}, default="pairs"
        Rows whose mean is subtracted: the pairs, or every row given to `fit`.
    optimizer : {"adamw", "lion"} or class, default="adamw"
        A class is called as ``optimizer(params, lr=..., weight_decay=...)``. The paper has Lion, 1e-4, 1e-5.
    learning_rate : float, default=5e-4
        Highest learning rate, after warm-up.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    warmup : float, default=0.1
        Fraction of the steps with rising learning rate; a cosine down to 0 follows.
    max_iter : int, default=200
        Training steps.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer. Time and memory grow with its square. The paper has 10,000.
    early_stopping : bool, default=False
        Hold pairs out, look every 10 steps at how well they find one another among up to 2,000 unpaired rows (the mean
        of the six recalls), stop after `n_iter_no_change` steps without a better one, and keep the best state.
    validation_fraction : float, default=0.1
        Share of the pairs held out if `early_stopping`. Pairs that share a row stay together.
    n_iter_no_change : int, default=100
        Patience of `early_stopping`, in steps.
    warm_start : bool, default=False
        Start from the heads of the `fit` before, if there is one, on other rows or with other settings. `head`,
        `n_components` and the columns of the views must be those they were; `init` and `teacher_weight` do nothing then.
    checkpoint_dir : str or path-like, default=None
        Folder, made if need be, in which the whole state of the training is kept: when a `fit` was killed, the same line
        goes on where it was and ends as if it had not been, on the CPU bit by bit. See the notes.
    checkpoint_interval : int, default=100
        Steps between two checkpoints; one comes after the first step and one after the last, too.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU; under torchrun that of `LOCAL_RANK`. Fitted attributes are NumPy arrays
        wherever it ran.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type in which the heads, and they alone, compute while they are trained; losses, affinities and plans are float32 at
        least, and so is all that is stored. "auto" is "bfloat16" on CUDA devices that have it, else "float32".
    distributed : bool, default=True
        Train together with the other processes that torchrun started, see the notes. False trains for this process alone.
    random_state : int, RandomState instance or None, default=None
        Draws weights, batches and held-out pairs. The global random states of NumPy and torch are left alone.
    verbose : bool or int, default=0
        Show a progress bar with loss, validation recall and time left (needs tqdm).

    Attributes
    ----------
    teacher_ : estimator or None
        Fitted teacher; None if ``alpha=0``.
    x_head_, y_head_ : dict of str to ndarray
        Weights of the heads.
    head_ : str or callable
        Their kind, `head` as it was in `fit`.
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the heads as matrices, if they are linear.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases, if they are linear.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means subtracted after scaling.
    loss_curve_ : dict of str to list of float
        "loss", "siglip" and "divergence" of each step; with `early_stopping` also "validation", the mean of the six
        recalls on held-out pairs before the first step and every 10 steps.
    sinkhorn_error_ : dict of str to float
        Worst L1 marginal error of the "student" and of the "teacher" plans met in training.
    n_iter_ : int
        Steps taken.
    best_iter_ : int or None
        Step whose state was kept, with `early_stopping`; 0 is the start.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    Warns
    -----
    ConvergenceWarning
        If plans missed their tolerance, a step made the weights infinite or did not fit into memory, or `fit` was interrupted
        by Ctrl-C. The estimator is fitted all the same, with the best state so far.
    UserWarning
        If a checkpoint later than the first could not be written. Training goes on. Or if memory did not suffice for a step
        with the affinities of the unpaired batch formed: it is taken again, and training goes on, from the features.

    Notes
    -----
    With scikit-learn 1.9 or newer, ``set_callbacks(...)`` takes its callbacks, such as :class:`sklearn.callback.ProgressBar`.
    Each step is a task, numbered from 0 by ``context.task_id``, after which ``estimator.loss_curve_`` holds the curves so far
    and `fitted_estimator` is what stopping there would give; ``on_fit_task_end`` stops the training by returning True.
    Monitors hand ``paired_idx`` to their scorers.

    A file in `checkpoint_dir` is named after a fingerprint of the parameters (without `verbose`, `device` and those of the
    checkpoints), the pairs, up to 100,000 rows of each array (10,000 of what lies on disk), evenly spaced, the version of
    skalign and the kind of device. So the fits of a search share a folder, and what differs in any of these starts anew and is
    never mixed. The file takes the place of the former one when it is whole, holds tensors and numbers alone, and stays when
    the fit has ended: the same line then has its result without training. To train again, delete the file. Without
    `random_state`, the seed that was drawn is kept in it, too. When Ctrl-C or a callback has stopped a training, the same line
    goes on from the last checkpoint; callbacks number the steps of a run from 0, and ``estimator.n_iter_`` those of the
    training. The teacher is fitted again, and keeps checkpoints if it has a `checkpoint_dir` of its own. A head or optimizer of
    your own must have a name that can be pickled, and keep its state in `state_dict`.

    Where torchrun started several processes (ranks), or torch's default process group has several, the `fit` in their main
    threads is one for all: every rank calls it with the same data and parameters, and ends with the same fitted estimator.
    Steps and batches are those of one process. With ``divergence="klot"`` each rank prepares, holds and embeds its own
    share of the unpaired rows, and the rows of the plans that belong to it; the rest, and other divergences, all compute
    alike. Rank 0 alone fits the teacher, warns, shows progress, calls callbacks, and keeps checkpoints, from which any
    number of ranks goes on. When a rank raises (Ctrl-C too) or dies, the others end with a `RuntimeError` within a minute.
    In threads and in workers of joblib or multiprocessing, as of a search with ``n_jobs=2``, a fit is of one process. Ranks
    compare their parameters, so what you give of your own must have a name that can be pickled. Batch normalisation takes
    its statistics from a rank's own rows. A step for which a rank lacks memory is not tried again.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353. The gradient is Theorem C.4.
    .. [2] Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903, eq. 1.

    Examples
    --------
    >>> from skalign import ProcrustesTeacher, SOTAlignTransformer
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> aligner = SOTAlignTransformer(ProcrustesTeacher(), max_iter=50, random_state=0)
    >>> F = aligner.fit_transform(data.X, data.Y, paired_idx=data.paired_idx)
    >>> F.shape
    (300, 20)

    What was killed goes on where it was, and what has ended is not trained again:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     aligner = SOTAlignTransformer(max_iter=50, random_state=0, checkpoint_dir=folder)
    ...     first = aligner.fit(data.X, data.Y, data.paired_idx).x_coef_
    ...     again = aligner.fit(data.X, data.Y, data.paired_idx).x_coef_
    >>> bool((first == again).all())
    True
    """

    _parameter_constraints: dict = {
        **TrainedAligner._parameter_constraints,
        "teacher": [HasMethods(["fit", "transform", "transform_y"]), None],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "init": [StrOptions({"auto", "teacher", "random"})],
        "divergence": [StrOptions(set(DIVERGENCES))],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "epsilon_teacher": [Interval(Real, 0, None, closed="neither")],
        "teacher_weight": [Interval(Real, 0, 1, closed="both")],
        "sinkhorn_tol": [Interval(Real, 0, None, closed="neither")],
        "sinkhorn_tol_teacher": [Interval(Real, 0, None, closed="neither")],
        "sinkhorn_max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size_unpaired": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "distributed": ["boolean"],
    }

    __metadata_request__partial_fit = {"paired_idx": True, "X_unpaired": True, "Y_unpaired": True}

    def __init__(
        self,
        teacher=None,
        *,
        alpha=30.0,
        divergence="klot",
        epsilon=0.1,
        epsilon_teacher=0.02,
        teacher_weight=0.0,
        sinkhorn_tol=1e-3,
        sinkhorn_tol_teacher=1e-3,
        sinkhorn_max_iter=1000,
        batch_size_unpaired=1024,
        n_components=None,
        head="linear",
        init="auto",
        normalize=True,
        center="pairs",
        optimizer="adamw",
        learning_rate=5e-4,
        weight_decay=1e-5,
        warmup=0.1,
        max_iter=200,
        batch_size=2048,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=100,
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
        self.alpha = alpha
        self.divergence = divergence
        self.epsilon = epsilon
        self.epsilon_teacher = epsilon_teacher
        self.teacher_weight = teacher_weight
        self.sinkhorn_tol = sinkhorn_tol
        self.sinkhorn_tol_teacher = sinkhorn_tol_teacher
        self.sinkhorn_max_iter = sinkhorn_max_iter
        self.batch_size_unpaired = batch_size_unpaired
        self.n_components = n_components
        self.head = head
        self.init = init
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
        self.distributed = distributed
        self.random_state = random_state
        self.verbose = verbose

    @on_all_ranks
    @_fit_context(prefer_skip_nested_validation=False)  # what is nested comes from the user
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Fit the teacher on the pairs, then train the heads on pairs and unpaired rows.

        Parameters
        ----------
        X : array-like of shape (n_x, d_x)
            First view. A row that is NaN throughout is a missing sample. It need not be in memory, in the ways of
            `X_unpaired`: with integers in `paired_idx` only its paired rows are read into it, and none may be missing then.
        Y : array-like of shape (n_y, d_y)
            Second view, likewise.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, by zero-based position; labels of a frame are not read. None: row i of X and row i of Y,
            except missing ones. A boolean mask is the form that is safe inside cross-validation. The rows in no pair are
            unpaired.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, of any number. They need not be in memory: the path of a ``.npy`` file, a memory
            map, an HDF5 dataset (h5py), a zarr array, whatever else has shape, dtype and slices, or a list or tuple of these,
            which are shards of one pool. Such rows are read once to check them. Then a thread of its own reads ahead of
            the steps, in blocks of neighbouring rows that come in random order; some thousands of rows are shuffled together.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, the device is not there, the fitted heads of a `warm_start` are
            of other sizes, a checkpoint is damaged, what is to be trained cannot be kept in one, or ranks were given different
            things.
        RuntimeError
            If another of the ranks that train together failed or was lost.
        OSError
            If rows that are not in memory cannot be read, or `checkpoint_dir` cannot be written to.
        ImportError
            If `verbose` and tqdm is not installed.
        """
        group = current()
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired)
        self.teacher_ = None
        divergence = self._divergence(group)
        self.sinkhorn_error_ = divergence.worst_error  # grows in training
        self._train(
            views,
            lambda data: PairsAndTeacher(self.alpha, divergence),
            **self._with_teacher(),
            in_shares=divergence.takes_shares,
        )
        self._warn_of_plans(divergence, self.n_iter_)
        return self

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=False)
    def partial_fit(self, X=None, Y=None, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Train further on the rows of a stream: once over those of this call, all of which may be forgotten then.

        The first call brings pairs. From it come means and teacher, which stay, and the start of the heads. Each call takes as
        many steps as its rows fill batches, at the rate `learning_rate` throughout, with all pairs so far; `max_iter` and
        `warmup` are of `fit`. Few rows are filled up to a batch with rows of former calls.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y), default=None
            Both views as in `fit`, of the first call or for new pairs, which join those known; a pair given again, row by row
            the same, changes nothing. None, both, in calls of unpaired rows alone.
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
            As in `fit`; if the first call, or the first after a `fit`, which keeps no rows, brings no pairs; with
            `early_stopping`; or if a step makes the weights infinite. Whatever ends a call before its time, Ctrl-C too,
            leaves the estimator as it was.
        MemoryError
            If a step does not fit into memory, not even from the features.
        OSError
            If rows that are not in memory cannot be read.

        Notes
        -----
        After each call `transform` is that of the heads so far, drawn back by `teacher_weight` to where the first call has
        started them; the next goes on from the heads before that. What it needs stays in the estimator, in pickles and files,
        too, all of it NumPy: the pairs, up to 2,048 rows of either view, drawn evenly from all that came by, both heads, and
        the state of the optimizer. `loss_curve_` and `n_iter_` go on from call to call. A later `fit` starts anew, or with
        `warm_start` from these heads. After a `fit`, the first call goes on from its heads, and `teacher_weight` does nothing.
        Callbacks, `checkpoint_dir` and `distributed` are not looked at: each process trains for itself.

        A stream differs from a `fit` on the same rows in its means and teacher if ``center="all"``, in the teacher, too, if all
        rows shape its ridge, in the order the rows come in, and in the number of steps: give rows again for more of them.

        Examples
        --------
        >>> import numpy as np
        >>> from skalign import SOTAlignTransformer
        >>> from skalign.datasets import make_two_views
        >>> data = make_two_views(100, 900, 900, random_state=0)
        >>> aligner = SOTAlignTransformer(batch_size_unpaired=128, random_state=0)
        >>> aligner = aligner.partial_fit(data.X[:100], data.Y[:100])
        >>> for x_rows, y_rows in zip(np.split(data.X[100:], 3), np.split(data.Y[100:], 3)):
        ...     aligner = aligner.partial_fit(X_unpaired=x_rows, Y_unpaired=y_rows)
        >>> aligner.n_iter_  # a step for the pairs, three for each 300 rows
        10
        """
        if self.early_stopping:
            raise ValueError(
                "`partial_fit` holds no pairs out, but early_stopping=True. Set it to False; the score on pairs of your own "
                "tells when to stop."
            )
        given = self._judge_further(X, Y, paired_idx, X_unpaired, Y_unpaired)
        if hasattr(self, "x_head_") and (
            self.head != self.head_ or self.n_components not in (None, self.n_components_)
        ):
            raise ValueError(
                f"`partial_fit` goes on with the heads there are, {self.head_!r} of {self.n_components_} columns, but now "
                f"head={self.head!r} and n_components={self.n_components}. Set them back, or begin anew with a clone."
            )
        if not hasattr(self, "_stream") and len(given.pairs) == 0:
            raise ValueError(
                "The first call of `partial_fit` must bring pairs, also after `fit`, which keeps no rows, but it brings none. "
                "Pass X, Y and `paired_idx` again."
            )
        self.teacher_ = getattr(self, "teacher_", None)
        divergence = self._divergence()
        n_before = getattr(self, "n_iter_", 0)
        self._train_further(given, lambda data: PairsAndTeacher(self.alpha, divergence), **self._with_teacher())
        former = getattr(self, "sinkhorn_error_", divergence.worst_error)
        self.sinkhorn_error_ = {who: max(error, former[who]) for who, error in divergence.worst_error.items()}
        self._warn_of_plans(divergence, self.n_iter_ - n_before)
        return self

    def _divergence(self, group=ALONE):
        return Divergence(
            self.divergence,
            self.epsilon,
            self.epsilon_teacher,
            tol=self.sinkhorn_tol,
            tol_teacher=self.sinkhorn_tol_teacher,
            max_iter=self.sinkhorn_max_iter,
            group=group,
        )

    def _with_teacher(self):
        """What the training is told beside views and objective."""
        return {
            "teacher": self._fit_teacher if self.alpha > 0 else None,
            "teacher_weight": self.teacher_weight,
            "with_unpaired": self.alpha > 0,
            "batch_size_unpaired": two(self.batch_size_unpaired),
        }

    def _fit_teacher(self, views, pairs, random_state):
        """The teacher, fitted unless it is already."""
        if self.teacher_ is None:
            teacher = CCATeacher() if self.teacher is None else clone(self.teacher)
            group = current()
            if group.is_first:
                with alone():
                    teacher = fit_within(teacher, views, pairs, random_state)
            self.teacher_ = group.first(teacher)
        return self.teacher_

    def _warn_of_plans(self, divergence, n_plans):
        if divergence.streams:
            warnings.warn(
                "Memory did not suffice for a step with the affinities of the unpaired batch formed. It was tried again "
                "from the features, as are all steps after such a one, which takes less memory and more time; nothing learned "
                f"was lost. To avoid it lower `batch_size_unpaired`, now {self.batch_size_unpaired}.",
                UserWarning,
                stacklevel=5,
            )
        for who, epsilon, knob in (
            ("student", f"epsilon={self.epsilon}", "sinkhorn_tol"),
            ("teacher", f"epsilon_teacher={self.epsilon_teacher}", "sinkhorn_tol_teacher"),
        ):
            missed = divergence.n_unconverged[who]
            if missed:
                warnings.warn(
                    f"{missed} of {n_plans} plans of the {who} ({epsilon}) missed their tolerance; the worst L1 "
                    f"marginal error is {divergence.worst_error[who]:.1e}. Raise `sinkhorn_max_iter`, `{knob}` or the "
                    "epsilon.",
                    ConvergenceWarning,
                    stacklevel=5,
                )
