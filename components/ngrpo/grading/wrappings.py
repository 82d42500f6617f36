r"""Remove formatting and lead-ins around an answer: `\mathbf{17}`, `{\large 17}`, `\text{The answer is }17`."""

from __future__ import annotations

import re

_DEEPEST = 20
"""Most nested commands that are removed; a hostile answer has thousands."""

_WRAPPER = re.compile(
    r"\\(?:boxed|fbox|(?:math|text)(?:bf|it|sf|tt)|textrm|mathrm|text|mbox|hbox|boldsymbol|bm|pmb|underline|(?:text)?color\s*\{[a-z]+\})\s*(?=\{)"
)
"""A command around the whole answer. Commands for words stay, because words are compared without them."""

_DECLARATION = re.compile(
    r"^(?:(?:\\(?:bf|it|rm|bfseries|(?:display|text)style|tiny|small|normalsize|large|Large|LARGE|huge|Huge"
    r"|therefore|implies|(?:R|r|Longr)ightarrow)(?![A-Za-z])|\\color\s*\{[a-z]+\}|=|∴|⇒|→)\s*)+"
)
_MARK_AT_END = re.compile(r"(?:\s|\\[ ,;:!]|\\q?quad(?![A-Za-z])|\\(?:checkmark|blacksquare|qed)(?![A-Za-z])|✓|■)+$")
_LEAD_IN = re.compile(
    r"^\s*(\\text\s*\{\s*)?(?:the )?(?:(?:final |correct )?answer(?: is)?\s*:?|(?:total|sum|result|solution|area|volume|perimeter)\s*:)"
    r"(?:\s*(\})|(?=\s)|(?<=:))\s*(?=\S)",
    re.IGNORECASE,
)


def unwrapped(text: str) -> str:
    """Return an answer without formatting of the whole answer."""
    for _ in range(_DEEPEST):
        previous = text
        text = _MARK_AT_END.sub("", _LEAD_IN.sub(_without_lead_in, _DECLARATION.sub("", text))).strip()
        for mark in ("**", "`"):
            if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
                text = text[len(mark) : -len(mark)].strip()
        wrapper = _WRAPPER.match(text)
        start = wrapper.end() if wrapper else 0
        if (
            text.startswith("{", start)
            and _closes_at_end(text[start:])
            and (not start or _is_formula(text[start + 1 : -1]))
        ):
            text = text[start + 1 : -1].strip()
        if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
            text = text[1:-1].strip()
        if text == previous:
            break
    return text


def _without_lead_in(words: re.Match[str]) -> str:
    return "" if words[2] or not words[1] else words[1]


def _is_formula(text: str) -> bool:
    """Whether it has a digit, no words or units except commands, and does not begin with the letter of a choice."""
    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    return bool(re.search(r"\d", text)) and not re.search(
        r"[A-Za-z]{2}|\d(?:\\[ ,;:]|[~\s])+[A-Za-z]|^\s*\([A-F]\)|[ap]\.\s?m\.", letters
    )


def _closes_at_end(text: str) -> bool:
    r"""Whether the brace at the start of a text is closed by its last character: `{5}`, not `{5}+{6}` or `\{5\}`."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.end() == len(text)
    return False
