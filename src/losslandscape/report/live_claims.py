"""The registered tests of the paper's claims that need no recorded study, or not only one.

Small problems with known answers, digits, the paper's own table and its text decide them.
A :class:`Live` claim has two halves: ``measure`` computes its statistic, and ``rule`` turns the
numbers, with the records where the registration asks for both, into a word.
So the rule can be applied again to stored numbers without measuring again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.signal import lfilter
from scipy.sparse.linalg import cg, eigsh
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from losslandscape.eigen import lanczos, power_iteration
from losslandscape.lab.data import Dataset, load_dataset
from losslandscape.lab.double_well import DoubleWell, simulate_double_well
from losslandscape.lab.models import mlp
from losslandscape.lab.runs import threads
from losslandscape.lab.studies import find_study
from losslandscape.lab.training import Recipe, predict, train
from losslandscape.objective import Batch, LossFunction, gradient
from losslandscape.operators import HessianOperator
from losslandscape.report.claims import climb_ratios, noise_slopes, power_disagrees
from losslandscape.report.rules import ROWS, Evidence, Finding, Verdict, uncertified
from losslandscape.report.statistics import t_interval
from losslandscape.rescaling import rescale_relu
from losslandscape.sgd_noise import batch_factor, shuffled_factor
from losslandscape.sharpness import loss_sharpness, quadratic_bounds, quadratic_sharpness_dense
from losslandscape.taylor import loglog_slope, remainders, second_differences, stationary_point

Numbers = dict[str, Any]  # what a measurement returns: numbers and lists of them, by name
Rule = Callable[[Numbers, Evidence], Finding]

SEEDS = (0, 1, 2, 3, 4)
SIZES, NARROW = (64, 32, 10), (64, 16, 16, 10)  # both below 3 000 parameters


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """How a registered statistic is measured without records.

    Attributes:
        measure: The registered statistic.
        slow: It takes more than a few seconds, or a clock: its numbers are kept, and measured
            again when its code changes.
        slack: How far a number may move when it is measured again, beside two per cent of it:
            residuals at the level of rounding have no digits to compare.
    """

    measure: Callable[[], Numbers]
    slow: bool = False
    slack: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Live(Statistic):
    """How a claim is measured and judged.

    Attributes:
        rule: The registered verdict, from these numbers and the records.
    """

    rule: Rule


LIVE: dict[str, Live] = {}


def _rule_of(
    claim: str, measure: Callable[[], Numbers], *, slow: bool = False, slack: float = 0.0
) -> Callable[[Rule], Rule]:
    """Register the decorated rule, with the measurement it takes, as that of a claim."""

    def register(rule: Rule) -> Rule:
        LIVE[claim] = Live(measure=measure, rule=rule, slow=slow, slack=slack)
        return rule

    return register


def _nothing() -> Numbers:
    return {}


def digits() -> Dataset:
    """Digits in ``float64``, pixels divided by 16."""
    data = load_dataset("digits").to(torch.float64)
    low, high = data.x_train.min(), data.x_train.max()
    x_train, x_test = ((x - low) / (high - low) for x in (data.x_train, data.x_test))
    return replace(data, x_train=x_train, x_test=x_test)


@cache
def _trained(activation: type[nn.Module], seed: int) -> nn.Sequential:
    """A network of the registered size after fifteen epochs of Adam; to be left as it is."""
    model = mlp(SIZES, activation=activation, seed=seed)
    adam = Recipe("Adam", "adam", lr=1e-3, epochs=15)
    train(adam, digits(), seed=seed, model=model, progress=False)
    return model


# Taylor polynomial and eigenvalues


def taylor_slopes() -> Numbers:
    """C1: per network, the median slope of the remainders of order 0, 1 and 2."""
    batch = digits().stratified_subset(512)
    radii = torch.logspace(-2, -1, 9, dtype=torch.float64)

    def slopes(activation: type[nn.Module], seed: int) -> list[float]:
        model = mlp(SIZES, activation=activation, seed=seed)
        size = sum(p.numel() for p in model.parameters())
        generator = torch.Generator().manual_seed(seed)
        d = torch.randn(size, 20, generator=generator, dtype=torch.float64)
        d /= torch.linalg.vector_norm(d, dim=0)
        left = remainders(model, cross_entropy, batch, d, radii)
        return [float(x) for x in loglog_slope(radii, left, dim=1).quantile(0.5, dim=-1)]

    return {
        name: [slopes(activation, seed) for seed in SEEDS]
        for name, activation in (("tanh", nn.Tanh), ("ReLU", nn.ReLU))
    }


@_rule_of("C1", taylor_slopes)
def c1(found: Numbers, evidence: Evidence) -> Finding:
    """The slopes are 1, 2 and 3."""
    passes = {
        name: all(abs(s - k - 1) <= 0.1 for slopes in found[name] for k, s in enumerate(slopes))
        for name in ("tanh", "ReLU")
    }
    effects = {
        f"slope of order 2, {name}": [slopes[2] for slopes in found[name]] for name in passes
    }
    if all(passes.values()):
        return "holds", "", effects
    if passes["tanh"]:
        return "holds if", "the loss is smooth on the segment", effects
    return "refuted", "", effects


def curvature_differences() -> Numbers:
    """C3: largest relative difference of three curvatures, at initial and trained weights."""
    batch = digits().stratified_subset(512)
    networks = [mlp(SIZES, seed=seed) for seed in SEEDS] + [_trained(nn.Tanh, s) for s in SEEDS]
    return {"difference": [_largest_difference(model, batch) for model in networks]}


def _largest_difference(model: nn.Module, batch: Batch, h: float = 1e-3) -> float:
    """Between ARPACK's eigenvalue, quadratic form and second difference, for the top five."""
    operator = HessianOperator(model, cross_entropy, batch)
    top = lanczos(operator, k=5, tol=1e-6)
    start = np.ones(operator.shape[0])
    other = eigsh(operator.to_scipy(), k=5, which="LA", v0=start, return_eigenvectors=False)
    values = torch.from_numpy(np.sort(other)[::-1].copy())
    forms = ((operator @ top.vectors) * top.vectors).sum(dim=0)
    differences = second_differences(model, cross_entropy, batch, top.vectors, h)
    three = torch.stack([values, forms, differences])
    spread = (three.amax(dim=0) - three.amin(dim=0)) / values.abs()
    return float(spread.max())


