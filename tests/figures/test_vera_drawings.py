"""The drawings of the chapter *VeRA*."""

import pytest

from vbank.figures import vera as drawings

GROUPS = {"vectors": {"both": [0.8, 0.9], "only d": [0.7, 0.8, 0.9]}, "pairs": {"unique": [0.85]}}


def test_every_run_has_a_dot_and_every_variant_a_mean():
    axis = drawings.variants(GROUPS, "accuracy").axes[0]
    dots, means = axis.lines[::2], axis.lines[1::2]
    assert [list(line.get_xdata()) for line in dots] == [[0.8, 0.9], [0.7, 0.8, 0.9], [0.85]]
    assert [line.get_xdata()[0] for line in means] == pytest.approx([0.85, 0.8, 0.85])
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["vectors", "both", "only d", "pairs", "unique"]
    bold = [text.get_text() for text in axis.get_yticklabels() if text.get_fontweight() == "bold"]
    assert bold == ["vectors", "pairs"]
    assert axis.yaxis_inverted()  # the first row is the upper one


def test_reference_is_a_band_and_a_line():
    figure = drawings.variants(GROUPS, "accuracy", reference=("as the paper", [0.8, 0.9]))
    axis = figure.axes[0]
    assert axis.patches[0].get_x() == 0.8 and axis.patches[0].get_width() == pytest.approx(0.1)
    assert axis.lines[0].get_xdata()[0] == pytest.approx(0.85)
    assert figure.legends[0].get_texts()[0].get_text() == "as the paper"


@pytest.mark.parametrize(
    ("groups", "message"), [({}, "nothing to draw"), ({"vectors": {"both": []}}, "'both' has no runs")]
)
def test_nothing_to_draw(groups, message):
    with pytest.raises(ValueError, match=message):
        drawings.variants(groups, "accuracy")
