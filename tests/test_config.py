from __future__ import annotations

from pathlib import Path

import pytest

from garda.config import Config, load, merge, parse
from garda.errors import ConfigError


class Inner(Config):
    steps: int = 1
    widths: tuple[int, ...] = (1, 2)


class Outer(Config):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


def test_values_are_read_and_frozen():
    outer = parse(Outer, {"name": "x", "inner": {"steps": 3, "widths": [4]}}, "file")
    assert outer == Outer(name="x", inner=Inner(steps=3, widths=(4,)))
    with pytest.raises(ValueError, match="frozen"):
        outer.name = "y"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "iner": {}}, "file: unknown key 'iner'; did you mean 'inner'?"),
        ({"name": "x", "inner": {"stepz": 2}}, "file: unknown key 'inner.stepz'; did you mean 'steps'?"),
        ({"name": "x", "maybe": {"stepz": 2}}, "file: unknown key 'maybe.stepz'; did you mean 'steps'?"),
        ({"name": "x", "inner": {"qqq": 2}}, "file: unknown key 'inner.qqq'; known keys are steps, widths"),
        ({}, "file: key 'name' is missing; add it"),
        (
            {"name": "x", "inner": {"steps": "many"}},
            "file: inner.steps: input should be a valid integer, unable to parse string as an integer, got 'many'; "
            "correct the value",
        ),
    ],
)
def test_misfits_name_file_key_and_remedy(values, message):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, "file")
    assert str(caught.value) == message


def test_files_that_are_no_mapping(tmp_path: Path):
    file = tmp_path / "a.yaml"
    with pytest.raises(ConfigError) as caught:
        load(Outer, file)
    assert str(caught.value) == f"{file}: no such file; check the path"
    file.write_text("- 1\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, file)
    assert str(caught.value) == f"{file}: expected keys and values, found list; see docs/reference.md"
    file.write_text("name: x\ninner: {\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, file)
    assert str(caught.value) == f"{file}: line 3: not valid YAML; mend the syntax"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Outer, file)


def test_merge_lays_changes_over_at_every_depth():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
