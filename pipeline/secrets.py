"""Secrets kept out of what people read: logs, artifacts, signed statements.

A secret is the value of an environment variable whose name says so, the user part of a URL, or a private key in PEM.
When not to rely on it: for a secret that stands in a parameter or a document; neither is a place for one.
"""

from __future__ import annotations

import os
import re

HIDDEN = "[hidden]"
SHORTEST = 6
"""Characters; a shorter value (`0`, `true`) says nothing and would hide too much."""

_NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE)
_URL = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact(text: str) -> str:
    """The text with every secret replaced by `[hidden]`."""
    for name, value in os.environ.items():
        if _NAME.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return _PEM.sub(HIDDEN, _URL.sub(HIDDEN, text))
