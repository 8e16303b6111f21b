"""Servings: what is known of the engine that gave a tier's answers, and what cannot be known."""

import re
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, JsonValue

_VLLM = re.compile(r"^vllm-([^-]+)-")


class Served(BaseModel):
    """How a tier is served; None means that nobody says so, and then it cannot be compared either.

    Several values side by side, joined by commas, mean that servers disagree, or that answers came from several.
    """

    model_config = ConfigDict(frozen=True)

    engine_version: str | None = None
    weights: str | None = None
    quantisation: str | None = None
    logprobs_mode: str | None = None


def answered_by(fingerprints: Iterable[str | None]) -> str | None:
    """The engine's version by the fingerprints of its answers; None unless each of them names one, as vLLM's do."""
    versions = [_VLLM.match(fingerprint or "") for fingerprint in fingerprints]
    return joined(match[1] if match else None for match in versions)


def joined(values: Iterable[str | None]) -> str | None:
    """The one value, or all different ones; None when there are none or one of them is not known."""
    found = list(values)
    known = {value for value in found if value is not None}
    return ", ".join(sorted(known)) if known and len(known) == len(set(found)) else None


def merged(parts: Iterable[Served]) -> Served:
    """What several servings are together, field by field."""
    found = list(parts)
    return Served(**{name: joined(getattr(part, name) for part in found) for name in Served.model_fields})


def declared(engine_args: Mapping[str, JsonValue]) -> tuple[str | None, str | None]:
    """Quantisation and logprobs mode as a tier's engine arguments name them, in either spelling."""

    def said(name: str) -> str | None:
        value = engine_args.get(name, engine_args.get(name.replace("_", "-")))
        return value if isinstance(value, str) else None

    return said("quantization"), said("logprobs_mode")
