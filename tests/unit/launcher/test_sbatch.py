import os
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

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
from jobs.requests import Request, stages_of
from launcher.errors import SlurmUnavailableError
from launcher.plan import Plan
from launcher.sbatch import render_slurm, slurm_jobs, submit_slurm
from univip.errors import ConfigError

CODE = Path(__file__).resolve().parents[3]
BLOCKED = CODE / "jobs" / "blocked.py"
CLUSTER = ClusterConfig(
    kind=ClusterKind.slurm,
    account="vision",
    partition="gpu",
    nodes=NodesConfig(min=1, max=4),
    mem_gb=100.5,
    proposals=ProposalJobsConfig(mem_gb=20),
    setup=["module load cuda"],
    extra={"mail-user": "me@example.org"},
)


def make_plan(runs: Path, cluster: ClusterConfig = CLUSTER, num_shards: int = 3) -> Plan:
    config = Config(cluster=cluster, paths=PathsConfig(runs=str(runs)))
    return Plan(
        config=config,
        header=RunHeader("univip-1", RunKind.train, "f" * 64, 500, "proposals-1"),
        proposals=RunHeader("proposals-1", RunKind.proposals, "f" * 64, 500),
        request=Request("pipeline", stages_of("pipeline", "univip-1", "proposals-1")),
        num_shards=num_shards,
        data_steps=10,
        refused={},
    )


def flags(script: str) -> dict[str, str]:
    """The #SBATCH lines of a script, read as a shell reads words."""
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in script.splitlines() if "#SBATCH" in line]
    return {word.partition("=")[0]: word.partition("=")[2] for [word] in words}


