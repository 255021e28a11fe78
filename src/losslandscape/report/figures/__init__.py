"""Every figure of the book, as a function of data: one module for each chapter's figures."""

from losslandscape.report.figures import (
    generalisation,
    power,
    products,
    rescaling,
    sgd_noise,
    slices,
    spectrum,
    stability,
    style,
    taylor,
    training,
    trust_region,
    twins,
)

__all__ = [
    "generalisation",
    "power",
    "products",
    "rescaling",
    "sgd_noise",
    "slices",
    "spectrum",
    "stability",
    "style",
    "taylor",
    "training",
    "trust_region",
    "twins",
]
