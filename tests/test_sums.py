"""Inner products of long single-precision vectors."""

import pytest
import torch

from losslandscape import sums
from losslandscape.eigen import lanczos, power_iteration, refine
from losslandscape.operators import CurvatureOperator

LONG = 4_000_000


def long_vectors(columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LONG, columns, generator=generator)


def test_long_vectors_keep_their_length():
    a = long_vectors(1)[:, 0].contiguous()
    exact = a.double().norm()
    assert abs(float(torch.linalg.vector_norm(a) / exact) - 1) > 1e-5, "PyTorch does it well now"
    assert float(sums.norm(a) / exact) == pytest.approx(1, abs=1e-6)
    assert float(sums.dot(a, a) / exact**2) == pytest.approx(1, abs=1e-6)
    assert float(sums.contract(a[None], a)[0] / exact**2) == pytest.approx(1, abs=1e-6)


def test_columns_and_rows():
    a, b = long_vectors(3), long_vectors(3, seed=1) + 1
    exact = a.double().T @ b.double()
    size = LONG**0.5
    torch.testing.assert_close(sums.contract(a.T, b).double(), exact, atol=1e-3 * size, rtol=0)
    torch.testing.assert_close(sums.dot(a, b).double(), exact.diag(), atol=1e-3 * size, rtol=0)
    torch.testing.assert_close(
        sums.contract(a.T, b[:, 0].contiguous()).double(), exact[:, 0], atol=1e-3 * size, rtol=0
    )
    torch.testing.assert_close(sums.norm(b).double(), b.double().norm(dim=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_ones_are_those_of_torch(dtype):
    a = long_vectors(2)[:1000].to(dtype)
    assert torch.equal(sums.norm(a), torch.linalg.vector_norm(a, dim=0))
    assert torch.equal(sums.contract(a.T, a), a.T @ a)
    assert sums.dot(a[:, 0], a[:, 1]) == torch.dot(a[:, 0], a[:, 1])
    assert sums.norm(a[:, 0]).dtype == dtype


class Rescaled(CurvatureOperator):
    """A diagonal matrix with one separate eigenvalue, whose eigenvector has no large entry."""

    def __init__(self):
        self.shape, self.dtype, self.device = (LONG, LONG), torch.float32, torch.device("cpu")
        self.products = 0
        self.signs = torch.ones(LONG)
        self.signs[::2] = -1

    def _product(self, vectors):
        share = (self.signs[:, None] * vectors).double().mean(dim=0)
        return 0.5 * vectors + (9.5 * self.signs[:, None] * share).float()


@pytest.mark.parametrize("find", [lanczos, power_iteration])
def test_a_certificate_is_reached_with_millions_of_weights(find):
    found = find(Rescaled(), tol=1e-5, max_products=30)
    assert found.converged.all()
    assert float(found.values[0]) == pytest.approx(10, rel=1e-5)
    # All entries are equal, so that rounding goes one way in every step: the worst case.
    assert float(found.vectors[:, 0].double().norm()) == pytest.approx(1, abs=1e-5)


def test_refine_too():
    op = Rescaled()
    near = lanczos(op, tol=1e-1, max_products=4)
    found = refine(op, near, tol=1e-5, max_products=30)
    assert found.converged.all()
    assert float(found.values[0]) == pytest.approx(10, rel=1e-5)
