"""Tiers: how one of them answers rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from pydantic import JsonValue

from domain.canonical import digest
from domain.confidences import LabelPrior
from domain.prompts import PromptVersion
from domain.requests import Frame, Request, row_frame
from domain.routers import Routing
from domain.schemas import OutputSchema
from domain.signals import PAID, sample_frames, truth_request
from domain.workloads import Router, SignalName, Tier, TierName
from infra.db.store.datasets import StoredRecord


@dataclass(frozen=True)
class Deployment:
    """One tier as it answers rows: model, prompt, prior, schema with its code, re-ask rule, the signals to read, and
    what is the confidence; of `router` it is how further answers are sampled that counts."""

    name: TierName
    tier: Tier
    prompt: PromptVersion
    prior: LabelPrior
    schema: OutputSchema
    max_reasks: int
    code: str = ""
    signals: tuple[SignalName, ...] = ()
    router: Router = field(default_factory=Router)
    routing: Routing = field(default_factory=Routing)

    @cached_property
    def frame(self) -> Frame:
        """What all requests have in common."""
        return row_frame(self.prompt.opening(), tier=self.tier, schema=self.schema)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over everything that an answer and its price depend on beside the row; a changed renderer changes it
        too."""
        probe = Request(self.frame, self.prompt.question(dict.fromkeys(self.prompt.input_fields, "probe")))
        means: dict[str, JsonValue] = {**self.prior.means}
        prices: JsonValue = self.tier.usd_per_million.model_dump(mode="json")
        parts: list[JsonValue] = [probe.hash, means, self.schema.decisive, self.max_reasks, self.code, prices]
        if self.signals:
            further = {name: [r.hash for r in requests] for name, requests in self.further(probe, {}).items()}
            parts += cast(list[JsonValue], [list(self.signals), further])
        if self.routing != Routing():
            parts.append(cast(JsonValue, self.routing.model_dump(mode="json")))
        return digest(parts)

    @property
    def asks_further(self) -> bool:
        """Whether one of the signals needs calls of its own."""
        return any(name in PAID for name in self.signals)

    @cached_property
    def _sample_frames(self) -> tuple[Frame, ...]:
        return sample_frames(self.frame, self.router)

    def further(self, request: Request, output: dict[str, JsonValue]) -> dict[SignalName, Sequence[Request]]:
        """The calls that the signals need beside the row's own request, which came to this output."""
        found: dict[SignalName, Sequence[Request]] = {}
        if SignalName.SELF_CONSISTENCY in self.signals:
            found[SignalName.SELF_CONSISTENCY] = [Request(frame, request.last) for frame in self._sample_frames]
        if SignalName.P_TRUE in self.signals:
            found[SignalName.P_TRUE] = [truth_request(request, self.prompt.answer(output))]
        return found

    def request(self, row: StoredRecord) -> Request:
        """Exactly what is sent for a row."""
        return Request(self.frame, self.prompt.question(row.record.inputs))

    def skips(self, request: Request) -> bool:
        """Whether a row is not asked about here: it goes straight to the strong tier."""
        longest = self.routing.straight_from
        return longest is not None and request.chars >= longest
