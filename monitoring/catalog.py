"""Every metric, once: nothing else defines a name that others see.

A metric says where in the journal its value comes from, so hardly any has code of its own, and the table of
the README is made from this list. Conventions are Prometheus's: one-word prefix, base units as suffix,
`_total` on counters. Every series carries the label `run`, the name of the run directory; identifiers are
labels of `_info` metrics only, paths are labels of none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from monitoring.kinds import (
    FAULT_PLACES,
    IMAGE_REASONS,
    PHASES,
    RESTART_CAUSES,
    ROLLBACK_REASONS,
    RUN_STATES,
    SEARCH_REASONS,
    SHARD_STATES,
    SPIKE_PLACES,
    STAGES,
    TERMS,
    XIDS,
)

_GPU: dict[str, tuple[str, ...]] = {"node": (), "gpu": ()}  # numbers within the job and within the node
_XID = {**_GPU, "xid": tuple(map(str, XIDS))}


@dataclass(frozen=True)
class Metric:
    """One metric, and how the records of a run become its value.

    Attributes:
        unit: For people; the name carries the base unit.
        kinds: Journal kinds it is made from.
        take: What becomes of successive records.
            last: the newest value. time: Unix time of the newest record.
            largest: the largest value, of a field that counts by itself. sum: of values. count: of records.
            state: 1 for the newest value, 0 for the other known ones.
            epoch, exporter: computed by the exporter.
        path: Field of the record; a dot leads into an object; `*` stands for any key or rest of a key.
        labels: Names, with the values known beforehand, which a counter shows from its start. The last label
            is what `*` stands for or, of a state, the state; the others are fields.
        when: Field, and the values of which a record must have one to count.
        per: Field that tells sources apart; what each of them gives is added up.
        every_rank: Whether ranks other than 0 count; else their records are repetitions.
    """

    name: str
    unit: str
    kinds: tuple[str, ...]
    take: Literal["last", "time", "largest", "sum", "count", "state", "epoch", "exporter"]
    path: str
    help: str
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    when: tuple[str, ...] | None = None
    per: str = ""
    every_rank: bool = False

    @property
    def type(self) -> Literal["gauge", "counter", "info"]:
        """As the suffix of the name says."""
        if self.name.endswith("_total"):
            return "counter"
        return "info" if self.name.endswith("_info") else "gauge"


# A table: one row a metric.
# fmt: off
METRICS = (
    Metric("univip_run_info", "–", ("run",), "last", "", "Constant 1; what the run is.",
           {"experiment": (), "method": (), "config_hash": ()}),
    Metric("univip_attempt_info", "–", ("attempt",), "last", "", "Constant 1; the newest attempt.",
           {"stage": STAGES, "host": (), "slurm_job_id": ()}),
    Metric("univip_run_state", "bool", ("run",), "state", "state",
           "1 for the state the run is in, 0 for the others.", {"state": RUN_STATES}),
    Metric("univip_run_attempt", "ordinal", ("attempt",), "last", "attempt",
           "Number of the newest attempt, from 1."),
    Metric("univip_run_world_size", "ranks", ("round",), "last", "world_size", "Ranks of the newest round."),
    Metric("univip_train_step", "steps", ("step",), "last", "step",
           "Optimizer steps behind the current state; a rollback moves it back."),
    Metric("univip_train_data_step", "steps", ("step",), "last", "data_step",
           "Position in the sample plan; a rollback moves it back."),
    Metric("univip_train_target_steps", "steps", ("run",), "last", "target_steps",
           "Data steps of the whole run."),
    Metric("univip_train_steps_total", "steps", ("step",), "largest", "steps",
           "Optimizer steps applied, recomputed ones included."),
    Metric("univip_train_images_total", "images", ("step",), "largest", "images",
           "Images trained on by all ranks together."),
    Metric("univip_train_global_batch_images", "images", ("run",), "last", "global_batch",
           "Images of one data step."),
    Metric("univip_data_images", "images", ("run",), "last", "num_images", "Images of the data set."),
    Metric("univip_train_epoch", "epochs", ("step", "run"), "epoch", "",
           "Passes over the data set, fractional."),
    Metric("univip_train_last_step_timestamp_seconds", "seconds", ("step",), "time", "",
           "Unix time of the newest step record (heartbeat)."),
    Metric("univip_train_loss", "1", ("step",), "last", "loss",
           "Loss of the last data step, mean over the global batch."),
    Metric("univip_train_loss_term", "1", ("step",), "last", "terms.*", "Unweighted loss terms.",
           {"term": TERMS}),
    Metric("univip_train_gradient_norm", "1", ("step",), "last", "gradient_norm",
           "Global L2 norm of the gradients."),
    Metric("univip_train_state_norm", "1", ("step",), "last", "statistics.norm_*",
           "L2 norm of the online side's state.", {"part": ("parameters", "buffers")}),
    Metric("univip_train_learning_rate", "1", ("step",), "last", "lr", "Learning rate."),
    Metric("univip_train_ema_momentum", "1", ("step",), "last", "momentum",
           "Momentum of the target network."),
    Metric("univip_train_embedding_std_ratio", "ratio", ("step",), "last", "statistics.embedding_std_*",
           "Std of L2-normalised embeddings × sqrt(dim): about 1 is healthy, 0 is collapse.",
           {"branch": ("online", "target")}),
    Metric("univip_train_sinkhorn_residual", "1", ("step",), "last", "statistics.sinkhorn_residual",
           "Largest marginal violation after the last Sinkhorn iteration."),
    Metric("univip_train_seconds_total", "seconds", ("step",), "largest", "seconds",
           "Wall time in the step loop."),
    Metric("univip_train_phase_seconds_total", "seconds", ("step",), "largest", "phases.*",
           "Time of rank 0 in each phase of the step.", {"phase": PHASES}),
    Metric("univip_train_straggler_ratio", "ratio", ("step",), "last", "straggler_ratio",
           "Work of the slowest rank over that of the others, medians of 15 data steps; about 1 is healthy."),
    Metric("univip_train_slowest_rank", "rank", ("step",), "last", "slowest_rank",
           "Number of the slowest rank."),
    Metric("univip_data_decode_errors_total", "images", ("image_failed",), "count", "",
           "Times a photograph could not be used.", {"reason": SEARCH_REASONS}, every_rank=True),
    Metric("univip_data_substituted_samples_total", "images", ("step",), "largest", "counts.substituted_*",
           "Samples whose photograph could not be used and was replaced by another one.",
           {"reason": IMAGE_REASONS}),
    Metric("univip_data_too_small_samples_total", "images", ("step",), "largest", "counts.too_small",
           "Samples without instances, because the photograph is too small."),
    Metric("univip_data_fallback_samples_total", "images", ("step",), "largest", "counts.fallback",
           "Samples with random boxes, for want of proposals inside the overlap."),
    Metric("univip_checkpoint_saves_total", "saves", ("checkpoint",), "count", "", "Saves that ended.",
           {"outcome": ("success", "failure")}),
    Metric("univip_checkpoint_blocked_seconds_total", "seconds", ("checkpoint",), "sum", "blocked_s",
           "Time the step loop waited for saves."),
    Metric("univip_checkpoint_background_seconds_total", "seconds", ("checkpoint",), "sum", "background_s",
           "Time saves took beside the step loop."),
    Metric("univip_checkpoint_last_blocked_seconds", "seconds", ("checkpoint",), "last", "blocked_s",
           "Of the last save."),
    Metric("univip_checkpoint_last_background_seconds", "seconds", ("checkpoint",), "last", "background_s",
           "Of the last save."),
    Metric("univip_checkpoint_size_bytes", "bytes", ("checkpoint",), "last", "bytes",
           "Size of the last durable checkpoint."),
    Metric("univip_checkpoint_last_success_timestamp_seconds", "seconds", ("checkpoint",), "time", "",
           "Unix time of the last durable checkpoint.", when=("outcome", "success")),
    Metric("univip_checkpoint_last_success_data_step", "steps", ("checkpoint",), "last", "data_step",
           "Data step of the last durable checkpoint.", when=("outcome", "success")),
    Metric("univip_checkpoint_restores_total", "restores", ("restore",), "count", "",
           "Times training state was loaded."),
    Metric("univip_checkpoint_restore_duration_seconds", "seconds", ("restore",), "last", "seconds",
           "Duration of the last restore."),
    Metric("univip_checkpoint_corruptions_total", "checkpoints", ("corruption",), "count", "",
           "Checkpoints refused as damaged."),
    Metric("univip_fault_nonfinite_total", "steps", ("skip", "rollback"), "count", "",
           "Data steps in which a value was not finite on any rank.", {"where": FAULT_PLACES},
           when=("reason", "nonfinite", "repeated_skips")),
    Metric("univip_fault_spikes_total", "steps", ("spike",), "count", "",
           "Steps applied although a value was far above the usual.", {"where": SPIKE_PLACES}),
    Metric("univip_fault_collapses_total", "stretches", ("collapse",), "count", "",
           "Stretches of steps with all embeddings near one point."),
    Metric("univip_fault_capsules_total", "capsules", ("capsule",), "count", "",
           "Bad steps kept for `univip replay`, or not.",
           {"outcome": ("success", "failure", "over_budget")}),
    Metric("univip_fault_skipped_steps_total", "steps", ("skip",), "count", "",
           "Data steps that changed nothing.", {"reason": ("nonfinite",)}),
    Metric("univip_fault_rollbacks_total", "rollbacks", ("rollback",), "count", "",
           "Rollbacks to a healthy checkpoint.", {"reason": ROLLBACK_REASONS}),
    Metric("univip_fault_rolled_back_steps_total", "steps", ("rollback",), "sum", "steps_discarded",
           "Data steps discarded by rollbacks."),
    Metric("univip_fault_stalls_total", "stalls", ("stall",), "count", "",
           "Times a rank held the others up for far longer than usual.", {"phase": PHASES}, every_rank=True),
    Metric("univip_fault_restarts_total", "restarts", ("restart",), "count", "",
           "New rounds and attempts after one that ended too early.", {"cause": RESTART_CAUSES}),
    Metric("univip_fault_failed_preflights_total", "nodes", ("preflight",), "count", "",
           "Times a node was left out of an attempt because it failed its pre-flight."),
    Metric("univip_proposals_images_total", "images", ("proposals",), "largest", "images_done",
           "Images searched, failed ones included.", per="shard"),
    Metric("univip_proposals_failed_images_total", "images", ("proposals",), "largest", "failed.*",
           "Images without proposals, because they could not be used.", {"reason": SEARCH_REASONS},
           per="shard"),
    Metric("univip_proposals_boxes_total", "boxes", ("proposals",), "largest", "boxes", "Raw boxes found.",
           per="shard"),
    Metric("univip_proposals_target_images", "images", ("proposals",), "last", "images",
           "Images of the shards begun so far.", per="shard"),
    Metric("univip_proposals_shards", "shards", ("shard",), "state", "state", "Shards by state.",
           {"state": SHARD_STATES}, per="shard"),
    Metric("univip_eval_top1_accuracy_ratio", "ratio", ("evaluate",), "last", "*.top1",
           "Top-1 accuracy of the last evaluation.",
           {"protocol": ("knn",), "network": ("trained", "untrained")}),
    Metric("univip_eval_mean_average_precision_ratio", "ratio", ("evaluate",), "last",
           "*.mean_average_precision", "Mean over classes of the average precision of the last evaluation.",
           {"protocol": ("knn",), "network": ("trained", "untrained")}),
    Metric("univip_eval_feature_std_ratio", "ratio", ("evaluate",), "last", "*.feature_std",
           "Std of L2-normalised features × sqrt(dim): about 1 is healthy, 0 is collapse.",
           {"network": ("trained", "untrained")}),
    Metric("univip_eval_effective_rank", "1", ("evaluate",), "last", "*.effective_rank",
           "Effective rank of the feature matrix (RankMe).", {"network": ("trained", "untrained")}),
    Metric("univip_eval_data_step", "steps", ("evaluate",), "last", "checkpoint_data_step",
           "Data step of the evaluated checkpoint.", {"protocol": ("knn",)}),
    Metric("univip_eval_last_success_timestamp_seconds", "seconds", ("evaluate",), "time", "",
           "Unix time of the last evaluation.", {"protocol": ("knn",)}),
    Metric("univip_gpu_busy_ratio", "ratio", ("gpu",), "last", "busy_ratio.*",
           "Share of the last moments in which the GPU computed.", _GPU),
    Metric("univip_gpu_memory_used_bytes", "bytes", ("gpu",), "last", "memory_used_bytes.*",
           "Memory of the GPU that is taken.", _GPU),
    Metric("univip_gpu_memory_bytes", "bytes", ("gpu",), "last", "memory_bytes.*",
           "Memory of the GPU.", _GPU),
    Metric("univip_gpu_temperature_celsius", "celsius", ("gpu",), "last", "temperature_celsius.*",
           "Temperature of the GPU.", _GPU),
    Metric("univip_gpu_power_watts", "watts", ("gpu",), "last", "power_watts.*",
           "Power the GPU draws.", _GPU),
    Metric("univip_gpu_slowed", "bool", ("gpu",), "last", "slowed.*",
           "1 if the clock of the GPU is held back by heat or want of power.", _GPU),
    Metric("univip_gpu_memory_errors", "errors", ("gpu",), "last", "memory_errors.*",
           "Uncorrected memory errors of the GPU since its driver was loaded.", _GPU),
    Metric("univip_gpu_xid_errors_total", "errors", ("gpu_error",), "count", "",
           "Errors of the GPU that the driver reported, by NVIDIA's number; others than these too.", _XID),
    Metric("univip_gpu_last_xid_timestamp_seconds", "seconds", ("gpu_error",), "time", "",
           "Unix time of the last of them.", _XID),
    Metric("univip_gpu_last_reading_timestamp_seconds", "seconds", ("gpu",), "time", "",
           "Unix time of the newest reading of the GPUs of a node.", {"node": ()}),
    Metric("univip_slurm_jobs", "jobs", (), "exporter", "",
           "Jobs of SLURM for the run that wait or run, in SLURM's own words; an array is one job.",
           {"state": (), "reason": ()}),
    Metric("univip_monitoring_dropped_records_total", "records", ("dropped",), "sum", "records",
           "Journal records that could not be kept; training never waits for its journal.", every_rank=True),
    Metric("univip_monitoring_damaged_lines_total", "lines", (), "exporter", "",
           "Journal lines that are no records, met since the exporter started."),
    Metric("univip_monitoring_run_readable", "bool", (), "exporter", "",
           "0 if part of the run's journal could not be read at this scrape."),
)
# fmt: on


def markdown_table() -> str:
    """The metrics as a Markdown table, for the README."""
    rows = ["| metric | type | labels | unit | help |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = "; ".join(
            f"{name}: {', '.join(known)}" if known else name for name, known in metric.labels.items()
        )
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.unit} | {metric.help} |")
    return "\n".join(rows) + "\n"
