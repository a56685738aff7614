"""Every registered network has its place in the reference, and the page's code runs."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from medmamba.networks import available_networks
from medmamba.networks.build import network_facts
from medmamba.networks.planned.registry import FrameOptions
from medmamba.networks.routes import available_routes
from medmamba.plans.families import route_count

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
OVERVIEW = (REFERENCE / "networks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", available_networks())
def test_every_network_is_in_the_overview(name: str) -> None:
    row = next(line for line in OVERVIEW.splitlines() if line.startswith("|") and f"`{name}`" in line)
    assert row.rstrip(" |").endswith("yes") == network_facts(name).has_scan


def test_every_page_that_is_linked_exists() -> None:
    pages = re.findall(r"\(([\w-]+\.md)\)", OVERVIEW)
    assert len(pages) >= 7
    assert all((REFERENCE / page).is_file() for page in pages)


@pytest.mark.parametrize("name", available_networks())
def test_the_page_of_a_network_lists_its_options_with_their_defaults(name: str) -> None:
    row = next(line for line in OVERVIEW.splitlines() if line.startswith("|") and f"`{name}`" in line)
    (page,) = re.findall(r"\((network-[\w-]+\.md)\)", row)
    text = (REFERENCE / page).read_text(encoding="utf-8").split("Options:")[1].partition("\n\n")[0]
    listed = dict(re.findall(r"`(\w+)`(?: \(([^;)]*))?", text))
    frame = {field.name for field in fields(FrameOptions)}
    own = {key: option.default for key, option in network_facts(name).options.items()}
    assert own.keys() - frame - {"use_scan"} <= listed.keys() <= own.keys()
    for key, default in listed.items():
        if default and " in 2D" not in default:
            assert default.strip('"') == str(own[key]), key


@pytest.mark.parametrize("name", available_routes())
def test_every_route_set_is_in_the_table_with_its_numbers(name: str) -> None:
    row = next(line for line in OVERVIEW.splitlines() if line.startswith("|") and f"`{name}`" in line)
    assert f"| {route_count(name, 2)} / {route_count(name, 3)} |" in row


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", OVERVIEW, flags=re.DOTALL)
    exec(compile(block, "networks.md", "exec"), {})  # our own page
    assert capsys.readouterr().out.strip() == "2"
