"""`moesaic time`: how long kernels and collectives take, a file of them at once."""

from __future__ import annotations

import re
from pathlib import Path

import click

from api.lines import blocks, numbered, parsed, written
from api.output import Output
from hwprofiles.errors import MoesaicError

BLOCK_BYTES = 32 * 2**20
"""Lines answered together, some 200,000 in 1.4 GB of memory; they are written before others are
read."""
ANSWERED = re.compile(r'"error": ?null}$', re.MULTILINE)
FAR = '"kind": "outside_evidence"'
NOTHING = (
    "no line could be answered, some lie far outside what was measured; --extrapolate answers "
    "with wider intervals"
)


@click.command()
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    required=True,
    help="JSON lines, one kernel row each; answers come in the same order.",
)
@click.option(
    "--extrapolate",
    is_flag=True,
    help="Answer sizes far outside what was measured, with wider intervals.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the answers to this file."
)
@click.option("--quiet", is_flag=True, help="No progress bar.")  # fmt: skip
def command(batch: Path, extrapolate: bool, out: Path | None, quiet: bool) -> None:
    """Say low, typical and high seconds of each kernel row in a file (80 % intervals).

    Lines that cannot be answered say why in their place; where no line can and some lie far outside
    what was measured, the exit status is 4.

    A line: {"id": 1, "device": "h200-sxm", "backend": "vllm", "kernel": "gemm", "m": 64,
    "n": 4096, "k": 7168, "dtype": "bf16"}.

    \b
    Example:
        moesaic time --batch rows.jsonl --out seconds.jsonl
    """
    answered = far = False
    with written(Output("jsonl", out, quiet)) as write:
        for first, block in blocks(batch, BLOCK_BYTES):
            answers = _answers(block, first, extrapolate=extrapolate)
            write(answers)
            answered = answered or any(ANSWERED.search(answer) for answer in answers)
            far = far or (not answered and any(FAR in answer for answer in answers))
    if far and not answered:
        raise MoesaicError("outside_evidence", NOTHING)


def _answers(block: bytes, first: int, *, extrapolate: bool) -> list[str]:
    """Answer a block at once where its lines are plain, else read each with care."""
    from hwprofiles.timing.bulk import answer_block
    from hwprofiles.timing.lines import time_lines

    at_once = answer_block(block, extrapolate=extrapolate)
    if at_once is not None:
        return [at_once.rstrip("\n")]
    lines = (parsed(line, n) for n, line in numbered(block, first))
    return time_lines(lines, extrapolate=extrapolate)
