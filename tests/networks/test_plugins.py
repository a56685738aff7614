"""A network of another package is planned, built and copied like ours; a broken package concerns nobody else."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from installed import install

from medmamba.bundle.sources import bundle_sources
from medmamba.doctor import doctor_lines
from medmamba.errors import ConfigError
from medmamba.models.network import describe_network
from medmamba.networks import available_networks, build_network
from medmamba.networks.build import rebuild_network
from medmamba.networks.planned.registry import NETWORKS
from medmamba.plans.families import FAMILIES, family
from medmamba.plugins import load_network_plugins

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
NUMBERS = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "strides": [[1, 1], [2, 2]],
    "features_per_stage": [4, 8],
}
PROJECT = """
[project]
name = "their-networks"
version = "2"
[project.entry-points."medmamba.networks"]
{name} = "{module}"
[tool.setuptools]
{kind} = ["their_networks"]
"""


@pytest.fixture
def site(tmp_path, monkeypatch, registrations_undone):
    """A folder of installed packages on the search path; what they register is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    load_network_plugins.cache_clear()
    yield tmp_path / "site"
    for name, module in list(sys.modules.items()):
        if name == "einops" or str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]
    load_network_plugins.cache_clear()


def package(folder: Path, name: str, source: str) -> Path:
    """A package whose module has this source."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, module="their_networks", kind="py-modules"))
    (folder / "their_networks.py").write_text(source)
    return folder


def test_an_installed_network_is_planned_and_built_by_its_name(site):
    install(EXAMPLE, site)
    assert family("gated_unet").source == "an example"
    network = build_network("gated_unet", expand=2.0, **NUMBERS).eval()
    assert network(torch.zeros(1, 1, 9, 7)).shape == (1, 2, 9, 7)
    assert "gated_unet" in available_networks()
    with pytest.raises(ConfigError, match=r"expand 0\.01 leaves no channel of 8"):
        build_network("gated_unet", expand=0.01, **NUMBERS)


def test_its_source_goes_into_a_bundle_and_builds_it_there(site, tmp_path):
    install(EXAMPLE, site)
    for name, text in bundle_sources(["vm_unet", "gated_unet"]).items():
        path = tmp_path / "bundle" / "scripts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    code = (
        "import sys; sys.modules['medmamba'] = sys.modules['pydantic'] = None\n"
        "from scripts.networks.build import build_network\n"
        f"network = build_network('gated_unet', **{NUMBERS!r})\n"
        "print(type(network.encoder.stages[0].blocks[0]).__module__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "bundle", capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "scripts.external.gated_unet"


def test_what_a_network_imports_of_its_own_package_comes_along(site, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "their_networks" / "blocks").mkdir(parents=True)
    (theirs / "pyproject.toml").write_text(PROJECT.format(name="theirs", module="their_networks.unet", kind="packages"))
    for path, source in {
        "__init__.py": "",
        "blocks/__init__.py": "",
        "blocks/local.py": "from their_networks.widths import WIDTH",
        "widths.py": "WIDTH = 4",
        "unrelated.py": "import nothing_that_exists",
        "unet.py": "from medmamba.networks.planned.registry import network\nfrom .blocks.local import WIDTH\n"
        "@network('theirs')\ndef theirs(topology):\n    return WIDTH\n",
    }.items():
        (theirs / "their_networks" / path).write_text(source)
    install(theirs, site)
    texts = bundle_sources(["theirs"])
    external = {name for name in texts if name.startswith("external/") and texts[name]}
    assert external == {f"external/their_networks/{name}.py" for name in ("unet", "blocks/local", "widths")}
    assert (
        "from scripts.external.their_networks.widths import WIDTH" in texts["external/their_networks/blocks/local.py"]
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("import einops", r"their_networks\.py, line 2: their_networks needs einops, which a bundle does not hold"),
        ("import medmamba.plans.families", r"line 2: a bundle cannot copy `import medmamba\.plans\.families`"),
    ],
)
def test_a_source_that_could_not_run_in_a_bundle_is_refused(lines, message, site, tmp_path):
    register = "from medmamba.networks.planned.registry import network"
    use = "@network('theirs')\ndef theirs(topology): ..."
    install(package(tmp_path / "theirs", "theirs", f"{register}\n{lines}\n{use}\n"), site)
    sys.modules["einops"] = sys.modules["re"]  # forgotten with the rest
    with pytest.raises(ConfigError, match=message):
        bundle_sources(["theirs"])


def test_a_network_of_the_program_itself_cannot_be_copied(site):
    install(EXAMPLE, site)
    build_network("gated_unet", **NUMBERS)
    NETWORKS["gated_unet"] = replace(NETWORKS["gated_unet"], source="__main__")
    with pytest.raises(ConfigError, match="registered by the program that runs"):
        bundle_sources(["gated_unet"])


FACTS = """
from dataclasses import replace
from torch import nn
from medmamba.networks.planned.registry import unet_family
from medmamba.plans.cost.blocks import register_family
from medmamba.plans.families import FAMILIES
register_family(replace(FAMILIES["mambaout"], name="theirs", source="a test"), cost_as="mambaout")
@unet_family("theirs")
def theirs(topology, rate):
"""


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("    pass", "TypeError: 'NoneType' object is not callable"),
        ("    return lambda stage, index, width: nn.Linear(width, width + 1)", "RuntimeError: "),
    ],
    ids=["no blocks", "a wrong width"],
)
def test_a_network_that_cannot_run_is_one_line_before_anything_is_trained(body, wrong, site, tmp_path):
    install(package(tmp_path / "theirs", "theirs", FACTS + body), site)
    for use in (
        lambda: build_network("theirs", **NUMBERS),
        lambda: rebuild_network({"name": "theirs", **NUMBERS}),
        lambda: describe_network("theirs", spatial_dims=2, size=16),
    ):
        with pytest.raises(ConfigError) as caught:
            use()
        said = str(caught.value)
        assert said.startswith(f"Network 'theirs' of their_networks cannot be built and run ({wrong}")
        assert said.endswith("Correct or update it.")
        assert "\n" not in said
    assert any(said[:60] in line for line in doctor_lines())


@pytest.mark.parametrize("find", [family, lambda name: build_network(name, **NUMBERS)], ids=["plan", "network"])
def test_a_package_that_fails_to_import_is_named_with_the_cure_and_breaks_no_other(find, site, tmp_path):
    install(package(tmp_path / "broken", "theirs", "raise RuntimeError('no\\nGPU')\n"), site)
    install(EXAMPLE, site)
    with pytest.raises(ConfigError) as caught:
        find("theirs")
    assert str(caught.value) == (
        "Network 'theirs' of the package their-networks cannot be imported (RuntimeError: no). Update the package "
        "(`pip install --upgrade their-networks`), or remove it (`pip uninstall their-networks`)."
    )
    find("gated_unet")
    find("vm_unet")
    with pytest.raises(ConfigError, match=re.escape("Unknown network 'gated_une'. Did you mean 'gated_unet'?")):
        find("gated_une")


def test_doctor_lists_the_networks_of_other_packages_and_why_one_is_broken(site, tmp_path):
    assert "Networks of other packages: none" in list(doctor_lines())
    load_network_plugins.cache_clear()
    install(package(tmp_path / "broken", "theirs", "import somewhere\n"), site)
    install(EXAMPLE, site)
    lines = list(doctor_lines())
    mine = [line for line in lines[lines.index("Networks of other packages:") + 1 :] if line.startswith("  ")]
    assert sorted(mine) == [
        "  Network 'theirs' of the package their-networks cannot be imported (ModuleNotFoundError: No module named "
        "'somewhere'). Update the package (`pip install --upgrade their-networks`), or remove it "
        "(`pip uninstall their-networks`).",
        "  gated_unet of the package gated-unet 1.0",
    ]


def test_networks_of_ours_load_no_other_package(site, tmp_path):
    install(package(tmp_path / "broken", "theirs", "import somewhere\n"), site)
    family("vm_unet")
    build_network("vm_unet", **NUMBERS)
    assert "their_networks" not in sys.modules
    assert load_network_plugins.cache_info().currsize == 0


REGISTER = "from torch import nn\nfrom medmamba.networks.planned.registry import network\n"
PLANNED = (
    "from dataclasses import replace\n"
    "from medmamba.plans.cost.blocks import register_family\n"
    "from medmamba.plans.families import FAMILIES\n"
    "register_family(replace(FAMILIES['mambaout'], name={name!r}, source='theirs'), cost_as='mambaout')\n"
)


@pytest.mark.parametrize("raised", ["raise SystemExit(3)", "class Odd(BaseException): ...\nraise Odd", "def (:"])
def test_whatever_a_package_raises_at_import_ends_no_command(raised, site, tmp_path):
    install(package(tmp_path / "broken", "theirs", raised), site)
    with pytest.raises(ConfigError, match="'theirs' of the package their-networks cannot be imported"):
        family("theirs")
    assert "vm_unet" in available_networks()


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", "from medmamba.errors import Terminated\nraise Terminated(15)"]
)
def test_the_end_of_a_command_is_not_taken_for_a_broken_package(code, site, tmp_path):
    install(package(tmp_path / "ended", "theirs", code), site)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        family("theirs")


@pytest.mark.parametrize(
    "source", [f"{REGISTER}@network('vm_unet')\ndef f(topology): ...\n", PLANNED.format(name="vim")]
)
def test_a_package_cannot_take_the_name_of_another_network(source, site, tmp_path):
    ours, facts = NETWORKS["vm_unet"], family("vim")
    install(package(tmp_path / "thief", "theirs", source), site)
    with pytest.raises(ConfigError, match="already"):
        family("theirs")
    assert NETWORKS["vm_unet"] is ours
    assert family("vim") is facts


def test_a_package_that_declares_a_network_and_does_not_register_it_is_named(site, tmp_path):
    install(package(tmp_path / "empty", "theirs", "x = 1\n"), site)
    for find in (family, lambda name: build_network(name, **NUMBERS)):
        with pytest.raises(
            ConfigError, match="The package their-networks declares the network 'theirs', but its module"
        ):
            find("theirs")


def test_a_network_of_another_kind_of_object_is_refused(site, tmp_path):
    install(
        package(tmp_path / "odd", "theirs", f"{REGISTER}@network('theirs')\ndef f(topology): return nn.Identity()\n"),
        site,
    )
    with pytest.raises(ConfigError, match="'theirs' of their_networks is a Identity, not a PlannedNetwork"):
        build_network("theirs", **NUMBERS)


def test_a_family_whose_cost_is_unknown_is_not_half_registered(site, tmp_path):
    install(
        package(tmp_path / "half", "theirs", PLANNED.format(name="theirs").replace("cost_as='mamba", "cost_as='m")),
        site,
    )
    with pytest.raises(ConfigError, match="no cost for 'mout'"):
        family("theirs")
    assert "theirs" not in FAMILIES


def test_the_reason_of_a_broken_package_is_short(site, tmp_path):
    install(package(tmp_path / "long", "theirs", "raise RuntimeError('x' * 5000)\n"), site)
    with pytest.raises(ConfigError) as caught:
        family("theirs")
    assert len(str(caught.value)) < 600
