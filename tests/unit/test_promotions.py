"""Who was champion before, read from the audit table."""

import pytest

from domain.promotions import Act, Move, former_champion

P, F, R, B, C = Act.PROMOTED, Act.FORCED, Act.REFUSED, Act.ROLLED_BACK, Act.CHALLENGER


def history(*steps: tuple[Act, str], first: str | None = None) -> tuple[list[Move], str]:
    """The audit rows that these acts leave behind, and who is champion then."""
    champion, moves = first, list[Move]()
    for act, to in steps:
        moves.append(Move(act, champion, to))
        champion = champion if act in (R, C) else to
    return moves, champion or ""


@pytest.mark.parametrize(
    ("steps", "first", "before"),
    [
        ([], "a", None),
        ([(P, "a")], None, None),
        ([(P, "a"), (P, "b")], None, "a"),
        ([(P, "b")], "a", "a"),
        ([(P, "a"), (P, "a")], None, None),
        ([(P, "a"), (P, "b"), (P, "b")], None, "a"),
        ([(P, "a"), (R, "b")], None, None),
        ([(P, "a"), (F, "b"), (R, "c")], None, "a"),
        ([(P, "a"), (C, "b")], None, None),
        ([(C, "b"), (P, "a"), (C, "c"), (P, "d"), (C, "e")], None, "a"),
        ([(P, "a"), (P, "b"), (P, "c"), (B, "b")], None, "a"),
        ([(P, "a"), (P, "b"), (P, "c"), (B, "b"), (B, "a")], None, None),
        ([(P, "a"), (P, "b"), (B, "a"), (P, "c")], None, "a"),
        ([(P, "a"), (P, "b"), (P, "a")], None, "b"),
        ([(P, "a"), (P, "b"), (P, "a"), (B, "b")], None, "a"),
    ],
)
def test_going_back_leads_to_the_champion_before_and_twice_to_the_one_before_that(
    steps: list[tuple[Act, str]], first: str | None, before: str | None
) -> None:
    moves, champion = history(*steps, first=first)
    assert former_champion(moves, champion) == before


def test_a_history_that_does_not_lead_to_the_champion_is_not_believed() -> None:
    moves, _ = history((P, "a"), (P, "b"))
    assert former_champion(moves, "somebody else") is None
