"""Exports: a bundle as a folder of plain files that nobody needs Headrace's database to read."""

import hashlib
import json
from collections.abc import Mapping
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from domain.bundle_diffs import prompt_text
from domain.bundles import Bundle
from domain.canonical import digest
from domain.certificates import Certificate
from domain.errors import InputError, Place
from domain.requests import TOP_LOGPROBS
from domain.routers import MEANINGS
from domain.workloads import TierName

FORMAT = 1
BUNDLE, MANIFEST, SCHEMA, CERTIFICATE, README = (
    "bundle.json",
    "manifest.json",
    "schema.json",
    "certificate.json",
    "README.md",
)
_HINT = "Get the folder again from where it was exported."


def files_of(bundle: Bundle) -> dict[str, str]:
    """Every file of the folder by its name; the same bundle always gives the same bytes."""
    files = {
        BUNDLE: _pretty(cast(JsonValue, bundle.model_dump(mode="json"))),
        SCHEMA: _pretty(bundle.json_schema),
        CERTIFICATE: _pretty(cast(JsonValue, bundle.certificate.model_dump(mode="json"))),
        README: _readme(bundle),
    }
    for name in TierName:
        files[f"prompt-{name.value}.txt"] = prompt_text(bundle[name].prompt)
        files[f"request-{name.value}.json"] = _pretty(_request(bundle, name))
    marks: JsonValue = {name: cast(JsonValue, _line_marks(text)) for name, text in files.items()}
    return {**files, MANIFEST: _pretty({"format": FORMAT, "hash": bundle.hash, "lines": marks})}


def read_files(files: Mapping[str, bytes], folder: str) -> Bundle:
    """The bundle of a folder's files. Raises InputError that names the file and line, and where it can be known the
    byte, of the first thing that is not as it was exported."""
    manifest = _read_manifest(files, folder)
    data = files.get(BUNDLE)
    if data is None:
        raise InputError(Place(f"{folder}/{BUNDLE}"), "the file is missing", hint=_HINT)
    _check_lines(data, manifest.lines.get(BUNDLE, []), f"{folder}/{BUNDLE}")
    try:
        body = json.loads(data)
        bundle = Bundle.model_validate(body)
    except ValueError as error:
        raise InputError(Place(f"{folder}/{BUNDLE}"), f"this is no bundle: {error}"[:300], hint=_HINT) from error
    if digest(body) != manifest.hash or bundle.hash != manifest.hash:
        raise InputError(
            Place(f"{folder}/{MANIFEST}"),
            f"the bundle's hash is {digest(body)[:12]}, not {manifest.hash[:12]} as the manifest says",
            hint=_HINT,
        )
    today = files_of(bundle)
    if unknown := manifest.lines.keys() ^ (today.keys() - {MANIFEST}):
        said = f"it should list the other files, and {min(unknown)!r} is wrong"
        raise InputError(Place(f"{folder}/{MANIFEST}"), said, hint=_HINT)
    for name, marks in manifest.lines.items():
        expected = today.get(name, "")
        if _line_marks(expected) == marks:
            _check_bytes(files.get(name), expected.encode(), f"{folder}/{name}")
        else:  # another version of this code wrote it in other words
            _check_lines(files.get(name), marks, f"{folder}/{name}")
    return bundle


