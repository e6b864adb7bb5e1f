"""Files that could mean two things or harm are refused; the rest comes back unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.errors import MoesaicError
from hwprofiles.files import (
    MAX_BYTES,
    apply_overrides,
    dump,
    parse_text,
    read_document,
    write_text,
)


@pytest.mark.parametrize(
    ("text", "as_json", "says"),
    [
        ('{"a": 1, "a": 2}', True, "stands twice"),
        ("a: 1\na: 2\n", False, "stands twice, again on line 2"),
        ("a: {b: 1, b: 2}", False, "stands twice"),
        ('{"a": NaN}', True, "no number"),
        ('{"a": -Infinity}', True, "no number"),
        ("a: .nan", False, "no finite number"),
        ("a: [1, {b: -.inf}]", False, "no finite number"),
        ("a: &x {b: 1}\nc: *x", False, "aliases are not accepted"),
        ("[" * 100 + "]" * 100, True, "nested deeper"),
        ("[" * 100 + "]" * 100, False, "nested deeper"),
        ("[" * 100_000 + "]" * 100_000, True, "nested deeper"),
        ('{"a": ' + "9" * 5000 + "}", True, "out of range"),
        ("a: " + "9" * 5000, False, "out of range|digits"),
        ("a: " + "9" * 200, False, "out of range"),
        ("a: !!python/object/apply:os.system ['true']", False, "constructor|tag"),
        ("? [1, 2]\n: 3", False, "key"),
        ("? {a: 1}\n: 3", False, "key"),
        ("a: 1\n---\nb: 2", False, "document"),
        ("a: 2024-13-45", False, "month|date"),
        ("a: [1", False, "expected"),
        ('{"a": 1', True, "Expecting|delimiter"),
        ("a: \x00", False, "special characters|unacceptable|control"),
    ],
)
def test_hostile_text_is_refused(text: str, as_json: bool, says: str) -> None:
    with pytest.raises(MoesaicError, match=says) as caught:
        parse_text(text, "input", as_json=as_json)
    assert caught.value.kind == "invalid"
    assert "\n" not in caught.value.message


@pytest.mark.slow
def test_yaml_nested_beyond_the_parsers_depth_is_refused() -> None:
    with pytest.raises(MoesaicError):
        parse_text("[" * 20_000 + "]" * 20_000, "input", as_json=False)


def test_merge_keys_do_not_smuggle_fields() -> None:
    with pytest.raises(MoesaicError):
        parse_text("<<: {a: 1}\nb: 2", "input", as_json=False)


def test_huge_missing_and_binary_files(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(MoesaicError, match="at most"):
        read_document(huge)
    with pytest.raises(MoesaicError, match="No such file"):
        read_document(tmp_path / "none.yaml")
    with pytest.raises(MoesaicError, match="cannot read"):
        read_document(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MoesaicError, match="UTF-8"):
        read_document(binary)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdefgh", min_size=1, max_size=6), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_data_comes_back(data: Any) -> None:
    assert parse_text(dump(data, "json"), "x", as_json=True) == data
    assert parse_text(dump(data, "yaml"), "x", as_json=False) == data
    assert json.loads(dump(data, "jsonl")) == data


def test_overrides() -> None:
    data = {"a": {"b": 1}, "c": 2}
    assert apply_overrides(data, ("a.b=80 GiB", "d.e=[1, 2]")) == {
        "a": {"b": "80 GiB"},
        "c": 2,
        "d": {"e": [1, 2]},
    }
    assert data == {"a": {"b": 1}, "c": 2}
    for bad in ("a.b", "=3", "c.x=1", "a.b=.nan", "a.b=[1"):
        with pytest.raises(MoesaicError) as caught:
            apply_overrides(data, (bad,))
        assert caught.value.kind == "invalid"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    write_text(target, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\ud800")
    assert target.read_text() == "one"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(MoesaicError, match="cannot write"):
        write_text(tmp_path / "no" / "folder.json", "x")
