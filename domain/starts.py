"""Starts: who started a run, as far as Prefect tells."""

from enum import StrEnum


class Starter(StrEnum):
    """A schedule; news of a dataset (a webhook's or a look at its files); an automation; or somebody at Prefect's UI, a
    terminal or its API, which cannot be told apart."""

    SCHEDULE = "schedule"
    DELIVERY = "delivery"
    AUTOMATION = "automation"
    PERSON = "person"


def starter(*, scheduled: bool, creator: str | None, delivered: bool) -> Starter:
    """Who started a run: Prefect names the kind of its `creator`, `delivered` says that our dispatcher did."""
    if delivered:
        return Starter.DELIVERY
    if scheduled or creator == "SCHEDULE":
        return Starter.SCHEDULE
    return Starter.AUTOMATION if creator == "AUTOMATION" else Starter.PERSON
