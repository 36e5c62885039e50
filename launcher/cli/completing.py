"""What the shell completes beyond verbs and options: names of runs, and `key=` of every key of a run."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of runs, newest first."""
    from launcher.runs import all_runs, runs_root

    given = ctx.find_root().params.get("runs")
    names = [run.name for run in reversed(all_runs(Path(given) if given else runs_root()))]
    return [CompletionItem(name) for name in [*names, "@last"] if name.startswith(incomplete)]


def overrides(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`key=`, and behind the `=` of a group its options."""
    from jobs.compose import groups
    from jobs.keys import known_keys

    words = [f"{key}=" for key, _ in known_keys()]
    words += [f"{group}={option}" for group, options in groups().items() for option in options]
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
