"""What believed payloads say, which datasets they mean, and that nothing else of them counts."""

from typing import Any

import pytest

from domain.deliveries import MOST_COMMITS, MOST_FILES, UPDATED, News, datasets_meant, fits_glob, read_payload, said_by
from domain.errors import InputError
from domain.sample_messages import sample_message
from domain.triggers import Scheme, Selector, Triggers

Json = dict[str, Any]


def triggers(selector: Json, *, source: str = "s") -> Triggers:
    return Triggers.model_validate(
        {
            "sources": {"s": {}, "t": {}},
            "datasets": {
                "tickets": {"workload": "w", "sources": {source: selector}},
                "others": {"workload": "w", "sources": {"t": {}}},
            },
        }
    )


def meant(scheme: Scheme, payload: Json, selector: Json, event: str = "") -> bool:
    """Whether the payload, from the source s, means the dataset tickets."""
    found = datasets_meant(triggers(selector), "s", said_by(scheme, event, payload))
    assert set(found) <= {"tickets"}
    return found == ("tickets",)


def push(*paths: str, **more: Any) -> Json:
    commit = {"added": list(paths[:1]), "modified": list(paths[1:2]), "removed": list(paths[2:])}
    return {
        "ref": "refs/heads/main",
        "forced": False,
        "commits": [commit],
        "repository": {"full_name": "o/r", "url": "file:///etc/passwd"},
        **more,
    }


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize(
    "selector",
    [
        {"repository": "o/r", "ref": "release", "paths": ["**/*.dvc", "x"]},
        {"repository": "o/r", "paths": ["data/*/?.jsonl"]},
        {"repository": "o/r"},
        {},
    ],
)
def test_a_sample_message_means_its_dataset(scheme: Scheme, selector: Json) -> None:
    if scheme is Scheme.STANDARD:
        selector = {}
    if scheme is Scheme.S3:
        selector = {key: value for key, value in selector.items() if key != "ref"}
    chosen = Selector.model_validate(selector)
    event, payload = sample_message(scheme, "tickets", chosen, unique="a" * 40, at="2026-01-01T00:00:00+00:00")
    assert meant(scheme, payload, selector, event)
    if "repository" in selector:
        assert not meant(scheme, payload, {**selector, "repository": "o/other"}, event)


def test_our_own_message_names_a_dataset_that_lists_its_source() -> None:
    def names(dataset: object, source: str = "s") -> tuple[str, ...]:
        payload = {"type": UPDATED, "data": {"dataset": dataset, "uri": "file:///etc/passwd", "path": "../.."}}
        return datasets_meant(triggers({}), source, said_by(Scheme.STANDARD, "", payload))

    assert names("tickets") == ("tickets",)
    assert names("others") == ()  # the dataset is there, and this source may not say so
    assert names("tickets", "t") == ()
    assert names("nobody") == names("") == names(None) == names(["tickets"]) == names("../tickets") == ()
    other = {"type": "headrace.bundle.promoted", "data": {"dataset": "tickets"}}
    assert said_by(Scheme.STANDARD, "", other).news == ()


