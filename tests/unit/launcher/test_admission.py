"""What a configuration asks for against what a site offers; SLURM is a few scripts on the PATH."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import probe
from jobs.config import (
    ClusterConfig,
    ClusterKind,
    Config,
    NodesConfig,
    PathsConfig,
    ProposalJobsConfig,
    RunHeader,
    RunKind,
)
from jobs.outcomes import write_json
from jobs.requests import Request, Stage
from launcher import admission, sbatch
from launcher.admission import explain_refusal, offers, refuse_endless, slurm
from launcher.doctor import Level, Row
from launcher.errors import SlurmUnavailableError
from launcher.plan import Plan
from launcher.sbatch import SlurmJob, slurm_jobs, trial_jobs
from launcher.site import Association, Nodes, Partition, Site
from univip.errors import ConfigError

SITE = Site(
    {
        "gpu": Partition("gpu", is_default=True, max_time_h=48, accounts=frozenset({"vision"})),
        "debug": Partition("debug", max_time_h=1, qos=frozenset({"short"})),
        "closed": Partition("closed", is_up=False),
    },
    [
        Nodes("gpu", 3, 64, 500_000, {"a100": 8}),
        Nodes("gpu", 2, 128, 1_000_000, {"v100": 4}),
        Nodes("debug", 1, 64, 500_000, {"": 8}),
        Nodes("closed", 1, 64, 500_000, {"": 8}, is_usable=False),
    ],
    [
        Association("vision", "", frozenset({"normal", "long"})),
        Association("teaching", "", frozenset({"normal"})),
    ],
    default_account="vision",
)


def bad(cluster: ClusterConfig, site: Site = SITE) -> list[Row]:
    return [row for row in offers(site, cluster) if row.level is not Level.OK]


def test_what_the_site_has_is_all_right() -> None:
    rows = list(offers(SITE, ClusterConfig(nodes=NodesConfig(1, 3), qos="long")))

    assert [(row.level, row.check) for row in rows] == [
        (Level.OK, check)
        for check in (
            *("partition", "account", "qos", "nodes", "time limit"),
            *("nodes (boxes)", "time limit (boxes)"),
        )
    ]
    assert [row.found.partition(";")[0] for row in rows[3:]] == [
        "3 fit a training",
        "24 h for a training",
        "5 fit making boxes",
        "2 h for making boxes",
    ]


@pytest.mark.parametrize(
    ("cluster", "check", "found", "fix"),
    [
        (ClusterConfig(partition="gpus"), "partition", "`gpus` is not there", "cluster.partition=gpu"),
        (ClusterConfig(partition="closed"), "partition", "is not up", "cluster.partition="),
        (ClusterConfig(account="nlp"), "account", "`nlp` is not yours; yours are", "cluster.account=vision"),
        (ClusterConfig(account="teaching"), "account", "may not use gpu", "cluster.account=vision"),
        (ClusterConfig(qos="huge"), "qos", "these may: long, normal", "cluster.qos=long"),
        (ClusterConfig(gpus_per_node=9), "nodes", "no node of gpu has cluster.gpus_per_node=9", "=8"),
        (ClusterConfig(cpus_per_task=256), "nodes", "has cluster.cpus_per_task=256", "=128"),
        (ClusterConfig(mem_gb=2000), "nodes", "has cluster.mem_gb=2000", "=976"),
        (ClusterConfig(cpus_per_task=128), "nodes", "0 of 1 nodes have all", "ask for less of each"),
        (ClusterConfig(nodes=NodesConfig(4, 4)), "nodes", "3 of 4 nodes", "cluster.nodes.min=3"),
        (ClusterConfig(time_h=72), "time limit", "cluster.time_h is 72 h, but gpu gives 48", "time_h=48"),
        (
            ClusterConfig(proposals=ProposalJobsConfig(time_h=50)),
            "time limit (boxes)",
            "cluster.proposals.time_h is 50 h",
            "proposals.time_h=48",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_site_lacks_is_named_with_a_value_that_would_do(
    cluster: ClusterConfig, check: str, found: str, fix: str
) -> None:
    row = bad(cluster)[0]

    assert (row.level, row.check) == (Level.MISS, check)
    assert found in row.found
    assert fix in row.fix


@pytest.mark.parametrize(
    ("own", "found", "fix"),
    [
        ({"partition": "gpus"}, "`gpus` is not there", "cluster.proposals.partition=gpu"),
        ({"partition": "closed"}, "is not up", "cluster.proposals.partition=...  # see"),
        ({"account": "nlp"}, "`nlp` is not yours; yours are", "cluster.proposals.account=vision"),
        ({"account": "teaching"}, "may not use gpu", "cluster.proposals.account=vision"),
        ({"partition": "debug", "account": "teaching"}, "2 h, but debug gives 1 h", "proposals.time_h=1"),
        ({"qos": "huge"}, "these may: long, normal", "cluster.proposals.qos=long"),
        ({"mem_gb": 2000.0}, "has cluster.proposals.mem_gb=2000", "cluster.proposals.mem_gb=976"),
        ({"cpus_per_task": 256}, "has cluster.proposals.cpus_per_task=256", "proposals.cpus_per_task=128"),
    ],
    ids=str,
)
def test_what_the_site_lacks_for_boxes_is_named_by_the_keys_of_boxes(
    own: dict[str, Any], found: str, fix: str
) -> None:
    [row, *_] = bad(ClusterConfig(proposals=ProposalJobsConfig(**own)))

    assert found in row.found
    assert fix in row.fix


def test_what_boxes_ask_for_by_the_keys_of_training_is_named_by_those() -> None:
    rows = list(offers(SITE, ClusterConfig(partition="gpus"), ["shards"]))

    assert [row.fix for row in rows] == ["cluster.partition=gpu"]


def test_a_quality_of_service_must_be_allowed_in_the_partition_too() -> None:
    [row] = bad(
        ClusterConfig(partition="debug", qos="long", time_h=1, proposals=ProposalJobsConfig(time_h=1))
    )

    assert (row.check, row.level) == ("qos", Level.MISS)


def test_without_accounting_no_account_is_missing() -> None:
    assert bad(ClusterConfig(account="anything"), replace(SITE, associations=None)) == []


def test_a_user_without_any_account_is_told_so() -> None:
    [row] = bad(ClusterConfig(), replace(SITE, associations=[], default_account=""))

    assert "you have none here" in row.found


@pytest.mark.parametrize(
    ("cluster", "found", "fix"),
    [
        (ClusterConfig(gres="gpu:9"), "no node of gpu has cluster.gres=gpu:9", "cluster.gres="),
        (ClusterConfig(gres="gpu:h100:1"), "no node of gpu has cluster.gres=gpu:h100:1", "cluster.gres="),
        (ClusterConfig(gpu_type="a10"), "no node of gpu has cluster.gpu_type=a10", "cluster.gpu_type=a100"),
        (
            ClusterConfig(gpu_type="v100"),
            "no node of gpu has cluster.gpus_per_node=8",
            "cluster.gpus_per_node=4",
        ),
    ],
    ids=str,
)
def test_a_type_of_gpu_or_a_resource_that_no_node_has_is_missing(
    cluster: ClusterConfig, found: str, fix: str
) -> None:
    [row] = bad(cluster)

    assert row.found.startswith(found)
    assert row.fix.startswith(fix)


def test_generic_resources_that_the_nodes_have_are_all_right() -> None:
    assert bad(ClusterConfig(gres="gpu:v100:4,nvme:1")) == []


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of SLURM that print what a real one does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in {
        "sbatch": 'if [ "$1" = --version ]; then echo "slurm-wlm 22.05.8"; else\n'
        'grep -q -- --partition=gpu && echo "sbatch: Job 7 to start at 2026-01-01T00:00:00 using 64 '
        'processors on nodes g1 in partition gpu" >&2\nfi',
        "scontrol": 'if [ "$1" = ping ]; then echo "Slurmctld(primary) at login is UP"; else\n'
        'echo "PartitionName=gpu AllowAccounts=ALL AllowQos=ALL Default=YES MaxTime=2-00:00:00 State=UP"\nfi',
        "sinfo": 'echo "gpu|2|64|500000|idle|gpu:8"',
        "squeue": "exit 0",
        "sacctmgr": 'echo "You are not running a supported accounting_storage plugin" >&2; exit 1',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def config(tmp_path: Path) -> Config:
    cluster = ClusterConfig(kind=ClusterKind.slurm, partition="gpu")
    return Config(cluster=cluster, paths=PathsConfig(runs=str(tmp_path / "runs")))


def test_a_cluster_that_takes_every_kind_of_job_is_all_right(commands: Path, tmp_path: Path) -> None:
    rows = list(slurm(config(tmp_path)))

    assert {row.level for row in rows} == {Level.OK}, rows
    assert [row.check for row in rows if row.check.startswith("job")] == [
        "job shards",
        "job train",
        "job evaluate",
    ]
    assert not (tmp_path / "runs").exists()


def test_a_trial_is_not_of_what_variables_of_the_shell_say_instead(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    (commands / "sbatch").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "$SBATCH_PARTITION,$SBATCH_RESERVATION" >&2\n'
    )

    rows = [row for row in slurm(config(tmp_path)) if row.check.startswith("job")]

    assert [row.found for row in rows] == [",mine"] * 3


def test_variables_of_the_shell_count_where_nothing_is_configured(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch takes them; the partition that is SLURM's own choice has no say then."""
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SBATCH_ACCOUNT", "teaching")
    fitting = ClusterConfig(time_h=1, proposals=ProposalJobsConfig(time_h=1))
    rows = {row.check: row.found for row in offers(SITE, fitting)}
    assert (rows["partition"], rows["account"]) == ("debug is up", "teaching")
    assert next(offers(SITE, replace(fitting, partition="gpu"))).found == "gpu is up"

    monkeypatch.setenv("SBATCH_PARTITION", "hidden")
    refuse(ClusterConfig(time_h=72), "train")
    monkeypatch.delenv("SBATCH_PARTITION")
    monkeypatch.setenv("SBATCH_QOS", "long")
    refuse(ClusterConfig(time_h=72), "train")