class _Manifest(BaseModel):
    """The hash of the bundle, and a mark of every line of every other file."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    hash: str
    lines: dict[str, list[str]]


def _read_manifest(files: Mapping[str, bytes], folder: str) -> _Manifest:
    place = Place(f"{folder}/{MANIFEST}")
    data = files.get(MANIFEST)
    if data is None:
        raise InputError(place, "the file is missing", hint=_HINT)
    try:
        manifest = _Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise InputError(place, f"this is no manifest of a bundle: {problem}", hint=_HINT) from error
    _check_bytes(data, _pretty(cast(JsonValue, manifest.model_dump(mode="json"))).encode(), f"{folder}/{MANIFEST}")
    return manifest


def _check_lines(data: bytes | None, marks: list[str], file: str) -> None:
    """Compare each line with its mark: all that is left of what a changed bundle was before."""
    if data is None:
        raise InputError(Place(file), "the file is missing", hint=_HINT)
    found = _line_marks(data.decode(errors="replace"))
    for number, mark in enumerate(found, start=1):
        if number > len(marks) or mark != marks[number - 1]:
            line = data.decode(errors="replace").split("\n")[number - 1].strip()
            raise InputError(Place(file, number), f"this line is not what was exported: {line[:120]}", hint=_HINT)
    if len(found) < len(marks):
        raise InputError(Place(file, len(found) + 1), "the rest of the file is missing", hint=_HINT)


def _check_bytes(data: bytes | None, expected: bytes, file: str) -> None:
    if data is None:
        raise InputError(Place(file), "the file is missing", hint=_HINT)
    if data == expected:
        return
    pairs = zip(data, expected, strict=False)
    at = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(data), len(expected)))
    line, column = expected[:at].count(b"\n") + 1, at - (expected[:at].rfind(b"\n") + 1) + 1
    there, was = (repr(text[at : at + 1].decode(errors="replace")) or "its end" for text in (data, expected))
    message = f"byte {at} is not what the bundle gives: it is {there}, and was {was}"
    raise InputError(Place(file, line, column), message, hint=_HINT)


def _line_marks(text: str) -> list[str]:
    return [hashlib.sha256(line.encode()).hexdigest()[:8] for line in text.split("\n")]


def _request(bundle: Bundle, name: TierName) -> JsonValue:
    """The body of POST /chat/completions for one row, its fields in {{double_braces}}."""
    tier, title = bundle[name].tier, bundle.json_schema.get("title", "Answer")
    return {
        "model": tier.model,
        "messages": cast(JsonValue, bundle[name].prompt.template()),
        "temperature": tier.temperature,
        "seed": tier.seed,
        "max_tokens": tier.max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": title, "schema": bundle.json_schema, "strict": True},
        },
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }


def _pretty(value: JsonValue) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _readme(bundle: Bundle) -> str:
    certificate = bundle.certificate
    if isinstance(certificate, Certificate):
        rule = (
            f"1. Ask the cheap model. Where its answer is valid and its confidence is at least `{bundle.threshold!r}`, "
            "keep it.\n2. Ask the strong model about every other row."
        )
        promise = certificate.promise
    else:
        rule = "Ask the strong model about every row: no threshold could be certified."
        promise = f"Nothing is promised: {certificate.reason}."
    return f"""# Bundle of {bundle.workload}

`{bundle.hash}`

This is the sha256 of `bundle.json` as canonical JSON: sorted keys, no spaces, UTF-8.

## How to use it

Every tier is an OpenAI-compatible chat completion: send `request-cheap.json` or `request-strong.json` with the row's
fields put in place of the `{{{{double_braces}}}}` of the last message. The answer must end with `finish_reason`
"stop" and follow `schema.json`; one that does not is asked again up to {bundle.max_reasks} times.

{rule}

The answer: where the value of `{bundle.decisive}` begins, sum up from the log-probabilities what each allowed value can
get, token by token while several are possible; divide each by its `prior` in `bundle.json` and scale them to 1. The
largest names the answer. {_confidence(bundle)}

`headrace import FOLDER` adds the bundle to a ledger and checks every byte; it moves no alias. Then
`headrace promote {bundle.hash[:12]}` makes it champion.

## What it promises

{promise}

A change of model, revision, prompt, quantisation, engine version, logprobs mode, schema or prices voids this.

{_FILES}"""


def _confidence(bundle: Bundle) -> str:
    signal, longest = bundle.routing.signal, bundle.routing.straight_from
    words = (
        f"The confidence is the signal `{signal}`: {MEANINGS[signal]}. A row that has none goes to the strong model."
    )
    if longest is None:
        return words
    return f"{words} So does, without asking the cheap one, a row whose message has {longest} characters or more."


_FILES = """## Files

| file | holds |
|---|---|
| `bundle.json` | everything; the other files follow from it |
| `prompt-cheap.txt`, `prompt-strong.txt` | the prompts as text |
| `request-cheap.json`, `request-strong.json` | the whole request |
| `schema.json` | the JSON Schema of an answer |
| `certificate.json` | the certificate with its test and its figures, or why there is none |
| `manifest.json` | the hash, and a mark of each line of the other files |
"""
