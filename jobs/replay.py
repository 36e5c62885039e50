"""A bad step of a run computed again, under the microscope: `python -m jobs.replay RUN_DIR ANOMALY`.

The capsule names a checkpoint. From there the steps up to the bad one are trained again as the ledger ruled
them then, and the last two are traced: which operation is the first to put out a value that is not finite,
with which inputs. On the same kind of processor, with the same thread count and torch, the result has the
same bits as in the run, and it says so. A run of several ranks is replayed by as many processes on this
machine, because the order in which ranks add up their gradients is part of the bits.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from jobs.config import load, load_header
from jobs.outcomes import ExitCode
from jobs.replay_report import draw_images, lines
from jobs.train import fresh_method, load_batches, make_plan, make_source
from univip.checkpoint import layout
from univip.config import Precision
from univip.data.plan import micro_batches
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.recovery import Course
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepReport, StepSettings, train_step
from univip.errors import UnivipError
from univip.optim.groups import make_optimizer
from univip.resilience.anomaly import FOLDER, find_start, read_capsule
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Guard, Verdict
from univip.resilience.ledger import Ledger
from univip.resilience.tracer import Tracer, is_finite
from univip.types import LossTerms, Method, Views

_LARGEST_PIXEL = 100.0  # in units of the normalisation, where a photograph stays within about 3
TRACED = 2  # data steps: damage of the state arises in the one before it is seen
_COMPARED = ("loss", "gradient_norm")


class _Clock(PhaseClock):
    """Knows in which phase of the step the program is."""

    phase = ""

    def __call__(self, phase: str) -> Any:
        self.phase = phase
        return super().__call__(phase)


class _Watched:
    """A method that remembers what it was shown and what it lost, and takes the last step's loss apart."""

    def __init__(self, method: Method, clock: _Clock) -> None:
        self.method = method
        self.views: list[Views] = []
        self._clock = clock
        self._terms: list[dict[str, Tensor]] = []
        self._bad_gradients: set[str] = set()
        self._is_last = False

    @property
    def online(self) -> nn.Module:
        return self.method.online

    @property
    def target(self) -> nn.Module:
        return self.method.target

    def begin(self, *, is_last: bool) -> None:
        """The next step begins; what looks at the state before its first phase is not part of it."""
        self._clock.phase = ""
        self.views, self._terms, self._is_last = [], [], is_last

    def losses(self, views: Views) -> LossTerms:
        self.views.append(views)
        losses = self.method.losses(views)
        self._terms.append({name: term.detach() for name, term in losses.terms.items()})
        if self._is_last:
            parameters = [each for each in self.online.parameters() if each.requires_grad]
            # Every rank and every term: the normalisation of all ranks meets in each of these passes.
            for name, term in losses.terms.items():
                self._clock.phase = f"backward of {name}"
                gradients = torch.autograd.grad(
                    term.sum(), parameters, retain_graph=True, materialize_grads=True
                )
                if not all(map(is_finite, gradients)):
                    self._bad_gradients.add(name)
            self._clock.phase = "forward"
        return losses

    def update_target(self, momentum: float) -> None:
        self.method.update_target(momentum)

    def bad_terms(self, image_ids: Sequence[int]) -> dict[str, dict[str, Any]]:
        """Terms of the loss that are not finite, or whose gradient is not, with the images of the former."""
        bad: dict[str, dict[str, Any]] = {}
        for name in self._terms[0]:
            values = torch.cat([terms[name] for terms in self._terms])
            rows = (~torch.isfinite(values)).nonzero().view(-1).tolist()
            if rows or name in self._bad_gradients:
                images = [image_ids[row] for row in rows]
                bad[name] = {"images": images, "is_gradient_bad": name in self._bad_gradients}
        return bad

    def bad_images(self, image_ids: Sequence[int]) -> list[int]:
        """Images with a pixel, as the network saw them, that is not finite or beyond any pixel."""
        scenes = torch.cat([views.scenes for views in self.views]).flatten(1).abs().amax(dim=1)
        rows = (~(scenes < _LARGEST_PIXEL)).nonzero().view(-1).tolist()
        return [image_ids[row] for row in rows]

    def name_of(self, tensor: Tensor, state: TrainState) -> str:
        """What is stored where this tensor is, if that has a name."""
        place = tensor.untyped_storage().data_ptr()
        named = {f"views.{name}": value for views in self.views for name, value in views._asdict().items()}
        named |= state.tensors()
        for name, parameter in self.online.named_parameters():
            if parameter.grad is not None:
                is_slice = parameter.grad.untyped_storage().nbytes() > parameter.grad.nbytes
                named["gradients" if is_slice else f"gradient of online.{name}"] = parameter.grad
        found = (name for name, value in named.items() if value.untyped_storage().data_ptr() == place)
        return next(found, "") if place else ""