@pytest.mark.parametrize(
    ("payload", "selector", "expected"),
    [
        (push("data/a.jsonl"), {"paths": ["data/*.jsonl"]}, True),
        (push("x", "data/a.jsonl"), {"paths": ["data/*.jsonl"]}, True),
        (push("x", "y", "data/a.jsonl"), {"paths": ["data/*.jsonl"]}, True),
        (push("data/deep/a.jsonl"), {"paths": ["data/*.jsonl"]}, False),
        (push("README.md"), {"paths": ["data/*.jsonl"]}, False),
        (push("README.md"), {}, True),
        (push("tickets.dvc"), {"paths": ["**/*.dvc", "dvc.lock"]}, True),
        (push("a/b/tickets.dvc"), {"paths": ["**/*.dvc", "dvc.lock"]}, True),
        (push("dvc.lock"), {"paths": ["**/*.dvc", "dvc.lock"]}, True),
        (push("dvc.yaml"), {"paths": ["**/*.dvc", "dvc.lock"]}, False),
        (push("README.md", forced=True), {"paths": ["data/*"]}, True),
        (push("README.md", created=True), {"paths": ["data/*"]}, True),
        (push("README.md", commits=[]), {"paths": ["data/*"]}, True),
        (push("README.md", commits=[{}]), {"paths": ["data/*"]}, True),
        (push("README.md", commits=[None]), {"paths": ["data/*"]}, True),
        (push("README.md", commits=push("README.md")["commits"] * MOST_COMMITS), {"paths": ["data/*"]}, True),
        (push("README.md", commits=push("README.md")["commits"] * (MOST_COMMITS - 1)), {"paths": ["data/*"]}, False),
        (push(*["README.md"] * MOST_FILES), {"paths": ["data/*"]}, True),
        (push("x", deleted=True), {}, False),
        (push("x", ref="refs/tags/v1"), {}, False),
        (push("x", ref="refs/tags/v1"), {"ref": "refs/tags/v1"}, True),
        (push("x", ref="refs/heads/dev"), {"ref": "main"}, False),
        (push("x", ref="refs/heads/dev"), {}, True),
        (push("x"), {"ref": "main"}, True),
        (push("x"), {"ref": "refs/heads/main"}, True),
        (push("x", ref=7), {}, False),
        (push("x", repository="o/r"), {}, False),
    ],
)
def test_a_push_means_what_it_touches(payload: Json, selector: Json, expected: bool) -> None:
    assert meant(Scheme.GITHUB, payload, selector, "push") is expected


def test_only_a_push_is_a_push() -> None:
    for event in ("ping", "pull_request", "", "pu\x00sh", "é" * 1000):
        said = said_by(Scheme.GITHUB, event, push("x"))
        assert said.news == ()
        assert said.event in ("ping", "pull_request", "other")


def hub(scope: str = "repo.content", kind: str = "dataset", **more: Any) -> Json:
    update = {"ref": "refs/heads/main", "oldSha": "1", "newSha": "2"}
    return {
        "event": {"action": "update", "scope": scope},
        "repo": {"type": kind, "name": "o/r"},
        "updatedRefs": [update],
        **more,
    }


@pytest.mark.parametrize(
    ("payload", "selector", "expected"),
    [
        (hub(), {}, True),
        (hub(), {"repository": "o/r", "ref": "main", "paths": ["data/*"]}, True),  # it does not say which files
        (hub(), {"ref": "dev"}, False),
        (hub("repo.content.lfs"), {}, True),
        (hub("repo.contents"), {}, False),
        (hub("repo.config"), {}, False),
        (hub("discussion"), {}, False),
        (hub(kind="model"), {}, False),
        (hub(updatedRefs=[{"ref": "refs/pr/1", "newSha": "2"}]), {}, False),
        (hub(updatedRefs=[{"ref": "refs/pr/1", "newSha": "2"}]), {"ref": "refs/pr/1"}, True),
        (hub(updatedRefs=[{"ref": "refs/heads/main", "newSha": None}]), {}, False),
        (hub(updatedRefs=[7, {}, {"ref": "refs/heads/main", "newSha": "2"}]), {}, True),
        (hub(updatedRefs="all"), {}, False),
        (hub(repo=None), {}, False),
    ],
)
def test_a_dataset_of_the_hub(payload: Json, selector: Json, expected: bool) -> None:
    assert meant(Scheme.HUGGINGFACE, payload, selector) is expected


@pytest.mark.parametrize("event", ["pre-commit", "pre-merge", "pre-revert", "post-create-tag", "", None, 7])
def test_of_lakefs_only_what_has_happened_counts(event: object) -> None:
    payload = {"event_type": event, "repository_id": "r", "branch_id": "main"}
    assert not meant(Scheme.LAKEFS, payload, {})