def test_what_slurm_says_against_a_job_is_told(commands: Path, tmp_path: Path) -> None:
    refused = "allocation failure: Invalid qos specification"
    (commands / "sbatch").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "slurm 23.11.4" && exit 0\necho "{refused}" >&2; exit 1\n'
    )

    rows = [row for row in slurm(config(tmp_path)) if row.check.startswith("job")]

    assert [(row.level, row.found) for row in rows] == [(Level.MISS, refused)] * 3


def test_a_controller_that_is_down_is_missing(commands: Path, tmp_path: Path) -> None:
    (commands / "scontrol").write_text(
        '#!/bin/sh\nif [ "$1" = ping ]; then echo "Slurmctld(primary) at login is DOWN"; fi\n'
    )

    [row] = slurm(config(tmp_path))

    assert row.level is Level.MISS
    assert "login is DOWN" in row.found


def test_without_sbatch_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    [row] = slurm(config(tmp_path))

    assert (row.level, row.check) == (Level.MISS, "SLURM")


def test_a_squeue_that_lacks_an_option_is_found_before_a_run_needs_it(commands: Path, tmp_path: Path) -> None:
    (commands / "squeue").write_text("#!/bin/sh\necho \"squeue: unrecognized option '--me'\" >&2; exit 1\n")
    (commands / "squeue").chmod(0o755)

    [row] = slurm(config(tmp_path))

    assert (row.level, row.check) == (Level.MISS, "SLURM")
    assert "unrecognized option '--me'" in row.found


