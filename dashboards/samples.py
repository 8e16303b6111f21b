"""Samples by key: keys are hashes, so that those which begin low enough are a fair sample of rows, and the same one at
each look; the primary keys find them."""

MOST_ROWS = 50_000
"""Of more rows than this a share is looked at, unless all are asked for."""
_DIGITS = 8
"""Hexadecimal digits of the bound: a share is exact to 16 to the minus eighth."""


def share_of(rows: int) -> float:
    """The share of so many rows that is looked at unless all are asked for: a power of 1/16."""
    share = 1.0
    while rows * share > MOST_ROWS:
        share /= 16
    return share


def below(share: float) -> str:
    """The key below which this share of the rows lies; hexadecimal digits end with f, so that `g` bounds nothing."""
    return "g" if share >= 1 else f"{int(share * 16**_DIGITS):0{_DIGITS}x}"
