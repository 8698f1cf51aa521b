import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.terminal import message, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, schön 😀\n\tand more", "plain, schön 😀\n\tand more"),
        ("\x1b[31mred", r"\x1b[31mred"), ("\x9b2J", r"\x9b2J"), ("a\rb", r"a\rb"),
        ("\x07\x00\x7f", r"\x07\x00\x7f"), ("\u202egpj.exe", r"\u202egpj.exe"),
        ("half \ud800", r"half \ud800"),
    ],
)  # fmt: skip
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


def test_a_message_is_never_longer_than_a_screen_takes() -> None:
    short, long = message(f"short\n{'a' * 500}{'b' * 100_000}{'c' * 300}").split("\n")
    assert short == "short"
    assert len(long) <= 1_000
    assert long.startswith("a" * 500 + "b")
    assert long.endswith("b [...] " + "c" * 200)
