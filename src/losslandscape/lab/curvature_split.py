r"""What the largest curvature of a classifier is made of: confidence and the outputs' response.

With outputs :math:`f_i = f_w(x_i)`, Jacobian :math:`J_i` and probabilities :math:`p_i`, the Hessian
of the mean cross-entropy is a Gauss-Newton part and a residual,

.. math:: H = \frac1n \sum_i J_i^\top (\operatorname{diag} p_i - p_i p_i^\top) J_i
    + \frac1n \sum_i \sum_k (p_{ik} - 1_{k = y_i}) \nabla^2 f_{ik}

(Sagun et al., *Empirical Analysis of the Hessian of Over-Parametrized Neural Networks*, 2017).
Along a unit vector :math:`v` the first part is the mean variance, under :math:`p_i`, of the change
:math:`J_i v` of the outputs: it vanishes where the network is sure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.objective import flat
from losslandscape.operators import GaussNewtonOperator, HessianOperator


@dataclass(frozen=True)
class CurvatureSplit:
    """The largest curvature of the mean cross-entropy, split along its eigenvector.

    Attributes:
        lambda_max: Rayleigh quotient of the leading eigenvector, in nats per squared weight.
        gauss_newton: The share of ``lambda_max`` that the Gauss-Newton part gives.
        uncertainty: Mean over the images of ``sum_k p_k (1 - p_k)``: 0.9 for ten equal
            probabilities, 0 for a network that is sure.
        norm: Length of the weight vector.
    """

    lambda_max: float
    gauss_newton: float
    uncertainty: float
    norm: float

    @property
    def residual(self) -> float:
        """The rest of ``lambda_max``: errors times the curvature of the outputs."""
        return self.lambda_max - self.gauss_newton


def curvature_split(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, tol: float = 1e-2
) -> CurvatureSplit:
    """Split ``lambda_max`` of the mean cross-entropy on ``batch``.

    Args:
        model: Left as it is.
        batch: Images and labels.
        tol: Relative residual of ``lambda_max``.

    Raises:
        ArithmeticError: ``lambda_max`` did not converge.
    """
    top = lanczos(HessianOperator(model, cross_entropy, batch), tol=tol)
    if not top.converged.all():
        raise ArithmeticError(f"lambda_max did not converge to a relative residual of {tol:g}")
    vector = top.vectors[:, 0]
    with torch.no_grad():
        probabilities = model(batch[0]).softmax(dim=1)
        uncertainty = float((1 - probabilities.square().sum(dim=1)).mean())
        norm = float(torch.linalg.vector_norm(flat(model.parameters())))
    product = GaussNewtonOperator(model, cross_entropy, batch) @ vector
    return CurvatureSplit(float(top.values[0]), float(vector @ product), uncertainty, norm)
