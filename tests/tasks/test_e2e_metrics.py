"""The scores of E2E: by hand, against the challenge's own script, and where Java or a package is missing."""

import contextlib
import math
import shutil
import sys

import pytest

from vbank.tasks import e2e_metrics
from vbank.tasks.sources import DataError

JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")

REFERENCES = [
    [
        "Olive House serves cheap Greek food by the river.",
        "By the river, Olive House offers cheap Greek dishes.",
        "Cheap Greek food is served at Olive House, near the river.",
    ],
    [
        "The Tin Kettle is a family-friendly pub (rated 3 out of 5).",
        "It's a pub for families: The Tin Kettle, rated 3 out of 5.",
    ],
    ["Marlow Café isn't expensive; meals cost £20-25."],
    [
        "Pepper Row, a coffee shop in the city centre, has low prices and a 1 out of 5 rating.",
        "A coffee shop in the centre of the city is Pepper Row. Its prices are low, its rating is 1 out of 5.",
    ],
]
SYSTEMS = {
    "close": [
        "Olive House serves cheap Greek food near the river.",
        "The Tin Kettle is a pub for families rated 3 out of 5.",
        "Meals at Marlow Café aren't expensive and cost £20-25.",
        "PEPPER ROW is a coffee shop in the city centre. It's got low prices & a rating of 1 out of 5!",
    ],
    "wrong": [
        "Marlow House serves expensive French food near the river.",
        "Marlow House is a coffee shop that is not family-friendly.",
        "Pepper Row has a high rating and high prices.",
        "Olive House is a pub in the city centre with high prices.",
    ],
}
# Printed by the challenge's script, `measure_scores.py -p`, for these sentences: BLEU, NIST, METEOR, ROUGE-L, CIDEr.
OFFICIAL = {
    "close": (0.5576, 5.4982, 0.5037, 0.7966, 4.2673),
    "wrong": (0.1153, 1.6208, 0.1397, 0.2926, 0.6305),
}
UNITS = (100, 1, 100, 100, 1)


@pytest.fixture(scope="module")
def scored():
    """All scores from one start of METEOR, which takes seconds."""
    systems = SYSTEMS | {
        "perfect": [group[-1] for group in REFERENCES],
        "empty": [""] * 4,
        "some empty": ["", *SYSTEMS["close"][1:3], "  "],
        "broken lines": [text.replace(" ", "\n", 1) for text in SYSTEMS["close"]],
    }
    return e2e_metrics.score_systems(systems, REFERENCES)


@JAVA
@pytest.mark.parametrize("name", OFFICIAL)
def test_equals_the_challenges_script(scored, name):
    for key, value, unit in zip(e2e_metrics.METRICS, OFFICIAL[name], UNITS, strict=True):
        assert scored[name][key] == pytest.approx(unit * value, abs=0.5e-4 * unit), key


@JAVA
def test_a_copy_of_a_reference_is_perfect(scored):
    assert scored["perfect"]["bleu"] == pytest.approx(100) and scored["perfect"]["rouge_l"] == pytest.approx(100)
    assert all(scored["perfect"][key] > scored["close"][key] for key in e2e_metrics.METRICS)
    assert scored["perfect"]["meteor"] > 60  # against the best single reference METEOR is perfect, CIDEr is a mean


@JAVA
def test_empty_outputs_score_nothing_and_stop_nothing(scored):
    assert all(value == 0 for value in scored["empty"].values())
    assert set(scored["some empty"]) == set(e2e_metrics.METRICS)
    assert all(0 < scored["some empty"][key] < scored["close"][key] for key in e2e_metrics.METRICS)


@JAVA
def test_a_line_break_is_a_space(scored):
    assert scored["broken lines"] == scored["close"]


@JAVA
@pytest.mark.parametrize("fails", [False, True])
def test_java_ends(fails):
    with contextlib.suppress(RuntimeError), e2e_metrics._meteor() as meteor:
        if fails:
            meteor.lock.acquire()  # held where a scorer fails: its destructor would wait for it for ever
            raise RuntimeError
    assert meteor.meteor_p.poll() is not None
    del meteor


@JAVA
def test_a_meteor_that_dies_is_named():
    with pytest.raises(DataError, match=r"METEOR ended before its last score.*memory"), e2e_metrics._meteor() as meteor:
        meteor.meteor_p.kill()
        e2e_metrics._captions(meteor, [["a"]] * 9, [[["a"]]] * 9)
    assert meteor.meteor_p.poll() is not None


@JAVA
def test_ptb_tokens():
    texts = ["It's NOT family-friendly (rated 5 out of 5).", "", "Café: £20-25!", "", "  "]
    cut = e2e_metrics.ptb_tokens(texts)
    # brackets stay, as in the challenge's script: in lower case they are not on its list of punctuation
    assert cut[0] == "it 's not family-friendly -lrb- rated 5 out of 5 -rrb-".split()
    assert cut[2][0] == "café" and cut[1] == cut[3] == cut[4] == []


