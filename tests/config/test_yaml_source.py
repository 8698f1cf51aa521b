from __future__ import annotations

import math
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tgsent.config.yaml_source import dump, parse
from tgsent.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1e-4", 1e-4),
        ("5.0e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("3", 3),
        ("-3", -3),
        ("010", 10),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2001-01-01", "2001-01-01"),
        ("'3'", "3"),
        ('"\\n"', "\n"),
        ("[1, a]", [1, "a"]),
        ("{a: no}", {"a": "no"}),
        ("Tweet", "Tweet"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse(text, "--set").value
    assert parsed == value
    assert type(parsed) is type(value)


def test_nan_is_a_number() -> None:
    value = parse(".nan", "--set").value
    assert isinstance(value, float)
    assert math.isnan(value)


def test_every_key_and_item_knows_its_line() -> None:
    source = parse("# title\na: 1\nb:\n  c: 2\n  d:\n  - x\n  - {e: 3}\n", "f.yaml")
    assert source.value == {"a": 1, "b": {"c": 2, "d": ["x", {"e": 3}]}}
    assert [source.lines[path] for path in [("a",), ("b", "c"), ("b", "d", 1, "e")]] == [2, 4, 7]


def test_where_names_the_nearest_written_part() -> None:
    source = parse("a:\n  b: 1\n", "f.yaml")
    assert source.where(("a", "b", "c")) == "line 2"
    assert source.where(("a", "other")) == "line 1"
    assert source.where(("missing",)) == "f.yaml"


def test_an_empty_document_is_null() -> None:
    assert parse("# nothing\n", "f.yaml").value is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 'f.yaml, line 3: duplicate key "a"'),
        ("a:\n  b: 1\n  b: 2\n", 'f.yaml, line 3: duplicate key "b"'),
        ("a: 1\n? [x]\n: 2\n", "f.yaml, line 2: a key must be a plain word"),
        ("a: 1\nb: c: d\n", "f.yaml, line 2: not valid YAML"),
        ("a: [1,\n", "f.yaml, line 2: not valid YAML"),
        ("a: 1\nb: *c\n", "f.yaml, line 2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "f.yaml, line 2: not valid YAML"),
        ("a: 1\nb: \x07\n", "f.yaml: not valid YAML: unacceptable character #x0007"),
        ("a: !!python/object:os.system x\n", "f.yaml, line 1: not valid YAML"),
        ("a: !!bool maybe\n", "f.yaml: not valid YAML"),
        ("a: !!timestamp soon\n", "f.yaml: not valid YAML"),
        ("a: " + "[" * 100_000, "f.yaml, line 1: not valid YAML: nested more than 100 levels deep"),
        ("a: " + "1" * 5000, "f.yaml: not valid YAML"),
    ],
)
def test_invalid_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_aliases_and_merges() -> None:
    source = parse("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\n", "f.yaml")
    assert source.value == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
    }
    assert source.where(("b", "x")) == "line 2"


@pytest.mark.parametrize(
    "level", ["a{i}: &a{i} [{nine}]", "a{i}: &a{i} {{<<: [{nine}]}}"], ids=["lists", "merges"]
)
def test_a_billion_laughs_take_no_time(level: str) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [level.format(i=i, nine=", ".join([f"*a{i - 1}"] * 9)) for i in range(1, 30)]
    started = time.perf_counter()
    parse("\n".join(lines), "f.yaml")
    assert time.perf_counter() - started < 5


_scalars = st.one_of(
    st.text(),
    st.text(alphabet="0123456789.eE+-_:x", min_size=1),
    st.text(alphabet="~ \n\t\r\x85\u2028'\"#-:<=&*", min_size=1),
    st.floats(allow_nan=False),
    st.integers(),
    st.booleans(),
    st.none(),
)


@given(_scalars)
def test_what_is_dumped_is_read_back_by_readers_of_both_versions(value: object) -> None:
    document = {"key": value, "items": [value]}
    text = dump(document)
    assert parse(text, "f.yaml").value == document
    assert yaml.safe_load(text) == document


@pytest.mark.parametrize("text", ["1e-4", "089", "no", "2001-01-01"])
def test_texts_that_look_like_other_types_are_quoted(text: str) -> None:
    assert dump({"key": text}) == f"key: '{text}'\n"


def test_line_breaks_are_written_as_such() -> None:
    assert dump({"input": "Tweet: {text}\nIs it?"}) == 'input: "Tweet: {text}\\nIs it?"\n'
