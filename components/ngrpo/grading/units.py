"""Units of quantities: the words and signs that name them, and equal spellings."""

from __future__ import annotations

import re

Unit = tuple[tuple[str, int], ...]
"""Names and powers, sorted by name: kilometres per hour are `(("hour", -1), ("km", 1))`. Empty for no unit."""

PERCENT: Unit = (("percent", 1),)

CURRENCIES = {
    "€": "euro",
    "£": "sterling",
    "¥": "yen",
    "₹": "rupee",
    "₽": "ruble",
    "₩": "won",
    "₪": "shekel",
    "฿": "baht",
    "₺": "lira",
}

_SPELLINGS = {
    "nm": "nm nanometer nanometre",
    "micrometer": "um micron micrometer micrometre",
    "angstrom": "angstrom",
    "parsec": "pc parsec",
    "kpc": "kpc kiloparsec",
    "lightyear": "ly lightyear",
    "mole": "mol mole",
    "erg": "erg",
    "dyne": "dyne",
    "ev": "ev electronvolt",
    "kev": "kev",
    "gev": "gev",
    "kj": "kj kilojoule",
    "kcal": "kcal kilocalorie",
    "kpa": "kpa kilopascal",
    "atm": "atm atmosphere",
    "khz": "khz kilohertz",
    "mhz": "mhz megahertz",
    "ghz": "ghz gigahertz",
    "coulomb": "c coulomb",
    "tesla": "tesla",
    "gauss": "gauss",
    "rpm": "rpm",
    "gyr": "gyr",
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre mtr",
    "km": "km kilometer kilometre",
    "inch": "in inch",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "mg": "mg milligram",
    "g": "g gm gram",
    "kg": "kg kilogram kilo",
    "ton": "ton tonne",
    "ounce": "oz ounce",
    "pound": "lb pound",
    "ml": "ml milliliter millilitre",
    "cl": "cl centiliter centilitre",
    "l": "l liter litre",
    "gallon": "gal gallon",
    "quart": "qt quart",
    "pint": "pt pint",
    "cup": "cup",
    "tablespoon": "tbsp tablespoon",
    "teaspoon": "tsp teaspoon",
    "acre": "acre",
    "hectare": "ha hectare",
    "ms": "ms millisecond",
    "second": "s sec second",
    "minute": "min minute",
    "hour": "h hr hour",
    "day": "day",
    "week": "wk week",
    "month": "month",
    "year": "yr year",
    "decade": "decade",
    "century": "century centuries",
    "am": "am",
    "pm": "pm",
    "degree": "deg degree °",
    "radian": "rad radian",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "kelvin": "k kelvin",
    "joule": "j joule",
    "newton": "n newton",
    "watt": "w watt",
    "kw": "kw kilowatt",
    "volt": "v volt",
    "ampere": "a amp ampere",
    "ohm": "ohm",
    "hertz": "hz hertz",
    "pascal": "pa pascal",
    "percent": "percent percentage pct",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro eur",
    "rupee": "rupee rs inr",
    "yen": "yen",
    "dime": "dime",
    "nickel": "nickel",
    "penny": "penny pennies pence",
    "unit": "unit",
    "th": "th st nd rd",
    "person": "person people",
    "man": "man men",
    "woman": "woman women",
    "child": "child children",
    "vertex": "vertex vertices",
    "die": "die dice",
    "mouse": "mouse mice",
    "city": "city cities",
    "penalty": "penalty penalties",
    "party": "party parties",
    "possibility": "possibility possibilities",
    "family": "family families",
    "berry": "berry berries",
    "candy": "candy candies",
    "body": "body bodies",
    "story": "story stories",
    "ferry": "ferry ferries",
}
_COUNTED = (
    "apple arrangement ball balloon banana bean bird bit block board boat bolt book bottle bowl box boy brick bus byte cake "
    "calorie can candle car card case cat chair chapter chicken chip choice class club coin color colour combination cookie cow "
    "crayon cube cupcake customer cycle desk diagonal digit divisor dog donut doughnut dot edge egg element employee envelope "
    "event face fish flower friend game gift girl goal goat grape group guest hat head hen hole horse house integer intersection "
    "item jar job key kid lap leaf lemon letter light line lion marble mark match meal member mistake monkey move multiple muffin "
    "nut orange orderedpair outcome outfit page pancake part passenger path peach pear pen pencil permutation photo pie piece pigeon pizza "
    "plant plate player point prime prize problem pupil question rabbit rectangle ribbon road rock room rose rotation round route "
    "row seat section set shape sheep shelf shirt shoe side sock solution song staff stamp star step stick sticker stone student "
    "subset sweet table task teacher team term ticket tile time toy train tree triangle trip truck value visitor vote voter way "
    "win word worker "
)
_PRIMES: dict[Unit, tuple[Unit, ...]] = {
    (("prime", 1),): ((("foot", 1),), (("minute", 1),)),
    (("doubleprime", 1),): ((("inch", 1),), (("second", 1),)),
}
_SQUARED, _CUBED = {"square", "sq"}, {"cubic", "cu"}
_WHOLE = {
    "mph": (("hour", -1), ("mile", 1)),
    "kmh": (("hour", -1), ("km", 1)),
    "kph": (("hour", -1), ("km", 1)),
    "kmph": (("hour", -1), ("km", 1)),
    "fps": (("foot", 1), ("second", -1)),
    "cc": (("cm", 3),),
}

NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
NAMES |= {word: word for word in _COUNTED.split() if word not in NAMES} | {"doubleprime": "doubleprime"}
_WORDS = {"per", "squared", "cubed", *_SQUARED, *_CUBED, *_WHOLE}
_POWER = re.compile(r"\^\{?([+-]?\d+)\}?")


def is_unit_word(word: str) -> bool:
    """Whether a word in lower case may be part of the name of a unit."""
    return word in _WORDS or _name(word) is not None


def read_unit(tokens: list[str]) -> tuple[Unit, list[str]]:
    """Read the name of a unit.

    Args:
        tokens: Words in lower case, `/`, and powers such as `^2`.

    Returns:
        The unit, and the tokens that do not belong to one.
    """
    powers: dict[str, int] = {}
    others = []
    sign, next_power, latest = 1, 1, ""
    for index, token in enumerate(tokens):
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        power = _POWER.fullmatch(token)
        if token in ("per", "/"):
            sign = -1
        elif token in _SQUARED | _CUBED and _name(following):
            next_power = 2 if token in _SQUARED else 3
        elif (power or token in ("squared", "cubed")) and latest:
            exponent = int(power[1]) if power else {"squared": 2, "cubed": 3}[token]
            powers[latest] += sign * (exponent - 1)
        elif token in _WHOLE:
            for part, exponent in _WHOLE[token]:
                powers[part] = powers.get(part, 0) + exponent
        elif token in ("c", "f") and latest == "degree":
            powers["celsius" if token == "c" else "fahrenheit"] = powers.pop("degree")
            latest = ""
        elif (name := _name(token)) is not None:
            if name in ("celsius", "fahrenheit"):
                powers.pop("degree", None)
            powers[name] = powers.get(name, 0) + sign * next_power
            next_power, latest = 1, name
        else:
            others.append(token)
            latest = ""
    return tuple(sorted((name, power) for name, power in powers.items() if power)), others


def units_agree(gold: Unit, answer: Unit) -> bool:
    """Whether two units are the same, or one is missing; a prime is that of feet or of minutes."""
    return (
        not gold
        or not answer
        or gold == answer
        or any(one in _PRIMES and other in _PRIMES[one] for one, other in ((gold, answer), (answer, gold)))
    )


def _name(word: str) -> str | None:
    if word in NAMES:
        return NAMES[word]
    for ending in ("s", "es"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1 and stem in NAMES:
            return NAMES[stem]
    return None
