"""Output schemas: what an answer must look like, and which values its decisive field may take."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel, JsonValue, ValidationError

from domain.errors import Place, WorkloadError


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """The user's pydantic model with the facts the pipeline needs of it."""

    model: type[BaseModel]
    json_schema: dict[str, JsonValue]
    decisive: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, model: type[BaseModel], *, decisive: str, place: Place) -> "OutputSchema":
        """Read a model; raise WorkloadError when the decisive field has no closed set of two or more strings."""
        schema = cast(dict[str, JsonValue], model.model_json_schema())
        labels = closed_fields(schema).get(decisive, ())
        if len(labels) < 2:
            raise WorkloadError(
                place,
                f"field {decisive!r} of {model.__name__} needs a closed set of at least two strings",
                hint="Declare it as Literal['a', 'b', …] or a StrEnum, or name another field as `decisive`.",
            )
        return cls(model=model, json_schema=schema, decisive=decisive, labels=labels)


def closed_fields(schema: Mapping[str, JsonValue]) -> dict[str, tuple[str, ...]]:
    """Top-level field -> its allowed strings, for every field of a JSON Schema that has a closed set of them."""
    properties, definitions = schema.get("properties"), schema.get("$defs")
    found: dict[str, tuple[str, ...]] = {}
    for field, declared in (properties if isinstance(properties, dict) else {}).items():
        kind = declared
        if isinstance(kind, dict) and isinstance(reference := kind.get("$ref"), str):
            kind = definitions.get(reference.rsplit("/", 1)[-1]) if isinstance(definitions, dict) else None
        values = kind.get("enum") if isinstance(kind, dict) else None
        if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            found[field] = tuple(v for v in values if isinstance(v, str))
    return found


@dataclass(frozen=True, slots=True)
class Valid:
    """An answer that satisfies the schema, in JSON types."""

    output: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Invalid:
    """An answer that does not; `reason` names each field and what is wrong with it."""

    kind: str
    reason: str


def check(text: str, finish_reason: str, schema: OutputSchema) -> Valid | Invalid:
    """Validate a model's text; a truncated answer is its own class, whatever it parses to."""
    if finish_reason != "stop":
        return Invalid("truncated", f"the answer ended with finish_reason {finish_reason!r}, not 'stop'")
    try:
        parsed = schema.model.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        reason = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'answer'}: {p['msg']}" for p in problems)
        return Invalid("schema", reason)
    return Valid(cast(dict[str, JsonValue], parsed.model_dump(mode="json")))
