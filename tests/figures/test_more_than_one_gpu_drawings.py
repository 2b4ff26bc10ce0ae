"""The drawing of *More than one GPU*."""

from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from vbank.figures.more_than_one_gpu import ADAPTER, LAYERS, ROWS, layouts
from vbank.figures.palette import FROZEN


def areas(figure, colour):
    """Area by row and GPU of what has a colour."""
    found = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, Rectangle) and patch.get_facecolor()[3] and to_hex(patch.get_facecolor()) == colour:
            row, gpu = int((patch.get_y() - 1.8) // 8.0), int(patch.get_x() > 15)
            found[row, gpu] = found.get((row, gpu), 0.0) + patch.get_width() * patch.get_height()
    return found


def test_ddp_holds_all_twice_the_others_hold_half_each():
    figure = layouts()
    for colour in (FROZEN, ADAPTER):
        found = areas(figure, colour)
        assert set(found) == {(row, gpu) for row in range(len(ROWS)) for gpu in range(2)}
        whole = found[0, 0]
        for row, share in ((0, 1.0), (1, 0.5), (2, 0.5)):
            assert [round(found[row, gpu] / whole, 6) for gpu in range(2)] == [share, share]
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {"DDP", "FSDP", "pipeline", "GPU 0", "GPU 1", "gradients of"} <= words and LAYERS == 6
