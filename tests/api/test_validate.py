"""`moesaic validate` from the shell: exit status, bad folders, a table of one's own."""

import json

import pytest
from click.testing import CliRunner

from api.commands.validate import command
from hwprofiles.errors import MoesaicError
from planner.validation.accuracy import shipped


def test_a_folder_without_tables_is_said(tmp_path):
    with pytest.raises(MoesaicError, match="holds no table"):
        CliRunner().invoke(command, ["--data", str(tmp_path)], catch_exceptions=False)


def test_a_table_of_ones_own(tmp_path):
    lines = shipped()[0].read_text().splitlines()
    table, page = tmp_path / "serving-mine.csv", tmp_path / "page.md"
    table.write_text("\n".join([lines[0], *(x for x in lines[1:] if "gpt_oss" in x)][:4]) + "\n")
    out = tmp_path / "report.json"
    options = ["--data", str(table), "--page", str(page), "-o", "json", "--out", str(out)]
    result = CliRunner().invoke(command, [*options, "--quiet"])
    report = json.loads(out.read_text())
    assert report["rows"]["parsed"] == 3
    assert result.exit_code == (1 if report["missed"] else 0)
    assert page.read_text().startswith("# How far off")
