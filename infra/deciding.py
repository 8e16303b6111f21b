"""From a row's first completion to its stored answer, for the row path and for replay: check, re-ask, settle, read its
signals, price."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from domain.answers import Answer, settle
from domain.confidences import Decision
from domain.costs import usd
from domain.errors import ModelError, ModelUnavailable
from domain.outcomes import STRAIGHT
from domain.requests import Completion, Request, Usage
from domain.schemas import Invalid, check
from domain.signals import asks_further, consistency, free_signals, truth
from domain.workloads import SignalName
from infra.db.store.answers import StoredAnswer
from infra.llm.asking import Ask
from infra.tiers import Deployment


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a row's conversation has come to: the last completion, what it is worth, and the usage of every call; and
    the characters of the row's message."""

    request_hash: str
    completion: Completion
    answer: Answer
    used: Sequence[Usage]
    reasks: int = 0
    chars: int = 0


@dataclass(frozen=True, slots=True)
class Further:
    """What a signal's own calls came to: its value, if there is one, and their usage."""

    value: float | None
    used: Sequence[Usage]


NOTHING_FURTHER: Mapping[SignalName, Further] = MappingProxyType({})


async def decide(
    deployment: Deployment, key: str, request: Request, completion: Completion, ask: Ask, *, ask_further: Ask
) -> StoredAnswer:
    """What a tier finally says to a row whose request was answered by this completion.

    An answer that fails its schema is asked again through `ask`; a refusal of that becomes a failed answer, and
    whatever else `ask` raises comes out as it is. The signals that need calls of their own make them through
    `ask_further`: a refusal there leaves the signal out.
    """
    reached = await reach(deployment, request, completion, ask)
    further = {
        name: await _ask_further(deployment, name, requests, reached, ask_further)
        for name, requests in further_requests(deployment, request, reached).items()
    }
    return stored_answer(deployment, key, reached, further)


async def reach(deployment: Deployment, request: Request, completion: Completion, ask: Ask) -> Reached:
    """Check a completion, ask again through `ask` while it fails its schema, and settle what it comes to."""
    if not isinstance(check(completion.text, completion.finish_reason, deployment.schema), Invalid):
        return reached_at_once(deployment, request, completion)
    from infra.llm.reask import reask  # Instructor takes seconds to import; most rows never need it

    used = [completion.usage]

    async def ask_again(again: Request) -> Completion:
        said = await ask(again)
        used.append(said.usage)
        return said

    try:
        reasked = await reask(
            request=request,
            completion=completion,
            schema=deployment.schema,
            max_reasks=deployment.max_reasks,
            ask=ask_again,
        )
    except ModelUnavailable:
        raise
    except ModelError as error:
        failed = Answer(output=None, confidence=None, reason=f"the re-ask was not answered: {error.message}")
        return Reached(request.hash, completion, failed, used, reasks=1, chars=request.chars)
    answer = settle(reasked.completion, deployment.schema, deployment.prior)
    return Reached(reasked.request_hash, reasked.completion, answer, used, reasked.reasks, request.chars)


def reached_at_once(deployment: Deployment, request: Request, completion: Completion) -> Reached:
    """A first completion as it is settled, valid or not."""
    answer = settle(completion, deployment.schema, deployment.prior)
    return Reached(request.hash, completion, answer, [completion.usage], chars=request.chars)


def further_requests(deployment: Deployment, request: Request, reached: Reached) -> dict[SignalName, Sequence[Request]]:
    """The calls that an answer's signals need beside those that led to it, by signal."""
    output = reached.answer.output
    if output is None or not asks_further(reached.completion, reached.answer, deployment.schema):
        return {}
    return deployment.further(request, output)


async def _ask_further(
    deployment: Deployment, name: SignalName, requests: Sequence[Request], reached: Reached, ask: Ask
) -> Further:
    given = await asyncio.gather(*map(ask, requests), return_exceptions=True)
    for error in given:
        if isinstance(error, BaseException) and (
            isinstance(error, ModelUnavailable) or not isinstance(error, ModelError)
        ):
            raise error
    said = [completion for completion in given if isinstance(completion, Completion)]
    used = [completion.usage for completion in said]
    if len(said) < len(requests):
        return Further(None, used)
    if name is SignalName.P_TRUE:
        return Further(truth(said[0]), used)
    schema = deployment.schema
    return Further(consistency(said, (reached.answer.output or {}).get(schema.decisive), schema), used)


def stored_answer(
    deployment: Deployment, key: str, reached: Reached, further: Mapping[SignalName, Further] = NOTHING_FURTHER
) -> StoredAnswer:
    """An answer as the ledger keeps it: tokens and USD (list price) of every call that led to it or to a signal."""
    used = [*reached.used, *(usage for more in further.values() for usage in more.used)] if further else reached.used
    signals = _signals(deployment, reached, further) if deployment.signals else None
    signal_usd = {name.value: _price(deployment, more.used) for name, more in further.items()}
    return StoredAnswer(
        record_key=key,
        tier=deployment.name,
        request_hash=reached.request_hash,
        output=reached.answer.output,
        confidence=_confidence(deployment, reached, signals or {}),
        reasks=reached.reasks,
        tokens=sum(usage.prompt + usage.completion for usage in used),
        usd=_price(deployment, used),
        failed=None if reached.answer.valid else reached.answer.reason,
        signals=signals,
        signal_usd=signal_usd if deployment.signals else None,
    )


def skipped_answer(deployment: Deployment, key: str, request: Request) -> StoredAnswer:
    """The cheap tier's answer to a row that goes straight to the strong one: none, and it was never asked."""
    return refused_answer(deployment, key, request.hash, STRAIGHT)


def refused_answer(deployment: Deployment, key: str, request_hash: str, reason: str) -> StoredAnswer:
    """The answer of a row whose request was refused: none, for nothing."""
    empty = Completion(request_hash, "", "", Usage(), {})
    return stored_answer(deployment, key, Reached(request_hash, empty, Answer(None, None, reason), []))


def _price(deployment: Deployment, used: Sequence[Usage]) -> float:
    return sum(usd(usage, deployment.tier.usd_per_million) for usage in used)


def _confidence(deployment: Deployment, reached: Reached, signals: Mapping[str, float]) -> float | None:
    """By the deployment's routing; an answer that is not valid has none."""
    output, margin = reached.answer.output, reached.answer.confidence
    if output is None:
        return None
    label = str(output[deployment.schema.decisive])
    return deployment.routing.confidence(margin, signals, label=label, chars=reached.chars)


def _signals(deployment: Deployment, reached: Reached, further: Mapping[SignalName, Further]) -> dict[str, float]:
    """The values of the signals that the deployment asks for, as far as there are any."""
    answer, schema = reached.answer, deployment.schema
    found: dict[SignalName, float] = {name: more.value for name, more in further.items() if more.value is not None}
    if answer.output is not None and answer.confidence is not None:
        decision = Decision(str(answer.output[schema.decisive]), answer.confidence)
        found |= free_signals(reached.completion, schema, deployment.prior, decision)
    return {name.value: found[name] for name in deployment.signals if name in found}
