"""BridgeFlow: a conditional flow from X into the space of Y itself, trained on a transport plan or on exemplars."""

from numbers import Integral, Real

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ._arrays import like_input, resolve_device, to_numpy, to_tensor
from ._base import BaseAligner, all_or_nothing
from ._checkpoints import CHECKPOINT_CONSTRAINTS, Checkpoint
from ._classes import classes_of
from ._core.bridges import COSTS, choose, fit_cost
from ._core.couplings import (
    COUPLINGS,
    ExemplarSampler,
    MixedSampler,
    PlanSampler,
    entropic_plan,
    partners_in_mean,
    plan_in_blocks,
)
from ._core.flow import Velocity, fit_source, follow, train_flow
from ._core.training import OPTIMIZERS, undisturbed
from ._labels import judge_labels
from ._pairs import group_pairs, mean_and_scale, some_rows
from ._trained import TRAINING_CONSTRAINTS, held_out_rows, hold_out, progress_bar, to_arrays, warn_of_ending

_EPSILON_TO_JUDGE = 0.05  # of the plans that find held-out pairs: blurred, so that near misses count
_REFERENCE = 5000  # rows of either view over which distances are standardised, directions found and regressions fitted
_TRUSTED = 0.5  # score of held-out pairs in the plan from which on its couples can teach what the pairs cannot


def _has_inverse(flow):
    """What `inverse_transform` needs; scikit-learn looks for it before it counts on the method."""
    if not flow.inverse:
        raise AttributeError(
            "`inverse_transform` needs a flow from Y to X, but none was trained. Fit with inverse=True."
        )
    return True


