"""What README.md says is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.cli.export import command as export
from launcher.cli.main import cli
from monitoring.catalog import markdown_table
from univip.checkpoint import layout

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_metric_table_is_the_catalogue() -> None:
    begin, end = "<!-- metrics: monitoring.catalog.markdown_table() -->", "<!-- end of metrics -->"

    table = README.partition(begin)[2].partition(end)[0].strip()

    assert table == markdown_table().strip()


def test_a_list_stands_in_quotes_so_that_every_shell_leaves_it_alone() -> None:
    assert re.findall(r'(?<!["\w.])[\w.]+=\[.*', README) == []


def test_every_room_of_the_tree_exists_and_every_room_is_in_the_tree() -> None:
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    named: set[Path] = set()
    parent = Path()
    for line in tree.splitlines():
        if match := re.match(r"    (?P<indent> *)(?P<names>(?:\w+/ ?)+)", line):
            names = match["names"].split()
            if not match["indent"]:
                parent = Path(names[0])
                named.add(parent)
            else:
                named.update(parent / name for name in names)

    packages = {path.parent.relative_to(ROOT) for path in ROOT.glob("univip/*/__init__.py")}
    top = {Path(name) for name in ("univip", "jobs", "launcher", "monitoring", "configs", "tests")}
    assert named == packages | top


def test_every_command_line_in_it_starts_with_a_verb_that_exists() -> None:
    verbs = re.findall(r"(?:^    |`|; )univip (\w+)", README, flags=re.MULTILINE)

    assert len(verbs) > 5
    assert set(verbs) <= set(cli.commands) | set(cli.list_commands(None))  # type: ignore[arg-type]


def test_every_experiment_it_lists_exists_and_every_experiment_is_listed() -> None:
    table = README.partition("| `experiment=` |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))
    exist = {path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml")}

    assert listed == exist - {"demo"}


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, flags=re.MULTILINE))
def test_every_make_target_it_names_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_file_of_an_export_has_the_name_that_it_and_the_help_say() -> None:
    name = f"RUN-{layout.name_of(20)}.safetensors"
    [output] = [option for option in export.params if option.name == "output"]

    assert f"`{name}` (at data step 20" in README
    assert f"{name} here, for data step 20" in str(output.to_info_dict()["help"])