def test_the_script_of_training_asks_for_what_was_configured(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = render_slurm(slurm_jobs(make_plan(runs)), CODE)[3]

    folder = runs / "univip-1" / "submitit"
    assert (
        script.replace(str(folder), "FOLDER")
        .replace(shlex.quote(sys.executable), "PYTHON")
        .replace(str(BLOCKED), "BLOCKED")
        == GOLDEN
    )


GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --comment=univip-1
#SBATCH --cpus-per-task=64
#SBATCH --dependency='afterok:<merge>'
#SBATCH --error=FOLDER/%j_0_log.err
#SBATCH --gpus-per-node=8
#SBATCH --job-name=univip-train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-user=me@example.org
#SBATCH --mem=102912M
#SBATCH --no-kill
#SBATCH --nodes=1-4
#SBATCH --open-mode=append
#SBATCH --output=FOLDER/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output FOLDER/%j_%t_log.out --error FOLDER/%j_%t_log.err --cpus-per-task=64 --export=ALL \
--ntasks-per-node=1 --no-kill --kill-on-bad-exit=0 --wait=0 PYTHON -I -S BLOCKED \
-u -m submitit.core._submit FOLDER
"""


def test_a_signal_that_comes_while_python_starts_waits_until_it_is_answered() -> None:
    """The signal is there before the first import; the module that answers it comes late."""
    code = (
        "import os, signal, time; time.sleep(0.1)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: print('answered'))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})\n"
    )
    shell = 'kill -USR2 $$; exec "$@"'
    blocked = [sys.executable, "-I", "-S", str(BLOCKED), "-c"]
    blocked += [f"import os; os.execvp('sh', {['sh', '-c', shell, 'sh', sys.executable, '-c', code]!r})"]

    ran = subprocess.run(blocked, capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (0, "answered\n"), ran.stderr


def test_boxes_are_a_throttled_array_without_gpus(tmp_path: Path) -> None:
    cluster = replace(CLUSTER, proposals=ProposalJobsConfig(array_parallelism=2, cpus_per_task=4, time_h=0.5))

    shards = flags(render_slurm(slurm_jobs(make_plan(tmp_path, cluster)), CODE)[1])

    assert shards["--array"] == "0-2%2"
    assert (shards["--cpus-per-task"], shards["--time"], shards["--nodes"]) == ("4", "30", "1")
    assert "--gpus-per-node" not in shards


def test_boxes_ask_for_what_their_own_section_says(tmp_path: Path) -> None:
    training = replace(
        CLUSTER, qos="long", constraint="a100", gres="gpu:8", extra={"exclusive": "", "mail-user": "me"}
    )
    own = ProposalJobsConfig(
        account="", partition="cpu", constraint="", mem_gb=8, extra={"exclusive": None, "nice": "7"}
    )
    scripts = render_slurm(slurm_jobs(make_plan(tmp_path, replace(training, proposals=own))), CODE)

    names = ("account", "partition", "qos", "constraint", "gres", "mem", "exclusive", "nice")
    asked = [tuple(flags(script).get(f"--{name}") for name in names) for script in scripts]
    boxes = (None, "cpu", "long", None, None, "8192M", None, "7")
    assert asked == [
        boxes,
        boxes,
        boxes,
        ("vision", "gpu", "long", "a100", "gpu:8", "102912M", "", None),
        ("vision", "gpu", "long", "a100", "gpu:1", "102912M", "", None),
    ]
    assert {flags(script)["--mail-user"] for script in scripts} == {"me"}


def test_more_shards_than_an_array_may_have_elements_are_shared_out(tmp_path: Path) -> None:
    cluster = replace(CLUSTER, proposals=ProposalJobsConfig(time_h=0.5))

    job = slurm_jobs(make_plan(tmp_path, cluster, num_shards=2300))[1]

    assert job.kinds[::999] == ["shard:0/1000", "shard:999/1000"]
    shards = flags(render_slurm([job], CODE)[0])
    assert (shards["--array"], shards["--time"]) == ("0-999%50", "90")
    job = slurm_jobs(replace(make_plan(tmp_path, cluster, num_shards=2300), most_elements=100))[1]
    assert (len(job.kinds), job.kinds[-1]) == (100, "shard:99/100")
    assert flags(render_slurm([job], CODE)[0])["--array"] == "0-99%50"


def test_without_arrays_one_job_searches_all_shards(tmp_path: Path) -> None:
    cluster = replace(CLUSTER, proposals=ProposalJobsConfig(time_h=0.5))

    job = slurm_jobs(replace(make_plan(tmp_path, cluster), most_elements=1))[1]

    assert job.kinds == ["shard:0/1"]
    shards = flags(render_slurm([job], CODE)[0])
    assert "--array" not in shards
    assert shards["--time"] == "90"


def test_evaluation_asks_for_one_gpu_and_its_share_of_cores(tmp_path: Path) -> None:
    evaluate = flags(render_slurm(slurm_jobs(make_plan(tmp_path)), CODE)[4])

    assert (evaluate["--gpus-per-node"], evaluate["--cpus-per-task"]) == ("1", "8")
    assert evaluate["--dependency"] == "afterok:<train>"


def test_a_type_of_gpu_is_asked_for_where_gpus_are(tmp_path: Path) -> None:
    scripts = render_slurm(slurm_jobs(make_plan(tmp_path, replace(CLUSTER, gpu_type="a100"))), CODE)

    asked = [flags(script).get("--gpus-per-node") for script in scripts]
    assert asked == [None, None, None, "a100:8", "a100:1"]


def test_generic_resources_are_asked_for_instead_of_gpus_per_node(tmp_path: Path) -> None:
    scripts = render_slurm(slurm_jobs(make_plan(tmp_path, replace(CLUSTER, gres="gpu:a100:4,nvme:1"))), CODE)

    asked = [flags(script) for script in scripts]
    assert [each.get("--gres") for each in asked] == [None] * 3 + ["gpu:a100:4,nvme:1", "gpu:a100:1,nvme:1"]
    assert not any("--gpus-per-node" in each for each in asked)


def test_python_may_be_that_of_a_container(tmp_path: Path) -> None:
    container = ["apptainer", "exec", "--nv", "/images/my univip.sif", "python3"]

    scripts = render_slurm(slurm_jobs(make_plan(tmp_path, replace(CLUSTER, python=container))), CODE)

    for script in scripts:
        [command] = [line for line in script.splitlines() if line.startswith("srun")]
        words = shlex.split(command)
        begin = words.index("apptainer")
        assert words[begin : begin + 8] == [*container, "-I", "-S", str(BLOCKED)]


@pytest.mark.parametrize(
    ("extra", "expected"), [({}, "node2,node3"), ({"exclude": "node[7-8]"}, "node[7-8],node2,node3")]
)
def test_unfit_nodes_are_excluded_beside_those_of_the_configuration(
    tmp_path: Path, extra: dict[str, str], expected: str
) -> None:
    plan = replace(make_plan(tmp_path, replace(CLUSTER, extra=extra)), unfit=("node2", "node3"))

    assert {flags(script)["--exclude"] for script in render_slurm(slurm_jobs(plan), CODE)} == {expected}


def test_rendering_writes_nothing_and_needs_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert len(render_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)) == 5

    assert list(tmp_path.iterdir()) == []


NASTY = [
    "a b",
    "$(touch pwned)",
    "`touch pwned`",
    "x; touch pwned",
    "x' ; touch pwned; '",
    'x" && touch pwned "',
]


@pytest.mark.parametrize("nasty", NASTY)
def test_a_nasty_value_stays_a_value(tmp_path: Path, nasty: str) -> None:
    """The script runs in a real shell with a stand-in for srun that tells its last argument."""
    cluster = replace(
        CLUSTER,
        account=nasty,
        partition=nasty,
        qos=nasty,
        constraint=nasty,
        setup=[],
        extra={"comment": nasty},
    )
    runs = tmp_path / nasty
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text('#!/bin/sh\nfor last; do :; done; printf "%s" "$last"\n')
    (bin_folder / "srun").chmod(0o755)

    script = render_slurm(slurm_jobs(make_plan(runs, cluster)), CODE)[3]
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{bin_folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout == str(runs / "univip-1" / "submitit")
    assert not (tmp_path / "pwned").exists()
    asked = flags(script)
    assert [asked[name] for name in ("--account", "--partition", "--qos", "--constraint", "--comment")] == [
        nasty
    ] * 5


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (replace(CLUSTER, account="a\ntouch pwned"), r"`cluster\.account` must be one line"),
        (replace(CLUSTER, partition="a\r"), r"`cluster\.partition` must be one line"),
        (replace(CLUSTER, qos="a\x00"), r"`cluster\.qos` must be one line"),
        (replace(CLUSTER, setup=["a", "b\nc"]), r"`cluster\.setup\[1\]` must be one line"),
        (replace(CLUSTER, extra={"gres": "a\nb"}), r"`cluster\.extra\.gres` must be one line"),
        (replace(CLUSTER, extra={"gres\n#SBATCH --x": "a"}), r"`cluster\.extra` must be options of sbatch"),
        (replace(CLUSTER, extra={"--gres": "a"}), r"`cluster\.extra` must be options of sbatch"),
        (replace(CLUSTER, gres="gpu:8\n"), r"`cluster\.gres` must be one line"),
        (
            replace(CLUSTER, proposals=ProposalJobsConfig(partition="a\n")),
            r"`cluster\.proposals\.partition` must be one line",
        ),
        (
            replace(CLUSTER, proposals=ProposalJobsConfig(extra={"gres": "a\n"})),
            r"`cluster\.proposals\.extra\.gres` must be one line",
        ),
        (
            replace(CLUSTER, proposals=ProposalJobsConfig(extra={"--gres": None})),
            r"`cluster\.proposals\.extra` must be options of sbatch",
        ),
        (replace(CLUSTER, extra={"time": "600"}), r"`cluster\.extra\.time` must be left to univip"),
        (replace(CLUSTER, extra={"dependency": "afterany:1"}), r"`cluster\.extra\.dependency` must be left"),
        (replace(CLUSTER, extra={"array": "0-1"}), r"`cluster\.extra\.array` must be left to univip"),
        # Recorded from a real sbatch: a backslash is lost, or ends the quotes and begins another option.
        (replace(CLUSTER, account="a\\b"), r"`cluster\.account` must be free of `\\`"),
        (replace(CLUSTER, extra={"comment": "a\\' --uid=0 '"}), r"`cluster\.extra\.comment` must be free"),
    ],
)
def test_a_value_that_would_leave_its_line_is_refused(
    tmp_path: Path, cluster: ClusterConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        slurm_jobs(make_plan(tmp_path, cluster))


@pytest.mark.parametrize(
    ("name", "fix", "fix_of_boxes"),
    [
        ("time", "cluster.time_h=...", "cluster.proposals.time_h=..."),
        ("partition", "cluster.partition=...", "cluster.proposals.partition=..."),
        ("nodes", "cluster.nodes.min=...", "leave cluster.proposals.extra.nodes out"),
        ("dependency", 'sbatch --dependency=... --wrap="univip submit ..."', "sbatch --dependency=..."),
        ("requeue", "leave cluster.extra.requeue out", "leave cluster.proposals.extra.requeue out"),
    ],
)
def test_an_option_that_is_set_already_is_refused_with_what_to_write_instead(
    tmp_path: Path, name: str, fix: str, fix_of_boxes: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        slurm_jobs(make_plan(tmp_path, replace(CLUSTER, extra={name: "x"})))
    assert refused.value.fix.startswith(fix)

    of_boxes = replace(CLUSTER, proposals=ProposalJobsConfig(extra={name: "x"}))
    with pytest.raises(ConfigError) as refused:
        slurm_jobs(make_plan(tmp_path, of_boxes))
    assert refused.value.fix.startswith(fix_of_boxes)


def test_a_folder_that_slurm_would_rewrite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`paths\.runs` must be free of `%`"):
        slurm_jobs(make_plan(tmp_path / "100%j"))
    with pytest.raises(ConfigError, match=r"`paths\.runs` must be free of `\\`"):
        slurm_jobs(make_plan(tmp_path / "a\\b"))


def test_an_option_without_a_value_is_a_flag(tmp_path: Path) -> None:
    extra = {"exclusive": "", "mail-user": "me"}

    [script] = render_slurm(slurm_jobs(make_plan(tmp_path, replace(CLUSTER, extra=extra)))[:1], CODE)

    assert "#SBATCH --exclusive\n" in script
    assert "#SBATCH --mail-user=me\n" in script


@pytest.fixture
def slurm(stand_ins: Callable[[dict[str, str]], Path]) -> Path:
    """Jobs are counted, and what each was given is kept."""
    return stand_ins(
        {
            "sbatch": 'n=$(ls | grep -c ^job); cp "$1" job-$n; env > env-$n; '
            '[ -f refuse-$n ] && echo "no such partition" >&2 && exit 1; echo "Submitted batch job 10$n"',
            "srun": "exit 0",
            "scancel": 'echo "$@" >> cancelled',
        }
    )


def test_jobs_are_submitted_each_after_the_one_before(tmp_path: Path, slurm: Path) -> None:
    ids = submit_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)

    assert ids == ["100", "101", "102", "103", "104"]
    scripts = [(slurm / f"job-{number}").read_text() for number in range(5)]
    assert [flags(script).get("--dependency") for script in scripts] == [
        None,
        "afterok:100",
        "afterok:101",
        "afterok:102",
        "afterok:103",
    ]


def test_what_is_submitted_within_a_job_knows_nothing_of_that_job(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_job = {"SLURM_JOB_ID": "7", "SLURM_CPU_BIND": "quiet,cores", "SRUN_DEBUG": "3"}
    chosen = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_RESERVATION": "mine", "WANDB_MODE": "offline"}
    for name, value in {**of_job, **chosen}.items():
        monkeypatch.setenv(name, value)

    submit_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)

    handed_on = dict(line.split("=", 1) for line in (slurm / "env-3").read_text().splitlines() if "=" in line)
    assert not of_job.keys() & handed_on.keys()
    assert chosen.items() <= handed_on.items()
    assert of_job.items() <= os.environ.items()


def test_variables_of_the_shell_do_not_replace_what_the_scripts_say(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch takes them before the lines of a script; `man sbatch`, input environment variables."""
    said = [
        "ACCOUNT",
        "PARTITION",
        "TIMELIMIT",
        "SIGNAL",
        "MEM_PER_NODE",
        "JOB_NAME",
        "OUTPUT",
        "ERROR",
        "OPEN_MODE",
        "REQUEUE",
    ]
    against = ["NO_REQUEUE", "MEM_PER_CPU", "MEM_PER_GPU"]
    training = ["NO_KILL", "GPUS_PER_NODE", "GPUS", "GRES"]
    unsaid = ["QOS", "CONSTRAINT", "RESERVATION", "EXPORT", "EXCLUSIVE"]
    for name in (*said, *against, *training, "ARRAY_INX", *unsaid):
        monkeypatch.setenv(f"SBATCH_{name}", "of-the-shell")
    before = dict(os.environ)

    submit_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)

    kept = [
        {line.partition("=")[0].removeprefix("SBATCH_") for line in lines if line.startswith("SBATCH_")}
        for lines in ((slurm / f"env-{number}").read_text().splitlines() for number in range(5))
    ]
    prepare, shards, merge, train, _ = kept
    assert prepare == merge == {*unsaid, *training, "ARRAY_INX"}
    assert shards == {*unsaid, *training}
    assert train == {*unsaid, "ARRAY_INX"}
    assert dict(os.environ) == before


