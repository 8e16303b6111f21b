"""Bundle diffs: two bundles side by side, their texts as unified diffs, and what they did to the same rows."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from pydantic import JsonValue

from domain.bundles import Bundle, keeps
from domain.comparisons import Difference, paired_difference
from domain.figures import Row
from domain.prompts import PromptVersion
from domain.workloads import TierName

_TEXTS = {"json_schema": True, "cheap": {"prompt"}, "strong": {"prompt"}, "certificate": {"grid", "promise"}}
"""Parts that are shown as a text diff, or follow from others."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A value that is another one in the second bundle; None where a bundle has no such value."""

    name: str
    before: JsonValue
    after: JsonValue


@dataclass(frozen=True, slots=True)
class BundleDiff:
    """What differs: prompts and schema as unified diffs ("" when equal), everything else value by value."""

    prompts: Mapping[TierName, str]
    schema: str
    changed: tuple[Changed, ...]

    @property
    def identical(self) -> bool:
        """Whether nothing differs."""
        return not (any(self.prompts.values()) or self.schema or self.changed)


@dataclass(frozen=True, slots=True)
class Compared:
    """Quality and USD per 1,000 rows of two cascades on the same n rows, second less first."""

    quality: Difference
    usd_per_1000: Difference
    before_only: int
    after_only: int


def diff_bundles(before: Bundle, after: Bundle) -> BundleDiff:
    """Compare two bundles part by part."""
    prompts = {
        name: _unified(prompt_text(before[name].prompt), prompt_text(after[name].prompt), before, after)
        for name in TierName
    }
    schema = _unified(_pretty(before.json_schema), _pretty(after.json_schema), before, after)
    left, right = dict(_leaves(_rest(before))), dict(_leaves(_rest(after)))
    names = [*left, *(name for name in right if name not in left)]
    changed = (Changed(name, left.get(name), right.get(name)) for name in names)
    return BundleDiff(prompts, schema, tuple(part for part in changed if part.before != part.after))


def compare_cascades(
    before: Sequence[Row], after: Sequence[Row], *, thresholds: tuple[float | None, float | None]
) -> Compared:
    """What two cascades did to the rows that both answered, by the rows' keys."""
    return compare_repeats((before, thresholds[0]), [(after, thresholds[1])])


def compare_repeats(
    before: tuple[Sequence[Row], float | None], repeats: Sequence[tuple[Sequence[Row], float | None]]
) -> Compared:
    """The same of a cascade that was run several times: a row counts once, by its mean over the repeats.

    Each side is rows and a threshold. Rows are drawn, repeats of a row are not: the interval is over rows.
    """
    left, rights = _routed(*before), [_routed(*repeat) for repeat in repeats]
    answered = {key for key in rights[0] if all(key in right for right in rights)}
    both = sorted(left.keys() & answered)
    one = np.array([left[key] for key in both], dtype=np.float64).reshape(-1, 2)
    two = np.array([[right[key] for key in both] for right in rights], dtype=np.float64).reshape(len(rights), -1, 2)
    mean = two.mean(axis=0)
    return Compared(
        quality=paired_difference(one[:, 0], mean[:, 0]),
        usd_per_1000=paired_difference(1000 * one[:, 1], 1000 * mean[:, 1], bounded=False),
        before_only=len(left) - len(both),
        after_only=len(answered) - len(both),
    )


def prompt_text(prompt: PromptVersion) -> str:
    """A prompt's messages as a text, the row's fields in {{double_braces}}."""
    return "\n".join(f"[{message['role']}]\n{message['content'].rstrip()}\n" for message in prompt.template())


def _routed(rows: Sequence[Row], threshold: float | None) -> dict[str, tuple[float, float]]:
    """Quality and USD of each row as the cascade answers it."""
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        kept = keeps(row.cheap.confidence, threshold)
        asked = row.cheap.usd if threshold is not None else 0.0
        quality = row.cheap_quality if kept else row.strong_quality
        found[row.key] = (quality, asked + (0.0 if kept else row.strong.usd))
    return found


def _rest(bundle: Bundle) -> JsonValue:
    return cast(JsonValue, bundle.model_dump(mode="json", exclude=cast(dict[str, bool], _TEXTS)))


def _leaves(value: JsonValue, name: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every value of a JSON object by its dotted name; lists are values."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _unified(left: str, right: str, before: Bundle, after: Bundle) -> str:
    lines = difflib.unified_diff(
        left.splitlines(), right.splitlines(), before.hash[:12], after.hash[:12], lineterm="", n=2
    )
    return "\n".join(lines)


def _pretty(value: JsonValue) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
