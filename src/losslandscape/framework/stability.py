"""Curvature against the stability limit of the optimiser that made it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from losslandscape.framework.cost import Meter
from losslandscape.framework.findings import Stability, Thresholds
from losslandscape.framework.hessian_set import HessianSet
from losslandscape.framework.measures import COARSE, along, interval_of, top_eigenpair
from losslandscape.objective import Batch, select_parameters
from losslandscape.operators import HessianOperator, ScaledOperator
from losslandscape.sgd_noise import stability_limit

_BEYOND = 1.2  # training at the edge hovers around 1


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse what cannot have trained the model.

    Raises:
        TypeError: It is no optimiser.
        ValueError: It holds none of the parameters that are trained.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        inner = " (give its .optimizer)" if hasattr(optimizer, "optimizer") else ""
        raise TypeError(
            f"optimizer must be a torch optimizer, got {type(optimizer).__name__}{inner}"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters() if p.requires_grad):
        raise ValueError(
            "the optimizer holds none of the model's parameters: make it from those of this model, "
            "then load its state"
        )


def decays_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[float]:
    """Per trained parameter the ``wd`` of ``(wd/2) |p|^2`` in the objective.

    Decoupled decay has none (AdamW only says so in its groups from torch 2.7 on), nor has a
    parameter that the optimiser does not hold.
    """
    decays = {
        id(p): float(group.get("weight_decay", 0.0))
        for group in ([] if optimizer is None else optimizer.param_groups)
        if not (isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay"))
        for p in group["params"]
    }
    return [decays.get(id(p), 0.0) for p in select_parameters(model, None)]


def stability_of(
    model: nn.Module,
    own: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    examined: HessianSet,
    limits: Thresholds,
    meter: Meter,
    batch: int,
) -> Stability:
    """The largest eigenvalue of ``S H S`` over its limit, ``S^2`` being the step per gradient.

    ``H`` is that of the function which the optimiser saw: with batch normalisation, of statistics
    over ``batch`` examples (see :func:`_normalising`).
    In ``eval`` mode a bias before the normalisation has curvature, in training it has none and
    Adam's second moment of it is rounding error: their ratio would say nothing.
    """
    if optimizer is None:
        return Stability(None, "no optimiser given, so no stability ratio")
    try:
        scale, limit = _step_scale(model, optimizer)
        hessian, blocks, sizes, aside = _as_trained(model, own, examined, batch)
        meter.say("stability")
        top = top_eigenpair(ScaledOperator(hessian, scale), meter, tol=COARSE)
    except ValueError as error:
        return Stability(None, str(error))
    ratio, residual = float(top.values[0]) / limit, float(top.residuals[0]) / limit
    low = high = None
    among = ""
    if len(sizes) > 1:
        samples = along(scale[:, None] * top.vectors[:, :1], blocks, sizes) / limit
        meter.add(1)
        low, high = interval_of(ratio, samples)
        among = f" [{low:.3g}, {high:.3g}]"
    if ratio < limits.free:
        words = "far below: the learning rate does not bind"
    elif ratio < limits.edge:
        words = "below the edge"
    elif ratio <= _BEYOND:
        words = "at the edge: the learning rate limits the curvature"
    else:
        words = "beyond the edge: at this learning rate the optimiser leaves such a point"
    rates = sorted({f"{float(group['lr']):g}" for group in optimizer.param_groups})
    at = f" at the present learning rate of {' and '.join(rates)}"
    text = f"curvature is {ratio:.3g}{among} of the stability limit{at}{aside}, {words}"
    return Stability(ratio, text, low, high, residual)


def _as_trained(
    model: nn.Module, own: nn.Module, examined: HessianSet, batch: int
) -> tuple[HessianOperator, Iterator[HessianOperator], list[int], str]:
    """The Hessian with batch statistics where there is batch normalisation.

    Then that of each block or batch, with its number of examples, and a word on the statistics.
    """
    names = _normalising(model)
    if not names:
        sizes = [len(targets) for _, targets in examined.block_data()]
        return examined.hessian(own), examined.blocks(own), sizes, ""
    trained = copy.deepcopy(own)
    for name in names:
        module = trained.get_submodule(name)
        if isinstance(module, nn.SyncBatchNorm) and torch.distributed.is_initialized():
            raise ValueError(
                f"no stability ratio: '{name}' would wait for the statistics of other processes"
            )
        module.train()
    # Whole batches, so that none holds a single example, which has no variance.
    count = max(1, len(examined.data[1]) // batch)
    inputs, targets = (part.tensor_split(count) for part in examined.data)
    batches = list(zip(inputs, targets, strict=True))

    def of(data: list[Batch]) -> HessianOperator:
        return HessianOperator(trained, examined.loss_fn, data, allow=["batchnorm"])

    sizes = [len(part) for part in targets]
    aside = f" (with the statistics of batches of {sizes[0]})"
    return of(batches), (of([one]) for one in batches), sizes, aside


def _normalising(model: nn.Module) -> list[str]:
    """The batch normalisations that took batch statistics in training, as far as the model tells.

    In a model in ``train`` mode they are those in that mode; after ``model.eval()`` all but those
    whose scale and shift are frozen, as a fixed normalisation has them.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if any(module.training for module in model.modules()):
        return [name for name, module in found.items() if module.training]
    frozen = {
        name
        for name, module in found.items()
        if module.affine and not any(p.requires_grad for p in module.parameters())
    }
    return [name for name in found if name not in frozen]


def _step_scale(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Tensor, float]:
    """Diagonal of ``S`` (D,), and the limit of the eigenvalue of ``S H S`` (lr taken as 1)."""
    adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    if not adam and not isinstance(optimizer, torch.optim.SGD):
        raise ValueError(f"no stability limit known for {type(optimizer).__name__}")
    inertia = {(g["betas"][0] if adam else g["momentum"]) for g in optimizer.param_groups}
    if len(inertia) > 1:
        raise ValueError("no stability limit: the parameter groups differ in momentum")
    if any(group.get("nesterov") for group in optimizer.param_groups):
        raise ValueError("no stability limit: Nesterov momentum has another one than heavy ball")
    squared = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            squared[id(p)] = _step(optimizer, group, p) if adam else torch.full_like(p, group["lr"])
    pieces = [
        squared.get(id(p), torch.zeros_like(p)).detach().reshape(-1)
        for p in select_parameters(model, None)
    ]
    if not any(bool(piece.any()) for piece in pieces):
        raise ValueError(
            "no stability ratio: the learning rate is 0 now; to ask about another one set 'lr' in "
            "optimizer.param_groups"
        )
    limit = stability_limit(1.0, momentum=inertia.pop(), averaged=adam)
    return torch.cat(pieces).sqrt(), limit


def _step(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> Tensor:
    """Adam's ``lr / P`` with ``P = (1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + eps)``."""
    state = optimizer.state.get(p, {})
    if "exp_avg_sq" not in state:
        raise ValueError("no stability ratio: Adam's state is empty, it has not taken a step")
    if group.get("amsgrad"):
        raise ValueError("no stability limit known for AMSGrad")
    t = float(state["step"])
    first, second = group["betas"]
    root = (state["exp_avg_sq"] / (1 - second**t)).sqrt() + group["eps"]
    step: Tensor = group["lr"] / ((1 - first**t) * root)
    return step
