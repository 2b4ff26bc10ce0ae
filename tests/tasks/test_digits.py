"""The digits laboratory: the data, a repeatable run, and an order of methods that is beyond doubt."""

import pytest
import torch

import vbank
from vbank.adapters import adapter_of
from vbank.tasks.digits import adapt, digits, pretrained


def test_turned_digits_are_the_upright_ones_turned():
    upright, turned = digits(), digits(turned=True)
    assert upright.train[0].shape == (1000, 1, 8, 8) and len(upright.test[1]) == 797
    assert torch.equal(upright.test[0].rot90(1, (2, 3)), turned.test[0])
    assert torch.equal(upright.train[1], turned.train[1])
    assert upright.train[0].min() == -1 and upright.train[0].max() == 1


def test_pretrained_is_a_fresh_copy():
    first = pretrained()
    with torch.no_grad():
        first.classifier.weight.zero_()
    assert pretrained().classifier.weight.abs().sum() > 0


def test_adapting_beats_the_head_and_repeats():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    lora = adapt(vbank.LoRA(4), 5e-3, epochs=3)
    assert torch.equal(torch.rand(1), expected), "a run leaves the global generator alone"
    again = adapt(vbank.LoRA(4), 5e-3, epochs=3)
    head = adapt("head-only", 0.0, epochs=3)
    assert lora.accuracy == again.accuracy and lora.losses == again.losses
    assert lora.losses[-1] < head.losses[-1]
    assert lora.counted.trainable == sum(4 * (m + n) for m, n in [(64, 64)] * 16 + [(128, 64), (64, 128)] * 4)
    assert head.counted is None


def test_steps_are_reported():
    seen = []
    adapt("head-only", 0.0, epochs=1, after_step=lambda step, model: seen.append(step))
    assert seen == list(range(11))


def test_unknown_baseline():
    with pytest.raises(ValueError, match="half"):
        adapt("half", 1e-3)


def test_weight_decay_reaches_the_optimizer():
    """AdamW at a rate of 0 for the method and decay for all: the head's decay is seen."""
    plain, decayed = (adapt("head-only", 0.0, epochs=2, weight_decay=decay).model for decay in (0.0, 10.0))
    assert decayed.classifier.weight.norm() < 0.7 * plain.classifier.weight.norm()
    rates = {"bank": 1e-2, "logits": 1e-2}
    config = vbank.VBLoRA(rank=2, num_vectors=8, vector_length=16)
    banks = [
        adapter_of(adapt(config, rates, epochs=1, weight_decay=decay).model)[2].method.bank.norm()
        for decay in (0.0, 50.0)
    ]
    assert banks[1] < 0.9 * banks[0]
