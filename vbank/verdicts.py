"""Whether the seeds allow a claim: the rule that was fixed before the results of the ablations, and its two testbeds.

A testbed's variants share everything but one choice. A run's seed fixes head, order of rows and adapter, so variants
are compared seed by seed, and what a seed alone does to a score is the noise. All scores here are in points: an
accuracy of 0.83 is 83.

    s^2 = sum_v (n_v - 1) s_v^2 / sum_v (n_v - 1)     over the variants v that learn, with sample deviation s_v
    d   = mean over the n shared seeds of (variant - against)
    e   = s sqrt(2 / n)

Source: benchmarks/ablations.md, "How a claim is decided". The pooled deviation is the usual one of an analysis of
variance with one factor. The doubled error 2 e is no confidence interval: with n shared seeds, and the pairs' common
part left in s, it errs on the side of "not testable here".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance
from typing import Literal

from vbank import ledger, recipes, selections_log
from vbank.ledger import Record
from vbank.suggestions import unknown

Scores = Mapping[str, Mapping[int, float]]  # variant -> seed -> points
Claimed = Literal["better", "worse", "needed", "no gain"]

LEARNS = 10.0  # points below the best; what lies lower does not learn, and its spread is of another kind
SLIGHT = 1.0  # points within which two variants are as good as each other
CLAIMED = ("better", "worse", "needed", "no gain")


class Verdict(StrEnum):
    """What the runs say to a claim."""

    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    NOT_TESTABLE = "not testable here"
    DISAGREE = "the testbeds disagree"  # of two testbeds together: one confirms, the other does not


@dataclass(frozen=True)
class Comparison:
    """Two variants, seed by seed.

    Args:
        variant, against: their names.
        d: mean of variant - against over the shared seeds, in points; None where they share none.
        margin: 2 e, in points; None where the testbed has no variant with two seeds, or `d` is None.
        seeds: those that both have, ascending.
    """

    variant: str
    against: str
    d: float | None
    margin: float | None
    seeds: tuple[int, ...]

    @property
    def n(self) -> int:
        """How many seeds both have."""
        return len(self.seeds)

    def __str__(self) -> str:
        names = f"{_short(self.variant)} against {_short(self.against)}"
        if self.d is None:
            return f"{names}: not run"
        margin = "" if self.margin is None else f" ± {self.margin:.1f}"
        return f"{names}: {self.d:+.1f}{margin}, {self.n} {'seed' if self.n == 1 else 'seeds'}"

    @property
    def clear(self) -> bool:
        """|d| > 2 e: the difference stands out of the seeds."""
        return self.d is not None and self.margin is not None and abs(self.d) > self.margin

    def verdict(self, claimed: Claimed) -> Verdict:
        """Whether a claim about `variant` holds here.

        - ``"better"``, ``"worse"``: confirmed if d has that sign and abs(d) > 2 e; not confirmed if it has the other
          sign and abs(d) > 2 e; else not testable here.
        - ``"needed"``, for "X is needed" and "X is best", with X the variant: the same as ``"better"``, and also not
          confirmed if d + 2 e < 1 point. The rule asks besides that the other lies within one point of X; for an other
          that is worse, d + 2 e < 1 says so already, and one that is better by more speaks against X all the more.
        - ``"no gain"``, for "the other has no or a slight gain over X": confirmed if abs(d) + 2 e < 1 point, or d > 0
          (the other is not even ahead); not confirmed if d < 0 and abs(d) > 2 e; else not testable here.

        An inequality that is met exactly is not met.

        Raises:
            ValueError: a claim of another kind.
        """
        if claimed not in CLAIMED:
            raise ValueError(unknown("kind of claim", claimed, CLAIMED))
        if self.d is None or self.margin is None:
            return Verdict.NOT_TESTABLE
        favour = -self.d if claimed == "worse" else self.d
        if claimed == "no gain":
            holds = abs(self.d) + self.margin < SLIGHT or self.d > 0
            fails = self.d < 0 and self.clear
        else:
            holds = favour > self.margin
            fails = -favour > self.margin or (claimed == "needed" and favour + self.margin < SLIGHT)
        return Verdict.CONFIRMED if holds else Verdict.NOT_CONFIRMED if fails else Verdict.NOT_TESTABLE


def _short(name: str) -> str:
    """Names without the laboratory's group."""
    return " ".join(word.rpartition("/")[2] for word in name.split(" "))


