"""What the drawings of the bank count, held against counting by hand and against every case there is."""

import itertools

import numpy as np
import pytest
import torch
from recorded import by_hand
from torch import nn

import vbank
from vbank.figures.selected import (
    Selected,
    along_edges,
    blocks_of,
    deviation_at_random,
    edges_of,
    ever,
    exchanged,
    expected_usage,
    kinds_of,
    off_edges,
    recorded,
    rows_to_draw,
    selected,
    summed_weights,
    usage_of,
    vectors_to_draw,
)

BERT = [
    f"bert.encoder.layer.{layer}.{module}"
    for layer in (0, 1)
    for module in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
]


def test_ever_and_exchanged_by_hand():
    log = recorded(by_hand(), "test")
    rows = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    np.testing.assert_array_equal(ever(log.indices, 5), np.array(rows, dtype=bool))
    np.testing.assert_array_equal(ever(log.indices[1], 5)[2], [False, False, True, True, False])
    np.testing.assert_allclose(exchanged(log.indices), [1 / 8, 3 / 8])


def test_usage_counts_sub_vectors():
    np.testing.assert_array_equal(usage_of(recorded(by_hand(), "test").indices[-1], 5), [1, 2, 3, 2, 0])


@pytest.mark.parametrize(("sub_vectors", "k", "h"), [(3, 2, 4), (2, 3, 5), (4, 1, 3)])
def test_expected_usage_is_the_average_over_all_random_choices(sub_vectors, k, h):
    histogram, variance, cases = np.zeros(sub_vectors + 1), 0.0, 0
    for choices in itertools.product(itertools.combinations(range(h), k), repeat=sub_vectors):
        used = usage_of(np.array(choices), h)
        histogram += np.bincount(used, minlength=sub_vectors + 1)
        variance += used.var()
        cases += 1
    np.testing.assert_allclose(expected_usage(sub_vectors, k, h), histogram / cases)
    assert variance / cases == pytest.approx(sub_vectors * k / h * (1 - k / h))  # as the docstring claims


def test_expected_usage_of_many():
    expected = expected_usage(48_832, 2, 2048)
    assert expected.sum() == pytest.approx(2048)
    assert (expected * np.arange(len(expected))).sum() == pytest.approx(48_832 * 2)


def test_weights_of_some_rows():
    chosen = selected(by_hand(), None, "test")
    np.testing.assert_allclose(summed_weights(chosen, [range(0, 1), range(2, 4)]), [0.75, 0.75, 0.75, 0.75, 0])


@pytest.mark.parametrize(
    ("h", "weights"), [(4, [[0.7, 0.3], [0.9, 0.1]]), (3, [[1.0, 0.0]] * 3), (3, [[0.5, 0.3, 0.2]])]
)
def test_deviation_at_random_is_the_average_over_all_random_choices(h, weights):
    weights = np.array(weights)
    n, k = weights.shape
    squares, cases = 0.0, 0
    for choices in itertools.product(itertools.permutations(range(h), k), repeat=n):
        chosen = Selected(np.zeros((h, 2)), np.array(choices), weights, ("0",), ((0, 0, n),))
        squares += summed_weights(chosen, [range(n)]).var()
        cases += 1
    assert deviation_at_random(chosen, [range(n)]) == pytest.approx(np.sqrt(squares / cases))


def test_blocks_and_kinds():
    assert blocks_of(BERT) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kinds_of(BERT)[:4] == ["query", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert blocks_of(["h.7.attn.c_attn:query", "h.7.attn.c_attn:value", "h.3.mlp.w1", "head"]) == [0, 0, 1, 2]
    assert kinds_of(["h.7.c_attn:query", "h.7.c_attn:value", "head", "5"]) == [
        "c_attn:query",
        "c_attn:value",
        "head",
        "5",
    ]


def test_edges_are_the_pairs_that_somebody_chose():
    assert edges_of(np.array([[2, 0], [0, 2], [1, 3]])).tolist() == [[0, 2], [1, 3]]
    assert edges_of(np.array([[4, 0, 2]])).tolist() == [[0, 2], [0, 4], [2, 4]]
    assert edges_of(np.array([[4], [0]])).tolist() == []


def test_distance_from_an_edge_counts_in_its_lengths():
    points = np.array([[1.0, 3.0], [8.0, 3.0], [2.0, 0.0]])
    starts, ends = np.zeros((3, 2)), np.tile([4.0, 0.0], (3, 1))
    np.testing.assert_allclose(off_edges(points, starts, ends), [0.75, 1.25, 0.0])  # beside, beyond, on it
    np.testing.assert_allclose(along_edges(points, starts, ends), [0.25, 1.0, 0.5])


def test_rows_are_spread_or_chosen():
    assert rows_to_draw(None, 5, "test").tolist() == [0, 1, 2, 3, 4]
    assert rows_to_draw(None, 1001, "test", usual=5).tolist() == [0, 250, 500, 750, 1000]
    assert rows_to_draw(slice(2, 8, 3), 9, "test").tolist() == [2, 5]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (range(193), "193 sub-vectors do not fit a picture, 192 do; choose some with rows="),
        ([500], "rows is .500.; give a slice or a list of numbers from 0 to 499"),
        ([-1], "rows is"),
        ([0.5], "rows is"),
        (slice(3, 3), "rows is"),
    ],
)
def test_rows_that_cannot_be_drawn(wanted, words):
    with pytest.raises(ValueError, match=words):
        rows_to_draw(wanted, 500, "test")


