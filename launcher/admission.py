"""Whether SLURM would take the jobs of a configuration: what it offers, held against what they ask for.

`sbatch --test-only` has the last word on each kind of job; but it lets a job pass that would wait for ever
(longer than its partition allows) and names one reason at a time, so the parts are looked at one by one.
"""

from __future__ import annotations

import difflib
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jobs.config import ClusterConfig, Config
from jobs.demand import WITH_GPUS, asked_by, key_of
from jobs.outcomes import read_json
from launcher.doctor import Level, Row, miss, ok, torch_and_gpus, warn
from launcher.errors import SlurmUnavailableError
from launcher.freeze import code_dir
from launcher.sbatch import SlurmJob, render_slurm, submit_probe, trial_jobs
from launcher.site import Partition, Site, ask_site, at_most, parse_gpus
from launcher.slurm import ask, cancel_jobs, queue, submitting
from univip.errors import ConfigError, UnivipError

_TEST_TIMEOUT_S = 60
_DEEP_TIMEOUT_S = 600.0  # in the queue and on the node
_POLL_S = 1.0
_ANSWER = "probe.json"
_CHOOSES_NODE = ("account", "partition", "qos", "constraint")
_OF_BOXES = " (boxes)"  # of a check, where the jobs that make boxes ask for something else
_ASK_EVERY_S = 5.0
_LATE_S = 60.0  # an answer may be, in the cache of a network file system
_SKEW_S = 2.0
TOO_MANY_JOBS = "MaxSubmitJob"  # sbatch, of one more than a user may have; elements of an array count each


def slurm(config: Config) -> Iterator[Row]:
    """Whether SLURM answers and takes the jobs."""
    if shutil.which("sbatch") is None:
        yield miss("SLURM", "sbatch is not on the PATH", "use a login node of the cluster, or cluster=local")
        return
    try:
        version = ask("sbatch", "--version").strip()
        pinged = ask("scontrol", "ping")
        site = ask_site()
        queue()  # the options of squeue that are used are newer than SLURM itself
    except SlurmUnavailableError as error:
        yield miss("SLURM", _one_line(error.what), error.fix)
        return
    if not any(line.endswith(" UP") for line in pinged.splitlines()):
        yield miss("SLURM", f"{version}, but no controller is up: {_one_line(pinged)}", "scontrol ping")
        return
    yield ok("SLURM", f"{version}; {_one_line(pinged)}")
    yield from offers(site, config.cluster)
    yield from _trials(config)


def offers(site: Site, cluster: ClusterConfig, stages: Sequence[str] = ("train", "shards")) -> Iterator[Row]:
    """What the site offers, held against what a configuration asks for.

    Args:
        site: The site.
        cluster: The configuration.
        stages: Kinds of jobs to look at; what is the same of several is told once.
    """
    told: set[tuple[str, str]] = set()
    for stage in stages:
        of = "" if stage in WITH_GPUS else _OF_BOXES
        for row in _offers(site, stage, _in_force(asked_by(stage, cluster))):
            if (row.check, row.found) not in told:
                told.add((row.check, row.found))
                yield replace(row, check=f"{row.check}{of}")


def refuse_endless(jobs: Sequence[SlurmJob], cluster: ClusterConfig) -> None:
    """Refuse what SLURM would take and let wait for ever, unless it was told otherwise.

    Args:
        jobs: Of one request.
        cluster: What they were made of.

    Raises:
        ConfigError: If a job may run for longer than its partition allows, or asks for more nodes than that
            has or gives to one job.
        SlurmUnavailableError: If there is no SLURM.
    """
    site = ask_site(asks_accounts=False)
    for job in jobs:
        stage = job.stage.kind
        asked = _in_force(asked_by(stage, cluster))
        partition = site.partition_of(asked)
        # Of several partitions another one may do, and a quality of service may lift the limits of all.
        if partition is None or "," in asked.partition or asked.qos:
            continue
        hours, longest = job.parameters["time"] / 60, partition.max_time_h
        if hours > longest:
            fix = _time_fix(asked, stage, asked.time_h * longest / hours)
            raise _misfit(f"{stage} may run for {hours:g} h, but {partition.name} gives {longest:g} h", fix)
        num_nodes = sum(nodes.count for nodes in site.nodes if nodes.partition == partition.name)
        needed = job.parameters["nodes"]
        # Of nodes that are hidden sinfo does not tell.
        most = min(num_nodes or math.inf, partition.max_nodes)
        if needed > most:
            has = "has" if most == num_nodes else "gives one job"
            found = f"{stage} needs {needed} nodes, but {partition.name} {has} {most:.0f}"
            raise _misfit(found, f"cluster.nodes.min={most:.0f}")


