"""What the framework finds: thresholds, measures, checks, assessments and comparisons."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

VERDICTS = ("not-a-minimum", "saddle-like", "lr-limited", "comparable")


@dataclass(frozen=True)
class Thresholds:
    """Where the words change.

    Attributes:
        loss: Training loss above which a network is not fitted; None sets no level, and the polish
            test decides alone.
        fall: Training loss that the polish may still gain; None means one per cent of what the
            training loss is below that of the best constant output.
        log_ratio: Largest change of ``ln lambda_max`` in the polish.
        index: ``lambda_min >= -index * lambda_max``.
        free, edge: Share of the stability limit below which the learning rate does not bind, and
            from which on it does.
        matched: Two networks are compared if their training losses differ from the common one, the
            geometric mean, by no more than this share.
        moved: Largest relative change of an invariant measure under rescaling; a smaller difference
            of two networks counts as none.
        votes: Measures that must agree before one network is called flatter.
    """

    loss: float | None = None
    fall: float | None = None
    log_ratio: float = math.log(2)
    index: float = 0.1
    free: float = 0.3
    edge: float = 0.7
    matched: float = 0.1
    moved: float = 0.01
    votes: int = 3

    def __post_init__(self) -> None:
        for name in ("fall", "log_ratio", "index", "free", "edge", "matched", "moved", "votes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"the threshold {name!r} must be 0 or more, got {value}")


@dataclass(frozen=True)
class Measure:
    """A number with its 95 % interval.

    Attributes:
        value: On the Hessian set.
        low, high: Bootstrap interval over blocks of examples, and over probes where there are any.
        invariant: The rescalings that leave it alone: ``"none"``, ``"layers"`` or ``"units"``.
        residual: ``||A v - theta v||`` of an eigenvalue, else None.
        samples: ``(K, P)`` contributions of each block, times ``K``, for each probe; their mean is
            ``value``. None for a ratio.
    """

    value: float
    low: float
    high: float
    invariant: str
    residual: float | None = None
    samples: Tensor | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


# What each measure is called, what it is, and which rescalings leave it alone.
MEASURES = {
    "lambda_max": ("largest Hessian eigenvalue", "none"),
    "lambda_min": ("smallest Hessian eigenvalue", "none"),
    "trace": ("trace of the Hessian", "none"),
    "adaptive_lambda_max": ("largest eigenvalue of |w| H |w|", "units"),
    "adaptive_trace": ("trace of |w| H |w|", "units"),
    "fisher_rao": ("Fisher-Rao norm w'Gw", "units"),
    "relative_flatness": ("relative flatness of the last layer", "units"),
    "isotropy": ("participation ratio of |w| H |w|", "units"),
}
VOTING = ("adaptive_lambda_max", "adaptive_trace", "fisher_rao", "relative_flatness")


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Attributes:
        name: ``"operator"``, ``"fit"``, ``"polish"``, ``"sharpness settled"`` or ``"index"``.
        passed: Whether it is met; None where no threshold is set.
        value, threshold: What was compared.
        text: The finding in words.
    """

    name: str
    passed: bool | None
    value: float
    threshold: float | None
    text: str


@dataclass(frozen=True)
class Stability:
    """Curvature against the limit at which the optimiser becomes unstable on a quadratic.

    It belongs to these weights: another writing of the same function has another ratio.

    Attributes:
        ratio: 1 is the edge.
        text: In words, or why there is no ratio.
        low, high: 95 % bootstrap interval over blocks of examples, or over batches where their
            statistics are taken; None of a single one.
        residual: An eigenvalue over its limit lies within so much of ``ratio``.
    """

    ratio: float | None
    text: str
    low: float | None = None
    high: float | None = None
    residual: float | None = None


@dataclass(frozen=True)
class OrbitCheck:
    """What random rescalings that keep the function change.

    Attributes:
        rescalings: How many were tried; 0 if the network has no such symmetry known here.
        changes: Largest relative change of each voting measure.
        lambda_max_range: Largest over smallest ``lambda_max`` among them.
        gate_moved: Largest distance between balanced networks, relative to their norm.
        survives: Whether the balanced network, to which the gate is applied, and the voting
            measures stay within the tolerance; None if no rescaling was tried. The stability ratio
            is of these weights and takes no part.
        text: In words.
    """

    rescalings: int
    changes: dict[str, float]
    lambda_max_range: float
    gate_moved: float
    survives: bool | None
    text: str


