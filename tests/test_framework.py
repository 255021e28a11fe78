"""assess and compare: verdicts on problems with known answers, invariance, intervals, bad input."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

import losslandscape as ll
from losslandscape.cli import main
from losslandscape.framework import VERDICTS, Measure, assessment, bootstrap, compare
from losslandscape.framework.constant_outputs import loss_and_constant_loss
from losslandscape.framework.findings import Check, OrbitCheck, Stability
from losslandscape.framework.hessian_set import subset_of
from losslandscape.framework.measures import relative_scale, with_interval
from losslandscape.operators import HessianOperator, ScaledOperator, weight_scale
from losslandscape.rescaling import rescale_relu

QUICK = {"progress": False, "probes": 4, "rescalings": 2}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def least_squares(n: int = 40, d: int = 3):
    """A linear model at the minimum of its squared error, and the data."""
    X, y = normal(n, d), normal(n, 1, seed=1)
    model = nn.Linear(d, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.linalg.lstsq(X, y).solution.T
    return model, (X, y)


@pytest.fixture(scope="module")
def classifier():
    """A small ReLU classifier trained with weight decay until it stands still."""
    X = normal(120, 4)
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=3e-3)
    for _ in range(3000):
        optimizer.zero_grad()
        cross_entropy(model(X), y).backward()
        optimizer.step()
    return model, (X, y), optimizer


def test_a_least_squares_minimum_and_its_closed_forms():
    model, (X, y) = least_squares()
    found = ll.assess(model, mse_loss, (X, y), **QUICK)
    assert found.verdict == "comparable"
    H = 2 * X.T @ X / len(X)
    w = model.weight.detach().reshape(-1)
    M = w.abs()[:, None] * H * w.abs()
    m = found.measures
    eigenvalues = torch.linalg.eigvalsh(H)
    assert m["lambda_max"].value == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    assert m["lambda_min"].value == pytest.approx(float(eigenvalues[0]), rel=1e-6)
    assert m["adaptive_lambda_max"].value == pytest.approx(
        float(torch.linalg.eigvalsh(M)[-1]), rel=1e-6
    )
    assert m["fisher_rao"].value == pytest.approx(float(w @ H @ w), rel=1e-9)
    for name, matrix in (("trace", H), ("adaptive_trace", M)):
        assert m[name].low <= float(matrix.trace()) <= m[name].high
    assert all(x.low <= x.value <= x.high for x in m.values())
    assert found.gradient_norm < 1e-9
    assert found.data_digest == ll.assess(model, mse_loss, (X, y), **QUICK).data_digest


def test_traces_and_isotropy_against_the_dense_matrix():
    model, data = least_squares()
    found = ll.assess(model, mse_loss, data, **{**QUICK, "probes": 300}).measures
    H = 2 * data[0].T @ data[0] / len(data[0])
    w = model.weight.detach().reshape(-1).abs()
    M = w[:, None] * H * w
    assert found["trace"].value == pytest.approx(float(H.trace()), rel=0.1)
    assert found["adaptive_trace"].value == pytest.approx(float(M.trace()), rel=0.1)
    ratio = float(M.trace() ** 2 / M.square().sum())
    assert found["isotropy"].value == pytest.approx(ratio, rel=0.1)


def test_away_from_the_minimum():
    model, data = least_squares()
    model.weight.data += 1.0
    found = ll.assess(model, mse_loss, data, **QUICK)
    assert found.verdict == "not-a-minimum"
    assert "further training gains" in found.reasons[0]


def test_a_level_of_the_loss():
    model, data = least_squares()
    found = ll.assess(model, mse_loss, data, thresholds=ll.Thresholds(loss=1e-3), **QUICK)
    assert found.verdict == "not-a-minimum"
    assert "above the level of 0.001" in found.reasons[0]


def test_a_saddle_where_the_gradient_vanishes():
    """(y - w1 w2 x)^2 at zero: curvatures of both signs and equal size."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    X = torch.ones(10, 1, dtype=torch.float64)
    found = ll.assess(model, mse_loss, (X, X), **QUICK)
    assert found.verdict == "saddle-like"
    assert "= -1" in found.reasons[0]


@pytest.mark.parametrize(
    ("share", "momentum", "verdict"),
    [(0.9, 0.0, "lr-limited"), (0.9, 0.9, "lr-limited"), (0.5, 0.0, "comparable")],
)
def test_at_the_stability_limit(share, momentum, verdict):
    model, data = least_squares()
    top = float(torch.linalg.eigvalsh(2 * data[0].T @ data[0] / len(data[0]))[-1])
    lr = share * 2 * (1 + momentum) / top
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    assert found.stability.ratio == pytest.approx(share, rel=1e-3)
    assert found.verdict == verdict


def test_the_stability_ratio_of_adam():
    model, data = least_squares()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.8, 0.99))
    for _ in range(7):
        optimizer.zero_grad()
        mse_loss(model(data[0]), data[1] + 1).backward()
        optimizer.step()
    v = optimizer.state[model.weight]["exp_avg_sq"].reshape(-1)
    P = (1 - 0.8**7) * ((v / (1 - 0.99**7)).sqrt() + 1e-8)
    H = 2 * data[0].T @ data[0] / len(data[0])
    top = float(torch.linalg.eigvalsh(H / P.sqrt()[:, None] / P.sqrt())[-1])
    found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    expected = top / ((2 + 2 * 0.8) / ((1 - 0.8) * 1e-3))
    assert found.stability.ratio == pytest.approx(expected, rel=1e-3)


def test_a_bias_that_batch_statistics_cancel_does_not_make_the_ratio():
    X, y = normal(60, 3), normal(60, 1, seed=1)

    def trained(bias):
        layers = [nn.Linear(3, 5, bias=bias), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1)]
        model = seeded(lambda: nn.Sequential(*layers)).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            mse_loss(model(X), y).backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = trained(bias=True)
    assert optimizer.state[model[0].bias]["exp_avg_sq"].max() < 1e-25  # rounding of zero
    found = ll.assess(model, mse_loss, (X, y), optimizer=optimizer, **QUICK)
    assert model.training
    assert "with the statistics of batches of 60" in found.stability.text

    # By hand: S H S of the function that was trained, without the bias, which has no curvature.
    steps = []
    for p in model.parameters():
        v = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**50)
        steps.append(1e-2 / ((1 - 0.9**50) * (v.sqrt() + 1e-8)) * (p is not model[0].bias))
    scale = torch.cat([step.reshape(-1) for step in steps]).sqrt()
    H = (
        HessianOperator(model, mse_loss, (X, y), allow=["batchnorm"])
        @ torch.eye(len(scale)).double()
    )
    top = float(torch.linalg.eigvalsh(scale[:, None] * H * scale)[-1])
    assert found.stability.ratio == pytest.approx(top / (2 * 1.9 / 0.1), rel=1e-2)
    assert found.stability.ratio < 1


