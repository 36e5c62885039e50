"""The stages of a request as SLURM jobs: what each asks for, the script it becomes, and its submission.

submitit writes the scripts and calls sbatch; what it pickles is one function and two strings, kind and run
directory. Values are checked first: a line break would end an #SBATCH line, and what follows would be a
command.
"""

from __future__ import annotations

import io
import math
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.config import ClusterConfig, Config
from jobs.demand import asked_by
from jobs.requests import Stage
from launcher.errors import SlurmUnavailableError
from launcher.freeze import freeze
from launcher.plan import Plan
from launcher.slurm import submitting, withdraw_jobs
from univip.errors import ConfigError

_TEXTS = ("account", "partition", "qos", "constraint")
_ENTRY = "jobs.base:run_slurm_job"
# Options of sbatch that a key says already, for all jobs or also for those that make boxes, and those by
# which the jobs of a run hang together.
_KEYS = {"nodes": "nodes.min", "gpus-per-node": "gpus_per_node", "signal": "signal_delay_s"}
_KEYS_OF_BOXES = {
    **{name: name for name in _TEXTS},
    "time": "time_h",
    "mem": "mem_gb",
    "cpus-per-task": "cpus_per_task",
}
_OURS = frozenset(
    (
        "array",
        "dependency",
        "error",
        "job-name",
        "kill-on-invalid-dep",
        "no-kill",
        "no-requeue",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
        "output",
        "requeue",
        "test-only",
        "wrap",
    )
)
_PROBE_MIN = 5  # the first torch of a node comes slowly from a network file system


@dataclass(frozen=True)
class SlurmJob:
    """One job, or one array, as submitit takes it.

    Attributes:
        kinds: What to run, one kind per array element.
        parameters: Of `submitit.SlurmExecutor.update_parameters`, without dependencies.
        python: What starts Python on a node.
    """

    stage: Stage
    run_dir: Path
    kinds: list[str]
    parameters: dict[str, Any]
    python: list[str]

    @property
    def folder(self) -> Path:
        """Where submitit keeps scripts, pickles and output."""
        return self.run_dir / "submitit"


