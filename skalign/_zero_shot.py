"""Zero-shot classification in the shared space of a fitted aligner. Thin; knows scikit-learn, not torch."""

from numbers import Real

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ._arrays import floats_of, to_numpy
from ._base import all_or_nothing
from ._core.rows import normalize_rows
from ._embedding import embed_by


class ZeroShotClassifier(ClassifierMixin, BaseEstimator):
    r"""Classify rows of one view by the prompts of the other view they are nearest to, without labelled rows.

    With unit rows :math:`F_i` of X and :math:`G_j` of the prompts in the shared space, class c has the cosine

    .. math:: s_{ic} = F_i \cdot \frac{\sum_{j \in c} G_j}{\|\sum_{j \in c} G_j\|}
        \quad \text{(pooling="mean")} \qquad \text{or} \qquad
        s_{ic} = \max_{j \in c} F_i \cdot G_j \quad \text{(pooling="max")},

    the former as CLIP does [1]_. The prediction is the class of the largest cosine, and its probability the softmax of
    :math:`s_{ic} / T`. All classes are equally likely beforehand, however many prompts they have.

    `fit` learns nothing from rows of X when there are prompts: ``fit()`` alone will do. It takes X and y all the same, so
    that pipelines and searches work, and refuses labels that no prompt describes. Without prompts the labelled rows
    themselves stand in for them: the classifier of nearest class means, to compare with.

    Parameters
    ----------
    aligner : fitted aligner, default=None
        Or a fitted pipeline or search that holds one; it puts rows of X and prompts into one space. Used as it is, neither
        cloned nor fitted. Searches and other tools clone what they are given, which drops the aligner's fit, and `fit` then
        says so: give them ``FrozenEstimator(aligner)`` (:class:`sklearn.frozen.FrozenEstimator`). None if rows and prompts
        are in one space already, as CLIP's are.
    prompts : array-like of shape (m, d_y), default=None
        Embedded prompts, rows of the second view: names of classes, or sentences about them.
    prompt_classes : array-like of shape (m,), default=None
        Class of each prompt, text or numbers; one or several prompts a class, not equally many.
    pooling : {"mean", "max"}, default="mean"
        Whether a class stands at the mean of its prompts or at each of them. "max" holds one row a prompt.
    temperature : float, default=0.01
        Temperature T of `predict_proba`, positive, in units of cosine; `predict` does not depend on it. CLIP's is 0.01.
        Cosines of other spaces spread otherwise: where there are labels, choose it in a search by log-loss, or let
        :class:`sklearn.calibration.CalibratedClassifierCV` do so.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Classes in sorted order.
    class_embeddings_ : ndarray of shape (q, k)
        Unit rows of the shared space, those of a class together, in the order of `classes_`: one a class, or one a
        prompt with ``pooling="max"``.
    class_starts_ : ndarray of shape (n_classes,)
        Row of `class_embeddings_` at which each class begins.
    n_features_in_ : int
        Columns of X.

    Notes
    -----
    A class to which many rows belong is rightly near to many rows. An aligner with a hubness correction takes just that
    away, and has been seen to lose six points of accuracy on emoji: for classes use ``SOTAlign(hubness_correction=False)``.

    References
    ----------
    .. [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020,
       section 3.1.4.

    Examples
    --------
    >>> from skalign import CCATeacher, ZeroShotClassifier
    >>> from skalign.datasets import load_emoji
    >>> data = load_emoji()
    >>> aligner = CCATeacher(reg=0.1).fit(data.X, data.Y, data.paired_idx)
    >>> unseen = slice(300, None)  # texts whose pictures nobody saw
    >>> classifier = ZeroShotClassifier(aligner, prompts=data.Y[unseen], prompt_classes=data.group_Y[unseen]).fit()
    >>> len(classifier.classes_)
    9
    >>> classifier.score(data.X_test, data.group_test) > 0.5
    True

    Each picture has a class, and of every class a probability and a cosine:

    >>> classifier.predict(data.X_test[:2]).shape
    (2,)
    >>> classifier.predict_proba(data.X_test[:2]).shape, classifier.decision_function(data.X_test[:2]).shape
    ((2, 9), (2, 9))
    """

    _parameter_constraints: dict = {
        "aligner": [HasMethods(["transform"]), None],
        "prompts": "no_validation",  # fit judges them
        "prompt_classes": "no_validation",
        "pooling": [StrOptions({"mean", "max"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, aligner=None, *, prompts=None, prompt_classes=None, pooling="mean", temperature=0.01):
        self.aligner = aligner
        self.prompts = prompts
        self.prompt_classes = prompt_classes
        self.pooling = pooling
        self.temperature = temperature

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, X=None, y=None):
        """Embed the prompts.

        Parameters
        ----------
        X : array-like of shape (n, d_x), default=None
            Rows to be classified; only their number of columns is read. Without prompts they stand in for them.
        y : array-like of shape (n,), default=None
            Their classes, each of which must have a prompt; needed only without prompts.

        Returns
        -------
        self : object
            The fitted classifier.

        Raises
        ------
        NotFittedError
            If the aligner is not fitted.
        ValueError
            If rows or prompts are not finite or of a wrong width, classes and prompts are not equally many, or a label
            has no prompt.
        """
        if self.prompts is None:
            rows, classes = self._labelled_rows(X, y)
        else:
            rows, classes = self._labelled_prompts()
            self._learn_columns(X, y, set(classes.tolist()))
        encoder = LabelEncoder().fit(classes)
        self.classes_ = encoder.classes_
        codes = encoder.transform(classes)
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(self.classes_)))
        if self.pooling == "mean":
            sums = np.add.reduceat(rows[order], starts, axis=0)
            self.class_embeddings_, self.class_starts_ = normalize_rows(sums), np.arange(len(starts))
        else:
            self.class_embeddings_, self.class_starts_ = rows[order], starts
        return self

    def decision_function(self, X):
        """Cosine of each row with each class.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite.

        Returns
        -------
        scores : ndarray of shape (n, n_classes), or (n,) of two classes
            Cosines, between -1 and 1; of two classes their difference, the second's minus the first's.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If X is not finite or has another number of columns than in `fit`.
        """
        cosines = self._cosines(X)
        return cosines[:, 1] - cosines[:, 0] if len(self.classes_) == 2 else cosines

    def predict(self, X):
        """Class of each row.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite.

        Returns
        -------
        y : ndarray of shape (n,)
            That of the largest cosine; among equals the first.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If X is not finite or has another number of columns than in `fit`.
        """
        nearest = self._cosines(X).argmax(axis=1)
        return self.classes_[nearest]

    def predict_proba(self, X):
        """Probability of each class.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes)
            Softmax of the cosines over the temperature; columns in the order of `classes_`.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If X is not finite or has another number of columns than in `fit`.
        """
        cosines = self._cosines(X).astype(np.float64)
        # the largest taken away first, so that a tiny temperature divides nothing to infinity but what is far behind
        with np.errstate(over="ignore"):
            return softmax((cosines - cosines.max(axis=1, keepdims=True)) / self.temperature, axis=1)

    def score(self, X, y, sample_weight=None):
        """Accuracy.

        Parameters
        ----------
        X : array-like of shape (n, d_x)
            Rows of the first view, finite.
        y : array-like of shape (n,)
            Their classes.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows.

        Returns
        -------
        score : float
            Share of rows whose class is found, between 0 and 1.

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If X is not finite or has another number of columns than in `fit`, or X and y are not equally long.
        """
        return super().score(X, y, sample_weight)

    def _labelled_rows(self, X, y):
        """Embedded rows of X and their classes, which stand in for prompts."""
        if self.prompt_classes is not None:
            raise ValueError(
                "`prompt_classes` are the classes of `prompts`, but `prompts` is None. Pass both or neither."
            )
        if X is None or y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None. Without `prompts`, X and y stand "
                "in for them; pass both, or `prompts` and `prompt_classes`."
            )
        checked, classes = validate_data(self, to_numpy(X), to_numpy(y), dtype=floats_of(X))
        check_classification_targets(classes)
        return self._embedded_x(X, checked), classes

    def _labelled_prompts(self):
        """Embedded prompts and their classes."""
        if self.prompt_classes is None:
            raise ValueError("`prompts` need `prompt_classes`, the class of each, but that is None. Pass both.")
        if isinstance(self.prompts, dict):
            raise ValueError(
                "`prompts` must be rows of one array, but it is a dict. Stack its values, and pass the key of each row as "
                "`prompt_classes`."
            )
        try:
            classes = column_or_1d(to_numpy(self.prompt_classes))
            check_classification_targets(classes)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`prompt_classes` must be a column of text or of whole numbers, none of them missing, but: {error}"
            ) from error
        prompts = check_array(to_numpy(self.prompts), dtype=floats_of(self.prompts), input_name="prompts")
        if len(prompts) != len(classes):
            raise ValueError(
                f"`prompt_classes` must hold one class a prompt, but there are {len(classes)} classes and {len(prompts)} "
                "prompts. Repeat the class of every prompt it has."
            )
        if self.aligner is None:
            return normalize_rows(prompts), classes
        return embed_by(self.aligner, self.prompts, "y"), classes

    def _learn_columns(self, X, y, described):
        """Columns of X as they are given, or else as the aligner knows them; labels are only checked."""
        if self.aligner is None:
            known = {"n_features_in_": np.shape(self.prompts)[1]}
        else:
            names = ("n_features_in_", "feature_names_in_")
            known = {name: getattr(self.aligner, name) for name in names if hasattr(self.aligner, name)}
        if X is None:
            for name in ("n_features_in_", "feature_names_in_"):  # of an earlier fit
                vars(self).pop(name, None)
            vars(self).update(known)
            return
        checked = validate_data(self, to_numpy(X), to_numpy(y), dtype=floats_of(X))
        n_features = known.get("n_features_in_", self.n_features_in_)
        if self.n_features_in_ != n_features:
            place = "the prompts have" if self.aligner is None else "the aligner takes"
            raise ValueError(
                f"X has {self.n_features_in_} columns, but {place} {n_features}. Pass the view that is to be classified, "
                "from the encoder it was aligned with."
            )
        if y is not None:
            check_classification_targets(checked[1])
            unknown = sorted(set(checked[1].tolist()) - described, key=str)
            if unknown:
                raise ValueError(
                    f"y has classes without a prompt: {unknown[:5]}. Add a prompt for each, or leave their rows out; "
                    f"`prompt_classes` holds {sorted(described, key=str)[:5]}{' ...' if len(described) > 5 else ''}."
                )

    def _cosines(self, X):
        """Largest cosine of each row with a row of each class, shape (n, n_classes)."""
        check_is_fitted(self)
        F = self._embedded_x(X, validate_data(self, to_numpy(X), reset=False, dtype=floats_of(X)))
        cosines = F @ self.class_embeddings_.astype(F.dtype, copy=False).T  # (n, q)
        return np.maximum.reduceat(cosines, self.class_starts_, axis=1)

    def _embedded_x(self, X, checked):
        """Rows of X in the shared space; the aligner takes them as they came, for it knows the names of the columns."""
        return normalize_rows(checked) if self.aligner is None else embed_by(self.aligner, X, "x")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.prompts is None
        return tags
