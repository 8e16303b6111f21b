"""What the OpenAPI document says of the receiver; names of sources are not in it."""

from typing import Any

from fastapi.responses import Response

Json = dict[str, Any]

SCHEMES: Json = {
    "standard-webhooks": {"type": "apiKey", "in": "header", "name": "webhook-signature"},
    "github": {"type": "apiKey", "in": "header", "name": "x-hub-signature-256"},
    "huggingface": {"type": "apiKey", "in": "header", "name": "x-webhook-secret"},
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "lakeFS, MinIO and S3; MinIO may leave `Bearer` out.",
    },
    "mlflow": {"type": "apiKey", "in": "header", "name": "x-mlflow-signature"},
}
"""One of these, as the source's scheme says."""

_SOURCE: Json = {
    "name": "source",
    "in": "path",
    "required": True,
    "description": "A source of triggers.yaml.",
    "schema": {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$"},
}
_HEADERS = {
    "webhook-id": "standard-webhooks: the delivery id, signed.",
    "webhook-timestamp": "standard-webhooks: seconds since 1970, signed; at most 5 minutes from our clock.",
    "x-github-event": "github: push; ping and all others are received and mean nothing.",
    "x-github-delivery": "github: the delivery id.",
    "x-mlflow-delivery-id": "mlflow: the delivery id, signed.",
    "x-mlflow-timestamp": "mlflow: seconds since 1970, signed; at most 5 minutes from our clock.",
}
_REFUSAL: Json = {"type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}}}
_RECEIPT: Json = {
    "type": "object",
    "required": ["status", "delivery", "datasets"],
    "additionalProperties": False,
    "properties": {
        "status": {"enum": ["received", "repeated", "nothing for us"]},
        "delivery": {"type": "string", "description": "The delivery id; where the scheme has none, one we made."},
        "datasets": {"type": "array", "items": {"type": "string"}, "description": "What we took it to mean."},
    },
}


def _answer(description: str, schema: Json, headers: Json | None = None) -> Json:
    return {
        "description": description,
        "content": {"application/json": {"schema": schema}},
        **({"headers": headers} if headers else {}),
    }


def _header(description: str) -> Json:
    return {"description": description, "required": True, "schema": {"type": "string"}}


_RETRY = {"Retry-After": _header("Seconds.")}
_SCHEME = {"WWW-Authenticate": _header("Always `Signature`.")}

HOOK: Json = {
    "operation_id": "receive",
    "summary": "A message that something has changed",
    "status_code": 202,
    "responses": {
        202: _answer("Written down, now or at its first arrival.", _RECEIPT),
        400: _answer("The body is not one JSON object, or a believed message has no id.", _REFUSAL),
        401: _answer(
            "Not signed as the source's scheme wants it, too old, or the source has no secret.", _REFUSAL, _SCHEME
        ),
        404: _answer("There is no such source.", _REFUSAL),
        405: _answer("Another method.", _REFUSAL),
        408: _answer("The body took more than 10 seconds.", _REFUSAL),
        409: _answer("The delivery id belongs to another body.", _REFUSAL),
        413: _answer("The body has more than 262,144 bytes.", _REFUSAL),
        503: _answer("Postgres is away, or triggers.yaml is broken: send it again.", _REFUSAL, _RETRY),
    },
    "openapi_extra": {
        "security": [{name: []} for name in SCHEMES],
        "parameters": [
            _SOURCE,
            *(
                {"name": name, "in": "header", "required": False, "description": said, "schema": {"type": "string"}}
                for name, said in _HEADERS.items()
            ),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"type": "headrace.dataset.updated", "data": {"dataset": "support-triage"}},
                }
            },
        },
    },
}
PROBE: Json = {
    "summary": "Is somebody there; the same answer for every name",
    "openapi_extra": {"parameters": [{**_SOURCE, "description": "Any.", "schema": {"type": "string"}}], "security": []},
    "response_class": Response,
    "responses": {200: {"description": "Yes."}},
}
HEALTH: Json = {
    "operation_id": "health",
    "summary": "The receiver answers",
    "responses": {
        200: _answer(
            "It does.",
            {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
        )
    },
}