def explain_refusal(
    error: SlurmUnavailableError, kinds: Collection[str], cluster: ClusterConfig
) -> UnivipError:
    """What sbatch refused, with the option that would do, where SLURM answers and tells; else the error.

    Args:
        error: With what sbatch said.
        kinds: Of the stages that were submitted.
        cluster: What their jobs were made of.
    """
    if TOO_MANY_JOBS in error.what:
        return ConfigError(error.what, where=error.where, fix="squeue --me  # wait for some of these to end")
    try:
        rows = [row for row in offers(ask_site(), cluster, sorted(kinds)) if row.level is Level.MISS]
    except SlurmUnavailableError:
        return error
    if rows:
        return _misfit(f"{rows[0].found}; sbatch said: {error.what.partition(': ')[2]}", rows[0].fix)
    return ConfigError(error.what, where=error.where, fix="univip doctor ...  # with the same key=value")


def _offers(site: Site, stage: str, asked: ClusterConfig) -> Iterator[Row]:
    """What the site offers to the jobs of one kind."""
    partition = site.partition_of(asked)
    if partition is None:
        names = ", ".join(site.partitions)
        near = difflib.get_close_matches(asked.partition, site.partitions, n=1, cutoff=0.0)
        what = f"`{asked.partition}` is not there" if asked.partition else "none is the default"
        fix = f"{key_of(stage, 'partition', asked)}={(near or [''])[0]}"
        yield miss("partition", f"{what}; there are {names}", fix)
        return
    if partition.is_up:
        yield ok("partition", f"{partition.name} is up")
    else:
        fix = f"{key_of(stage, 'partition', asked)}=...  # see sinfo"
        yield miss("partition", f"{partition.name} is not up", fix)
    yield from _charged(site, partition, stage, asked)
    yield from _nodes(site, partition, stage, asked)
    hours, longest = asked.time_h, partition.max_time_h
    if hours > longest:
        found = f"{key_of(stage, 'time_h', asked)} is {hours:g} h, but {partition.name} gives {longest:g} h"
        yield miss("time limit", found, _time_fix(asked, stage, longest))
    else:
        limit = "no limit" if math.isinf(longest) else f"{longest:g} h"
        yield ok("time limit", f"{hours:g} h for {_words(stage)}; {partition.name} has {limit}")


def _words(stage: str) -> str:
    return {"train": "a training", "evaluate": "an evaluation"}.get(stage, "making boxes")


def _time_fix(asked: ClusterConfig, stage: str, hours: float) -> str:
    rest = "  # a longer training is requeued" if stage == "train" else ""
    return f"{key_of(stage, 'time_h', asked)}={at_most(hours)}{rest}"


def _in_force(cluster: ClusterConfig) -> ClusterConfig:
    """With what sbatch takes from its variables, where the configuration leaves it open."""
    asked = os.environ.get
    return replace(
        cluster,
        account=cluster.account or asked("SBATCH_ACCOUNT", ""),
        partition=cluster.partition or asked("SBATCH_PARTITION", ""),
        qos=cluster.qos or asked("SBATCH_QOS", ""),
    )


def _misfit(found: str, fix: str) -> ConfigError:
    what = f"SLURM must have what the jobs ask for, but has not: {found}."
    return ConfigError(what, where="`scontrol show partition` and `sinfo`", fix=fix)


