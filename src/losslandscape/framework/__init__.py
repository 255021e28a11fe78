r"""Is training done, how sharp is the end point, how flat for its weights, can it be compared?

:func:`assess` answers in four stages, each with its numbers and their intervals:

1. *Gate*: the loss, what further training gains (the polish test), the sign of the curvature.
   It is applied to the balanced network (:func:`~losslandscape.rescaling.balanced`), so that it
   judges the function and not the way it is written.
2. *Absolute sharpness*: :math:`\lambda_{\max}`, trace, and the ratio to the stability limit of the
   optimiser. They belong to these weights and this optimiser.
3. *Relative flatness and isotropy*: measures that no rescaling of a ReLU network changes.
4. *Verdict*, with its reasons, and a check that gate and relative measures survive random
   rescalings. The stability ratio takes no part: it is about the weights as they are written.

:func:`compare` sets two comparable networks against each other.

Every measure is a mean over examples at fixed directions, so its interval comes from a bootstrap
over blocks of examples; for an eigenvalue the direction is its eigenvector, which is right to
first order.
"""

from losslandscape.framework.assessment import assess
from losslandscape.framework.comparison import compare
from losslandscape.framework.findings import (
    MEASURES,
    VERDICTS,
    VOTING,
    Assessment,
    Check,
    Comparison,
    Contrast,
    Measure,
    OrbitCheck,
    Stability,
    Thresholds,
)

__all__ = [
    "MEASURES",
    "VERDICTS",
    "VOTING",
    "Assessment",
    "Check",
    "Comparison",
    "Contrast",
    "Measure",
    "OrbitCheck",
    "Stability",
    "Thresholds",
    "assess",
    "compare",
]
