"""Text that is safe to show: printable in a terminal, and without secrets."""

from __future__ import annotations

import os
import re

# control characters except tab and line feed; bidirectional controls, which can disguise a text;
# lone surrogates, which cannot be encoded
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_LONGEST = 1_000


def printable(text: str) -> str:
    r"""Escape the characters that a terminal would interpret, as in `\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def message(text: str) -> str:
    """Return `text` printable, without secrets and without the middle of very long lines."""
    return "\n".join(
        line if len(line) <= _LONGEST else f"{line[: _LONGEST - 210]} [...] {line[-200:]}"
        for line in printable(without_secrets(text)).split("\n")
    )


_NAMES = re.compile(r"(TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS)S?$", re.IGNORECASE)
_SHORTEST = 8
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_secrets(text: str) -> str:
    """Write `***` for the values of variables such as HF_TOKEN, and for `user:password@`."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("***", text)
