"""A process that asks for three rows in a batch and says so when it polls; tests kill it there."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from domain.errors import Place
from domain.prompts import baseline
from domain.requests import Request, row_request
from domain.schemas import OutputSchema
from domain.workloads import Prices, Tier
from infra.llm.batch_engine import BatchEngine
from infra.llm.batch_hosted import HostedRunner


class Answer(BaseModel):
    """One of two."""

    topic: Literal["card", "loan"]


SCHEMA = OutputSchema.of(Answer, decisive="topic", place=Place("w"))
PROMPT = baseline("Sort the message.", input_fields=("text",), schema=SCHEMA)
TIER = Tier(model="scripted", usd_per_million=Prices(input=1, output=1))


def ask(text: str) -> Request:
    """The request for one row."""
    return row_request(PROMPT.render({"text": text}), tier=TIER, schema=SCHEMA)


async def each(*requests: Request) -> AsyncGenerator[Request]:
    """The requests as an engine takes them."""
    for request in requests:
        yield request


async def main(base_url: str, folder: str) -> None:
    """Ask, and print a line at every poll."""

    async def say(seconds: float) -> None:
        print("polling", flush=True)
        await asyncio.sleep(0.05)

    runner = HostedRunner(base_url, api_key=None, sleep=say)
    async for _ in BatchEngine(runner, folder=Path(folder)).answer(each(*map(ask, ("one", "two", "three")))):
        pass


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
