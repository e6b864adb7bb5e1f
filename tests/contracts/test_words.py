"""What README, docs and help print has to work: every command runs, every verb is explained."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from api.cli import VERBS, group

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENDLESS = ("serve",)
"""Verbs that run until stopped; their options are checked, they are not started."""


def commands(page: Path) -> list[str]:
    """Lines of a page's console blocks that call moesaic, continued lines joined."""
    if not page.exists():
        return []
    found = []
    for block in re.findall(r"^```(?:console|sh|bash|shell)\n(.*?)^```", page.read_text(),
                            re.MULTILINE | re.DOTALL):  # fmt: skip
        for line in block.replace("\\\n", " ").splitlines():
            text = line.removeprefix("$ ").strip()
            if text.startswith("moesaic ") or " | moesaic " in text:
                found.append(text.split("  #")[0])
    return found


def printed() -> list[tuple[Path, str]]:
    """Every command of every page."""
    return [(page, text) for page in PAGES for text in commands(page)]


def leaves(command: click.Command, words: list[str]) -> Iterator[tuple[list[str], click.Command]]:
    """A command and all below it, with the words that call it."""
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, [*words, name])


def helped(verb: str) -> list[tuple[list[str], click.Command]]:
    """A verb and its subcommands."""
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    return list(leaves(command, [verb]))


def examples(command: click.Command) -> list[str]:
    """The lines of a command's help that call moesaic."""
    text = re.sub(r"\\\n\s*", " ", (command.help or "").replace("\b", ""))
    return re.findall(r"^\s*(?:Example: )?(moesaic .+?)\s*$", text, re.MULTILINE)


def parse(words: list[str]) -> None:
    """Parse a command line without running it; files need not exist."""
    command: click.Command = group
    context = click.Context(group)
    while isinstance(command, click.Group):
        name, *words = words
        inner = command.get_command(context, name)
        assert inner is not None, f"no command {name!r}"
        command = inner
    try:
        command.make_context(command.name, list(words))
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


@pytest.mark.parametrize(("page", "text"), printed(), ids=lambda value: str(value)[-60:])
def test_a_printed_command_runs(page: Path, text: str, tmp_path: Path) -> None:
    assert page.exists()
    if any(f"moesaic {verb}" in text for verb in ENDLESS):
        parse(shlex.split(text.split("&", maxsplit=1)[0])[1:])
        return
    for name in ("tests", "docs", "README.md"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    binaries = Path(sys.executable).parent
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_every_verb_is_explained() -> None:
    if not (ROOT / "README.md").read_text().strip():
        pytest.skip("README.md is still empty")
    words = " ".join(page.read_text() for page in PAGES if page.exists())
    missing = [verb for verb in VERBS if not re.search(rf"moesaic {verb}\b|`{verb}`", words)]
    assert not missing


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_an_example_that_parses(verb: str) -> None:
    found = [text for _, command in helped(verb) for text in examples(command)]
    assert found, f"`moesaic {verb} --help` shows no example"
    for text in found:
        parse(shlex.split(text.split("|")[0].split(">")[0])[1:])


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_and_option_is_explained(verb: str) -> None:
    for words, command in helped(verb):
        assert command.help, words
        silent = [
            option.name
            for option in command.params
            if isinstance(option, click.Option) and not option.help
        ]
        assert not silent, (words, silent)
