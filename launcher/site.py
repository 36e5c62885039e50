"""What a SLURM site offers this user - partitions, nodes, accounts - and the site file that says so once.

SLURM prints for people and for scripts; the formats asked for here have one line per thing and one separator.
Parsing is apart from asking, so it is tested on what real clusters print.
"""

from __future__ import annotations

import getpass
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Context
from pathlib import Path

import configs
from jobs.config import ClusterConfig, ProposalJobsConfig
from jobs.demand import asked_by
from jobs.slurm import duration_s
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.slurm import ask

SITE_FILE = Path(configs.__file__).parent / "site" / "local.yaml"
_SINFO = "%R|%D|%c|%m|%t|%G"
_GPUS = re.compile(r"\bgpu:(?:([^:,()]+):)?(\d+)")
_UNUSABLE = ("down", "drain", "drng", "fail", "unk", "boot")


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        max_time_h: Longest job, hours; infinite where there is no limit.
        max_nodes: Of one job; infinite where there is no limit.
        accounts: Accounts that may use it; None = all.
        qos: Qualities of service that may be asked for in it; None = all.
    """

    name: str
    is_default: bool = False
    is_up: bool = True
    max_time_h: float = math.inf
    max_nodes: float = math.inf
    accounts: frozenset[str] | None = None
    qos: frozenset[str] | None = None


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind in a partition.

    Attributes:
        memory_mb: That SLURM gives away, MiB.
        gpus: GPUs of one node by type; the type is empty where the site names none.
        is_usable: False where they are down or drained.
    """

    partition: str
    count: int
    cpus: int
    memory_mb: int
    gpus: dict[str, int] = field(default_factory=dict)
    is_usable: bool = True

    @property
    def num_gpus(self) -> int:
        """Of one node."""
        return self.count_gpus("")

    def count_gpus(self, kind: str) -> int:
        """GPUs of one type on one node; of any type where that is empty."""
        return self.gpus.get(kind, 0) if kind else sum(self.gpus.values())

    def __str__(self) -> str:
        gres = ",".join(f"gpu:{kind}{':' * bool(kind)}{count}" for kind, count in self.gpus.items())
        return f"{self.count} x {self.cpus} CPUs, {self.memory_mb // 1024} GB, {gres or 'no GPU'}"


@dataclass(frozen=True)
class Association:
    """An account that the user may charge."""

    account: str
    partition: str  # the only one it holds for; empty = all
    qos: frozenset[str]


@dataclass(frozen=True)
class Site:
    """All that SLURM tells this user.

    Attributes:
        associations: None where there is no accounting.
        default_account: Charged where a job names none; empty where there is none.
    """

    partitions: dict[str, Partition]
    nodes: list[Nodes]
    associations: list[Association] | None
    default_account: str = ""

    def of(self, partition: str) -> list[Nodes]:
        """Nodes of a partition that can be used."""
        return [nodes for nodes in self.nodes if nodes.partition == partition and nodes.is_usable]

    def partition_of(self, cluster: ClusterConfig) -> Partition | None:
        """The partition that a configuration asks for, or SLURM's own choice; None if there is no such."""
        if cluster.partition:  # several may be named; the first stands for them
            return self.partitions.get(cluster.partition.partition(",")[0])
        return next((each for each in self.partitions.values() if each.is_default), None)

    def account_of(self, cluster: ClusterConfig) -> str:
        """The account that a configuration asks for, or SLURM's own choice."""
        return cluster.account or self.default_account


def ask_site(*, asks_accounts: bool = True) -> Site:
    """Ask SLURM.

    Args:
        asks_accounts: Also ask the accounting, which may be slow.

    Raises:
        SlurmUnavailableError: If it does not answer; missing accounting is no error.
    """
    partitions = parse_partitions(ask("scontrol", "show", "partition", "--oneliner"))
    nodes = parse_nodes(ask("sinfo", "--noheader", "--exact", f"--format={_SINFO}"))
    if not asks_accounts:
        return Site(partitions, nodes, None)
    user = getpass.getuser()
    show = ["sacctmgr", "--noheader", "--parsable2", "show"]
    try:
        listed = ask(*show, "associations", f"user={user}", "format=Account,Partition,QOS")
        default = ask(*show, "user", user, "format=DefaultAccount").strip()
    except SlurmUnavailableError:
        return Site(partitions, nodes, None)
    return Site(partitions, nodes, parse_associations(listed), default)


