from __future__ import annotations

from pathlib import Path

import pytest

from garda.core import config
from garda.core.config import Config, SettingsOrigin
from garda.core.errors import ConfigError, Problems


class Inner(Config):
    steps: int = 1
    widths: tuple[int, ...] = (1, 2)
    shares: tuple[float, float] = (0.5, 0.5)
    nested: tuple[tuple[int, ...], ...] = ()
    flip: bool = False


class Outer(Config):
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None


def test_values_are_read_and_frozen():
    outer = config.parse(Outer, {"name": "x", "inner": {"steps": 3, "widths": [4]}}, "file")
    assert outer == Outer(name="x", inner=Inner(steps=3, widths=(4,)))
    with pytest.raises(ValueError, match="frozen"):
        outer.name = "y"


def test_lists_serve_as_tuples_and_whole_numbers_as_floats_from_yaml_and_json():
    inner = config.parse(Inner, {"shares": [1, 0], "nested": [[1, 2], [3]], "flip": True}, "file")
    assert inner == Inner(shares=(1.0, 0.0), nested=((1, 2), (3,)), flip=True)
    assert isinstance(inner.shares[0], float)
    assert Inner.model_validate(inner.model_dump(mode="json")) == inner
    assert Inner.model_validate_json(inner.model_dump_json()) == inner


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "+1.0e-4"])
def test_a_number_with_an_exponent_is_a_number_with_or_without_a_dot(tmp_path: Path, text: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"plain: {text}\nquoted: '{text}'\nname: 1e-4x\n")
    assert config.load_yaml(file) == {"plain": pytest.approx(1e-4), "quoted": text, "name": "1e-4x"}


@pytest.mark.parametrize("value", ["2020-99-99", "!!int many", "!!bool 3", "!!timestamp x"])
def test_values_that_yaml_cannot_read_are_one_line(tmp_path: Path, value: str):
    file = tmp_path / "a.yaml"
    file.write_text(f"name: {value}\n")
    with pytest.raises(ConfigError) as caught:
        config.load_yaml(file)
    assert str(caught.value) == f"{file}: holds a date, number or tag that YAML cannot read; quote it"


def test_every_misfit_is_told_with_where_it_comes_from(tmp_path):
    changes = {"inner": {"flip": 1, "widths": [1, "a", "b"]}, "iner": {}}
    layers = (("pipeline.yaml", {"inner": {"steps": "many"}}), ("--set", changes))
    values = {"inner": {"steps": "many", "flip": 1, "stepz": 2, "widths": [1, "a", "b"]}, "iner": {}}
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "small.yaml").touch()
    with pytest.raises(Problems) as caught:
        config.parse(Outer, values, SettingsOrigin(tmp_path / "pipelines" / ".." / "small.yaml", layers))
    assert sorted(str(caught.value).splitlines()) == [
        "--set: inner.flip: input should be a valid boolean, got 1; correct the value",
        "--set: inner.widths.1: input should be a valid integer, got 'a'; correct the value",
        "--set: unknown key 'iner'; did you mean 'inner'?",
        f"{tmp_path}/small.yaml: key 'name' is missing; add it",
        f"{tmp_path}/small.yaml: unknown key 'inner.stepz'; did you mean 'steps'?",
        "pipeline.yaml: inner.steps: input should be a valid integer, got 'many'; correct the value",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "iner": {}}, "file: unknown key 'iner'; did you mean 'inner'?"),
        ({"name": "x", "inner": {"stepz": 2}}, "file: unknown key 'inner.stepz'; did you mean 'steps'?"),
        ({"name": "x", "maybe": {"stepz": 2}}, "file: unknown key 'maybe.stepz'; did you mean 'steps'?"),
        (
            {"name": "x", "inner": {"qqq": 2}},
            "file: unknown key 'inner.qqq'; known keys are flip, nested, shares, steps, widths",
        ),
        ({}, "file: key 'name' is missing; add it"),
        (
            {"name": "x", "inner": {"steps": "many"}},
            "file: inner.steps: input should be a valid integer, got 'many'; correct the value",
        ),
        (
            {"name": "x", "inner": {"steps": "7"}},
            "file: inner.steps: input should be a valid integer, got '7'; correct the value",
        ),
        (
            {"name": "x", "inner": {"steps": True}},
            "file: inner.steps: input should be a valid integer, got True; correct the value",
        ),
        (
            {"name": "x", "inner": {"shares": [1, "2"]}},
            "file: inner.shares.1: input should be a valid number, got '2'; correct the value",
        ),
        (
            {"name": "x", "inner": {"shares": [True, 2]}},
            "file: inner.shares.0: input should be a valid number, got True; correct the value",
        ),
        (
            {"name": "x", "inner": {"flip": "off"}},
            "file: inner.flip: input should be a valid boolean, got 'off'; correct the value",
        ),
        ({"name": ["x"]}, "file: name: input should be a valid string, got ['x']; correct the value"),
    ],
)
def test_misfits_name_file_key_and_remedy(values, message):
    with pytest.raises(ConfigError) as caught:
        config.parse(Outer, values, "file")
    assert str(caught.value) == message


def test_files_that_are_no_mapping(tmp_path: Path):
    file = tmp_path / "a.yaml"
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, file)
    assert str(caught.value) == f"{file}: no such file; check the path"
    file.write_text("- 1\n")
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, file)
    assert str(caught.value) == f"{file}: expected keys and values, found list; see docs/reference/files.md"
    file.write_text("name: x\ninner: {\n")
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, file)
    assert str(caught.value) == f"{file}: line 3: not valid YAML; mend the syntax"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(Outer, file)


def test_merge_lays_changes_over_at_every_depth():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert config.merge(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