def _charged(site: Site, partition: Partition, stage: str, asked: ClusterConfig) -> Iterator[Row]:
    """Account and quality of service."""
    if site.associations is None:
        yield ok("account", "SLURM keeps no accounts here")
        return
    account, account_key = site.account_of(asked), key_of(stage, "account", asked)
    mine = [each for each in site.associations if each.partition in ("", partition.name)]
    accounts = sorted({each.account for each in mine})
    allowed = [each for each in accounts if partition.accounts is None or each in partition.accounts]
    if account not in accounts:
        what = f"`{account}` is not yours" if account else "none is the default"
        known = f"; yours are {', '.join(accounts)}" if accounts else ", and you have none here"
        fix = f"{account_key}={allowed[0]}" if allowed else "ask the administrators for an account"
        yield miss("account", what + known, fix)
        return
    if account not in allowed:
        another = f"{key_of(stage, 'partition', asked)}=...  # another one"
        fix = f"{account_key}={allowed[0]}" if allowed else another
        yield miss("account", f"`{account}` may not use {partition.name}", fix)
        return
    yield ok("account", f"{account}{'' if asked.account else ' (your default)'}")
    if not asked.qos:
        return
    known_qos = sorted({name for each in mine if each.account == account for name in each.qos})
    usable = [name for name in known_qos if partition.qos is None or name in partition.qos]
    if asked.qos in usable:
        yield ok("qos", asked.qos)
    else:
        found = f"`{asked.qos}` may not be used by {account} in {partition.name}"
        fix = f"{key_of(stage, 'qos', asked)}={usable[0] if usable else ''}"
        yield miss("qos", f"{found}; these may: {', '.join(usable)}", fix)


