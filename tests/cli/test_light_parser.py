"""Mistakes that the parser of light verbs tells."""

from __future__ import annotations

import pytest

from pixio_lightning.cli.light_parser import LightParser
from pixio_lightning.errors import UserError


def parser() -> LightParser:
    made = LightParser("pixio colour", description="Choose.")
    made.add_argument("--as", dest="form", choices=("red", "green"), help="which")
    return made


def test_a_word_that_is_no_choice_is_told_with_the_nearest() -> None:
    assert parser().parse_args(["--as", "red"]).form == "red"
    said = "argument --as: 'gren' is none of red, green, did you mean 'green'"
    with pytest.raises(UserError, match=said):
        parser().parse_args(["--as", "gren"])
    with pytest.raises(UserError, match=r"'x' is none of red, green \(usage: pixio colour"):
        parser().parse_args(["--as", "x"])


def test_help_shows_the_choices() -> None:
    assert "--as {red,green}" in parser().format_help()
