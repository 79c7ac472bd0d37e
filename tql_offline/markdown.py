"""Untrusted text in Markdown: shown as it is, whatever it holds."""

import re
from typing import Any

from markupsafe import Markup


def escape_markdown(value: Any) -> Any:
    r"""Escape text so that Markdown shows it literally, on one line, even inside a table cell.

    >>> print(escape_markdown("a|b <i> tql_tiny"))
    a\|b \<i\> tql_tiny
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    line = re.sub(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", value)
    # An underscore inside a word is plain text, and names have many.
    return re.sub(r"[\\`*\[\]<>|&~$#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def code_block(text: str) -> Markup:
    """A Markdown code block, fenced by more backticks than the text has in a row."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}\n{text}\n{fence}")
