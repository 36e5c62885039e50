"""Every kind of journal record and every metric, each once: nothing else defines a name that others see.

A metric says where in the journal its value comes from, so hardly any has code of its own, and the table of
the README is made from this list. Conventions are Prometheus's: one-word prefix, base units as suffix,
`_total` on counters. Every series carries the label `run`, the name of the run directory; identifiers are
labels of `_info` metrics only, paths are labels of none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RUN_STATES = ("proposals", "training", "evaluating", "stopped", "failed", "done")
SHARD_STATES = ("running", "done", "failed")
STAGES = ("proposals", "train", "evaluate")
TERMS = ("scene", "scene_instance", "instance")
PHASES = ("data", "augment", "forward", "backward", "reduce", "optimizer", "checkpoint", "observe")
IMAGE_REASONS = ("missing", "unreadable", "corrupt", "too_large", "unsupported", "size_mismatch")
SEARCH_REASONS = (*IMAGE_REASONS, "crashed", "timed_out")
FAULT_PLACES = ("state", "loss", "gradient")
SPIKE_PLACES = ("loss", "gradient")
ROLLBACK_REASONS = ("nonfinite", "repeated_skips", "spike", "replicas_differ")
_GPU: dict[str, tuple[str, ...]] = {"node": (), "gpu": ()}  # numbers within the job and within the node
# What NVIDIA's numbers mean, of those that are met most; in BAD_XIDS the GPU itself is at fault.
XIDS = {
    13: "the program computed something illegal",
    31: "the program used memory that is not its own",
    43: "the program was ended after an error",
    45: "work was cleared away after another error",
    48: "memory error that could not be corrected",
    63: "damaged memory was put aside; the GPU needs a reset",
    64: "damaged memory could not be put aside",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "memory error that could not be corrected, in this program only",
    95: "memory error that could not be corrected, in any program",
    119: "the GPU's own processor (GSP) does not answer",
    120: "the GPU's own processor (GSP) failed",
}
BAD_XIDS = (48, 63, 64, 74, 79, 94, 95, 119, 120)
_XID = {**_GPU, "xid": tuple(map(str, XIDS))}
TOTALS = "totals"  # the kind that readers of records never see: it repeats what others said
# fmt: off
RESTART_CAUSES = (
    "preemption", "time_limit", "node_failure", "out_of_memory", "full_disk", "killed", "hang", "crash",
    "unknown",
)
# fmt: on


@dataclass(frozen=True)
class Kind:
    """One kind of journal record.

    Attributes:
        fields: Meaning of each field beside the envelope (`monitoring/journal.py`); `name{}` is an object.
    """

    name: str
    help: str
    fields: dict[str, str]


# A table: one row a field.
# fmt: off
KINDS = (
    Kind("run", "What the run is and does; written at the start and when the state changes.", {
        "state": "One of RUN_STATES.",
        "experiment": "Name of the experiment.",
        "method": "Name of the method.",
        "config_hash": "The hash in the run's name.",
        "target_steps": "Data step at which the run ends.",
        "num_images": "Images of the data set.",
        "global_batch": "Images of one data step.",
    }),
    Kind("attempt", "An attempt began.", {
        "host": "Of the process that owns it.",
        "slurm_job_id": "Empty without SLURM.",
        "stage": "One of STAGES.",
    }),
    Kind("preflight", "A node failed its pre-flight and takes no part in the attempt.", {
        "host": "Its name.",
        "what": "In words: the device, and what is wrong with it.",
    }),
    Kind("round", "A round of workers began.", {
        "world_size": "Ranks.",
        "host": "Of this rank.",
        "restart_cause": "Why the round before ended; absent in the first.",
    }),
    Kind("step", "Where training stands; every `monitoring.every_steps` data steps.", {
        "loss": "Of the last data step, mean over the global batch.",
        "loss_min": "Least since the record before.",
        "loss_max": "Greatest since the record before.",
        "terms{}": "Unweighted loss terms; keys are TERMS.",
        "lr": "Learning rate.",
        "momentum": "Of the target network.",
        "gradient_norm": "Global L2 norm.",
        "gradient_norm_min": "Least since the record before.",
        "gradient_norm_max": "Greatest since the record before.",
        "calm": "Whether it was computed in fp32 with the gradient clipped, after a repeated rollback.",
        "images": "Trained on by all ranks, recomputed ones included; counts over the run.",
        "steps": "Optimizer steps applied, recomputed ones included; counts over the run.",
        "seconds": "Wall time in the step loop; counts over the run.",
        "phases{}": "Seconds of rank 0 by phase, counted over the run; keys are PHASES.",
        "statistics{}": "embedding_std_online, embedding_std_target, sinkhorn_residual, norm_parameters, "
                        "norm_buffers.",
        "counts{}": "Samples over the run: images, too_small, fallback, substituted_<reason>, and others.",
        "target": "Data step at which the run ends.",
        "micro_batches": "Micro-batches per rank and step.",
        "batch_norm_count": "Images behind each BatchNorm statistic.",
        "slowest_rank": "Of the last 15 data steps; null with one rank, and before them.",
        "straggler_ratio": "Its median time of own work over that of the others.",
        "checkpoint_step": "Data step of the last durable checkpoint.",
        "checkpoint_time": "Unix time at which it was durable, s.",
    }),
    Kind("skip", "A batch changed nothing, because a value was not finite.", {
        "where": "One of FAULT_PLACES.",
        "reason": "Why, in one word.",
        "what": "Why, in words.",
    }),
    Kind("rollback", "The run went back to a healthy checkpoint.", {
        "where": "One of FAULT_PLACES.",
        "reason": "Why, in one word.",
        "what": "Why, in words.",
        "target": "Data step of that checkpoint.",
        "window_start": "First data step that is jumped over from now on.",
        "window_stop": "First data step after that window.",
        "calm_steps": "Data steps after the target that are computed calmly; 0 for a first rollback.",
        "steps_discarded": "Data steps whose work is lost.",
        "abandoned": "Checkpoints put aside.",
    }),
    Kind("stall", "A rank takes far longer than usual, and the others wait for it.", {
        "phase": "One of PHASES.",
        "seconds": "In that phase so far.",
    }),
    Kind("straggler", "A rank is slower than the others step after step; once per stretch.", {
        "slowest": "The rank.",
        "ratio": "Its median time of own work over that of the others.",
    }),
    Kind("spike", "A loss or gradient norm was far above the usual; the step was applied.", {
        "where": "One of SPIKE_PLACES.",
        "what": "In words: the value, the usual one, the limit.",
    }),
    Kind("collapse", "The embeddings have been near one point for a stretch; once per stretch.", {
        "embedding_std": "Their spread now; 1 is healthy, 0 is collapse.",
    }),
    Kind("sample_log", "The sample log could not be written; its lines wait for the next checkpoint.", {
        "what": "The error.",
    }),
    Kind("capsule", "What is needed to compute a bad step again was to be kept.", {
        "capsule": "Its name, for `univip replay`.",
        "outcome": "success, failure or over_budget.",
        "what": "Why not, in words.",
    }),
    Kind("restart", "A new round or attempt follows one that ended too early.", {
        "cause": "One of RESTART_CAUSES.",
        "message": "In words.",
    }),
    Kind("checkpoint", "A save ended.", {
        "outcome": "success or failure.",
        "what": "The error, on failure.",
        "blocked_s": "Time the step loop waited.",
        "background_s": "Time from then until it was durable or failed.",
        "bytes": "Size, on success.",
    }),
    Kind("cadence", "How many data steps lie between two saves was chosen; once in the life of a run.", {
        "every_steps": "Data steps between two.",
        "blocked_s": "What a save takes of the step loop's time.",
        "background_s": "What its write takes beside the step loop.",
        "step_s": "What a data step takes.",
        "mtbf_h": "Mean time between failures, as configured, h.",
    }),
    Kind("healthy", "A checkpoint became a target of rollbacks.", {
        "checkpoint": "Its name.",
    }),
    Kind("restore", "Training state was loaded.", {
        "checkpoint": "Its name.",
        "source": "memory, where rank 0 still held it after writing it, or disk.",
        "seconds": "Time to find, verify and load it.",
        "passed_over{}": "Damaged newer checkpoints, with why.",
    }),
    Kind("corruption", "A checkpoint was refused.", {
        "checkpoint": "Its name.",
        "what": "What differs from its manifest.",
    }),
    Kind("image_failed", "A photograph could not be used; the run went on without it.", {
        "image_id": "Its id.",
        "path": "Relative to the data root.",
        "reason": "One of SEARCH_REASONS.",
    }),
    Kind("proposals", "Progress of one shard; every few seconds and at its end.", {
        "shard": "Number of the shard.",
        "images_done": "Images finished, failed ones included; counts over the shard.",
        "images": "Images of the shard.",
        "boxes": "Raw boxes found; counts over the shard.",
        "failed{}": "Failed images by reason, counted over the shard; keys are SEARCH_REASONS.",
    }),
    Kind("shard", "A shard changed its state.", {
        "shard": "Number of the shard.",
        "state": "One of SHARD_STATES.",
    }),
    Kind("gpu", "What the GPUs of a node did at this moment; every half minute, by the agent of the node.", {
        "node": "Number of the node in its job.",
        "host": "Its name.",
        "busy_ratio{}": "Share of the last moments in which it computed; keys, here and below, are numbers "
                        "of the GPUs that the job may use, from 0.",
        "memory_used_bytes{}": "Taken by all processes.",
        "memory_bytes{}": "Taken or free.",
        "temperature_celsius{}": "Of the chip.",
        "power_watts{}": "Drawn.",
        "slowed{}": "1 if its clock is held back by heat or want of power, else 0.",
        "memory_errors{}": "Uncorrected ones since the driver was loaded.",
    }),
    Kind("gpu_error", "The driver reported an error of a GPU; told by the agent of its node.", {
        "node": "Number of the node in its job.",
        "host": "Its name.",
        "gpu": "Number of the GPU among those that the job may use, from 0.",
        "xid": "NVIDIA's number of the error; 0 for what is no such number.",
        "what": "In words, of those in XIDS.",
    }),
    Kind("samples", "The picture of the last samples was to be drawn; once a minute at most.", {
        "outcome": "success or failure.",
        "what": "The error, on failure.",
        "image_ids": "Of the samples on it, substitutes included.",
        "epochs": "Of the samples on it.",
        "seconds": "Processor time it took.",
    }),
    Kind("evaluate", "An evaluation ended.", {
        "protocol": "Such as knn.",
        "trained{}": "top1, mean_average_precision, feature_std, effective_rank.",
        "untrained{}": "The same of the network before its first step.",
        "checkpoint_data_step": "Data step of the evaluated checkpoint.",
        "split": "Names of the splits.",
        "num_images": "Images evaluated.",
        "num_classes": "Classes of the labels.",
        "neighbours": "Of kNN.",
    }),
    Kind("stop", "A process ended in order.", {
        "outcome": "Name of its exit code.",
        "cause": "Why.",
    }),
    Kind("dropped", "Records of this file were lost.", {
        "records": "How many since the last such record.",
    }),
    Kind(TOTALS, "What this file and the earlier ones of its source amount to; written every 8 KiB.", {
        "newest{}": "By metric: labels, source, time and value of each cell.",
        "counts{}": "By metric: labels, source and count of each cell.",
    }),
)
# fmt: on
KIND = {kind.name: kind for kind in KINDS}


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
