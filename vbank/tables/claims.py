"""The papers' claims about single choices as data, and what the runs say to each.

claims.toml holds a claim's `id`, its `source`, what it `says` in our words, and what it `asks` of the runs. An ask has

- `kind`: how a comparison is judged, as `vbank.verdicts.Comparison.verdict` names it; "rises": see `rising`.
- `of` and `against`: names of variants; each of the first is compared with each of the second. A list in place of a
  name stands for the best of its variants, and a name with " *" for that variant at the best of its rates.
- `halfway`: in place of `against`, two variants between whose scores the midpoint is what `of` is compared with.
- `on`: the testbed, where the claim asks for one or names its variants otherwise on the other.

Names are those of the recipe "ablations". `group` says where the laboratory has them: "vera-only-d" is "vera/only-d" in
the group "vera". A claim that asks for nothing says `why` no run can test it.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, fmean, stdev
from typing import Any

from vbank.suggestions import unknown
from vbank.verdicts import Claimed, Comparison, Testbed, Verdict, every, together

FILE = Path(__file__).with_name("claims.toml")
BOTH = ("minilm", "laboratory")
Entry = str | Sequence[str]  # a variant, or several of which the best counts


def verdict_of(kind: str, compared: Comparison) -> Verdict:
    """What one comparison says to an ask of this kind; a rank correlation "rises" as a difference is "better"."""
    claimed: Claimed = "better" if kind == "rises" else kind  # type: ignore[assignment]
    return compared.verdict(claimed)


@dataclass(frozen=True)
class Ask:
    """One question to the runs of one testbed; the module says what the parts mean, `by` is what `rising` ranks by."""

    on: str
    kind: str
    of: tuple[Entry, ...]
    against: tuple[Entry, ...] = ()
    halfway: tuple[str, ...] = ()
    by: tuple[float, ...] = ()

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant that the ask names."""
        entries = (*self.of, *self.against, *self.halfway)
        return tuple(dict.fromkeys(name for each in entries for name in ([each] if isinstance(each, str) else each)))


@dataclass(frozen=True)
class Claim:
    """What a paper says about one choice.

    Args:
        id: as in benchmarks/ablations.md.
        source: where the paper says it.
        says: in our words.
        asks: of the runs.
        why: no run can test it; "" where one can.
    """

    id: str
    source: str
    says: str
    asks: tuple[Ask, ...]
    why: str = ""


@dataclass(frozen=True)
class Found:
    """What one testbed says to a claim.

    Args:
        testbed: its key.
        answers: kind of claim and comparison, in the order of the asks.
        missing: variants that were not run.
    """

    testbed: str
    answers: tuple[tuple[str, Comparison], ...]
    missing: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """All comparisons together: one that fails refutes the claim, and one that is open leaves it open."""
        return every(verdict_of(kind, each) for kind, each in self.answers)

    @property
    def deciding(self) -> Comparison | None:
        """The comparison that the verdict hangs on: of those that share it, the one with the least |d| - 2 e."""
        decisive = [
            each for kind, each in self.answers if verdict_of(kind, each) == self.verdict and each.d is not None
        ]
        return min(decisive, key=lambda each: abs(each.d or 0.0) - (each.margin or 0.0), default=None)


@dataclass(frozen=True)
class Judged:
    """A claim and what each testbed says to it."""

    claim: Claim
    found: tuple[Found, ...]

    @property
    def verdict(self) -> Verdict:
        """Of all testbeds together."""
        return together(each.verdict for each in self.found)

    def on(self, testbed: str) -> Found | None:
        """What one testbed says; None if the claim asks it nothing."""
        return next((each for each in self.found if each.testbed == testbed), None)


