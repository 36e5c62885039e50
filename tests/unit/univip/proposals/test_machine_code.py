"""The cache of machine code: private, whole or absent, and safe for many that start at once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from univip.proposals.machine_code import Store
from univip.proposals.search import selective_search

NAMES = "search", "compiled", "sorting"
PROGRAM = """
import sys
import numpy as np
from univip.proposals.compiled import store
from univip.proposals.search import selective_search
image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8).repeat(2, 0)
np.save(sys.argv[1], selective_search(image, key=3))
print(store.directory)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "univip"


def test_the_first_of_two_is_published_and_the_other_cleans_up(root: Path) -> None:
    first, second = Store(*NAMES), Store(*NAMES)
    for number, store in enumerate((first, second)):
        assert store.directory is not None
        (store.directory / "code").write_text(str(number))
    first.publish()
    second.publish()

    [final] = root.iterdir()
    assert (final / "code").read_text() == "0"
    assert Store(*NAMES).directory == final
    assert final.stat().st_mode & 0o777 == root.stat().st_mode & 0o777 == 0o700


def test_publishing_again_changes_nothing(root: Path) -> None:
    store = Store(*NAMES)
    store.publish()
    store.publish()

    assert len(list(root.iterdir())) == 1


def test_a_process_that_ends_before_it_publishes_leaves_nothing(root: Path) -> None:
    Store(*NAMES)._discard()

    assert list(root.iterdir()) == []


def test_a_directory_that_others_can_write_to_is_not_used(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root.mkdir()
    root.chmod(0o777)

    with caplog.at_level(logging.WARNING):
        assert Store(*NAMES).directory is None
    assert "writable by this user alone" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_link_in_place_of_the_directory_is_not_used(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")

    assert Store(*NAMES).directory is None


def test_without_a_place_to_write_everything_works_uncached(root: Path) -> None:
    root.parent.rmdir()
    root.parent.write_text("a file where a directory should be")
    store = Store(*NAMES)
    store.publish()

    assert store.directory is None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_that_start_at_once_all_get_the_same_boxes_and_one_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / f"{number}.npy")],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        for number in range(3)
    ]
    for process in started:
        process.communicate()
    assert [process.returncode for process in started] == [0, 0, 0]
    [final] = (tmp_path / "univip").iterdir()  # and nothing left over
    before = sorted((path.name, path.stat().st_mtime_ns) for path in final.rglob("*"))
    late = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "3.npy")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert late.stdout.strip() == str(final)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in final.rglob("*")) == before
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8).repeat(2, 0)
    for number in range(4):
        np.testing.assert_array_equal(np.load(tmp_path / f"{number}.npy"), selective_search(image, key=3))
