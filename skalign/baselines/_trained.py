"""Rivals whose linear heads are trained: SAIL, STRUCTURE, NNCLR and S-CLIP. Thin estimators over `_core.objectives`."""

from numbers import Integral, Real

from sklearn.base import _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from .._base import all_or_nothing
from .._core.objectives import (
    PairsAgainstAll,
    PairsAndNeighbours,
    PairsAndPseudoCaptions,
    PairsAndStructure,
    PairsAndTeacher,
)
from .._trained import TrainedAligner, two

_BATCHES = [Interval(Integral, 1, None, closed="left"), "array-like"]


class _TrainedRival(TrainedAligner):
    """Linear heads on centred unit rows, trained by AdamW; a subclass makes its `_objective` of the data."""

    head, normalize, center = "linear", True, "pairs"
    optimizer, warmup = "adamw", 0.1
    early_stopping, n_iter_no_change = False, 1
    warm_start = False
    precision = "float32"
    batch_size_unpaired = 0  # of those that draw none
    _uses_unpaired = True

    _parameter_constraints: dict = {
        name: TrainedAligner._parameter_constraints[name]
        for name in (
            "n_components",
            "learning_rate",
            "weight_decay",
            "max_iter",
            "batch_size",
            "checkpoint_dir",
            "checkpoint_interval",
            "device",
            "random_state",
            "verbose",
        )
    }

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None):
        """Train the heads.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`~skalign.SOTAlignTransformer.fit`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner. NNCLR reads all of those that are not in memory.

        Returns
        -------
        self : object
            The fitted aligner.

        Raises
        ------
        ValueError
            If a view is not finite, the pairs are not legal, or the device is not there.
        OSError
            If rows that are not in memory cannot be read, or `checkpoint_dir` cannot be written to.
        ImportError
            If `verbose` and tqdm is not installed.
        """
        self._train(
            self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired),
            self._objective,
            with_unpaired=self._uses_unpaired,
            batch_size_unpaired=two(self.batch_size_unpaired),
        )
        return self