@pytest.mark.parametrize(
    ("ahead_s", "told"), [(0.0, []), (30.0, ["30.0 s ahead of"]), (-30.0, ["30.0 s behind"])]
)
def test_a_node_whose_clock_is_wrong_is_told_of(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, told: list[str]
) -> None:
    def submit(config: Config, folder: Path, name: str, kind: str) -> str:
        now = time.time()
        write_json(folder / name, {**probe.look(), "time": now + ahead_s})
        os.utime(folder / name, (now, now))
        return "9"

    monkeypatch.setattr(admission, "submit_probe", submit)

    rows = list(admission.deep(config(tmp_path), pytest.fail))

    found = [row.found for row in rows if row.check == "node clock"]
    assert len(found) == len(told)
    assert all(words in row for words, row in zip(told, found, strict=True))


@pytest.mark.parametrize(("scontrol", "checks"), [("/usr/bin/scontrol", []), ("", ["node requeue"])])
def test_a_node_without_scontrol_is_told_of(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scontrol: str, checks: list[str]
) -> None:
    """Such as the inside of a container: a job there cannot put itself back into the queue."""

    def submit(config: Config, folder: Path, name: str, kind: str) -> str:
        write_json(folder / name, {**probe.look(), "time": time.time(), "scontrol": scontrol})
        return "9"

    monkeypatch.setattr(admission, "submit_probe", submit)

    rows = list(admission.deep(config(tmp_path), pytest.fail))

    assert [row.check for row in rows if row.check == "node requeue"] == checks
    assert all("univip supervise" in row.fix for row in rows if row.check == "node requeue")


