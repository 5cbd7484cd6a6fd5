"""Displays: pictures of retrieval, of training and of the spaces, drawn by matplotlib in the manner of scikit-learn.

``from_estimator`` and ``from_predictions`` compute and draw; ``plot`` draws again. Names are fetched when asked, matplotlib is
imported when something is drawn (``pip install "skalign[plots]"``).
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from ._loss_curve import LossCurveDisplay
    from ._pairs_curve import PairsCurveDisplay
    from ._plan import PlanDisplay
    from ._recall_curve import RecallCurveDisplay
    from ._similarity import SimilarityDisplay
    from ._spaces import SpacesDisplay

_HOMES = {
    "LossCurveDisplay": "_loss_curve",
    "PairsCurveDisplay": "_pairs_curve",
    "PlanDisplay": "_plan",
    "RecallCurveDisplay": "_recall_curve",
    "SimilarityDisplay": "_similarity",
    "SpacesDisplay": "_spaces",
}

__all__ = [
    "LossCurveDisplay",
    "PairsCurveDisplay",
    "PlanDisplay",
    "RecallCurveDisplay",
    "SimilarityDisplay",
    "SpacesDisplay",
]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
