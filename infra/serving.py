"""What a workload's servers say of themselves, so that a bundle can be compared with what is deployed now."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
from sqlalchemy.orm import Session

from domain.compiles import baseline_of
from domain.errors import ModelError
from domain.servings import Served, answered_by, declared, joined, merged
from domain.validities import Present
from domain.workloads import EngineName, Tier, TierName
from infra.db.store import answers, runs
from infra.llm.addresses import is_loopback
from infra.llm.engines import base_urls
from infra.settings import Settings
from infra.workloads import LoadedWorkload

PATIENCE_S = 5.0
OURS = ("none", "processed_logprobs")
"""Quantisation and logprobs mode of the servers that we start ourselves."""
NOT_SERVED = "not served"


def present_of(loaded: LoadedWorkload, settings: Settings, engine: EngineName | None = None) -> Present:
    """The deployment as it is now, `engine` being what a run chose instead of the tiers' own. A server that does not
    answer leaves unknown what only it could tell."""
    pinned = loaded.with_revisions(settings.engine_revisions)
    return Present(
        tiers=pinned.workload.tiers,
        json_schema=loaded.schema.json_schema,
        decisive=loaded.schema.decisive,
        max_reasks=loaded.workload.max_reasks,
        baseline=baseline_of(loaded.workload, loaded.schema).hash,
        served=served_now(loaded, settings, engine),
    )


def served_now(loaded: LoadedWorkload, settings: Settings, engine: EngineName | None = None) -> dict[TierName, Served]:
    """What serves both tiers now."""
    chosen = {} if engine is None else {"engine": engine}
    tiers = {name: loaded.workload.tiers[name].model_copy(update=chosen) for name in TierName}
    with ThreadPoolExecutor(len(TierName)) as pool:
        asked = {name: pool.submit(served_by, tier, settings) for name, tier in tiers.items()}
        return {name: future.result() for name, future in asked.items()}


def served_by(tier: Tier, settings: Settings) -> Served:
    """What the servers of a tier say; engines other than HTTP run only while they answer."""
    quantisation, mode = declared(tier.engine_args)
    urls: tuple[str, ...] = ()
    if tier.engine is EngineName.HTTP:
        try:
            urls = base_urls(tier, settings)
        except ModelError:
            return Served(quantisation=quantisation, logprobs_mode=mode)
        if not tier.base_urls:
            quantisation, mode = quantisation or OURS[0], mode or OURS[1]
    key = settings.model_api_key.get_secret_value() if settings.model_api_key else None
    return Served(
        engine_version=joined(server_version(url, api_key=key) for url in urls),
        weights=joined(served_weights(url, tier.model, api_key=key) for url in urls) if tier.base_urls else None,
        quantisation=quantisation,
        logprobs_mode=mode,
    )


def note_served(db: Session, run_id: str, found: Mapping[TierName, Served]) -> None:
    """Keep with a run what serves it; a run that is resumed elsewhere was served by both."""
    before = _noted(db, run_id)
    together = {
        name.value: (merged([before[name], now]) if name in before else now).model_dump() for name, now in found.items()
    }
    runs.add_summary(db, run_id, {"served": together})


def served_answers(db: Session, run_id: str, tier: TierName) -> Served:
    """What served the runs that paid for a run's answers, which may be earlier ones, and the version that the answers
    themselves name."""
    payers = answers.payers(db, run_id, tier)
    noted = [_noted(db, payer).get(tier, Served()) if payer else Served() for payer in sorted(payers, key=str)]
    version = answered_by(answers.fingerprints(db, run_id, tier))
    return merged(noted).model_copy(update={"engine_version": version})


def _noted(db: Session, run_id: str) -> dict[TierName, Served]:
    said: Mapping[str, Any] = runs.load_run(db, run_id).summary.get("served", {})
    return {TierName(name): Served.model_validate(facts) for name, facts in said.items()}


def server_version(base_url: str, *, api_key: str | None = None) -> str | None:
    """The engine's version by vLLM's GET /version; None from a server that has no such page or does not answer."""
    version = _get(base_url.rstrip("/").removesuffix("/v1") + "/version", api_key).get("version")
    return version if isinstance(version, str) else None


def served_weights(base_url: str, model: str, *, api_key: str | None = None) -> str | None:
    """What is served under a model's name, by the `root` in GET /v1/models; None where the server does not say it."""
    cards = _get(base_url.rstrip("/") + "/models", api_key).get("data")
    if not isinstance(cards, list):
        return None
    listed = [cast(Mapping[str, Any], card) for card in cast(list[Any], cards) if isinstance(card, dict)]
    roots = [card.get("root") for card in listed if card.get("id") == model]
    if not roots:
        return NOT_SERVED
    return roots[0] if isinstance(roots[0], str) else None


def _get(address: str, api_key: str | None) -> Mapping[str, Any]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(address, timeout=PATIENCE_S, headers=headers, trust_env=not is_loopback(address))
        said: Any = response.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return {}
    return cast(Mapping[str, Any], said) if isinstance(said, dict) else {}
