"""Every kind of journal record, and the words that their fields may hold, each once.

What others see of them as metrics is in `monitoring/catalog.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

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