@dataclass(frozen=True)
class Testbed:
    """Variants that were run under one set-up.

    Args:
        name: as shown.
        scores: variant -> seed -> points; what a variant lacks is simply not there.
        reach: how many points below the best mean a variant may lie to count as one that learns; None: all do.

    Example:
        >>> from vbank import verdicts
        >>> runs = {"k = 1": {0: 80.0, 1: 81.0}, "k = 2": {0: 84.0, 1: 86.0}}
        >>> found = verdicts.Testbed("two seeds each", runs).compare("k = 2", "k = 1")
        >>> print(found)
        k = 2 against k = 1: +4.5 ± 2.2, 2 seeds
        >>> print(found.verdict("better"))
        confirmed
    """

    name: str
    scores: Scores
    reach: float | None = LEARNS
    __test__ = False  # no test class, whatever pytest makes of its name

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean over the seeds of each variant that has a run."""
        return {name: fmean(runs.values()) for name, runs in self.scores.items() if runs}

    @cached_property
    def learning(self) -> tuple[str, ...]:
        """Variants whose mean lies at most `reach` points below the best mean."""
        best = max(self.means.values(), default=0.0)
        return tuple(name for name, mean in self.means.items() if self.reach is None or mean >= best - self.reach)

    @cached_property
    def deviation(self) -> float | None:
        """s in points: sample deviation over seeds, pooled over the variants that learn; None if none has two seeds."""
        runs = [list(self.scores[name].values()) for name in self.learning if len(self.scores[name]) > 1]
        freedom = sum(len(each) - 1 for each in runs)
        return math.sqrt(sum((len(each) - 1) * variance(each) for each in runs) / freedom) if freedom else None

    def seeds(self, *names: str) -> tuple[int, ...]:
        """Seeds that all of these variants have; none where one was not run."""
        return tuple(sorted(set.intersection(*(set(self.scores.get(name, ())) for name in names))))

    def compare(self, variant: str, against: str) -> Comparison:
        """d = variant - against, with e = s sqrt(2 / n)."""
        return self._contrast(variant, against, {variant: 1.0, against: -1.0})

    def halfway(self, variant: str, high: str, low: str) -> Comparison:
        """d = variant - (high + low) / 2: positive if the variant keeps more than half of the gap between the two.

        The rule speaks of "most" of a loss without an error. By the same reasoning as for two variants, the weights
        1, -1/2, -1/2 give e = s sqrt(3/2 / n).
        """
        weights = {variant: 1.0, high: -0.5, low: -0.5}
        return self._contrast(variant, f"halfway from {low} to {high}", weights)

    def best(self, variants: Sequence[str]) -> str | None:
        """The variant of the highest mean, of equals the first; None where none of them was run."""
        found = [name for name in variants if name in self.means]
        return max(found, key=self.means.__getitem__) if found else None

    def _contrast(self, variant: str, against: str, weights: Mapping[str, float]) -> Comparison:
        if len(weights) < 2 or variant == against:
            raise ValueError(f"{variant!r} is compared with itself; name two variants")
        seeds = self.seeds(*weights)
        if not seeds:
            return Comparison(variant, against, None, None, ())
        d = fmean(sum(weight * self.scores[name][seed] for name, weight in weights.items()) for seed in seeds)
        squares = sum(weight**2 for weight in weights.values())
        margin = None if self.deviation is None else 2 * self.deviation * math.sqrt(squares / len(seeds))
        return Comparison(variant, against, d, margin, seeds)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several testbeds: not confirmed only if none supports the claim.

    Where one confirms and another says "not confirmed", the rule has both reported; that is `Verdict.DISAGREE`. A
    testbed that cannot tell leaves the word to the other.
    """
    found = set(verdicts)
    if {Verdict.CONFIRMED, Verdict.NOT_CONFIRMED} <= found or Verdict.DISAGREE in found:
        return Verdict.DISAGREE
    for verdict in (Verdict.CONFIRMED, Verdict.NOT_CONFIRMED):
        if verdict in found:
            return verdict
    return Verdict.NOT_TESTABLE


