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
from losslandscape.estimates import Estimate, Estimates
from losslandscape.lab.data import DataError, Dataset, load_dataset
from losslandscape.lab.training import RECIPES, Recipe, RecipeError, Run, train
from losslandscape.operators import (
    GaussNewtonOperator,
    HessianOperator,
    ScaledOperator,
    weight_scale,
)
from losslandscape.pac_bayes import Bound, best_bound, expected_increase, pac_bayes_bound
from losslandscape.rescaling import (
    Orbit,
    OrbitMinimum,
    along_orbit,
    hidden_layers,
    orbit_minimum,
    rescale_relu,
    rescaling_diagonal,
)
from losslandscape.sgd_noise import (
    GradientNoise,
    gradient_noise,
    langevin_covariance,
    simulate_quadratic,
    stability_limit,
    stationary_covariance,
    temperature,
)
from losslandscape.sharpness import (
    LossSharpness,
    QuadraticSharpness,
    loss_sharpness,
    quadratic_bounds,
    quadratic_sharpness,
    sam_sharpness,
)
from losslandscape.spectrum import (
    Moments,
    SpectralDensity,
    estimate_moments,
    estimate_trace,
    spectral_density,
)

__version__ = version("losslandscape")

__all__ = [
    "RECIPES",
    "Bound",
    "DataError",
    "Dataset",
    "EigenResult",
    "Estimate",
    "Estimates",
    "GaussNewtonOperator",
    "GradientNoise",
    "HessianOperator",
    "LossSharpness",
    "Moments",
    "Orbit",
    "OrbitMinimum",
    "QuadraticSharpness",
    "Recipe",
    "RecipeError",
    "Run",
    "ScaledOperator",
    "SpectralDensity",
    "along_orbit",
    "best_bound",
    "estimate_moments",
    "estimate_trace",
    "expected_increase",
    "gradient_noise",
    "hidden_layers",
    "lambda_max",
    "lanczos",
    "langevin_covariance",
    "load_dataset",
    "loss_sharpness",
    "orbit_minimum",
    "pac_bayes_bound",
    "power_iteration",
    "quadratic_bounds",
    "quadratic_sharpness",
    "refine",
    "rescale_relu",
    "rescaling_diagonal",
    "sam_sharpness",
    "simulate_quadratic",
    "spectral_density",
    "stability_limit",
    "stationary_covariance",
    "temperature",
    "top_eigenpairs",
    "train",
    "weight_scale",
]
