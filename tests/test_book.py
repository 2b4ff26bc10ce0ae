"""Numbers that a cell passes on to the prose."""

import pytest

from vbank.book import glued


def test_names_and_texts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    glued(error="0.31", share="5 %")
    assert capsys.readouterr().out == "error  0.31\nshare  5 %\n"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r'error is 0\.3125; give the text to print, such as error=f"{value:\.3f}"'):
        glued(error=0.3125)  # type: ignore[arg-type]
