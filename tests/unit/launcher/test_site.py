"""What real clusters print, as `scontrol`, `sinfo` and `sacctmgr` of SLURM 22.05 and 23.11 do."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from jobs.config import ClusterConfig, ProposalJobsConfig
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.site import (
    Association,
    Nodes,
    Partition,
    Site,
    parse_associations,
    parse_nodes,
    parse_partitions,
    site_yaml,
    write_site_file,
)

PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED \
MaxTime=2-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=c[001-128] PriorityJobFactor=1 \
PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=UP \
TotalCPUs=8192 TotalNodes=128 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerCPU=3900 \
MaxMemPerNode=UNLIMITED TRES=cpu=8192,mem=32000G,node=128,billing=8192
PartitionName=gpu AllowGroups=ALL AllowAccounts=vision,speech AllowQos=normal,long AllocNodes=ALL Default=NO \
QoS=gpu DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=8 \
MaxTime=12:30:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED MaxCPUsPerSocket=UNLIMITED Nodes=g[01-06] \
State=UP TotalCPUs=768 TotalNodes=6 TRES=cpu=768,mem=6144000M,node=6,billing=768,gres/gpu=40
PartitionName=old AllowAccounts=ALL AllowQos=ALL Default=NO MaxTime=UNLIMITED Nodes=o1 State=DOWN

"""
NODES = """\
cpu|120|64|256000|idle|(null)
cpu|8|64|256000|drain*|(null)
gpu|3|128|1031500|mix|gpu:a100:8(S:0-1)
gpu|1|128|1031500|down*|gpu:a100:8(S:0-1)
gpu|2|128+|1000000+|alloc|gpu:v100:2(S:0),gpu:a40:2(S:1),shard:8
old|1|16|64000|idle|gpu:4
"""
ASSOCIATIONS = """\
vision||long,normal
vision|gpu|normal
teaching||normal
"""
SITE = Site(
    parse_partitions(PARTITIONS),
    parse_nodes(NODES),
    parse_associations(ASSOCIATIONS),
    default_account="vision",
)


def test_a_partition_is_read_with_its_limit_and_those_who_may_use_it() -> None:
    assert parse_partitions(PARTITIONS) == {
        "cpu": Partition("cpu", is_default=True, max_time_h=48.0),
        "gpu": Partition(
            "gpu",
            max_time_h=12.5,
            max_nodes=8,
            accounts=frozenset({"vision", "speech"}),
            qos=frozenset({"normal", "long"}),
        ),
        "old": Partition("old", is_up=False, max_time_h=math.inf),
    }


def test_nodes_are_read_with_their_gpus_by_type() -> None:
    nodes = parse_nodes(NODES)

    assert [each.gpus for each in nodes] == [
        {},
        {},
        {"a100": 8},
        {"a100": 8},
        {"v100": 2, "a40": 2},
        {"": 4},
    ]
    assert [each.is_usable for each in nodes] == [True, False, True, False, True, True]
    assert (nodes[4].cpus, nodes[4].memory_mb, nodes[4].num_gpus) == (128, 1000000, 4)
    assert str(nodes[2]) == "3 x 128 CPUs, 1007 GB, gpu:a100:8"
    assert str(nodes[5]) == "1 x 16 CPUs, 62 GB, gpu:4"


def test_lines_that_name_a_cluster_are_passed_over() -> None:
    """With SLURM_CLUSTERS set sinfo heads each cluster's lines, and parts them by blank ones."""
    headed = f"CLUSTER: east\n{NODES}\nCLUSTER: west\n"

    assert parse_nodes(headed) == parse_nodes(NODES)


def test_associations_are_read_with_their_qualities_of_service() -> None:
    assert parse_associations(ASSOCIATIONS) == [
        Association("vision", "", frozenset({"long", "normal"})),
        Association("vision", "gpu", frozenset({"normal"})),
        Association("teaching", "", frozenset({"normal"})),
    ]
    assert parse_associations("") == []


def test_the_site_file_names_the_partition_with_gpus_and_what_its_largest_nodes_have() -> None:
    written = yaml.safe_load(site_yaml(SITE, ClusterConfig()))

    assert written == {
        "cluster": {
            "partition": "gpu",
            "account": "vision",
            "gpus_per_node": 8,
            "cpus_per_task": 128,
            "time_h": 12.5,
        }
    }
    text = site_yaml(SITE, ClusterConfig())
    assert "# gpu: 2 x 128 CPUs, 976 GB, gpu:v100:2,gpu:a40:2\n" in text
    # A choice of theirs, which may be charged otherwise.
    [offered] = [line for line in text.splitlines() if "proposals" in line]
    assert offered == "  # proposals: {partition: cpu}  # boxes need no GPU: 120 x 64 CPUs, 250 GB, no GPU"
    chosen = yaml.safe_load(text.replace("# proposals:", "proposals:"))["cluster"]["proposals"]
    assert chosen == {"partition": "cpu"}


