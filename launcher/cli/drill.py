"""`univip drill`: faults of every kind, and what the run does about each."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

import click

from jobs.drill.kinds import IN_PROCESS, KINDS, PROCESSES, TRIALS

_NAMES = [kind.name for kind in KINDS]
# fmt: off
_HEADS = (
    "fault", "trials", "detected", "recovered", "false", "steps", "samples", "wrong", "p50 s", "p95 s",
    "digest", "replay", "holds",
)
# fmt: on


def _kinds(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
    """The kinds of a list of names, or of beginnings such as `nan`."""
    found: list[str] = []
    for item in value.split(",") if value else _NAMES:
        names = [name for name in _NAMES if name == item or name.startswith(f"{item}:")]
        if not names:
            raise click.BadParameter(f"a kind must be one of {', '.join(_NAMES)}, but is `{item}`.")
        found += names
    return found


@click.command(epilog="\b\nKinds:\n" + "\n".join(f"  {kind.name:<15} {kind.what}" for kind in KINDS))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE | GROUP=OPTION]...")
@click.option(
    "--faults", callback=_kinds, metavar="KIND,...", help="Only these kinds, such as nan,kill:rank."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=TRIALS,
    show_default=True,
    help="Of each kind, at least: four times as many of kill:rank, a fifth of minute, and every point of "
    "crash and power.",
)
@click.option("--resume", is_flag=True, help="Keep what an earlier drill of the same code finished.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    overrides: tuple[str, ...],
    faults: list[str],
    seed: int,
    trials: int,
    resume: bool,
    as_json: bool,
) -> int:
    """Break small runs in every way there is, and see that they go on by themselves.

    They train on the photographs of `univip demo`, below runs/drill. Each kind of fault is a row: how many
    were injected (trials), detected and recovered from; what was done though nothing was wrong (false); data
    steps computed again or left out; samples left out by decision, and wrong ones (repeated, or lost without
    a decision); seconds to the next good step; whether the digest is that of an undisturbed run; bad steps
    that replay to the bit. Faults in process go through the real engine; the others are of real processes.
    Runs that failed a trial are kept.

    Ends with 0 only if all of it is as it must be; else the kinds that are not are named.
    """
    from jobs.compose import compose
    from jobs.config import ClusterKind
    from launcher import render
    from launcher.demo_data import make_demo_data
    from launcher.errors import FAILED, OK
    from launcher.runs import runs_root
    from univip.errors import ConfigError

    root = runs_root()
    photographs = make_demo_data(root / "demo-data")
    config = compose([f"data.root='{photographs}'", *overrides])  # a mistake in them is told before an hour
    if config.cluster.kind is not ClusterKind.local:
        raise ConfigError(
            "the processes of a drill must be on this machine, but are to be on a cluster.",
            where="the command line",
            fix="leave out cluster=, or run `univip drill` within an allocation",
        )
    # By name: it loads torch.
    found: dict[str, Any] = pkgutil.resolve_name("jobs.drill.campaign:run")(
        root / "drill",
        photographs,
        overrides,
        kinds=faults,
        trials=trials,
        seed=seed,
        resume=resume,
        tell=render.say,
    )
    if as_json:
        click.echo(json.dumps(found))
    else:
        for how in (IN_PROCESS, PROCESSES):
            rows = [_cells(row) for row in found["rows"] if row["how"] == how]
            if rows:
                render.table(f"univip drill, seed {seed}: {how}", _HEADS, rows)
        _say_the_sum(found)
    return OK if found["holds"] else FAILED


def _say_the_sum(found: dict[str, Any]) -> None:
    from launcher import render

    faults = [row for row in found["rows"] if not row["kind"].startswith("control")]
    controls = sum(row["trials"] for row in found["rows"] if row not in faults)
    inside = sum(row["trials"] for row in faults if row["how"] == IN_PROCESS)
    outside = sum(row["trials"] for row in faults if row["how"] != IN_PROCESS)
    render.say(
        f"faults     {inside + outside:,} of {len(faults)} kinds: {inside:,} in process, through the real "
        f"engine, {outside:,} in real processes; {controls:,} runs without any",
        f"took       {render.duration(found['seconds'])}",
    )
    for row in found["rows"]:
        if row["useful"] is not None:
            render.say(f"useful     {row['useful']:.1%} of the time, with a fault in every minute")
        for problem in row["problems"]:
            render.say(f"{row['kind']}: {problem}")
    if found["failing"]:
        render.say(f"failing    {', '.join(found['failing'])}")


def _cells(row: dict[str, Any]) -> list[str]:
    digest = {None: "–", True: "equal", False: "DIFFERS"}[row["digest_equal"]]
    return [
        row["kind"],
        str(row["trials"]),
        "–" if row["detected"] is None else str(row["detected"]),
        *(
            str(row[name])
            for name in ("recovered", "false_actions", "steps_lost", "samples_lost", "samples_wrong")
        ),
        *("–" if row[name] is None else f"{row[name]:.2f}" for name in ("seconds_p50", "seconds_p95")),
        digest,
        f"{row['replayed']}/{row['replays']}" if row["replays"] else "–",
        "yes" if row["holds"] else "NO",
    ]
