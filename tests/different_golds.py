r"""500 gold answers of the kinds that MATH-500 has, no two of which are the same answer; and equal ways to write each.

A unit may be left out, and a percentage given as its number, so numbers that occur with a unit do not occur without one.
"""

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83)
NAMES = (
    "Evelyn", "Navin", "Monday", "Tuesday", "Thursday", "yes", "no", "even", "odd", "neither", "June 20", "June 21", "July 20",
    "ellipse", "hyperbola", "parabola", "circle", "red", "blue", "Briana and Debra",
)  # fmt: skip
UNITS = (
    "mm", "cm", "m", "km", "inches", "feet", "miles", "grams", "kg", "pounds", "hours", "minutes", "seconds", "days", "km/h", "mph", "m/s",
    "square cm", "cubic cm", "liters",
)  # fmt: skip
WORDS = (
    r"211\text{ hundred}", r"211\text{ thousand}", r"211\text{ million}", r"211\text{ billion}", r"211\text{ dozen}",
    r"211\text{ halves}", r"211\text{ or more}", r"211\text{ or less}", r"\text{more than }211", r"\text{less than }211",
    r"\text{about }211", r"211\text{ does not work}", r"211\text{ is impossible}", r"211\text{ factorial}", r"211\text{ squared}",
    r"\text{not }211", r"3\text{ hours and }211\text{ minutes}", r"3\text{ hours and }212\text{ minutes}",
    r"211\text{ feet by }3\text{ feet}", r"211\text{ if it rains}",
)  # fmt: skip
POWERS = (
    "10!", "11!", "12!", "2^{31}", "2^{33}", "3^{31}", r"\log_2 7", r"\log_3 7", r"\log_7 2", r"\ln 7", r"\ln 5", "e^2", "e^3", "2e",
    r"\binom{31}{4}", r"\binom{31}{5}", r"\frac{1}{7!}", "2^{-31}", r"\sqrt[3]{7}", r"\sqrt[5]{7}",
)  # fmt: skip
EXTREMES = (
    r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}", r"\frac{1}{3^{60}}", r"\frac{10^{20}+1}{10^{20}}", r"\frac{10^{20}-1}{10^{20}}",
    r"\frac{1}{10^{20}}", r"\frac{1}{10^{21}}", r"\frac{2^{99}+1}{3\cdot 2^{100}}", r"\frac{1}{3\cdot 2^{100}}", "10^{20}+1", "10^{20}",
    "10^{20}-1", "0.00000001", "0.00000002", r"\sqrt{10^{30}+1}", r"\sqrt{10^{30}}", r"\pi+10^{-70}", r"\pi-10^{-70}", "1e+16", "1e+17",
)  # fmt: skip

GOLDS: dict[str, tuple[str, ...]] = {
    "integers": (*(str(1000 + 7 * n) for n in range(10)), *(str(-1000 - 7 * n) for n in range(10))),
    "fractions": (
        *(rf"\frac{{{n}}}{{{PRIMES[n]}}}" for n in range(1, 11)),
        *(rf"-\frac{{{n}}}{{{PRIMES[n]}}}" for n in range(1, 11)),
    ),
    "mixed numbers": tuple(rf"{n}\frac{{2}}{{{prime}}}" for n, prime in enumerate(PRIMES, 2)),
    "decimals": tuple(f"{n}.{n:03d}{prime}" for n, prime in enumerate(PRIMES, 1)),
    "percentages": tuple(rf"{n + 0.5}\%" if n % 2 else rf"{n}\%" for n in range(321, 341)),
    "money": tuple(rf"\${n}.{n % 90 + 10}" for n in range(401, 421)),
    "roots": tuple(rf"{n}\sqrt{{{prime}}}" for n, prime in enumerate(PRIMES, 2)),
    "multiples of pi": (
        *(rf"{n}\pi" for n in range(2, 12)),
        *(rf"\frac{{{n}\pi}}{{{prime}}}" for n, prime in enumerate(PRIMES[:10], 2)),
    ),
    "complex numbers": tuple(f"{n}{'+' if n % 2 else '-'}{n % 5 + 2}i" for n in range(1, 21)),
    "intervals": tuple(f"{left}{n},{n + 3}{right}" for n in range(5) for left, right in ("[]", "[)", "(]", "()")),
    "unions": tuple(
        rf"(-\infty,{n}{close}\cup{start}{n + 2},\infty)"
        for n in range(5)
        for close, start in ((")", "("), ("]", "("), (")", "["), ("]", "["))
    ),
    "points": (*(f"({n + 4},{-n})" for n in range(1, 11)), *(f"({n},{n + 1},{-n})" for n in range(1, 11))),
    "sets": (*(rf"\{{{n},{n + 11}\}}" for n in range(10)), *(rf"\{{{-n},{n},{n + 9}\}}" for n in range(1, 11))),
    "matrices": (
        *(rf"\begin{{pmatrix}}{n}\\{n + 1}\end{{pmatrix}}" for n in range(10)),
        *(rf"\begin{{pmatrix}}{n}&2\\0&{n + 3}\end{{pmatrix}}" for n in range(10)),
    ),
    "polynomials": (*(f"x^2+{n}x-{n + 1}" for n in range(2, 12)), *(f"x^3-{n}x^2y+y^3" for n in range(2, 12))),
    "lines": (*(f"y={n}x+{n + 1}" for n in range(2, 12)), *(f"y=-{n}x+{n + 1}" for n in range(2, 12))),
    "circles": tuple(f"(x-{n})^2+(y+{n + 1})^2={n + 30}" for n in range(1, 21)),
    "bases": tuple(f"1{n:03b}_{{{base}}}" for n in range(5) for base in (2, 3, 5, 8)),
    "degrees": tuple(rf"{n}^\circ" for n in range(501, 521)),
    "units": tuple(rf"601\text{{ {unit}}}" for unit in UNITS),
    "texts": tuple(rf"\text{{{name}}}" for name in NAMES),
    "times": (*(rf"{n}:05\text{{ a.m.}}" for n in range(1, 11)), *(rf"{n}:05\text{{ p.m.}}" for n in range(1, 11))),
    "words": WORDS,
    "powers": POWERS,
    "extremes": EXTREMES,
}  # fmt: skip
"""By kind, in LaTeX."""
GOLDS["trigonometry"] = tuple(rf"\{name} {n}" for name in ("sin", "cos", "tan", "arctan") for n in range(3, 8))
GOLDS["inequalities"] = tuple(
    rf"x{sign} {number}"
    for number in (r"-2", r"\frac{5}{2}", "7", "8", r"\sqrt{3}")
    for sign in ("<", r"\le", ">", r"\ge")
)
GOLDS["sequences"] = tuple(f"{n},{n + 20},{n + 45}" for n in range(1, 21))
for _kind in ("unions", "sequences", "circles"):  # fewer of these, so that there are 500 in all
    GOLDS[_kind] = GOLDS[_kind][::2]
GOLDS["matrices"] = GOLDS["matrices"][::2]
GOLDS["bases"] = GOLDS["bases"][::2]
GOLDS["inequalities"] = GOLDS["inequalities"][:10]


def spellings(gold: str) -> list[str]:
    """Return other ways to write a gold answer."""
    typeset = (
        gold.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)").replace(r"\text", r"\mathrm")
    )
    return [
        f"{gold}.",
        rf"\({gold}\)",
        f" {{{gold}}} ",
        gold.replace(",", ", "),
        typeset if "]" not in gold and "[" not in gold else gold,
    ]
