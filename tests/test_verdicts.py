"""The rule that decides a claim, against numbers worked out by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vbank import ledger, recipes, selections_log
from vbank.verdicts import Comparison, Testbed, Verdict, ablations, choices, every, laboratory, minilm, scores, together

YES, NO, OPEN = Verdict.CONFIRMED, Verdict.NOT_CONFIRMED, Verdict.NOT_TESTABLE


def compared(d: float | None, margin: float | None = 1.0) -> Comparison:
    return Comparison("x", "y", d, margin, (0, 1, 2))


def test_the_deviation_is_pooled_by_degrees_of_freedom_over_what_learns() -> None:
    bed = Testbed(
        "by hand",
        {
            "a": {0: 80.0, 1: 82.0, 2: 84.0},  # variance 4, two degrees of freedom
            "b": {0: 79.0, 1: 80.0},  # variance 1/2, one
            "edge": {0: 72.0, 1: 72.0},  # ten points below the best mean of 82: still learns; variance 0, one
            "below": {0: 50.0, 1: 93.0},  # mean 71.5: does not
            "once": {0: 81.0},  # learns, but one seed has no spread
        },
    )
    assert bed.learning == ("a", "b", "edge", "once")
    assert bed.deviation == pytest.approx(((2 * 4 + 1 * 0.5 + 1 * 0) / 4) ** 0.5)
    assert Testbed("all", bed.scores, reach=None).deviation == pytest.approx(((8 + 0.5 + 924.5) / 5) ** 0.5)


def test_a_difference_is_taken_over_the_seeds_that_both_have() -> None:
    bed = Testbed("by hand", {"a": {0: 80.0, 1: 82.0, 2: 84.0}, "b": {2: 80.0, 1: 80.0, 7: 77.0}})
    found = bed.compare("a", "b")
    assert found.seeds == (1, 2) and found.n == 2 and found.d == pytest.approx(3.0)  # all seeds: 82 - 79
    assert bed.deviation == pytest.approx(3.5**0.5)  # variances 4 and 3
    assert found.margin == pytest.approx(2 * 3.5**0.5)  # sqrt(2 / 2) = 1


def test_halfway_weighs_the_two_ends_by_a_half() -> None:
    bed = Testbed("by hand", {"top": {0: 86.0, 1: 88.0}, "low": {0: 80.0, 1: 80.0}, "x": {0: 82.0, 1: 83.0, 2: 0.0}})
    found = bed.halfway("x", "top", "low")  # 82 - 83 and 83 - 84
    assert (found.variant, found.against, found.d) == ("x", "halfway from low to top", -1.0)
    assert bed.learning == ("top", "low")  # x's mean is 55
    assert found.margin == pytest.approx(2 * 1.0 * (1.5 / 2) ** 0.5)


@pytest.mark.parametrize(
    ("claimed", "d", "margin", "verdict"),
    [
        ("better", 1.01, 1.0, YES),
        ("better", 1.0, 1.0, OPEN),  # a bound that is met exactly is not exceeded
        ("better", -1.0, 1.0, OPEN),
        ("better", -1.01, 1.0, NO),
        ("better", 0.1, 0.2, OPEN),  # level, but "better" has no clause for that
        ("worse", -1.01, 1.0, YES),
        ("worse", 1.01, 1.0, NO),
        ("worse", 0.0, 0.0, OPEN),
        ("needed", 1.5, 1.0, YES),
        ("needed", 0.5, 0.4, YES),  # clear and small: the first clause has the word
        ("needed", 0.3, 0.6, NO),  # 0.3 + 0.6 < 1: at most 0.9 in X's favour
        ("needed", 0.25, 0.75, OPEN),  # exactly one point
        ("needed", 0.3, 0.8, OPEN),
        ("needed", -3.0, 3.5, NO),
        ("needed", -3.0, 4.5, OPEN),
        ("no gain", -0.3, 0.6, YES),  # the other is ahead by at most 0.9
        ("no gain", -0.25, 0.75, OPEN),
        ("no gain", 0.1, 5.0, YES),  # the other is behind
        ("no gain", 0.0, 5.0, OPEN),
        ("no gain", -0.8, 0.5, NO),
        ("no gain", -0.5, 0.4, YES),  # clear, yet slight
        ("no gain", -1.5, 1.5, OPEN),
    ],
)
def test_a_comparison_is_judged_as_the_rule_says(claimed: Any, d: float, margin: float, verdict: Verdict) -> None:
    assert compared(d, margin).verdict(claimed) == verdict


def test_a_comparison_says_itself() -> None:
    assert (
        str(Comparison("vera/d-one", "vera/default", -0.04, 1.32, (1,))) == "d-one against default: -0.0 ± 1.3, 1 seed"
    )
    assert str(compared(2.0, None)) == "x against y: +2.0, 3 seeds"
    halfway = Comparison("g/a 0.1", "halfway from g/b to g/c", None, None, ())
    assert str(halfway) == "a 0.1 against halfway from b to c: not run"


def test_what_was_not_run_cannot_be_judged() -> None:
    bed = Testbed("by hand", {"a": {0: 80.0}, "b": {0: 81.0}, "c": {1: 80.0}, "empty": {}})
    for against in ("c", "empty", "never"):
        found = bed.compare("a", against)
        assert (found.d, found.margin, found.seeds) == (None, None, ())
        assert {found.verdict(claimed) for claimed in ("better", "worse", "needed", "no gain")} == {OPEN}
    alone = bed.compare("a", "b")  # both have a seed, but no variant tells how wide the seeds are
    assert (alone.d, alone.margin, alone.clear) == (-1.0, None, False) and alone.verdict("worse") == OPEN
    assert bed.best(("a", "b", "never")) == "b" and bed.best(("never", "empty")) is None
    assert Testbed("nothing", {}).deviation is None


def test_one_seed_counts_with_the_spread_of_the_others() -> None:
    bed = Testbed("by hand", {"a": {0: 80.0, 1: 82.0}, "b": {0: 70.5, 1: 80.5}, "c": {0: 86.0}})
    assert bed.learning == ("a", "c")  # b: 75.5
    assert bed.compare("c", "a").margin == pytest.approx(2 * 2**0.5 * 2**0.5)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="'top-2' is compared with itself"):
        Testbed("x", {"top-2": {0: 1.0}}).compare("top-2", "top-2")
    with pytest.raises(ValueError, match="unknown kind of claim 'beter'; did you mean 'better'"):
        compared(1.0).verdict("beter")  # type: ignore[arg-type]


def test_verdicts_are_joined() -> None:
    both = Verdict.DISAGREE
    joined = {(YES, NO): both, (YES, OPEN): YES, (NO, OPEN): NO, (OPEN, OPEN): OPEN, (YES, YES): YES, (both, NO): both}
    for pair, verdict in joined.items():
        assert together(pair) == together(reversed(pair)) == verdict
    assert together(()) == every(()) == OPEN
    assert (every((YES, YES)), every((YES, OPEN)), every((OPEN, NO, YES))) == (YES, OPEN, NO)


def record(variant: str, seed: int, accuracy: float, *changes: str, **other: Any) -> dict[str, Any]:
    experiment = other.get("experiment", "ablations")
    made = recipes.load(f"{experiment}/{variant}", changes, scale=other.get("scale", "cpu")).resolved()
    return {
        "experiment": experiment,
        "variant": variant,
        "seed": seed,
        "kind": other.get("kind", "final"),
        "recipe": made,
        "data": {"source": other.get("source", "local folder glue/sst2 in VBANK_DATA")},
        "metric": "accuracy",
        "metrics": {"accuracy": accuracy, "validation_loss": 0.5},
    }


def test_the_ledger_is_read_variant_by_variant() -> None:
    records = [
        record("top-2", 1, 0.83),
        record("top-2", 0, 0.82),
        record("unshared-2", 0, 0.84),
        record("unshared-2", 0, 0.80, "method.lr.default=1e-3"),
        record("ratio-1", 0, 0.70, "method.lr.bank=1e-3", "method.lr.logits=2e-3"),
        record("top-2", 2, 0.1, "task.train_size=200"),  # other data
        record("top-2", 2, 0.2, scale="gpu"),
        record("top-2", 2, 0.3, source="generated"),
        record("top-2", 2, 0.4, kind="search"),
        record("cola-top-1", 0, 0.5),
        record("vb-lora-all", 0, 0.6, experiment="minilm-cola"),
        record("lora-all", 0, 0.7, experiment="minilm-cola"),
    ]
    bed = minilm(records)
    assert {name: dict(runs) for name, runs in bed.scores.items()} == {
        "top-2": {0: 82.0, 1: 83.0},
        "unshared-2": {0: 84.0},
        "unshared-2 0.001": {0: 80.0},
        "ratio-1 0.002 0.001": {0: 70.0},
    }
    assert list(bed.scores["top-2"]) == [0, 1]
    assert scores(ablations(records), "validation_loss", unit=1)["top-2"] == {0: 0.5, 1: 0.5}
    assert minilm(records, "cola").scores == {"top-1": {0: 50.0}, "top-2": {0: 60.0}}


def test_the_laboratory_is_read_group_by_group(tmp_path: Path) -> None:
    report: dict[str, Any] = {"variants": {"top-2": {"runs": {"10": {"accuracy": 0.5}, "2": {"accuracy": 0.25}}}}}
    (tmp_path / "digits_vb_lora.json").write_text(json.dumps(report))
    other = copy.deepcopy(report)
    other["variants"]["head"] = {"runs": {}}
    (tmp_path / "digits_vera.json").write_text(json.dumps(other))
    bed = laboratory(tmp_path / "digits_vb_lora.json", tmp_path / "digits_vera.json", tmp_path / "digits_peft.json")
    assert bed.scores == {"vb-lora/top-2": {2: 25.0, 10: 50.0}, "vera/top-2": {2: 25.0, 10: 50.0}, "vera/head": {}}
    assert list(bed.scores["vb-lora/top-2"]) == [2, 10]
    (tmp_path / "digits_vera.json").write_text("[1]")
    with pytest.raises(ValueError, match="digits_vera.json is no report of the digits laboratory; make it again"):
        laboratory(tmp_path / "digits_vera.json")


def test_the_logs_tell_what_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # two sub-vectors with two choices each at steps 0, 10, ..., 60; the second swaps one choice early, one late
    made = [[[0, 1], [2, 3]]] * 2 + [[[1, 0], [2, 4]]] * 4 + [[[0, 1], [5, 4]]]
    log = selections_log.Selections(
        torch.arange(0, 70, 10), torch.tensor(made), torch.ones(7, 2, 2), torch.zeros(6, 1), torch.zeros(6, 1), (), ()
    )
    monkeypatch.setattr(selections_log, "read", lambda path: log)
    records = [record("top-2", seed, 0.8) | {"run": f"x-seed{seed}"} for seed in (0, 1)]
    path = ledger.log_of(ledger.path_of(tmp_path, records[0]))
    path.parent.mkdir(parents=True)
    path.touch()  # seed 1 has no log
    beds = choices(tmp_path, records)
    assert beds["changed"].scores == {"top-2": {0: 50.0}}  # the order within a choice does not count
    assert beds["exchanged"].scores == {
        "top-2, first third": {0: pytest.approx(100 * (0 + 1 / 4) / 2)},  # steps 10 and 20
        "top-2, last third": {0: pytest.approx(100 * (0 + 1 / 4) / 2)},  # steps 50 and 60
    }