def replay(run_dir: Path, anomaly: str, *, device: str = "", float32: bool = False) -> dict[str, Any]:
    """Compute one bad step of a run again.

    Args:
        run_dir: The run directory.
        anomaly: Name of the capsule, or its data step.
        device: `cpu`; empty for GPUs if there are enough.
        float32: Without autocast, whatever the run did.

    Returns:
        What was found, as JSON values.

    Raises:
        ConfigError: If there is no such capsule.
        CheckpointError: If the checkpoint it starts from is gone or damaged.
    """
    capsule = read_capsule(run_dir, anomaly)
    start = find_start(run_dir / "checkpoints", capsule["start"])
    size = capsule["world_size"]
    work = partial(
        _replay_rank, run_dir=run_dir, capsule=capsule, start=start, device=device, float32=float32
    )
    if size == 1:
        ranks = [work(0)]
    else:
        with tempfile.TemporaryDirectory() as folder:
            spawn(_process, (folder, size, work), size)  # type: ignore[no-untyped-call]
            ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]
    first = ranks[_culprit(ranks)]
    is_like_the_run = not float32 and first["device"] == capsule["device"]
    return {
        "anomaly": f"{capsule['data_step']:09d}",
        "data_step": capsule["data_step"],
        "verdict": {name: capsule[name] for name in ("verdict", "where", "reason", "what")},
        "start": start.name,
        "torch": capsule["torch"],
        "threads": capsule["threads"],
        "steps_again": first["steps_again"],
        "world_size": size,
        "rank": _culprit(ranks),
        "same_bits": _is_same(capsule, first) if is_like_the_run else None,
        **{name: first[name] for name in ("replayed", "finding", "terms", "images", "device", "epochs")},
    }


def _culprit(ranks: list[dict[str, Any]]) -> int:
    """The rank on which it began: not one that only received it from another."""

    def order(rank: int) -> tuple[bool, bool, int]:
        found = ranks[rank]["finding"]
        received = found is not None and any(each.get("nonfinite") for each in found["inputs"])
        return found is None and not ranks[rank]["images"], received and not ranks[rank]["images"], rank

    return min(range(len(ranks)), key=order)


def _is_same(capsule: dict[str, Any], first: dict[str, Any]) -> bool:
    """Whether the replayed step ended with the numbers of the run, to the last bit."""
    then = [capsule[name] for name in _COMPARED] + [value for _, value in sorted(capsule["terms"].items())]
    now = [first["replayed"][name] for name in _COMPARED]
    now += [value for _, value in sorted(first["replayed"]["terms"].items())]
    return [str(float(value)) for value in then] == [str(float(value)) for value in now]


def _process(rank: int, folder: str, size: int, work: Any) -> None:
    """One rank of several, in a process of its own."""
    dist.init_process_group(
        "nccl" if _device(rank, size, work.keywords["device"]).type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
    )
    result = work(rank)
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))


