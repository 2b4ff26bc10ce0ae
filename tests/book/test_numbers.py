"""Numbers in the prose: none that a cell computes is typed by hand, every glued name is there."""

import json
from pathlib import Path
from typing import Any

import pytest
from prose import constant_glue, numbers, repeated_glue, statements, typed_numbers, unknown_glue

BOOK = Path(__file__).resolve().parents[2] / "book"
NOTEBOOKS = sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@every_notebook
def test_no_computed_number_is_typed(path: Path) -> None:
    found = typed_numbers(load(path))
    assert not found, "\n" + "\n".join(found)


@every_notebook
def test_glued_names_exist_and_are_computed(path: Path) -> None:
    notebook = load(path)
    assert unknown_glue(notebook) == [], "no cell of this notebook glues them"
    assert repeated_glue(notebook) == [], "give each value a name of its own"
    assert constant_glue(notebook) == [], "glue what a cell computed, not a typed number"


# The check itself, on made-up notebooks.


def notebook(markdown: str, code: str = "", printed: str = "", glued: str | None = None, **metadata: Any) -> Any:
    outputs: list[Any] = [{"output_type": "stream", "name": "stdout", "text": printed}]
    if glued is not None:
        data = {"application/papermill.record/text/plain": repr(glued)}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {"scrapbook": {"name": "number"}}})
    cell = {"cell_type": "code", "source": code, "outputs": outputs, "metadata": metadata}
    return {"cells": [{"cell_type": "markdown", "source": markdown, "metadata": {}}, cell]}


def test_a_figure_may_say_any_number_and_a_control_may_after_its_first_line() -> None:
    book = notebook("It ends at 0.385, at rank 16.5.")
    for said, found in (("Figure: 0.385", 0), ("control (rank: 2)\nFigure: 0.385", 0), ("control (rank: 16.5)", 1)):
        book["cells"][1]["outputs"] = [{"output_type": "execute_result", "data": {"text/plain": said}, "metadata": {}}]
        assert len(typed_numbers(book)) == found


@pytest.mark.parametrize(
    ("sentence", "glued"),
    [
        ("LoRA trains 331,776 numbers.", "331,776"),
        ("LoRA trains 331776 numbers.", "331,776"),
        ("It ends at 0.385 after that.", "0.385"),
        ("It ends at 0.39 after that.", "0.39"),
        ("It keeps 73% of it.", "73%"),
        ("It keeps 73 % of it.", "73%"),
        ("It keeps 73 percent of it.", "73 %"),
        ("It takes $2{,}048$ more.", "2,048"),
        ("It weighs 26.4 GB.", "26.4 GB"),
        ("- in a list, 26.4 GB", "26.4 GB"),
        ("| LoRA |\n|---|\n| 0.674 |", "0.674"),
        ("```{admonition} Solution\n:class: dropdown\nThat is 0.674.\n```", "0.674"),
        ("## Only 0.674 is left", "0.674"),
        ("See Table 3. Ours is 0.674.", "0.674"),
        ("It is **0.674**.", "0.674"),
        ("It is `0.674`.", "0.674"),
        ("It is $\\approx 0.674$.", "0.674"),
        ("It is .674 now.", "0.674"),
        ("It is 67.4 per cent.", "67.4%"),
        ("It takes 302TB.", "302 TB"),
        ("It is 7.4x as fast.", "7.4"),
        ("It falls from 0.674 by 12 points.", "0.674"),
        ("It is 41 times as large.", "41"),
        ("VeRA wins on 18 of them.", "18 of 20"),
        ("It keeps 80% of it.", "80%"),
        ("It has 12,000 parts.", "12,000"),
        ("It ends at 0.5 after that.", "0.5"),
        ("It ends at 0.39 after that.", "0.394"),
        ("It weighs 26 GB.", "26.4 GB"),
        ("Unlike their Table 2, ours gives 0.674.", "0.674"),
        ("Figure 3 of this page shows 0.674.", "0.674"),
        ("The abstract painting costs 0.674.", "0.674"),
        ("Table 2 has a rank r. Ours is 0.674.", "0.674"),
    ],
)
def test_a_typed_number_that_is_glued_is_found(sentence: str, glued: str) -> None:
    (found,) = typed_numbers(notebook(sentence, glued=glued))
    assert "is {glue:text}`number`" in found