@pytest.mark.parametrize("event", ["post-commit", "post-merge", "post-revert", "post-cherry-pick"])
def test_a_branch_of_lakefs_has_other_content(event: str) -> None:
    payload = {"event_type": event, "repository_id": "r", "branch_id": "main"}
    assert meant(Scheme.LAKEFS, payload, {"repository": "r", "ref": "main"})
    assert not meant(Scheme.LAKEFS, payload, {"repository": "r", "ref": "other"})


def test_objects_made_and_removed_by_decoded_key() -> None:
    def event(name: str, key: str = "tickets/my+rows%28a%29.jsonl") -> Json:
        return {"Records": [{"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}]}

    exact = {"repository": "b", "paths": ["tickets/my rows(a).jsonl"]}
    assert meant(Scheme.S3, event("ObjectCreated:Put"), exact)
    assert meant(Scheme.S3, event("s3:ObjectRemoved:Delete"), exact)
    assert not meant(Scheme.S3, event("s3:ObjectAccessed:Get"), exact)  # our own reading would start us again
    assert not meant(Scheme.S3, event("s3:ObjectCreated:Put", "other"), exact)
    assert not meant(Scheme.S3, {"Event": "s3:TestEvent"}, {})
    assert not meant(Scheme.S3, {"Records": "all"}, {})
    assert not meant(Scheme.S3, {"Records": [None, {}, {"s3": []}]}, {})


def test_aliases_at_mlflow() -> None:
    moved = {"entity": "prompt_alias", "action": "created", "data": {"name": "p", "alias": "live", "version": "2"}}
    assert said_by(Scheme.MLFLOW, "", moved).news == (News(repository="p", ref="live"),)
    assert meant(Scheme.MLFLOW, moved, {"repository": "p", "ref": "live"})
    assert not meant(Scheme.MLFLOW, moved, {"repository": "p", "ref": "test"})
    assert meant(Scheme.MLFLOW, {**moved, "entity": "model_version_alias"}, {"repository": "p", "ref": "live"})
    assert not meant(Scheme.MLFLOW, {**moved, "action": "deleted"}, {})
    assert not meant(Scheme.MLFLOW, {**moved, "entity": "registered_model"}, {})
    assert meant(Scheme.MLFLOW, {**moved, "entity": "prompt_version"}, {"repository": "p"})


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("value", [None, 7, "text", [], [[]], {}, {"x": {}}, True, "\x00", "\ud800"])
def test_an_unknown_shape_says_nothing(scheme: Scheme, value: object) -> None:
    names = (
        "type data ref repository commits event repo updatedRefs event_type repository_id branch_id Records entity "
        "action"
    )
    payload: Json = dict.fromkeys(names.split(), value)
    said = said_by(scheme, "push", payload)
    assert datasets_meant(triggers({}), "s", said) == ()
    assert said.event.isascii()
    assert said.event.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"{",
        b"{}{}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": -1e400}',
        b'{"a": ' + b"7" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": 1}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"a": "\x00"}',
        b"{'a': 1}",
    ],
)
def test_what_is_no_json_object_of_ours_is_refused(body: bytes) -> None:
    with pytest.raises(InputError):
        read_payload(body)


def test_what_is_one_is_read() -> None:
    assert read_payload(b' {"a": [1, {"b": "\\u0000\\ud800"}], "c": 1e308} ')["c"] == 1e308


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.dvc", "a.dvc", True),
        ("*.dvc", "b/a.dvc", False),
        ("**/*.dvc", "a.dvc", True),
        ("**/*.dvc", "c/b/a.dvc", True),
        ("data/**", "data/b/a", True),
        ("data/**", "other/a", False),
        ("data/**/a", "data/a", True),
        ("data/**/a", "data/x/y/a", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
        ("[a]", "[a]", True),
        ("a*", "a\nb", True),
        ("a", "a\n", False),
    ],
)
def test_globs(pattern: str, path: str, fits: bool) -> None:
    assert fits_glob(pattern, path) is fits