def normalised(*, seed=0):
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)]
    model = seeded(lambda: nn.Sequential(*layers), seed)
    with torch.no_grad():
        model.train()(3 * normal(61, 3) + 1)  # running statistics unlike those of the data
    return model.eval()


def test_batches_for_the_statistics_hold_more_than_one_example():
    data = (normal(61, 3), normal(61, 1, seed=1))
    loader = DataLoader(TensorDataset(*data), batch_size=2)
    model = normalised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = ll.assess(model, mse_loss, loader, optimizer=optimizer, **QUICK)
    assert "with the statistics of batches of 3" in found.stability.text  # 61 in 30 batches

    # By hand, on the order that the assessment measures on: 30 batches, one of 3 first.
    subset = subset_of(data, 61, seed=0)
    parts = list(zip(*(part.tensor_split(30) for part in subset), strict=True))
    assert {len(y) for _, y in parts} == {2, 3}
    H = HessianOperator(model.train(), mse_loss, parts, allow=["batchnorm"])
    top = float(torch.linalg.eigvalsh(H @ torch.eye(H.shape[0]).double())[-1])
    assert found.stability.ratio == pytest.approx(top / 20, rel=1e-2)


def test_batches_of_a_loader_stay_whole_for_the_statistics():
    data = TensorDataset(normal(60, 3), normal(60, 1, seed=1))
    model = normalised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cut = BatchSampler(range(60), batch_size=30, drop_last=False)
    for source in (
        DataLoader(data, batch_size=30),
        DataLoader(data, batch_sampler=cut),
        list(DataLoader(data, batch_size=30)),
    ):
        found = ll.assess(model, mse_loss, source, optimizer=optimizer, **QUICK | {"chunk_size": 8})
        assert "with the statistics of batches of 30" in found.stability.text
    pair = ll.assess(
        model, mse_loss, data.tensors, optimizer=optimizer, **QUICK | {"chunk_size": 8}
    )
    assert "with the statistics of batches of 9" in pair.stability.text  # 60 in 7 parts


@pytest.mark.parametrize("how", ["modes", "affine"])
def test_a_fixed_batch_normalisation_stays_fixed(how):
    data = (normal(60, 3), normal(60, 1, seed=1))
    model = normalised()
    if how == "modes":
        model.train()
        model[1].eval()
    else:
        model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    assert "statistics" not in found.stability.text
    H = HessianOperator(model.eval(), mse_loss, data)
    top = float(torch.linalg.eigvalsh(H @ torch.eye(H.shape[0]).double())[-1])
    assert found.stability.ratio == pytest.approx(top / 20, rel=1e-2)


def test_synchronised_statistics_are_not_waited_for(monkeypatch):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(normalised())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (normal(60, 3), normal(60, 1, seed=1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    assert found.stability.ratio is None
    assert "'1' would wait for the statistics of other processes" in found.stability.text


def test_batch_statistics_of_a_single_example_give_no_ratio():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (normal(1, 2), normal(1, 2, seed=1))
    found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    assert found.stability.ratio is None
    assert "more than 1 value per channel" in found.stability.text


def test_optimisers_without_a_known_limit_say_so():
    model, data = least_squares()
    p = model.parameters
    for optimizer, words in {
        torch.optim.Adam(p()): "has not taken a step",
        torch.optim.RMSprop(p()): "no stability limit known for RMSprop",
        torch.optim.SGD(p(), lr=0.1, momentum=0.9, nesterov=True): "Nesterov",
        torch.optim.SGD(p(), lr=0.0): "the learning rate is 0 now",
    }.items():
        found = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
        assert found.stability.ratio is None
        assert words in found.stability.text
        assert found.verdict == "comparable"


def test_a_trained_classifier_and_every_rescaling_of_it_get_the_same_verdict(classifier):
    model, data, optimizer = classifier
    assert ll.assess(model, cross_entropy, data, optimizer=optimizer, **QUICK).verdict == (
        "comparable"
    )
    here = ll.assess(model, cross_entropy, data, **QUICK)
    assert here.verdict == "comparable"
    assert here.orbit.survives
    assert here.orbit.lambda_max_range > 2
    other = ll.rescale_relu(model, [torch.logspace(-1, 1, 8)])
    there = ll.assess(other, cross_entropy, data, **QUICK)
    assert there.verdict == "comparable"
    for mine, theirs in zip(here.checks[1:], there.checks[1:], strict=True):
        assert theirs.value == pytest.approx(mine.value, rel=1e-3, abs=1e-6)
    for name, measure in here.measures.items():
        change = abs(there.measures[name].value / measure.value - 1)
        assert (change < 1e-3) == (measure.invariant == "units"), name


def test_initial_weights_are_no_minimum(classifier):
    _, data, _ = classifier
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), seed=5)
    assert ll.assess(model, cross_entropy, data, **QUICK).verdict == "not-a-minimum"


def test_the_polish_keeps_the_penalty_of_the_optimiser(classifier):
    """Without it the same network still gains loss: its minimum is one of the penalised loss."""
    model, data, optimizer = classifier
    with_penalty = ll.assess(model, cross_entropy, data, optimizer=optimizer, **QUICK)
    without = ll.assess(model, cross_entropy, data, **QUICK)
    assert with_penalty.checks[2].value < without.checks[2].value
    assert with_penalty.penalty_norm == pytest.approx(with_penalty.gradient_norm, rel=0.05)


