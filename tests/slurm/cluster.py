"""A real SLURM of four nodes with accounting, on this machine: for trials and for the test tier `slurm`.

    cluster.py up | down | status | kill-node N | start-node N | restart-controller

Needs root on Debian or Ubuntu and installs what is missing. Everything lies in one folder (`UNIVIP_CLUSTER`),
listens on 127.0.0.1 from one port upwards (`UNIVIP_CLUSTER_PORT`), and is gone after `down`. Each node is a
slurmd in PID, mount and UTS namespaces of its own: it has its own host name, and killing its first process is
what a power cut is - everything on it dies, and nobody is told.

Sizes are claims: 64 CPUs and 8 GPUs a node, so that the configurations meant for real nodes are accepted.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs.attempts import start_ticks

FOLDER = Path(os.environ.get("UNIVIP_CLUSTER", "/tmp/univip-cluster"))
PORT = int(os.environ.get("UNIVIP_CLUSTER_PORT", "17400"))
NODES = 4
GPUS = 8
PACKAGES = (
    "munge",
    "slurm-wlm",
    "slurmdbd",
    "slurm-wlm-mysql-plugin",
    "mariadb-server-core",
    "mariadb-client-core",
)
TIMEOUT_S = 60.0

# `cred_expire` is also how long a requeued job waits before it may start again, and must outlast `KillWait`.
# `preempt_send_user_signal`: without it a preempted job is not warned by the signal it asked for.
SLURM_CONF = """\
ClusterName=univip
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=6
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=10
TCPTimeout=2
KillWait=4
MaxArraySize=1001
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,bf_continue
PriorityType=priority/multifactor
PriorityWeightQOS=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
PreemptType=preempt/qos
PreemptMode=REQUEUE
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/run/munge.socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
NodeName=DEFAULT CPUs=64 Boards=1 SocketsPerBoard=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=64000
NodeName=node[1-{nodes}] NodeHostname=node[1-{nodes}] NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] \
Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=2-0 DefaultTime=60 State=UP
PartitionName=short Nodes=node[3-4] MaxTime=1:00:00 DefaultTime=60 State=UP
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo={folder}/run/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm
"""
# Names, a user, and ranks of jobs: `high` preempts `low`, which gets ten seconds to save its state, and of
# `few` a user may have only eight at once.
ACCOUNTS = (
    "add cluster univip",
    "add account research cluster=univip",
    "add user root account=research defaultaccount=research",
    "add qos low set priority=1 GraceTime=10 preemptmode=requeue",
    "add qos high set priority=100 preempt=low",
    "add qos few set MaxSubmitJobsPerUser=8",
    "modify user root set qos=normal,low,high,few defaultqos=normal",
)


class ClusterError(Exception):
    """The cluster could not be brought up."""


def up() -> None:
    """Bring up whatever is not up yet."""
    _install()
    begun = time.monotonic()
    _configure()
    run, log = FOLDER / "run", FOLDER / "log"
    if not _is_alive("munged"):
        for left_over in run.glob("munge.*"):
            left_over.unlink()
    # As root, and with a key and a socket of its own: no other munge of this machine is touched.
    _spawn(
        "munged",
        f"munged --foreground --force --num-threads=4 --key-file={FOLDER}/etc/munge.key "
        f"--socket={run}/munge.socket --pid-file={run}/munge.pid --log-file={log}/munged.log "
        f"--seed-file={run}/munge.seed".split(),
    )
    _accounting()
    _spawn("slurmctld", ["slurmctld", "-D", "-f", f"{FOLDER}/etc/slurm.conf"])
    _until("slurmctld to answer", lambda: _answers("scontrol", "ping"))
    for number in range(1, NODES + 1):
        start_node(number)
    _until("all nodes to be idle", lambda: len(_ready_nodes()) == NODES)
    _say(f"{NODES} nodes are up after {time.monotonic() - begun:.1f} s; to use them:")
    _say(f"    export SLURM_CONF={FOLDER}/etc/slurm.conf")


def down() -> None:
    """Stop every daemon, with everything that runs on the nodes, and remove the folder."""
    for number in range(1, NODES + 1):
        _stop(f"node{number}", signal.SIGKILL)
    for name in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
        _stop(name)
    shutil.rmtree(FOLDER, ignore_errors=True)


def status() -> None:
    """Which daemons live, and what SLURM says of its nodes."""
    for name in sorted(path.stem for path in (FOLDER / "run").glob("*.daemon")):
        _say(f"{name:<10} {'up' if _is_alive(name) else 'DOWN'}")
    subprocess.run(["sinfo", "-N", "-o", "%N %t %c %m %G %E"], env=_environment(), check=False)


def kill_node(number: int) -> None:
    """Power off."""
    _stop(f"node{number}", signal.SIGKILL)


def start_node(number: int) -> None:
    """Power on."""
    name = f"node{number}"
    (FOLDER / "spool" / name).mkdir(exist_ok=True, parents=True)
    inside = (
        f"hostname {name} && mount --bind {FOLDER}/etc/hosts.{name} /etc/hosts && "
        f"slurmd -D -f {FOLDER}/etc/slurm.conf -N {name}"
    )
    command = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--uts", "/bin/sh", "-c"]
    _spawn(name, [*command, inside])


def restart_controller() -> None:
    """Stop slurmctld and start it again; jobs run on meanwhile."""
    _stop("slurmctld")
    _spawn("slurmctld", ["slurmctld", "-D", "-f", f"{FOLDER}/etc/slurm.conf"])
    _until("slurmctld to answer", lambda: _answers("scontrol", "ping"))


def _install() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the cluster must be brought up by root, but you are not: sudo make cluster")
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Status}\n", *PACKAGES]
    if not shutil.which("dpkg-query"):
        raise ClusterError("the cluster must be brought up on Debian or Ubuntu; here is no dpkg")
    listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" ok installed")}
    missing = [name for name in PACKAGES if name not in installed]
    if not missing:
        return
    _say(f"installing {' '.join(missing)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    policy = Path("/usr/sbin/policy-rc.d")  # as long as it is there, no package starts a daemon
    is_ours = not policy.exists()
    if is_ours:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        policy.chmod(0o755)
    try:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-qq", *command], env=quiet, stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ClusterError(f"apt-get must install {' '.join(missing)}, but failed: {error}") from error
    finally:
        if is_ours:
            policy.unlink()


def _configure() -> None:
    for name in ("etc", "run", "log", "state", "spool", "db", "dev"):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
    etc, host = FOLDER / "etc", os.uname().nodename.partition(".")[0]
    if (etc / "slurm.conf").exists():
        return
    values = {
        "folder": FOLDER,
        "host": host,
        "nodes": NODES,
        "gpus": GPUS,
        "port": PORT,
        "dbd_port": PORT + 1,
        "sql_port": PORT + 2,
        "first_port": PORT + 11,
        "last_port": PORT + 10 + NODES,
        "password": secrets.token_hex(12),
    }
    (etc / "munge.key").write_bytes(secrets.token_bytes(1024))
    (etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format_map(values), encoding="utf-8")
    for name in ("munge.key", "slurmdbd.conf"):
        (etc / name).chmod(0o600)
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")
    for number in range(GPUS):  # device files that are there: what /dev/null is
        os.mknod(FOLDER / "dev" / f"gpu{number}", 0o600 | 0o020000, os.makedev(1, 3))
    devices = f"AutoDetect=off\nNodeName=node[1-{NODES}] Name=gpu File={FOLDER}/dev/gpu[0-{GPUS - 1}]\n"
    (etc / "gres.conf").write_text(devices, encoding="utf-8")
    names = [f"node{number}" for number in range(1, NODES + 1)]
    for name in names:  # its own name first: that is what it then calls itself
        others = "".join(f"127.0.0.1 {other}\n" for other in names if other != name)
        text = f"127.0.0.1 {name}\n127.0.0.1 localhost {host}\n{others}::1 ip6-localhost\n"
        (etc / f"hosts.{name}").write_text(text, encoding="utf-8")
    (etc / "slurm.conf").write_text(SLURM_CONF.format_map(values), encoding="utf-8")


def _accounting() -> None:
    """A database, slurmdbd, and the accounts in it."""
    data, socket = FOLDER / "db", FOLDER / "run" / "sql.socket"
    if not (data / "mysql").exists():
        _run(
            "mariadb-install-db --no-defaults --user=root --auth-root-authentication-method=socket "
            f"--skip-test-db --datadir={data}".split()
        )
    _spawn(
        "mariadbd",
        f"mariadbd --no-defaults --user=root --datadir={data} --socket={socket} --bind-address=127.0.0.1 "
        f"--port={PORT + 2} --pid-file={FOLDER}/run/sql.pid --innodb-buffer-pool-size=128M "
        "--innodb-flush-log-at-trx-commit=0 --skip-name-resolve --performance-schema=OFF".split(),
    )
    sql = ["mariadb", "--no-defaults", "--user=root", f"--socket={socket}", "--execute"]
    _until("the database", lambda: _answers(*sql, "select 1"))
    conf = (FOLDER / "etc" / "slurmdbd.conf").read_text(encoding="utf-8")
    password = conf.partition("StoragePass=")[2].splitlines()[0]
    _run(
        [
            *sql,
            "create database if not exists slurm; "
            f"create user if not exists 'slurm'@'127.0.0.1' identified by '{password}'; "
            "grant all on slurm.* to 'slurm'@'127.0.0.1';",
        ]
    )
    _spawn("slurmdbd", ["slurmdbd", "-D"])
    _until("slurmdbd", lambda: _answers("sacctmgr", "--noheader", "list", "cluster"))
    listed = _run(["sacctmgr", "--noheader", "--parsable2", "list", "cluster", "format=cluster"])
    if "univip" not in listed.split():
        for line in ACCOUNTS:
            _run(["sacctmgr", "--immediate", "--quiet", *line.split()])


def _ready_nodes() -> list[str]:
    try:
        listed = _run(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"])
    except ClusterError:
        return []
    return [line for line in listed.splitlines() if line.split()[1] in ("idle", "mix", "alloc", "comp")]


def _environment() -> Mapping[str, str]:
    return os.environ | {"SLURM_CONF": str(FOLDER / "etc" / "slurm.conf")}


def _spawn(name: str, command: list[str]) -> None:
    """Start a daemon and remember it by process id and start time."""
    if _is_alive(name):
        return
    with (FOLDER / "log" / f"{name}.out").open("ab") as log:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(),
            start_new_session=True,
        )
    remembered = json.dumps([started.pid, start_ticks(started.pid)])
    (FOLDER / "run" / f"{name}.daemon").write_text(remembered, encoding="utf-8")


def _daemon(name: str) -> tuple[int, int]:
    try:
        pid, ticks = json.loads((FOLDER / "run" / f"{name}.daemon").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0, 0
    return pid, ticks


def _is_alive(name: str) -> bool:
    pid, ticks = _daemon(name)
    return pid != 0 and start_ticks(pid) == ticks


def _stop(name: str, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop a daemon; one that does not listen is killed."""
    pid, _ = _daemon(name)
    for number in (number, signal.SIGKILL):  # noqa: B020 - the second is for the deaf
        if _is_alive(name):
            os.kill(pid, number)
            deadline = time.monotonic() + 15
            while _is_alive(name) and time.monotonic() < deadline:
                time.sleep(0.05)


def _until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {TIMEOUT_S:.0f} s for {what}; see {FOLDER}/log")
        time.sleep(0.1)


def _answers(*command: str) -> bool:
    try:
        _run(list(command))
    except ClusterError:
        return False
    return True


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        raise ClusterError(f"`{command[0]}` said: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def main(arguments: list[str]) -> None:
    """Entry point."""
    verbs: dict[str, Callable[[], None]] = {
        "up": up,
        "down": down,
        "status": status,
        "restart-controller": restart_controller,
    }
    of_a_node: dict[str, Callable[[int], None]] = {"kill-node": kill_node, "start-node": start_node}
    try:
        match arguments:
            case [verb] if verb in verbs:
                verbs[verb]()
            case [verb, number] if verb in of_a_node and number in map(str, range(1, NODES + 1)):
                of_a_node[verb](int(number))
            case _:
                with_number = [f"{verb} N" for verb in of_a_node]
                raise SystemExit(
                    f"usage: cluster.py {' | '.join([*verbs, *with_number])}, N from 1 to {NODES}"
                )
    except ClusterError as error:
        raise SystemExit(f"cluster: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
