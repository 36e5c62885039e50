"""Many shells that ask for the same thing at once begin one run."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SHELLS, TIMES = 8, 5


def test_many_shells_that_submit_the_same_at_once_begin_one_run(empty: Runs) -> None:
    request = [*empty.request("+cluster.extra.begin=now+600"), "--json"]
    told: list[dict[str, object]] = []

    def shell() -> None:
        for _ in range(TIMES):
            told.append(json.loads(empty.univip(*request)))

    shells = [threading.Thread(target=shell) for _ in range(SHELLS)]
    for each in shells:
        each.start()
    for each in shells:
        each.join()

    assert len(told) == SHELLS * TIMES
    assert len({str(each["run"]) for each in told}) == 1
    assert len([each for each in told if each["jobs"]]) == 1
    waiting = empty.cluster.run("squeue", "--noheader", "--array-unique", "--format=%j %k").splitlines()
    names = {empty.boxes().name, str(told[0]["run"])}
    mine = [line.split()[0] for line in waiting if line.split()[1] in names]
    assert sorted(mine) == [
        f"univip-{stage}" for stage in ("evaluate", "merge", "prepare", "shards", "train")
    ]
    assert {path.name for path in empty.folder.iterdir() if not path.name.startswith(".")} == names
    empty.univip("cancel", str(told[0]["run"]))