def test_variables_of_the_shell_stay_in_force_where_nothing_is_configured(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "of-the-shell")
    monkeypatch.setenv("SBATCH_MEM_PER_CPU", "2G")

    submit_slurm(slurm_jobs(make_plan(tmp_path / "runs", ClusterConfig(kind=ClusterKind.slurm))), CODE)

    handed_on = (slurm / "env-3").read_text().splitlines()
    assert {"SBATCH_ACCOUNT=of-the-shell", "SBATCH_MEM_PER_CPU=2G"} <= set(handed_on)


def test_what_submitit_pickles_is_a_function_by_name_and_two_strings(tmp_path: Path, slurm: Path) -> None:
    submit_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)

    folder = tmp_path / "runs" / "proposals-1" / "submitit"
    pickled = {path.name: path.read_bytes() for path in folder.glob("*_submitted.pkl")}
    assert sorted(pickled) == [
        "100_submitted.pkl",
        "101_0_submitted.pkl",
        "101_1_submitted.pkl",
        "101_2_submitted.pkl",
        "102_submitted.pkl",
    ]
    submission = pickle.loads(pickled["101_2_submitted.pkl"])
    assert (submission.function.__module__, submission.function.__name__) == ("jobs.base", "run_slurm_job")
    assert submission.args == ("shard:2", str(tmp_path / "runs" / "proposals-1"))
    assert b"run_slurm_job" in pickled["100_submitted.pkl"]  # by name: edited code is the code that runs
    assert len(pickled["100_submitted.pkl"]) < 1000


def test_a_refusal_of_one_job_withdraws_the_others(tmp_path: Path, slurm: Path) -> None:
    (slurm / "refuse-2").touch()

    with pytest.raises(SlurmUnavailableError, match="no such partition"):
        submit_slurm(slurm_jobs(make_plan(tmp_path / "runs")), CODE)

    assert (slurm / "cancelled").read_text().splitlines() == ["--quiet 100 101"]


def test_one_shard_needs_no_array(tmp_path: Path, slurm: Path) -> None:
    submit_slurm(slurm_jobs(make_plan(tmp_path / "runs", num_shards=1)), CODE)

    assert "--array" not in flags((slurm / "job-1").read_text())