def test_the_site_file_keeps_what_is_set_already() -> None:
    set_already = ClusterConfig(partition="cpu", account="teaching", time_h=6.0)

    assert yaml.safe_load(site_yaml(SITE, set_already))["cluster"] == {
        "partition": "cpu",
        "account": "teaching",
        "gpus_per_node": 0,
        "cpus_per_task": 64,
        "time_h": 6,
    }
    assert "proposals" not in site_yaml(SITE, set_already)


@pytest.mark.parametrize(
    ("proposals", "written"),
    [
        (ProposalJobsConfig(partition="cpu"), {"partition": "cpu"}),
        (ProposalJobsConfig(partition="short"), {"partition": "short", "time_h": 1}),
        (ProposalJobsConfig(partition="short", time_h=0.5), {"partition": "short", "time_h": 0.5}),
        (
            ProposalJobsConfig(account="0052", qos="", constraint="a|b"),
            {"account": "0052", "qos": "", "constraint": "a|b"},
        ),
        (ProposalJobsConfig(time_h=96), {"time_h": 12.5}),
        (ProposalJobsConfig(partition="not there"), {"partition": "not there"}),
    ],
    ids=str,
)
def test_the_site_file_keeps_what_is_set_for_the_jobs_of_boxes(
    proposals: ProposalJobsConfig, written: dict[str, object]
) -> None:
    site = replace(SITE, partitions=SITE.partitions | {"short": Partition("short", max_time_h=1)})

    text = site_yaml(site, ClusterConfig(proposals=proposals))

    assert yaml.safe_load(text)["cluster"]["proposals"] == written
    assert text.count("proposals:") == 1  # none for choice beside it


def test_boxes_take_no_longer_than_the_partition_that_they_share_with_training() -> None:
    site = Site({"short": Partition("short", max_time_h=1)}, [Nodes("short", 1, 64, 1000, {"a100": 8})], None)

    cluster = yaml.safe_load(site_yaml(site, ClusterConfig()))["cluster"]

    assert (cluster["time_h"], cluster["proposals"]) == (1, {"time_h": 1})


@pytest.mark.parametrize("name", ["0052", "on", "1e5", "123", "~", "a: b #c", 'a"b', "null", "no", "1_0"])
def test_a_name_that_yaml_takes_for_something_else_is_read_back_as_it_is(name: str) -> None:
    site = Site(
        {name: Partition(name), "cpus": Partition("cpus")},
        [Nodes(name, 1, 64, 1000, {"a100": 8})],
        [Association(name, "", frozenset())],
        default_account=name,
    )
    text = site_yaml(site, ClusterConfig(qos=name))

    for found in (yaml.safe_load(text), OmegaConf.create(text)):
        assert [found["cluster"][key] for key in ("partition", "account", "qos")] == [name] * 3


def test_a_partition_that_is_closed_to_every_account_of_the_user_is_not_taken() -> None:
    theirs = replace(SITE, associations=[Association("teaching", "", frozenset())])
    assert "partition: cpu\n" in site_yaml(theirs, ClusterConfig())

    assert "partition: gpu\n" in site_yaml(replace(SITE, associations=None), ClusterConfig())


def test_a_site_without_a_usable_node_is_an_error() -> None:
    down = Nodes("cpu", 1, 1, 1, is_usable=False)

    with pytest.raises(SlurmUnavailableError, match="must have a partition with nodes"):
        site_yaml(Site({"cpu": Partition("cpu")}, [down], None), ClusterConfig())


def test_a_site_file_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "site" / "local.yaml"

    assert write_site_file("a: 1\n", path)
    assert not write_site_file("a: 1\n", path)
    with pytest.raises(RefusedError, match="must not be there yet"):
        write_site_file("a: 2\n", path)
    assert path.read_text() == "a: 1\n"


def test_the_way_to_another_site_file_repeats_what_was_typed(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "local.yaml"
    write_site_file("a: 1\n", path)

    with pytest.raises(RefusedError) as refused:
        write_site_file("a: 2\n", path, ["cluster=slurm", "cluster.setup=[module load cuda]"])

    assert shlex.split(refused.value.fix.partition("edit it, or ")[2]) == [
        *("mv", str(path), f"{path}.old", "&&"),
        *("univip", "doctor", "cluster=slurm", "cluster.setup=[module load cuda]", "--write"),
    ]


def test_several_types_of_gpus_are_offered_for_choice() -> None:
    mixed = [Nodes("gpu", 2, 64, 1000, {"a100": 8}), Nodes("gpu", 2, 64, 1000, {"v100": 8})]

    text = site_yaml(Site({"gpu": Partition("gpu")}, mixed, None), ClusterConfig())

    assert "  # gpu_type: a100  # there are several: a100, v100\n" in text
