"""Grafana's dashboards, as tables of panels; `monitoring/board_json.py` makes of each what Grafana reads.

Every panel says how to read it. Loss is drawn by step too: after a rollback the line goes back and on again,
which a time axis hides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from monitoring.kinds import BAD_XIDS

WIDTH = 24  # of a board, in Grafana's units
_RED_ABOVE_0 = ((None, "green"), (1, "red"))

Kind = Literal["stat", "timeseries", "table", "bargauge", "state-timeline", "xychart"]


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        queries: Expression and legend of each. Of a table, each becomes a column of that name; of an
            xychart, the first is x.
        help: How to read it.
        width: A board is 24 wide.
        limits: From which value on which colour.
        log: Whether the axis is logarithmic.
        stack: Whether the areas add up.
        units: Of single columns of a table, by name.
    """

    title: str
    kind: Kind
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str
    width: int = 8
    height: int = 8
    limits: tuple[tuple[float | None, str], ...] = ()
    log: bool = False
    stack: bool = False
    units: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Board:
    """One dashboard; `of_run` is how its variable picks runs."""

    uid: str
    title: str
    of_run: Literal["none", "one", "many"]
    panels: tuple[Panel, ...]


RUN, RUNS = '{run="$run"}', '{run=~"$run"}'
_STATE_HELP = "A run that is training here and whose loss stands still is stalled: see `univip status`."