def every(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict of several comparisons that a claim makes at once: all must be confirmed, one that fails refutes."""
    found = set(verdicts)
    if Verdict.NOT_CONFIRMED in found:
        return Verdict.NOT_CONFIRMED
    return Verdict.CONFIRMED if found == {Verdict.CONFIRMED} else Verdict.NOT_TESTABLE


def ablations(records: Iterable[Record], task: str = "sst2-sentences") -> dict[str, dict[int, Record]]:
    """The ledger's runs of the recipe "ablations" on one task, on the scale of two processor cores.

    A run that differs from its variant's recipe in the learning rates alone has them in its name: "unshared-2 0.001".
    One that differs in anything else, was made on generated sentences, or belongs to a search is left out. On CoLA the
    prefix "cola-" is dropped, and "top-2" is minilm-cola/vb-lora-all, which has these settings.

    Args:
        records: as `vbank.ledger.read` gives them.
        task: sst2-sentences or cola.

    Returns:
        variant -> seed -> record.
    """
    known = {f"ablations/{variant}": variant.removeprefix("cola-") for variant in recipes.available()["ablations"]}
    known["minilm-cola/vb-lora-all"] = "top-2"
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        name, made = f"{record['experiment']}/{record['variant']}", record["recipe"]
        if name not in known or record["kind"] != "final" or made["scale"] != "cpu" or made["task"]["name"] != task:
            continue
        wanted = recipes.load(name, scale="cpu").resolved()
        parts = ("task", "model", "method", "train")
        changed = {f"{part}.{key}" for part in parts for key in made[part] if wanted[part].get(key) != made[part][key]}
        if changed <= {"method.lr"} and not record["data"]["source"].startswith("generated"):
            rates = [f"{rate:g}" for key, rate in made["method"]["lr"].items() if changed and key != "head"]
            found.setdefault(" ".join([known[name], *rates]), {})[record["seed"]] = record
    return {name: dict(sorted(runs.items())) for name, runs in found.items()}


def scores(runs: Mapping[str, Mapping[int, Record]], metric: str | None = None, unit: float = 100.0) -> Scores:
    """variant -> seed -> score times `unit`, from what `ablations` gives; a metric of None is the task's own."""
    return {
        name: {seed: unit * run["metrics"][metric or run["metric"]] for seed, run in by_seed.items()}
        for name, by_seed in runs.items()
    }


def minilm(records: Iterable[Record], task: str = "sst2-sentences") -> Testbed:
    """The first testbed: MiniLM; the task's own score after the last epoch, in points."""
    title = {"sst2-sentences": "MiniLM, SST-2", "cola": "MiniLM, CoLA"}.get(task, f"MiniLM, {task}")
    return Testbed(title, scores(ablations(records, task)))


def laboratory(*paths: str | os.PathLike[str]) -> Testbed:
    """The second testbed: the digits laboratory, from files digits_<group>.json; accuracy in points.

    Variants are named "group/variant", such as "vb-lora/top-2", for the groups differ in length and batch. A file that
    is not there yet is left out.

    Raises:
        ValueError: a file is no such report; the message names it.
    """
    found: dict[str, dict[int, float]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            continue
        group = path.stem.removeprefix("digits_").replace("_", "-")
        try:
            variants = json.loads(path.read_text(encoding="utf-8"))["variants"]
            for name, about in variants.items():
                runs = {int(seed): 100 * run["accuracy"] for seed, run in about["runs"].items()}
                found[f"{group}/{name}"] = dict(sorted(runs.items()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} is no report of the digits laboratory; make it again with benchmarks/digits_ablations.py"
            ) from None
    return Testbed("digits laboratory", found)


def choices(out: Path | str, records: Iterable[Record]) -> dict[str, Testbed]:
    """What the logs of selections say of the runs on SST-2, as testbeds whose points are percent.

    - "changed": the share of sub-vectors that choose other vectors at the end than at the start, variant by variant.
    - "exchanged": the mean share of choices that the recording before did not have, over the recordings of the first
      and of the last third of the steps: "top-2, first third" and "top-2, last third".

    A run without a log is left out.

    Args:
        out: the ledger's folder.
        records: of it, as `vbank.ledger.read` gives them.
    """
    from vbank.figures.selected import exchanged  # with matplotlib, which the rest does without

    changed: dict[str, dict[int, float]] = {}
    thirds: dict[str, dict[int, float]] = {}
    for name, runs in ablations(records).items():
        for seed, record in runs.items():
            path = ledger.log_of(ledger.path_of(Path(out), record))
            if not path.is_file():
                continue
            log = selections_log.read(path)
            ends = log.indices[[0, -1]].sort(-1).values
            changed.setdefault(name, {})[seed] = 100 * (ends[0] != ends[1]).any(-1).double().mean().item()
            shares, at = 100 * exchanged(log.indices.numpy()), log.steps[1:].numpy() / int(log.steps[-1])
            for third, inside in (("first", at <= 1 / 3), ("last", at > 2 / 3)):
                thirds.setdefault(f"{name}, {third} third", {})[seed] = float(shares[inside].mean())
    return {
        "changed": Testbed("choices changed", changed, reach=None),
        "exchanged": Testbed("choices exchanged", thirds, reach=None),
    }
