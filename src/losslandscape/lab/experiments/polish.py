"""Is the end point of training a minimum in practice? Train on from a copy and see what is left."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslandscape.eigen import lanczos
from losslandscape.lab.data import Dataset
from losslandscape.lab.training import Recipe, predict, steps
from losslandscape.operators import HessianOperator

POLISH_LR = 1e-3
LAST_STEPS = 100


def polish(
    model: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    subset: tuple[Tensor, Tensor],
    *,
    seed: int,
    tol: float,
) -> dict[str, Any]:
    """One epoch of Adam on the recipe's own objective, then 100 small steps of plain SGD.

    Args:
        model: Left as it is; a copy is trained.
        recipe: Batch size and weight penalty of the objective.
        subset: Images of the two lambda_max.
        seed: Order of the images.
        tol: Relative residual of the two lambda_max.

    Returns:
        ``train_loss`` before and after, their difference ``fall``, ``lambda_max`` before and after
        on ``subset``, and ``log_ratio`` of the latter.
    """
    trained = copy.deepcopy(model)
    epoch = math.ceil(len(dataset.y_train) / recipe.batch_size)
    adam = replace(recipe, optimizer="adam", lr=POLISH_LR, momentum=0.0)
    losses, sharpness = [train_loss(trained, dataset)], [_lambda_max(trained, subset, tol)]
    for part, count in ((adam, epoch), (replace(adam, optimizer="sgd"), LAST_STEPS)):
        for done in steps(trained, part, dataset, seed=seed):
            if done == count:
                break
    losses.append(train_loss(trained, dataset))
    sharpness.append(_lambda_max(trained, subset, tol))
    return {
        "train_loss": losses,
        "fall": losses[0] - losses[1],
        "lambda_max": sharpness,
        "log_ratio": math.log(sharpness[1] / sharpness[0]),
    }


def train_loss(model: nn.Module, dataset: Dataset) -> float:
    """Mean cross-entropy on all training images, without the penalty."""
    return float(cross_entropy(predict(model, dataset.x_train), dataset.y_train))


def _lambda_max(model: nn.Module, subset: tuple[Tensor, Tensor], tol: float) -> float:
    top = lanczos(HessianOperator(model, cross_entropy, subset), tol=tol)
    if not top.converged.all():
        raise ArithmeticError("lambda_max around the polish did not converge")
    return float(top.values[0])
