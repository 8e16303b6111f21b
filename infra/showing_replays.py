"""What came of a replay or of a reproduction, as people read it and as JSON."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape

from domain.replays import Cause, Divergence, Kind
from infra.replaying import Replay
from infra.sealing import Seal
from infra.terminal import print_json

MEANING = {
    Cause.DATA: "the rows in the ledger are not those that the run saw",
    Cause.PROMPT: "a prompt in the ledger is not the one that its hash names",
    Cause.SCHEMA: "the schema or the metric beside the workload has changed since the run, or its recorded spec has",
    Cause.CODE: "the code or a library that decides has changed since the run",
    Cause.LEDGER: "what stands in the ledger does not follow from the answers in it: somebody has changed it",
}
SHOWN = 400
"""Characters of a value."""


def show_replay(console: Console, replay: Replay, seal: Seal, *, as_json: bool) -> None:
    """`identical`, or the first divergence with its cause and both values; then what was compared."""
    if as_json:
        print_json(console, json.dumps(_facts(replay, seal)))
        return
    run, seen = replay.run, replay.seen
    verdict = "[bold green]identical[/]" if seen.identical else "[bold red]divergent[/]"
    console.print(f"{verdict}  {run.kind} {escape(run.workload)}, run {run.id[:8]}, {replay.rows:,} rows")
    if first := seen.first:
        recorded, replayed = _apart(first)
        console.print(f"  first     {first.kind.value}: {escape(first.what)}")
        console.print(f"  cause     {first.cause.value}: {MEANING[first.cause]}")
        console.print(f"  recorded  {escape(recorded)}")
        console.print(f"  replayed  {escape(replayed)}")
        console.print("  diverging " + ", ".join(f"{seen.diverging[k]:,} {k.value}" for k in Kind if seen.diverging[k]))
    console.print("  compared  " + ", ".join(f"{seen.compared[k]:,} {k.value}" for k in Kind if seen.compared[k]))
    if replay.unproven:
        console.print(f"  unproven  {replay.unproven:,} refused rows, which left no answer to go by")
    for note in replay.notes:
        console.print(f"  note      {escape(note)}")
    console.print(f"  code      {_code(replay)}")
    console.print(f"  network   {seal}")


def _code(replay: Replay) -> str:
    if replay.recorded_code is None:
        return f"{replay.code[:12]}; the run does not say which code made it"
    if replay.recorded_code == replay.code:
        return f"{replay.code[:12]}, which made the run"
    return f"{replay.code[:12]}; the run was made by {replay.recorded_code[:12]}"


def _apart(divergence: Divergence) -> tuple[str, str]:
    """Both values from a little before the place where they part."""
    recorded, replayed = divergence.recorded, divergence.replayed
    same = next((n for n, (a, b) in enumerate(zip(recorded, replayed, strict=False)) if a != b), 0)
    start = max(0, same - SHOWN // 4) if max(len(recorded), len(replayed)) > SHOWN else 0

    def cut(value: str) -> str:
        return ("… " if start else "") + value[start : start + SHOWN] + (" …" if len(value) > start + SHOWN else "")

    return cut(recorded), cut(replayed)


def _facts(replay: Replay, seal: Seal) -> dict[str, Any]:
    seen = replay.seen
    return {
        "identical": seen.identical,
        "run": replay.run.id,
        "kind": replay.run.kind,
        "workload": replay.run.workload,
        "rows": replay.rows,
        "compared": {kind.value: seen.compared[kind] for kind in Kind if seen.compared[kind]},
        "diverging": {kind.value: seen.diverging[kind] for kind in Kind if seen.diverging[kind]},
        "first": _divergence(seen.first) if seen.first else None,
        "first_by_kind": [_divergence(seen.firsts[kind]) for kind in Kind if kind in seen.firsts],
        "unproven": replay.unproven,
        "notes": replay.notes,
        "code": {"recorded": replay.recorded_code, "replayed": replay.code},
        "network": {"sealed_by_the_kernel": seal.gap is None, "gap": seal.gap, "refused": seal.tried},
    }


def _divergence(first: Divergence) -> dict[str, str]:
    return {
        "kind": first.kind,
        "what": first.what,
        "cause": first.cause,
        "recorded": first.recorded,
        "replayed": first.replayed,
    }
