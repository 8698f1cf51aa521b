"""Keep secrets out of what is shown and written."""

from __future__ import annotations

import os
import re

_NAMES = re.compile(r"(TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY|CREDENTIALS)S?$", re.IGNORECASE)
_SHORTEST = 8
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_secrets(text: str) -> str:
    """Write `***` for the values of variables such as HF_TOKEN, and for `user:password@`."""
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("***", text)
