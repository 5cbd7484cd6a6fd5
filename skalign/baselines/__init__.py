"""Methods people would otherwise use, as aligners with the same `fit`, `transform` and `score`: rivals to compare with.

Each docstring says what it is faithful to and where it departs. Linear teachers alone are
:class:`skalign.ProcrustesTeacher` and :class:`skalign.CCATeacher`.
"""

from ._anchors import ASIF, RelativeRepresentation
from ._csa import CSA
from ._sue import SUE
from ._trained import NNCLR, SAIL, SCLIP, STRUCTURE

__all__ = ["ASIF", "CSA", "NNCLR", "SAIL", "SCLIP", "STRUCTURE", "SUE", "RelativeRepresentation"]
