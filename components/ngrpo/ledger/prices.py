"""Prices of quantities, and how both are written."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.config.costs import CostsConfig
from ngrpo.environment import PRICES
from ngrpo.errors import ConfigError
from ngrpo.ledger.spending import Cost


def read_prices(text: str | None) -> CostsConfig:
    """Return the prices in `NGRPO_COSTS`; no prices if the text is None or empty.

    Raises:
        ConfigError: The text is not valid JSON of the section `costs`.
    """
    if not text:
        return CostsConfig()
    try:
        return CostsConfig.model_validate_json(text)
    except ValueError as error:
        raise ConfigError(
            f"{PRICES}: not the section `costs` as JSON; unset it, and set that section in the preset"
        ) from error


def money(cost: Cost, prices: CostsConfig) -> float | None:
    """Return a cost as an amount in `prices.currency`; None if no quantity in it has a price."""
    parts = [
        hours * price
        for hours, price in ((cost.gpu_hours, prices.gpu_hour), (cost.processor_hours, prices.cpu_hour))
        if hours and price is not None
    ]
    return sum(parts) if parts else None


def figures(cost: Cost, prices: CostsConfig) -> dict[str, float]:
    """Return the numbers of a cost by name, as metrics; unknown ones are left out."""
    known = {
        "hours": cost.seconds / 3600,
        "processor_hours": cost.processor_hours,
        "gpu_hours": cost.gpu_hours,
        "kwh": cost.kilowatt_hours,
        "money": money(cost, prices),
    }
    return {name: value for name, value in known.items() if value is not None}


def in_words(cost: Cost, prices: CostsConfig) -> str:
    """Return a cost in one line."""
    return ", ".join(_parts(cost, prices))


def _parts(cost: Cost, prices: CostsConfig) -> Iterator[str]:
    yield duration(cost.seconds)
    yield f"{digits(cost.processor_hours)} processor-hours"
    if cost.gpu_seconds:
        yield f"{digits(cost.gpu_hours)} GPU-hours"
        yield "energy unknown" if cost.kilowatt_hours is None else f"{digits(cost.kilowatt_hours)} kWh"
    price = money(cost, prices)
    if price is not None:
        yield f"{price:,.2f} {prices.currency}"


def price_of_a_point(cost: Cost, prices: CostsConfig, gain: float, interval: tuple[float, float]) -> str:
    """Return the cost per point of gain: in money if there are prices, else in GPU-hours or, without GPUs, in processor-hours.

    Args:
        cost: Cost of everything that led to the gain.
        prices: Prices.
        gain: Gain in percentage points.
        interval: Ends of its confidence interval.
    """
    low, high = interval
    if low <= 0:
        return f"none: the gain is not above zero ({gain:+.1f} points, interval {low:+.1f} to {high:+.1f})"
    amount, unit = _amount(cost, prices)
    return (
        f"{digits(amount / gain)} {unit} ({digits(amount / high)} to {digits(amount / low)}, by the interval of the gain: "
        f"{gain:+.1f} points, {low:+.1f} to {high:+.1f})"
    )


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, whichever suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def digits(value: float) -> str:
    """Return a quantity with three significant digits; from 1000 on with all its integer digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _amount(cost: Cost, prices: CostsConfig) -> tuple[float, str]:
    price = money(cost, prices)
    if price is not None:
        return price, prices.currency
    return (cost.gpu_hours, "GPU-hours") if cost.gpu_seconds else (cost.processor_hours, "processor-hours")