def test_each_group_of_parameters_keeps_its_own_decay():
    """The penalised minimum of a bias without decay and a weight with it, in either order."""
    _, (X, y) = least_squares()
    both = nn.Linear(3, 1, dtype=torch.float64)
    decay, Z = 0.3, torch.cat([X, torch.ones(len(X), 1).double()], dim=1)
    penalty = decay * torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    optimum = torch.linalg.solve(2 * Z.T @ Z / len(Z) + penalty, 2 * Z.T @ y / len(Z))
    both.weight.data, both.bias.data = optimum[:3].T.clone(), optimum[3].clone()
    groups = [
        {"params": [both.bias], "weight_decay": 0.0},
        {"params": [both.weight], "weight_decay": decay},
    ]
    for order in (groups, groups[::-1]):
        optimizer = torch.optim.SGD([dict(group) for group in order], lr=0.01)
        found = ll.assess(both, mse_loss, (X, y), optimizer=optimizer, **QUICK)
        assert abs(check_of(found, "polish").value) < 1e-6
        assert found.penalty_norm == pytest.approx(found.gradient_norm, rel=1e-6)
    for decoupled in (
        torch.optim.AdamW(both.parameters(), lr=0.01, weight_decay=decay),
        torch.optim.Adam(
            both.parameters(), lr=0.01, weight_decay=decay, decoupled_weight_decay=True
        ),
    ):
        assert ll.assess(both, mse_loss, (X, y), optimizer=decoupled, **QUICK).penalty_norm == 0


def check_of(found, name):
    return next(check for check in found.checks if check.name == name)


def test_at_the_minimum_of_the_penalised_loss_the_polish_moves_nothing():
    """Neither its steps of Adam nor those of SGD, which both have to know the penalty."""
    model, (X, y) = least_squares()
    decay, gram = 0.3, 2 * X.T @ X / len(X)
    optimum = torch.linalg.solve(gram + decay * torch.eye(3).double(), 2 * X.T @ y / len(X))
    model.weight.data = optimum.T.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=decay)
    found = ll.assess(model, mse_loss, (X, y), optimizer=optimizer, **QUICK)
    assert abs(check_of(found, "polish").value) < 1e-6
    assert found.gradient_norm > 0.05


def test_the_polish_ends_with_steps_of_sgd():
    """100 steps of Adam go from 1 to 0.9, and 100 of SGD divide what is left by e."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.ones(1, 1).double()
    X = torch.full((4, 1), 5.0**0.5).double()
    found = ll.assess(model, mse_loss, (X, torch.zeros(4, 1).double()), **QUICK)
    left = 1 - check_of(found, "polish").value / found.train_loss
    assert left == pytest.approx((0.9 * 0.99**100) ** 2, rel=0.1)


def test_curvature_that_falls_in_the_polish_is_not_settled():
    """The loss has nothing left to gain, and still its curvature falls by a factor."""
    model = nn.Linear(1, 2, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[0.5], [-0.5]]).double()
    X, y = torch.tensor([[10.0], [-10.0]] * 2).double(), torch.tensor([0, 1] * 2)
    found = ll.assess(model, cross_entropy, (X, y), **QUICK)
    assert check_of(found, "polish").passed
    assert not check_of(found, "sharpness settled").passed
    assert found.verdict == "not-a-minimum"


def test_the_polish_lowers_a_rate_at_which_the_loss_rises():
    """One direction is so steep that steps of 1e-3 fly off it; along the other, much is to gain."""
    X = torch.tensor([[50.0, 1.0], [50.0, -1.0], [-50.0, 1.0], [-50.0, -1.0]]).double()
    y = X @ torch.tensor([[0.0], [0.05]]).double()
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.tensor([[1e-6, 0.0]]).double()
    found = ll.assess(model, mse_loss, (X, y), thresholds=ll.Thresholds(fall=5e-4), **QUICK)
    assert found.verdict == "not-a-minimum"
    assert 5e-4 < check_of(found, "polish").value < 0.05**2


def test_the_callers_model_is_left_as_it_is(classifier):
    _, (X, y), _ = classifier
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)
        )
    ).train()
    model[0].bias.requires_grad_(False)
    cross_entropy(model(X), y).backward()
    before = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    found = ll.assess(model, cross_entropy, (X, y), **QUICK)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert model[3].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for p, g in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad, g)
    assert found.parameters == sum(p.numel() for p in model.parameters()) - 8
    assert found.orbit.survives is None
    assert any("no rescalings known" in note for note in found.notes)


def test_a_loss_that_reads_the_callers_model_is_refused():
    """A copy is measured, so its weights would not be those of the loss."""
    model, (X, y) = least_squares()

    def penalised(outputs, targets):
        return mse_loss(outputs, targets) + model.weight.square().sum()

    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = [model]

        def forward(self, outputs, targets):
            return penalised(outputs, targets)

    for loss_fn in (penalised, Penalised()):
        with pytest.raises(ValueError, match="reads the weights of the model itself, and a copy"):
            ll.assess(model, loss_fn, (X, y), **QUICK)
    assert model.weight.grad is None

    class Keeps(nn.Linear):
        def forward(self, inputs):
            self.kept = inputs.square().mean().detach()
            return super().forward(inputs)

    keeps = Keeps(3, 1, bias=False, dtype=torch.float64)
    keeps(X)
    with pytest.raises(ValueError, match="reads what the model keeps of its last pass"):
        ll.assess(keeps, lambda o, t: mse_loss(o, t) + keeps.kept, (X, y), **QUICK)

    class KeptIn:
        def __init__(self, of):
            self.of = of

        def __call__(self, outputs, targets):
            return mse_loss(outputs, targets) + self.of.kept

    with pytest.raises(ValueError, match="reads what the model keeps of its last pass"):
        ll.assess(keeps, KeptIn(keeps), (X, y), **QUICK)
    # Its sizes may be read.
    found = ll.assess(model, lambda o, t: mse_loss(o, t) / model.out_features, (X, y), **QUICK)
    assert found.verdict == "comparable"


def test_parameters_of_the_loss_get_no_gradient():
    model, (X, y) = least_squares()

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, outputs, targets):
            return mse_loss(outputs, targets) * (-self.log).exp() + self.log

    loss_fn = Learned()
    ll.assess(model, loss_fn, (X, y), **QUICK)
    assert loss_fn.log.grad is None


@pytest.mark.parametrize("added", [-100.0, -0.5, 7.0])
def test_a_constant_added_to_the_loss_changes_no_condition_of_the_gate(added):
    X = normal(60, 2)
    y = X @ torch.tensor([[1.0], [0.3]]).double() + 0.1 * normal(60, 1, seed=1)
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    for share, passes in ((0.85, False), (0.99, True)):  # of the best weights
        model.weight.data = share * torch.linalg.lstsq(X, y).solution.T
        losses = mse_loss, lambda o, t: mse_loss(o, t) + added
        found = [check_of(ll.assess(model, loss, (X, y), **QUICK), "polish") for loss in losses]
        assert [check.passed for check in found] == [passes, passes]
        assert found[1].threshold == pytest.approx(found[0].threshold, abs=1e-6 * abs(added) + 1e-9)


def test_the_default_fall_is_a_share_of_what_was_gained_over_constant_outputs():
    model, (X, y) = least_squares()
    y = y + 5
    bias = nn.Linear(3, 1, dtype=torch.float64)
    with torch.no_grad():
        bias.weight.copy_(model.weight)
        bias.bias.fill_(5.0)
    check = check_of(ll.assess(bias, mse_loss, (X, y), **QUICK), "polish")
    gained = y.var(unbiased=False) - mse_loss(bias(X), y).detach()
    assert check.threshold == pytest.approx(0.01 * float(gained), rel=1e-3)


class Named(nn.Module):
    """The outputs of a network in a dict, with one that the loss does not read."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, inputs):
        return {"prediction": self.net(inputs), "inputs": inputs}


