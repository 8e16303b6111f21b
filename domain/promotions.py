"""Promotions: who became champion when, read back from the audit table."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Act(StrEnum):
    """What was done with a bundle."""

    PROMOTED = "promoted"
    FORCED = "forced"
    REFUSED = "refused"
    ROLLED_BACK = "rolled back"
    CHALLENGER = "challenger"

    @property
    def moves_champion(self) -> bool:
        """Whether the bundle is champion from then on."""
        return self not in (Act.REFUSED, Act.CHALLENGER)


@dataclass(frozen=True, slots=True)
class Move:
    """One act of the audit table, by the hashes of the champion before and of the bundle that it was about."""

    act: Act
    from_hash: str | None
    to_hash: str


def former_champion(history: Iterable[Move], champion: str) -> str | None:
    """The champion before this one; going back twice goes two back, not to and fro. None when there was none.

    `history` is in the order in which it happened.
    """
    line: list[str] = []
    for move in history:
        if not move.act.moves_champion:
            continue
        if not line and move.from_hash is not None:
            line.append(move.from_hash)
        if move.act is Act.ROLLED_BACK and move.to_hash in line:
            while line[-1] != move.to_hash:
                line.pop()
        elif not line or line[-1] != move.to_hash:
            line.append(move.to_hash)
    return line[-2] if len(line) > 1 and line[-1] == champion else None
