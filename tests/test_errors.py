"""Messages are one line that a terminal only shows, whatever they quote."""

from pixio_lightning.errors import UserError, printable


def test_text_of_a_file_cannot_move_the_cursor() -> None:
    hostile = "a\x1b[2J\rb\x9b31m\nc\u202ed\u2028e\x00é"
    assert printable(hostile) == "a?[2J b?31m c?d e?é"
    assert str(UserError(f"no '{hostile}'")) == "no 'a?[2J b?31m c?d e?é'"
    assert len(printable("x" * 10**7)) == 200 and printable("x" * 10**7).endswith("...")
    assert printable("depth 3, 日本") == "depth 3, 日本"
