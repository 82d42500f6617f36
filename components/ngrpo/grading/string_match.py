r"""The string match by which the authors' release scores MATH-500. It is reported beside the verdict, and never replaces it.

It is the comparison of the MATH data set (Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset, 2021) in
the form of verl's scorer `math`: a few rules rewrite the characters of both answers, which must then be equal. Values are not
compared: `\frac{2}{4}` is not `\frac{1}{2}`. Unlike the graders of `ngrpo.grading.grader` it takes the last box of the whole response,
even one inside the thought.
"""

from __future__ import annotations

import re

_UNIT = r"\text{ "  # how the data set begins a unit
_REPLACED = (
    ("\n", ""),
    (r"\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    *((command, "") for command in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", r"\\%", r"\%")),
    (" .", " 0."),
    ("{.", "{0."),
)
_BRACE = re.compile(r"[{}]")
_SHORT_ROOT = re.compile(r"\\sqrt([^{])")
_SHORT_FRACTION = re.compile(r"\\frac([^{])(?:\{|(.))")
_INTEGER = r"(0|-?[1-9][0-9]*)"
_SLASHED = re.compile(rf"{_INTEGER}/{_INTEGER}")


def string_match(text: str, gold: str) -> bool:
    r"""Whether the last box of a response and a gold answer are equal after rewriting.

    Args:
        text: The response.
        gold: The gold answer.

    Returns:
        False if the last box is not closed, or there is none.
    """
    answer = _last_box(text)
    if answer is None:
        return False
    if max(answer.count(_UNIT), gold.count(_UNIT)) > 1:  # the rules handle one unit only
        return answer == gold
    return _rewritten(answer) == _rewritten(gold)


def _last_box(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}`. After `\boxed ` the answer extends to the end of the response, or of its formula."""
    unbraced = text.rpartition(r"\boxed ")
    if unbraced[1]:
        return unbraced[2].partition("$")[0]
    start = text.rfind(r"\boxed")
    if start < 0 or not text.startswith(r"\boxed{", start):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + len(r"\boxed{") : brace.start()]
    return None


def _rewritten(answer: str) -> str:
    for old, new in _REPLACED:
        answer = answer.replace(old, new)
    answer = answer.partition(_UNIT)[0]
    if answer.startswith("."):
        answer = f"0{answer}"
    name, equals, value = answer.partition("=")
    if equals and "=" not in value and len(name) <= 2:  # x = 5
        answer = value
    answer = _SHORT_ROOT.sub(r"\\sqrt{\1}", answer).replace(" ", "")
    answer = _SHORT_FRACTION.sub(_braced, answer)
    if answer == "0.5":
        return r"\frac{1}{2}"
    return _SLASHED.sub(r"\\frac{\1}{\2}", answer) if _SLASHED.fullmatch(answer) else answer


def _braced(fraction: re.Match[str]) -> str:
    over = "{" if fraction[2] is None else f"{{{fraction[2]}}}"
    return rf"\frac{{{fraction[1]}}}{over}"
