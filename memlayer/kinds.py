"""Which texts say the same: those that are equal but for case, spaces and punctuation.

They are one hit, with a count. Texts that differ in a number, a name or a code are never one, so not all punctuation is
nothing: the point of "1.5", the sign of "-5", the end of "C#" and of "A-", and the space between two numbers stay.
Signs that are no punctuation (+, %, $, pictures) always do.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from memlayer.languages import MARKS

__all__ = ["kind_of"]

_BETWEEN: Final = re.compile(f"(?:(?![{MARKS}])[\\W_])+")
# Most of it: what stands between two words, the second of them no number. Taken out first, at a tenth of the cost.
_NOTHING: Final = re.compile(r"(?<=[^\W_])[\s.,;:!?'\"()]+(?=[^\W\d_])")
# Quotes, dashes, brackets, full stops, and what nobody sees: joiners, variation selectors, soft hyphens.
_PUNCTUATION: Final = frozenset(
    ".,;:!?'\"()[]{}/\\|*_`~#-"
    "\u2018\u2019\u201a\u00ab\u00bb\u2039\u203a\u201c\u201d\u201e\u2026\u2013\u2014\u2010"
    "\u2011\u00b7\u3002\u3001\u300c\u300d\u300e\u300f\u3010\u3011\u300a\u300b\u30fb\u00bf\u00a1\ufe0e\ufe0f\u200b\u200d\u00ad"
)
# To NFKC these are digits, and ten squared would be 102.
_RAISED: Final = re.compile("[\u00b2\u00b3\u00b9\u2070-\u209c]")


def kind_of(text: str) -> int:
    """A hash, of this process only, that texts of one kind share."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _RAISED.sub(lambda digit: f"^{digit[0]}", text))
    folded = _NOTHING.sub("", text.casefold())
    return hash(_BETWEEN.sub(_said, folded) or folded)


def _said(between: re.Match[str]) -> str:
    """What counts of the characters between two words."""
    text, run, start, end = between.string, between[0], between.start(), between.end()
    before = text[start - 1] if start else ""
    behind = text[end] if end < len(text) else ""
    # A digit keeps what touches it from the left.
    touching = run.rsplit(maxsplit=1)[-1] if behind.isdigit() and not run[-1].isspace() else ""
    rest = run[: len(run) - len(touching)]
    said = "".join(sign for sign in rest if sign not in _PUNCTUATION and not sign.isspace())
    if before and rest[:1] in ("#", "-") and (len(run) > 1 or not behind):
        # A word keeps these where no other follows.
        said = rest[0] + said
    if before.isdigit() and behind.isdigit() and not said and not touching:
        return " "
    return said + touching
