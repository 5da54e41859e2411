"""Taking secrets out of text that is shown to others. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

LEFT_OUT: Final = "[left out]"

_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_USER: Final = re.compile(r"(\w://)[^/\s\"'@]*(?::[^\s\"'@]*)?@")
"""A URL's user, with or without a password; which may have slashes, where somebody forgot to quote them."""
_JWT: Final = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*")
"""A token of Kubernetes (RFC 7519): its header is JSON in base64, which begins like this."""
_NAMED: Final = re.compile(
    r"""(?ix) ( \b (?:bearer|basic) [ ]+
    | (?:\b|[_-]) (?:password|passwd|secret|token|psk|client[_-]key(?:-data)?|flow_seed) ["']? [ ]* [:=] [ ]*
    | --[a-z-]* (?:password|secret|token) [ ]+ )
    ("[^"\n]*" | '[^'\n]*' | [^\s"',;}]+)"""
)
"""What stands behind the name of a secret: of a header, a variable, JSON, YAML or TOML, or of a flag."""


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without these, and without what looks like a secret: it is better to show too little."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, LEFT_OUT)
    text = _PEM.sub(LEFT_OUT, text)
    text = _USER.sub(rf"\1{LEFT_OUT}@", text)
    text = _JWT.sub(LEFT_OUT, text)
    return _NAMED.sub(rf"\1{LEFT_OUT}", text)