@functools.cache
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of their file."""
    content = tomllib.loads(FILE.read_text(encoding="utf-8"))
    made = []
    for row in content["claim"]:
        asks = []
        for ask in row["asks"]:
            for testbed in [ask["on"]] if "on" in ask else BOTH:
                rates = content["rates"].get(testbed, [])
                named = functools.partial(_named, group=row.get("group"), testbed=testbed, rates=rates)
                of, against = (tuple(map(named, ask.get(key, ()))) for key in ("of", "against"))
                high_low = tuple(str(named(name)) for name in ask.get("halfway", ()))
                asks.append(Ask(testbed, ask["kind"], of, against, high_low, tuple(ask.get("by", ()))))
        made.append(Claim(row["id"], row["source"], row["says"], tuple(asks), row.get("why", "")))
    return tuple(made)


def claim(name: str) -> Claim:
    """The claim of that id.

    Raises:
        ValueError: there is none.
    """
    known = {each.id: each for each in claims()}
    if name not in known:
        raise ValueError(unknown("claim", name, known))
    return known[name]


def judge(testbeds: Mapping[str, Testbed], of: Iterable[Claim] | None = None) -> list[Judged]:
    """What the runs say to the claims.

    Args:
        testbeds: "minilm" and "laboratory", as `vbank.verdicts` reads them, and "changed" and "exchanged", as
            `vbank.verdicts.choices` does. One that is not there counts as not run.
        of: the claims; None for all.
    """
    made = []
    for each in claims() if of is None else of:
        found = []
        for name in dict.fromkeys(ask.on for ask in each.asks):
            bed = testbeds.get(name, Testbed(name, {}))
            asks = [ask for ask in each.asks if ask.on == name]
            answers = tuple((ask.kind, compared) for ask in asks for compared in _answers(ask, bed))
            wanted = dict.fromkeys(variant for ask in asks for variant in ask.variants)
            found.append(Found(name, answers, tuple(v for v in wanted if v not in bed.means)))
        made.append(Judged(each, tuple(found)))
    return made


def rising(bed: Testbed, of: Sequence[Sequence[str]], by: Sequence[float]) -> Comparison:
    """Whether the place of the best in each list rises with a number, seed by seed.

    For each seed, the place of the best variant (of equals the first) in each list, and Spearman's rank correlation of
    these places with `by`, 0 where the places are all equal. d is its mean over the n seeds that all have, 2 e twice
    its standard deviation over sqrt(n); None with fewer than two seeds.

    Args:
        bed: the runs.
        of: lists of variants, all in one order, such as that of the learning rates.
        by: a number a list.
    """
    seeds = bed.seeds(*(name for names in of for name in names))
    values = []
    for seed in seeds:
        scores = [[bed.scores[name][seed] for name in names] for names in of]
        places = _ranks([row.index(max(row)) for row in scores])
        values.append(correlation(places, _ranks(by)) if len(set(places)) > 1 else 0.0)
    d = fmean(values) if values else None
    margin = 2 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Comparison("place of the best", "rank correlation", d, margin, seeds)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the least; equals share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2 for value in values
    ]


def _answers(ask: Ask, bed: Testbed) -> list[Comparison]:
    if ask.kind == "rises":
        return [rising(bed, [list(each) for each in ask.of], ask.by)]
    of = [_one(each, bed) for each in ask.of]
    if ask.halfway:
        high, low = ask.halfway
        return [bed.halfway(variant, high, low) for variant in of]
    return [bed.compare(variant, other) for variant in of for other in (_one(each, bed) for each in ask.against)]


def _one(entry: Entry, bed: Testbed) -> str:
    """The variant that an entry stands for; of a list that was not run in full there is no best one to name."""
    if isinstance(entry, str):
        return entry
    complete = all(name in bed.means for name in entry)
    return (bed.best(entry) if complete else None) or f"the best of {', '.join(entry)}"


def _named(entry: Any, group: str | None, testbed: str, rates: Sequence[str]) -> Entry:
    """An entry of the file with the testbed's own names."""
    if not isinstance(entry, str):
        return tuple(str(_named(each, group, testbed, rates)) for each in entry)
    if entry.endswith(" *"):
        return tuple(str(_named(entry[:-2] + rate, group, testbed, rates)) for rate in rates)
    return f"{group}/{entry.removeprefix(f'{group}-')}" if testbed == "laboratory" else entry
