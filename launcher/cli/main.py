"""The command `univip`: finds the verb, and prints what went wrong in three lines.

Verbs are imported when they are used, so `univip --help` and `univip status` answer at once.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import shlex
import sys

import click

from launcher.errors import FAILED, INTERRUPTED, USAGE, exit_code
from launcher.runs import RUNS_VARIABLE, runs_root
from univip.errors import UnivipError

# Verb -> module of `launcher.cli` that holds a click command `command`, in the order of `--help`.
_VERBS = {
    "demo": "The whole job on bundled photographs, with two planted faults.",
    "doctor": "What would stop a run, and the command against it.",
    "submit": "Make boxes, train, evaluate: in the background or on SLURM.",
    "status": "Runs: state, progress, loss, ETA, last problem.",
    "logs": "Progress, events and output of a run.",
    "show": "Everything about one run.",
    "resume": "Go on with a run that stopped.",
    "cancel": "Save the state and stop a run.",
    "clean": "Remove what can be made again or was put aside.",
    "supervise": "Submit runs again that SLURM gave up on.",
    "dash": "Runs, curves and faults in a browser.",
    "monitor": "Serve the metrics of all runs to Prometheus.",
    "audit": "Was every sample seen exactly once in each epoch?",
    "export": "The backbone's weights, for torchvision, timm or detectron2.",
    "report": "Curves, faults, results and configuration of a run in one file.",
    "digest": "SHA-256 over the last checkpoint's tensors.",
    "replay": "Compute a bad step again and name what went wrong in it.",
    "proposals": "Look at boxes, and at samples made with them.",
    "drill": "Break small runs in every way, and see that they go on.",
    "bench": "How fast this version is, beside a reference.",
    "completion": "Complete verbs, runs and keys in the shell.",
}


# Those that make the folder of the runs where there is none, or do without it.
_NEED_NO_RUNS = frozenset(
    {"demo", "doctor", "submit", "dash", "monitor", "proposals", "drill", "bench", "completion"}
)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command = importlib.import_module(f"launcher.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _VERBS, n=3, cutoff=0.0)
            raise click.UsageError(
                f"`univip {args[0]}` must be a known verb, but is not; the nearest are {', '.join(near)}."
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="univip", message="%(version)s")
@click.option("--runs", metavar="FOLDER", help=f"Folder of the runs (default: {RUNS_VARIABLE}, else runs/).")
@click.option("--verbose", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, runs: str | None, verbose: bool) -> None:
    """Self-supervised pre-training on photographs of many objects.

    RUN is a run's id, a unique beginning of it, a path, or @last.

    Exit status: 0 done, 1 failed, 2 usage, 3 run not found, 4 SLURM is needed and does not answer, 5 refused,
    130 interrupted.
    """
    if not runs:
        return
    os.environ[RUNS_VARIABLE] = runs
    root = runs_root()
    if root.exists() and not root.is_dir():
        raise click.UsageError(f"--runs must be a folder, but `{root}` is a file.", ctx)
    if not root.exists() and ctx.invoked_subcommand not in _NEED_NO_RUNS:
        click.echo(f"the folder of --runs does not exist: {root}", err=True)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        # What click returns is the exit status of a verb that ended early, else nothing.
        return cli.main(arguments, prog_name="univip", standalone_mode=False) or 0
    except UnivipError as error:
        if "--verbose" in arguments:
            raise
        click.echo(f"univip: {error}", err=True)
        return exit_code(error)
    except BrokenPipeError:
        # The reader of stdout left, as `head` does; without this the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if "--verbose" in arguments:
            raise
        click.echo(f"univip: {_system_error(error)}", err=True)
        return FAILED
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "univip"
        what = " ".join(error.format_message().split())  # click lists choices one a line
        click.echo(f"univip: {UnivipError(what, where='the command line', fix=f'{usage} --help')}", err=True)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _system_error(error: OSError) -> UnivipError:
    """What the operating system refused, as three lines."""
    files = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "df -h  # make room, then the same command again"
    elif files:
        fix = f"ls -ld {shlex.quote(files[0])}  # is it there, and may you read and write it?"
    else:
        fix = "the same command with --verbose shows where"
    return UnivipError(
        f"the system must do what is asked of it, but says: {error.strerror or error}.",
        where=" -> ".join(files),
        fix=fix,
    )


if __name__ == "__main__":
    main()
