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
        ({"iner": {}}, "unknown key 'iner'; did you mean 'inner'?"),
        ({"inner": {"stepz": 2}}, "unknown key 'inner.stepz'; did you mean 'steps'?"),
        ({"maybe": {"stepz": 2}}, "unknown key 'maybe.stepz'; did you mean 'steps'?"),
        ({"inner": {"qqq": 2}}, "unknown key 'inner.qqq'; known keys are flip, nested, shares, steps, widths"),
        ({"inner": {"steps": "many"}}, "inner.steps: input should be a valid integer, got 'many'; correct the value"),
        ({"inner": {"steps": "7"}}, "inner.steps: input should be a valid integer, got '7'; correct the value"),
        ({"inner": {"steps": True}}, "inner.steps: input should be a valid integer, got True; correct the value"),
        ({"inner": {"shares": [1, "2"]}}, "inner.shares.1: input should be a valid number, got '2'; correct the value"),
        (
            {"inner": {"shares": [True, 2]}},
            "inner.shares.0: input should be a valid number, got True; correct the value",
        ),
        ({"inner": {"flip": "off"}}, "inner.flip: input should be a valid boolean, got 'off'; correct the value"),
        ({"name": ["x"]}, "name: input should be a valid string, got ['x']; correct the value"),
    ],
)
def test_misfits_name_file_key_and_remedy(values, message):
    with pytest.raises(ConfigError) as caught:
        config.parse(Outer, {"name": "x"} | values, "file")
    assert str(caught.value) == f"file: {message}"


NO_VALUE = "holds a date, number or tag that YAML cannot read; quote it"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file; check the path"),
        ("- 1\n", "expected keys and values, found list; see"),
        ("name: x\ninner: {\n", "line 3: not valid YAML; mend the syntax"),
        ("\udcff\udcfe\0", "cannot be read (it is no utf-8); give"),
        ("name: 2020-99-99", NO_VALUE),
        ("name: !!int many", NO_VALUE),
        ("name: !!bool 3", NO_VALUE),
        ("name: !!timestamp x", NO_VALUE),
    ],
)
def test_files_that_hold_no_mapping_are_one_line(tmp_path: Path, content: str | None, what: str):
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        config.load(Outer, file)
    assert str(caught.value).startswith(f"{file}: {what}")


def test_merge_lays_changes_over_at_every_depth():
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert config.merge(base, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
