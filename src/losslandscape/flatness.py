r"""Flatness relative to the weights: measures that a rescaling of the network leaves alone.

A ReLU network can be rescaled, layer by layer or unit by unit, without changing its function
(:mod:`losslandscape.rescaling`); plain curvature changes, the measures here do not:

==================================  =========================================  ===================
measure                             formula                                    invariant under
==================================  =========================================  ===================
:func:`fisher_rao`                  :math:`w^\top G w`                         layers, units
:func:`relative_flatness`           :math:`\sum_{s,s'} \langle w_s, w_{s'}     layers; units too if
                                    \rangle \operatorname{tr} H_{ss'}`         ``normalise``
``weight_scale`` with               :math:`|w| H |w|`                          layers, units,
``ScaledOperator``                                                             filters
:func:`row_scale` with              :math:`N H N`, :math:`N` the norm of       layers, filters
``ScaledOperator``                  each row
:func:`input_jacobian`              :math:`E \lVert J_x f \rVert^2`            anything that keeps
                                                                               the function
==================================  =========================================  ===================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from losslandscape.estimates import Estimate, summary
from losslandscape.objective import (
    Batch,
    LossFunction,
    MeanLoss,
    derivatives,
    pull_back,
    select_parameters,
    untouched,
)


def fisher_rao(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> Estimate:
    r"""The Fisher-Rao norm, the curvature of the loss along the weights themselves.

    .. math:: w^\top G w = \frac1n \sum_i u_i^\top\, \nabla^2_f \ell(f_i, y_i)\, u_i,
        \qquad u_i = J_i w

    For cross-entropy :math:`G` is the Fisher matrix with labels drawn from the model, and a term
    is the variance of :math:`u_i` under the predicted probabilities.
    Neither layer-wise nor unit-wise rescaling changes it.

    Source: Liang, Poggio, Rakhlin, Stokes, *Fisher-Rao Metric, Geometry, and Complexity of Neural
    Networks*, AISTATS 2019, definition 2. Cost: one Jacobian product, less than one
    Hessian-vector product.

    Args:
        model, loss_fn, data, params, chunk_size: As for
            :class:`~losslandscape.operators.HessianOperator`; the model returns one tensor.

    Returns:
        The mean over examples; its standard error takes them as a random sample.

    Raises:
        ValueError: As for :class:`~losslandscape.operators.HessianOperator`, or a model that
            returns something else.

    Example:
        Least squares in one dimension: ``G = 2 mean(x^2)``.

        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> X = torch.tensor([[1.0], [2.0]])
        >>> fisher_rao(model, nn.functional.mse_loss, (X, 0 * X)).value
        45.0
    """
    return summary(fisher_rao_terms(model, loss_fn, data, params=params, chunk_size=chunk_size))


def fisher_rao_terms(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    params: Iterable[nn.Parameter] | None = None,
    chunk_size: int = 128,
) -> Tensor:
    """The terms of the mean :func:`fisher_rao`, one per example, ``(n,)``."""
    objective = MeanLoss(model, loss_fn, data, params=params, chunk_size=chunk_size)
    weights = [p.detach() for p in objective.params]
    terms = []
    with untouched(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in objective.batches:
            outputs = _single_tensor(model(inputs.to(objective.device)))
            # J' u is linear in u, so its derivative with respect to u, along w, is J w.
            dummy = torch.zeros_like(outputs, requires_grad=True)
            pulled = derivatives(outputs, objective.params, dummy)
            pushed = pull_back(pulled, [dummy], weights)[0]
            terms.append(_bends(loss_fn, outputs, targets.to(objective.device), pushed))
    return torch.cat(terms).double().cpu()


def relative_flatness(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    normalise: bool = False,
    chunk_size: int = 128,
) -> Estimate:
    r"""Relative flatness of the last linear layer (a small value is flat).

    With rows :math:`w_s` of its matrix :math:`W`, inputs :math:`\phi(x)`, and
    :math:`A = \nabla^2_f \ell`,

    .. math:: \kappa = \sum_{s,s'} \langle w_s, w_{s'} \rangle \operatorname{tr} H_{ss'}
        = \frac1n \sum_i \lVert \phi(x_i) \rVert^2 \operatorname{tr}(W^\top A_i W),

    which for cross-entropy is
    :math:`E\, \lVert \phi \rVert^2 (\sum_s p_s \lVert w_s \rVert^2 - \lVert \sum_s p_s w_s
    \rVert^2)`.
    The bias of the layer does not enter.

    Source: Petzka, Kamp, Adilova, Sminchisescu, Boley, *Relative Flatness and Generalization*,
    NeurIPS 2021, definition 3. Cost: one forward pass.

    Args:
        model: Returns ``(n, outputs)``, computed by an ``nn.Linear`` as its last step.
        loss_fn, data, chunk_size: As for :class:`~losslandscape.operators.HessianOperator`.
        normalise: Measure features in units of their standard deviation over the data, and the
            columns of ``W`` with them; then unit-wise rescaling changes nothing either.
            Features without deviation are left out.

    Returns:
        The mean over examples; its standard error takes them as a random sample and the
        deviations of the features as known.

    Raises:
        ValueError: As for :class:`~losslandscape.operators.HessianOperator`, or the last step is
            no linear layer on ``(n, features)``.

    Example:
        One output and squared error: ``kappa = |w|^2 * 2 mean |phi|^2``.

        >>> model = nn.Linear(2, 1)
        >>> _ = nn.init.ones_(model.weight)
        >>> X = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
        >>> round(relative_flatness(model, nn.functional.mse_loss, (X, torch.zeros(2, 1))).value, 4)
        50.0
    """
    return summary(
        relative_flatness_terms(model, loss_fn, data, normalise=normalise, chunk_size=chunk_size)
    )


def relative_flatness_terms(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch | Iterable[Batch],
    *,
    normalise: bool = False,
    chunk_size: int = 128,
) -> Tensor:
    """The terms of the mean :func:`relative_flatness`, one per example, ``(n,)``."""
    objective = MeanLoss(model, loss_fn, data, chunk_size=chunk_size)
    features, outputs, layers = [], [], []
    with untouched(model), torch.no_grad():
        for inputs, _ in objective.batches:
            layer, phi, out = _last_linear(model, inputs.to(objective.device))
            layers.append(layer)
            features.append(phi)
            outputs.append(out)
    if any(layer is not layers[0] for layer in layers):
        raise ValueError("the last linear layer is not the same for all inputs")
    phi, weight = torch.cat(features).double(), layers[0].weight.detach().double()
    if normalise:
        deviation = phi.std(dim=0, correction=0)
        alive = deviation > torch.finfo(objective.dtype).eps * phi.abs().amax(dim=0)
        phi, weight = phi[:, alive] / deviation[alive], weight[:, alive] * deviation[alive]
    # tr W'AW = sum of r'Ar over the columns r of any root of WW': no more than there are outputs.
    values, vectors = torch.linalg.eigh(weight @ weight.T)
    root = (vectors * values.clamp(min=0).sqrt()).to(objective.dtype)
    bends = []
    with torch.enable_grad():
        for (_, targets), out in zip(objective.batches, outputs, strict=True):
            labels = targets.to(objective.device)
            parts = [_bends(loss_fn, out, labels, column.expand_as(out)) for column in root.T]
            bends.append(torch.stack(parts).sum(dim=0))
    return (phi.square().sum(dim=1) * torch.cat(bends).double()).cpu()


def row_scale(model: nn.Module, *, params: Iterable[nn.Parameter] | None = None) -> Tensor:
    """The diagonal of a ``ScaledOperator`` that makes curvature relative to rows and filters.

    Each weight gets the Euclidean norm of the row (output unit, filter) of its tensor. An entry of
    a bias is a row of its own; a row that held weights and bias together would change under
    rescaling, since a deep bias grows with other factors than the weights beside it.

    Source: Li, Xu, Taylor, Studer, Goldstein, *Visualizing the Loss Landscape of Neural Nets*,
    NeurIPS 2018, section 4 (filter normalisation).

    Returns:
        ``(D,)``, in the order of ``model.parameters()``.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[3.0, -4.0]]), torch.tensor([-2.0])
        >>> row_scale(model)
        tensor([5., 5., 2.])
    """
    pieces = []
    for p in select_parameters(model, params):
        rows = p.detach().reshape(len(p), -1) if p.ndim else p.detach().reshape(1, 1)
        pieces.append(torch.linalg.vector_norm(rows, dim=1, keepdim=True).expand_as(rows))
    return torch.cat([piece.reshape(-1) for piece in pieces])


def input_jacobian(
    model: nn.Module, inputs: Tensor | Iterable[Tensor], *, chunk_size: int = 128
) -> Estimate:
    r"""Mean squared Frobenius norm of the derivatives of the outputs by the inputs.

    .. math:: E_x \lVert J_x f \rVert_F^2

    It belongs to the function, so no rescaling of the weights can change it.

    Source: Novak et al., *Sensitivity and Generalization in Neural Networks*, ICLR 2018,
    section 3.1 (there of the probabilities). Cost: one backward pass for each output.

    Args:
        model: Returns one tensor, each example's outputs from its own input only.
        inputs: ``(n, ...)`` of a floating type, or an iterable of such.
        chunk_size: Most examples in one forward pass.

    Raises:
        ValueError: Inputs that are not floating-point numbers, or no inputs.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model.weight.data = torch.tensor([[3.0, -4.0]])
        >>> input_jacobian(model, torch.zeros(5, 2)).value
        25.0
    """
    device = next(model.parameters()).device
    terms = []
    with untouched(model), torch.enable_grad():
        for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
            if not batch.is_floating_point():
                raise ValueError(f"inputs of type {batch.dtype} have no derivative")
            for chunk in batch.split(chunk_size):
                x = chunk.detach().to(device).requires_grad_()
                outputs = _single_tensor(model(x)).reshape(len(x), -1)
                total = torch.zeros(len(x), dtype=torch.float64, device=device)
                for place in range(outputs.shape[1]):
                    (slope,) = torch.autograd.grad(outputs[:, place].sum(), x, retain_graph=True)
                    total += slope.double().reshape(len(x), -1).square().sum(dim=1)
                terms.append(total.cpu())
    if not terms:
        raise ValueError("there are no inputs: give at least one example")
    return summary(torch.cat(terms))


def _bends(loss_fn: LossFunction, outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
    """``u_i' (d^2 loss_i / d f_i^2) u_i`` for each example, ``(n,)``.

    The loss is a mean over examples, so with a step of its own for each the second derivatives of
    the sum are theirs alone.
    """
    steps = torch.zeros(len(targets), dtype=outputs.dtype, device=outputs.device)
    steps.requires_grad_()
    along = steps.reshape(-1, *[1] * (outputs.ndim - 1)) * direction.detach()
    total = loss_fn(outputs.detach() + along, targets) * len(targets)
    (slopes,) = derivatives(total, [steps])
    if not slopes.requires_grad:  # a loss that is linear in the outputs
        return torch.zeros_like(steps).detach()
    (bends,) = derivatives(slopes.sum(), [steps])
    return bends.detach()


def _last_linear(model: nn.Module, inputs: Tensor) -> tuple[nn.Linear, Tensor, Tensor]:
    """The linear layer whose output is the model's, its input ``(n, d)`` and output ``(n, c)``."""
    seen: list[tuple[nn.Linear, Tensor, Tensor]] = []
    with _watch_linear(model, seen):
        outputs = _single_tensor(model(inputs))
    for layer, phi, out in reversed(seen):
        if out.shape == outputs.shape and torch.equal(out, outputs):
            if phi.ndim != 2:
                break
            return layer, phi, out
    raise ValueError(
        "relative flatness needs a model that ends in nn.Linear on (n, features), got outputs of "
        f"shape {tuple(outputs.shape)} from something else"
    )


@contextmanager
def _watch_linear(model: nn.Module, seen: list[tuple[nn.Linear, Tensor, Tensor]]) -> Iterator[None]:
    def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        seen.append((layer, args[0].detach(), out.detach()))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _single_tensor(outputs: object) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"this measure needs one output tensor, the model returns {type(outputs).__name__}"
        )
    return outputs
