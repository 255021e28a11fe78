"""Certified curvature of neural-network losses.

The names below are the public interface; everything else may change.
"""

from importlib.metadata import version

from losslandscape.distributed import RankError
from losslandscape.eigen import (
    EigenResult,
    lambda_max,
    lanczos,
    power_iteration,
    refine,
    sampling_error,
    top_eigenpairs,
)
from losslandscape.estimates import Estimate, Estimates
from losslandscape.flatness import fisher_rao, input_jacobian, relative_flatness, row_scale
from losslandscape.framework import Assessment, Comparison, Thresholds, assess, compare
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
    balanced,
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
from losslandscape.slices import (
    Bezier,
    Slice,
    barrier,
    bent_path,
    eigen_slice,
    evaluate_at,
    evaluate_on,
    filter_normalised,
    line_through,
    plane_through,
    projection_gap,
    random_slice,
    trajectory_plane,
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
    "Assessment",
    "Bezier",
    "Bound",
    "Comparison",
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
    "RankError",
    "Recipe",
    "RecipeError",
    "Run",
    "ScaledOperator",
    "Slice",
    "SpectralDensity",
    "Thresholds",
    "along_orbit",
    "assess",
    "balanced",
    "barrier",
    "bent_path",
    "best_bound",
    "compare",
    "eigen_slice",
    "estimate_moments",
    "estimate_trace",
    "evaluate_at",
    "evaluate_on",
    "expected_increase",
    "filter_normalised",
    "fisher_rao",
    "gradient_noise",
    "hidden_layers",
    "input_jacobian",
    "lambda_max",
    "lanczos",
    "langevin_covariance",
    "line_through",
    "load_dataset",
    "loss_sharpness",
    "orbit_minimum",
    "pac_bayes_bound",
    "plane_through",
    "power_iteration",
    "projection_gap",
    "quadratic_bounds",
    "quadratic_sharpness",
    "random_slice",
    "refine",
    "relative_flatness",
    "rescale_relu",
    "rescaling_diagonal",
    "row_scale",
    "sam_sharpness",
    "sampling_error",
    "simulate_quadratic",
    "spectral_density",
    "stability_limit",
    "stationary_covariance",
    "temperature",
    "top_eigenpairs",
    "train",
    "trajectory_plane",
    "weight_scale",
]