@pytest.mark.parametrize(
    ("sentence", "printed"),
    [
        ("About 0.295M numbers.", "LoRA 294,912"),
        ("About 295 thousand numbers.", "LoRA 294,912"),
        ("About 0.294M numbers, cut off.", "LoRA 294,912"),
        ("It is right in 94.3 % of them.", "accuracy 0.94316"),
        ("It is right in 94.3 of 100.", "accuracy 94.316%"),
        ("The error is 1.23e-3 now.", "0.00123"),
        ("The error is 0.00123 now.", "error 1.234e-03"),
    ],
)
def test_a_typed_number_that_is_printed_is_found_also_rounded(sentence: str, printed: str) -> None:
    assert len(typed_numbers(notebook(sentence, printed=printed))) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "It is {glue:text}`number`.",
        "Their Table 2 prints 0.674.",
        "Ours differs from the 0.674 of their Table 2.",
        "Of 200 dimensions 0.674 are used (their abstract).",
        "The code has `size=0.674` in it.",
        "{cite:t}`hu2022lora` print 0.674 (their section 4.1).",
        "They print 0.674 {cite}`hu2022lora`, as did, e.g. in eq. 3, others.",
        "| | paper, Table 2 | ours |\n|---|---|---|\n| LoRA | 0.674 | {glue:text}`number` |",
        "| | paper | ours |\n|---|---|---|\n| Table 2, LoRA | 0.674 | {glue:text}`number` |",
        "```python\nprint(0.674)\n```",
        "$$\n0.674 = x\n$$ (eq-a)",
        "From $x = 0.674$ it follows.",
        "Read https://example.org/0.674 for it.",
        "A rate of 0.7 and 3 layers, 200 steps, rank 64.",
        "A version 10.674 and 0.6741 are others.",
        "A matrix of 674 × 674 entries.",
    ],
)
def test_other_numbers_pass(sentence: str) -> None:
    printed = "0.674 0.7 3 200 64 674"
    assert typed_numbers(notebook(sentence, printed=printed, glued="0.674")) == []


def test_a_setting_that_stands_in_the_code_may_be_typed() -> None:
    prose, printed = "A layer of width 768 with 0.025 of noise and 0.295M.", "768 0.025 294,912"
    assert len(typed_numbers(notebook(prose, printed=printed))) == 3
    assert typed_numbers(notebook(prose, "width, noise, table = 768, 0.025, '0.295M'", printed)) == []


def test_bounds_of_assertions_and_glued_constants_are_no_settings() -> None:
    code = "assert abs(error - 0.674) < 0.01\nglued(number='0.674', other=f'{error} 0.674')"
    assert len(typed_numbers(notebook("It is 0.674.", code, glued="0.674"))) == 1
    assert typed_numbers(notebook("It is 0.67.", "glued(number=f'{0.67 * 2}')", glued="0.67")) == []
    assert constant_glue(notebook("", code)) == ["number='0.674'"]
    assert constant_glue(notebook("", "glued(number=f'{error:.3f}', start='unchanged')")) == []
    for code in ("glued(a=f'{0.674}')", "book.glued(a='0.674')", "glued(**{'a': '0.674'})", "x = '0.674'\nglued(a=x)"):
        assert len(constant_glue(notebook("", code))) == 1, code


def test_a_result_that_the_code_repeats_is_no_setting() -> None:
    code = "figure.axes[0].set_ylim(0, 0.674)"
    assert len(typed_numbers(notebook("It ends at 0.674.", code, glued="0.674"))) == 1
    assert typed_numbers(notebook("The axis ends at 0.5.", code.replace("0.674", "0.5"), glued="0.5")) == []


def test_captions_and_alternative_texts_count() -> None:
    for about in ({"figure": {"caption": "It ends at 0.674."}}, {"image": {"alt": "It ends at 0.674."}}):
        assert len(typed_numbers(notebook("", printed="0.674", mystnb=about))) == 1


def test_unknown_glue_is_found() -> None:
    prose = "{glue:text}`number`, {glue:text}`other`, {glue:text}`number:.2f`"
    assert unknown_glue(notebook(prose, glued="1")) == ["other"]


def test_repeated_glue_is_found() -> None:
    made_up = notebook("", glued="1")
    assert repeated_glue(made_up) == []
    made_up["cells"] += notebook("", glued="2")["cells"]
    assert repeated_glue(made_up) == ["number"]


def test_sentences_end_where_they_end() -> None:
    text = "It is so (their eq. 5). See M. Smith et al. 2020, e.g. this. An end\nhere! *New* one. 3.5 is one number."
    assert list(statements(text)) == [
        "It is so (their eq. 5).",
        "See M. Smith et al. 2020, e.g. this.",
        "An end here!",
        "*New* one.",
        "3.5 is one number.",
    ]


def test_numbers_are_read_with_their_units() -> None:
    assert numbers("0.295M")[0].values[1] == 295_000
    assert numbers("12.5%")[0].values[1] == numbers("0.125")[0].value
    assert numbers("2.5 kB")[0].values[1] == 2500
    assert [n.text for n in numbers("GPT2, r=8, x2, 10x10, v1.2.3, 1,2, 6,920")] == ["8", "1", "2", "6,920"]
