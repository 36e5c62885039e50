"""One rank of the training job, put together: data, method, optimizer, checkpoints, and their trainer."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path

import torch

from jobs.config import Config, load_header, num_images
from jobs.identity import config_hash, run_facts
from jobs.reader import make_reader
from monitoring import journal
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.data.batch import make_views
from univip.data.loader import BatchSource, open_batches
from univip.data.marks import add_marks
from univip.data.plan import micro_batches
from univip.engine.distributed import Group
from univip.engine.reporting import Plan, Totals
from univip.engine.sample_log import FILE_NAME as SAMPLES_NAME
from univip.engine.sample_log import Marks, SampleLog
from univip.engine.state import TrainState
from univip.engine.step import StepSettings
from univip.engine.trainer import Ending, Loaded, Trainer
from univip.methods.build import make_method
from univip.models.momentum import target_momentum
from univip.observe import Observer
from univip.optim.groups import check_groups, make_optimizer
from univip.optim.schedules import learning_rate, peak_learning_rate, total_data_steps
from univip.resilience.anomaly import FOLDER, Capsules
from univip.resilience.faults import VARIABLE, PlantedFaults
from univip.resilience.guard import Guard
from univip.resilience.ledger import Ledger
from univip.resilience.watchdog import Watchdog
from univip.types import Method


def train_rank(
    config: Config,
    run_dir: Path,
    *,
    group: Group,
    observer: Observer,
    stop_requested: Callable[[], bool],
    still_owner: Callable[[], bool],
    totals: Totals,
    on_hang: Callable[[str], None],
    place: dict[str, int],
) -> Ending:
    """Train to the target, or to a request to stop.

    Args:
        config: Of the run.
        run_dir: The run directory.
        group: The ranks.
        observer: The journal of this rank.
        stop_requested: Whether to stop at the next step.
        still_owner: False once a newer attempt or round owns the run.
        totals: Counters as earlier rounds left them.
        on_hang: Takes the reason, and ends this process.
        place: Attempt and round, for capsules.

    Raises:
        ConfigError: If this world cannot hold the batch.
        RollbackExhaustedError: If the rollback budget is spent.
    """
    header = load_header(run_dir)
    # Before anything is loaded: a world that does not fit is refused at once.
    shares = micro_batches(config.train.global_batch, group.size, config.train.max_images_per_rank)
    images = num_images(run_dir, header)
    plan = make_plan(config, images, len(shares[0]))
    method = fresh_method(config, group.device)
    optimizer = make_optimizer(config.optim, method.online)
    check_groups(optimizer, method)
    if group.is_main:
        observer.record(
            "run",
            state="training",
            target_steps=plan.target,
            global_batch=config.train.global_batch,
            **run_facts(run_dir),
        )
    hash_ = config_hash(config, header.fingerprint, header.kind)
    manager = CheckpointManager(
        run_dir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        still_owner=still_owner,
        observer=observer,
    )
    trainer = Trainer(
        TrainState(method, optimizer, Guard(config.resilience)),
        plan,
        partial(load_batches, make_source(config, run_dir, group), config, group.device),
        StepSettings(
            global_batch=config.train.global_batch,
            precision=config.train.precision,
            faults=PlantedFaults(os.environ.get(VARIABLE, ""), markers=run_dir / "planted", rank=group.rank),
        ),
        group=group,
        manager=manager,
        ledger=Ledger(run_dir / "ledger.jsonl"),
        samples=SampleLog(run_dir / SAMPLES_NAME),
        checkpoint=config.checkpoint,
        resilience=config.resilience,
        observer=observer,
        stop_requested=stop_requested,
        origin=Origin(
            world_size=group.size,
            config_hash=hash_,
            line=Ledger(run_dir / "ledger.jsonl").decisions().line,
            versions=(("torch", torch.__version__), ("univip", importlib.metadata.version("univip"))),
        ),
        totals=totals,
        capsules=Capsules(
            run_dir / FOLDER,
            manager,
            observer,
            limit=config.resilience.max_capsules,
            place={**place, "config_hash": hash_, "torch": torch.__version__},
        ),
    )
    with Watchdog(
        trainer.clock,
        position=lambda: trainer.state.data_step,
        observer=observer,
        give_up_s=config.resilience.hang_timeout_s,
        on_hang=on_hang,
    ):
        return trainer.run()


def fresh_method(config: Config, device: torch.device) -> Method:
    """The method as it is before the first step: a function of the seed."""
    torch.manual_seed(config.train.seed)
    method = make_method(config.method, config.model, config.views)
    method.online.to(device)
    method.target.to(device)
    return method


def make_plan(config: Config, num_images: int, num_micro_batches: int) -> Plan:
    """Length and schedules of the run, in data steps."""
    batch = config.train.global_batch
    target = config.train.max_steps or total_data_steps(config.train.epochs, num_images, batch)
    return Plan(
        target=target,
        learning_rate=partial(
            learning_rate,
            peak=peak_learning_rate(config.optim.base_lr, batch),
            warmup_data_steps=total_data_steps(config.optim.warmup_epochs, num_images, batch),
            total_data_steps=target,
        ),
        momentum=partial(target_momentum, base=config.method.momentum, total_data_steps=target),
        global_batch=batch,
        micro_batches=num_micro_batches,
        every_steps=config.monitoring.every_steps,
    )


def make_source(config: Config, run_dir: Path, group: Group) -> BatchSource:
    """What this rank reads."""
    return BatchSource(
        make_reader(config, run_dir),
        global_batch=config.train.global_batch,
        rank=group.rank,
        world_size=group.size,
        max_images_per_rank=config.train.max_images_per_rank,
    )


def load_batches(
    source: BatchSource, config: Config, device: torch.device, data_steps: Iterable[int]
) -> Generator[Loaded, None, None]:
    """This rank's share of each data step, as the trainer takes it."""
    stream = open_batches(source, data_steps, workers=config.data.workers)
    try:
        for data_step, batches in stream:
            counts: dict[str, int] = {}
            for batch in batches:
                for name, count in batch.counts.items():
                    counts[name] = counts.get(name, 0) + count
            yield Loaded(
                data_step,
                [partial(make_views, batch, config.views.instance_views, device) for batch in batches],
                counts,
                Marks(*(add_marks(marks) for marks in zip(*(batch.marks for batch in batches), strict=True))),
                [int(image_id) for batch in batches for image_id in batch.ids],
                [int(epoch) for batch in batches for epoch in batch.epochs],
                [failure._asdict() for batch in batches for failure in batch.failures],
            )
    finally:
        stream.close()


def totals_so_far(run_dir: Path) -> Totals:
    """Counters as the run's earlier rounds left them, so that they go on instead of starting again.

    Each round begins with those of the one before it, so the last step of all tells them.
    """
    record = journal.newest_record(run_dir, "rank0000", "step")
    if record is None:
        return Totals()
    return Totals(*(record[field.name] for field in dataclasses.fields(Totals)))