def parse_partitions(shown: str) -> dict[str, Partition]:
    """`scontrol show partition --oneliner`."""
    found = {}
    for line in shown.splitlines():
        words = {name: value for name, equals, value in (word.partition("=") for word in line.split())}
        if name := words.get("PartitionName"):
            found[name] = Partition(
                name=name,
                is_default=words.get("Default") == "YES",
                is_up=words.get("State") == "UP",
                max_time_h=duration_s(words.get("MaxTime", "")) / 3600,
                max_nodes=int(most) if (most := words.get("MaxNodes", "")).isdecimal() else math.inf,
                accounts=_allowed(words.get("AllowAccounts", "ALL")),
                qos=_allowed(words.get("AllowQos", "ALL")),
            )
    return found


def parse_nodes(listed: str) -> list[Nodes]:
    """`sinfo --noheader --exact --format=%R|%D|%c|%m|%t|%G`."""
    found = []
    for line in listed.splitlines():
        if "|" not in line:  # with SLURM_CLUSTERS set: `CLUSTER: name`, and blank lines
            continue
        partition, count, cpus, memory, state, gres = line.strip().split("|")
        found.append(
            Nodes(
                partition,
                int(count),
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")),
                parse_gpus(gres),
                is_usable=not state.startswith(_UNUSABLE) and not state.endswith("*"),
            )
        )
    return found


def parse_gpus(gres: str) -> dict[str, int]:
    """GPUs by type in a list of generic resources, such as `gpu:a100:8(S:0-1),nvme:1`."""
    gpus: dict[str, int] = {}
    for kind, number in _GPUS.findall(gres):
        gpus[kind] = gpus.get(kind, 0) + int(number)
    return gpus


def parse_associations(listed: str) -> list[Association]:
    """`sacctmgr --parsable2 show associations format=Account,Partition,QOS`."""
    rows = (line.split("|") for line in listed.splitlines() if "|" in line)
    return [Association(account, partition, frozenset(qos.split(","))) for account, partition, qos in rows]


def at_most(hours: float) -> str:
    """A time limit as an option takes it, in six digits and never above it, where `:g` may round up."""
    # So much above it that what is a short number but for the error of a division is not cut below.
    context = Context(prec=6, rounding=ROUND_FLOOR)
    return f"{context.create_decimal_from_float(hours * (1 + 1e-12)).normalize():f}"


def site_yaml(site: Site, cluster: ClusterConfig) -> str:
    """The site file: what this site always needs, as far as SLURM tells.

    Args:
        site: What SLURM tells.
        cluster: What is set already; a partition, account or quality of service in it is kept.

    Raises:
        SlurmUnavailableError: If no partition can be used.
    """
    partition = site.partition_of(cluster) if cluster.partition else _best_partition(site)
    kinds = site.of(partition.name) if partition else []
    if partition is None or not kinds:
        raise SlurmUnavailableError(
            "SLURM must have a partition with nodes that can be used, but has none.", fix="sinfo"
        )
    most = max(nodes.num_gpus for nodes in kinds)
    kinds_used = [nodes for nodes in kinds if nodes.num_gpus == most]
    memory_mb = min(nodes.memory_mb for nodes in kinds_used)
    lines = [
        "# @package _global_",
        "# Written by `univip doctor --write` from what SLURM says of this site; yours to edit.",
        "# Keys that were typed and are not here, such as setup and extra, are yours to add.",
        *(f"# {partition.name}: {nodes}" for nodes in kinds),
        "cluster:",
        f"  partition: {_scalar(partition.name)}",
    ]
    if account := site.account_of(cluster):
        lines.append(f"  account: {_scalar(account)}")
    if cluster.qos:
        lines.append(f"  qos: {_scalar(cluster.qos)}")
    lines += [
        f"  gpus_per_node: {most}",
        f"  cpus_per_task: {min(nodes.cpus for nodes in kinds_used)}",
        f"  time_h: {at_most(min(cluster.time_h, partition.max_time_h))}",
        f"  # mem_gb: {memory_mb // 1024}  # all of a node",
    ]
    boxes = _of_boxes(site, replace(cluster, partition=partition.name))
    if boxes:
        lines.append(f"  proposals: {{{', '.join(f'{key}: {value}' for key, value in boxes.items())}}}")
    elif most and (plain := _partition_without_gpus(site)):
        kinds_there = "; ".join(map(str, site.of(plain)))
        lines.append(f"  # proposals: {{partition: {_scalar(plain)}}}  # boxes need no GPU: {kinds_there}")
    types = sorted({kind for nodes in kinds_used for kind in nodes.gpus if kind})
    if len(types) > 1:
        lines.append(f"  # gpu_type: {_scalar(types[0])}  # there are several: {', '.join(types)}")
    return "\n".join(lines) + "\n"


