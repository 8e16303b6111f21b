"""Validities: whether what a bundle promises still speaks of what is deployed now."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from domain.bundles import Bundle, rendering
from domain.canonical import canonical, digest
from domain.errors import StaleBundle
from domain.servings import Served
from domain.workloads import Tier, TierName, Tiers

SCHEMA = "output schema"
_SAMPLING = ("temperature", "seed", "max_tokens")
_SERVING = {"engine_version": "engine version", "quantisation": "quantisation", "logprobs_mode": "logprobs mode"}
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Present:
    """The deployment as it is now: the workload file, the code beside it, and what the servers say."""

    tiers: Tiers
    json_schema: Mapping[str, JsonValue]
    decisive: str
    max_reasks: int
    baseline: str
    served: Mapping[TierName, Served] = field(default_factory=dict[TierName, Served])


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is not any more what it was when the bundle was made."""

    part: str
    was: str
    now: str

    def __str__(self) -> str:
        return f"{self.part} was {self.was}, is {self.now}"


@dataclass(frozen=True, slots=True)
class Validity:
    """What has changed since a bundle was made, what cannot be compared, and the alarms of its audits. A change or an
    alarm voids the certificate."""

    changes: tuple[Change, ...]
    unknown: tuple[str, ...]
    alarms: tuple[str, ...] = ()

    @property
    def void(self) -> bool:
        """Whether the certificate speaks of something that is not deployed any more, or was refuted."""
        return bool(self.changes or self.alarms)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The changes and the alarms in words."""
        return (*map(str, self.changes), *self.alarms)

    def check_schema(self, workload: str) -> None:
        """Raise StaleBundle when the answer itself has changed: then not even the strong tier's prompt fits it."""
        for change in self.changes:
            if change.part == SCHEMA:
                raise StaleBundle(f"the output schema of {workload!r} has changed since its champion was certified")


def examine(bundle: Bundle, present: Present, alarms: Sequence[str] = ()) -> Validity:
    """Compare a bundle with the deployment. What one of the two does not say is listed as unknown, not as a change.

    `alarms` are what audits hold against its promise.
    """
    changes: list[Change] = []
    unknown: list[str] = []
    for part, was, now in _compared(bundle, present):
        if was is None or now is None:
            unknown.append(f"{part} ({'not recorded in the bundle' if was is None else 'nobody says it now'})")
        elif was != now:
            changes.append(Change(part, _short(was), _short(now)))
    return Validity(tuple(changes), tuple(unknown), tuple(alarms))


def _compared(bundle: Bundle, present: Present) -> Iterator[tuple[str, JsonValue, JsonValue]]:
    """(what, as the bundle has it, as it is now); None where it is not known."""
    for name in TierName:
        part, tier = bundle[name], present.tiers[name]
        yield f"{name.value}: model", part.tier.model, tier.model
        if part.tier.revision is None and tier.revision is None:
            yield f"{name.value}: revision", None, None
        else:
            yield f"{name.value}: revision", part.tier.revision or "none", tier.revision or "none"
        yield f"{name.value}: sampling", _sampling(part.tier), _sampling(tier)
        yield f"{name.value}: prices", _prices(part.tier), _prices(tier)
        yield f"{name.value}: rendered prompt", part.rendered, rendering(part.prompt)
        was, now = part.served or Served(), present.served.get(name, Served())
        for attribute, words in _SERVING.items():
            yield f"{name.value}: {words}", getattr(was, attribute), getattr(now, attribute)
        if part.tier.base_urls or tier.base_urls:  # elsewhere the revision says it
            yield f"{name.value}: weights", was.weights, now.weights
    yield SCHEMA, _schema(bundle.json_schema, bundle.decisive), _schema(present.json_schema, present.decisive)
    yield "re-asks", bundle.max_reasks, present.max_reasks
    yield "prompt (instructions, answer format, fields)", bundle.lineage.baseline, present.baseline


def _sampling(tier: Tier) -> str:
    return _words({name: getattr(tier, name) for name in _SAMPLING})


def _prices(tier: Tier) -> str:
    return _words(tier.usd_per_million.model_dump(mode="json")) + " USD per million"


def _words(values: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{name} {canonical(value).decode()}" for name, value in values.items() if value is not None)


def _schema(json_schema: Mapping[str, JsonValue], decisive: str) -> str:
    return f"{digest(dict(json_schema))[:12]} with {decisive!r} decisive"


def _short(value: JsonValue) -> str:
    text = value if isinstance(value, str) else canonical(value).decode()
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