def test_a_job_that_ends_without_an_answer_shows_what_it_printed(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(config: Config, folder: Path, name: str, kind: str) -> str:
        (folder / "submitit").mkdir()
        (folder / "submitit" / "9_0_log.err").write_text("first\nNo module named 'univip'\n")
        return "9"

    monkeypatch.setattr(admission, "submit_probe", submit)
    monkeypatch.setattr(admission, "_LATE_S", 0.0)
    (commands / "squeue").write_text("#!/bin/sh\necho '9|FAILED|NonZeroExitCode'\n")
    (commands / "squeue").chmod(0o755)

    [row] = admission.deep(config(tmp_path), pytest.fail)

    assert row.level is Level.MISS
    assert "job 9 has ended (FAILED), and left no answer" in row.found
    assert row.found.endswith("No module named 'univip'")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("boxes", "kinds"),
    [
        (ProposalJobsConfig(cpus_per_task=2), ["evaluate"]),
        (ProposalJobsConfig(partition="gpu"), ["evaluate"]),
        (ProposalJobsConfig(partition="cpu"), ["evaluate", "shards"]),
        (ProposalJobsConfig(account="plain"), ["evaluate", "shards"]),
        (ProposalJobsConfig(qos="long"), ["evaluate", "shards"]),
        (ProposalJobsConfig(constraint="big"), ["evaluate", "shards"]),
    ],
    ids=str,
)
def test_a_node_of_the_boxes_is_looked_at_where_they_are_made_elsewhere(
    commands: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    boxes: ProposalJobsConfig,
    kinds: list[str],
) -> None:
    submitted: list[str] = []

    def submit(config: Config, folder: Path, name: str, kind: str) -> str:
        submitted.append(kind)
        # A driver, and no GPU that torch would see: none was asked for.
        seen = {"host": f"of {kind}", "time": time.time(), "scontrol": "", "driver": "570.1", "gpus": []}
        write_json(folder / name, probe.look() | seen)
        return str(len(submitted))

    monkeypatch.setattr(admission, "submit_probe", submit)
    asked = config(tmp_path)
    asked = replace(asked, cluster=replace(asked.cluster, proposals=boxes))

    rows = list(admission.deep(asked, pytest.fail))

    assert submitted == kinds
    assert {row.check for row in rows if "of evaluate" in row.found} == {"node", "node requeue"}
    found = [row for row in rows if row.check == "node (boxes)"]
    assert [row.level for row in found] == [Level.OK, Level.WARN] * (len(kinds) - 1)
    assert all("of shards" in row.found for row in found)


@pytest.mark.parametrize(("kind", "flags"), [("evaluate", ("gpu", "1")), ("shards", ("cpu", None))])
def test_a_short_job_asks_for_a_node_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, flags: tuple[str, str | None]
) -> None:
    submitted: list[SlurmJob] = []

    def submit(jobs: list[SlurmJob], code: Path, *, entry: str) -> list[str]:
        submitted.extend(jobs)
        return ["9"]

    monkeypatch.setattr(sbatch, "submit_slurm", submit)
    asked = config(tmp_path)
    asked = replace(asked, cluster=replace(asked.cluster, proposals=ProposalJobsConfig(partition="cpu")))

    assert sbatch.submit_probe(asked, tmp_path, "answer.json", kind) == "9"

    [job] = submitted
    assert (job.kinds, job.parameters["time"]) == (["answer.json"], 5)
    gpus = job.parameters.get("gpus_per_node")
    assert (job.parameters["partition"], gpus and str(gpus)) == flags


