"""Scorers for searches: they embed the pairs of a part, through pipelines, and measure. Knows scikit-learn, not torch."""

import numpy as np
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.metadata_routing import MetadataRequest
from sklearn.utils.validation import _num_samples

from ._arrays import to_numpy
from ._embedding import embed_y
from ._folds import missing_in_any
from ._pairs import check_pairs, distinct_partners


class RetrievalScorer:
    """See :func:`skalign.metrics.make_retrieval_scorer`; `function` is the metric, `sign` says whether more is better."""

    def __init__(self, metric, function, sign, gallery_size, random_state, arguments):
        self.metric, self.function, self.sign = metric, function, sign
        self.gallery_size, self.random_state, self.arguments = gallery_size, random_state, arguments

    def get_metadata_routing(self):
        """What scikit-learn hands on to a call: the mask."""
        request = MetadataRequest(owner=type(self).__name__)
        request.score.add_request(param="paired_idx", alias=True)
        return request

    def __repr__(self):
        settings = {"gallery_size": self.gallery_size, "random_state": self.random_state} | self.arguments
        return f"make_retrieval_scorer({self.metric!r}, {', '.join(f'{k}={v!r}' for k, v in settings.items())})"

    def __call__(self, estimator, X, y, paired_idx=None):
        n_x, n_y = _num_samples(X), _num_samples(y)
        if paired_idx is None and n_x == n_y:
            paired_idx = ~missing_in_any(n_x, X, y)
        pairs = check_pairs(to_numpy(paired_idx), n_x, n_y)
        if self.gallery_size is not None:
            if len(pairs) < self.gallery_size:
                raise ValueError(
                    f"`gallery_size` is {self.gallery_size}, but the part to score has {len(pairs)} pairs. Lower it, or "
                    "use fewer folds."
                )
            chosen = check_random_state(self.random_state).permutation(len(pairs))[: self.gallery_size]
            pairs = pairs[np.sort(chosen)]
        x_rows, x_of = _distinct(X, pairs[:, 0])
        y_rows, y_of = _distinct(y, pairs[:, 1])
        F, G = estimator.transform(x_rows), embed_y(estimator, y_rows)
        return self.sign * self.function(F, G, np.column_stack([x_of, y_of]), **self.arguments)


def _distinct(view, rows):
    """The distinct ones among some rows of a view, and which of them each row is."""
    values = np.asarray(to_numpy(view))
    if values.dtype == object:  # text or mixed columns: equal ones may lie in different places
        numbers, of = np.unique(rows, return_inverse=True)
    else:
        numbers, of = distinct_partners(values, rows)
    return _safe_indexing(view, numbers), of
