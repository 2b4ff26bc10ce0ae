"""The counts of the audit from live models, for the shapes that fit in memory."""

from vbank.audits.live import MODELS, compare


def test_a_live_model_counts_what_its_shapes_say():
    pairs = compare()
    assert {pair.model for pair in pairs} == set(MODELS)
    assert {pair.method for pair in pairs} == {"LoRA", "VeRA", "Tied-LoRA", "VB-LoRA"}
    assert not [pair for pair in pairs if pair.live != pair.shapes]
