"""Certified curvature of neural-network losses.

The names below are the public interface; everything else may change.
"""

from importlib.metadata import version

from losslandscape.eigen import (
    EigenResult,
    lambda_max,
    lanczos,
    power_iteration,
    refine,
    top_eigenpairs,
)
from losslandscape.lab.data import DataError, Dataset, load_dataset
from losslandscape.lab.training import RECIPES, Recipe, RecipeError, Run, train
from losslandscape.operators import (
    GaussNewtonOperator,
    HessianOperator,
    ScaledOperator,
    weight_scale,
)

__version__ = version("losslandscape")

__all__ = [
    "RECIPES",
    "DataError",
    "Dataset",
    "EigenResult",
    "GaussNewtonOperator",
    "HessianOperator",
    "Recipe",
    "RecipeError",
    "Run",
    "ScaledOperator",
    "lambda_max",
    "lanczos",
    "load_dataset",
    "power_iteration",
    "refine",
    "top_eigenpairs",
    "train",
    "weight_scale",
]
