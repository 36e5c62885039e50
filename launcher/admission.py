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

from jobs.config import ClusterConfig, Config, NodesConfig
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
_ASK_EVERY_S = 5.0
_LATE_S = 60.0  # an answer may be, in the cache of a network file system
_SKEW_S = 2.0
TOO_MANY_JOBS = "MaxSubmitJob"  # sbatch, of one more than a user may have; elements of an array count each
_TRAINS = frozenset({"train", "evaluate"})  # stages that ask for what a training does


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


def offers(site: Site, cluster: ClusterConfig) -> Iterator[Row]:
    """What the site offers, held against what a configuration asks for."""
    cluster = _in_force(cluster)
    partition = site.partition_of(cluster)
    if partition is None:
        names = ", ".join(site.partitions)
        near = difflib.get_close_matches(cluster.partition, site.partitions, n=1, cutoff=0.0)
        asked = f"`{cluster.partition}` is not there" if cluster.partition else "none is the default"
        yield miss("partition", f"{asked}; there are {names}", f"cluster.partition={(near or [''])[0]}")
        return
    if partition.is_up:
        yield ok("partition", f"{partition.name} is up")
    else:
        yield miss("partition", f"{partition.name} is not up", "cluster.partition=...  # see sinfo")
    yield from _charged(site, partition, cluster)
    yield from _nodes(site, partition, cluster)
    for key, hours in (("time_h", cluster.time_h), ("shard_time_h", cluster.shard_time_h)):
        longest = partition.max_time_h
        if hours > longest:
            yield miss(
                "time limit",
                f"cluster.{key} is {hours:g} h, but {partition.name} gives {longest:g} h",
                f"cluster.{key}={at_most(longest)}  # a longer training is requeued",
            )
            break
    else:
        limit = "no limit" if math.isinf(partition.max_time_h) else f"{partition.max_time_h:g} h"
        yield ok("time limit", f"{cluster.time_h:g} h; {partition.name} has {limit}")


def refuse_endless(jobs: Sequence[SlurmJob], cluster: ClusterConfig) -> None:
    """Refuse what SLURM would take and let wait for ever, unless it was told otherwise.

    Args:
        jobs: Of one request.
        cluster: What they were made of.

    Raises:
        ConfigError: If a job may run for longer than its partition allows, or asks for more nodes than that
            has.
        SlurmUnavailableError: If there is no SLURM.
    """
    site, cluster = ask_site(asks_accounts=False), _in_force(cluster)
    partition = site.partition_of(cluster)
    # Of several partitions another one may do, and a quality of service may lift the limits of all.
    if partition is None or "," in cluster.partition or cluster.qos:
        return
    longest = partition.max_time_h
    num_nodes = sum(nodes.count for nodes in site.nodes if nodes.partition == partition.name)
    for job in jobs:
        hours, key = job.parameters["time"] / 60, "time_h" if job.stage.kind in _TRAINS else "shard_time_h"
        if hours > longest:
            rest = "  # a longer training is requeued" if key == "time_h" else ""
            fix = f"cluster.{key}={at_most(getattr(cluster, key) * longest / hours)}{rest}"
            found = f"{job.stage.kind} may run for {hours:g} h, but {partition.name} gives {longest:g} h"
            raise _misfit(found, fix)
        needed = job.parameters["nodes"]
        if num_nodes and needed > num_nodes:  # of nodes that are hidden sinfo does not tell
            found = f"{job.stage.kind} needs {needed} nodes, but {partition.name} has {num_nodes}"
            raise _misfit(found, f"cluster.nodes.min={num_nodes}")


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
    if not _TRAINS.intersection(kinds):  # what only a training asks for is not to blame
        cluster = replace(cluster, nodes=NodesConfig(), gpus_per_node=0, gpu_type="", gres="")
        cluster = replace(cluster, cpus_per_task=cluster.shard_cpus, time_h=cluster.shard_time_h)
    try:
        rows = [row for row in offers(ask_site(), cluster) if row.level is Level.MISS]
    except SlurmUnavailableError:
        return error
    if rows:
        return _misfit(f"{rows[0].found}; sbatch said: {error.what.partition(': ')[2]}", rows[0].fix)
    return ConfigError(error.what, where=error.where, fix="univip doctor ...  # with the same key=value")


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