def test_mteval_tokens():
    assert e2e_metrics.mteval_tokens("It's £20-25, family-friendly.") == "it's £20 - 25 , family-friendly .".split()


SAID = "the tin kettle is a cheap pub by the river"
MEANT = ["the tin kettle is a low-priced pub near the river", "by the river there is a cheap pub called the tin kettle"]


def test_bleu_by_hand():
    assert e2e_metrics.bleu([SAID], [MEANT]) == pytest.approx(100 * (8 / 9 * 6 / 8 * 3 / 7) ** 0.25)
    # 9 words against 10: unigrams 9 of 9, then 7 of 8, 5 of 7 and 3 of 6, and the penalty of brevity
    short = e2e_metrics.bleu(["tin kettle is a cheap pub by the river"], [MEANT])
    assert short == pytest.approx(100 * math.exp(1 - 10 / 9) * (7 / 8 * 5 / 7 * 2 / 6) ** 0.25)


def test_rouge_l_by_hand():
    words = [text.split() for text in MEANT]
    assert e2e_metrics.rouge_l([SAID.split()], [words]) == pytest.approx(80)
    # precision 2 of 2 from the one reference, recall 2 of 4 from it; the other shares nothing
    p, r = 1.0, 0.5
    expected = 100 * (1 + 1.44) * p * r / (r + 1.44 * p)
    assert e2e_metrics.rouge_l([["a", "c"]], [[["a", "b", "c", "d"], ["x"]]]) == pytest.approx(expected)


def test_nist_by_hand():
    outputs, references = [["a", "b"], ["c"]], [[["a", "b"]], [["a", "c"]]]
    # four words: a twice, b and c once. hits: a, b, c of 3 words; ab of 1 pair
    one = (math.log2(4 / 2) + math.log2(4 / 1) + math.log2(4 / 1)) / 3
    two = math.log2(2 / 1) / 1
    beta = -math.log(0.5) / math.log(1.5) ** 2
    penalty = math.exp(-beta * math.log(3 / 4) ** 2)
    assert e2e_metrics.nist(outputs, references) == pytest.approx(penalty * (one + two))


def test_nist_equals_nltk_with_one_reference_alone():
    from nltk.translate.nist_score import corpus_nist

    cut = e2e_metrics.mteval_tokens
    outputs = [cut(text) for text in SYSTEMS["close"]]
    single = [[cut(group[0])] for group in REFERENCES]
    several = [[cut(text) for text in group] for group in REFERENCES]
    assert e2e_metrics.nist(outputs, single) == pytest.approx(corpus_nist(single, outputs))
    assert abs(e2e_metrics.nist(outputs, several) - corpus_nist(several, outputs)) > 0.1


def test_cider_of_one_meaning_is_nothing():
    assert e2e_metrics.cider([["a", "b"]], [[["a", "b"]]]) == 0
    assert e2e_metrics.cider([["a", "b"], ["c"]], [[["a", "b"]], [["c"]]]) > 0


def test_the_order_of_references_does_not_matter():
    turned = [group[::-1] for group in REFERENCES]
    cut = [[text.lower().split() for text in group] for group in REFERENCES]
    outputs = SYSTEMS["close"]
    assert e2e_metrics.bleu(outputs, REFERENCES) == e2e_metrics.bleu(outputs, turned)
    said = [text.lower().split() for text in outputs]
    for metric in (e2e_metrics.nist, e2e_metrics.rouge_l, e2e_metrics.cider):
        assert metric(said, cut) == pytest.approx(metric(said, [group[::-1] for group in cut]))


@pytest.mark.parametrize(
    ("outputs", "references", "words"),
    [
        (["a"], [["a"], ["b"]], "1 outputs of model for 2 meanings"),
        (["a", "b", "c"], [["a"], ["b"]], "3 outputs of model for 2 meanings"),
        ([], [], "no references"),
        (["a"], [[]], "meaning 0 has no reference"),
        (["a"], [["a", " "]], "meaning 0 has an empty reference"),
        (["a"], ["a"], "one string"),
    ],
)
def test_bad_input(outputs, references, words):
    with pytest.raises(DataError, match=words):
        e2e_metrics.score_systems({"model": outputs}, references)


def test_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    lines = []
    scores = e2e_metrics.score(SYSTEMS["close"], REFERENCES, lines.append)
    assert set(scores) == {"bleu", "nist"} and scores["bleu"] == pytest.approx(55.76, abs=0.005)
    assert "no Java" in lines[0] and "meteor, rouge_l, cider left out" in lines[0]


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(DataError, match=r"pip install 'vbank\[nlg\]'"):
        e2e_metrics.score(["a"], [["a"]])


@JAVA
def test_a_java_that_cannot_run_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'Error: heap too small' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match="heap too small"):
        e2e_metrics.ptb_tokens(["a"])