def test_outputs_in_a_dict_get_the_allowance_of_the_plain_network():
    X = normal(60, 2)
    y = X.sum(dim=1, keepdim=True) + 0.01 * normal(60, 1, seed=1)
    net = nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.fill_(0.98)
        net.bias.zero_()
    plain = ll.assess(net, mse_loss, (X, y), **QUICK)
    named = ll.assess(Named(net), lambda o, t: mse_loss(o["prediction"], t), (X, y), **QUICK)
    assert check_of(named, "polish").threshold == pytest.approx(check_of(plain, "polish").threshold)
    assert named.verdict == plain.verdict == "comparable"
    told = ll.compare(named, named).reasons
    assert any("only 2 of 4 measures can vote, 3 must agree" in reason for reason in told)


def test_outputs_that_must_be_probabilities():
    X = normal(60, 2)
    y = (X[:, :1] + normal(60, 1, seed=1) > 0).double()
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid()))
    found = ll.assess(model, nn.BCELoss(), (X, y), **QUICK)
    assert found.verdict == "not-a-minimum"
    share = y.mean()
    entropy = float(-share * share.log() - (1 - share) * (1 - share).log())
    assert loss_and_constant_loss(model, nn.BCELoss(), (X, y))[1] == pytest.approx(
        entropy, rel=1e-3
    )


def test_constant_outputs_on_the_examples_of_the_outputs():
    """Of many examples some are taken, spread over data that may be sorted."""
    X = torch.linspace(-1, 1, 9001, dtype=torch.float64)[:, None]
    y = X + 0.01 * normal(9001, 1)
    model = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.zero_()
    own, constant = loss_and_constant_loss(model, mse_loss, (X, y))
    assert own == pytest.approx(1e-4, rel=0.1)
    assert constant == pytest.approx(float(y.var()), rel=0.01)


class Recurrent(nn.Module):
    """Outputs and the last state, whose example is the second axis."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.GRU(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, inputs):
        steps, state = self.inner(inputs)
        return self.head(steps[:, -1]), state


def test_outputs_without_constants_get_a_share_of_the_training_loss():
    X, y = normal(200, 4, 1), normal(200, 1, seed=1)
    found = ll.assess(seeded(Recurrent), lambda o, t: mse_loss(o[0], t), (X, y), **QUICK)
    check = check_of(found, "polish")
    assert check.threshold == pytest.approx(0.01 * found.train_loss)


def test_constant_outputs_that_a_search_drives_out_of_bounds():
    """The loss takes numbers in [0, 1] only, and falls towards the bound."""

    def bounded(outputs, targets):
        if not ((outputs >= 0) & (outputs <= 1)).all():
            raise RuntimeError("out of bounds")
        return (2 - outputs - 0 * targets).mean()

    X = normal(20, 2)
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()))
    _, found = loss_and_constant_loss(model, bounded, (X, X[:, :1]))
    assert found == pytest.approx(1, abs=1e-3)


def handwritten(p, targets):
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()


@pytest.mark.parametrize("bias", [-4.0, 0.0, 2.0, 4.0])
def test_a_loss_of_probabilities_that_is_nan_outside(bias):
    X = normal(60, 3)
    y = (X[:, :1] + normal(60, 1, seed=1) > 0).double()
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()).double()
    nn.init.constant_(model[0].bias, bias)
    share = y.mean()
    entropy = float(-share * share.log() - (1 - share) * (1 - share).log())
    _, found = loss_and_constant_loss(model, handwritten, (X, y))
    assert found == pytest.approx(entropy, rel=1e-3)
    assert ll.assess(model, handwritten, (X, y), **QUICK).verdict == "not-a-minimum"


def test_a_loss_of_a_mean_and_a_scale_that_must_be_positive():
    X = normal(60, 2)
    y = 3 + 0.2 * X[:, :1]

    def likelihood(outputs, targets):
        scale = outputs[:, 1:]
        return (scale.log() + (targets - outputs[:, :1]).square() / (2 * scale**2)).mean()

    model = nn.Sequential(nn.Linear(2, 2), nn.Softplus()).double()
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        model[0].bias.copy_(torch.tensor([3.0, -4.0]))
    _, found = loss_and_constant_loss(model, likelihood, (X, y))
    assert found == pytest.approx(float(y.std(correction=0).log()) + 0.5, abs=0.02)


def test_many_weights_take_few_probes_at_a_time(monkeypatch):
    X, y = normal(64, 3), normal(64, 1, seed=1)
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)))
    whole = ll.assess(model, mse_loss, (X, y), progress=False, rescalings=0, probes=7)
    monkeypatch.setattr(ll.framework.measures, "_NUMBERS_AT_ONCE", 2 * 26)
    widths = []
    product = ll.HessianOperator.__matmul__
    monkeypatch.setattr(
        ll.HessianOperator,
        "__matmul__",
        lambda op, v: widths.append(v.shape[1] if v.ndim == 2 else 1) or product(op, v),
    )
    parts = ll.assess(model, mse_loss, (X, y), progress=False, rescalings=0, probes=7)
    assert max(widths) == 2
    for name in ("trace", "adaptive_trace", "isotropy"):
        one, other = whole.measures[name], parts.measures[name]
        assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high))
    assert parts.products == whole.products


def test_what_is_no_optimizer_of_the_model_is_refused_at_once():
    X, y = normal(64, 3), normal(64, 1, seed=1)
    model, twin = (nn.Linear(3, 1, dtype=torch.float64) for _ in range(2))
    own, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))
    schedule = torch.optim.lr_scheduler.StepLR(own, 1)
    for wrong, kind, words in (
        (schedule, TypeError, r"must be a torch optimizer, got StepLR \(give its .optimizer\)"),
        (0.1, TypeError, "must be a torch optimizer, got float$"),
        (other, ValueError, "holds none of the model's parameters: make it from those"),
    ):
        with pytest.raises(kind, match=words):
            ll.assess(model, mse_loss, (X, y), optimizer=wrong, **QUICK)
    with pytest.raises(TypeError, match="give the optimizer by its name"):
        ll.assess(model, mse_loss, (X, y), own, **QUICK)


class Attention(nn.Module):
    """One transformer layer over a sequence of tokens, a mean and a linear head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)).mean(dim=1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.block(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (Attention, torch.randint(7, (24, 5), generator=torch.Generator().manual_seed(0))),
        (Residual, normal(24, 1, 6, 6)),
    ],
)
def test_attention_and_residual_networks_from_a_loader(build, inputs):
    data = TensorDataset(inputs, torch.arange(24) % 3)
    found = ll.assess(
        seeded(build).train(),
        nn.CrossEntropyLoss(),
        DataLoader(data, batch_size=7, shuffle=True),
        DataLoader(data, batch_size=24),
        **QUICK,
    )
    assert found.verdict in VERDICTS
    assert set(found.measures) == set(ll.framework.MEASURES)
    assert found.val_loss == pytest.approx(found.train_loss, rel=1e-9)
    assert "no rescaling" in found.orbit.text
    fused = build is Attention  # with a second derivative in the plain kernel only
    assert ("they use plain attention" in found.checks[0].text) is fused


