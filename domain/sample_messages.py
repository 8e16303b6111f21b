"""Sample messages: what a sender of each scheme would say of a change that a selector is about."""

import re
from typing import Any

from domain.deliveries import BRANCH, UPDATED
from domain.triggers import Scheme, Selector

Json = dict[str, Any]
OWNER = "example/data"


def sample_message(scheme: Scheme, dataset: str, selector: Selector, *, unique: str, at: str) -> tuple[str, Json]:
    """Event header and payload of a message that means this dataset.

    `unique` is 40 hexadecimal digits, used as what a sender would call its revision; `at` a time in ISO 8601.
    """
    repository, branch = selector.repository or OWNER, (selector.ref or "main").removeprefix(BRANCH)
    ref = branch if branch.startswith("refs/") else BRANCH + branch
    path = _path(selector.paths[0]) if selector.paths else "data/example.jsonl"
    before = "0" * 39 + "1"
    match scheme:
        case Scheme.STANDARD:
            return "", {"type": UPDATED, "timestamp": at, "data": {"dataset": dataset}}
        case Scheme.GITHUB:
            commit = {"id": unique, "timestamp": at, "added": [], "modified": [path], "removed": []}
            about = {"ref": ref, "before": before, "after": unique, "forced": False, "commits": [commit]}
            return "push", {**about, "repository": {"full_name": repository}}
        case Scheme.HUGGINGFACE:
            return "", {
                "event": {"action": "update", "scope": "repo.content"},
                "repo": {"type": "dataset", "name": repository, "headSha": unique},
                "updatedRefs": [{"ref": ref, "oldSha": before, "newSha": unique}],
                "webhook": {"version": 3},
            }
        case Scheme.LAKEFS:
            about = {"event_type": "post-commit", "event_time": at, "repository_id": repository}
            return "", {**about, "branch_id": branch, "commit_id": unique}
        case Scheme.S3:
            stored = {"bucket": {"name": repository}, "object": {"key": path, "eTag": unique[:32]}}
            return "", {"Records": [{"eventName": "s3:ObjectCreated:Put", "eventTime": at, "s3": stored}]}
        case Scheme.MLFLOW:
            data = {"name": repository, "alias": branch, "version": "1"}
            return "", {"entity": "prompt_alias", "action": "created", "timestamp": at, "data": data}


def _path(pattern: str) -> str:
    """A path that fits a glob."""
    return re.sub(r"\*\*/", "", pattern).replace("**", "example").replace("*", "example").replace("?", "x")
