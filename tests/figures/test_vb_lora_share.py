"""The drawing of the chapter VB-LoRA II: share."""

import pytest

from vbank.figures.vb_lora_share import reachable

BANK = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]


def test_reachable_draws_points_edges_and_faces():
    one, two, three = reachable(BANK).axes
    assert [axis.get_title() for axis in (one, two, three)] == ["k = 1: points", "k = 2: edges", "k = 3: faces"]
    assert [len(axis.lines) for axis in (one, two, three)] == [1, 6 + 1, 6 + 1]  # edges, and the points as one line
    assert [len(axis.patches) for axis in (one, two, three)] == [0, 0, 4]


@pytest.mark.parametrize("bank", [BANK[:2], [(0.0, 0.0, 0.0)] * 4, []])
def test_reachable_refuses_what_is_no_bank_in_the_plane(bank):
    with pytest.raises(ValueError, match="at least 3 vectors of length 2"):
        reachable(bank)
