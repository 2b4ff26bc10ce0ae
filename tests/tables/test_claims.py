"""The claims name what exists, and a claim's verdict follows from its comparisons."""

import re
import runpy
from pathlib import Path

import pytest

from vbank import recipes
from vbank.tables import claims
from vbank.verdicts import Comparison, Testbed, Verdict

ROOT = Path(__file__).resolve().parents[2]
RULES = (ROOT / "benchmarks" / "ablations.md").read_text(encoding="utf-8")
LOGGED = {"changed": "", "exchanged": r", (?:first|last) third"}
YES, NO, OPEN = Verdict.CONFIRMED, Verdict.NOT_CONFIRMED, Verdict.NOT_TESTABLE


def test_every_claim_that_was_written_down_before_is_here_and_no_other() -> None:
    table = RULES.partition("## Claims")[2]
    assert [each.id for each in claims.claims()] == re.findall(r"^\| ([A-Z]\d) \|", table, re.M)


def test_every_variant_exists() -> None:
    groups = runpy.run_path(str(ROOT / "benchmarks" / "digits_ablations.py"))["GROUPS"]
    digits = {f"{group}/{name}" for group, settings in groups.items() for name in settings()}
    recorded = set(recipes.available()["ablations"])
    shares = {"unshared-0", "unshared-1", "unshared-2", "unshared-3", "unshared-4", "no-rotation", "not-rectified"}
    known = {
        "minilm": recorded | {f"{name} {rate}" for name in shares for rate in ("0.0005", "0.001", "0.004")},
        "laboratory": digits,
        "changed": recorded,
        "exchanged": {f"{name}, {third} third" for name in recorded for third in ("first", "last")},
    }
    asked = [(ask.on, name) for each in claims.claims() for ask in each.asks for name in ask.variants]
    assert len(asked) > 150 and [pair for pair in asked if pair[1] not in known[pair[0]]] == []


def test_the_shares_of_copies_are_those_of_the_recipes() -> None:
    (ask,) = (ask for ask in claims.claim("P3").asks if ask.on == "minilm")
    made = [recipes.load(f"ablations/{names[0]}", scale="cpu").method.settings for names in ask.of]
    assert [settings.get("share_a", 1) for settings in made] == list(ask.by)
    assert [len(names) for names in ask.of] == [4] * 5


def test_the_rates_without_a_name_are_not_run_twice() -> None:
    rates = recipes.load("ablations/unshared-2", scale="cpu").method.lr
    assert f" {rates['default']:g}" not in [
        name.removeprefix("unshared-2") for name in claims.claim("P4").asks[0].against[0]
    ]


def bed(**means: float) -> Testbed:
    """Three seeds each, one point apart: s = 1, 2 e = 1.63."""
    return Testbed(
        "by hand", {name.replace("_", "-"): {i: mean + i - 1 for i in range(3)} for name, mean in means.items()}
    )


def verdict(name: str, **means: float) -> Verdict:
    (judged,) = claims.judge({"minilm": bed(**means)}, [claims.claim(name)])
    return judged.verdict


def test_a_claim_needs_all_of_its_comparisons() -> None:
    assert verdict("S2", top_1=80, top_2=83, top_3=81, top_6=81) == YES
    assert verdict("S2", top_1=80, top_2=83, top_3=82, top_6=81) == OPEN
    assert verdict("S2", top_1=80, top_2=83, top_3=85, top_6=81) == NO
    assert verdict("S2", top_1=80, top_2=83, top_3=81) == OPEN  # top-6 was not run
    assert verdict("V1", vera_default=83, vera_only_d=81, vera_only_b=79) == YES
    assert verdict("V1", vera_default=83, vera_only_d=79, vera_only_b=81) == NO


