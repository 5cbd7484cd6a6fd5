"""Methods people would otherwise use, as aligners with the same `fit`, `transform` and `score`: rivals to compare with.

SAIL is :class:`skalign.ContrastiveTeacher`; linear teachers alone are :class:`skalign.ProcrustesTeacher` and
:class:`skalign.CCATeacher`.
"""

from ._anchors import ASIF, RelativeRepresentation
from ._csa import CSA

__all__ = ["ASIF", "CSA", "RelativeRepresentation"]
