"""The lazy door (PEP 562): names are fetched when asked; ``import skalign`` loads neither torch, sklearn nor ot."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from . import baselines, datasets, losses, metrics, model_selection, plotting
    from ._bridge import BridgeFlow
    from ._files import load
    from ._hubness import HubnessCorrection
    from ._retrieval import CrossModalRetriever
    from ._show_versions import show_versions
    from ._sotalign import SOTAlign
    from ._sotalign_transformer import SOTAlignTransformer
    from ._teachers import CCATeacher, ProcrustesTeacher
    from ._trained import ContrastiveTeacher
    from ._zero_shot import ZeroShotClassifier

__version__ = "0.1.0"

_HOMES = {
    "BridgeFlow": "_bridge",
    "CCATeacher": "_teachers",
    "ContrastiveTeacher": "_trained",
    "CrossModalRetriever": "_retrieval",
    "HubnessCorrection": "_hubness",
    "ProcrustesTeacher": "_teachers",
    "SOTAlign": "_sotalign",
    "SOTAlignTransformer": "_sotalign_transformer",
    "ZeroShotClassifier": "_zero_shot",
    "load": "_files",
    "show_versions": "_show_versions",
}
_SUBPACKAGES = ("baselines", "datasets", "losses", "metrics", "model_selection", "plotting")

__all__ = [
    "BridgeFlow",
    "CCATeacher",
    "ContrastiveTeacher",
    "CrossModalRetriever",
    "HubnessCorrection",
    "ProcrustesTeacher",
    "SOTAlign",
    "SOTAlignTransformer",
    "ZeroShotClassifier",
    "baselines",
    "datasets",
    "load",
    "losses",
    "metrics",
    "model_selection",
    "plotting",
    "show_versions",
]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
