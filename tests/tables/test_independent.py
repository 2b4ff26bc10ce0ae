"""Measurements by others: typed figures agree with each other and with what their authors rounded."""

import datetime

import pytest

from vbank.figures import METHOD_COLOURS
from vbank.tables import independent


def test_accuracies_are_those_that_the_comparison_prints() -> None:
    # the numbers of July 2026 as the maintainers quote them in pull requests
    printed = {"lora/llama-3.2-3B-rank32": 47.8, "vera/llama-3.2-3B-default": 35.4, "vblora/llama-3.2-3B-default": 33.4}
    for run, percent in printed.items():
        assert round(100 * independent.latest(run).accuracy, 1) == percent
        assert independent.latest(run).round == independent.rounds()[-1]


def test_the_pull_requests_table_has_four_digits() -> None:
    found = [f"{100 * run.accuracy:.4f}" for run in independent.pull_request()]
    assert found == ["33.2828", "36.8461", "39.7271", "38.9689", "41.2434"]
    assert [run.num_vectors for run in independent.pull_request()] == [256, 512, 1024, 512, 1024]
    assert {run.decay for run in independent.pull_request()} == {0.1}


def test_a_file_has_four_bytes_for_each_trained_number_where_it_holds_no_more() -> None:
    for run in independent.runs():
        if run.colour == "LoRA" or "vblora" in run.run:
            assert run.bytes is not None
            trainable = run.trainable or independent.latest(run.run).trainable
            assert trainable is not None and 0 < run.bytes - 4 * trainable < 25_000  # names and shapes


def test_rounds_repeat_settings_and_nothing_else_changed_the_loss() -> None:
    assert independent.rounds() == ["2025-06-17", "2025-06-19", "2026-01", "2026-07"]
    for name in {run.run for run in independent.runs()}:
        repeated = independent.repeats(name)
        assert len({(run.lr, run.decay, run.bytes) for run in repeated}) == 1, name
        assert max(run.loss for run in repeated) - min(run.loss for run in repeated) < 1e-3, name
        assert sorted(run.made for run in repeated) == [run.made for run in repeated]
    assert [run.right for run in independent.repeats("vblora/llama-3.2-3B-default")] == [466, 488, 468, 440]


def test_every_run_can_be_drawn_and_found() -> None:
    for run in independent.runs() + independent.pull_request():
        assert 0 < run.right < run.problems == 1319
        assert run.colour in (*METHOD_COLOURS, "")
        assert run.source.startswith("https://github.com/huggingface/peft/")
        assert datetime.date(2025, 6, 1) < run.made < datetime.date(2026, 9, 1)
    assert independent.latest("lora/llama-3.2-3B-rank32").error == pytest.approx(0.01375, abs=1e-5)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown round '2024'.*2026-07"):
        independent.runs("2024")
    with pytest.raises(ValueError, match="did you mean 'lora/llama-3.2-3B-rank32'"):
        independent.repeats("lora/llama-3.2-3B-rank3")