def write_site_file(text: str, path: Path, overrides: Sequence[str] = ()) -> bool:
    """Write the site file; False if it says the same already.

    Args:
        text: What it is to say.
        path: The file.
        overrides: That it was made with.

    Raises:
        RefusedError: If there is one that says something else.
    """
    from univip.atomic import write_text

    if path.exists():
        if path.read_text(encoding="utf-8") == text:
            return False
        aside = shlex.join(["mv", str(path), f"{path}.old"])
        again = shlex.join(["univip", "doctor", *overrides, "--write"])
        raise RefusedError(
            "the site file must not be there yet, but is, and differs as shown.",
            where=str(path),
            fix=f"edit it, or {aside} && {again}",
        )
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    return True


def _of_boxes(site: Site, cluster: ClusterConfig) -> dict[str, str]:
    """What the jobs that make boxes ask for apart from training, as YAML, in no more time than there is."""
    own = cluster.proposals
    texts = {name: getattr(own, name) for name in ("account", "partition", "qos", "constraint")}
    found = {name: _scalar(text) for name, text in texts.items() if text is not None}
    partition = site.partition_of(asked_by("shards", cluster))
    time_h = min(own.time_h, partition.max_time_h) if partition else own.time_h
    if time_h != ProposalJobsConfig.time_h:
        found["time_h"] = at_most(time_h)
    return found


def _best_partition(site: Site) -> Partition | None:
    """The default one if it has GPUs, else the one with the most; without any the default one."""

    def worth(partition: Partition) -> tuple[bool, bool, int]:
        gpus = sum(nodes.count * nodes.num_gpus for nodes in site.of(partition.name))
        return gpus > 0, partition.is_default, gpus

    return max(_usable(site), key=worth, default=None)


def _partition_without_gpus(site: Site) -> str:
    """The one with the most CPUs; empty if there is none."""
    plain = [each.name for each in _usable(site) if not any(nodes.num_gpus for nodes in site.of(each.name))]
    return max(plain, key=lambda name: sum(each.count * each.cpus for each in site.of(name)), default="")


def _usable(site: Site) -> list[Partition]:
    """Partitions that are up, have nodes, and are open to an account of the user."""
    known = site.associations
    mine = None if known is None else {association.account for association in known}
    return [
        each
        for each in site.partitions.values()
        if each.is_up
        and site.of(each.name)
        and (each.accounts is None or mine is None or each.accounts & mine)
    ]


def _scalar(text: str) -> str:
    """A name as YAML, in quotes unless it is plainly text: 0052 would be a number, and `on` true."""
    import yaml

    is_plain = re.fullmatch(r"[A-Za-z][\w.-]*", text, re.ASCII) and yaml.safe_load(text) == text
    return text if is_plain else json.dumps(text)


def _allowed(text: str) -> frozenset[str] | None:
    return None if text == "ALL" else frozenset(text.split(","))
