"""What the verdicts have in common: the words, rule I, the records they read, the registry.

``book/claims.yml`` fixes statistic, threshold and rule of every claim. The rules of single claims,
:mod:`~losslandscape.report.claims` and :mod:`~losslandscape.report.sweep_claims`, register here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

from losslandscape.lab import records
from losslandscape.lab.studies import find_study
from losslandscape.report import tables
from losslandscape.report.statistics import Interval

SHARP, FLAT, ADAM = "Sharp_SGD_HighLR", "Flat_SGD_LowLR", "Adam_Default"
ROWS = (SHARP, FLAT, ADAM)
WORDS = ("holds", "holds if", "not supported", "refuted", "untestable here", "waits")

Run = Mapping[str, Any]  # results of one run
Seeds = list[list[Run]]  # per run seed, the runs of the configurations asked for
Finding = tuple[str, str, dict[str, Any]]  # word, condition and effects of a Verdict


@dataclass(frozen=True)
class Verdict:
    """What the registered rule says about a claim.

    Attributes:
        claim: Its identifier.
        word: One of :data:`WORDS`.
        condition: What ``holds if`` depends on, or what a waiting claim waits for.
        effects: The numbers the rule was applied to, by name.
    """

    claim: str
    word: str
    condition: str = ""
    effects: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.word} {self.condition}".strip()


def interval_rule(effect: Interval, threshold: float) -> str:
    """Rule I: the claim predicts an effect above ``threshold``.

    >>> interval_rule(Interval(1.0, 0.5, 1.5, 10), 0.2)
    'holds'
    >>> interval_rule(Interval(0.0, -0.1, 0.1, 10), 0.2)
    'not supported'
    """
    if effect.low > threshold:
        return "holds"
    if effect.high < 0:
        return "refuted"
    if effect.high < threshold:
        return "not supported"
    return "untestable here"


def common(words: Sequence[str]) -> str:
    """The one word of several effects, ``untestable here`` if they differ."""
    return words[0] if len(set(words)) == 1 else "untestable here"


class Evidence:
    """The recorded runs, read once per study."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.paper = tables.reported(root)
        self._studies: dict[str, dict[str, dict[int, Run]]] = {}

    def runs(self, study: str) -> dict[str, dict[int, Run]]:
        """All recorded results of a study, by configuration and run seed."""
        if study not in self._studies:
            found: dict[str, dict[int, Run]] = {}
            for record in records.load_study(study, self.root):
                found.setdefault(record.configuration, {})[record.seed] = record.results
            self._studies[study] = found
        return self._studies[study]

    def rows(self, study: str, configurations: Sequence[str]) -> Seeds:
        """Per run seed for which all the configurations are recorded, their results in order."""
        runs = self.runs(study)
        seeds = set.intersection(*(set(runs.get(name, {})) for name in configurations))
        return [[runs[name][seed] for name in configurations] for seed in sorted(seeds)]


Judge = Callable[[Evidence], Verdict]
Rule = Callable[[Evidence, Seeds], Finding]
JUDGES: dict[str, Judge] = {}


def uncertified(runs: Iterable[Run], tolerances: Mapping[str, float]) -> str:
    """How many eigenvalues of these names have too large a residual, in brackets; "" if none.

    >>> uncertified([{"at": [{"lambda_max": {"value": 2, "residual": 1}}]}], {"lambda_max": 0.01})
    '(the residual of 1 eigenvalue is too large)'
    """
    count = sum(
        found["residual"] > tolerances[name] * abs(found["value"])
        for run in runs
        for name, found in _named(run)
        if name in tolerances
    )
    plural = "s" if count > 1 else ""
    return f"(the residual of {count} eigenvalue{plural} is too large)" if count else ""


def _named(results: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All mappings within the results of a run, with their names."""
    if isinstance(results, Mapping):
        for name, found in results.items():
            if isinstance(found, Mapping):
                yield name, found
            yield from _named(found)
    elif isinstance(results, list):
        for found in results:
            yield from _named(found)


def judges(
    claim: str,
    study: str,
    configurations: Sequence[str] = ROWS,
    *,
    certified: Mapping[str, float] = MappingProxyType({}),
) -> Callable[[Rule], Judge]:
    """Register the rule of a claim that needs every run of a study.

    The rule gets the run seeds that are complete; while some are missing, its numbers stand beside
    the word ``waits``.

    Args:
        claim: Its identifier.
        study: The study that decides it.
        configurations: Those that the rule compares.
        certified: Eigenvalues that the rule reads, by name, and their largest relative residual:
            an instrument check.
    """

    def register(rule: Rule) -> Judge:
        def decide(evidence: Evidence) -> Verdict:
            rows = evidence.rows(study, configurations)
            asked = len(find_study(study).seeds)
            waits = f"for {asked - len(rows)} of {asked} run seeds of {study}"
            if len(rows) < 2:
                return Verdict(claim, "waits", waits)
            loose = uncertified([run for row in rows for run in row], certified)
            if loose and len(rows) == asked:
                return Verdict(claim, "untestable here", loose)
            word, condition, effects = rule(evidence, rows)
            if len(rows) < asked:
                word, condition = "waits", waits
            return Verdict(claim, word, condition, effects)

        JUDGES[claim] = decide
        return decide

    return register


def mean_log(level: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean of the logarithm of one number over the checkpoints of a run."""
    return mean(math.log(row[name]["value"]) for row in level)
