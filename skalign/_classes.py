"""Labelled classes of a view, and the classifiers by which further rows join them. Knows scikit-learn, no aligners."""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

_FOLDS = 5
_MOST_COMPONENTS = 256  # of the rows a discriminant analysis sees
_MOST_TAUGHT = 5000  # labelled rows that teach a classifier


class Classes(NamedTuple):
    """Labelled rows of a view, prepared; the rows of each class among them; the mean of each class."""

    rows: np.ndarray
    members: list
    means: np.ndarray

    def joined_by(self, rows, classifier, rng):
        """The same with some more rows, each in the class that a classifier of the labelled ones gives it; the means stay.

        None is the classifier that `choose_classifier` finds.
        """
        if len(self.members) < 2 or not len(rows):
            return self
        labels = self._labels()
        taught = rng.permutation(len(labels))[:_MOST_TAUGHT]
        known, labels = self.rows[np.concatenate(self.members)[taught]], labels[taught]
        if classifier is None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* zero standard deviation")  # columns may be constant
                classifier = choose_classifier(known, labels, rng).fit(known, labels)
        else:
            classifier = clone(classifier).fit(known, labels)
        of_class = classifier.predict(rows)
        joined = [np.append(at, len(self.rows) + np.flatnonzero(of_class == c)) for c, at in enumerate(self.members)]
        return self._replace(rows=np.concatenate([self.rows, rows]), members=joined)

    def partners_in_mean(self, other):
        """Rows of all classes (as positions), and the mean of each one's class in the other view."""
        at, labels = np.concatenate([np.empty(0, dtype=np.intp), *self.members]), self._labels()
        return at, other.means[labels]

    def _labels(self):
        return np.repeat(np.arange(len(self.members)), [len(at) for at in self.members])


def classes_of(view, members, prepare):
    """Classes of a view from the rows of each; ``prepare(rows)`` centres and scales them."""
    labelled = np.unique(np.concatenate([np.empty(0, dtype=np.intp), *members]))
    rows, members = prepare(view[labelled]), [np.searchsorted(labelled, at) for at in members]
    means = np.array([rows[at].mean(axis=0) for at in members], dtype=view.dtype)
    return Classes(rows, members, means.reshape(-1, view.shape[1]))


def choose_classifier(rows, labels, rng):
    """The most accurate by cross-validation of three; the nearest mean where a class has one row."""
    nearest = NearestCentroid()
    n_folds = min(_FOLDS, np.bincount(labels).min())
    if n_folds < 2:
        return nearest
    n_components = min(_MOST_COMPONENTS, rows.shape[1], len(rows) // 3)
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    candidates = [
        nearest,
        make_pipeline(PCA(n_components, random_state=0), discriminant),
        SVC(C=10, gamma=0.5 / rows.shape[1]),
    ]
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=rng.randint(2**31 - 1))
    return max(candidates, key=lambda candidate: cross_val_score(candidate, rows, labels, cv=folds).mean())