def test_of_a_large_bank_some_are_spread_over_all():
    spread = vectors_to_draw(None, 2048, "test")
    assert len(spread) == len(set(spread)) == 256 and (spread[0], spread[-1]) == (0, 2047)
    with pytest.raises(ValueError, match="2,048 vectors do not fit a picture, 256 do; choose some with vectors="):
        vectors_to_draw(range(2048), 2048, "test")
    assert len(vectors_to_draw(slice(256), 2048, "test")) == 256


def model(config):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    vbank.attach(network, config, targets=["0", "2"])
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_and_both_forms_of_its_folder_are_one(dtype, tmp_path):
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    config = vbank.VBLoRA(rank=2, num_vectors=7, vector_length=4, top_k=3, logits_std=1.0)
    adapter = vbank.attach(network, config, targets=["0", "2"], dtype=dtype)
    live = selected(network, None, "test")
    assert live.indices.shape == live.weights.shape == (14, 3) and live.bank.shape == (7, 4)
    assert live.sites == ("0", "2") and live.spans == ((0, 4, 8), (8, 12, 14))
    np.testing.assert_array_equal(live.indices, adapter.method.logits.detach().float().argsort(1, True)[:, :3])
    for form in ("compact", "resumable"):
        vbank.save(network, tmp_path / form, form=form)
        stored = selected(tmp_path / form, None, "test")
        np.testing.assert_array_equal(stored.indices, live.indices)
        np.testing.assert_allclose(stored.weights, live.weights, atol=1e-6 if dtype == torch.float32 else 0.01)
        np.testing.assert_array_equal(stored.bank, live.bank)
        assert (stored.sites, stored.spans) == (live.sites, live.spans)


def test_another_adapter_by_name():
    network = model(vbank.LoRA(rank=2))
    vbank.attach(network, vbank.VBLoRA(2, num_vectors=6, vector_length=4), targets=["0"], name="bank")
    assert len(selected(network, "bank", "test").bank) == 6
    with pytest.raises(ValueError, match="no adapter is called 'vault'"):
        selected(network, "vault", "test")


def test_another_method_is_named(tmp_path):
    network = model(vbank.LoRA(rank=2))
    with pytest.raises(ValueError, match="test: adapter 'default' is LoRA, which has no bank; give one of VB-LoRA"):
        selected(network, None, "test")
    vbank.save(network, tmp_path / "lora")
    with pytest.raises(ValueError, match="the adapter in .*lora is LoRA, which has no bank"):
        selected(tmp_path / "lora", None, "test")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(TypeError, match="test: got list; give a model with an adapter, a folder"):
        selected([1], None, "test")
    with pytest.raises(ValueError, match="holds no adapter.json"):
        selected(tmp_path, None, "test")
    with pytest.raises(ValueError, match="Sequential has no adapter"):
        selected(nn.Sequential(nn.Linear(2, 2)), None, "test")
    with pytest.raises(ValueError, match="name is 'bank', but only a model"):
        selected(tmp_path, "bank", "test")


def test_values_that_cannot_be_drawn():
    network = model(vbank.VBLoRA(2, num_vectors=6, vector_length=4))
    with torch.no_grad():
        network.get_submodule("vbank.default.method").bank[2, 1] = torch.nan
    with pytest.raises(ValueError, match="the bank of adapter 'default' is not finite everywhere"):
        selected(network, None, "test")
    with pytest.raises(ValueError, match="adapter 'default' is on the meta device"):
        selected(network.to("meta"), None, "test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"indices": torch.zeros(0, 4, 2), "steps": torch.zeros(0)}, r"the log is empty, its indices .* \(0, 4, 2\)"),
        ({"steps": torch.tensor([0, 10])}, r"have the shapes \(2,\), \(3, 4, 2\) and \(3, 4, 2\)"),
        ({"weights": torch.ones(3, 4, 1)}, r"and \(3, 4, 1\)"),
        ({"steps": torch.tensor([0, 30, 30])}, "step 30 stands after step 30"),
        (
            {"bank_after": torch.zeros(3, 2)},
            "index 3 of the log points outside its bank of 3 vectors, .* another model",
        ),
        ({"spans": ((0, 1, 2), (2, 3, 6))}, "have 6 sub-vectors and its recordings 4, so they are of two models"),
    ],
)
def test_logs_that_do_not_hold_together(changes, words):
    with pytest.raises(ValueError, match=f"test: .*{words}"):
        recorded(by_hand(**changes), "test")


def test_a_log_that_is_none(tmp_path):
    with pytest.raises(TypeError, match="got Sequential, which holds one selection at most; give a log"):
        recorded(model(vbank.VBLoRA(2, num_vectors=6, vector_length=4)), "test")
    with pytest.raises(ValueError, match="there is no such log"):
        recorded(tmp_path / "run.safetensors", "test")