def test_the_best_of_a_list_speaks_for_it() -> None:
    pairs = {"ratio_4": 80, "ratio_10": 84, "top_2": 83, "ratio_160": 79}
    singles = {"ratio_1": 78, "one_rate_4x": 82, "one_rate_10x": 70}
    assert verdict("R1", **pairs, **singles) == YES
    assert verdict("R1", **pairs, **(singles | {"one_rate_4x": 83})) == OPEN
    assert verdict("R1", **pairs, **(singles | {"one_rate_10x": 86})) == NO
    (judged,) = claims.judge({"minilm": bed(**pairs, ratio_1=78)}, [claims.claim("R1")])
    found = judged.on("minilm")
    assert found is not None and found.missing == ("one-rate-4x", "one-rate-10x") and found.deciding is None
    assert judged.verdict == OPEN  # the best single rate may be among those not run


def test_halfway_decides_whether_most_of_a_loss_is_undone() -> None:
    noisy = {f"{name}_top_2": 70.0 for name in ("noisy", "gumbel", "straight")}
    fast = {f"fast_{name}_top_2": 75.0 for name in ("noisy", "gumbel", "straight")}
    assert verdict("S5", top_2=84, **noisy, **fast) == YES  # halfway is 77; 2 e = 1.41
    assert verdict("S5", top_2=84, **noisy, **(fast | {"fast_gumbel_top_2": 79})) == NO
    assert verdict("S5", top_2=84, **noisy, **(fast | {"fast_gumbel_top_2": 76})) == OPEN


def test_the_testbeds_are_joined_and_the_closest_comparison_shown() -> None:
    digits = Testbed("by hand", {f"vb-lora/{name}": runs for name, runs in bed(top_1=80, top_2=78).scores.items()})
    (judged,) = claims.judge({"minilm": bed(top_1=78, top_2=82), "laboratory": digits}, [claims.claim("S3")])
    assert [each.verdict for each in judged.found] == [YES, NO] and judged.verdict == Verdict.DISAGREE
    (judged,) = claims.judge({"minilm": bed(top_1=80, top_2=85, top_3=83, top_6=70)}, [claims.claim("S2")])
    found = judged.on("minilm")
    assert found is not None and found.deciding is not None and found.deciding.against == "top-3"
    assert judged.on("changed") is None


def test_a_rank_correlation_is_taken_seed_by_seed() -> None:
    def rows(name: str, places: list[int]) -> dict[str, dict[int, float]]:
        return {f"{name} {p}": {seed: 80.0 + (p == place) for seed, place in enumerate(places)} for p in range(3)}

    lists = [[f"{name} {p}" for p in range(3)] for name in "abc"]
    # places of the best by seed: (0, 1, 2) rises, (1, 1, 0) ties, (2, 2, 2) says nothing
    made = Testbed("by hand", rows("a", [0, 1, 2]) | rows("b", [1, 1, 2]) | rows("c", [2, 0, 2]))
    found = claims.rising(made, lists, (1, 4, 13))
    second = -(3**0.5) / 2  # ranks 2.5, 2.5, 1 against 1, 2, 3
    values = [1.0, second, 0.0]
    mean = sum(values) / 3
    deviation = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert found.d == pytest.approx(mean) and found.margin == pytest.approx(2 * deviation / 3**0.5)
    assert claims.rising(made, [*lists, ["d 0", "d 1", "d 2"]], (1, 4, 13, 20)) == Comparison(
        "place of the best", "rank correlation", None, None, ()
    )


def test_equal_places_share_their_rank() -> None:
    runs = {
        f"{name} {p}": {0: 80.0 + (p == place)}
        for name, place in zip("abcd", (0, 1, 1, 2), strict=True)
        for p in range(3)
    }
    found = claims.rising(
        Testbed("by hand", runs), [[f"{name} {p}" for p in range(3)] for name in "abcd"], (1, 2, 3, 4)
    )
    assert found.d == pytest.approx(4.5 / (4.5 * 5) ** 0.5) and found.margin is None  # ranks 1, 2.5, 2.5, 4


def test_a_claim_without_runs_stays_open_and_an_unknown_one_is_refused() -> None:
    assert {each.verdict for each in claims.judge({})} == {OPEN}
    assert claims.claim("P6").asks == () and claims.claim("P6").why
    with pytest.raises(ValueError, match="unknown claim 'S9'"):
        claims.claim("S9")
