"""Equal colour exactly where parameters are equal, for each method."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vbank
from vbank import figures
from vbank.figures import blocks as painted
from vbank.methods import delta


def blocks(config, shapes):
    """The drawn blocks in order, one pixel a cell, with their height and width in cells."""
    found = []
    for image in figures.composition(config, shapes).axes[0].get_images():
        left, right, bottom, top = image.get_extent()
        found.append((np.asarray(image.get_array()), (round(abs(bottom - top)), round(right - left))))
    return found


def keys(pixels):
    """A number for each colour."""
    flat = pixels.reshape(-1, 3).astype(int) @ (65536, 256, 1)
    return flat.reshape(pixels.shape[:2])


def same_pattern(colours, values):
    """Whether two arrays have equal entries at the same places."""
    one = np.unique(colours, return_inverse=True)[1].ravel()
    two = np.unique(values, return_inverse=True)[1].ravel()
    return len(set(zip(one, two, strict=True))) == len(set(one)) == len(set(two))


def generic(config, shapes):
    sites = [vbank.Site(str(i + 1), n, m) for i, (m, n) in enumerate(shapes)]
    method = painted.generic(config, sites)
    return [tuple(f.detach().numpy() for f in (*method.factors(s.name), delta(method, s.name))) for s in sites]


shape = st.tuples(st.integers(3, 9), st.integers(3, 9))


@st.composite
def own_pairs(draw):
    """LoRA and PRoLoRA of any setting that fits."""
    rank = draw(st.integers(1, 5))
    if draw(st.booleans()):
        return vbank.LoRA(rank)
    return vbank.PRoLoRA(
        rank,
        draw(st.integers(0, rank)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        rotate=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(config=own_pairs(), shapes=st.lists(shape, min_size=1, max_size=2))
def test_equal_colours_are_equal_parameters(config, shapes):
    drawn = iter(blocks(config, shapes))
    colours, values, updates, changes = [], [], [], []
    parts = [n for n in (getattr(config, "unshared_rank", 0), getattr(config, "shared_rank", config.rank)) if n]
    for (m, n), (A, B, change) in zip(shapes, generic(config, shapes), strict=True):
        a = [next(drawn) for _ in parts]
        b = [next(drawn) for _ in parts]
        assert [size for _, size in a] == [(part, n) for part in parts]
        assert [size for _, size in b] == [(m, part) for part in parts]
        colours += [keys(np.concatenate([pixels for pixels, _ in a])).ravel()]
        colours += [keys(np.concatenate([pixels for pixels, _ in b], axis=1)).ravel()]
        values += [A.ravel(), B.ravel()]
        pixels, size = next(drawn)
        assert size == (m, n)
        updates.append(keys(pixels).ravel())
        changes.append(np.round(change, 9).ravel())
    assert same_pattern(np.concatenate(colours), np.concatenate(values))
    assert same_pattern(np.concatenate(updates), np.concatenate(changes))
    assert not set(np.concatenate(colours)) & set(np.concatenate(updates))


def test_lora_has_no_two_equal_cells():
    drawn = [keys(pixels) for pixels, _ in blocks(vbank.LoRA(4), [(12, 12), (12, 8)])]
    cells = np.concatenate([block.ravel() for block in drawn])
    assert len(set(cells)) == len(cells)


def test_different_updates_of_two_layers_look_different():
    """Cells at one place have nothing in common; colours that differ in the last bit alone would look alike."""
    drawn = blocks(vbank.LoRA(4), [(12, 12), (12, 12)])  # A, B and update of each layer
    first, second = (drawn[place][0].astype(float) for place in (2, 5))
    assert np.abs(first - second).mean() > 0.5 * np.abs(first - first[::-1]).mean() > 5


def split(update, parts):
    size = len(update) // parts
    return update.reshape(parts, size, parts, size).swapaxes(1, 2)


def test_clora_repeats_one_block_rolora_its_diagonals_and_unshared_ranks_break_both():
    def update(**change):
        config = vbank.PRoLoRA(**({"rank": 4, "share_a": 4, "share_b": 4} | change))
        return split(keys(blocks(config, [(12, 12)])[-1][0]), 4)

    clora, rolora = update(rotate=False), update()
    different = {(i, j): tuple(rolora[i, j].ravel()) for i in range(4) for j in range(4)}
    assert all((clora[i, j] == clora[0, 0]).all() for i, j in different)
    for (i, j), cells in different.items():
        assert cells == different[0, (j - i) % 4]
    assert len(set(different.values())) == 4
    broken = update(unshared_rank=1, rank=5)
    assert len({tuple(broken[i, j].ravel()) for i, j in different}) == 16


def test_prolora_outlines_what_is_stored():
    config = vbank.PRoLoRA(4, 1, 3, 3)
    figure = figures.composition(config, [(12, 12)])
    outlined = [p for p in figure.axes[0].patches if tuple(p.get_edgecolor()) == (0, 0, 0, 1)]
    cells = sum(round(p.get_width() * p.get_height()) for p in outlined)
    assert cells == sum(group.stored for group in config.storage([vbank.Site("1", 12, 12)]).values())


@pytest.mark.parametrize(
    "config",
    [vbank.LoRA(3), vbank.VeRA(3), vbank.VeRA(3, train_b=False), vbank.TiedLoRA(3), vbank.VBLoRA(3, 5, 4, 1)],
)
def test_every_stored_scalar_is_outlined_once(config):
    shapes = [(12, 12), (8, 12)]
    figure = figures.composition(config, shapes)
    outlined = [p for p in figure.axes[0].patches if tuple(p.get_edgecolor()) == (0, 0, 0, 1)]
    cells = sum(round(p.get_width() * p.get_height()) for p in outlined)
    storage = config.storage([vbank.Site(str(i), n, m) for i, (m, n) in enumerate(shapes)])
    assert cells == sum(group.trained for name, group in storage.items() if name != "logits")


def hatched(figure):
    return [p for p in figure.axes[0].patches if p.get_hatch()]


def test_vera_is_hatched_and_bears_its_scales_colours():
    config, shapes = vbank.VeRA(4), [(12, 12), (12, 12)]
    assert len(hatched(figures.composition(config, shapes))) == 6  # the pair, and again in two layers
    drawn = [keys(pixels) for pixels, _ in blocks(config, shapes)]
    for d, A, b, B in (drawn[2:6], drawn[7:11]):
        assert (A == d).all() and (B == b).all()
        assert len(set(d.ravel())) == 4 and len(set(b.ravel())) == 12
    assert not set(drawn[2].ravel()) & set(drawn[7].ravel())


def test_vera_with_one_scale_and_with_a_pair_for_each_layer():
    only_d = [keys(pixels) for pixels, _ in blocks(vbank.VeRA(4, train_b=False), [(8, 8)])]
    assert len(only_d) == 6  # B, A, d, A', B', update: no b
    own = figures.composition(vbank.VeRA(4, shared=False), [(8, 8), (8, 8)])
    assert len({p.get_hatch() for p in hatched(own)}) == 2


def test_tied_layers_have_the_same_pair_and_scales_of_their_own():
    drawn = [keys(pixels) for pixels, _ in blocks(vbank.TiedLoRA(3), [(12, 12), (8, 12), (12, 6)])]
    B, A, layers = drawn[0], drawn[1], (drawn[2:7], drawn[7:12], drawn[12:17])
    scales = []
    for (m, n), (u, a, v, b, _) in zip([(12, 12), (8, 12), (12, 6)], layers, strict=True):
        assert (a == A[:, :n]).all() and (b == B[:m]).all()
        scales += [*u.ravel(), *v.ravel()]
    cells = [*A.ravel(), *B.ravel(), *scales]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_vb_lora_pieces_have_the_colours_of_the_vectors_that_they_mix(k):
    config, shapes = vbank.VBLoRA(2, 6, 4, k), [(12, 8), (8, 8)]
    drawn = [keys(pixels) for pixels, _ in blocks(config, shapes)]
    bank, drawn = drawn[:6], drawn[6:]
    assert len(set(np.concatenate(bank).ravel())) == 24
    sites = [vbank.Site(str(i + 1), n, m) for i, (m, n) in enumerate(shapes)]
    indices, weights = painted.generic(config, sites).selected
    number = 0
    for a, b, _ in (drawn[:3], drawn[3:]):
        a = a.reshape(2, painted.PIXELS, -1, 4).transpose(0, 2, 3, 1)  # rank, piece, entry, pixel
        b = b.reshape(-1, 4, 2, painted.PIXELS).transpose(0, 2, 1, 3)  # piece, rank, entry, pixel
        for piece in (*a.reshape(-1, 4, painted.PIXELS), *b.reshape(-1, 4, painted.PIXELS)):
            chosen, shares = indices[number].tolist(), weights[number].tolist()
            for s, share in zip(chosen, shares, strict=True):
                part = (piece == bank[s]).mean(axis=1)
                assert np.allclose(part, share, atol=1 / painted.PIXELS)
            number += 1
    assert number == len(indices)


def test_labels_and_sizes():
    texts = [t.get_text() for t in figures.composition(vbank.LoRA(2), {"query": (8, 6)}).axes[0].texts]
    assert {"query", "$A$  2 × 6", "$B$\n8 × 2", "$\\Delta W$\n8 × 6"} <= set(texts)
    texts = [t.get_text() for t in figures.composition(vbank.LoRA(2), [(8, 6)] * 3).axes[0].texts]
    assert "$A_{3}$  2 × 6" in texts


def extent(figure):
    canvas = figure.canvas
    canvas.draw()
    return [(t.get_text(), t.get_window_extent()) for t in figure.axes[0].texts], figure.bbox


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (vbank.LoRA(1), [(8, 8)]),
        (vbank.LoRA(1), [(6, 6)] * 4),
        (vbank.VeRA(2), [(12, 12)] * 2),
        (vbank.TiedLoRA(3), {"query": (12, 12), "FFN up": (20, 12), "FFN down": (12, 20)}),
        (vbank.PRoLoRA(8, 2, 4, 2), [(24, 24)]),
        (vbank.VBLoRA(2, 24, 4, 2), [(12, 12)] * 3),
    ],
)
def test_labels_lie_apart_and_inside(config, shapes):
    figure = figures.composition(config, shapes)
    texts, page = extent(figure)
    for i, (one, box) in enumerate(texts):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, one
        for two, other in texts[i + 1 :]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
            assert apart, f"{one!r} on {two!r}"


@pytest.mark.parametrize(
    "config",
    [vbank.LoRA(4), vbank.VeRA(4), vbank.TiedLoRA(4), vbank.PRoLoRA(4, 1, 3, 3), vbank.VBLoRA(4, 6, 4, 2)],
)
def test_small_and_the_same_byte_for_byte(config):
    def svg():
        file = io.BytesIO()
        figures.composition(config, [(12, 12), (12, 12)]).savefig(file, format="svg", metadata=figures.SVG_METADATA)
        return file.getvalue()

    first = svg()
    assert first == svg()
    assert len(first) < 60_000


@pytest.mark.parametrize(
    ("config", "shapes", "words"),
    [
        (vbank.LoRA(4), [], "no shapes"),
        (vbank.LoRA(8), [(768, 768)], r"768 x 768 at rank 8.*shapes=\[\(12, 12\)"),
        (vbank.LoRA(1), [(4, 4)] * 13, "13 layers"),
        (vbank.VBLoRA(2, 90, 4, 2), [(8, 8)], "90 bank vectors"),
        (vbank.VBLoRA(2, 6, 5, 2), [(8, 8)], "vector_length 5 does not divide"),
    ],
)
def test_refusals(config, shapes, words):
    with pytest.raises(ValueError, match=words):
        figures.composition(config, shapes)
