"""YAML is read as it stands there, or refused."""

from __future__ import annotations

import pytest

from pixio_lightning.files import parse_yaml


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 1}", "- {rows: {a: 1, 'a': 2}}", "1: a\n1: b"]
)
def test_a_key_that_stands_twice_in_a_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"the key \w+ stands there twice.* line \d"):
        parse_yaml(text)


def test_keys_of_other_tables_and_of_another_kind_are_others() -> None:
    assert parse_yaml("a: {a: 1}\nb: {a: 2}\n1: one\n'1': text") == {
        "a": {"a": 1},
        "b": {"a": 2},
        1: "one",
        "1": "text",
    }


def test_a_table_may_change_what_it_takes_from_another() -> None:
    text = "first: {inner: &one {a: 1, b: 2}}\nouter: {<<: *one, a: 3}\nlist: [*one, {<<: *one}]"
    found = parse_yaml(text)
    assert found["outer"] == {"a": 3, "b": 2} and found["list"] == [{"a": 1, "b": 2}] * 2
    # An anchor that itself takes from another, before it is met.
    nested = "x: {y: {z: &two {<<: {a: 1}, a: 2}}}\nw: {<<: *two, b: 3}"
    assert parse_yaml(nested)["w"] == {"a": 2, "b": 3}


def test_what_is_nested_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_yaml("a: " + "[" * 5000)
