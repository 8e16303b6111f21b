"""Deliveries: what a believed message says, and which allow-listed datasets it means.

Nothing of a payload is ever opened or run: names in it are compared with names of `triggers.yaml`, and that is all.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote_plus

from domain.errors import InputError, Place
from domain.triggers import Scheme, Selector, Triggers

Json = Mapping[str, Any]
UPDATED = "headrace.dataset.updated"
"""The type of our own event: `{"type": UPDATED, "data": {"dataset": NAME}}`."""
BRANCH = "refs/heads/"
MOST_COMMITS = 2048
"""GitHub lists no more commits of a push than these."""
MOST_FILES = 3000
"""GitHub lists no more files of a commit than these."""
OTHER = "other"
"""The event of a payload that does not name its own in plain words."""
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9._:-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class News:
    """One thing that a payload says to have changed; what is None was not said.

    `ref` is a branch's bare name, or the whole of another ref. `paths` None means that it could be any file.
    """

    dataset: str | None = None
    repository: str | None = None
    ref: str | None = None
    paths: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A payload in our terms: the event in the sender's words, and what it says to have changed."""

    event: str
    news: tuple[News, ...] = ()


def read_payload(body: bytes) -> Json:
    """The one JSON object that a body is; raises InputError for anything else.

    Refused are also what parsers disagree about, or Postgres does not take: equal keys, NaN, numbers beyond a float,
    integers of more than 4,300 digits, nesting of a thousand and more, and bytes that are not UTF-8.
    """
    place = Place("body")
    try:
        payload: object = json.loads(
            body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_never, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise InputError(place, "this is not UTF-8", hint=_SEND) from error
    except RecursionError as error:
        raise InputError(place, "this is nested too deep", hint=_SEND) from error
    except ValueError as error:
        raise InputError(place, f"this is not JSON as we read it: {error}"[:200], hint=_SEND) from error
    if not isinstance(payload, dict):
        raise InputError(place, "this is not a JSON object", hint=_SEND)
    return cast(Json, payload)


_SEND = "Send one JSON object, UTF-8, as application/json."


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _never(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


def said_by(scheme: Scheme, event: str, payload: Json) -> Said:
    """What a payload says; `event` is what the sender's header names it, where it has one.

    A payload of an unknown shape says nothing, and is no error: senders add events as they like.
    """
    return _READERS[scheme](event, payload)


def datasets_meant(triggers: Triggers, source: str, said: Said) -> tuple[str, ...]:
    """The datasets of `triggers.yaml` that list this source, and whose selector fits something that was said."""
    return tuple(
        name
        for name, watched in triggers.datasets.items()
        if (selector := watched.sources.get(source)) is not None and any(_fits(selector, name, n) for n in said.news)
    )


def _fits(selector: Selector, name: str, news: News) -> bool:
    if news.dataset is not None and news.dataset != name:
        return False
    if selector.repository is not None and selector.repository != news.repository:
        return False
    # A tag, a pull request's ref or a converted copy is meant only where it is named.
    branch = not (news.ref or "").startswith("refs/")
    if not (branch if selector.ref is None else selector.ref.removeprefix(BRANCH) == news.ref):
        return False
    if not selector.paths or news.paths is None:
        return True
    return any(fits_glob(pattern, path) for pattern in selector.paths for path in news.paths)


def fits_glob(pattern: str, path: str) -> bool:
    """Whether a path fits: `*` and `?` stay within a folder, `**/` is any folders or none, a last `**` anything."""
    return _compiled(pattern).fullmatch(path) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    meaning = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(meaning.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _standard(_event: str, payload: Json) -> Said:
    dataset = _text(_object(payload, "data"), "dataset")
    if payload.get("type") != UPDATED or dataset is None:
        return Said(_word(payload.get("type")))
    return Said(UPDATED, (News(dataset=dataset),))


def _github(event: str, payload: Json) -> Said:
    repository, ref = _text(_object(payload, "repository"), "full_name"), _text(payload, "ref")
    if event != "push" or repository is None or ref is None or payload.get("deleted") is True:
        return Said(_word(event))
    return Said(event, (News(repository=repository, ref=ref.removeprefix(BRANCH), paths=_pushed(payload)),))


def _pushed(payload: Json) -> tuple[str, ...] | None:
    """The files that a push touches; None where the commits do not tell all of them."""
    commits = payload.get("commits")
    if payload.get("forced") is True or payload.get("created") is True:
        return None
    if not isinstance(commits, list) or not commits or len(cast(list[Any], commits)) >= MOST_COMMITS:
        return None
    touched: dict[str, None] = {}
    for commit in cast(list[Any], commits):
        if not isinstance(commit, dict):
            return None
        lists = [cast(Json, commit).get(kind) for kind in ("added", "modified", "removed")]
        if not all(isinstance(paths, list) for paths in lists):
            return None
        paths = [path for paths in cast(list[list[Any]], lists) for path in paths]
        if len(paths) >= MOST_FILES or not all(isinstance(path, str) for path in paths):
            return None
        touched.update(dict.fromkeys(paths))
    return tuple(touched)


def _huggingface(_event: str, payload: Json) -> Said:
    about, repo = _object(payload, "event"), _object(payload, "repo")
    scope, repository = _word(about.get("scope")), _text(repo, "name")
    content = scope == "repo.content" or scope.startswith("repo.content.")
    if not content or repo.get("type") != "dataset" or repository is None:
        return Said(scope)
    if "updatedRefs" not in payload:
        return Said(scope, (News(repository=repository),))
    refs = [
        ref.removeprefix(BRANCH)
        for update in _objects(payload, "updatedRefs")
        if (ref := _text(update, "ref")) is not None and update.get("newSha") is not None  # without: it was deleted
    ]
    return Said(scope, tuple(News(repository=repository, ref=ref) for ref in dict.fromkeys(refs)))


MOVED = frozenset({"post-commit", "post-merge", "post-revert", "post-cherry-pick"})
"""What lakeFS says once a branch has other content."""


def _lakefs(_event: str, payload: Json) -> Said:
    event, repository = _word(payload.get("event_type")), _text(payload, "repository_id")
    branch = _text(payload, "branch_id")
    if event not in MOVED or repository is None or branch is None:
        return Said(event)
    return Said(event, (News(repository=repository, ref=branch),))


def _s3(_event: str, payload: Json) -> Said:
    """Objects made and removed; that one was read (MinIO tells that too) is no change."""
    event, keys = OTHER, dict[str, dict[str, None]]()
    for record in _objects(payload, "Records"):
        name = _word(record.get("eventName"))
        stored = _object(record, "s3")
        bucket, key = _text(_object(stored, "bucket"), "name"), _text(_object(stored, "object"), "key")
        event = name if event == OTHER else event
        if name.removeprefix("s3:").startswith(("ObjectCreated:", "ObjectRemoved:")) and bucket and key:
            keys.setdefault(bucket, {})[unquote_plus(key)] = None
            event = name
    return Said(event, tuple(News(repository=bucket, paths=tuple(found)) for bucket, found in keys.items()))


def _mlflow(_event: str, payload: Json) -> Said:
    entity, action, data = _word(payload.get("entity")), _word(payload.get("action")), _object(payload, "data")
    event, name, alias = f"{entity}.{action}", _text(data, "name"), _text(data, "alias")
    if name is None or action != "created":
        return Said(event)
    if entity in ("prompt_alias", "model_version_alias") and alias is not None:
        return Said(event, (News(repository=name, ref=alias),))
    return Said(event, (News(repository=name),)) if entity == "prompt_version" else Said(event)


_READERS: dict[Scheme, Callable[[str, Json], Said]] = {
    Scheme.STANDARD: _standard,
    Scheme.GITHUB: _github,
    Scheme.HUGGINGFACE: _huggingface,
    Scheme.LAKEFS: _lakefs,
    Scheme.S3: _s3,
    Scheme.MLFLOW: _mlflow,
}


def _object(payload: Json, key: str) -> Json:
    value = payload.get(key)
    return cast(Json, value) if isinstance(value, dict) else {}


def _objects(payload: Json, key: str) -> Iterable[Json]:
    value = payload.get(key)
    listed = cast(list[Any], value) if isinstance(value, list) else []
    return (cast(Json, item) for item in listed if isinstance(item, dict))


def _text(payload: Json, key: str) -> str | None:
    value = payload.get(key)
    return value if isinstance(value, str) and value else None


def _word(value: object) -> str:
    """A name of an event that can be stored and shown."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else OTHER
