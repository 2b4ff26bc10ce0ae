"""What the reference needs beside Sphinx's autodoc.

The directive `commands` shows what `vbank --help` and the help of each command print, taken from the program itself.

A signature of several lines is a list of definitions without terms, which no screen reader expects: it becomes lines.
"""

import inspect
import re

import typer
from body import on_body
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WIDTH = 80


class Commands(SphinxDirective):
    """One section a command, labelled `command-NAME`, with its help as a terminal of 80 columns shows it."""

    def run(self) -> list[nodes.Node]:
        from vbank.cli import app

        program = typer.main.get_command(app)
        context = program.context_class(
            program, info_name="vbank", terminal_width=WIDTH, max_content_width=WIDTH
        )
        made: list[nodes.Node] = [printed(context)]
        for name in program.list_commands(context):
            command = program.get_command(context, name)
            function = inspect.unwrap(command.callback)
            self.env.note_dependency(inspect.getfile(function))
            made.append(
                self.section(
                    name,
                    command.context_class(command, parent=context, info_name=name),
                )
            )
        return made

    def section(self, name: str, context: typer.Context) -> nodes.section:
        title, label = f"vbank {name}", f"command-{name}"
        section = nodes.section(ids=[label], names=[label])
        section += [nodes.title(title, title), printed(context)]
        self.state.document.note_explicit_target(section)
        return section


def printed(context: typer.Context) -> nodes.literal_block:
    text = context.get_help()
    return nodes.literal_block(text, text, language="text")


def lines_of(signature: re.Match[str]) -> str:
    text = re.sub(r"<dl>\s*", "", signature[0])
    text = re.sub(r"\s*</dl>", "", text)
    return text.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def in_lines(body: str) -> str:
    return re.sub(r'(?s)<dt class="sig\b.*?</dt>', lines_of, body)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    on_body(app, in_lines)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