def _nodes(site: Site, partition: Partition, stage: str, asked: ClusterConfig) -> Iterator[Row]:
    """Whether enough nodes have the GPUs, processors and memory that the jobs of one kind ask for."""
    kinds = site.of(partition.name)
    if not kinds:
        yield miss("nodes", f"no node of {partition.name} can be used now", f"sinfo -p {partition.name} -R")
        return
    all_kinds = "; ".join(map(str, kinds))
    gpus = parse_gpus(asked.gres) if asked.gres else {asked.gpu_type: asked.gpus_per_node}
    for kind, count in gpus.items():
        most = max(nodes.count_gpus(kind) for nodes in kinds)
        if count > most:
            what, fix = f"gpus_per_node={count}", f"cluster.gpus_per_node={most}"
            if kind and not most:
                types = sorted({name for nodes in kinds for name in nodes.gpus})
                near = difflib.get_close_matches(kind, types, n=1, cutoff=0.0)
                what, fix = f"gpu_type={kind}", f"cluster.gpu_type={near[0] if near else ''}"
            if asked.gres:
                what, fix = f"gres={asked.gres}", "cluster.gres=...  # as the nodes have it"
            found = f"no node of {partition.name} has cluster.{what}; there are {all_kinds}"
            yield miss("nodes", found, fix)
            return
    for name, value, most in (
        ("cpus_per_task", asked.cpus_per_task, max(nodes.cpus for nodes in kinds)),
        ("mem_gb", asked.mem_gb, max(nodes.memory_mb for nodes in kinds) // 1024),
    ):
        if value > most:
            key = key_of(stage, name, asked)
            yield miss(
                "nodes",
                f"no node of {partition.name} has {key}={value:g}; there are {all_kinds}",
                f"{key}={most:g}",
            )
            return
    fitting = sum(
        nodes.count
        for nodes in kinds
        if all(nodes.count_gpus(kind) >= count for kind, count in gpus.items())
        and nodes.cpus >= asked.cpus_per_task
        and nodes.memory_mb >= asked.mem_gb * 1024
    )
    needed = asked.nodes.min
    most_nodes = partition.max_nodes
    if most_nodes < min(needed, fitting):
        found = f"{_words(stage)} needs {needed} nodes, but {partition.name} gives one job {most_nodes:.0f}"
        yield miss("nodes", found, f"cluster.nodes.min={most_nodes:.0f}")
    elif fitting < needed:
        found = f"{fitting} of {needed} nodes have all that {_words(stage)} asks for; there are {all_kinds}"
        fewer = f"cluster.nodes.min={fitting}, or " if fitting else ""
        yield miss("nodes", found, f"{fewer}ask for less of each")
    else:
        yield ok("nodes", f"{fitting} fit {_words(stage)}; there are {all_kinds}")


def _trials(config: Config) -> Iterator[Row]:
    """What SLURM says to the scripts themselves, without taking the jobs."""
    for kind, job in trial_jobs(config, Path(config.paths.runs) / "doctor").items():
        [script] = render_slurm([job], code_dir(job.run_dir))
        try:
            with submitting(script):
                done = subprocess.run(
                    ["sbatch", "--test-only"],
                    input=script,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_TEST_TIMEOUT_S,
                )
        except (OSError, subprocess.SubprocessError) as error:
            yield warn(f"job {kind}", str(error), "sbatch --test-only")
            continue
        said = _one_line(done.stderr).replace("sbatch: ", "")
        if done.returncode == 0:
            yield ok(f"job {kind}", said)
        else:
            yield miss(f"job {kind}", said, f"univip submit {_WHAT[kind]} ... --dry-run  # what it asks for")


_WHAT = {"shards": "proposals", "train": "train", "evaluate": "evaluate"}


def deep(config: Config, say: Callable[[str], None]) -> Iterator[Row]:
    """Submit a short job, and look at its node through what it leaves in the folder of the runs.

    Where the jobs that make boxes come to other nodes than training, one of those is looked at, too.

    Args:
        config: Where they run, and where their answers have to be seen.
        say: Told once why a job waits.
    """
    yield from _look_at_node(config, "evaluate", say)
    training, boxes = (_in_force(asked_by(stage, config.cluster)) for stage in ("evaluate", "shards"))
    if any(getattr(training, name) != getattr(boxes, name) for name in _CHOOSES_NODE):
        for row in _look_at_node(config, "shards", say):
            yield replace(row, check=f"node{_OF_BOXES}")


def _look_at_node(config: Config, kind: str, say: Callable[[str], None]) -> Iterator[Row]:
    """Submit one short job that asks for what jobs of one kind do; those of boxes need no GPU, no torch."""
    runs = Path(config.paths.runs)
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            job_id = submit_probe(config, folder, _ANSWER, kind)
        except SlurmUnavailableError as error:
            yield miss("node", _one_line(error.what), error.fix)
            return
        try:
            failure = _wait(folder, job_id, say)
        except BaseException:  # Ctrl-C too: nobody would wait for it any more
            cancel_jobs([job_id], now=True)
            raise
        found = read_json(folder / _ANSWER)
        if found is None:
            logs = sorted((folder / "submitit").glob("*_log.*"))
            last = [_last_line(path) for path in logs]
            what = f"job {job_id} {failure}, and left no answer in {runs}"
            printed = "; ".join(filter(None, last))
            fix = f"scontrol show job {job_id}  # see its node, and whether that sees {runs}"
            yield miss("node", f"{what}{': ' if printed else ''}{printed}", fix)
            return
        seen = (folder / _ANSWER).stat().st_mtime
    yield ok("node", f"{found['host']} ran job {job_id}, and sees {runs}; Python {found['python']}")
    if not found["scontrol"]:
        what = f"{found['host']} has no scontrol where Python runs, so no job can queue itself again"
        yield warn("node requeue", what, "univip supervise  # does it from outside")
    skew_s = found["time"] - seen
    if abs(skew_s) > _SKEW_S:
        which = "ahead of" if skew_s > 0 else "behind"
        what = f"{found['host']} is {abs(skew_s):.1f} s {which} the file system"
        yield warn("node clock", what, "timedatectl  # on the node")
    if kind == "shards":
        return
    if config.cluster.gpus_per_node and not found["driver"] and not found["error"]:
        what = f"torch {found['torch']}; {found['host']} was asked for a GPU, but has no NVIDIA driver"
        yield warn("node torch", what, "cluster.partition=..., or cluster.gres=... of this site")
    else:
        yield from torch_and_gpus("node torch", found)


def _wait(folder: Path, job_id: str, say: Callable[[str], None]) -> str:
    """Wait for the answer; why none came, or nothing."""
    deadline = time.monotonic() + _DEEP_TIMEOUT_S
    next_look, ended, said, state = 0.0, math.inf, "", ""
    while time.monotonic() < min(deadline, ended + _LATE_S):
        with os.scandir(folder) as entries:  # a network file system then asks again what is there
            if any(entry.name == _ANSWER for entry in entries):
                return ""
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + _ASK_EVERY_S
            job = queue().get(job_id)
            if job and job.state == "PENDING" and job.reason not in (said, "None"):
                said = job.reason
                say(f"job {job_id} waits: {job.reason}; Ctrl-C cancels it")
            if (job is None or job.is_over) and math.isinf(ended):
                ended = time.monotonic()
                state = job.state if job else "gone"
        time.sleep(_POLL_S)
    if math.isinf(ended):
        cancel_jobs([job_id], now=True)
        return f"was not through after {_DEEP_TIMEOUT_S:.0f} s ({said or 'it ran'}) and is cancelled"
    return f"has ended ({state})"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