@_rule_of("C3", curvature_differences, slack=1e-5)
def c3(found: Numbers, evidence: Evidence) -> Finding:
    """Eigenvalues are curvatures."""
    worst = max(found["difference"])
    word = "holds" if worst <= 1e-4 else "refuted"
    return word, "", {"largest relative difference": worst}


class _SummedHessian:
    """The Hessian of the cross-entropy summed over a batch, which the library refuses."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.parameters = list(model.parameters())
        size = sum(p.numel() for p in self.parameters)
        self.shape, self.dtype = (size, size), self.parameters[0].dtype
        self.device = self.parameters[0].device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        if vectors.ndim == 2:
            return torch.stack([self @ v for v in vectors.T], dim=1)
        inputs, targets = self.batch
        total = cross_entropy(self.model(inputs), targets, reduction="sum")
        first = torch.autograd.grad(total, self.parameters, create_graph=True)
        slope = parameters_to_vector(first) @ vectors
        return parameters_to_vector(torch.autograd.grad(slope, self.parameters)).detach()


# Rescaling: one function, two curvatures


@cache
def _pairs() -> list[tuple[nn.Sequential, nn.Module, float, float]]:
    """ReLU networks and their twins under T_10, with lambda_max of both."""
    batch = digits().stratified_subset(512)

    def top(model: nn.Module) -> float:
        return _top(HessianOperator(model, cross_entropy, batch))

    models = [_trained(nn.ReLU, seed) for seed in SEEDS]
    twins = [rescale_relu(model, [10.0]) for model in models]
    return [(a, b, top(a), top(b)) for a, b in zip(models, twins, strict=True)]


def _top(operator: Any, tol: float = 1e-6) -> float:
    found = lanczos(operator, tol=tol)
    if not found.converged.all():
        raise RuntimeError(f"Lanczos did not reach tol {tol:g}: the claim cannot be measured")
    return float(found.values[0])


def reduction_and_rescaling() -> Numbers:
    """C4: lambda_max of the summed loss, and of the twin, over what it was."""
    batch = digits().stratified_subset(512)
    n = len(batch[1])
    return {
        "reduction": [_top(_SummedHessian(a, batch)) / (n * low) - 1 for a, _, low, _ in _pairs()],
        "rescaling": [high / low for *_, low, high in _pairs()],
    }


@_rule_of("C4", reduction_and_rescaling, slack=1e-9)
def c4(found: Numbers, evidence: Evidence) -> Finding:
    """lambda_max alone tells sharp from flat."""
    effects = {"lambda rescaled / lambda": found["rescaling"]}
    if any(abs(x) > 1e-8 for x in found["reduction"]):  # an identity: the instrument has failed
        return "untestable here", "", effects
    if all(x >= 2 for x in found["rescaling"]):
        condition = "the reduction of the loss, the parametrisation and a reference scale are given"
        return "holds if", condition, effects
    return "holds", "", effects


@_rule_of("C6", _nothing)
def c6(found: Numbers, evidence: Evidence) -> Finding:
    """No measurable quantity is named."""
    return "untestable here", "", {}


def rescaled_rises() -> Numbers:
    """C7: largest rise within .1 after T_a over that before, a = .1 and 10."""
    batch = digits().stratified_subset(1024)

    def rise(model: nn.Module) -> float:
        found = loss_sharpness(model, cross_entropy, batch, 0.1, steps=30, chunk_size=1024)
        return float(found.values[0])

    models = [_trained(nn.ReLU, seed) for seed in SEEDS]
    before = [rise(model) for model in models]
    return {
        f"a = {a:g}": [rise(rescale_relu(m, [a])) / r for m, r in zip(models, before, strict=True)]
        for a in (0.1, 10.0)
    }


@_rule_of("C7", rescaled_rises)
def c7(found: Numbers, evidence: Evidence) -> Finding:
    """The largest rise in a ball is not moved by a rescaling."""
    effects = {f"rise rescaled / rise, {name}": ratios for name, ratios in found.items()}
    if all(abs(x - 1) <= 0.01 for ratios in found.values() for x in ratios):
        return "holds", "", effects
    return "holds if", "the parametrisation and ε are fixed", effects


def logits_and_curvature() -> Numbers:
    """C10: relative change of the logits, and of lambda_max, under T_10."""
    images = torch.cat([digits().x_train, digits().x_test])

    def change(a: nn.Module, b: nn.Module) -> float:
        before, after = predict(a, images), predict(b, images)
        return float((after - before).abs().max() / before.abs().max())

    return {
        "logits": [change(a, b) for a, b, *_ in _pairs()],
        "lambda": [high / low for *_, low, high in _pairs()],
    }


def _met(found: Numbers) -> int:
    """Networks of C10 that keep their logits while lambda_max doubles."""
    both = zip(found["logits"], found["lambda"], strict=True)
    return sum(logits <= 1e-10 and ratio >= 2 for logits, ratio in both)


@_rule_of("C10", logits_and_curvature, slack=1e-12)
def c10(found: Numbers, evidence: Evidence) -> Finding:
    """Generalisation is proportional to 1/lambda_max."""
    count = _met(found)
    effects = {
        "networks with two curvatures": count,
        "lambda rescaled / lambda": found["lambda"],
        "largest change of a logit": max(found["logits"]),
    }
    if count == len(found["lambda"]):
        return "refuted", "", effects
    return ("untestable here" if count else "holds"), "", effects


# Sharpness in a ball


def eq4_ratios() -> Numbers:
    """C8 on digits: r at epsilon = 1e-3 where the gradient of the penalised loss vanishes."""
    batch, epsilon, ratios = digits().stratified_subset(1024), 1e-3, []
    for seed in SEEDS:
        model = mlp(SIZES, seed=seed)
        loss_fn = _penalised(model)
        slope = _to_stationary_point(model, loss_fn, batch)
        if float(slope.norm()) >= 1e-8:
            raise RuntimeError(f"the gradient is still {float(slope.norm()):.1e}: more steps")
        top = lanczos(HessianOperator(model, loss_fn, batch, chunk_size=1024), tol=1e-8)
        v1, largest = top.vectors[:, 0], float(top.values[0])
        starts = torch.stack([slope, -slope, v1, -v1], dim=1)
        climb = partial(loss_sharpness, steps=30, starts=starts, chunk_size=1024)
        ratios.append(
            float(climb(model, loss_fn, batch, epsilon).values[0]) / (epsilon**2 * largest / 2)
        )
    return {"r": ratios}


def _penalised(model: nn.Module) -> LossFunction:
    """Cross-entropy with the penalty (1e-2 / 2) ||w||^2 inside."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return cross_entropy(outputs, targets) + 0.5e-2 * squares

    return loss


