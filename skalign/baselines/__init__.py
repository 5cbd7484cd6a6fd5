"""Methods people would otherwise use, as aligners with the same `fit`, `transform` and `score`: rivals to compare with.

Each docstring says what it is faithful to and where it departs. Linear teachers alone are
:class:`skalign.ProcrustesTeacher` and :class:`skalign.CCATeacher`. Names are fetched when asked: those that train nothing
never load torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers, which do not run __getattr__
    from ._anchors import ASIF, RelativeRepresentation
    from ._csa import CSA
    from ._sue import SUE
    from ._trained import NNCLR, SAIL, SCLIP, STRUCTURE

_HOMES = {
    "ASIF": "_anchors",
    "CSA": "_csa",
    "NNCLR": "_trained",
    "SAIL": "_trained",
    "SCLIP": "_trained",
    "STRUCTURE": "_trained",
    "SUE": "_sue",
    "RelativeRepresentation": "_anchors",
}

__all__ = ["ASIF", "CSA", "NNCLR", "SAIL", "SCLIP", "STRUCTURE", "SUE", "RelativeRepresentation"]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