def slurm_jobs(plan: Plan, stages: Sequence[Stage] | None = None) -> list[SlurmJob]:
    """The jobs of some stages, or of all that are not done.

    Raises:
        ConfigError: If a value cannot be put on an #SBATCH line.
    """
    runs = Path(plan.config.paths.runs)
    _refuse_unwritable(plan.config)
    jobs = []
    for stage in plan.request.remaining(runs) if stages is None else stages:
        cluster = asked_by(stage.kind, plan.config.cluster)
        if plan.unfit:
            excluded = ",".join([*filter(None, [cluster.extra.get("exclude")]), *plan.unfit])
            cluster = replace(cluster, extra={**cluster.extra, "exclude": excluded})
        kinds = _shards(plan) if stage.kind == "shards" else [stage.kind]
        shards_each = -(-plan.num_shards // len(kinds)) if "/" in kinds[0] else 1
        parameters = _parameters(stage, cluster, shards_each=shards_each)
        jobs.append(SlurmJob(stage, runs / stage.run, kinds, parameters, _python(cluster)))
    return jobs


def render_slurm(jobs: list[SlurmJob], code: Path) -> list[str]:
    """The sbatch scripts of jobs, as submitting would write them; needs no SLURM.

    Ids of jobs that do not exist yet are `<stage>`.

    Args:
        jobs: What to render.
        code: Folder of the packages that they run.
    """
    from submitit import SlurmExecutor

    class Renderer(SlurmExecutor):
        """submitit's own rendering, without looking for srun."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    scripts = []
    for job, depends_on in zip(jobs, [None, *jobs], strict=False):
        executor = Renderer(job.folder, python=_starter(job, code))
        before = f"<{depends_on.stage.kind}>" if depends_on else None
        executor.update_parameters(**job.parameters, **_dependency(before))
        if len(job.kinds) > 1:
            executor.parameters["map_count"] = len(job.kinds)
        scripts.append(executor._make_submission_file_text(executor._submitit_command_str, ""))
    return scripts


def trial_jobs(config: Config, run_dir: Path) -> dict[str, SlurmJob]:
    """One job of each kind that `config` would ask for, by kind, to ask SLURM about; not part of any run.

    Raises:
        ConfigError: If a value cannot be put on an #SBATCH line.
    """
    _refuse_unwritable(config)
    return {
        kind: SlurmJob(
            Stage(kind, run_dir.name),
            run_dir,
            [kind],
            _parameters(Stage(kind, run_dir.name), asked_by(kind, config.cluster), shards_each=1),
            _python(config.cluster),
        )
        for kind in ("shards", "train", "evaluate")
    }


def submit_probe(config: Config, folder: Path, name: str, kind: str) -> str:
    """Submit a job of a few seconds that looks at its node, and leaves what it sees in a file of `folder`.

    It asks for what the jobs of one kind ask for, so that it comes to a node of theirs: an evaluation is the
    smallest that comes to one of those that train.

    Returns:
        SLURM's job id.

    Raises:
        SlurmUnavailableError: If SLURM is missing or refuses.
    """
    job = trial_jobs(config, folder)[kind]
    short = {"job_name": "univip-doctor", "comment": "doctor", "time": _PROBE_MIN}
    job = replace(job, kinds=[name], parameters=job.parameters | short)
    return submit_slurm([job], freeze(folder), entry="jobs.probe:probe")[0]


def submit_slurm(
    jobs: list[SlurmJob],
    code: Path,
    *,
    after: str = "",
    entry: str = _ENTRY,
    note: Callable[[list[str]], object] = lambda ids: None,
) -> list[str]:
    """Submit jobs, each after the one before has succeeded; all or none.

    Args:
        jobs: What to submit.
        code: Folder of the packages that they run.
        after: Id of the job that the first of them waits for.
        entry: What a job calls, with its kind and its run directory.
        note: Told the ids so far after each job that SLURM accepts, and none once they are withdrawn: what
            is killed in between must not leave jobs that nobody knows of.

    Returns:
        SLURM's job ids, one per job; an array has one.

    Raises:
        SlurmUnavailableError: If SLURM is missing or refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    run = pkgutil.resolve_name(entry)
    ids: list[str] = []
    try:
        for job in jobs:
            executor = SlurmExecutor(job.folder, python=_starter(job, code))
            executor.update_parameters(**job.parameters, **_dependency(ids[-1] if ids else after))
            [script] = render_slurm([job], code)
            # What sbatch says stands in the error, too.
            with submitting(script), redirect_stderr(io.StringIO()):
                submitted = executor.map_array(run, job.kinds, [str(job.run_dir)] * len(job.kinds))
            ids.append(submitted[0].job_id.partition("_")[0])
            note(ids)
    except BaseException as error:  # Ctrl-C, say
        withdraw_jobs(ids)
        note([])
        if not isinstance(error, RuntimeError | FileNotFoundError | FailedJobError | FailedSubmissionError):
            raise
        raise SlurmUnavailableError(
            f"SLURM must accept the jobs, but did not: {' '.join(str(error).split())}",
            where=f"{jobs[len(ids)].stage.kind} of {jobs[len(ids)].stage.run}",
            fix="cluster=local; or, on a login node, cluster.partition= and cluster.account= of your site",
        ) from error
    return ids


def _python(cluster: ClusterConfig) -> list[str]:
    return list(cluster.python) or [sys.executable]


def _starter(job: SlurmJob, code: Path) -> str:
    """How submitit starts Python: on that code, and with signals blocked until the job can answer them."""
    return shlex.join([*job.python, "-I", "-S", str(code / "jobs" / "blocked.py")])


def _shards(plan: Plan) -> list[str]:
    """Kinds of the elements of the array: an unfinished shard each, or several where SLURM takes no more."""
    left = plan.shards_left
    if len(left) <= plan.most_elements:
        return [f"shard:{number}" for number in left]
    return [f"shard:{number}/{plan.most_elements}" for number in range(plan.most_elements)]


def _parameters(stage: Stage, cluster: ClusterConfig, *, shards_each: int) -> dict[str, Any]:
    """What one stage asks of SLURM; `cluster` is what jobs of its kind ask for."""
    trains, cpus = stage.kind == "train", cluster.cpus_per_task
    gpus = 0 if cluster.gres else cluster.gpus_per_node  # which says how many
    # Requeued by SLURM itself after a node failure; ended instead of waiting for ever for a job that failed.
    extra: dict[str, Any] = {"requeue": True, "kill-on-invalid-dep": "yes"}
    # Since 22.05 srun does not take the CPUs from sbatch. At sites where jobs begin with an empty environment
    # (`--export=NONE`) it would not hand on what submitit's script exports either.
    srun = [f"--cpus-per-task={cpus}", "--export=ALL"]
    if trains:
        # A lost node ends neither the allocation nor the other agents.
        extra |= {"nodes": f"{cluster.nodes.min}-{cluster.nodes.max}", "no-kill": True}
        srun += ["--ntasks-per-node=1", "--no-kill", "--kill-on-bad-exit=0", "--wait=0"]
    asked = {
        **{name: getattr(cluster, name) for name in _TEXTS},
        "mem": f"{math.ceil(cluster.mem_gb * 1024)}M" if cluster.mem_gb else "",
        "gpus_per_node": f"{cluster.gpu_type}:{gpus}" if gpus and cluster.gpu_type else gpus,
        "gres": cluster.gres,
        # Of a range of nodes it would make SLURM give the fewest: as many as the tasks it then counts need.
        "ntasks_per_node": 0 if trains else 1,
    }
    return {
        "job_name": f"univip-{stage.kind}",
        "comment": stage.run,
        # Minutes; 100 shards of 0.07 h are 420, not the 421 of their product in binary.
        "time": math.ceil(round(60 * cluster.time_h * shards_each, 6)),
        "nodes": cluster.nodes.min,
        "cpus_per_task": cpus,
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.proposals.array_parallelism,
        "wckey": None,  # submitit's own; a cluster that checks them would refuse it
        "setup": list(cluster.setup) or None,
        "srun_args": srun,
        # An empty value makes a flag, such as `exclusive`.
        "additional_parameters": extra | {name: value or True for name, value in cluster.extra.items()},
        **{name: value for name, value in asked.items() if value},
    }


def _dependency(job_id: str | None) -> dict[str, str]:
    return {"dependency": f"afterok:{job_id}"} if job_id else {}


def _refuse_unwritable(config: Config) -> None:
    """Every text that reaches a script must stay on its line and mean itself to SLURM."""
    cluster, runs = config.cluster, config.paths.runs
    for_sbatch = {f"cluster.{name}": getattr(cluster, name) for name in (*_TEXTS, "gpu_type", "gres")}
    for_sbatch |= {f"cluster.proposals.{name}": getattr(cluster.proposals, name) or "" for name in _TEXTS}
    for_sbatch |= {f"cluster.extra.{name}": value for name, value in cluster.extra.items()}
    boxes_extra = cluster.proposals.extra
    for_sbatch |= {f"cluster.proposals.extra.{name}": value or "" for name, value in boxes_extra.items()}
    for_sbatch["paths.runs"] = runs
    for_shell = {f"cluster.python[{number}]": word for number, word in enumerate(cluster.python)}
    for_shell |= {f"cluster.setup[{number}]": line for number, line in enumerate(cluster.setup)}
    for key, text in (for_sbatch | for_shell).items():
        if not text.isprintable():
            raise _unwritable(key, f"one line of printable text, but is {text!r}")
        # Between single quotes, too, where a shell would leave it alone: it can end them.
        if "\\" in text and key in for_sbatch:
            raise _unwritable(key, f"free of `\\`, which sbatch takes for itself, but is `{text}`")
    for key, names in (("cluster.extra", [*cluster.extra]), ("cluster.proposals.extra", [*boxes_extra])):
        for name in names:
            if not re.fullmatch("[a-z][a-z-]*", name):
                rule = f"options of sbatch such as `mail-user`, but has {name!r}"
                raise _unwritable(key, rule, "{mail-user:me}")
            _refuse_ours(key, name)
    if "%" in runs:
        raise _unwritable("paths.runs", f"free of `%`, which SLURM replaces, but is `{runs}`")


def _refuse_ours(key: str, name: str) -> None:
    """Refuse an option that would take a run apart, or be looked at by nobody beforehand."""
    section = key.removesuffix(".extra")
    known = _KEYS_OF_BOXES if section == "cluster.proposals" else _KEYS_OF_BOXES | _KEYS
    if name in known:
        fix = f"{section}.{known[name]}=..."
    elif name == "dependency":
        fix = 'sbatch --dependency=... --wrap="univip submit ..."  # the jobs of a run depend on each other'
    elif name in _OURS or name in _KEYS:
        fix = f"leave {key}.{name} out"
    else:
        return
    raise ConfigError(
        f"`{key}.{name}` must be left to univip, which sets `--{name}` itself.",
        where="the command line, or configs/site/local.yaml",
        fix=fix,
    )


def _unwritable(key: str, rule: str, example: str = "...") -> ConfigError:
    where = "the command line, or configs/site/local.yaml"
    return ConfigError(f"`{key}` must be {rule}.", where=where, fix=f"{key}={example}")
