"""Router: what every threshold costs and keeps, which of them are certified, and what the confidence is worth."""

import math
import shlex
from typing import cast

import streamlit as st

from dashboards import frontier_figures, frontiers, queries
from dashboards.addresses import complete
from dashboards.frontiers import Frontier
from dashboards.parts import chosen, download, empty, heading, table, workload
from dashboards.queries import Row
from domain.certificates import FIRST_USE, Certificate, Use
from domain.intervals import auroc_interval
from domain.prompts import PromptVersion
from domain.routers import MEANINGS, Routing
from domain.thresholds import tuning_share
from domain.workloads import SignalName, Target

RUNS = """
SELECT * FROM router_runs WHERE workload = :workload
ORDER BY starts_with(run_id, :run) DESC, kept, champion DESC, started_at DESC LIMIT 100
"""
THESE = "the labels' probabilities"
LEARNED = (SignalName.ISOTONIC, SignalName.REGRET)


def show() -> None:
    """The page."""
    heading("Router", "Which threshold keeps the promise, and what does each cost?")
    name = workload()
    if name is None:
        return
    asked = st.query_params.get("run", "")
    runs = {row["run_id"]: row for row in queries.rows(RUNS, workload=name, run=asked)}
    if not runs:
        empty("No run of this workload has looked for a threshold yet.", f"headrace run {shlex.quote(name)}")
        return
    complete("run", runs, "No run of this workload that the address asks for has looked for a threshold.")
    run = runs[chosen("Run", "run", list(runs), says=lambda key: _named(runs[key]), resets=("signal", "threshold"))]
    signals = signals_of(run)
    complete("signal", signals, "This run has no thresholds by the signal that the address asks for.")
    signal = SignalName(chosen("Signal", "signal", signals, resets=("threshold",)))
    found = _frontier(run["run_id"], signal.value)
    if found is None or not found.tuned.curve:
        empty("There is no row with a confidence to try thresholds on.", f"headrace show {run['run_id'][:8]}")
    else:
        deployed = run["threshold"] if signal is _routing(run).signal else None
        place = _slider(found, deployed)
        point = frontiers.point_of(found, place)
        _terms(found, run, signal)
        frontier_figures.draw(found, place, deployed)
        frontier_figures.figures(found, point, certified=found.certified(place))
        _command(found, run, place, deployed)
        frontier_figures.reliability(found, signal)
    _signals(run, float((found.pairs.cheap >= 1).mean()) if found and len(found.pairs.cheap) else 0.0)


def _named(row: Row) -> str:
    what = "looked at the champion's threshold again" if row["kept"] else "tuned"
    champion = ", champion" if row["champion"] else ""
    return f"{row['run_id'][:8]}  {row['started_at']:%Y-%m-%d %H:%M}, {what}, bundle {row['bundle_hash'][:8]}{champion}"


def signals_of(run: Row) -> list[str]:
    """The signals whose thresholds can be tried: the bundle's own first, then what the answers hold; what other learned
    signals would be is not on record."""
    own = _routing(run).signal
    rest = {SignalName(name) for name in _told(run)} - {own, *LEARNED}
    return [name.value for name in (own, *sorted(rest))]


def _routing(run: Row) -> Routing:
    return Routing.model_validate(run["routing"] or {})


def _told(run: Row) -> dict[str, Row]:
    """What the run wrote of each signal."""
    return run["signals"] or {}


@st.cache_resource(ttl=600, max_entries=8, show_spinner="Trying every threshold")
def _frontier(run_id: str, signal: str) -> Frontier | None:
    run = queries.one("SELECT * FROM router_runs WHERE run_id = :run", run=run_id)
    if run is None:
        return None
    own, name = _routing(run), SignalName(signal)
    routing = own if own.signal is name else Routing(signal=name)
    rows = frontiers.load_rows(
        run_id,
        PromptVersion.model_validate(run["prompt"]),
        decisive=run["decisive"],
        with_inputs=frontiers.looks_at_length(routing),
    )
    target, declared = Target.model_validate(run["target"]), cast(list[str], run["declared"])
    return frontiers.frontier(
        rows,
        routing,
        target,
        decisive=run["decisive"],
        declared=len(declared),
        use=use_of(run, target),
        counts=name is own.signal or name in declared,
    )