def _replay_rank(
    rank: int, *, run_dir: Path, capsule: dict[str, Any], start: Path, device: str, float32: bool
) -> dict[str, Any]:
    config, size, bad_step = load(run_dir), capsule["world_size"], capsule["data_step"]
    torch.set_num_threads(capsule["threads"])
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    group = Group(rank, size, _device(rank, size, device))
    config = replace(config, data=replace(config.data, workers=0))
    shares = micro_batches(config.train.global_batch, size, config.train.max_images_per_rank)
    plan = make_plan(config, load_header(run_dir).num_images, len(shares[0]))
    course = Course.of(Ledger(run_dir / "ledger.jsonl").decisions(capsule["ledger_records"]))
    clock = _Clock()
    method = _Watched(fresh_method(config, group.device), clock)
    state = TrainState(method, make_optimizer(config.optim, method.online), Guard(config.resilience))
    state.load(load_file(start / layout.TENSORS), layout.read_manifest(start).facts)
    without = {*course.windows, *course.skipped} - {bad_step}
    data_steps = [each for each in range(state.data_step, bad_step + 1) if each not in without]
    planted = {text for each in capsule["ranks"] for text in each["planted"]}
    settings = StepSettings(
        config.train.global_batch,
        Precision.fp32 if float32 else config.train.precision,
        PlantedFaults(",".join(sorted(planted)), rank=rank),
    )
    buffer = GradientBuffer(method.online)
    tracer = Tracer(partial(method.name_of, state=state), lambda: clock.phase)
    report: StepReport | None = None
    for loaded in load_batches(make_source(config, run_dir, group), config, group.device, data_steps):
        jumped = range(state.data_step, loaded.data_step)
        state.guard.consecutive_skips += len(set(course.skipped).intersection(jumped))
        state.data_step = loaded.data_step
        method.begin(is_last=loaded.data_step == bad_step)
        with tracer if loaded.data_step in data_steps[-TRACED:] else nullcontext():
            report = train_step(
                state,
                loaded.micro_batches,
                settings=settings,
                group=group,
                buffer=buffer,
                learning_rate=plan.learning_rate(loaded.data_step),
                momentum=plan.momentum(loaded.data_step),
                counts=loaded.counts,
                marks=loaded.marks,
                stop_requested=False,
                clock=clock,
                calm=course.is_calm(loaded.data_step),
            )
        if report.judgement.verdict is not Verdict.ok:
            break
        state.data_step = loaded.data_step + 1
    assert report is not None
    return {
        "device": group.device.type,
        "steps_again": len(data_steps) - 1,
        "replayed": {
            "data_step": loaded.data_step,
            **report.judgement._asdict(),
            "loss": str(report.loss),
            "gradient_norm": str(report.gradient_norm),
            "terms": {name: str(value) for name, value in report.terms.items()},
        },
        "finding": tracer.finding,
        "terms": method.bad_terms(loaded.image_ids),
        "images": method.bad_images(loaded.image_ids),
        "epochs": dict(zip(map(str, loaded.image_ids), loaded.epochs, strict=True)),
    }


def _device(rank: int, size: int, device: str) -> torch.device:
    """A GPU for each rank if there are as many, as in training."""
    has_gpus = torch.cuda.device_count() >= size and device != "cpu"
    return torch.device("cuda", rank) if has_gpus else torch.device("cpu")


def main() -> int:
    """Replay as the command line asks for, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("anomaly")
    parser.add_argument("--device", default="")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        found = replay(options.run_dir, options.anomaly, device=options.device, float32=options.float32)
        picture = options.run_dir / FOLDER / found["anomaly"] / "images.png"
        draw_images(options.run_dir, found, picture)
    except UnivipError as error:
        sys.stderr.write(f"univip: {error}\n")
        return ExitCode.CRASH
    text = (
        json.dumps({**found, "picture": str(picture)})
        if options.json
        else "\n".join([*lines(found), f"{'picture':<10} {picture}"])
    )
    sys.stdout.write(text + "\n")
    return ExitCode.CRASH if found["same_bits"] is False else ExitCode.DONE


if __name__ == "__main__":
    raise SystemExit(main())
