"""Bars for a reader who waits at a live notebook."""

from typing import Any

import pytest
from tqdm import tqdm

from vbank.live import Line, progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a live notebook shows in one line of a cell's output, one text after the other."""
    texts: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            texts.append(data["text/plain"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Any:
        texts.append(data["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setenv("VBANK_CONTROLS", "widgets")
    return texts


def test_only_a_live_reader_gets_a_bar(
    shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vbank.live.PATIENCE", 0.0)
    assert list(progress("abc", "letters")) == ["a", "b", "c"]
    assert shown[0].startswith("letters") and "0/3" in shown[0] and shown[-1] == ""
    shown.clear()
    monkeypatch.setenv("VBANK_CONTROLS", "frames")  # as `scripts/book.py` runs a notebook
    assert list(progress(iter("abc"), "letters")) == ["a", "b", "c"]
    assert shown == [] and capsys.readouterr() == ("", "")


def test_a_loop_of_less_than_two_seconds_has_no_bar(shown: list[str]) -> None:
    assert sum(progress(range(1000), "numbers")) == 499_500
    assert shown == []


def test_a_loop_that_is_interrupted_ends_its_bar(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbank.live.PATIENCE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        for letter in progress("abc", "letters"):
            if letter == "b":
                raise KeyboardInterrupt
    assert len(shown) > 1 and shown[-1] == "" and not tqdm._instances


def test_a_line_that_has_nothing_to_say_is_not_begun(shown: list[str]) -> None:
    line = Line()
    for text in ("\r  \r", "\rone", "\rtwo", "\r   \r"):
        line.write(text)
    assert shown == ["one", "two", ""]