# A table: one panel a row, two or three lines.
# fmt: off
BOARDS = (
    Board("univip-runs", "UniVIP / Runs", "none", (
        Panel("Training", "stat", "short", (('sum(univip_run_state{state="training"})', ""),),
              "Runs that train now.", 4, 4),
        Panel("Failed", "stat", "short", (('sum(univip_run_state{state="failed"})', ""),),
              "Runs that ended and do not go on by themselves. If this is red, `univip status` names them.",
              4, 4, _RED_ABOVE_0),
        Panel("Goodput, training runs", "stat", "percentunit", ((
            'avg(run:univip_train_goodput:ratio1h and on (run) (univip_run_state{state="training"} == 1))',
            ""),),
              "Share of the last hour that went into steps of the present state. If this is red, see the "
              "board of faults.", 4, 4, ((None, "red"), (0.7, "orange"), (0.9, "green"))),
        Panel("Images per second, all runs", "stat", "short", (("sum(run:univip_train_images:rate5m)", ""),),
              "Of all ranks of all runs.", 4, 4),
        Panel("Faults survived today", "stat", "short", ((
            "sum(run:univip_fault_restarts:increase1d) + sum(run:univip_fault_rollbacks:increase1d)", ""),),
              "New rounds and rollbacks of the last day.", 4, 4),
        Panel("Runs that cannot be read", "stat", "short", (("sum(1 - univip_monitoring_run_readable)", ""),),
              "If this is red, what is shown of them is old: their folder is gone or somebody else's.",
              4, 4, _RED_ABOVE_0),
        Panel("Runs", "table", "short", (
            ("univip_train_data_step / univip_train_target_steps", "progress"),
            ("univip_train_loss", "loss"),
            ("run:univip_train_images:rate5m", "images/s"),
            ("run:univip_train_eta:seconds", "time left"),
            ("run:univip_train_steps:kept_ratio", "steps kept"),
            ("run:univip_fault_restarts:increase1d", "restarts, 1 d"),
            ("run:univip_fault_rollbacks:increase1d", "rollbacks, 1 d"),
            ("time() - univip_train_last_step_timestamp_seconds", "last step ago")),
              "One row a run. " + _STATE_HELP, WIDTH, 10,
              units=(("progress", "percentunit"), ("time left", "s"), ("steps kept", "percentunit"),
                     ("last step ago", "s"))),
        Panel("Jobs of SLURM", "timeseries", "short", (
            ("sum by (run, state, reason) (univip_slurm_jobs)", "{{run}}: {{state}}, {{reason}}"),),
              "What waits, why, and what runs. Empty without SLURM.", WIDTH, 6),
        Panel("State of every run", "state-timeline", "short", (
            ('max by (run) (univip_run_state{state="training"} * 1 '
             'or univip_run_state{state="proposals"} * 2 or univip_run_state{state="evaluating"} * 3 '
             'or univip_run_state{state="stopped"} * 4 or univip_run_state{state="failed"} * 5 '
             'or univip_run_state{state="done"} * 6)', "{{run}}"),),
              _STATE_HELP, WIDTH, 8),
        Panel("Loss of every run", "timeseries", "short", (("univip_train_loss", "{{run}}"),),
              "Runs of one method side by side.", 12),
        Panel("Goodput of every run", "timeseries", "percentunit",
              (("run:univip_train_goodput:ratio1h", "{{run}}"),),
              "Share of the last hour that went into steps of the present state.", 12),
    )),
    Board("univip-run", "UniVIP / Run", "one", (
        Panel("Progress", "stat", "percentunit", (
            (f"univip_train_data_step{RUN} / univip_train_target_steps{RUN}", ""),),
              "Data steps done.", 4, 4),
        Panel("Time left", "stat", "s", ((f"run:univip_train_eta:seconds{RUN}", ""),),
              "At the pace of the last half hour.", 4, 4),
        Panel("Epoch", "stat", "none", ((f"univip_train_epoch{RUN}", ""),),
              "Passes over the data set.", 4, 4),
        Panel("Attempt", "stat", "none", ((f"univip_run_attempt{RUN}", ""),),
              "Executions of the run so far; a requeue is a new one.", 4, 4),
        Panel("Goodput", "stat", "percentunit", ((f"run:univip_train_goodput:ratio1h{RUN}", ""),),
              "Share of the last hour that went into steps of the present state. If this is red, see the "
              "board of faults.", 4, 4, ((None, "red"), (0.7, "orange"), (0.9, "green"))),
        Panel("Last step", "stat", "s", ((f"time() - univip_train_last_step_timestamp_seconds{RUN}", ""),),
              "Time since the newest record of a step. If this is red while it trains, it hangs or is gone.",
              4, 4, ((None, "green"), (300, "orange"), (600, "red"))),
        Panel("Loss by step", "xychart", "short", (
            (f"univip_train_data_step{RUN}", "data step"), (f"univip_train_loss{RUN}", "loss")),
              "A rollback draws the line back to where it went on from.", 12, 9),
        Panel("Loss", "timeseries", "short", (
            (f"univip_train_loss{RUN}", "loss"), (f"run:univip_train_loss:median6h{RUN}", "median of 6 h")),
              "Far above its median, it diverges.", 12, 9),
        Panel("Loss terms", "timeseries", "short", ((f"univip_train_loss_term{RUN}", "{{term}}"),),
              "Unweighted; one that stands still contributes nothing."),
        Panel("Gradient norm", "timeseries", "short", ((f"univip_train_gradient_norm{RUN}", "norm"),),
              "Jumps by powers of ten come before a NaN.", log=True),
        Panel("Learning rate and momentum", "timeseries", "short", (
            (f"univip_train_learning_rate{RUN}", "learning rate"),
            (f"univip_train_ema_momentum{RUN}", "momentum of the target")),
              "Functions of the data step: a rollback repeats a piece of them."),
        Panel("Spread of the embeddings", "timeseries", "percentunit", (
            (f"univip_train_embedding_std_ratio{RUN}", "{{branch}}"),),
              "About 1 is healthy. If this is red, near 0, all photographs are mapped to one point.",
              limits=((None, "red"), (0.1, "orange"), (0.3, "green"))),
        Panel("Sinkhorn residual", "timeseries", "short", (
            (f"univip_train_sinkhorn_residual{RUN}", "residual"),),
              "Above 0.05 the transport plan is far from its marginals.", log=True),
        Panel("Worth of the features", "timeseries", "percentunit", (
            (f"univip_eval_top1_accuracy_ratio{RUN}", "top-1, {{protocol}}, {{network}}"),
            (f"univip_eval_mean_average_precision_ratio{RUN}", "mAP, {{protocol}}, {{network}}")),
              "Of the last evaluation, beside those of an untrained network."),
        Panel("Images per second", "timeseries", "short", ((f"run:univip_train_images:rate5m{RUN}", "now"),
            (f"run:univip_train_images:median_rate1d{RUN}", "median of a day")), "Of all ranks together."),
        Panel("Where the step goes", "timeseries", "percentunit", (
            (f"run:univip_train_phase_seconds:share_rate5m{RUN}", "{{phase}}"),),
              "More than 0.3 in `data`: photographs are not read fast enough.", stack=True),
        Panel("Norm of the state", "timeseries", "short", (
            (f"univip_train_state_norm{RUN}", "{{part}}"),),
              "Of parameters and buffers; steady growth without end comes before a divergence.", log=True),
        Panel("Effective rank", "timeseries", "short", ((f"univip_eval_effective_rank{RUN}", "{{network}}"),),
              "Dimensions that the features use, of the last evaluation."),
        Panel("Slowest rank", "timeseries", "short", (
            (f"univip_train_straggler_ratio{RUN}", "times as long as the others"),
            (f"univip_train_slowest_rank{RUN}", "its number")),
              "About 1 is healthy. If one stays above 1.4, all wait for it: its disk or its GPU is slow."),
    )),
    Board("univip-faults", "UniVIP / Faults and goodput", "many", (
        Panel("Goodput", "timeseries", "percentunit", (
            (f"run:univip_train_goodput:ratio1h{RUNS}", "{{run}}"),),
              "Share of the last hour that went into steps of the present state.", 12),
        Panel("What is missing from it", "timeseries", "percentunit", (
            (f"1 - run:univip_train_seconds:busy_rate1h{RUNS}", "{{run}}: starts, restores, waiting"),
            (f"1 - run:univip_train_steps:kept_ratio{RUNS}", "{{run}}: steps done again")),
              "Time outside the step loop in the last hour; share of steps that were lost, since the start.",
              12),
        Panel("Restarts by cause", "bargauge", "short", (
            (f"sum by (cause) (increase(univip_fault_restarts_total{RUNS}[$__range]))", "{{cause}}"),),
              "New rounds of workers in the time shown."),
        Panel("Non-finite steps by place", "timeseries", "short", (
            (f"sum by (where) (increase(univip_fault_nonfinite_total{RUNS}[$__rate_interval]))",
             "{{where}}"),),
              "In the loss or gradient, a batch is skipped; in the state, the run goes back."),
        Panel("Skipped steps", "timeseries", "short", (
            (f"sum by (run) (increase(univip_fault_skipped_steps_total{RUNS}[$__rate_interval]))",
             "{{run}}"),),
              "Batches that changed nothing."),
        Panel("Spikes and stalls", "timeseries", "short", (
            (f"sum by (run) (increase(univip_fault_spikes_total{RUNS}[$__rate_interval]))",
             "{{run}}: values far above the usual"),
            (f"sum by (run) (increase(univip_fault_stalls_total{RUNS}[$__rate_interval]))",
             "{{run}}: ranks that hold the others up")),
              "Neither changed anything; many of them come before worse."),
        Panel("Rollbacks", "timeseries", "short", (
            (f"sum by (run, reason) (univip_fault_rollbacks_total{RUNS})", "{{run}}: {{reason}}"),),
              "Over the run. The budget is `resilience.max_rollbacks`."),
        Panel("Steps lost", "timeseries", "short", (
            (f"univip_fault_rolled_back_steps_total{RUNS}", "{{run}}: by rollbacks"),
            (f"univip_train_steps_total{RUNS} - univip_train_step{RUNS}", "{{run}}: in all")),
              "Over the run; what restarts cost is the difference."),
        Panel("Steps since the last durable checkpoint", "timeseries", "short", (
            (f"univip_train_data_step{RUNS} - univip_checkpoint_last_success_data_step{RUNS}", "{{run}}"),),
              "What a kill would cost now: a saw tooth. If this only grows, no checkpoint can be written."),
        Panel("Checkpoints: time", "timeseries", "s", (
            (f"univip_checkpoint_last_blocked_seconds{RUNS}", "{{run}}: training waited"),
            (f"univip_checkpoint_last_background_seconds{RUNS}", "{{run}}: until it was durable")),
              "Of the last save."),
        Panel("Checkpoints: saves that failed", "timeseries", "short", (
            ('increase(univip_checkpoint_saves_total{run=~"$run", outcome="failure"}[$__rate_interval])',
             "{{run}}"),), "If there are any, the disk is full most often."),
        Panel("Checkpoints: restores and damage", "timeseries", "short", (
            (f"univip_checkpoint_restores_total{RUNS}", "{{run}}: loaded"),
            (f"univip_checkpoint_corruptions_total{RUNS}", "{{run}}: refused as damaged")),
              "Over the run. Damage means that the storage changed bytes."),
        Panel("Time of the last restore", "timeseries", "s", (
            (f"univip_checkpoint_restore_duration_seconds{RUNS}", "{{run}}"),),
              "To find, verify and load it."),
        Panel("Nodes that failed their pre-flight", "timeseries", "short", (
            (f"univip_fault_failed_preflights_total{RUNS}", "{{run}}"),),
              "Over the run. `univip show RUN` names them and says what was wrong."),
    )),
    Board("univip-data", "UniVIP / Data, boxes and monitoring", "many", (
        Panel("Share of the step waiting for data", "timeseries", "percentunit", (
            ('run:univip_train_phase_seconds:share_rate5m{run=~"$run", phase="data"}', "{{run}}"),),
              "If this is red, raise data.workers, or move the photographs to a faster disk.",
              limits=((None, "green"), (0.3, "red"))),
        Panel("Photographs that could not be used", "timeseries", "short", (
            (f"sum by (reason) (univip_data_decode_errors_total{RUNS})", "{{reason}}"),),
              "Times a photograph could not be used, over the run. `univip show RUN journal` names them."),
        Panel("Samples replaced", "timeseries", "percentunit", (
            (f"sum without (reason) (univip_data_substituted_samples_total{RUNS}) "
             f"/ univip_train_images_total{RUNS}", "{{run}}: by another photograph"),
            (f"univip_data_fallback_samples_total{RUNS} / univip_train_images_total{RUNS}",
             "{{run}}: random boxes"),
            (f"univip_data_too_small_samples_total{RUNS} / univip_train_images_total{RUNS}",
             "{{run}}: no instances")), "Share of all samples of the run."),
        Panel("Boxes: progress", "bargauge", "percentunit", (
            (f"univip_proposals_images_total{RUNS} / univip_proposals_target_images{RUNS}", "{{run}}"),),
              "Images searched, of the shards begun so far."),
        Panel("Boxes: images per second", "timeseries", "short", (
            (f"rate(univip_proposals_images_total{RUNS}[5m])", "{{run}}"),), "Of all shards."),
        Panel("Boxes: shards", "timeseries", "short", (
            (f"univip_proposals_shards{RUNS}", "{{run}}: {{state}}"),), "By state."),
        Panel("Boxes per image", "stat", "short", (
            (f"univip_proposals_boxes_total{RUNS} / univip_proposals_images_total{RUNS}", "{{run}}"),),
              "Raw boxes, before any filter."),
        Panel("GPUs: busy", "timeseries", "percentunit", (
            (f"avg by (run, node) (univip_gpu_busy_ratio{RUNS})", "{{run}}: node {{node}}"),),
              "Mean over the GPUs of a node. Where it is low, see the share of the step waiting for data."),
        Panel("GPUs: memory taken", "timeseries", "percentunit", (
            (f"univip_gpu_memory_used_bytes{RUNS} / univip_gpu_memory_bytes{RUNS}",
             "{{run}}: node {{node}}, GPU {{gpu}}"),),
              "Where there is room, train.max_images_per_rank can grow."),
        Panel("GPUs: temperature", "timeseries", "celsius", (
            (f"univip_gpu_temperature_celsius{RUNS}", "{{run}}: node {{node}}, GPU {{gpu}}"),),
              "One far above the others has a fan or a slot to look at."),
        Panel("GPUs: power", "timeseries", "watt", (
            (f"sum by (run, node) (univip_gpu_power_watts{RUNS})", "{{run}}: node {{node}}"),),
              "Of all GPUs of a node."),
        Panel("GPUs: held back, memory errors", "timeseries", "short", (
            (f"sum by (run, node) (univip_gpu_slowed{RUNS})", "{{run}}: node {{node}}, held back"),
            (f"sum by (run, node) (univip_gpu_memory_errors{RUNS})", "{{run}}: node {{node}}, errors")),
              "GPUs whose clock is held back by heat or want of power; uncorrected memory errors."),
        Panel("GPUs: errors that the driver reported", "timeseries", "short", (
            (f"sum by (run, node, gpu, xid) (univip_gpu_xid_errors_total{RUNS})",
             "{{run}}: node {{node}}, GPU {{gpu}}, Xid {{xid}}"),),
              f"Over the run, by NVIDIA's number (Xid). With {', '.join(map(str, BAD_XIDS))} the GPU itself "
              "is at fault: drain its node. `univip show RUN journal` names the host."),
        Panel("Journal: records lost, lines damaged", "timeseries", "short", (
            (f"univip_monitoring_dropped_records_total{RUNS}", "{{run}}: lost"),
            (f"univip_monitoring_damaged_lines_total{RUNS}", "{{run}}: damaged")),
              "If there are any, the disk is full, too slow, or changes bytes."),
        Panel("Exporter", "timeseries", "s", (('scrape_duration_seconds{job="univip"}', "{{instance}}"),),
              "Time of one scrape."),
    )),
)

# Name, expression, colour, text of what is drawn as a vertical line.
ANNOTATIONS = (
    ("rollbacks", f"sum by (run, reason) (increase(univip_fault_rollbacks_total{RUNS}[1m])) > 0", "red",
     "{{run}} went back: {{reason}}"),
    ("restarts", f"sum by (run, cause) (increase(univip_fault_restarts_total{RUNS}[1m])) > 0", "orange",
     "{{run}} restarted: {{cause}}"),
    ("checkpoints", f"changes(univip_checkpoint_last_success_data_step{RUNS}[1m]) > 0", "blue",
     "{{run}}: checkpoint"),
)
# fmt: on
