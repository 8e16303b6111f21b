"""What an engine says to a request: every try it made, and the completion or the error at the end."""

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from domain.errors import ModelError
from domain.ledgers import OutcomeClass
from domain.requests import Completion, Request, Usage

NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Try:
    """One POST: who was asked, how long it took (seconds), how it ended."""

    worker: str
    seconds: float
    outcome: OutcomeClass
    usage: Usage = NOTHING
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Everything one request led to: every try, and the completion or the error at the end."""

    request: Request
    tries: Sequence[Try]
    completion: Completion | None
    error: ModelError | None = None


class Engine(Protocol):
    """Whatever answers requests: model servers over HTTP, a Ray job, a batch file."""

    def answer(self, requests: AsyncIterable[Request]) -> AsyncGenerator[Reply]:
        """Yield one Reply for each distinct request, in any order; a ModelError is in the reply, never raised.

        It takes requests as it has room for them and stops sending when it is closed (`aclosing`).
        """
        ...
