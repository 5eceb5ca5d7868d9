"""Inputs that went wrong in silence elsewhere: each by its right value, or its refusal in one line."""

import pytest

from garda.core import config
from garda.core.errors import ConfigError
from garda.data.task import Task
from tests.support.errors import told

TASK = "name: t\nclasses: [background, organ, lesion]\nsize: [16, 16]\nlabel:\n  values: {%s}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TASK % "5: 2, 5: 1", "line 5: the key 5 comes twice"),
        (TASK % "5: 2" + "name: u\n", "line 6: the key 'name' comes twice"),
        ("a: {b: {c: 1, d: 2, c: 3}}\n", "line 1: the key 'c' comes twice"),
        ("base: &b {x: 1}\n? [1, 2]\n: 3\n? [1, 2]\n: 4\n", "line 4: the key [1, 2] comes twice"),
    ],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(text, said, tmp_path):
    (tmp_path / "task.yaml").write_text(text)
    message = told(ConfigError, config.load_yaml, tmp_path / "task.yaml")
    assert said in message and "\n" not in message


def test_a_key_that_is_merged_may_be_written_over(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  x: 3\n")
    assert config.load_yaml(tmp_path / "a.yaml")["other"] == {"x": 3, "y": 2}
    (tmp_path / "task.yaml").write_text(TASK % "5: 2, 6: 1")
    assert config.load(Task, tmp_path / "task.yaml").label.values == {5: 2, 6: 1}
