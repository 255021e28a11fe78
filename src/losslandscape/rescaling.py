"""Rescalings of ReLU networks that change weights and curvature, but not the function.

Multiply the weights into a hidden layer by ``a > 0`` and divide the weights out of it by ``a``:
every prediction stays, because ReLU and pooling pass a positive factor through.
The Hessian does not stay (Dinh, Pascanu, Bengio, Bengio, *Sharp Minima Can Generalize For Deep
Nets*, ICML 2017).
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import Tensor, fx, nn

from losslandscape.eigen import SymmetricMatrix, lanczos
from losslandscape.objective import Batch, LossFunction, select_parameters, untouched
from losslandscape.operators import (
    GaussNewtonOperator,
    HessianOperator,
    ScaledOperator,
    weight_scale,
)

Alphas = Sequence[Any] | Tensor

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What passes a positive factor of each unit through: unit by unit, by windows over the image of
# one channel, or by laying units out in a row.
_UNITWISE = {
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout),
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(F.relu, F.relu_, F.leaky_relu, F.dropout, torch.relu, torch.relu_, "relu", "relu_"),
    *("contiguous", "clone"),
}
_WINDOWS = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d),
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d),
    *(F.adaptive_max_pool3d, torch.adaptive_avg_pool1d),
}
_LAYOUTS = {nn.Flatten, torch.flatten, "flatten", "view", "reshape"}


@dataclass(frozen=True)
class _Layer:
    """A linear layer of the chain.

    Attributes:
        name: Its name in the model.
        module: ``Linear`` or a convolution.
        units: Output features or channels.
        source: ``(inputs,)`` for each input feature or channel the unit of the layer before that
            feeds it; ``None`` where units cannot be told apart, or before the first layer.
    """

    name: str
    module: nn.Module
    units: int
    source: Tensor | None


def hidden_layers(model: nn.Module) -> dict[str, int]:
    """Names and numbers of units of the layers that :func:`rescale_relu` can rescale, in order.

    Raises:
        ValueError: As for :func:`rescale_relu`.

    Example:
        >>> hidden_layers(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        {'0': 3}
    """
    return {layer.name: layer.units for layer in _chain(model)[:-1]}


def rescale_relu(model: nn.Module, alphas: Alphas) -> nn.Module:
    r"""A new network with the same function and other weights.

    Hidden layer ``l`` becomes ``alphas[l]`` times as active:

    .. math:: W_l \to \frac{a_l}{a_{l-1}} W_l, \qquad b_l \to a_l b_l,

    with ``a = 1`` at the input and at the output; with one number per unit, the row of a unit is
    multiplied by its number and the column divided by it.

    Source: Dinh et al., ICML 2017 (two layers, without biases); Neyshabur, Salakhutdinov, Srebro,
    *Path-SGD*, NIPS 2015 (unit by unit).

    Args:
        model: A chain of ``Linear`` and ``Conv1d/2d/3d`` layers; between the first and the last of
            them only what a positive factor passes through: ReLU, LeakyReLU, PReLU, max- and
            average-pooling, zero padding, dropout, flattening.
            An ``nn.Sequential``, or a module whose ``forward`` can be traced by ``torch.fx``.
            What comes before the first or after the last linear layer may be anything.
        alphas: One entry for each hidden layer, in the order of :func:`hidden_layers`: a positive
            number, or one for each of its units (output features or channels).

    Returns:
        A deep copy; ``model`` is left as it is.

    Raises:
        ValueError: A layer that a factor does not pass through (tanh, batch normalisation), a
            branch (residual connection), shared weights, or ``alphas`` of the wrong number or
            length, not positive or not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> for p, value in zip(net.parameters(), (1., 2., 3., 4.)):
        ...     _ = nn.init.constant_(p, value)
        >>> [p.item() for p in rescale_relu(net, [10.]).parameters()]
        [10.0, 20.0, 0.30000001192092896, 4.0]
    """
    factors = _factors(model, alphas)
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in rescaled.named_parameters():
            if name in factors:
                p.mul_(factors[name])
    return rescaled


def rescaling_diagonal(
    model: nn.Module, alphas: Alphas, *, params: Iterable[nn.Parameter] | None = None
) -> Tensor:
    r"""The diagonal of :math:`D` in :math:`w \to D w`, the map that :func:`rescale_relu` makes.

    Since :math:`L(Dw) = L(w)` for all :math:`w`,

    .. math:: g(Dw) = D^{-1} g(w), \qquad H(Dw) = D^{-1} H(w) D^{-1},

    so ``ScaledOperator(H, 1 / rescaling_diagonal(model, alphas))`` is the Hessian of the rescaled
    network without making it.

    Args:
        model, alphas: As for :func:`rescale_relu`.
        params: As for :class:`~losslandscape.operators.HessianOperator`.

    Returns:
        ``(D,)`` in the order of ``model.parameters()``.

    Raises:
        ValueError: As for :func:`rescale_relu`.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> rescaling_diagonal(net, [10.])
        tensor([10.0000, 10.0000,  0.1000,  1.0000])
    """
    factors = _factors(model, alphas)
    names = {id(p): name for name, p in model.named_parameters()}
    return torch.cat(
        [
            factors.get(names[id(p)], torch.ones_like(p)).expand_as(p).reshape(-1).detach()
            for p in select_parameters(model, params)
        ]
    )


def balanced(model: nn.Module, *, tol: float = 1e-9, max_sweeps: int = 2000) -> nn.Module:
    r"""The network with the same function whose weights have the least norm.

    All networks that are rescalings of each other have the same balanced network, so what is
    measured on it depends on their common orbit alone.
    A hidden unit ``u`` is balanced when weights and bias into it have the norm of the weights out
    of it:

    .. math:: a_u^2 \, \lVert \mathrm{in}_u \rVert^2 + \lVert \mathrm{out}_u \rVert^2 / a_u^2
        \quad \text{is least at} \quad
        a_u^2 = \lVert \mathrm{out}_u \rVert / \lVert \mathrm{in}_u \rVert ,

    which is repeated over all layers until nothing moves. The sum of squares is convex in the
    logarithms of all factors, so this descent finds its only minimum.
    Where units cannot be told apart in the next layer, the layer gets one factor. A unit with no
    weights on one side keeps its scale.

    Source: Stock, Graham, Gribonval, Jégou, *Equi-normalization of Neural Networks*, ICLR 2019.

    Args:
        model: As for :func:`rescale_relu`.
        tol: Largest ``|ln a_u|`` of the last sweep.
        max_sweeps: Most sweeps over the layers.

    Returns:
        A deep copy; ``model`` is left as it is.

    Raises:
        ValueError: As for :func:`rescale_relu`.

    Example:
        >>> layers = nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layers[0].weight, 8.0), nn.init.constant_(layers[2].weight, 2.0)
        >>> [round(p.item(), 4) for p in balanced(nn.Sequential(*layers)).parameters()]
        [4.0, 4.0]
    """
    chain = _chain(copy.deepcopy(model).double())
    logs = [torch.zeros(layer.units, dtype=torch.float64) for layer in chain[:-1]]
    for _ in range(max_sweeps):
        largest = 0.0
        for total, before, after in zip(logs, chain, chain[1:], strict=False):
            incoming, outgoing = _norms_around(before, after)
            alive = (incoming > 0) & (outgoing > 0)
            step = torch.where(alive, (outgoing / incoming).log() / 4, 0.0)
            _scale_in_place(before, after, step.exp())
            total += step
            largest = max(largest, float(step.abs().max()))
        if largest <= tol:
            break
    return rescale_relu(model, [total.exp() for total in logs])


def _norms_around(before: _Layer, after: _Layer) -> tuple[Tensor, Tensor]:
    """Squared norms of what leads into each unit and of what leads out of it, ``(units,)``."""
    incoming = _weight(before).square().flatten(1).sum(dim=1)
    if isinstance(before.module.bias, Tensor):
        incoming = incoming + before.module.bias.data.square()
    per_input = _by_input(after).square().sum(dim=(1, 3)).reshape(-1)
    if after.source is None:
        return incoming.sum().expand(before.units), per_input.sum().expand(before.units)
    return incoming, torch.zeros_like(incoming).index_add_(0, after.source, per_input)


def _scale_in_place(before: _Layer, after: _Layer, alpha: Tensor) -> None:
    """Multiply each unit's way in by its factor and divide its way out by it."""
    weight = _weight(before)
    weight.mul_(alpha.reshape(-1, *[1] * (weight.ndim - 1)))
    if isinstance(before.module.bias, Tensor):
        before.module.bias.data.mul_(alpha)
    grouped = _by_input(after)
    per_input = alpha[0] if after.source is None else alpha[after.source]
    grouped.div_(per_input.reshape(-1, 1, grouped.shape[2], 1) if per_input.ndim else per_input)