def forget() -> None:
    """Read and test everything anew."""
    queries.rows.clear()
    _frontier.clear()


def use_of(run: Row, target: Target) -> Use:
    """Which use of its calibration rows a run's tests are; for one that tested the champion's threshold alone, the use
    that a new tuning on them would be."""
    if run["kept"]:
        number = _uses(run) + 1
        return Use(number, tuning_share(target.spend, number))
    number = run["verdict"].get("tuning")
    return FIRST_USE if number is None else Use(number, tuning_share(target.spend, number))


def _uses(run: Row) -> int:
    found = queries.one("SELECT uses FROM router_uses WHERE run_id = :run", run=run["run_id"])
    return int(found["uses"]) if found else 0


def _slider(found: Frontier, deployed: float | None) -> int:
    """The place of the chosen threshold in the curve; at first that of the address (`?threshold=…`), else the deployed
    one, else the last that passed. The address keeps it."""
    curve = found.tuned.curve
    start = max(0, sum(point.passed for point in curve) - 1)
    asked = _asked()
    wanted = deployed if asked is None else asked
    if wanted is not None:
        start = min(range(len(curve)), key=lambda i: abs(curve[i].threshold - wanted))
    if asked is not None and curve[start].threshold != asked:
        st.info("The threshold in the address is none of those that were tried. What is shown is the one next to it.")
    if len(curve) > 1:
        start = st.select_slider(
            "Threshold: keep the cheap answer from this confidence on",
            options=list(range(len(curve))),
            value=start,
            format_func=lambda i: f"{curve[i].threshold:.4f}",
        )
    st.query_params["threshold"] = repr(float(curve[start].threshold))
    return start


def _asked() -> float | None:
    """The threshold in the address, where there is a number."""
    try:
        asked = float(st.query_params.get("threshold", ""))
    except ValueError:
        return None
    return asked if math.isfinite(asked) else None


def _terms(found: Frontier, run: Row, signal: SignalName) -> None:
    n, verdict = len(found.calibration), run["verdict"]
    loss = f"at most {found.target.eps:g}" + (" of strong's quality" if found.target.kind == "relative" else "")
    said = [
        f"Signal {signal.value}: {MEANINGS[signal].replace('these probabilities', THESE)}.",
        f"n = {n:,} calibration rows, {len(found.test):,} test rows. The promise: to lose {loss}, with probability "
        f"{1 - found.target.delta:g}; each threshold is tested at level {found.level:.4g} "
        f"({found.declared} declared, use {found.use.tuning} of these rows).",
    ]
    if not found.counts:
        said.append("This signal was not declared, so that nothing can be certified by it in this run.")
    if n != verdict["n"]:
        said.append(f"The verdict looked at {verdict['n']:,} rows; these are a sample of them, drawn by hash.")
    if run["kept"]:
        said.append(
            f"This run tested the champion's threshold {run['threshold']:.4f} alone: p = {verdict['p_value']:.3g}. "
            "The other thresholds are tested here as a new tuning on these rows would."
        )
    elif verdict["certified"] and n == verdict["n"] and signal.value == verdict.get("signal"):
        made = found.tuned.verdict
        if not isinstance(made, Certificate) or made.threshold != verdict["threshold"]:
            said.append("The tests of today's code choose another threshold on these rows than the run's certificate.")
    st.text(" ".join(said))


def _command(found: Frontier, run: Row, place: int, deployed: float | None) -> None:
    """How this threshold becomes a bundle: one that the bundle's own certificate proves by a command, another by a
    tuning that certifies it."""
    st.header("Make it a challenger", anchor=False)
    bundle = run["bundle_hash"][:12]
    threshold = found.tuned.curve[place].threshold
    if found.certified(place) and threshold == deployed:
        st.text(f"This threshold is the one of bundle {bundle}. To put it through the gate, and make it champion:")
        st.code(f"headrace promote {bundle}", language="console")
        return
    if found.certified(place) and deployed is not None and not run["kept"]:
        st.text(
            f"The tests that certify bundle {bundle} prove this threshold too: it may be chosen for whatever reason. "
            "This makes it a bundle, and challenger; `headrace promote` puts that through the gate:"
        )
        st.code(f"headrace bundle challenger {bundle} --threshold {threshold!r}", language="console", wrap_lines=True)
        return
    if not found.counts:
        _declare(found, run)
    else:
        _retune(found, run, place)


