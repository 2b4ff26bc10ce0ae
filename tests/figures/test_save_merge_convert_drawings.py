"""The drawings of the chapter *Save, merge, convert*."""

import pytest
from matplotlib.patches import Rectangle

from vbank.figures import save_merge_convert as drawings

PARTS = {"header": 216, "bank": 92_160, "indices": 1_152, "weights": 2_304, "adapter.json": 1_700}
ENTRY = [("indices", "17", 1), ("indices", "3", 1), ("weights", "0.25", 4)]


def test_every_byte_is_drawn_to_scale():
    figure = drawings.byte_map(PARTS, ENTRY)
    axis = figure.axes[0]
    boxes = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    stripes = [box for box in boxes if box.get_height() == pytest.approx(0.8 * drawings.ROW_HEIGHT)]
    drawn = sum(box.get_width() for box in stripes) / drawings.ACROSS * drawings.ROW
    assert drawn == pytest.approx(sum(PARTS.values()))
    assert len(boxes) - len(stripes) == len(PARTS) + 6  # the legend, and a box a byte of the entry
    texts = [text.get_text() for text in axis.texts]
    assert "92,160 bytes" in texts and "0.25" in texts
    assert all(text.get_fontsize() >= 11 for text in axis.texts)
    for parts, entry in (({}, []), ({"optimizer": 3}, []), (PARTS, [("logits", "1", 4)])):
        with pytest.raises(ValueError, match="no colour"):
            drawings.byte_map(parts, entry)


def test_a_row_a_way_to_have_the_logits():
    figure = drawings.queue({"saved": ([2.0, 1.0], [0.1, 0.0]), "loaded": ([1.4], [])})
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["saved", "loaded"]
    assert [list(line.get_xdata()) for line in axis.lines] == [[0.1, 0.0], [2.0, 1.0], [], [1.4]]
    with pytest.raises(ValueError, match="at least one chosen"):
        drawings.queue({"saved": ([], [1.0])})
