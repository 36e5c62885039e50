"""Spikes of the loss, and the calm stretch after trouble that came back: the trainer on synthetic views."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.toy_training import TARGET, Events, Killed, digest, make_trainer
from univip.checkpoint.manager import CheckpointManager
from univip.engine.step import StepReport
from univip.engine.trainer import Trainer
from univip.errors import RollbackExhaustedError
from univip.resilience.ledger import Ledger

SPIKES = {"spike_window": 4, "max_consecutive_spikes": 2}  # TARGET leaves no time for a long window


def test_a_single_spike_is_recorded_and_applied(tmp_path: Path) -> None:
    events = Events()

    make_trainer(tmp_path, plant="spike:loss@7", events=events, **SPIKES).run()

    assert [(fields["data_step"], fields["where"]) for fields in events.of("spike")] == [(7, "loss")]
    assert events.of("rollback") == []
    assert CheckpointManager(tmp_path / "checkpoints").verify(TARGET).step == TARGET


def test_a_persistent_spike_rolls_back_and_jumps_over_all_of_it(tmp_path: Path) -> None:
    events = Events()

    make_trainer(
        tmp_path, plant="spike:loss@7,spike:loss@8", skip_window_steps=1, events=events, **SPIKES
    ).run()

    (rollback,) = events.of("rollback")
    assert (rollback["where"], rollback["reason"]) == ("loss", "spike")
    # 6 is the newest checkpoint with two good steps after it; the spike at 7 was none.
    assert (rollback["target"], rollback["window_start"], rollback["window_stop"]) == (4, 7, 9)


@pytest.mark.parametrize("die_at", [8, 9, 11])
def test_a_death_before_in_or_after_a_spike_changes_no_verdict(tmp_path: Path, die_at: int) -> None:
    # Checkpoints at every step, so that no planted spike, which happens once, is to be passed twice.
    plant = "spike:loss@7,spike:loss@9"
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = make_trainer(tmp_path / "whole", plant=plant, every_steps=1, **SPIKES)
    whole.run()

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", plant=plant, every_steps=1, die_at=die_at, **SPIKES).run()
    cut = make_trainer(tmp_path / "cut", plant=plant, every_steps=1, **SPIKES)
    cut.run()

    assert cut.state.facts() == whole.state.facts()
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


@pytest.mark.parametrize("die_at", [-1, 10])
def test_a_checkpoint_made_during_a_spike_never_becomes_healthy(tmp_path: Path, die_at: int) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, plant="spike:loss@7", die_at=die_at, events=events, **SPIKES)
    if die_at < 0:
        trainer.run()
    else:
        with pytest.raises(Killed):
            trainer.run()
        make_trainer(tmp_path, events=events, **SPIKES).run()

    healthy = {fields["data_step"] for fields in events.of("healthy")}
    assert 8 not in healthy
    assert {6, 10} <= healthy


def test_checkpoints_that_can_never_be_healthy_do_not_keep_others_from_it(tmp_path: Path) -> None:
    """Where checkpoints come faster than health, the oldest on probation is kept."""
    events = Events()

    trainer = make_trainer(
        tmp_path, plant="spike:loss@5", every_steps=1, healthy_after_steps=5, events=events, **SPIKES
    )
    trainer.manager.keep_last = 1
    trainer.run()

    assert max(fields["data_step"] for fields in events.of("healthy")) > 6  # type: ignore[type-var]


CALM = "nan:parameter@6,nan:parameter@9"  # with `calm_steps=4`: back to 4, then to 2, and calm until 6


def calm_steps_of(trainer: Trainer) -> list[int]:
    """Filled while the trainer runs with the data steps that it computes calmly."""
    seen: list[int] = []
    count = trainer.reporter.count

    def watched(report: StepReport, seconds: float) -> None:
        if report.calm:
            seen.append(trainer.state.data_step)
        count(report, seconds)

    trainer.reporter.count = watched  # type: ignore[method-assign]
    return seen


def test_trouble_soon_after_a_rollback_leads_further_back_and_to_a_calm_stretch(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, plant=CALM, calm_steps=4, events=events)
    seen = calm_steps_of(trainer)

    trainer.run()

    first, second = events.of("rollback")
    assert (first["target"], first["calm_steps"]) == (4, 0)
    assert (second["target"], second["calm_steps"]) == (2, 4)
    assert seen == [2, 3, 4]  # 5 is jumped over


def test_a_calm_stretch_is_what_the_ledger_says_and_changes_what_is_learnt(tmp_path: Path) -> None:
    for name, calm_steps in (("rolled", 4), ("told", 4), ("not calm", 0)):
        (tmp_path / name).mkdir()
        if name != "rolled":
            ledger = Ledger(tmp_path / name / "ledger.jsonl")
            ledger.append("rollback", target=0, at=6, window=[5, 7])
            ledger.append("rollback", target=2, at=9, window=[8, 10], calm_steps=calm_steps)
        plant = CALM if name == "rolled" else ""
        make_trainer(tmp_path / name, plant=plant, calm_steps=4).run()

    assert digest(tmp_path / "rolled") == digest(tmp_path / "told")
    assert digest(tmp_path / "rolled") != digest(tmp_path / "not calm")


def test_a_death_in_the_calm_stretch_changes_nothing(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    make_trainer(tmp_path / "whole", plant=CALM, calm_steps=4).run()
    trainer = make_trainer(tmp_path / "cut", plant=CALM, calm_steps=4)
    step, seen = trainer._step, calm_steps_of(trainer)

    def dying() -> object:
        if seen == [2, 3]:
            raise Killed
        return step()

    trainer._step = dying  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        trainer.run()
    resumed = make_trainer(tmp_path / "cut", plant=CALM, calm_steps=4)
    seen_again = calm_steps_of(resumed)
    resumed.run()

    assert seen_again[-1:] == [4]
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_when_the_calm_rollbacks_are_spent_the_run_stops_and_names_their_budget(tmp_path: Path) -> None:
    with pytest.raises(RollbackExhaustedError) as caught:
        make_trainer(tmp_path, plant=CALM, calm_steps=4, max_calm_rollbacks=0).run()

    assert "resilience.max_calm_rollbacks=3" in str(caught.value)
    assert "not finite" in str(caught.value)