def _declare(found: Frontier, run: Row) -> None:
    st.text("Only a declared signal can be tuned by. Declare it in workload.yaml, and tune again:")
    declared = ", ".join([*run["declared"], found_signal(found)])
    st.code(f"router:\n  signals: [{declared}]", language="yaml")
    st.code(_retuned(run), language="console")


def _retune(found: Frontier, run: Row, place: int) -> None:
    """What has to be promised for a tuning to choose this threshold."""
    uses = _uses(run)
    asked = frontiers.asked_for(found, place, uses=uses)
    if asked is None:
        st.text("No loss below 0.5 would certify this threshold on these rows: it saves nothing, or loses too much.")
        return
    eps, made = asked
    weaker = "a weaker promise than today's" if eps > found.target.eps else "a promise at least as strong as today's"
    st.text(
        "The bundle's certificate does not prove this threshold: a tuning has to. "
        f"With a loss of {eps:g} allowed ({weaker}, {found.target.eps:g}), a new tuning on these rows, use {uses + 1} "
        f"of them, chooses threshold {made.threshold:.4f} (p = {made.p_value:.3g}, n = {made.n:,}). In workload.yaml:"
    )
    st.code(f"target:\n  eps: {eps:g}", language="yaml")
    st.code(_retuned(run), language="console")
    st.text(
        "The run makes the bundle challenger, and champion too when the gate has nothing against it; "
        "`headrace rollback` takes that back."
        + ("" if run["champion"] else " It keeps the prompts of the champion, which this run's bundle is not.")
    )


def _retuned(run: Row) -> str:
    return f"headrace run {shlex.quote(run['workload'])} --scope retune --no-route"


def found_signal(found: Frontier) -> str:
    """The signal whose thresholds these are."""
    return found.tuned.verdict.signal or SignalName.MARGIN.value


def _signals(run: Row, right: float) -> None:
    """`right` is the share of right answers among the cheap tier's to the calibration rows."""
    st.header("Signals compared", anchor=False)
    n = run["verdict"]["n"]
    lines: list[Row] = [
        {
            "signal": name,
            "declared": name in run["declared"],
            **_area(told["auroc"], round(right * n), n),
            "aurc": told["aurc"],
            "own": 1000 * told["usd_per_row"],
            "certified": told.get("certified"),
            "p": told.get("p_value"),
            "usd": None if told.get("usd") is None else 1000 * told["usd"],
            "n": n,
        }
        for name, told in sorted(_told(run).items())
    ]
    if not lines:
        st.text("This run did not compare signals.")
        return
    columns = {
        "signal": "Signal",
        "declared": "Declared",
        "area": "AUROC [95 %]",
        "aurc": "AURC",
        "own": "USD / 1,000 rows of its own",
        "certified": "Certified",
        "p": "p",
        "usd": "Certified cascade, USD / 1,000 rows",
        "n": "n",
    }
    table(lines, columns, name="Signals compared")
    st.caption(
        "On the calibration rows. AUROC: how well it tells right cheap answers from wrong ones, 0.5 is a coin, 1 is "
        "perfect. AURC: area under the risk-coverage curve, less is better."
    )
    download([{key: value for key, value in line.items() if key != "area"} for line in lines], "signals")


def _area(auroc: float | None, right: int, n: int) -> Row:
    """An AUROC of n rows with its interval, as people read it and as numbers."""
    if auroc is None or not 0 < right < n:
        return {"area": "one class only", "auroc": auroc, "auroc_low": None, "auroc_high": None}
    low, high = auroc_interval(auroc, right, n - right)
    return {"area": f"{auroc:.3f} [{low:.3f}, {high:.3f}]", "auroc": auroc, "auroc_low": low, "auroc_high": high}
