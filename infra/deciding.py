"""From a row's first completion to its stored answer, for the row path and for replay: check, re-ask, settle, price."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from domain.answers import Answer, settle
from domain.costs import usd
from domain.errors import ModelError, ModelUnavailable
from domain.requests import Completion, Request, Usage
from domain.schemas import Invalid, check
from infra.db.store.answers import StoredAnswer
from infra.llm.transport import Ask

if TYPE_CHECKING:
    from infra.rows import Deployment


async def decide(
    deployment: "Deployment", key: str, request: Request, completion: Completion, ask: Ask
) -> StoredAnswer:
    """What a tier finally says to a row whose request was answered by this completion.

    An answer that fails its schema is asked again through `ask`; a refusal of that becomes a failed answer, and
    whatever else `ask` raises comes out as it is.
    """
    used = [completion.usage]
    if not isinstance(check(completion.text, completion.finish_reason, deployment.schema), Invalid):
        answer = settle(completion, deployment.schema, deployment.prior)
        return stored_answer(deployment, key, request.hash, answer, reasks=0, used=used)
    from infra.llm.reask import reask  # Instructor takes seconds to import; most rows never need it

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
        return stored_answer(deployment, key, request.hash, failed, reasks=1, used=used)
    answer = settle(reasked.completion, deployment.schema, deployment.prior)
    return stored_answer(deployment, key, reasked.request_hash, answer, reasks=reasked.reasks, used=used)


def stored_answer(
    deployment: "Deployment", key: str, request_hash: str, answer: Answer, *, reasks: int, used: Sequence[Usage]
) -> StoredAnswer:
    """An answer as the ledger keeps it: tokens and USD (list price) of every call that led to it."""
    return StoredAnswer(
        record_key=key,
        tier=deployment.name,
        request_hash=request_hash,
        output=answer.output,
        confidence=answer.confidence,
        reasks=reasks,
        tokens=sum(usage.prompt + usage.completion for usage in used),
        usd=sum(usd(usage, deployment.tier.usd_per_million) for usage in used),
        failed=None if answer.valid else answer.reason,
    )