@dataclass(frozen=True)
class Assessment:
    """What :func:`assess` found; shown as a report in a terminal and as a card in a notebook.

    Attributes:
        verdict: One of :data:`VERDICTS`.
        reasons: Sentences, the deciding ones first.
        checks: The gate.
        measures: By the names of :data:`MEASURES`; those that the network does not allow are left
            out and named in ``notes``.
        stability, orbit: See there.
        train_loss, val_loss: Mean losses.
        gradient_norm: Of the training loss, on all examples.
        penalty_norm: ``|wd w|``, each parameter with its own decay: what a weight penalty could
            balance.
        examples, hessian_examples, parameters: Sizes.
        data_digest: Of the Hessian set: only networks measured on the same can be compared.
        products: Products with a curvature matrix of the Hessian set.
        seconds: Wall time.
        notes: What was done differently or could not be done, and why.
        thresholds: What the words rest on.
    """

    verdict: str
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    measures: dict[str, Measure]
    stability: Stability
    orbit: OrbitCheck
    train_loss: float
    val_loss: float | None
    gradient_norm: float
    penalty_norm: float
    examples: int
    hessian_examples: int
    parameters: int
    data_digest: str
    products: int
    seconds: float
    notes: tuple[str, ...]
    thresholds: Thresholds

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dicts; None where a number is missing."""
        from losslandscape.framework.cards import plain

        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Assessment:
        """The assessment that :meth:`to_dict` wrote; nothing in it can execute code.

        Raises:
            ValueError: Something is missing, too much or of the wrong kind.
        """
        try:
            read: Assessment = _read(cls, found)
        except (TypeError, KeyError, ValueError, OverflowError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"this is no assessment: {reason}") from error
        unknown = sorted(set(read.measures) - set(MEASURES))
        if unknown or read.verdict not in VERDICTS or not read.reasons:
            what = f"measures {unknown}" if unknown else f"verdict {read.verdict!r} without reason"
            raise ValueError(f"this is no assessment: {what}")
        for name, measure in read.measures.items():
            if measure.invariant != MEASURES[name][1]:
                raise ValueError(f"this is no assessment: {name} is not {measure.invariant!r}")
        return read

    def __str__(self) -> str:
        from losslandscape.framework.cards import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from losslandscape.framework.cards import terminal

        return terminal(self)

    def _repr_html_(self) -> str:
        from losslandscape.framework.cards import html

        return html(self)


def _read(kind: Any, found: Any) -> Any:
    """What :func:`~.cards.plain` made of an object of this kind, as such an object again.

    Raises:
        TypeError, KeyError, ValueError: It is of another kind, too little or too much.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        what = f"{'an' if kind.__name__[0] in 'AO' else 'a'} {kind.__name__}"
        if not isinstance(found, Mapping):
            raise TypeError(f"expected a dict of {what}, got {type(found).__name__}")
        needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
        for fault, names in (("lacks", needed - set(found)), ("has", set(found) - set(hints))):
            if names:
                raise TypeError(f"{what} that {fault} {', '.join(sorted(names))}")
        return kind(**{name: _read(hints[name], value) for name, value in found.items()})
    if kind is Tensor:
        table = torch.tensor(found, dtype=torch.float64)
        if table.ndim != 2:
            raise ValueError("the samples of a measure must be a table")
        return table
    if kind is float:  # None stands for a number that is not finite
        if found is not None and (isinstance(found, bool) or not isinstance(found, (int, float))):
            raise TypeError(f"{found!r} is no number")
        return math.nan if found is None else float(found)
    if kind in (str, bool, int):
        if type(found) is not kind:
            raise TypeError(f"{found!r} is no {kind.__name__}")
        return found
    inner = get_args(kind)
    if NoneType in inner:
        return None if found is None else _read(inner[0], found)
    if get_origin(kind) is tuple:
        return tuple(_read(inner[0], part) for part in _as(list, found))
    return {_read(str, name): _read(inner[1], part) for name, part in _as(dict, found).items()}


def _as(kind: type, found: Any) -> Any:
    if not isinstance(found, kind):
        raise TypeError(f"{found!r} is no {kind.__name__}")
    return found


@dataclass(frozen=True)
class Contrast:
    """One measure of two networks.

    Attributes:
        log_ratio: ``ln(a / b)``, with its 95 % interval ``low`` to ``high``.
        vote: ``"a"`` or ``"b"`` for the flatter one, ``""`` where the interval does not tell.
    """

    log_ratio: float
    low: float
    high: float
    vote: str


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        verdict: ``"a-flatter"``, ``"b-flatter"`` or ``"undecided"``.
        reasons: Sentences.
        contrasts: By measure.
    """

    verdict: str
    reasons: tuple[str, ...]
    contrasts: dict[str, Contrast]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dicts."""
        from losslandscape.framework.cards import plain

        found: dict[str, Any] = plain(self)
        return found

    def __str__(self) -> str:
        from losslandscape.framework.cards import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from losslandscape.framework.cards import terminal_comparison

        return terminal_comparison(self)

    def _repr_html_(self) -> str:
        from losslandscape.framework.cards import html_comparison

        return html_comparison(self)