def _to_stationary_point(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> Tensor:
    """Minimise, by a quasi-Newton method, a trust region and Newton steps; the last gradient."""
    weights = list(model.parameters())
    operator = HessianOperator(model, loss_fn, batch, chunk_size=1024)

    def value_and_slope(point: np.ndarray) -> tuple[float, np.ndarray]:
        vector_to_parameters(torch.as_tensor(point), weights)
        value, slope = gradient(model, loss_fn, batch, chunk_size=1024)
        return value, slope.numpy()

    def product(point: np.ndarray, v: np.ndarray) -> np.ndarray:
        vector_to_parameters(torch.as_tensor(point), weights)
        return (operator @ torch.as_tensor(v)).numpy()

    point = parameters_to_vector(weights).detach().numpy()
    solve = partial(minimize, value_and_slope, jac=True)
    quick = {"maxiter": 300, "gtol": 1e-4, "maxcor": 20}
    point = solve(point, method="L-BFGS-B", options=quick).x
    point = solve(point, hessp=product, method="trust-krylov", options={"gtol": 1e-6}).x
    for _ in range(5):
        slope = value_and_slope(point)[1]
        if np.linalg.norm(slope) < 1e-9:
            break
        point = point - cg(operator.to_scipy(), slope, rtol=1e-3)[0]
    return torch.as_tensor(value_and_slope(point)[1])


@_rule_of("C8", eq4_ratios, slow=True)
def c8(found: Numbers, evidence: Evidence) -> Finding:
    """Eq. 4: at a stationary point on digits, and at the end points of the three rows."""
    effects = {"r on digits": found["r"]}
    if any(abs(r - 1) > 0.01 for r in found["r"]):
        return "refuted", "", effects
    climbs = {name: ratios for name, ratios in climb_ratios(evidence).items() if ratios}
    r = {name: np.median(ratios, axis=0) for name, ratios in climbs.items()}
    effects |= {f"median r of {name}, all radii": medians.tolist() for name, medians in r.items()}
    asked = len(find_study("climbs").seeds)
    done = min(len(climbs.get(name, [])) for name in ROWS)
    if done < asked:
        return "waits", f"for {asked - done} of {asked} run seeds of climbs", effects
    runs = [run for of_seed in evidence.runs("climbs").values() for run in of_seed.values()]
    loose = uncertified(runs, {"lambda_max": 1e-3})
    if loose:
        return "untestable here", loose, effects
    off = {name: np.abs(medians - 1) for name, medians in r.items()}
    best = {name: float(np.maximum(each[1:], each[:-1]).min()) for name, each in off.items()}
    effects |= {
        f"abs(median r - 1) of {name}, best two radii side by side": [best[name]] for name in ROWS
    }
    passing = [name for name in ROWS if best[name] <= 0.1]
    if len(passing) == len(ROWS):
        return "holds", "", effects
    rows = " and ".join(passing) or "none"
    return "holds if", f"norm(g) << eps lambda/2 (rows that pass: {rows})", effects


def bounds_and_pairs() -> Numbers:
    """C9: violated bounds on random quadratics, and networks with two curvatures."""
    rng = np.random.default_rng(0)
    violated = sum(not _within_bounds(rng, hard=number % 4 == 0) for number in range(1000))
    return {"violations": violated, "pairs": _met(logits_and_curvature())}


def _within_bounds(rng: np.random.Generator, *, hard: bool) -> bool:
    """Draw a quadratic and a radius, and compare its exact maximum with both bounds."""
    size = int(rng.integers(2, 9))
    frame, _ = np.linalg.qr(rng.standard_normal((size, size)))
    values = 10 ** rng.uniform(-3, 3) * (rng.standard_normal(size) + rng.choice([-3, 0, 3]))
    slopes = rng.standard_normal(size) * 10 ** rng.uniform(-3, 3)
    if hard:  # a gradient that is orthogonal, or nearly, to the top eigenvector
        slopes[values.argmax()] *= rng.choice([0, 1e-9])
    matrix = torch.as_tensor((frame * values) @ frame.T)
    matrix, g = (matrix + matrix.T) / 2, torch.as_tensor(frame @ slopes)
    radius = np.linalg.norm(slopes) / np.abs(values).max() * 10 ** rng.uniform(-2, 2)
    exact = float(quadratic_sharpness_dense(matrix, g, radius)[0][0])
    lower, upper = quadratic_bounds(matrix, g, radius, lanczos(matrix, tol=1e-12))
    slack = 1e-10 * float(upper[0])
    return float(lower[0]) - slack <= exact <= float(upper[0]) + slack


@_rule_of("C9", bounds_and_pairs)
def c9(found: Numbers, evidence: Evidence) -> Finding:
    """A bound on sharpness is a bound on generalisation."""
    effects = {"violated bounds of 1000": found["violations"], "pairs": found["pairs"]}
    if found["violations"]:
        return "refuted", "", effects
    if found["pairs"] == len(SEEDS):
        return "not supported", "(as a bound on sharpness it holds if g = 0)", effects
    return "untestable here", "", effects


# SGD noise

_STEPS, _BATCH = 10**6, 4


def langevin_ratios() -> Numbers:
    """C11: stationary variance over that of the SDE, per run seed, (a) and (b) minus R(x)."""
    return {
        "replaced": {f"{h:g}": [_replaced(h, seed) for seed in SEEDS] for h in (0.01, 0.1, 0.5, 1)},
        "shuffled": {
            f"{x:g}": [_shuffled(x, seed) - shuffled_factor(x) for seed in SEEDS]
            for x in (0.1, 1.0, 10.0)
        },
    }


def _variance_ratio(noise: np.ndarray, c: float, h: float) -> float:
    """Mean square of w <- (1 - h) w - xi over c / (2 h), the learning rate being 1."""
    w = lfilter([-1.0], [1.0, h - 1.0], noise)[2000:]
    return float(np.mean(w**2) * 2 * h / c)


def _pool(size: int, rng: np.random.Generator) -> np.ndarray:
    pool = rng.normal(size=size)
    return np.asarray(pool - pool.mean())


def _replaced(h: float, seed: int) -> float:
    """Batches of four out of a hundred examples, with replacement."""
    rng = np.random.default_rng(seed)
    pool = _pool(100, rng)
    noise = pool[rng.integers(100, size=(_STEPS, _BATCH))].mean(axis=1)
    return _variance_ratio(noise, pool.var(ddof=1) * batch_factor(_BATCH, 100), h)


def _shuffled(x: float, seed: int, h: float = 0.01) -> float:
    """Epochs of x / h batches of four, each in a new order."""
    rng = np.random.default_rng([seed, round(10 * x)])
    batches = round(x / h)
    pool = _pool(batches * _BATCH, rng)
    epochs = rng.permuted(np.tile(pool, (_STEPS // batches, 1)), axis=1)
    c = pool.var(ddof=1) * batch_factor(_BATCH, len(pool), replacement=False)
    return _variance_ratio(epochs.reshape(-1, _BATCH).mean(axis=1), c, h)


@_rule_of("C11", langevin_ratios, slow=True)
def c11(found: Numbers, evidence: Evidence) -> Finding:
    """SGD near a minimum is a Langevin equation."""
    effects = {
        f"variance ratio at ηh = {h}": t_interval(ratios) for h, ratios in found["replaced"].items()
    }
    a_met = all(abs(mean(found["replaced"][h]) - 1) <= 0.1 for h in ("0.01", "0.1"))
    b_met = all(abs(mean(ratios)) <= 0.05 for ratios in found["shuffled"].values())
    for x, differences in found["shuffled"].items():
        effects[f"shuffled, minus R(x), x = {x}"] = t_interval(differences)
    if not a_met:
        return "refuted", "", effects
    if b_met:
        condition = (
            "ηh ≤ 0.1, the noise is white in time, H > 0 and the run takes many more than "
            "1/(ηh) steps"
        )
        return "holds if", condition, effects
    return "not supported", "", effects


def _inputs() -> tuple[Tensor, Tensor]:
    """Training images as rows with a constant 1, (1437, 65), and their labels."""
    images, labels = digits().x_train, digits().y_train
    ones = torch.ones(len(labels), 1, dtype=torch.float64)
    return torch.cat([images.flatten(1), ones], dim=1), labels


def variance_slopes(chains: int = 20, burn_in: int = 600, steps: int = 2000) -> Numbers:
    """C12 on digits: slope s of ln variance on ln curvature, softmax regression, per run seed."""
    decay = 1e-2
    model = mlp((64, 10), seed=0)
    batch = (digits().x_train, digits().y_train)
    stationary_point(model, cross_entropy, batch, weight_decay=decay)
    size = sum(p.numel() for p in model.parameters())
    identity = torch.eye(size, dtype=torch.float64)
    matrix = HessianOperator(model, cross_entropy, batch) @ identity + decay * identity
    curvatures, vectors = torch.linalg.eigh(matrix)
    curvatures, vectors = curvatures[-10:].flip(0), vectors[:, -10:].flip(1)

    def slope(seed: int) -> float:
        excursions = _softmax_sgd(model, decay, seed, chains=chains, steps=burn_in + steps)
        squares = [(w @ vectors).square().mean(dim=0) for w in islice(excursions, burn_in, None)]
        return float(loglog_slope(curvatures, torch.stack(squares).mean(dim=0)))

    return {"s": [slope(seed) for seed in SEEDS]}


def _softmax_sgd(
    model: nn.Sequential, decay: float, seed: int, *, chains: int, steps: int
) -> Iterator[Tensor]:
    """Weights minus those of ``model``, (chains, D), before each step of SGD.

    The learning rate is 0.25; batches of 16 are drawn with replacement.
    """
    rate, size = 0.25, 16
    X, labels = _inputs()
    Y = one_hot(labels).double()
    weights, biases = (p.detach() for p in model.parameters())
    optimum = torch.cat([weights, biases[:, None]], dim=1).T  # (65, 10)
    generator = torch.Generator().manual_seed(seed)
    w = optimum.repeat(chains, 1, 1)
    for _ in range(steps):
        off = w - optimum
        yield torch.cat([off[:, :-1].mT.flatten(1), off[:, -1]], dim=1)
        rows = torch.randint(len(labels), (chains, size), generator=generator)
        x = X[rows]
        errors = torch.softmax(x @ w, dim=2) - Y[rows]
        w = w - rate * (x.mT @ errors / size + decay * w)


@_rule_of("C12", variance_slopes, slow=True)
def c12(found: Numbers, evidence: Evidence) -> Finding:
    """Eq. 6: noise that ignores the curvature (b = 0), variance like its inverse (s = -1)."""
    s = t_interval(found["s"])
    slopes = {name: found for name, found in noise_slopes(evidence).items() if len(found) > 1}
    b = {name: t_interval(values) for name, values in slopes.items()}
    effects = {"s": s, **{f"b of {name}": interval for name, interval in b.items()}}
    if s.low > -0.5:  # no b can make this an agreement
        return "refuted", "", effects
    asked = len(find_study("end_points").seeds)
    done = min((len(slopes.get(name, [])) for name in ROWS), default=0)
    if done < asked:
        return "waits", f"for {asked - done} of {asked} run seeds of end_points", effects
    inside = [name for name in ROWS if b[name].low >= -0.25 and b[name].high <= 0.25]
    if len(inside) == len(ROWS) and s.low >= -1.25 and s.high <= -0.75:
        return "holds", "", effects
    if sum(interval.low > 0.5 for interval in b.values()) >= 2:
        return "refuted", "", effects
    if inside:
        return "holds if", "the row is " + " or ".join(inside), effects
    return "untestable here", "", effects


def excess_ratios(chains: int = 64, burn_in: int = 1000, steps: int = 2000) -> Numbers:
    """C13: excess loss of ridge regression over (eta/4) tr C / (1 - mu), in 18 cases."""
    X, labels = _inputs()
    n, y = len(labels), 1.0 - 2.0 * (labels % 2).double()
    data_hessian = X.T @ X / n
    largest = torch.linalg.eigvalsh(data_hessian)[-1]
    ridge = 0.1 * largest
    H = data_hessian + ridge * torch.eye(X.shape[1], dtype=torch.float64)
    optimum = torch.linalg.solve(H, X.T @ y / n)
    noise = torch.cov((X * (X @ optimum - y)[:, None] + ridge * optimum).T).trace()
    cases = [
        (mu, 0.1 * (1 - mu) / shrink / largest, size)
        for mu in (0.0, 0.9)
        for shrink in (1, 2, 4)
        for size in (8, 16, 32)
    ]
    mus, rates, sizes = (torch.tensor(column) for column in zip(*cases, strict=True))
    share = (torch.arange(32)[:, None] < sizes) / sizes  # of each of 32 images, by case
    generator = torch.Generator().manual_seed(0)
    w = optimum[None, :, None].repeat(chains, 1, len(cases))
    v = torch.zeros_like(w)
    excess = torch.zeros(len(cases), dtype=torch.float64)
    for step in range(burn_in + steps):
        rows = torch.randint(n, (chains, 32), generator=generator)
        x = X[rows]
        v = mus * v + x.mT @ ((x @ w - y[rows][:, :, None]) * share) + ridge * w
        w = w - rates * v
        if step >= burn_in and step % 10 == 0:
            off = w - optimum[:, None]
            excess += (off * (H @ off)).sum(dim=1).mean(dim=0) / 2 / (steps / 10)
    predicted = [rate / 4 * noise * batch_factor(size, n) / (1 - mu) for mu, rate, size in cases]
    return {"ratios": (excess / torch.stack(predicted)).tolist()}


@_rule_of("C13", excess_ratios, slow=True)
def c13(found: Numbers, evidence: Evidence) -> Finding:
    """T is what the theory makes of it."""
    effects = {"excess loss / prediction": found["ratios"]}
    if all(abs(x - 1) <= 0.1 for x in found["ratios"]):
        return "holds if", "T = η σ₁²/(2B(1 - μ)) and ηλ ≪ 1 - μ", effects
    return "not supported", "", effects


def well_ratios() -> Numbers:
    """C14: occupancy of the flat over that of the sharp well, per run seed, both settings."""
    wells = {
        "equal": DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=3),
        "deeper": DoubleWell(flat=1, sharp=4, flat_depth=3, sharp_depth=5),
    }
    return {
        name: [simulate_double_well(well, 1.0, 0.005, seed=seed).ratio for seed in SEEDS]
        for name, well in wells.items()
    }


@_rule_of("C14", well_ratios, slow=True)
def c14(found: Numbers, evidence: Evidence) -> Finding:
    """Probability concentrates in the wide well."""
    effects = {
        "flat / sharp, equal depth": t_interval(found["equal"]),
        "flat / sharp, sharp deeper by 2T": t_interval(found["deeper"]),
    }
    if abs(mean(found["equal"]) / 2 - 1) > 0.1:
        return "refuted", "", effects
    if abs(mean(found["deeper"]) / (2 / math.e**2) - 1) <= 0.1:
        condition = "the noise is isotropic, the depths are equal and the chain mixes"
        return "holds if", condition, effects
    return "not supported", "", effects


# Products and power iteration


def product_errors() -> Numbers:
    """C15: error and asymmetry of the products per network, and their time in gradients."""
    networks = [mlp(NARROW, activation=nn.ReLU, seed=seed) for seed in SEEDS]
    few, every = digits().stratified_subset(300), (digits().x_train, digits().y_train)
    errors = [_error_and_asymmetry(model, few, seed) for seed, model in enumerate(networks)]
    with threads(1):
        costs = [_cost_of_product(model, every) for model in networks]
    return {"error": [e for e, _ in errors], "asymmetry": [a for _, a in errors], "cost": costs}


def _error_and_asymmetry(model: nn.Module, batch: Batch, seed: int) -> tuple[float, float]:
    """Relative, the largest of ten pairs of random vectors."""
    operator = HessianOperator(model, cross_entropy, batch)
    generator = torch.Generator().manual_seed(seed)
    U, V = torch.randn(2, operator.shape[0], 10, generator=generator, dtype=torch.float64)
    HU, HV, exact = operator @ U, operator @ V, _dense_hessian(model, batch) @ V
    norm = partial(torch.linalg.vector_norm, dim=0)
    error = norm(HV - exact) / norm(exact)
    one, other = (U * HV).sum(dim=0), (V * HU).sum(dim=0)
    return float(error.max()), float(((one - other) / one).abs().max())


def _dense_hessian(model: nn.Module, batch: Batch) -> Tensor:
    """Forward over reverse, column by column: no code in common with the operator."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    lengths = [shape.numel() for shape in shapes.values()]

    def loss(w: Tensor) -> Tensor:
        pieces = zip(shapes.items(), w.split(lengths), strict=True)
        named = {name: piece.view(shape) for (name, shape), piece in pieces}
        return cross_entropy(functional_call(model, named, (batch[0],)), batch[1])

    found: Tensor = hessian(loss)(parameters_to_vector(model.parameters()).detach())
    return found


def _cost_of_product(model: nn.Module, batch: Batch, repeats: int = 21) -> float:
    """CPU time of a product over that of a gradient, for the slower way of making products."""
    images = len(batch[1])
    v = torch.ones_like(parameters_to_vector(model.parameters()))
    kept, anew = (
        HessianOperator(model, cross_entropy, batch, chunk_size=images, memory_budget=budget)
        for budget in (1 << 30, 0)  # the graph is kept, or built anew
    )
    actions: list[Callable[[], Any]] = [
        lambda: gradient(model, cross_entropy, batch, chunk_size=images),
        lambda: kept @ v,
        lambda: anew @ v,
    ]
    for action in actions:
        action()  # the first call of each does not count
    rounds = [[_cpu_seconds(action) for action in actions] for _ in range(repeats)]
    of_gradient, *of_products = (median(times) for times in zip(*rounds, strict=True))
    return float(max(of_products) / of_gradient)


def _cpu_seconds(action: Callable[[], Any]) -> float:
    before = time.process_time()
    action()
    return time.process_time() - before


@_rule_of("C15", product_errors, slow=True, slack=1e-10)
def c15(found: Numbers, evidence: Evidence) -> Finding:
    """Products are exact, symmetric and cheap."""
    effects = {
        "largest error": max(found["error"]),
        "largest asymmetry": max(found["asymmetry"]),
        "time in gradients": found["cost"],
    }
    if max(found["error"] + found["asymmetry"]) > 1e-10:
        return "refuted", "", effects
    if max(found["cost"]) > 4:
        return "holds if", "the cost is not claimed", effects
    return "holds", "", effects


def power_against_lanczos() -> Numbers:
    """C16 (a) and (b): residuals of settled runs, and networks where the two methods differ."""
    batch = (digits().x_train, digits().y_train)
    losses: dict[str, LossFunction] = {
        "cross-entropy": cross_entropy,
        "squared error": _squared_error,
    }
    return {
        "settled": [_settled_residual(seed) for seed in range(10)],
        "differ": {
            name: sum(_differs(loss, batch, seed) for seed in range(10))
            for name, loss in losses.items()
        },
    }


def _settled_residual(seed: int) -> float:
    """On diag(10, -10, 1, ...): residual over value once the value moves by less than 1e-12."""
    matrix = torch.diag(torch.cat([torch.tensor([10.0, -10.0]), torch.ones(98)]).double())
    generator = torch.Generator().manual_seed(seed)
    v0 = torch.randn(100, generator=generator, dtype=torch.float64)
    history = power_iteration(matrix, v0=v0, tol=1e-3, max_products=200).history
    still = (history[1:, 1] - history[:-1, 1]).abs() < 1e-12
    if not still.any():
        return 0.0  # it never settles, so it does not report a wrong value
    _, value, residual = history[1:][still][0].tolist()
    return float(residual / abs(value))


def _squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(outputs, one_hot(labels, outputs.shape[1]).to(outputs.dtype))


def _differs(loss_fn: LossFunction, batch: Batch, seed: int) -> bool:
    """Whether power iteration and Lanczos differ by more than their residuals at a start."""
    model = mlp(NARROW, activation=nn.ReLU, seed=seed)
    operator = HessianOperator(model, loss_fn, batch, chunk_size=2048)
    power = power_iteration(operator, max_products=200, seed=seed)
    krylov = lanczos(operator, max_products=200, seed=seed)
    apart = abs(float(power.values[0] - krylov.values[0]))
    return apart > float(power.residuals[0] + krylov.residuals[0])


@_rule_of("C16", power_against_lanczos)
def c16(found: Numbers, evidence: Evidence) -> Finding:
    """Power iteration finds the largest eigenvalue."""
    fooled = sum(ratio > 1e-2 for ratio in found["settled"])
    apart = power_disagrees(evidence)
    ends = [run for runs in evidence.runs("end_points").values() for run in runs]
    asked = len(find_study("end_points").runs())
    effects = {
        "starts that settle on no eigenvalue, of 10": fooled,
        "networks that differ at the start, of 20": sum(found["differ"].values()),
        "end points that differ": len(apart),
        "end points": len(ends),
    }
    if apart:  # further end points cannot take it back
        return "refuted", "", effects
    if len(ends) < asked:
        return "waits", f"for {asked - len(ends)} of {asked} runs of end_points", effects
    if fooled or any(found["differ"].values()):
        return "holds if", "abs(lambda_min) < lambda and the residual is shown", effects
    return "holds", "", effects


# The text, and the other verdicts


@_rule_of("C19", _nothing)
def c19(found: Numbers, evidence: Evidence) -> Finding:
    """The protocol can be repeated."""
    given = evidence.paper["protocol"]
    effects = {"items given, of 9": sum(bool(value) for value in given.values())}
    if effects["items given, of 9"] >= 7:
        return "holds", "", effects
    return "untestable here", "(as reported)", effects


RIGOROUS = ("C1", "C2", "C7", "C8", "C9", "C10", "C12", "C14")
_POINTS = {"holds": 1.0, "holds if": 0.5}


def c38(verdicts: Mapping[str, Verdict]) -> Verdict:
    """The framework is rigorous: half of the points at least, from eight of its derivations.

    A claim that waits is worth between 0 and 1; if no outcome could move the word, it is said now.
    """
    waiting = [name for name in RIGOROUS if verdicts[name].word == "waits"]
    least = sum(_POINTS.get(verdicts[name].word, 0.0) for name in RIGOROUS)
    most = least + len(waiting)
    effects = {"score, at least": least, "score, at most": most} if waiting else {"score": least}
    worst, best = _score_word(least), _score_word(most)
    if worst != best:
        return Verdict("C38", "waits", "for " + _listed(waiting), effects)
    return Verdict("C38", *best, effects)


def _score_word(score: float) -> tuple[str, str]:
    if score >= 6:
        return "holds", ""
    return ("holds if", "the conditions are added") if score >= 4 else ("not supported", "")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def judge_live(claim: str, found: Numbers, evidence: Evidence) -> Verdict:
    """The verdict of a claim of :data:`LIVE` on numbers measured now or earlier.

    Raises:
        KeyError: The claim is not one of them.
    """
    return Verdict(claim, *LIVE[claim].rule(found, evidence))


def leaves(found: Any) -> Iterable[float]:
    """Every number of a measurement, in a fixed order."""
    if isinstance(found, Mapping):
        found = found.values()
    elif not isinstance(found, list):
        yield float(found)
        return
    for part in found:
        yield from leaves(part)