def test_what_a_model_does_not_allow_is_named():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.inner(x), self.other(x)

    def loss(outputs, y):
        return mse_loss(outputs[0], y) + mse_loss(outputs[1], y)

    found = ll.assess(seeded(Pair), loss, (normal(20, 2), normal(20, 1)), **QUICK)
    assert "fisher_rao" not in found.measures
    assert "adaptive_trace" in found.measures
    assert any("no Fisher-Rao norm" in note and "tuple" in note for note in found.notes)


def test_zero_weights_are_no_obstacle():
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    X = normal(30, 2)
    y = normal(30, 1, seed=2)
    y -= X @ torch.linalg.lstsq(X, y).solution  # the best weights are zero
    found = ll.assess(model, mse_loss, (X, y), **QUICK)
    assert found.verdict == "comparable"
    assert found.measures["adaptive_lambda_max"].value == 0
    json.dumps(found.to_dict(), allow_nan=False)
    assert ll.compare(found, found).verdict == "undecided"
    assert "undefined" in str(found)
    assert "nan" not in found._repr_html_()


def test_networks_without_known_rescalings_say_so_and_are_not_charged_for_them(capsys):
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1)))
    data = least_squares()[1]
    for each in (model, least_squares()[0]):
        found = ll.assess(each, mse_loss, data, probes=4, rescalings=5, time_budget=600)
        assert found.orbit.text == "no rescaling that keeps this network's function is known"
        assert not any("rescalings cut" in note for note in found.notes)
        said = capsys.readouterr()
        assert "up to about 232 Hessian products" in said.out + said.err


def test_a_network_no_better_than_a_constant_is_said_to_be_so():
    model, (X, y) = least_squares()
    model.weight.data += 10
    polish = ll.assess(model, mse_loss, (X, y), **QUICK).checks[2]
    assert "no better than a constant output" in polish.text
    model.weight.data = torch.ones(1, 3, dtype=torch.float64)
    polish = ll.assess(model, mse_loss, (X, 2 * X.sum(dim=1, keepdim=True)), **QUICK).checks[2]
    assert polish.passed is False
    assert "constant" not in polish.text


def test_a_loss_of_exactly_zero_is_a_minimum():
    model = nn.Linear(2, 1, dtype=torch.float64)
    for p in model.parameters():
        nn.init.zeros_(p)
    found = ll.assess(model, mse_loss, (normal(30, 2), torch.zeros(30, 1).double()), **QUICK)
    assert found.verdict == "comparable"
    assert "the training loss stays" in found.checks[2].text


def test_gradients_are_taken_where_the_caller_has_switched_them_off():
    model, data = least_squares()
    with torch.no_grad():
        assert ll.assess(model, mse_loss, data, **QUICK).verdict == "comparable"


