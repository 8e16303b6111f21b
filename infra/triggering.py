"""What goes on beside the receiver of webhooks."""

from functools import partial

from infra import dispatching, notifying, polling, sweeping
from infra.background import Loop
from infra.settings import Settings


def loops(settings: Settings) -> list[Loop]:
    """The pieces of work that the service carries out, each in a thread of its own."""
    return [
        Loop("dispatcher", 1.0, partial(dispatching.turn, settings)),
        Loop("poller", 1.0, partial(polling.turn, settings)),
        Loop("notifier", 1.0, partial(notifying.turn, settings)),
        Loop("sweeper", 5.0, partial(sweeping.turn, settings)),
    ]
