"""PRoLoRA against the paper's equations 2 to 5, element by element, and what it reduces to."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vbank
from vbank import LoRA, PRoLoRA, Site


def trained(config: PRoLoRA, site: Site):
    method = config.build([site], dtype=torch.float64)
    with torch.no_grad():
        for p in method.parameters():
            p.normal_()
    return method


def entry(unshared, chunk, q: int, c: int, u: int, share: int, length: int, rotate: bool = True) -> float:
    """Entry (rank q, position c) of A, or of B transposed, from the unshared rows and the chunk (equation 4)."""
    if q < u:
        return unshared[q][c]
    R = len(chunk)
    width = math.ceil(length / share)
    copy, place = divmod(c, width)
    stride = max(R // share, 1) if rotate else 0
    return chunk[(q - u - copy * stride) % R][place]  # rolling by s moves row p to row p + s


@settings(max_examples=120)
@given(st.data())
def test_factors_by_elements(data):
    n_in, n_out = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 14))
    rank = data.draw(st.integers(1, 8))
    u = data.draw(st.integers(0, rank))
    m, n = data.draw(st.integers(1, n_in)), data.draw(st.integers(1, n_out))
    rotate = data.draw(st.booleans())
    config = PRoLoRA(rank, u, m, n, rotate=rotate)
    method = trained(config, Site("w", n_in, n_out))
    A, B = method.factors("w")
    A_u = method.A_unshared[0].tolist() if u else None
    B_u = method.B_unshared[0].T.tolist() if u else None
    A_0 = method.A_chunk[0].tolist() if u < rank else None
    B_0 = method.B_chunk[0].T.tolist() if u < rank else None
    expected_A = [[entry(A_u, A_0, q, c, u, m, n_in, rotate) for c in range(n_in)] for q in range(rank)]
    expected_B = [[entry(B_u, B_0, q, o, u, n, n_out, rotate) for q in range(rank)] for o in range(n_out)]
    assert A.tolist() == expected_A
    assert B.tolist() == expected_B
    per_rank = math.ceil(n_in / m) + math.ceil(n_out / n)
    assert vbank.count_sites(config, [Site("w", n_in, n_out)]).trainable == u * (n_in + n_out) + (rank - u) * per_rank


def test_a_share_that_does_not_divide_trims_the_last_copy():
    method = trained(PRoLoRA(4, share_a=3, share_b=3), Site("w", 7, 8))
    A, B = method.factors("w")
    chunk = method.A_chunk[0]
    assert chunk.shape == (4, 3) and method.B_chunk[0].shape == (3, 4)  # ceil(7 / 3), ceil(8 / 3)
    assert torch.equal(A[:, 3:6], chunk[[3, 0, 1, 2]])  # stride max(4 // 3, 1) = 1
    assert torch.equal(A[:, 6], chunk[[2, 3, 0, 1], 0])
    assert torch.equal(B[6:], method.B_chunk[0][:2][:, [2, 3, 0, 1]])


@pytest.mark.parametrize("shared, share, stride", [(8, 2, 4), (8, 4, 2), (8, 3, 2), (5, 2, 2), (3, 4, 1), (1, 4, 1)])
def test_strides(shared, share, stride):
    method = trained(PRoLoRA(shared + 1, 1, share, share), Site("w", 12, 12))
    A, B = method.factors("w")
    width = 12 // share
    rolled = [(q - stride) % shared for q in range(shared)]
    assert torch.equal(A[1:, width : 2 * width], method.A_chunk[0][rolled])
    assert torch.equal(B[width : 2 * width, 1:], method.B_chunk[0][:, rolled])


def copy_of_lora(config: PRoLoRA, site: Site, alpha: float):
    lora = LoRA(config.rank, alpha).build([site], dtype=torch.float64)
    prolora = config.build([site], dtype=torch.float64)
    with torch.no_grad():
        for p in lora.parameters():
            p.normal_()
        (A,) = prolora.groups()["A"]
        (B,) = prolora.groups()["B"]
        A.copy_(lora.A[0])
        B.copy_(lora.B[0])
    return lora, prolora, A, B


@pytest.mark.parametrize(
    "config",
    [PRoLoRA(4, 4, 3, 2, 8), PRoLoRA(4, 0, 1, 1, 8), PRoLoRA(4, 4, 99, 99, 8), PRoLoRA(4, 0, 1, 1, 8, rotate=False)],
    ids=["u=r", "share=1", "u=r, shares beyond the size", "share=1, no rotation"],
)
def test_reduces_to_lora(config):
    site = Site("w", 7, 5)
    lora, prolora, A, B = copy_of_lora(config, site, alpha=8)
    assert vbank.count_sites(config, [site]).trainable == vbank.count_sites(LoRA(4), [site]).trainable == 48
    x = torch.randn(3, 7, dtype=torch.float64)
    y, expected = prolora.update(x, "w"), lora.update(x, "w")
    assert torch.equal(y, expected)
    ours = torch.autograd.grad(y.square().sum(), [A, B])
    theirs = torch.autograd.grad(expected.square().sum(), [lora.A[0], lora.B[0]])
    assert all(torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("config", [PRoLoRA(4, 4, 3, 2), PRoLoRA(4)], ids=["u=r", "share=1"])
def test_starts_as_lora_does(config):
    site = Site("w", 7, 5)
    torch.manual_seed(1)
    lora = LoRA(4).build([site])
    torch.manual_seed(1)
    prolora = config.build([site])
    assert torch.equal(prolora.factors("w")[0], lora.factors("w")[0])


def blocks(config: PRoLoRA, size: int = 12):
    """delta as blocks[i][j], cut as the shares cut it."""
    delta = vbank.delta(trained(config, Site("w", size, size)), "w")
    rows = delta.split(size // config.share_b, dim=0)
    return [row.split(size // config.share_a, dim=1) for row in rows]


def test_clora_has_equal_blocks():
    cut = blocks(PRoLoRA(6, share_a=3, share_b=2, rotate=False))
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(cut[i][j], cut[0][0])
    assert cut[0][0].std() > 0


def test_rolora_has_one_block_a_relative_rotation():
    cut = blocks(PRoLoRA(6, share_a=3, share_b=3))  # stride 2 on both sides: three relative rotations
    for i, j in itertools.product(range(3), range(3)):
        torch.testing.assert_close(cut[i][j], cut[(i + 1) % 3][(j + 1) % 3])  # both chunks rotate together
        for k in range(3):
            if k != j:
                assert (cut[i][j] - cut[i][k]).abs().max() > 0.1  # blocks of one row differ


def test_unshared_ranks_break_the_pattern():
    cut = blocks(PRoLoRA(6, unshared_rank=1, share_a=3, share_b=3))
    assert (cut[0][0] - cut[1][1]).abs().max() > 0.1


def test_rank_of_the_update():
    site = Site("w", 12, 12)
    shared = vbank.delta(trained(PRoLoRA(4, share_a=4, share_b=4, rotate=False), site), "w")
    rotated = vbank.delta(trained(PRoLoRA(4, share_a=4, share_b=4), site), "w")
    assert torch.linalg.matrix_rank(shared) == 3  # a chunk is 3 wide
    assert torch.linalg.matrix_rank(rotated) == 4  # rotation gives the rank back


def test_an_inner_product_survives_a_common_rotation():
    method = trained(PRoLoRA(5, share_a=2, share_b=2), Site("w", 2, 2))
    a, b = method.A_chunk[0][:, 0], method.B_chunk[0][0]
    (delta,) = [vbank.delta(method, "w")]
    stride = 2
    expected = sum(b[(q - stride) % 5] * a[(q - stride) % 5] for q in range(5))
    torch.testing.assert_close(delta[1, 1], expected)
    torch.testing.assert_close(delta[0, 0], b @ a)
    torch.testing.assert_close(delta[0, 0], delta[1, 1])
    assert (delta[0, 1] - delta[0, 0]).abs() > 1e-3


def test_gradients_of_a_chunk_sum_over_its_copies():
    method = trained(PRoLoRA(3, share_a=2, share_b=1), Site("w", 5, 4))
    A, B = method.factors("w")
    x = torch.randn(2, 5, dtype=torch.float64)
    grad_A = torch.autograd.grad((x @ A.T @ B.T).square().sum(), A)[0].tolist()
    (grad,) = torch.autograd.grad(method.update(x, "w").square().sum(), method.A_chunk[0])
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for q in range(3):
        for c in range(5):
            copy, place = divmod(c, 3)
            expected[(q - copy) % 3, place] += grad_A[q][c]  # stride max(3 // 2, 1) = 1
    torch.testing.assert_close(grad, expected)


def test_rectified_initialisation_takes_the_whole_fan_in():
    site = Site("w", 400, 30)
    for rectified, fan_in in ((True, 400), (False, 100)):
        torch.manual_seed(0)
        method = PRoLoRA(60, 20, 4, 4, rectified=rectified).build([site])
        chunk, unshared = method.A_chunk[0], method.A_unshared[0]
        assert 0.98 / math.sqrt(fan_in) < chunk.abs().max() <= 1 / math.sqrt(fan_in)
        assert 0.98 / math.sqrt(400) < unshared.abs().max() <= 1 / math.sqrt(400)
        assert chunk.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.03)
        assert all((B == 0).all() for B in method.groups()["B"])


def test_nothing_empty_is_built():
    whole = PRoLoRA(4, 4).build([Site("w", 6, 6)])
    assert [key for key, _ in whole.named_parameters()] == ["A_unshared.0", "B_unshared.0"]
    shared = PRoLoRA(4, 0, 2, 2).build([Site("w", 6, 6)])
    assert sorted(key for key, _ in shared.named_parameters()) == ["A_chunk.0", "B_chunk.0"]


def test_counts_by_hand():
    count = vbank.count_sites(PRoLoRA(5, 2, share_a=4, share_b=3), [Site("a", 10, 7), Site("b", 8, 9)])
    # a: 2 * 10 + 3 * 3 and 2 * 7 + 3 * 3; b: 2 * 8 + 3 * 2 and 2 * 9 + 3 * 3
    assert {name: g.trained for name, g in count.groups.items()} == {"A": 29 + 22, "B": 23 + 27}
    assert (count.trainable, count.stored, count.bytes) == (101, 101.0, 404)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"unshared_rank": 5}, "unshared_rank is 5, more than rank 4; .* choose 0 to rank"),
        ({"unshared_rank": -1}, "unshared_rank is -1; it must be an integer of at least 0"),
        ({"share_a": 0}, "share_a is 0; it must be an integer of at least 1"),
        ({"share_b": 2.0}, "share_b is 2.0; it must be an integer of at least 1"),
        ({"rotate": "yes"}, "rotate is 'yes'; it must be True or False"),
        ({"rectified": None}, "rectified is None; it must be True or False"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match="PRoLoRA: " + message):
        PRoLoRA(4, **settings)


def test_shares_beyond_the_size_name_every_layer():
    sites = [Site("narrow", 4, 20), Site("fine", 20, 20), Site("short", 20, 3)]
    for refused in (PRoLoRA(2, share_a=5, share_b=4).build, lambda s: vbank.count_sites(PRoLoRA(2, 0, 5, 4), s)):
        with pytest.raises(ValueError) as error:
            refused(sites)
        assert "share_a 5 and share_b 4" in str(error.value)
        assert "narrow (4 inputs, share_a), short (3 outputs, share_b); choose smaller ones" in str(error.value)
        assert "fine" not in str(error.value)
    PRoLoRA(2, share_a=4, share_b=3).build(sites)  # as many copies as there are columns, or rows
