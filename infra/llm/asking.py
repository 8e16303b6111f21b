"""What everything that needs a model's answer is given."""

from collections.abc import Awaitable, Callable

from domain.requests import Completion, Request

Ask = Callable[[Request], Awaitable[Completion]]
"""The one door to a model: answers from the ledger or sends, records the attempt, raises ModelError."""
