"""Money: from tokens to USD."""

from domain.requests import Usage
from domain.workloads import Prices


def usd(usage: Usage, prices: Prices) -> float:
    """Price of one call, USD; prompt tokens from the prefix cache at their own price where one is given."""
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    fresh = usage.prompt - usage.cached
    return (fresh * prices.input + usage.cached * cached_price + usage.completion * prices.output) / 1_000_000
