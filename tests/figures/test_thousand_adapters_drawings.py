"""The drawing of *A thousand adapters on one model*."""

from collections import Counter

from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from vbank.figures.palette import FROZEN, METHOD_COLOURS, tint
from vbank.figures.thousand_adapters import ROWS, STORE, USERS, one_pass


def test_each_row_has_the_colour_of_its_user_everywhere():
    axis = one_pass().axes[0]
    found = Counter(to_hex(p.get_facecolor()) for p in axis.patches if isinstance(p, Rectangle))
    for user, strength in USERS.items():
        named = ROWS.count(user)
        # a row in, a row out and two factors for each naming; two factors in the cache; one square in the store
        assert found[to_hex(tint(METHOD_COLOURS["VB-LoRA"], strength))] == 4 * named + 2 + 1
    assert found[to_hex(FROZEN)] == 2 * ROWS.count(None) + 1  # the base model's rows are as grey as its weight
    assert STORE > 10 * len(USERS)


def test_what_is_named():
    words = Counter(text.get_text() for text in one_pass().axes[0].texts)
    assert {"base", "user a", "composed"} <= set(words)
    assert all(words[user] == 2 for user in USERS)  # in the cache and in the store: colour is not the only sign
    assert words["="] == len(ROWS) and words["+"] == len(ROWS) - ROWS.count(None)
    assert all(text.get_fontsize() >= 11 for text in one_pass().axes[0].texts)
