"""Work that goes on beside a server: each piece again and again in a thread of its own, come what may of one turn."""

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger("headrace")
STOPPING_S = 10.0


@dataclass(frozen=True, slots=True)
class Loop:
    """A piece of work: its turn says whether there is more to do at once; else the next is `every_s` seconds later."""

    name: str
    every_s: float
    turn: Callable[[], bool]


@contextmanager
def going_on(loops: Sequence[Loop]) -> Generator[threading.Event]:
    """Have the loops go on until the block ends or the event is set; a turn under way is waited for, ten seconds."""
    stop = threading.Event()
    threads = [threading.Thread(target=_go_on, args=(loop, stop), name=loop.name, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join(STOPPING_S)


def _go_on(loop: Loop, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            more = loop.turn()
        except Exception:  # one bad turn (Postgres away, Prefect away) must not end the service
            log.warning("%s: this turn failed, the next one is in %g s", loop.name, loop.every_s, exc_info=True)
            more = False
        if not more:
            stop.wait(loop.every_s)