BAD = {
    "sum reduction": (lambda o, t: mse_loss(o, t, reduction="sum"), {}, "not the mean"),
    "class instead of instance": (nn.MSELoss, {}, "give an instance"),
    "probes": (mse_loss, {"probes": 1}, "probes must be at least 2, got 1"),
    "rescalings": (mse_loss, {"rescalings": -1}, "rescalings must be 0 or more, got -1"),
    "budget": (mse_loss, {"time_budget": 0.0}, "time_budget must be positive seconds, got 0.0"),
    "examples": (mse_loss, {"hessian_examples": 99}, "between 1 and 40, got 99"),
    "a dict": (mse_loss, {"thresholds": {"loss": 0.1}}, "must be losslandscape.Thresholds"),
    "part of an example": (mse_loss, {"hessian_examples": 9.0}, "whole number .*, got 9.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    loss, options, words = BAD[name]
    model, data = least_squares()
    with pytest.raises((ValueError, TypeError), match=words):
        ll.assess(model, loss, data, **{**QUICK, **options})


def test_bad_models_and_data():
    model, (X, y) = least_squares()
    with pytest.raises(TypeError, match="model cannot be a function: the order is model, loss_fn"):
        ll.assess(mse_loss, model, (X, y), **QUICK)
    with pytest.raises(ValueError, match=r"got a plain number: leave out \.item"):
        ll.assess(model, lambda o, t: mse_loss(o, t).item(), (X, y), **QUICK)
    with pytest.raises(ValueError, match="data are empty"):
        ll.assess(model, mse_loss, [], **QUICK)
    with pytest.raises(ValueError, match="the loss is nan: the targets of chunk 0 hold NaN"):
        ll.assess(model, mse_loss, (X, y * math.nan), **QUICK)
    one = y.clone()
    one[7] = math.inf
    with pytest.raises(ValueError, match="the targets of chunk 0 hold NaN or infinity"):
        ll.assess(model, mse_loss, (X, one), **QUICK)
    with pytest.raises(ValueError, match=r"validation data: .* targets of chunk 0 hold NaN"):
        ll.assess(model, mse_loss, (X, y), (X, one), **QUICK)
    broken = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    broken[1].running_var[1] = math.nan
    with pytest.raises(ValueError, match=r"the buffer '1\.running_var' holds NaN"):
        ll.assess(broken, mse_loss, (X, y), **QUICK)
    margin = (X, torch.zeros(40, dtype=torch.long))
    with pytest.raises(ValueError, match="PyTorch has no second derivative of it"):
        ll.assess(nn.Linear(3, 4).double(), nn.MultiMarginLoss(), margin, **QUICK)
    with pytest.raises(ValueError, match="the model is on the meta device"):
        ll.assess(nn.Linear(3, 1).to("meta"), mse_loss, (X, y), **QUICK)
    with pytest.raises(ValueError, match="the data are on the meta device"):
        ll.assess(model, mse_loss, (X, y.to("meta")), **QUICK)
    with pytest.raises(ValueError, match="one shape: pad them"):
        ll.assess(
            nn.LSTM(1, 1, batch_first=True).double(),
            lambda o, t: o[0].square().mean(dim=(1, 2)).mean(),
            [(normal(2, 3, 1), y[:2]), (normal(2, 4, 1), y[:2])],
            **QUICK,
        )
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="every one has requires_grad=False"):
        ll.assess(model, mse_loss, (X, y), **QUICK)
    model = least_squares()[0]
    model.generator = (i for i in range(3))
    with pytest.raises(ValueError, match="cannot be copied"):
        ll.assess(model, mse_loss, (X, y), **QUICK)
    model = least_squares()[0]
    model.kept = model.weight * 2
    with pytest.raises(ValueError, match="holds a tensor with a graph, so detach that first"):
        ll.assess(model, mse_loss, (X, y), **QUICK)
    with pytest.raises(ValueError, match="the threshold 'fall' must be 0 or more, got -1"):
        ll.Thresholds(fall=-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(classifier):
    model, data, _ = classifier
    here = ll.assess(model, cross_entropy, data, **QUICK)
    there = ll.assess(copy.deepcopy(model).cuda(), cross_entropy, data, **QUICK)
    assert there.verdict == here.verdict
    for name, measure in here.measures.items():
        assert there.measures[name].value == pytest.approx(measure.value, rel=1e-3), name


def test_hessian_set_in_proportion_and_the_same_for_every_model():
    y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    _, chosen = subset_of((torch.arange(100.0)[:, None], y), 20, seed=0)
    assert torch.bincount(chosen).tolist() == pytest.approx([12, 6, 2], abs=1)
    again = subset_of((torch.arange(100.0)[:, None], y), 20, seed=0)[1]
    assert torch.equal(chosen, again)
    everything = subset_of((torch.arange(100.0)[:, None], y), 100, seed=0)[0]
    assert sorted(everything.reshape(-1).tolist()) == list(range(100))


def test_a_time_budget_cuts_and_says_so():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)))
    data = least_squares(2000)[1]
    found = ll.assess(model, mse_loss, data, time_budget=1e-3, progress=False, probes=4)
    assert found.hessian_examples == 512
    assert [note.split(" cut")[0] for note in found.notes[:2]] == ["Hessian set", "rescalings"]
    assert "the least that can be done" in found.notes[-2]
    assert "more than the time budget of 0.001 s" in found.notes[-1]


def test_the_cost_is_told_beforehand(capsys):
    model, data = least_squares()
    ll.assess(model, mse_loss, data, probes=2, rescalings=0)
    said = capsys.readouterr()
    assert "Hessian products over 40 examples and 200 training steps" in said.out + said.err
    assert "100%" in (said.out + said.err).splitlines()[-1]


def test_intervals_cover_what_a_larger_sample_says():
    """Of a mean over examples, 95 % nominal."""
    g = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        blocks = torch.randn(32, 1, generator=g, dtype=torch.float64) + 1
        found = with_interval("fisher_rao", float(blocks.mean()), blocks)
        hits += found.low <= 1 <= found.high
    assert 178 <= hits <= 197


def test_blocks_add_up_to_the_whole():
    """Also when they differ in size: 40 examples in 32 blocks."""
    model, data = least_squares()
    found = ll.assess(model, mse_loss, data, **QUICK).measures
    for name in ("lambda_max", "adaptive_lambda_max", "fisher_rao", "relative_flatness"):
        assert float(found[name].samples.mean()) == pytest.approx(found[name].value, rel=1e-5)
    H = HessianOperator(model, mse_loss, data)
    for name, op in (("trace", H), ("adaptive_trace", ScaledOperator(H, weight_scale(model)))):
        g = torch.Generator().manual_seed(0)
        z = (2.0 * torch.randint(2, (3, 4), generator=g) - 1).double()
        assert found[name].value == pytest.approx(float((z * (op @ z)).sum() / 4), rel=1e-9)


def twins():
    """Two minima of one loss, (w1 + w2) x against 3 x: at (1.5, 1.5) and at (13, -10)."""
    x = normal(64, 1)
    data = (torch.cat([x, x], dim=1), 3 * x + 0.1 * normal(64, 1, seed=1))
    best = float(torch.linalg.lstsq(x, data[1]).solution)
    models = []
    for share in (0.0, 11.5):
        model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        model.weight.data = torch.tensor([[best / 2 + share, best / 2 - share]]).double()
        models.append(model)
    return [ll.assess(model, mse_loss, data, **{**QUICK, "probes": 32}) for model in models]


def test_the_flatter_of_two():
    flat, sharp = twins()
    assert flat.verdict == sharp.verdict == "comparable"
    found = ll.compare(flat, sharp)
    assert found.verdict == "a-flatter"
    assert ll.compare(sharp, flat).verdict == "b-flatter"
    ratio = flat.measures["adaptive_lambda_max"].value / sharp.measures["adaptive_lambda_max"].value
    contrast = found.contrasts["adaptive_lambda_max"]
    assert contrast.log_ratio == pytest.approx(math.log(ratio))
    assert contrast.low <= contrast.log_ratio <= contrast.high
    assert found.contrasts["fisher_rao"].vote == ""  # the same function along the weights
    assert ll.compare(flat, flat).verdict == "undecided"
    assert ll.compare([flat, flat], [sharp, sharp]).verdict == "a-flatter"


def fake(verdict="comparable", loss=1.0, ratio=1.0, digest="x", noise=0.0, moved=(), probes=1):
    """An assessment whose voting measures are all ``ratio``."""
    g = torch.Generator().manual_seed(0)
    measures = {}
    for place, name in enumerate(ll.framework.VOTING):
        value = ratio[place] if isinstance(ratio, tuple) else ratio
        samples = value * (1 + noise * torch.randn(32, probes, generator=g, dtype=torch.float64))
        measures[name] = Measure(value, value, value, "units", None, samples)
    orbit = OrbitCheck(2, {name: 0.5 * (name in moved) for name in measures}, 1.0, 0.0, True, "")
    return ll.Assessment(
        verdict, (), (), measures, Stability(None, ""), orbit, loss, None, 0.0, 0.0, 1, 1, 1,
        digest, 1, 0.0, (), ll.Thresholds(),
    )  # fmt: skip