def refuse(cluster: ClusterConfig, *kinds: str) -> None:
    jobs = trial_jobs(Config(cluster=cluster), Path("/runs/a-1"))
    refuse_endless([jobs[kind] for kind in kinds], cluster)


@pytest.mark.parametrize(
    ("cluster", "kind", "found", "fix"),
    [
        (ClusterConfig(time_h=72), "train", "train may run for 72 h, but gpu gives 48", "cluster.time_h=48"),
        (
            ClusterConfig(proposals=ProposalJobsConfig(time_h=96)),
            "shards",
            "shards may run for 96 h",
            "cluster.proposals.time_h=48",
        ),
        (ClusterConfig(nodes=NodesConfig(3, 4)), "train", "3 nodes, but gpu has 2", "cluster.nodes.min=2"),
    ],
    ids=["time", "time of shards", "nodes"],
)
def test_what_sbatch_takes_and_lets_wait_for_ever_is_refused(
    commands: Path, cluster: ClusterConfig, kind: str, found: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse(cluster, kind)

    assert found in refused.value.what
    assert refused.value.fix.startswith(fix)
    assert refused.value.where
    # Another partition, or a quality of service, may allow it.
    for more in ({"partition": "gpu,long"}, {"qos": "long"}, {"partition": "hidden"}):
        refuse(replace(cluster, **more), kind)


@pytest.mark.parametrize("sinfo", ["exit 0", "echo 'gpu|2|64|500000|idle|gpu:8'"])
def test_more_nodes_than_the_partition_gives_one_job_are_refused(commands: Path, sinfo: str) -> None:
    (commands / "scontrol").write_text("#!/bin/sh\necho PartitionName=gpu Default=YES MaxNodes=1\n")
    (commands / "sinfo").write_text(f"#!/bin/sh\n{sinfo}\n")

    with pytest.raises(ConfigError, match="train needs 2 nodes, but gpu gives one job 1") as refused:
        refuse(ClusterConfig(nodes=NodesConfig(2, 2)), "train")
    assert refused.value.fix == "cluster.nodes.min=1"
    refuse(ClusterConfig(nodes=NodesConfig(1, 2)), "train")


def test_more_nodes_than_the_partition_gives_one_job_are_missing() -> None:
    site = replace(SITE, partitions={"gpu": Partition("gpu", is_default=True, max_nodes=2)})

    [row] = bad(ClusterConfig(nodes=NodesConfig(3, 3)), site)

    assert (row.found, row.fix) == (
        "a training needs 3 nodes, but gpu gives one job 2",
        "cluster.nodes.min=2",
    )
    assert bad(ClusterConfig(nodes=NodesConfig(2, 3)), site) == []


def test_a_node_that_was_to_have_gpus_and_has_none_is_told_what_asks_for_them_alone(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that every job gets would ask for GPUs for the jobs that make boxes, too."""

    def submit(config: Config, folder: Path, name: str, kind: str) -> str:
        write_json(folder / name, {**probe.look(), "time": time.time(), "driver": "", "error": ""})
        return "9"

    monkeypatch.setattr(admission, "submit_probe", submit)

    [row] = [row for row in admission.deep(config(tmp_path), pytest.fail) if row.check == "node torch"]

    assert "no NVIDIA driver" in row.found
    assert row.fix == "cluster.partition=..., or cluster.gres=... of this site"


def test_what_a_training_would_ask_for_does_not_keep_boxes_from_being_made(commands: Path) -> None:
    refuse(ClusterConfig(time_h=72, nodes=NodesConfig(3, 4)), "shards")

    error = SlurmUnavailableError(f"SLURM must accept the jobs, but did not: {NO_FEATURE}")
    explained = explain_refusal(error, {"prepare", "shards"}, ClusterConfig(gpus_per_node=9, time_h=72))
    assert "gpus_per_node" not in explained.what
    assert "Invalid feature" in explained.what


def test_several_shards_for_each_element_of_an_array_need_their_time(commands: Path) -> None:
    job = trial_jobs(Config(), Path("/runs/a-1"))["shards"]
    job.parameters["time"] = 3 * 60 * 20  # three shards of 20 h

    with pytest.raises(ConfigError, match="shards may run for 60 h, but gpu gives 48 h") as refused:
        refuse_endless([job], ClusterConfig(proposals=ProposalJobsConfig(time_h=20)))
    assert refused.value.fix == "cluster.proposals.time_h=16"


LIMITS_MIN = (1, 7, 45, 60, 70, 200, 1439, 1440, 2880, 10_081)


@pytest.mark.parametrize("limit_min", LIMITS_MIN)
def test_the_time_that_would_do_is_not_refused_in_its_turn(
    limit_min: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever rounding does to it, and with as many shards to a job as there may be."""
    site = replace(SITE, partitions={"gpu": Partition("gpu", is_default=True, max_time_h=limit_min / 60)})
    monkeypatch.setattr(admission, "ask_site", lambda **_: site)

    def shards(num_shards: int, cluster: ClusterConfig) -> list[SlurmJob]:
        config = Config(cluster=cluster, paths=PathsConfig(runs=str(tmp_path)))
        request = Request("proposals", [Stage("shards", "boxes-1")])
        header = RunHeader("boxes-1", RunKind.proposals, "f" * 64, 500)
        return slurm_jobs(Plan(config, header, None, request, num_shards, 0, {}, most_elements=1))

    for num_shards in (*range(1, 401, 13), 183, 400):
        asked = ClusterConfig(proposals=ProposalJobsConfig(time_h=limit_min / 60 * 1.37))
        with pytest.raises(ConfigError) as refused:
            refuse_endless(shards(num_shards, asked), asked)
        fix_h = float(refused.value.fix.removeprefix("cluster.proposals.time_h="))
        refuse_endless(shards(num_shards, replace(asked, proposals=ProposalJobsConfig(time_h=fix_h))), asked)
        # Not by asking for far too little: 1.37 is lost to whole minutes only where they are few.
        assert fix_h * num_shards * 60 > min(0.99 * limit_min, limit_min - 1)

    asked = ClusterConfig(time_h=200.0)
    fix = next(row.fix for row in offers(site, asked) if row.check == "time limit")
    fitting = replace(
        asked,
        time_h=float(fix.removeprefix("cluster.time_h=").split()[0]),
        proposals=ProposalJobsConfig(time_h=0.01),
    )
    assert next(row.level for row in offers(site, fitting) if row.check == "time limit") is Level.OK


def test_jobs_that_the_partition_has_room_for_are_not_refused_while_its_nodes_are_down(
    commands: Path,
) -> None:
    (commands / "sinfo").write_text("#!/bin/sh\necho 'gpu|2|64|500000|down*|gpu:8'\n")

    refuse(ClusterConfig(nodes=NodesConfig(2, 2), time_h=48), "shards", "train", "evaluate")


# What a real sbatch 22.05 says.
NO_PARTITION = "sbatch: error: invalid partition specified: gpus"
NO_FEATURE = "sbatch: error: Batch job submission failed: Invalid feature specification"


@pytest.mark.parametrize(
    ("said", "cluster", "found", "fix"),
    [
        (NO_PARTITION, ClusterConfig(partition="gpus"), "`gpus` is not there", "cluster.partition=gpu"),
        (NO_FEATURE, ClusterConfig(constraint="x"), "Invalid feature", "univip doctor"),
    ],
    ids=["known", "unknown"],
)
def test_what_sbatch_refuses_is_explained_by_what_the_site_has(
    commands: Path, said: str, cluster: ClusterConfig, found: str, fix: str
) -> None:
    error = SlurmUnavailableError(f"SLURM must accept the jobs, but did not: {said}", where="train of a-1")

    explained = explain_refusal(error, {"train"}, cluster)

    assert isinstance(explained, ConfigError)
    assert found in explained.what
    assert said in explained.what
    assert explained.where
    assert explained.fix.startswith(fix)


def test_a_refusal_of_a_slurm_that_does_not_answer_stays_what_it_is(commands: Path) -> None:
    (commands / "scontrol").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2; exit 1\n")
    error = SlurmUnavailableError("SLURM must accept the jobs, but did not: Unable to contact")

    assert explain_refusal(error, {"train"}, ClusterConfig()) is error
