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
from losslandscape.spectrum import (
    Estimate,
    Estimates,
    Moments,
    SpectralDensity,
    estimate_moments,
    estimate_trace,
    spectral_density,
)

__version__ = version("losslandscape")

__all__ = [
    "RECIPES",
    "DataError",
    "Dataset",
    "EigenResult",
    "Estimate",
    "Estimates",
    "GaussNewtonOperator",
    "HessianOperator",
    "Moments",
    "Recipe",
    "RecipeError",
    "Run",
    "ScaledOperator",
    "SpectralDensity",
    "estimate_moments",
    "estimate_trace",
    "lambda_max",
    "lanczos",
    "load_dataset",
    "power_iteration",
    "refine",
    "spectral_density",
    "top_eigenpairs",
    "train",
    "weight_scale",
]
