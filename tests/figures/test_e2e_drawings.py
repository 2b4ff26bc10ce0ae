"""The drawings of the chapter *E2E with GPT-2*."""

import pytest

from vbank.figures import e2e as drawings
from vbank.figures.palette import METHOD_COLOURS


def test_longest_common_subsequence():
    assert drawings.subsequence("a b c d".split(), "b x d a".split()) == [(1, 0), (3, 2)]
    assert drawings.subsequence("a b".split(), "c".split()) == []
    assert len(drawings.subsequence("a b a b a".split(), "b a a b".split())) == 3


def test_words_stand_in_two_columns_with_a_line_a_match():
    figure = drawings.word_matches(["a", "b", "c"], ["a", "c"])
    axis = figure.axes[0]
    assert len(axis.lines) == 2
    weights = {text.get_text(): text.get_weight() for text in axis.texts}
    assert weights["c"] == "bold" and weights["b"] != "bold"
    assert all(text.get_fontsize() >= 11 for text in axis.texts)
    with pytest.raises(ValueError, match="no words"):
        drawings.word_matches([], ["a"])


def test_a_panel_a_score_and_a_row_a_system():
    scores = {"LoRA": {"bleu": 50.0, "cider": 1.2}, "a human": {"bleu": 60.0}}
    figure = drawings.five_scores(scores, {"bleu": "BLEU", "cider": "CIDEr"})
    first, second = figure.axes
    assert [axis.get_title("left") for axis in figure.axes] == ["BLEU", "CIDEr"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["a human", "LoRA"]
    assert [text.get_text() for text in first.texts] == ["60", "50"] and len(second.texts) == 1
    assert METHOD_COLOURS["LoRA"] in [line.get_color() for line in first.lines]
    for nothing in ({}, {"LoRA": {"bleu": 1.0}}):
        with pytest.raises(ValueError, match="nothing to draw"):
            drawings.five_scores(nothing, {} if nothing else {"bleu": "BLEU"})
