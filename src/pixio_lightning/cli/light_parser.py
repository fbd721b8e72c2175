"""The parser of verbs that take few options: a mistake is one line, with the nearest word."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any, NoReturn

from pixio_lightning.errors import UserError, nearest


class LightParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line.

    Args:
        prog: The command, as `pixio cp`.
        description: What it does.
        usage: What a mistake shows of how it is called; None shows all options.
    """

    def __init__(self, prog: str, *, description: str, usage: str | None = None) -> None:
        super().__init__(prog, description=description, usage=usage, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as a UserError with the usage."""
        usage = " ".join(self.format_usage().split())
        raise UserError(f"{message} ({usage})")

    def add_argument(
        self, *names: Any, choices: Collection[str] | None = None, **options: Any
    ) -> argparse.Action:
        """Add an argument; for a word that is none of `choices` the nearest one is told."""
        if choices is None:
            return super().add_argument(*names, **options)
        listed = ", ".join(choices)

        def chosen(word: str) -> str:
            if word not in choices:
                raise argparse.ArgumentTypeError(
                    f"'{word}' is none of {listed}{nearest(word, choices)}"
                )
            return word

        shown = "{" + ",".join(choices) + "}"  # as argparse shows them in help
        return super().add_argument(*names, type=chosen, metavar=shown, **options)