def _charged(site: Site, partition: Partition, cluster: ClusterConfig) -> Iterator[Row]:
    """Account and quality of service."""
    if site.associations is None:
        yield ok("account", "SLURM keeps no accounts here")
        return
    account = site.account_of(cluster)
    mine = [each for each in site.associations if each.partition in ("", partition.name)]
    accounts = sorted({each.account for each in mine})
    allowed = [each for each in accounts if partition.accounts is None or each in partition.accounts]
    if account not in accounts:
        asked = f"`{account}` is not yours" if account else "none is the default"
        known = f"; yours are {', '.join(accounts)}" if accounts else ", and you have none here"
        fix = f"cluster.account={allowed[0]}" if allowed else "ask the administrators for an account"
        yield miss("account", asked + known, fix)
        return
    if account not in allowed:
        fix = f"cluster.account={allowed[0]}" if allowed else "cluster.partition=...  # another one"
        yield miss("account", f"`{account}` may not use {partition.name}", fix)
        return
    yield ok("account", f"{account}{'' if cluster.account else ' (your default)'}")
    if not cluster.qos:
        return
    known_qos = sorted({name for each in mine if each.account == account for name in each.qos})
    usable = [name for name in known_qos if partition.qos is None or name in partition.qos]
    if cluster.qos in usable:
        yield ok("qos", cluster.qos)
    else:
        found = f"`{cluster.qos}` may not be used by {account} in {partition.name}"
        yield miss(
            "qos", f"{found}; these may: {', '.join(usable)}", f"cluster.qos={usable[0] if usable else ''}"
        )


def _nodes(site: Site, partition: Partition, cluster: ClusterConfig) -> Iterator[Row]:
    """Whether enough nodes have the GPUs, processors and memory that a training asks for."""
    kinds = site.of(partition.name)
    if not kinds:
        yield miss("nodes", f"no node of {partition.name} can be used now", f"sinfo -p {partition.name} -R")
        return
    all_kinds = "; ".join(map(str, kinds))
    gpus = parse_gpus(cluster.gres) if cluster.gres else {cluster.gpu_type: cluster.gpus_per_node}
    for kind, count in gpus.items():
        most = max(nodes.count_gpus(kind) for nodes in kinds)
        if count > most:
            asked, fix = f"gpus_per_node={count}", f"cluster.gpus_per_node={most}"
            if kind and not most:
                types = sorted({name for nodes in kinds for name in nodes.gpus})
                near = difflib.get_close_matches(kind, types, n=1, cutoff=0.0)
                asked, fix = f"gpu_type={kind}", f"cluster.gpu_type={near[0] if near else ''}"
            if cluster.gres:
                asked, fix = f"gres={cluster.gres}", "cluster.gres=...  # as the nodes have it"
            found = f"no node of {partition.name} has cluster.{asked}; there are {all_kinds}"
            yield miss("nodes", found, fix)
            return
    for key, value, most in (
        ("cpus_per_task", cluster.cpus_per_task, max(nodes.cpus for nodes in kinds)),
        ("mem_gb", cluster.mem_gb, max(nodes.memory_mb for nodes in kinds) // 1024),
    ):
        if value > most:
            found = f"no node of {partition.name} has cluster.{key}={value:g}; there are {all_kinds}"
            yield miss("nodes", found, f"cluster.{key}={most:g}")
            return
    fitting = sum(
        nodes.count
        for nodes in kinds
        if all(nodes.count_gpus(kind) >= count for kind, count in gpus.items())
        and nodes.cpus >= cluster.cpus_per_task
        and nodes.memory_mb >= cluster.mem_gb * 1024
    )
    if fitting < cluster.nodes.min:
        found = (
            f"{fitting} of {cluster.nodes.min} nodes have all that a training asks for; there are {all_kinds}"
        )
        yield miss("nodes", found, f"cluster.nodes.min={max(1, fitting)}, or ask for less of each")
    else:
        yield ok("nodes", f"{fitting} fit a training; there are {all_kinds}")


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
    """Submit one short job, and look at its node through what it leaves in the folder of the runs.

    Args:
        config: Where it runs, and where its answer has to be seen.
        say: Told once why the job waits.
    """
    runs = Path(config.paths.runs)
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            job_id = submit_probe(config, folder, _ANSWER)
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
    if config.cluster.gpus_per_node and not found["driver"] and not found["error"]:
        what = f"torch {found['torch']}; {found['host']} was asked for a GPU, but has no NVIDIA driver"
        yield warn("node torch", what, "cluster.partition=..., or +cluster.extra.gres=... of this site")
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