def test_what_keeps_two_networks_from_being_compared():
    low, high = fake(ratio=1.0), fake(ratio=2.0)
    assert ll.compare(low, high).verdict == "a-flatter"
    assert ll.compare(fake("lr-limited"), high).verdict == "undecided"
    assert "a is lr-limited" in ll.compare(fake("lr-limited"), high).reasons[0]
    assert ll.compare(fake(loss=1.15), high).verdict == "a-flatter"  # within 10 % of the middle
    assert ll.compare(fake(loss=1.3), high).verdict == "undecided"
    with pytest.raises(ValueError, match=r"different data: .*\(a loader that shuffles"):
        ll.compare(low, fake(digest="y"))
    with pytest.raises(ValueError, match="different probes"):
        ll.compare(low, fake(probes=2))
    assert ll.compare((each for each in [low]), {0: high}.values()).verdict == "a-flatter"
    for nothing in ([], 3, [low, 3]):
        with pytest.raises(ValueError, match="call assess first"):
            ll.compare(low, nothing)
    other = replace(high, thresholds=ll.Thresholds(moved=0.1))
    with pytest.raises(ValueError, match="judged by different thresholds"):
        ll.compare(low, other)
    told = ll.compare(fake(loss=-0.2), fake(loss=-0.2)).reasons
    assert told[0] == "a training loss is not positive, and losses are matched by their ratio"


def test_batch_normalisation_is_left_out_of_the_relative_curvature():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    scale = relative_scale(model)
    sizes = [p.numel() for p in model.parameters()]
    parts = scale.split(sizes)
    assert [bool(part.any()) for part in parts] == [True, True, False, False, True, True]
    assert torch.equal(parts[0], model[0].weight.detach().abs().reshape(-1))


def test_votes():
    base = fake()
    assert ll.compare(base, fake(ratio=(2.0, 2.0, 2.0, 1.0))).verdict == "a-flatter"
    assert ll.compare(base, fake(ratio=(2.0, 2.0, 1.0, 1.0))).verdict == "undecided"
    assert ll.compare(base, fake(ratio=(2.0, 2.0, 2.0, 0.5))).verdict == "undecided"
    moved = fake(ratio=(2.0, 2.0, 2.0, 1.0), moved=("fisher_rao",))
    assert ll.compare(base, moved).verdict == "undecided"
    assert "a rescaling moved it" in ll.compare(base, moved).reasons[-1]


def test_runs_of_several_seeds_widen_the_interval():
    a = [fake(ratio=r) for r in (1.0, 3.0, 9.0)]
    b = [fake(ratio=r) for r in (2.0, 6.0, 18.0)]
    assert ll.compare(a, b).verdict == "undecided"
    assert ll.compare(a[:1], b[:1]).verdict == "a-flatter"


def test_the_same_blocks_are_drawn_for_both():
    """Noise that both sides share cancels in the ratio."""
    found = ll.compare(fake(noise=0.3), fake(ratio=1.05, noise=0.3))
    assert found.verdict == "a-flatter"


def test_resampling_one_item_leaves_it():
    assert torch.equal(
        bootstrap.resample(1, 5, torch.Generator()), torch.ones(5, 1, dtype=torch.float64)
    )


def test_words_in_order():
    limits = ll.Thresholds()
    quiet = Stability(None, "quiet"), OrbitCheck(0, {}, 1.0, 0.0, None, "")
    bad = {name: Check(name, False, 0.0, 0.0, name) for name in ("polish", "index")}
    edge = Stability(1.0, "edge"), quiet[1]
    cases = [
        ((bad["polish"], bad["index"]), quiet, "not-a-minimum"),
        ((bad["index"],), edge, "saddle-like"),
        ((), edge, "lr-limited"),
        ((), quiet, "comparable"),
    ]
    for checks, (stability, orbit), word in cases:
        assert assessment.verdict_of(checks, stability, orbit, limits)[0] == word


def test_a_failed_check_of_the_rescalings_is_seen_everywhere(classifier):
    model, data, _ = classifier
    found = ll.assess(model, cross_entropy, data, thresholds=ll.Thresholds(moved=0.0), **QUICK)
    assert found.orbit.survives is False
    for shown in (found.reasons[-1], " ".join(str(found).split()), found._repr_html_()):
        assert "FAILED, the verdict depends on how the function" in shown.replace("\u2502 ", "")


def test_the_stability_ratio_has_an_interval_and_a_residual_and_moves_with_the_writing(classifier):
    model, data, optimizer = classifier
    found = ll.assess(model, cross_entropy, data, optimizer=optimizer, **QUICK).stability
    top = ll.assess(model, cross_entropy, data, **QUICK).measures["lambda_max"]
    per_unit = found.ratio / top.value
    assert found.low == pytest.approx(per_unit * top.low, rel=0.02)
    assert found.high == pytest.approx(per_unit * top.high, rel=0.02)
    assert 0 <= found.residual <= 0.01 * found.ratio
    other = rescale_relu(model, [3.0])
    moved = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9, weight_decay=3e-3)
    again = ll.assess(other, cross_entropy, data, optimizer=moved, **QUICK).stability
    assert again.ratio != pytest.approx(found.ratio, rel=0.1)


def test_far_beyond_the_limit_the_optimiser_is_not_said_to_stay():
    model, data = least_squares()
    top = float(torch.linalg.eigvalsh(2 * data[0].T @ data[0] / len(data[0]))[-1])
    words = {}
    for share in (0.5, 1.0, 3.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=share * 2 / top)
        words[share] = ll.assess(model, mse_loss, data, optimizer=optimizer, **QUICK)
    assert "below the edge" in words[0.5].stability.text
    assert "at the edge" in words[1.0].stability.text
    assert "leaves such a point" in words[3.0].stability.text
    assert words[3.0].verdict == "lr-limited"


def test_an_assessment_written_before_the_ratio_had_an_interval_is_read(classifier):
    model, data, optimizer = classifier
    old = ll.assess(model, cross_entropy, data, optimizer=optimizer, **QUICK).to_dict()
    for name in ("low", "high", "residual"):
        del old["stability"][name]
    read = ll.Assessment.from_dict(old)
    assert read.stability.ratio == old["stability"]["ratio"]
    assert read.stability.low is None


