"""Which engine answers a tier's requests: model servers over HTTP, a Ray cluster, or batch files."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from pydantic import JsonValue

from domain.errors import ModelError
from domain.workloads import EngineName, Tier
from infra.llm.gateway_client import GatewayClient
from infra.llm.gateway_link import Opening
from infra.llm.lengths import Lengths
from infra.llm.replies import Engine
from infra.settings import Settings

ALL_AT_ONCE = 10_000_000
"""Rows under way with an engine that answers many together: it needs all of them before it begins."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine ready to answer, how many rows may be under way with it, and what it knows of prompts' lengths."""

    engine: Engine
    window: int
    lengths: Lengths
    online: bool


@asynccontextmanager
async def open_engine(tier: Tier, settings: Settings) -> AsyncGenerator[Opened]:
    """The engine that the tier names; raises ModelError when it has nothing to answer with."""
    if tier.engine is EngineName.HTTP:
        key = settings.model_api_key.get_secret_value() if settings.model_api_key else None
        opening = Opening(
            base_urls(tier, settings),
            api_key=key,
            in_flight=settings.in_flight,
            deadline_s=settings.request_deadline_s,
            patience_s=settings.outage_patience_s,
        )
        async with GatewayClient(opening) as gateway:
            yield Opened(gateway, settings.window, gateway.lengths, online=True)
    elif tier.engine is EngineName.RAY:
        from infra.llm.ray_engine import RayModel, embedded_model, ray_engine

        model = embedded_model(settings, tier.model) or RayModel(
            tier.model, str(tier.engine_args.get("model", tier.model))
        )
        own = {name: value for name, value in tier.engine_args.items() if name != "model"}
        async with ray_engine(settings, replace(model, engine_args={**model.engine_args, **own})) as engine:
            yield Opened(engine, ALL_AT_ONCE, Lengths(), online=False)
    else:
        async with _batches(tier, settings) as opened:
            yield opened


@asynccontextmanager
async def _batches(tier: Tier, settings: Settings) -> AsyncGenerator[Opened]:
    from infra.llm.batch_engine import BatchEngine
    from infra.llm.batch_hosted import HostedRunner
    from infra.llm.batch_local import LocalRunner

    key = settings.model_api_key.get_secret_value() if settings.model_api_key else None
    runner = (
        HostedRunner(tier.base_urls[0], api_key=key)
        if tier.base_urls
        else await asyncio.to_thread(LocalRunner.embedded, settings, tier.model, engine_args=_words(tier.engine_args))
    )
    async with BatchEngine(runner, folder=settings.home / "batches") as engine:
        yield Opened(engine, ALL_AT_ONCE, Lengths(), online=False)


def _words(engine_args: dict[str, JsonValue]) -> list[str]:
    """vLLM's arguments as words of a command line."""
    from domain.canonical import canonical

    words: list[str] = []
    for name, value in engine_args.items():
        words.append("--" + ("" if value is not False else "no-") + name.replace("_", "-"))
        if not isinstance(value, bool):
            words.append(value if isinstance(value, str) else canonical(value).decode())
    return words


def base_urls(tier: Tier, settings: Settings) -> tuple[str, ...]:
    """Where a tier is served: its own base_urls, else the embedded server of that model.

    Raises ModelError when neither exists.
    """
    if tier.base_urls:
        return tier.base_urls
    if embedded := settings.engines.get(tier.model):
        return (embedded,)
    raise ModelError(
        f"nobody serves the model {tier.model!r}",
        hint="Give the tier base_urls in workload.yaml, or start the embedded servers with `headrace up`.",
    )
