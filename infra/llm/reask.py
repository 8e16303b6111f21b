"""Re-asking: an answer that fails its schema goes back to the model with what is wrong, through Instructor.

The domain's `check` stays the one truth about what is valid. Instructor conducts the conversation: it is first
handed the stored answer, which costs no call, and each complaint becomes one more turn.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from pydantic import BaseModel

from domain.requests import Completion, Request
from domain.schemas import Invalid, OutputSchema, check
from infra.llm.asking import Ask
from infra.llm.transport import AskFailed, chat_completion, ledger_client

_CUT_OFF = "The answer was cut off at its token limit. Answer shorter, without extra spaces or line breaks."


@dataclass(frozen=True, slots=True)
class Reasked:
    """How it ended: the last answer, the hash of the request it answers, and why it still fails, if it does."""

    completion: Completion
    request_hash: str
    reasks: int
    invalid: Invalid | None


async def reask(
    *, request: Request, completion: Completion, schema: OutputSchema, max_reasks: int, ask: Ask
) -> Reasked:
    """Ask again until the answer is valid, at most `max_reasks` times and once for a truncated answer.

    Whatever `ask` raises comes out as it is.
    """
    talk = _Talk(request, completion, schema=schema, max_reasks=max_reasks, ask=ask)
    if talk.goes_on:
        await _converse(talk, request=request, completion=completion, max_reasks=max_reasks)
    return talk.result()


class _Talk:
    """One row's conversation so far, and whether it may go on."""

    def __init__(
        self, request: Request, completion: Completion, *, schema: OutputSchema, max_reasks: int, ask: Ask
    ) -> None:
        self._schema, self._max_reasks, self._ask = schema, max_reasks, ask
        self._reasks = 0
        self._truncated = 0
        self._hear(request, completion)

    def _hear(self, request: Request, completion: Completion) -> None:
        checked = check(completion.text, completion.finish_reason, self._schema)
        self._request, self._completion = request, completion
        self._invalid = checked if isinstance(checked, Invalid) else None
        self._truncated += completion.finish_reason != "stop"

    @property
    def goes_on(self) -> bool:
        """Whether the last answer fails and one more try is allowed; a second truncated answer ends it."""
        return self._invalid is not None and self._reasks < self._max_reasks and self._truncated < 2

    @property
    def complaint(self) -> str:
        """What the model is told about its last answer: validation errors only, never a server's words."""
        if self._completion.finish_reason != "stop":
            return _CUT_OFF
        return self._invalid.reason if self._invalid else ""

    async def again(self, request: Request) -> Completion:
        """Ask once more, remember the true answer and return it as Instructor is to see it."""
        completion = await self._ask(request)
        self._reasks += 1
        self._hear(request, completion)
        return _shown(completion)

    def result(self) -> Reasked:
        """The last answer with its verdict."""
        return Reasked(self._completion, self._request.hash, self._reasks, self._invalid)


async def _converse(talk: _Talk, *, request: Request, completion: Completion, max_reasks: int) -> None:
    from instructor import Mode, patch
    from instructor.core.exceptions import IncompleteOutputException

    async with ledger_client(talk.again, revision=request.revision) as client:
        conduct = cast(Any, patch)(create=_replay(client, request, completion), mode=Mode.JSON_SCHEMA)
        try:
            # No `context`: with one, Instructor would run the row's text through Jinja.
            await conduct(
                model=request.model,
                messages=[dict(message) for message in _messages(request)],
                response_model=_verdict(talk),
                max_retries=max_reasks,
            )
        except IncompleteOutputException as stopped:
            if stopped.__cause__ is None:
                raise
            raise stopped.__cause__ from stopped.__cause__.__cause__


def _replay(client: AsyncOpenAI, request: Request, completion: Completion) -> Callable[..., Awaitable[ChatCompletion]]:
    """The `create` that Instructor drives: the stored answer first, then the model, asked as it was the first time.

    Of Instructor's fields only the turns it adds are sent; response format, sampling and log-probabilities are
    the row's own.
    """
    from instructor.core.exceptions import IncompleteOutputException

    original = _messages(request)
    kept = {field: value for field, value in request.body.items() if field not in ("model", "messages")}
    stored = [ChatCompletion.model_validate(chat_completion(_shown(completion), model=request.model))]

    async def create(*, messages: list[ChatCompletionMessageParam], **_instructors: object) -> ChatCompletion:
        if stored:
            return stored.pop()
        turns = [*original, *messages[len(original) :]]
        try:
            return await client.chat.completions.create(model=request.model, messages=turns, extra_body=kept)
        except AskFailed as failed:
            # The one class that Instructor neither retries, nor wraps with every completion, nor logs.
            raise IncompleteOutputException from failed.error

    return create


def _verdict(talk: _Talk) -> type[BaseModel]:
    """What Instructor validates in place of the user's model.

    Its strict mode would judge differently from the domain, and pydantic's own message, with the input and a
    versioned address in it, would change prompts whenever pydantic does.
    """
    from instructor.core.exceptions import ResponseParsingError

    class Verdict(BaseModel):
        @classmethod
        def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
            del json_data, options  # the talk has heard the true answer
            if talk.goes_on:
                raise ResponseParsingError(talk.complaint)
            return cls()

    return Verdict


def _messages(request: Request) -> list[ChatCompletionMessageParam]:
    return cast(list[ChatCompletionMessageParam], request.body["messages"])


def _shown(completion: Completion) -> Completion:
    """The answer as Instructor and the next prompt see it.

    Instructor gives up at once on finish_reason "length"; trailing space invites more of it; a lone surrogate
    cannot be sent.
    """
    return replace(completion, text=completion.text.rstrip().encode(errors="replace").decode(), finish_reason="stop")