def _weight(layer: _Layer) -> Tensor:
    weight = layer.module.weight
    assert isinstance(weight, Tensor)
    return weight.data


def _by_input(layer: _Layer) -> Tensor:
    """The weight of a layer as ``(groups, outputs, inputs, places)``, sharing its memory."""
    groups = int(getattr(layer.module, "groups", 1))
    weight = _weight(layer)
    return weight.view(groups, len(weight) // groups, weight.shape[1], -1)


@dataclass(frozen=True)
class OrbitMinimum:
    r"""The smallest :math:`\lambda_{\max}` that layer-wise rescaling can reach.

    Attributes:
        alphas: ``(hidden,)`` where it is reached.
        value: :math:`\lambda_{\max}` there.
        lower_bound: No ``alphas`` within the limit give less.
        start: :math:`\lambda_{\max}` at ``alphas = 1``.
        products: Products with the matrix used.
        converged: Whether ``ln(value / lower_bound) <= tol``.
    """

    alphas: Tensor
    value: float
    lower_bound: float
    start: float
    products: int
    converged: bool


def orbit_minimum(
    model: nn.Module,
    op: SymmetricMatrix,
    *,
    tol: float = 1e-2,
    limit: float = 100.0,
    max_steps: int = 60,
) -> OrbitMinimum:
    r"""Minimise :math:`\lambda_{\max}(D^{-1} G D^{-1})` over one number per hidden layer.

    For a positive semi-definite :math:`G` the logarithm of :math:`\lambda_{\max}` is convex in
    :math:`s_l = \ln a_l`, and a unit eigenvector :math:`v` gives a subgradient,
    :math:`-2 \sum_i v_i^2\, \partial \ln D_{ii} / \partial s_l`.
    Kelley's cutting planes (*J. SIAM* 8, 1960) need only these, and their model of the function
    bounds the minimum from below.

    Args:
        model: As for :func:`rescale_relu`.
        op: :math:`G` at the weights of ``model``, positive semi-definite, for instance a
            :class:`~losslandscape.operators.GaussNewtonOperator` with all parameters.
        tol: Gap in :math:`\ln \lambda_{\max}` asked for.
        limit: Each ``alpha`` is sought in ``[1 / limit, limit]``.
        max_steps: Most eigenvalues computed.

    Raises:
        ValueError: As for :func:`rescale_relu`; ``op`` of the wrong size or with no positive
            eigenvalue; ``limit`` not above 1; a network without a hidden layer.

    Example:
        ``|w1 w2|`` is kept and the curvatures are ``w2^2`` and ``w1^2``: the minimum is balanced.

        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> best = orbit_minimum(net, torch.diag(torch.tensor([16., 1.], dtype=torch.float64)))
        >>> round(float(best.alphas[0]), 2), round(best.value, 2)
        (2.0, 4.0)
    """
    exponents = _exponents(model)
    count = exponents.shape[1]
    if not count:
        raise ValueError("the network has no hidden layer: there is nothing to rescale")
    if op.shape[0] != exponents.shape[0]:
        raise ValueError(
            f"the matrix has {op.shape[0]} rows, the model {exponents.shape[0]} parameters"
        )
    if not limit > 1:
        raise ValueError(f"limit must be above 1, got {limit}")
    edge, here = math.log(limit), torch.zeros(count, dtype=torch.float64)
    slopes: list[np.ndarray] = []
    heights: list[float] = []  # plane i is slopes[i] @ s + heights[i]
    best, best_at, lower = math.inf, here, -math.inf
    start, products = math.nan, 0
    while len(slopes) < max_steps and best - lower > tol:
        scaled = ScaledOperator(op, torch.exp(-exponents @ here))  # type: ignore[arg-type]
        top = lanczos(scaled, tol=min(1e-3, tol / 10))
        products += top.products
        if not top.values[0] > 0:
            raise ValueError("the matrix has no positive eigenvalue: give a Gauss-Newton operator")
        value = math.log(top.values[0])
        start = math.exp(value) if not slopes else start
        if value < best:
            best, best_at = value, here
        slope = -2 * (top.vectors[:, 0].to(exponents).square() @ exponents)
        slopes.append(slope.numpy())
        heights.append(value - float(slope @ here))
        # Lowest point of the highest plane, over (s, height).
        model_of_it = linprog(
            c=[0.0] * count + [1.0],
            A_ub=np.column_stack([np.stack(slopes), -np.ones(len(slopes))]),
            b_ub=-np.array(heights),
            bounds=[(-edge, edge)] * count + [(None, None)],
        )
        lower = float(model_of_it.x[-1])
        here = torch.from_numpy(model_of_it.x[:-1].copy())
    return OrbitMinimum(
        alphas=best_at.exp(),
        value=math.exp(best),
        lower_bound=math.exp(min(lower, best)),
        start=start,
        products=products,
        converged=best - lower <= tol,
    )


@dataclass(frozen=True)
class Orbit:
    r"""A network and its rescalings by ``alphas``, each one made and measured.

    Attributes:
        alphas: ``(m,)``.
        lambda_max: ``(m,)`` of the Hessian.
        gauss_newton: ``(m,)`` :math:`\lambda_{\max}` of the Gauss-Newton matrix.
        relative: ``(m,)`` :math:`\lambda_{\max}(|w| H |w|)`, curvature per relative change.
        loss: ``(m,)`` mean loss.
        output_change: ``(m,)`` largest change of an output over the largest output.
        predictions_changed: ``(m,)`` examples whose largest output is another one.
    """

    alphas: Tensor
    lambda_max: Tensor
    gauss_newton: Tensor
    relative: Tensor
    loss: Tensor
    output_change: Tensor
    predictions_changed: Tensor


def along_orbit(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Batch,
    alphas: Tensor | Sequence[float],
    *,
    layer: int = 0,
    tol: float = 1e-4,
) -> Orbit:
    """Rescale one hidden layer by each of ``alphas`` and measure the networks that come out.

    Nothing is inferred from the law: each network is made, and its curvature computed anew.

    Args:
        model: As for :func:`rescale_relu`; best in ``float64``.
        loss_fn, data: As for :class:`~losslandscape.operators.HessianOperator`, one batch.
        alphas: ``(m,)`` positive numbers.
        layer: Which hidden layer, in the order of :func:`hidden_layers`.
        tol: Relative residual of the eigenvalues.

    Raises:
        ValueError: As for :func:`rescale_relu`, or no such layer.
        RuntimeError: An eigenvalue did not reach ``tol``.
    """
    count = len(hidden_layers(model))
    if not 0 <= layer < count:
        raise ValueError(f"layer must lie between 0 and {count - 1}, got {layer}")
    inputs, targets = data
    values = torch.as_tensor(alphas, dtype=torch.float64)
    with untouched(model), torch.no_grad():
        before = model(inputs)
    rows = []
    for alpha in values.tolist():
        other = rescale_relu(model, [alpha if place == layer else 1.0 for place in range(count)])
        hessian = HessianOperator(other, loss_fn, data)
        matrices: tuple[SymmetricMatrix, ...] = (
            hessian,
            GaussNewtonOperator(other, loss_fn, data),
            ScaledOperator(hessian, weight_scale(other)),
        )
        tops = [lanczos(matrix, tol=tol) for matrix in matrices]
        if not all(bool(top.converged.all()) for top in tops):
            raise RuntimeError(f"an eigenvalue at alpha = {alpha:g} did not converge: raise tol")
        with untouched(other), torch.no_grad():
            after = other(inputs)
            rows.append(
                [
                    *(float(top.values[0]) for top in tops),
                    float(loss_fn(after, targets)),
                    float((after - before).abs().max() / before.abs().max()),
                    float((after.argmax(dim=1) != before.argmax(dim=1)).sum()),
                ]
            )
    columns = torch.tensor(rows, dtype=torch.float64).T
    curvature, gauss_newton, relative, loss, change, changed = columns
    return Orbit(values, curvature, gauss_newton, relative, loss, change, changed.long())


def _factors(model: nn.Module, alphas: Alphas) -> dict[str, Tensor]:
    """For each weight and bias of the chain what it is multiplied by, ready to broadcast."""
    chain = _chain(model)
    scales = _check_alphas(chain[:-1], alphas)
    factors = {}
    for before, (layer, scale) in enumerate(
        zip(chain, [*scales, torch.ones(chain[-1].units, dtype=torch.float64)], strict=True),
        start=-1,
    ):
        weight = layer.module.weight
        assert isinstance(weight, Tensor)
        factor = scale[:, None]
        if before >= 0:
            factor = factor / _incoming(chain[before], layer, scales[before])
        pieces = {"weight": factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))}
        if layer.module.bias is not None:
            pieces["bias"] = scale
        for kind, piece in pieces.items():
            cast = piece.to(dtype=weight.dtype, device=weight.device)
            if not (torch.isfinite(cast) & (cast > 0)).all():
                raise ValueError(
                    f"alphas are out of the range of {weight.dtype} at layer '{layer.name}'"
                )
            factors[f"{layer.name}.{kind}" if layer.name else kind] = cast
    return factors