class BridgeFlow(BaseAligner):
    r"""A flow that carries rows of X into the space of Y, so that what was built on Y can be used on X.

    A velocity field v, conditioned on x, is trained by flow matching [2]_ on couples (x, y): with :math:`z_0` the start of
    x and :math:`z_t = (1 - t) z_0 + t y`,

    .. math:: \min_v \; \mathbb{E}_{(x, y),\, t \sim U[0, 1]} \| v(t, z_t \,|\, x) - (y - z_0) \|^2 .

    A share of the couples are known pairs. The rest come, with ``mode="ot"``, from an optimal transport plan between the
    unpaired rows, whose cost is measured from *bridges*, points known in both spaces; with ``mode="exemplar"``, from classes
    that are labelled on both sides, which needs neither costs nor a plan. The bridges are the pairs, and the mean rows of
    the classes labelled on both sides.

    The idea is that of inter-modal bridges [1]_. That paper's bridge cost, network and solver are not public in full; what
    is built here is a reading of its abstract, with choices measured on synthetic and small real data, and no attempt to
    reproduce its figures. The literal reading of "bridge" is ``cost="chain"``.

    Parameters
    ----------
    mode : {"ot", "exemplar"}, default="ot"
        Where couples beyond the pairs come from. "exemplar" needs `labels_x` and `labels_y` for any, draws every class
        equally often, and takes memory that does not grow with the number of unlabelled rows.
    cost : {"auto", "profile", "chain", "relation", "linear"} or callable, default="auto"
        Cost of matching x with y, given bridges (a_k, b_k), in "ot":

        - "profile": squared difference of the distances to all bridges, standardised by bridge, then by row;
        - "chain": way to a bridge and on from its other end, ``min_k d(x, a_k) + d(b_k, y)``, each over its mean;
        - "relation": Jensen-Shannon divergence of ``softmax_k(-d^2)``, as in KPG-RL [3]_;
        - "linear": squared distance of y and the ridge regression of x;
        - a function ``cost(X, Y, A, B)`` of prepared rows and bridges that returns the matrix of costs.

        "auto" takes the one by which held-out pairs are found best, see `cv_scores_`; with fewer than 10 pairs "linear",
        without any "chain".
    metric : {"euclidean", "cosine"}, default="euclidean"
        Of the distances d within a view.
    coupling : {"exact", "sinkhorn", "unbalanced", "semi_relaxed", "partial"}, default="exact"
        Plan: exact optimal transport; entropic; entropic with both marginals relaxed (some rows of either view may have no
        partner), or that of X alone (every row of Y has one); or exact for a share of the rows.
    epsilon : float, default=0.005
        Entropy of the entropic plans, in units of the mean cost. Couples are drawn from the plan, so a large value blurs.
    rho : float, default=0.1
        Penalty of the relaxed marginals, in units of the mean cost. Small values leave more rows out.
    mass : float, default=0.9
        Share of the smaller view's rows that a "partial" plan matches, above 0 and up to 1.
    plan_size : int, default=4096
        Rows of each view in one transport problem. Larger views are matched in random blocks of that size.
    refine : bool, default=False
        Let the surest couples of the plan join the bridges, in three rounds, if held-out pairs are found better so.
    self_training : bool or classifier, default=True
        In "exemplar", let up to 5,000 further rows of either view join the class that a classifier of the labelled rows
        gives them. True takes the most accurate, by cross-validation, of the nearest class mean, a linear discriminant
        analysis with shrinkage and a support vector machine; the first where a class has one labelled row.
    pair_share : float or "auto", default="auto"
        Share of each batch that is drawn from the known pairs, 0 to 1; 1 trains on the pairs alone. "auto" is 0.25 where
        the other couples can be trusted, see `source`, else 0.75.
    source : {"auto", "lift", "noise", "teacher"}, default="auto"
        Start of the flow, and what the velocity sees of x:

        - "lift": x itself, padded by zeros or cut to its leading principal components;
        - "noise": Gaussian noise, while the velocity sees x;
        - "teacher": the ridge regression of x plus such noise, and that regression is all the velocity sees. The regression
          is fitted on the pairs and on the mean partner of every other row, in the plan or in its class.

        "auto" is "lift" where the couples can be trusted: in "exemplar" with labels, and where the plan finds held-out
        pairs (the best of `cv_scores_` is at least 0.5, or there were too few pairs to tell); else "teacher".
    n_draws : int, default=8
        Starts over which `transform` averages, if they are random ("noise" and "teacher").
    n_steps : int, default=10
        Midpoint steps by which the flow is integrated.
    inverse : bool, default=False
        Also train a flow from Y to X, for `inverse_transform`. Doubles the time.
    hidden_layer_sizes : array-like of int, shape (n_hidden,), default=(256, 256, 256)
        Widths of the hidden layers of the velocity.
    ema : float, default=0.995
        Decay of the moving average of the weights, which is what is kept; less in the first steps. 0 keeps the last.
    optimizer : {"adamw", "lion"} or class, default="adamw"
        A class is called as ``optimizer(params, lr=..., weight_decay=...)``.
    learning_rate : float, default=2e-3
        Highest learning rate; a cosine down to 0 follows.
    weight_decay : float, default=1e-4
        Decoupled weight decay.
    warmup : float, default=0
        Fraction of the steps with rising learning rate.
    max_iter : int, default=1200
        Training steps.
    batch_size : int, default=256
        Couples per step.
    early_stopping : bool, default=False
        Hold pairs out, look every 100 steps at how well they find one another among up to 2,000 unpaired rows (the mean of
        the six recalls), stop after `n_iter_no_change` steps without a better one, and keep the best state.
    validation_fraction : float, default=0.1
        Share of the pairs held out if `early_stopping`. Pairs that share a row stay together.
    n_iter_no_change : int, default=500
        Patience of `early_stopping`, in steps.
    checkpoint_dir : str or path-like, default=None
        Folder in which the state of the training is kept, so that a `fit` that was killed goes on where it was when the
        same line runs again; see :class:`SOTAlignTransformer`. Costs and plan are computed again.
    checkpoint_interval : int, default=100
        Steps between two checkpoints.
    device : str or torch.device, default="auto"
        "auto" is CUDA if it is there, else the CPU. Fitted attributes are NumPy arrays wherever it ran.
    random_state : int, RandomState instance or None, default=None
        Draws weights, couples, noise and held-out pairs. The global random states are left alone.
    verbose : bool or int, default=0
        Show a progress bar with loss, validation recall and time left (needs tqdm).

    Attributes
    ----------
    cost_ : str or callable
        Cost of the plan; None in "exemplar".
    cv_scores_ : dict of str to float
        Mean reciprocal rank of held-out pairs (5 folds, both directions, among up to 500 unpaired rows) in the plan, of
        each cost compared. Empty in "exemplar", and with fewer than 10 pairs that share no row.
    coupling_ : csr_array of shape (u_x, u_y)
        Plan between the unpaired rows of X and of Y, in their order, those of the further pools last; the 32 largest
        entries of each row. None in "exemplar".
    bridges_x_, bridges_y_ : ndarray of shape (m, d_x) and (m, d_y)
        Bridges, centred and scaled.
    flow_, inverse_flow_ : dict of str to ndarray
        Weights of the velocity, and of that from Y to X if `inverse`.
    source_, inverse_source_ : dict of str to ndarray
        The "lift" of x, or the "noise" to average over, around "coef" and "intercept" of a regression.
    x_mean_, y_mean_ : ndarray of shape (d_x,) and (d_y,)
        Means of all rows.
    x_scale_, y_scale_ : float
        Root mean square of all centred entries.
    loss_curve_ : dict of str to list of float
        "loss" of each step; with `early_stopping` also "validation", before the first step and every 100 steps.
    n_iter_ : int
        Steps taken.
    best_iter_ : int or None
        Step whose state was kept, with `early_stopping`; 0 is the start.
    n_components_, n_pairs_, n_features_in_, n_features_in_y_ : int
        Sizes; `n_components_` is `n_features_in_y_`.

    Notes
    -----
    A plan helps where rows have partners among the unpaired ones. Where they have none, as in pools that were drawn apart,
    it links neighbours at best, and :class:`SOTAlign` retrieves better.

    References
    ----------
    .. [1] Gholamzadeh and Sajid, "Model alignment using inter-modal bridges", arXiv 2505.12322.
    .. [2] Lipman et al., "Flow Matching for Generative Modeling", arXiv 2210.02747; with couples across spaces as in
       Klein et al., "GENOT", arXiv 2310.09254.
    .. [3] Gu et al., "Keypoint-Guided Optimal Transport", arXiv 2303.13102.

    Examples
    --------
    >>> from skalign import BridgeFlow
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(50, 200, 200, random_state=0)
    >>> flow = BridgeFlow(max_iter=100, hidden_layer_sizes=(64, 64), random_state=0)
    >>> flow.fit(data.X, data.Y, data.paired_idx).transform(data.X_test).shape
    (100, 30)
    >>> flow.coupling_.shape, flow.couple(data.X_test, data.Y_test).shape
    ((200, 200), (100, 100))
    >>> flow.score(data.X_test, data.Y_test, paired_idx=data.test_idx) > 0.1
    True

    A flow that starts at noise has several answers for a row; one with an inverse goes back:

    >>> flow = BridgeFlow(source="noise", inverse=True, max_iter=20, hidden_layer_sizes=(32,), random_state=0)
    >>> flow.fit_transform(data.X, data.Y, data.paired_idx).shape
    (250, 30)
    >>> flow.sample(data.X_test, 3, random_state=0).shape
    (100, 3, 30)
    >>> flow.inverse_transform(data.Y_test).shape
    (100, 20)
    >>> bool((flow.transform_y(data.Y_test) == data.Y_test).all())  # rows of Y stay where they are
    True
    >>> flow.get_feature_names_out()[:2].tolist()
    ['bridgeflow0', 'bridgeflow1']
    """

    @property
    def _reads_pools(self):
        return self.mode == "ot"  # the coupling matches all rows

    _parameter_constraints: dict = {
        "mode": [StrOptions({"ot", "exemplar"})],
        "cost": [StrOptions({"auto", *COSTS}), callable],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "coupling": [StrOptions(set(COUPLINGS))],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "rho": [Interval(Real, 0, None, closed="neither")],
        "mass": [Interval(Real, 0, 1, closed="right")],
        "plan_size": [Interval(Integral, 1, None, closed="left")],
        "refine": ["boolean"],
        "self_training": ["boolean", HasMethods(["fit", "predict"])],
        "pair_share": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "source": [StrOptions({"auto", "lift", "noise", "teacher"})],
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "n_steps": [Interval(Integral, 1, None, closed="left")],
        "inverse": ["boolean"],
        "hidden_layer_sizes": ["array-like"],
        "ema": [Interval(Real, 0, 1, closed="left")],
        **TRAINING_CONSTRAINTS,
        **CHECKPOINT_CONSTRAINTS,
    }
    # with metadata routing on, labels reach fit without further requests, as the pairs do
    __metadata_request__fit = {"labels_x": True, "labels_y": True}

    def __init__(
        self,
        mode="ot",
        *,
        cost="auto",
        metric="euclidean",
        coupling="exact",
        epsilon=0.005,
        rho=0.1,
        mass=0.9,
        plan_size=4096,
        refine=False,
        self_training=True,
        pair_share="auto",
        source="auto",
        n_draws=8,
        n_steps=10,
        inverse=False,
        hidden_layer_sizes=(256, 256, 256),
        ema=0.995,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=1e-4,
        warmup=0.0,
        max_iter=1200,
        batch_size=256,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=500,
        checkpoint_dir=None,
        checkpoint_interval=100,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.mode = mode
        self.cost = cost
        self.metric = metric
        self.coupling = coupling
        self.epsilon = epsilon
        self.rho = rho
        self.mass = mass
        self.plan_size = plan_size
        self.refine = refine
        self.self_training = self_training
        self.pair_share = pair_share
        self.source = source
        self.n_draws = n_draws
        self.n_steps = n_steps
        self.inverse = inverse
        self.hidden_layer_sizes = hidden_layer_sizes
        self.ema = ema
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_interval = checkpoint_interval
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, Y, paired_idx=None, *, X_unpaired=None, Y_unpaired=None, labels_x=None, labels_y=None):
        """Fit the flow to the known pairs, and to the couples of the plan or of the classes.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in :meth:`SOTAlignTransformer.fit`; with labels, those that are not in memory are read whole.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise. With labels there need not be a pair: ``paired_idx=[]``.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner. With ``mode="ot"`` those that are not in memory are all read into it.
        labels_x, labels_y : array-like of int, shape (n_x,) and (n_y,), default=None
            Class of each row of X and of Y, -1 where it is unknown; both or neither. Rows of the further pools have none.

        Returns
        -------
        self : object
            The fitted flow.

        Raises
        ------
        ValueError
            If a view is not finite, there is neither a pair nor a class that is labelled on both sides, the bridges are
            too few for the cost, or the device is not there.
        OSError
            If rows that are not in memory cannot be read, or `checkpoint_dir` cannot be written to.
        ImportError
            If `verbose` and tqdm is not installed.
        """
        labelled = labels_x is not None or labels_y is not None
        views = self._judge(X, Y, paired_idx, X_unpaired, Y_unpaired, required=not labelled, whole=labelled)
        device = resolve_device(self.device)
        labels = [None if given is None else to_numpy(given) for given in (labels_x, labels_y)]
        checkpoint = Checkpoint.of(self, views, device, labels)
        rng = check_random_state(self.random_state if checkpoint is None else checkpoint.random_state)
        pairs, held_out = hold_out(views.pairs, self.validation_fraction if self.early_stopping else None, rng)
        members, taken = ([], []), None
        if labelled:
            members, taken = judge_labels(views, held_out, labels_x, labels_y)
        self.x_mean_, self.x_scale_ = mean_and_scale(views.X, views.X_pool)
        self.y_mean_, self.y_scale_ = mean_and_scale(views.Y, views.Y_pool)
        self.n_components_ = self.n_features_in_y_

        A, B = self._prepared_x(views.X[pairs[:, 0]]), self._prepared_y(views.Y[pairs[:, 1]])
        some_x = self._prepared_x(some_rows(views.X, views.X_pool, _REFERENCE, rng))
        some_y = self._prepared_y(some_rows(views.Y, views.Y_pool, _REFERENCE, rng))
        classes_x = classes_of(views.X, members[0], self._prepared_x)
        classes_y = classes_of(views.Y, members[1], self._prepared_y)
        if self.mode == "ot":
            U, V = self._prepared_x(views.X_unpaired), self._prepared_y(views.Y_unpaired)
            self._fit_plan(A, B, group_pairs(pairs), (classes_x.means, classes_y.means), U, V, some_x, some_y, rng)
            others = PlanSampler(self.coupling_, rng) if self.coupling_.nnz else None
            partners, back_partners = partners_in_mean(self.coupling_, V), partners_in_mean(self.coupling_.T, U)
            if others is None and not len(pairs):
                raise ValueError(
                    f"Nothing is left to train on: there is no pair, and the {self.coupling!r} plan matches no rows. Raise "
                    "`rho` or `epsilon`, or use coupling='exact'."
                )
        else:
            self.cost_, self.coupling_, self.cv_scores_ = None, None, {}
            self.bridges_x_ = np.concatenate([A, classes_x.means])
            self.bridges_y_ = np.concatenate([B, classes_y.means])
            if self.self_training and labelled:
                classifier = None if self.self_training is True else self.self_training
                further_x = self._prepared_x(some_rows(views.X, views.X_pool, _REFERENCE, rng, taken[0]))
                further_y = self._prepared_y(some_rows(views.Y, views.Y_pool, _REFERENCE, rng, taken[1]))
                classes_x = classes_x.joined_by(further_x, classifier, rng)
                classes_y = classes_y.joined_by(further_y, classifier, rng)
            U, V = classes_x.rows, classes_y.rows
            partners, back_partners = classes_x.partners_in_mean(classes_y), classes_y.partners_in_mean(classes_x)
            others = ExemplarSampler(classes_x.members, classes_y.members, rng) if labelled else None
        trusted = others is not None and max(self.cv_scores_.values(), default=1) >= _TRUSTED
        kind, pair_share = ("lift", 0.25) if trusted else ("teacher", 0.75)
        kind = kind if self.source == "auto" else self.source
        pair_share = pair_share if self.pair_share == "auto" else self.pair_share
        draw = MixedSampler(len(pairs), others, pair_share, rng)

        def tensor(rows):
            return to_tensor(rows, device, torch.float32)

        X, Y, held = tensor(np.concatenate([A, U])), tensor(np.concatenate([B, V])), None
        if held_out is not None:
            prepared = (lambda rows: tensor(self._prepared_x(rows))), (lambda rows: tensor(self._prepared_y(rows)))
            held = held_out_rows(views, held_out, views.X_unpaired, views.Y_unpaired, *prepared)
        self.source_ = fit_source(kind, some_x, *_joined(A, B, U, partners, rng), self.n_draws, rng)
        self.flow_, record = self._fit_flow(X, Y, draw, self.source_, held, rng, draw, checkpoint)
        self.loss_curve_, self.n_iter_, self.best_iter_ = record.curves, record.n_iter, record.best_iter
        if self.inverse:
            back = None if held is None else (held[1], held[0], held[2][:, ::-1])
            self.inverse_source_ = fit_source(kind, some_y, *_joined(B, A, V, back_partners, rng), self.n_draws, rng)
            checkpoint = Checkpoint.of(self, views, device, labels, rng)  # as the first flow has left it
            self.inverse_flow_, _ = self._fit_flow(
                Y, X, lambda n: draw(n)[::-1], self.inverse_source_, back, rng, draw, checkpoint
            )
        return self

    def _fit_plan(self, A, B, groups, means, U, V, some_x, some_y, rng):
        """Choose the cost and its bridges, and match the unpaired rows U and V."""
        relaxed = "sinkhorn" if self.coupling in ("exact", "sinkhorn") else "unbalanced"
        self.cost_, self.bridges_x_, self.bridges_y_, self.cv_scores_ = choose(
            self.cost,
            *(A, B, groups, means, U, V),
            metric=self.metric,
            refine=self.refine,
            solve=lambda C: entropic_plan(C, relaxed, epsilon=_EPSILON_TO_JUDGE, rho=self.rho),
            rng=rng,
        )
        self.coupling_ = self._couple(U, V, some_x, some_y, rng)

    def _fit_flow(self, X, Y, draw, source, held_out, rng, sampler, checkpoint):
        """Weights of a velocity trained on couples of rows of X and of Y, which come from a sampler, and what happened."""
        seed, seed_batches = rng.randint(2**31 - 1, size=2).tolist()
        d_seen = Y.shape[1] if "coef" in source else X.shape[1]
        velocity = Velocity(d_seen, Y.shape[1], _check_widths(self.hidden_layer_sizes), seed).to(X.device)
        progress = progress_bar(self.verbose, type(self).__name__, self.max_iter)
        with progress as report, undisturbed(X.device, seed_batches) as generators:
            record = train_flow(
                velocity,
                source,
                X,
                Y,
                draw,
                batch_size=self.batch_size,
                ema=self.ema,
                seed=seed_batches,
                n_steps=self.n_steps,
                held_out=held_out,
                optimizer=OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                warmup=self.warmup,
                max_iter=self.max_iter,
                n_iter_no_change=self.n_iter_no_change,
                report=report,
                checkpoint=checkpoint,
                parts={"sampler": sampler, "rng": rng, **generators},
            )
        warn_of_ending(record, self.max_iter)
        return to_arrays(velocity.state_dict()), record

    def fit_transform(
        self,
        X,
        Y=None,
        paired_idx=None,
        *,
        X_unpaired=None,
        Y_unpaired=None,
        labels_x=None,
        labels_y=None,
        y=None,
    ):
        """Fit, then map the rows of X alone, as pipelines expect.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views, as in `fit`; no row of X may be missing.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, as in `fit`.
        X_unpaired, Y_unpaired : array-like of shape (q_x, d_x) and (q_y, d_y), default=None
            Further rows without a partner, as in `fit`.
        labels_x, labels_y : array-like of int, shape (n_x,) and (n_y,), default=None
            Class of each row, as in `fit`.
        y : array-like of shape (n_y, d_y), default=None
            Another name of Y, which some of scikit-learn's tools use.

        Returns
        -------
        F : ndarray or Tensor of shape (n_x, d_y)
            Rows in the units of Y.

        Raises
        ------
        ValueError
            As in `fit`, and if a row of X is missing.
        """
        pools = {"X_unpaired": X_unpaired, "Y_unpaired": Y_unpaired}
        Y = self._required(y if Y is None else Y)
        return self.fit(X, Y, paired_idx, **pools, labels_x=labels_x, labels_y=labels_y).transform(X)

    def transform(self, X, Y=None, *, out=None):
        """Carry rows of X into the space of Y.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite. Those that are not in memory (:meth:`SOTAlignTransformer.fit` lists their kinds)
            are read and carried block by block.
        Y : array-like of shape (m, d_y), default=None
            Rows of the second view; they stay where they are.
        out : array of shape (n, d_y), default=None
            Where to write the rows of X, as in :meth:`SOTAlignTransformer.transform`.

        Returns
        -------
        F : ndarray or Tensor of shape (n, d_y)
            Rows in the units of Y. A tensor on the device of X if X is a tensor; `out` if it is given.
        G : ndarray or Tensor of shape (m, d_y)
            Only if Y is given.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        ValueError
            If a view is not finite, has another number of columns than in `fit`, or `out` has another shape.
        """
        return super().transform(X, Y, out=out)

    def transform_y(self, Y, *, out=None):
        """Rows of Y as they are, once they are checked.

        Parameters
        ----------
        Y : array-like of shape (m, d_y)
            Rows of the second view, finite.
        out : array of shape (m, d_y), default=None
            Where to write the rows.

        Returns
        -------
        G : ndarray or Tensor of shape (m, d_y)
            The same rows.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        ValueError
            If Y is not finite, has another number of columns than in `fit`, or `out` has another shape.
        """
        return super().transform_y(Y, out=out)

    def score(self, X, Y=None, sample_weight=None, paired_idx=None, *, y=None):
        """MeanR@1 on the pairs present, by cosines around `y_mean_`.

        A prediction that is unsure lies near the mean, so distances would favour what is there; directions do not.

        Parameters
        ----------
        X, Y : array-like of shape (n_x, d_x) and (n_y, d_y)
            Views.
        sample_weight : array-like of shape (n_x,), default=None
            Weights of the rows of X as queries, as in :meth:`SOTAlignTransformer.score`.
        paired_idx : None, bool (n,), int (p,) or int (p, 2), default=None
            Which rows belong together, likewise.
        y : array-like of shape (n_y, d_y), default=None
            Another name of Y, which some of scikit-learn's tools use.

        Returns
        -------
        score : float
            Mean of both directions, between 0 and 1. Ties count against the model.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        ValueError
            If there is no pair, a view is not finite, or the weights do not fit.
        """
        return super().score(X, Y, sample_weight, paired_idx, y=y)

    def get_feature_names_out(self, input_features=None):
        """Names of the columns of `transform`: those of Y, if Y had names in `fit`.

        Parameters
        ----------
        input_features : object, default=None
            Names of the columns of X, which do not matter.

        Returns
        -------
        names : ndarray of str, shape (d_y,)
            Without names of Y, the class's name in small letters and a number.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        """
        check_is_fitted(self)
        if hasattr(self, "feature_names_in_y_"):
            return np.asarray(self.feature_names_in_y_, dtype=object)
        return super().get_feature_names_out()

    def sample(self, X, n_samples=1, *, random_state=None):
        """Draw rows of Y that belong to each row of X.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite.
        n_samples : int, default=1
            Draws for each row.
        random_state : int, RandomState instance or None, default=None
            Draws the noise.

        Returns
        -------
        G : ndarray or Tensor of shape (n, n_samples, d_y)
            Rows in the units of Y.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        ValueError
            If the flow does not start at noise, or X is not finite or has another number of columns than in `fit`.
        """
        check_is_fitted(self)
        if "lift" in self.source_:
            raise ValueError(
                f"`sample` draws noise to start from, but the flow was fitted with source={self.source!r} and starts at the "
                "lifted row, which gives one row of Y for each row of X. Fit it with source='noise', or use `transform`."
            )
        checked = self._check_x(X)
        seed = check_random_state(random_state).randint(2**31 - 1)
        rows = np.repeat(self._prepared_x(checked), n_samples, axis=0)
        G = self._unprepared_y(self._follow(rows, self.flow_, self.source_, seed))
        return like_input(G.reshape(len(checked), n_samples, -1), X)

    @available_if(_has_inverse)
    def inverse_transform(self, Y):
        """Map rows of Y into the space of X, by the flow trained for it.

        Parameters
        ----------
        Y : array-like of shape (m, d_y)
            Rows of the second view, finite.

        Returns
        -------
        F : ndarray or Tensor of shape (m, d_x)
            Rows in the units of X.

        Raises
        ------
        AttributeError
            Without ``inverse=True``.
        NotFittedError
            If the flow is not fitted.
        ValueError
            If Y is not finite or has another number of columns than in `fit`.
        """
        check_is_fitted(self, "inverse_flow_")
        prepared = self._prepared_y(self._check_y(Y))
        F = self._follow(prepared, self.inverse_flow_, self.inverse_source_)
        return like_input(F * F.dtype.type(self.x_scale_) + self.x_mean_.astype(F.dtype), Y)

    def couple(self, X, Y):
        """Transport plan between given rows, with the cost and the bridges found in `fit`.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite; distances are standardised over them.
        Y : array-like of shape (m, d_y)
            Rows of the second view.

        Returns
        -------
        plan : csr_array of shape (n, m)
            Total mass 1, or less where some may have no partner; the 32 largest entries of each row.

        Raises
        ------
        NotFittedError
            If the flow is not fitted.
        ValueError
            If the estimator was fitted with ``mode="exemplar"``, or a view is not finite or has another number of columns
            than in `fit`.
        """
        check_is_fitted(self)
        if self.cost_ is None:
            raise ValueError("mode='exemplar' has neither cost nor plan. Fit with mode='ot'.")
        X, Y = self._prepared_x(self._check_x(X)), self._prepared_y(self._check_y(Y))
        return self._couple(X, Y, X, Y, check_random_state(self.random_state))

    def _couple(self, X, Y, some_x, some_y, rng):
        if not (len(X) and len(Y)):
            return csr_array((len(X), len(Y)))
        cost = fit_cost(self.cost_, self.bridges_x_, self.bridges_y_, some_x, some_y, self.metric)
        most = -(-self.max_iter * self.batch_size // self.plan_size)  # as many blocks as training can draw from
        return plan_in_blocks(cost, X, Y, self.plan_size, most, rng, coupling=self.coupling, **self._plan_settings())

    def _plan_settings(self):
        return {"epsilon": self.epsilon, "rho": self.rho, "mass": self.mass}

    def _embed_x(self, X):
        return self._unprepared_y(self._follow(self._prepared_x(X), self.flow_, self.source_))

    def _embed_y(self, Y):
        return Y

    def _layers(self, view):
        raise NotImplementedError(
            "BridgeFlow has no torch layers: a flow is integrated in steps. Serve it with skalign.load or joblib."
        )

    def _compared(self, Z):
        return Z - self.y_mean_.astype(Z.dtype)

    def _prepared_x(self, X):
        return (X - self.x_mean_.astype(X.dtype)) / X.dtype.type(self.x_scale_)

    def _prepared_y(self, Y):
        return (Y - self.y_mean_.astype(Y.dtype)) / Y.dtype.type(self.y_scale_)

    def _unprepared_y(self, Z):
        return Z * Z.dtype.type(self.y_scale_) + self.y_mean_.astype(Z.dtype)

    def _follow(self, rows, weights, source, seed=None):
        """Where a flow takes prepared rows; one draw of the noise with a seed, else the mean over its bank."""
        device = resolve_device(self.device)
        tensor = to_tensor(rows, dtype=torch.float32 if device.type == "mps" else None)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return follow(weights, source, tensor, self.n_steps, device, generator).numpy().astype(rows.dtype, copy=False)


def _joined(A, B, rows, partners, rng):
    """Pairs (A, B) and some further rows with their partners, as pairs of points to regress on."""
    at, means = partners
    some = np.sort(rng.permutation(len(at))[:_REFERENCE])
    return np.concatenate([A, rows[at[some]]]), np.concatenate([B, means[some]])


def _check_widths(widths):
    widths = tuple(widths)
    if not all(isinstance(width, Integral) and width >= 1 for width in widths):
        raise ValueError(f"`hidden_layer_sizes` must hold integers of at least 1, but it is {widths}.")
    return widths