class SAIL(_TrainedRival):
    r"""Heads trained with the sigmoid loss, on the pairs alone or with unpaired rows as further negatives.

    With unit rows F, G of the heads' outputs and :math:`z_{ij} = 1` for a known match, -1 otherwise,

    .. math:: -\frac{1}{p} \sum_{i} \sum_{j} \log \sigma\bigl(z_{ij} (s\, F_i \cdot G_j + b)\bigr),

    with learned scale s and bias b, over the p paired rows i of X and, with ``negatives="pairs"``, the paired rows j of Y: the
    training of :class:`skalign.ContrastiveTeacher`. With ``negatives="all"`` [1]_ (appendix A.2) j runs over all paired and
    unpaired rows of Y; the mean of this loss and that of the other way round is minimised. The heads are linear; the method's
    own are gated networks [2]_.

    Parameters
    ----------
    negatives : {"pairs", "all"}, default="pairs"
        Rows of the other view a paired row is told apart from: paired ones, or unpaired ones too.
    n_components : int, default=None
        Dimension of the shared space; None is ``min(d_x, d_y, 1024)``.
    learning_rate : float, default=1e-3
        Highest learning rate of AdamW, after warm-up over a tenth of the steps; a cosine down to 0 follows.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    max_iter : int, default=100
        Training steps.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer.
    batch_size_unpaired : int or pair of int, default=1024
        Rows per step from the unpaired rows of X and of Y, if ``negatives="all"``.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`skalign.SOTAlignTransformer`.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws weights and batches.
    verbose : bool or int, default=0
        Show a progress bar (needs tqdm).

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the linear heads.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases.
    x_head_, y_head_ : dict of str to ndarray
        The same as torch has them, under "weight" and "bias".
    head_ : str
        Kind of the heads, "linear".
    loss_curve_ : dict of str to list of float
        "loss" of each step; on pairs alone also "siglip", the same, and "divergence", 0.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means of the paired rows at unit length, subtracted after scaling.
    n_iter_ : int
        Steps taken.
    best_iter_ : None
        No pairs are held out.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353.
    .. [2] Zhang et al., "Assessing and Learning Alignment of Unimodal Vision and Language Models", arXiv 2412.04616.

    Examples
    --------
    >>> from skalign.baselines import SAIL
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> rival = SAIL(negatives="all", learning_rate=0.01, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> rival.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _parameter_constraints: dict = {
        **_TrainedRival._parameter_constraints,
        "batch_size_unpaired": _BATCHES,
        "negatives": [StrOptions({"pairs", "all"})],
    }

    def __init__(
        self,
        *,
        negatives="pairs",
        n_components=None,
        learning_rate=1e-3,
        weight_decay=1e-5,
        max_iter=100,
        batch_size=2048,
        batch_size_unpaired=1024,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.negatives = negatives
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.batch_size_unpaired = batch_size_unpaired
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @property
    def _uses_unpaired(self):
        return self.negatives == "all"

    def _objective(self, data):
        return PairsAgainstAll() if self._uses_unpaired else PairsAndTeacher()


class STRUCTURE(_TrainedRival):
    r"""Heads trained with InfoNCE on the pairs, and held to keep what is near in a view near in the shared space.

    .. math:: \mathrm{InfoNCE}\bigl(f(A), g(B)\bigr) + \frac{w}{2} \bigl(R(x) + R(y)\bigr), \qquad
        R = \frac{1}{L} \sum_{l=1}^{L} \frac{1}{2 l} \bigl(\mathrm{KL}(M_l \,\|\, Q^l) + \mathrm{KL}(M_l \,\|\, P^l)\bigr)

    [1]_, [2]_ (appendix A.2), where Q and P are the row-wise softmaxes of the similarities of paired and unpaired rows, at
    unit length less their mean, before and after the heads, divided by `temperature`, and :math:`M_l` the mean of their
    powers. It departs from the paper in that the weight is not warmed up, and that layers are not chosen.

    Parameters
    ----------
    weight : float, default=10
        Weight w of the regulariser, at least 0.
    levels : int, default=1
        Number L of powers.
    temperature : float, default=0.05
        Of InfoNCE and of the similarities, positive.
    n_components : int, default=None
        Dimension of the shared space; None is ``min(d_x, d_y, 1024)``.
    learning_rate : float, default=1e-3
        Highest learning rate of AdamW, after warm-up over a tenth of the steps; a cosine down to 0 follows.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    max_iter : int, default=100
        Training steps.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer.
    batch_size_unpaired : int or pair of int, default=1024
        Rows per step from the unpaired rows of X and of Y.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`skalign.SOTAlignTransformer`.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws weights and batches.
    verbose : bool or int, default=0
        Show a progress bar (needs tqdm).

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the linear heads.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases.
    x_head_, y_head_ : dict of str to ndarray
        The same as torch has them, under "weight" and "bias".
    head_ : str
        Kind of the heads, "linear".
    loss_curve_ : dict of str to list of float
        "loss", "info_nce" and "structure" of each step.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means of the paired rows at unit length, subtracted after scaling.
    n_iter_ : int
        Steps taken.
    best_iter_ : None
        No pairs are held out.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] Gröger et al., "With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You", arXiv 2506.16895.
    .. [2] SOTAlign, arXiv 2602.23353.

    Examples
    --------
    >>> from skalign.baselines import STRUCTURE
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> rival = STRUCTURE(learning_rate=0.01, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> rival.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _parameter_constraints: dict = {
        **_TrainedRival._parameter_constraints,
        "batch_size_unpaired": _BATCHES,
        "weight": [Interval(Real, 0, None, closed="left")],
        "levels": [Interval(Integral, 1, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        *,
        weight=10.0,
        levels=1,
        temperature=0.05,
        n_components=None,
        learning_rate=1e-3,
        weight_decay=1e-5,
        max_iter=100,
        batch_size=2048,
        batch_size_unpaired=1024,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.weight = weight
        self.levels = levels
        self.temperature = temperature
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.batch_size_unpaired = batch_size_unpaired
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _objective(self, data):
        return PairsAndStructure(self.weight, self.levels, self.temperature)


class NNCLR(_TrainedRival):
    r"""Heads trained with the sigmoid loss on the pairs and on pairs whose one row is replaced by a neighbour.

    .. math:: \mathrm{SigLIP}(x, y) + w_y\, \mathrm{SigLIP}(x, y') + w_x\, \mathrm{SigLIP}(x', y)

    [1]_ (appendix A.2), after [2]_ and [3]_: x' and y' are drawn at each step among the nearest rows of the paired row in
    its own view, paired or unpaired. It departs from them in that rows are compared by their cosine about the mean of the
    pairs, as the heads see them.

    Parameters
    ----------
    n_neighbors : int, default=5
        Neighbours to draw from.
    weight_x, weight_y : float, default=1
        Weights of the terms with a neighbour in X and in Y, at least 0.
    n_components : int, default=None
        Dimension of the shared space; None is ``min(d_x, d_y, 1024)``.
    learning_rate : float, default=1e-3
        Highest learning rate of AdamW, after warm-up over a tenth of the steps; a cosine down to 0 follows.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    max_iter : int, default=100
        Training steps.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`skalign.SOTAlignTransformer`.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws weights and batches.
    verbose : bool or int, default=0
        Show a progress bar (needs tqdm).

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the linear heads.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases.
    x_head_, y_head_ : dict of str to ndarray
        The same as torch has them, under "weight" and "bias".
    head_ : str
        Kind of the heads, "linear".
    loss_curve_ : dict of str to list of float
        "loss" of each step, and "siglip" of the pairs themselves.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means of the paired rows at unit length, subtracted after scaling.
    n_iter_ : int
        Steps taken.
    best_iter_ : None
        No pairs are held out.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] SOTAlign, arXiv 2602.23353.
    .. [2] Dwibedi et al., "With a Little Help from My Friends", arXiv 2104.14548.
    .. [3] Li et al., "Supervision Exists Everywhere" (DeCLIP), arXiv 2110.05208.

    Examples
    --------
    >>> from skalign.baselines import NNCLR
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> rival = NNCLR(learning_rate=0.01, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> rival.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _reads_pools = True  # neighbours are sought among all rows

    _parameter_constraints: dict = {
        **_TrainedRival._parameter_constraints,
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "weight_x": [Interval(Real, 0, None, closed="left")],
        "weight_y": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        *,
        n_neighbors=5,
        weight_x=1.0,
        weight_y=1.0,
        n_components=None,
        learning_rate=1e-3,
        weight_decay=1e-5,
        max_iter=100,
        batch_size=2048,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_neighbors = n_neighbors
        self.weight_x = weight_x
        self.weight_y = weight_y
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _objective(self, data):
        return PairsAndNeighbours(data, self.n_neighbors, self.weight_x, self.weight_y)


class SCLIP(_TrainedRival):
    r"""Heads trained with InfoNCE on the pairs, and unpaired rows that learn the partners of rows they resemble (S-CLIP).

    An unpaired row u of X is given a distribution q over the paired rows of X by how much it resembles them, and

    .. math:: \mathrm{InfoNCE}\bigl(f(A), g(B)\bigr) + w_x \operatorname{mean}_u \Bigl({-\sum_j q_j(u)
        \log \operatorname{softmax}_j\bigl(s\, f(u) \cdot g(B_j)\bigr)}\Bigr) + w_y\,(\text{likewise for } Y)

    with a learned scale s (from 20) is minimised [1]_, [2]_ (appendix A.2). It departs from [1]_ in that the
    keyword term is left out, which needs texts, that rows are compared in their own view, by their cosine about the mean of
    the pairs, that plans are solved to a tolerance of 1e-3 instead of 10 iterations, and that weights are not fixed at 1/2.

    Parameters
    ----------
    weight_x, weight_y : float, default=1
        Weights of the unpaired rows of X and of Y, at least 0.
    labels : {"ot", "soft", "hard"}, default="ot"
        How q is made of the cosines: the rows of the transport plan between unpaired and paired rows at epsilon 1 / s, their
        softmax, or the nearest row alone.
    n_components : int, default=None
        Dimension of the shared space; None is ``min(d_x, d_y, 1024)``.
    learning_rate : float, default=1e-3
        Highest learning rate of AdamW, after warm-up over a tenth of the steps; a cosine down to 0 follows.
    weight_decay : float, default=1e-5
        Decoupled weight decay.
    max_iter : int, default=100
        Training steps.
    batch_size : int, default=2048
        Pairs per step; all of them if there are fewer.
    batch_size_unpaired : int or pair of int, default=1024
        Rows per step from the unpaired rows of X and of Y.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`skalign.SOTAlignTransformer`.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Draws weights and batches.
    verbose : bool or int, default=0
        Show a progress bar (needs tqdm).

    Attributes
    ----------
    x_coef_, y_coef_ : ndarray of shape (d_x, k) and (d_y, k)
        Weights of the linear heads.
    x_intercept_, y_intercept_ : ndarray of shape (k,)
        Their biases.
    x_head_, y_head_ : dict of str to ndarray
        The same as torch has them, under "weight" and "bias".
    head_ : str
        Kind of the heads, "linear".
    loss_curve_ : dict of str to list of float
        "loss", "info_nce" and "pseudo" of each step.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means of the paired rows at unit length, subtracted after scaling.
    n_iter_ : int
        Steps taken.
    best_iter_ : None
        No pairs are held out.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes.

    References
    ----------
    .. [1] Mo et al., "S-CLIP: Semi-supervised Vision-Language Learning using Few Specialist Captions", arXiv 2305.14095.
    .. [2] SOTAlign, arXiv 2602.23353.

    Examples
    --------
    >>> from skalign.baselines import SCLIP
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(random_state=0)
    >>> rival = SCLIP(learning_rate=0.01, random_state=0).fit(data.X, data.Y, data.paired_idx)
    >>> rival.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.5
    True
    """

    _parameter_constraints: dict = {
        **_TrainedRival._parameter_constraints,
        "batch_size_unpaired": _BATCHES,
        "weight_x": [Interval(Real, 0, None, closed="left")],
        "weight_y": [Interval(Real, 0, None, closed="left")],
        "labels": [StrOptions({"ot", "soft", "hard"})],
    }

    def __init__(
        self,
        *,
        weight_x=1.0,
        weight_y=1.0,
        labels="ot",
        n_components=None,
        learning_rate=1e-3,
        weight_decay=1e-5,
        max_iter=100,
        batch_size=2048,
        batch_size_unpaired=1024,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.weight_x = weight_x
        self.weight_y = weight_y
        self.labels = labels
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.batch_size_unpaired = batch_size_unpaired
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _objective(self, data):
        return PairsAndPseudoCaptions(self.weight_x, self.weight_y, self.labels)
