"""What a chat completion looks like on the wire, read into the domain's Completion.

Answers are decoded by declared shape: most of an answer is alternatives of tokens that nobody asks about, and they stay
bytes.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from domain.alignments import Read, as_bytes, read_fields
from domain.requests import Completion, Frame, Request, Usage

NEVER = -1000.0
"""A log-probability below this is that of a token which the grammar forbids; its probability is 0 in floats too."""


class Garbled(ValueError):
    """A 200 whose body is no chat completion."""


class _Alternative(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct, rename={"text": "token"}):
    text: str
    logprob: float
    top_logprobs: msgspec.Raw

    @property
    def alternatives(self) -> dict[str, float]:
        """What could have come in the token's place, and the token itself, which a short list may leave out."""
        listed: dict[str, float] = {}
        for other in _ALTERNATIVES.decode(self.top_logprobs):
            text, logprob = other.token, other.logprob
            if logprob >= NEVER:
                # Two tokens may read the same (a word piece and a bare byte): their probabilities add up.
                listed[text] = float(np.logaddexp(listed[text], logprob)) if text in listed else logprob
        return {self.text: self.logprob} | listed


class _AlternativeBytes(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _TokenBytes(msgspec.Struct):
    """The same in bytes: of a character that takes several tokens, each token's text is made up by the server."""

    token: str
    logprob: float
    top_logprobs: msgspec.Raw
    bytes: list[int] | None = None

    @property
    def text(self) -> str:
        """Its bytes, each as the character of that number."""
        return _spelt(self.token, self.bytes)

    @property
    def alternatives(self) -> dict[str, float]:
        """What could have come in the token's place, and the token itself."""
        listed: dict[str, float] = {}
        for other in _ALTERNATIVE_BYTES.decode(self.top_logprobs):
            text, logprob = _spelt(other.token, other.bytes), other.logprob
            if logprob >= NEVER:
                listed[text] = float(np.logaddexp(listed[text], logprob)) if text in listed else logprob
        return {self.text: self.logprob} | listed


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None
    logprobs: _Logprobs | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage
    system_fingerprint: Any = None


class _LogprobsBytes(msgspec.Struct):
    content: list[_TokenBytes] | None = None


class _ChoiceBytes(msgspec.Struct):
    logprobs: _LogprobsBytes


class _AnswerBytes(msgspec.Struct):
    choices: list[_ChoiceBytes]


_ANSWER = msgspec.json.Decoder(_Answer)
_ALTERNATIVES = msgspec.json.Decoder(list[_Alternative])
_ANSWER_BYTES = msgspec.json.Decoder(_AnswerBytes)
_ALTERNATIVE_BYTES = msgspec.json.Decoder(list[_AlternativeBytes])


def read_completion(request: Request, body: bytes) -> Completion:
    """Parse a response body; raise Garbled when it lacks what the protocol promises."""
    try:
        answer = _ANSWER.decode(body)
        choice = answer.choices[0]
        text = choice.message.content
        tokens = choice.logprobs.content if choice.logprobs else None
        labels, readings = _read(tokens, text, request.frame, body) if tokens else ({}, {})
    except (msgspec.MsgspecError, IndexError, ValueError, RecursionError) as error:
        raise Garbled(f"{type(error).__name__}: {error}"[:200]) from error
    fingerprint = answer.system_fingerprint
    return Completion(
        request_hash=request.hash,
        text=text.replace("\0", "\N{REPLACEMENT CHARACTER}"),  # Postgres has no word for NUL
        finish_reason=str(choice.finish_reason)[:32],
        usage=_usage(answer.usage),
        label_logprobs=labels,
        fingerprint=str(fingerprint) if fingerprint is not None else None,
        readings=readings,
    )


def _read(tokens: Sequence[_Token], text: str, frame: Frame, body: bytes) -> Read:
    """What the tokens say of each field: in characters, or in bytes where their characters are not those of the text.

    Servers differ in what they put for half a character; and bytes take longer.
    """
    if (read := read_fields(tokens, frame.fields, said=text)) is not None:
        return read
    in_bytes = _ANSWER_BYTES.decode(body).choices[0].logprobs.content or ()
    return read_fields(in_bytes, frame.fields_in_bytes) or ({}, {})


def _spelt(token: str, written: list[int] | None) -> str:
    return as_bytes(token) if written is None else bytes(written).decode("latin-1")


def _usage(usage: _Usage) -> Usage:
    details = usage.prompt_tokens_details
    return Usage(usage.prompt_tokens, usage.completion_tokens, (details.cached_tokens if details else None) or 0)
