"""Prefect's worker that waits for its server: the `prefect` command itself, after one repair.

Prefect 3.8.8's worker gives up when its server has been away for some minutes. Whatever starts it anew cannot save its
flows: as it ends it sends SIGTERM to every flow that it has started. Half a minute is enough to end the loop by which
it learns that a flow is to be cancelled. Here each such loop begins anew instead, with its short intervals.
"""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prefect._internal import observers  # pyright: ignore[reportPrivateUsage]
from prefect.utilities import services
from prefect.workers import base

GIVEN_UP = "Service exceeded error threshold."
"""What Prefect's loop says as it ends because its server is away; whatever else it raises still ends it."""
Loop = Callable[..., Awaitable[None]]


def repair() -> None:
    """Let the loops of a worker outlast their server."""
    lasting = patient(services.critical_service_loop)
    base.critical_service_loop = lasting  # pyright: ignore[reportPrivateImportUsage]
    observers.critical_service_loop = lasting  # pyright: ignore[reportPrivateImportUsage]


def patient(loop: Loop) -> Loop:
    """The loop that begins anew when it has given up; it sleeps between its tries, so this does not spin."""

    @functools.wraps(loop)
    async def lasting(*arguments: Any, **options: Any) -> None:
        while True:
            try:
                return await loop(*arguments, **options)
            except RuntimeError as error:
                if str(error) != GIVEN_UP:
                    raise
                logging.getLogger("prefect.headrace").warning("Prefect does not answer; its worker goes on asking.")

    return lasting


def main() -> None:
    """Run the `prefect` command with the arguments of this process."""
    repair()
    from prefect.cli import app

    app()


if __name__ == "__main__":
    main()