def _incoming(before: _Layer, layer: _Layer, scale: Tensor) -> Tensor:
    """The factor of each input, ``(units or 1, inputs per group or 1)``."""
    if bool((scale == scale[0]).all()):
        return scale[:1, None]
    if layer.source is None:
        raise ValueError(
            f"the units of layer '{before.name}' cannot be told apart in the inputs of layer "
            f"'{layer.name}': give one number for '{before.name}'"
        )
    groups = getattr(layer.module, "groups", 1)
    grouped: Tensor = scale[layer.source].reshape(groups, -1)
    return grouped.repeat_interleave(layer.units // groups, dim=0)


def _exponents(model: nn.Module) -> Tensor:
    """``(D, hidden)``: which power of each alpha multiplies each parameter, -1, 0 or 1."""
    count = len(_chain(model)) - 1
    columns = [
        torch.log2(rescaling_diagonal(model, [2.0 if k == layer else 1.0 for k in range(count)]))
        for layer in range(count)
    ]
    size = sum(p.numel() for p in select_parameters(model, None))
    return torch.stack(columns, dim=1).double() if columns else torch.zeros(size, 0)


def _check_alphas(hidden: Sequence[_Layer], alphas: Alphas) -> list[Tensor]:
    """One positive number per unit of each hidden layer, in ``float64``."""
    if isinstance(alphas, str) or not hasattr(alphas, "__len__") or not _has_length(alphas):
        raise ValueError(f"alphas must be a sequence with one entry per hidden layer, got {alphas}")
    if len(alphas) != len(hidden):
        names = ", ".join(f"'{layer.name}'" for layer in hidden) or "none"
        raise ValueError(
            f"expected {len(hidden)} alphas, one per hidden layer ({names}), got {len(alphas)}"
        )
    scales = []
    for place, (layer, alpha) in enumerate(zip(hidden, alphas, strict=True)):
        scale = torch.as_tensor(alpha, dtype=torch.float64).detach().cpu()
        if scale.numel() not in (1, layer.units) or scale.ndim > 1:
            raise ValueError(
                f"alphas[{place}] must be a number or {layer.units} numbers, one per unit of layer "
                f"'{layer.name}', got shape {tuple(scale.shape)}"
            )
        bad = ~(torch.isfinite(scale) & (scale > 0))
        if bad.any():
            raise ValueError(
                f"alphas[{place}] must be positive and finite, got {scale[bad].flatten()[0]:g}"
            )
        scales.append(scale.expand(layer.units))
    return scales


def _has_length(alphas: Any) -> bool:
    return not isinstance(alphas, (Tensor, np.ndarray)) or alphas.ndim > 0


def _chain(model: nn.Module) -> list[_Layer]:
    """The linear layers of the model in order, after a check of what lies between them."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the forward of {type(model).__name__} cannot be traced ({reason}): "
            "give an nn.Sequential"
        ) from error
    modules = dict(model.named_modules())
    kinds = {node: _kind(node, modules) for node in graph.nodes}
    nodes = [node for node in graph.nodes if kinds[node] in (nn.Linear, *_CONVOLUTIONS)]
    if isinstance(model, (nn.Linear, *_CONVOLUTIONS)) and not nodes:
        return [_Layer("", model, len(model.weight), None)]  # a single layer traces to functions
    if not nodes:
        raise ValueError("the model has no Linear or Conv layer that can be rescaled")
    names = [str(node.target) for node in nodes]
    _refuse_shared(model, names, graph)
    layers: list[_Layer] = []
    between: list[fx.Node] = []
    for name, node in zip(names, nodes, strict=True):
        module = modules[name]
        if layers:
            between = _path(nodes[len(layers) - 1], node, kinds)
        source = _source(layers[-1], module, between, modules) if layers else None
        weight = module.weight
        assert isinstance(weight, Tensor)
        layers.append(_Layer(name, module, len(weight), source))
    return layers


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """What a node does: the type of its module, its function or the name of its method."""
    if node.op == "call_module":
        return type(modules[str(node.target)])
    if node.op in ("call_function", "call_method"):
        return node.target
    return None


def _tells_shape(node: fx.Node) -> bool:
    """Whether a node asks for sizes only, as in ``x.view(x.size(0), -1)``."""
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    first = node.args[0] if node.args else None
    return node.target is operator.getitem and isinstance(first, fx.Node) and _tells_shape(first)


def _path(start: fx.Node, end: fx.Node, kinds: dict[fx.Node, Any]) -> list[fx.Node]:
    """The nodes from one linear layer to the next, each fed by the one before and by no other."""
    path: list[fx.Node] = []
    node = end
    while True:
        feeds = [other for other in node.all_input_nodes if not _tells_shape(other)]
        if len(feeds) != 1:
            raise ValueError(
                f"'{node.name}' joins {len(feeds)} branches (a residual connection?): "
                "only a chain of layers can be rescaled"
            )
        node = feeds[0]
        if node.op in ("placeholder", "get_attr"):
            raise ValueError(
                f"layer '{end.target}' is not fed by layer '{start.target}': "
                "only a chain of layers can be rescaled"
            )
        users = [other for other in node.users if not _tells_shape(other)]
        if len(users) != 1:
            raise ValueError(
                f"the output of '{_shown(node)}' is used {len(users)} times (a residual "
                "connection?): only a chain of layers can be rescaled"
            )
        if node is start:
            return path[::-1]
        kind = kinds[node]
        if not _passes(kind):
            called = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
            raise ValueError(
                f"a positive factor does not pass through layer '{_shown(node)}' ({called}): only "
                "ReLU, LeakyReLU, PReLU, pooling, zero padding, dropout and flattening allow it"
            )
        path.append(node)


def _passes(kind: Any) -> bool:
    return any(kind in group for group in (_UNITWISE, _WINDOWS, _LAYOUTS))


def _shown(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _source(
    before: _Layer, module: nn.Module, between: Sequence[fx.Node], modules: dict[str, nn.Module]
) -> Tensor | None:
    """The unit that feeds each input of ``module``; see :class:`_Layer`."""
    steps = [_kind(node, modules) for node in between]
    laid_out = [place for place, step in enumerate(steps) if step in _LAYOUTS]
    windows = [place for place, step in enumerate(steps) if step in _WINDOWS]
    units = torch.arange(before.units)
    from_image = isinstance(before.module, _CONVOLUTIONS)
    if isinstance(module, _CONVOLUTIONS):
        return units if from_image and not laid_out else None
    inputs = module.in_features
    assert isinstance(inputs, int)
    if inputs % before.units or (
        laid_out and not all(_is_flat(between[p], modules) for p in laid_out)
    ):
        return None
    if from_image:
        if not laid_out or any(place > laid_out[0] for place in windows):
            return None
        return units.repeat_interleave(inputs // before.units)
    return None if windows else units.repeat(inputs // before.units)


def _is_flat(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node turns ``(n, ...)`` into ``(n, everything else)``."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)
    arguments = (*node.args[1:], *node.kwargs.values())
    if node.target in (torch.flatten, "flatten"):
        return arguments == (1,)
    shape = arguments[0] if isinstance(arguments[0], (tuple, list)) else arguments
    return len(shape) == 2


def _refuse_shared(model: nn.Module, names: Sequence[str], graph: fx.Graph) -> None:
    """Refuse weights that something else uses too, and weights that are computed."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"layer '{name}' is used {names.count(name)} times: its weights are "
                "shared, so they cannot be rescaled"
            )
    users: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(p), []).append(name)
    fetched = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for name in names:
        layer = model.get_submodule(name)
        own = dict(layer.named_parameters(recurse=False))
        if "weight" not in own:
            raise ValueError(
                f"the weight of layer '{name}' is computed from other parameters (weight or "
                "spectral normalisation): remove it first"
            )
        for kind, p in own.items():
            full = f"{name}.{kind}"
            if len(users[id(p)]) > 1 or fetched & set(users[id(p)]):
                others = [user for user in users[id(p)] if user != full] or ["the forward itself"]
                raise ValueError(
                    f"'{full}' is shared with {others[0]}: shared weights cannot be rescaled"
                )
