r"""Hostile answers from a grammar of LaTeX, Python and separators, and what grading them must not do.

Every answer is a function of its number. Most have a payload in a place where a name, a number or a text is expected; the payload
creates a file, the canary. Code that does nothing, an opened file or a started process is seen by the worker's own watch, which
ends it: the error then says so.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from ngrpo.grading.grader import Grade

SEPARATORS = [
    *map(chr, range(0x21)),
    "\x7f",
    "\x85",
    "\xa0",
    "\xad",
    "\u200b",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ud800",
    ";",
]
NAMES = [
    "x",
    "y",
    "n",
    "i",
    "e",
    "E",
    "I",
    "S",
    "N",
    "oo",
    "pi",
    "lambda",
    "import",
    "None",
    "__class__",
    "_",
    "sin",
    "eval",
]
NAMES += [
    "__import__",
    "dummy",
    "exec",
    "x_1",
    "x_{12}",
    "x_{a_b}",
    r"\alpha",
    r"\theta'",
    "x'",
    r"x^{\prime}",
    "\u03b1",
    "\u0435",
    "O",
]
NUMBERS = [
    "0",
    "1",
    "-2",
    "007",
    "3.14",
    "1,000",
    "1e5",
    "10^{-3}",
    "0.\\overline{3}",
    "0x10",
    "1_000",
    "\u0665",
    "\u00bd",
    "9" * 30,
]
WRAPPERS = [
    r"\bar{%s}",
    r"\hat{%s}",
    r"\vec{%s}",
    r"\text{%s}",
    r"\mathrm{%s}",
    r"\mathbf{%s}",
    r"\operatorname{%s}",
    r"\operatorname{%s}(x)",
    r"\mbox{%s}",
    r"\overline{%s}",
    r"\begin{%s}1\end{%s}",
    r"x_{%s}",
    r"\%s",
    r"%s",
    r'"%s"',
    r"'%s'",
    r"\$%s\$",
]
SHAPES = [
    r"\sum_{n=0}^{\infty} %s^n",
    r"\sum_{n=1}^{\infty} \frac{%s^n}{n!}",
    r"\{\sum_{n=0}^{\infty} %s^n\}",
    r"\prod_{k=1}^{n} %s",
    r"\int_0^1 %s \, dx",
    r"\int %s",
    r"\lim_{x \to 0} %s",
    r"\frac{d}{dx} %s",
    r"\sqrt[3]{%s}",
    r"\left(%s\right)",
    r"\{%s, 2\}",
    r"[%s, \infty)",
    r"(-\infty, %s) \cup (1, 2)",
    r"\begin{pmatrix} %s & 1 \\ 0 & 2 \end{pmatrix}",
    r"\begin{cases} %s & x > 0 \\ 1 \end{cases}",
    r"\det\left(%s\right)",
    r"%s = 5",
    r"x \in \{%s\}",
    r"x > %s",
    r"|%s|",
    r"\lfloor %s \rfloor",
    r"\sin(%s)",
    r"\log_{2} %s",
    r"%s \pmod{7}",
    r"%s\%%",
    r"%s^\circ",
    r"%s\text{ cm}",
    r"%s!",
    r"\binom{%s}{2}",
    r"f(%s)",
    r"%s + \frac{1}{2}",
    r"-%s^{2}",
    r"2^{%s}",
]


def pair(number: int, canary: Path) -> tuple[str, str]:
    """Return the gold answer and the answer of this number; of one in eight, it is the gold answer that is hostile."""
    chance = random.Random(number)
    ordinary = chance.choice(
        ["5", r"\frac{1}{3}", r"3\sqrt{13}", "x^2+1", r"\{1, 2\}", "(1, 5)", r"\frac{\pi^2}{6}", "x > 5"]
    )
    hostile = _expression(chance, canary, depth=chance.choice((1, 1, 2, 2, 3, 4)))
    if chance.random() < 0.1:
        hostile = _garbled(chance, hostile)
    return (hostile, ordinary) if chance.random() < 0.125 else (ordinary, hostile)


def _expression(chance: random.Random, canary: Path, depth: int) -> str:
    if not depth:
        return _leaf(chance, canary)
    shape = chance.choice(SHAPES)
    if chance.random() < 0.02:
        return r"\left(" * 40 + _leaf(chance, canary) + r"\right)" * 40
    return shape % _expression(chance, canary, depth - 1)


def _leaf(chance: random.Random, canary: Path) -> str:
    kind = chance.random()
    if kind < 0.15:
        return chance.choice(NUMBERS)
    if kind < 0.3:
        return chance.choice(NAMES)
    wrapper = chance.choice(WRAPPERS)
    inside = chance.choice(NAMES) if kind < 0.4 else _payload(chance, canary)
    return wrapper.replace("%s", inside)


def _payload(chance: random.Random, canary: Path) -> str:
    path = repr(str(canary))
    code = chance.choice(
        [f"open({path},'w')", f"__import__('os').system('touch '+{path})", f"__import__('os').mkdir({path})"]
    )
    spelled = "+".join(f"chr({ord(character)})" for character in code)
    # Spelled by its characters, it is long for the parser: few answers should spend their time there.
    action = code
    if chance.random() < 0.15:
        action = chance.choice([f"exec({spelled})", f"eval({spelled})", f"(lambda:exec({spelled}))()"])
    separator = chance.choice(SEPARATORS) * chance.choice((0, 1, 1, 1, 2))
    start = chance.choice(["", ")", "))", "]", "}", "'", '"', "x)", "x))", "0,", "x if ", ":", "*)", "\\", "#"])
    end = chance.choice(["", "#", "(", "[", "'", '"', "or x", "\\", ", (x", separator])
    return start + separator + action + end


def _garbled(chance: random.Random, text: str) -> str:
    """Take away, double or replace a few characters."""
    characters = list(text)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(characters))
        characters[place] = chance.choice(
            ["", characters[place] * 2, chance.choice(SEPARATORS), chance.choice(r"{}\()^_&$")]
        )
        characters = characters or [""]
    return "".join(characters)


def faults(pairs: Sequence[tuple[str, str]], grades: Sequence[Grade]) -> list[str]:
    """Say what went wrong: an answer that did what it must not, a worker that died of it, a module that is not loaded in time."""
    wrong = (
        "refused: ",
        "the grading worker ",
        "ModuleNotFoundError",
        "No module named",
        "NotImplementedError: code generation",
    )
    return [
        f"{answer!r} against {gold!r}: {grade.error}"
        for (gold, answer), grade in zip(pairs, grades, strict=True)
        if grade.error and any(words in grade.error for words in wrong)
    ]