def test_reports_for_terminal_notebook_and_machine(classifier):
    model, data, optimizer = classifier
    found = ll.assess(model, cross_entropy, data, data, optimizer=optimizer, **QUICK)
    again = ll.Assessment.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    assert again.to_dict() == found.to_dict()
    assert compare(again, found).verdict == "undecided"
    index = found.checks[-1]  # small, and two digits of it are shown
    assert float(index.text.split(" = ")[1]) == pytest.approx(index.value, rel=0.05)
    for shown in (str(found), found._repr_html_()):
        assert "comparable" in shown
        assert "largest eigenvalue of |w| H |w|" in shown
        assert "polish" in shown
    assert "undecided" in str(compare(found, found))
    assert "<table" in compare(found, found)._repr_html_()
    for given, words in (
        ({**found.to_dict(), "more": 1}, "an Assessment that has more"),
        ({"verdict": "comparable"}, "an Assessment that lacks checks, data_digest"),
        ("found.json", "expected a dict of an Assessment, got str"),
    ):
        with pytest.raises(ValueError, match=f"this is no assessment: {words}"):
            ll.Assessment.from_dict(given)


def test_html_escapes_what_it_shows():
    found = fake("<script>")
    assert (
        "<script>"
        not in ll.Assessment(
            **{**found.__dict__, "reasons": ("<script>",), "notes": ("<b>",)}
        )._repr_html_()
    )


SOURCE = """
import torch
from torch import nn
X = torch.tensor([[1.0], [2.0], [3.0], [5.0]]).double()
y = torch.tensor([[1.0], [3.0], [2.0], [4.0]]).double()

def fitted():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.linalg.lstsq(X, y).solution.T
    return {"model": model, "loss_fn": nn.functional.mse_loss, "train_data": (X, y)}

def as_tuple():
    found = fitted()
    return found["model"], found["loss_fn"], found["train_data"]

def wrong():
    return 3

def misnamed():
    return {"model": fitted()["model"], "loss": 1, "data": 2}

def too_much():
    return {**fitted(), "extra": 1}

def with_options():
    return {**fitted(), "probes": 3, "rescalings": 0, "hessian_examples": 3, "seed": 1}

def six():
    return (*as_tuple(), None, None, None)

def needs_one(x):
    return fitted()

def fewer():
    return {**fitted(), "train_data": (X[:3], y[:3])}

def bad_loss():
    return {**fitted(), "loss_fn": lambda o, t: (o - t).square().sum()}
"""


def test_the_shell(tmp_path):
    file, out = tmp_path / "mine.py", tmp_path / "found.json"
    file.write_text(SOURCE)
    run = CliRunner().invoke
    done = run(main, ["assess", f"{file}:fitted", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "verdict: comparable" in done.output
    assert json.loads(out.read_text())["verdict"] == "comparable"
    done = run(main, ["assess", f"{file}:with_options", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["hessian_examples"] == 3
    options = ("--hessian-examples", "4", "--json", str(out))  # what is asked for here wins
    done = run(main, ["assess", f"{file}:with_options", *options])
    assert json.loads(out.read_text())["hessian_examples"] == 4
    done = run(main, ["assess", f"{file}:fitted", "--json", str(tmp_path / "no" / "a.json")])
    assert done.exit_code == 2
    assert "there is no folder" in done.output
    done = run(main, ["assess", f"{file}:fitted", "--json", str(out)])
    done = run(main, ["compare", f"{file}:as_tuple", str(out)])
    assert done.exit_code == 0, done.output
    assert "verdict: undecided" in done.output
    broken = tmp_path / "broken.py"
    broken.write_text("\ndef f(:\n")
    null, compiles = tmp_path / "null.py", tmp_path / "compiles.py"
    null.write_bytes(b"x = 1\0")
    compiles.write_text('compile("1 +", "text", "eval")\n')
    done = run(main, ["assess", f"{compiles}:f"])
    assert isinstance(done.exception, SyntaxError), "an error of running code keeps its traceback"
    for source, words in {
        f"{broken}:f": "broken.py:2 is no Python: invalid syntax",
        f"{null}:f": "null.py is no Python: source code string cannot contain null bytes",
        f"{file}:wrong": "must return a dict with model, loss_fn and train_data, got int",
        f"{file}:missing": "has no function 'missing'",
        f"{file}:bad_loss": "not the mean over its examples",
        f"{file}:misnamed": "returns lacks loss_fn, train_data: give model, loss_fn",
        f"{file}:too_much": "returns has extra: give model, loss_fn, train_data and",
        f"{file}:six": "returns 6 things: give model, loss_fn",
        f"{file}:needs_one": "must take no arguments: missing a required argument: 'x'",
        "nowhere.py:f": "there is no file nowhere.py",
        "nowhere.json": "nowhere.json: No such file or directory",
        str(file): "does not name path/to/file.py:function",
    }.items():
        done = run(main, ["assess", source])
        assert done.exit_code == 1
        assert words in " ".join(done.output.split()), done.output
    done = run(main, ["compare", f"{file}:fewer", str(out)])
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "were measured on different data" in " ".join(done.output.split())
    done = run(main, ["compare", str(out), str(out), "--seed", "1"])
    assert done.exit_code == 2
    assert "--seed changes nothing" in " ".join(done.output.split())
    result = tmp_path / "result.json"
    done = run(main, ["compare", str(out), str(out), "--json", str(result)])
    assert done.output.startswith(f"a = {out}\nb = {out}\n")
    assert json.loads(result.read_text())["b"] == str(out)
    out.write_text("no json")
    done = run(main, ["assess", str(out)])
    assert "holds no JSON" in " ".join(done.output.split())
    out.write_text("{}")
    done = run(main, ["compare", str(out), str(out)])
    assert done.exit_code == 1
    assert "this is no assessment" in done.output


def test_chapter_16_names_every_measure_by_its_key_and_by_its_words_on_the_card():
    text = (Path(__file__).parents[1] / "notebooks/16_your_own_model.md").read_text("utf-8")
    text = text[text.index("| Key |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    plain = {key: re.sub(r"\$|\\[lr]vert", " ", words).split() for key, words in rows.items()}
    said = {
        key: re.sub(r"\|| w'Gw", " ", words).split()
        for key, (words, _) in ll.framework.MEASURES.items()
    }
    assert plain == said
