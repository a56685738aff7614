"""Fixtures that several packages share."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# Before torch is loaded: a thread that turns while it waits for the others waits ten times as long on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# The shell that starts the tests says nothing to them: its terminal, its proxy, its umask, a launcher of several ranks.
for name in ("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "LINES",
             "RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "MEDMAMBA_CRASH_AT"):  # fmt: skip
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "80"
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"  # services of this machine
os.umask(0o022)

# The same examples on every run, kept nowhere, and no bound on the clock of a machine that does other things too.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


# No test depends on another: neither on the numbers that it drew nor on what it left in the process.


def _seed(name: str) -> None:
    number = zlib.crc32(name.encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextmanager
def _own_draws(name: str) -> Iterator[None]:
    """Random numbers inside depend on ``name`` alone, and those outside are drawn as if nothing was drawn inside."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed(name)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef):
    """A shared fixture is the same whichever test asks for it first."""
    if fixturedef.scope == "function":
        return (yield)
    with _own_draws(f"{fixturedef.baseid}::{fixturedef.argname}"):
        return (yield)


# Where tests register things: networks, planner facts, routes, normalisations and metrics.
REGISTRIES = (
    ("medmamba.evaluation.metrics", "METRICS"),
    ("medmamba.networks.planned.registry", "NETWORKS"),
    ("medmamba.networks.routes", "_ROUTES"),
    ("medmamba.plans.cost.blocks", "COSTS"),
    ("medmamba.plans.families", "FAMILIES"),
    ("medmamba.plans.normalizers", "NORMALIZERS"),
    ("medmamba.plans.families", "ROUTE_COUNT"),
    ("medmamba.preprocessing.normalize", "FUNCTIONS"),
)
# The test itself, and what libraries set for good when they are loaded (torch, deterministic training, OpenMP, blosc2).
OWN_VARIABLES = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG", "KMP_", "ME_DSL_")


def _process_state() -> dict[str, object]:
    umask = os.umask(0o022)
    os.umask(umask)
    return {
        "umask": umask,
        "working directory": os.getcwd(),
        "module search path": list(sys.path),
        "threads of torch": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        **{table: set(getattr(sys.modules[module], table)) for module, table in REGISTRIES if module in sys.modules},
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)},
    }


@pytest.fixture(autouse=True)
def _alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random numbers of the test's own, and a process that is afterwards as it was before."""
    _seed(request.node.nodeid)
    before = _process_state()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # Under nohup or in the background signals are ignored, which child processes would inherit, as no handler is.
    if handlers[signal.SIGINT] == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if handlers[signal.SIGHUP] == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    yield
    for number, handler in handlers.items():  # a command sets them for the rest of its process, which goes on here
        signal.signal(number, handler)
    after = _process_state()
    imported = {table for _, table in REGISTRIES if table not in before}
    changed = {name for name in (before.keys() | after.keys()) - imported if before.get(name) != after.get(name)}
    assert not changed, "the test changed: " + "; ".join(f"{n} {before.get(n)} -> {after.get(n)}" for n in changed)


@pytest.fixture(scope="session", autouse=True)
def _curves() -> Iterator[Callable | None]:
    """Drawing the curves is half the work of a training of two steps: one pixel, except where a test looks at them."""
    observers = sys.modules.get("medmamba.training.observers")  # not loaded where nothing trains
    if observers is None:
        yield None
        return
    from PIL import Image

    pixel, draw = io.BytesIO(), observers._png
    Image.new("L", (1, 1)).save(pixel, format="png")
    observers._png = lambda figure: pixel.getvalue()
    yield draw
    observers._png = draw


@pytest.fixture
def curves_drawn(_curves, monkeypatch) -> None:
    """Curves of trainings in this process are drawn as users get them."""
    if _curves is not None:
        monkeypatch.setattr("medmamba.training.observers._png", _curves)


@pytest.fixture(scope="session")
def example_data() -> Path:
    """The 60 hippocampus cases of the demonstration."""
    return ROOT / "examples" / "data" / "hippocampus"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, or in the folder that MEDMAMBA_SHARED names."""
    folder = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name the folder above it by MEDMAMBA_SHARED")
    return folder


@pytest.fixture(scope="session")
def loopback() -> None:
    """For tests that speak to a service: a machine may have no network at all, not even with itself."""
    with socket.socket() as server, socket.socket() as client:
        try:
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
        except OSError as error:
            pytest.skip(f"no loopback network here ({error.strerror}): ip link set lo up")


AFFINE = np.array([[-0.8, 0, 0, 40], [0, 0, 3, -20], [0, 1.25, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Writes an array as NIfTI with nibabel; ``header`` sets fields, ``patch`` changes the raw bytes behind it."""

    def _save(
        name: str,
        array: np.ndarray,
        affine: np.ndarray = AFFINE,
        *,
        kind: type = nib.Nifti1Image,
        patch: Callable[[bytearray], bytes | None] | None = None,
        **header: object,
    ) -> Path:
        image = kind(array, affine)
        image.set_qform(affine, code=1)
        image.set_sform(affine, code=1)
        image.header.set_xyzt_units("mm")
        raw = bytearray(image.to_bytes())
        fields = np.frombuffer(raw, dtype=image.header.template_dtype, count=1)[0]
        view = np.frombuffer(memoryview(raw)[: fields.nbytes], dtype=image.header.template_dtype)
        for key, value in header.items():
            view[key] = value
        del view
        if patch is not None:
            raw = patch(raw) or raw
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(raw), mtime=0) if name.endswith(".gz") else bytes(raw))
        return path

    return _save


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory, example_data) -> Path:
    """A Decathlon folder of six of the real cases, two of them for testing."""
    folder = tmp_path_factory.mktemp("data") / "hippocampus_small"
    return copy_dataset(example_data, folder, training=4, test=2)


def copy_dataset(source: Path, folder: Path, *, training: int, test: int) -> Path:
    """The first cases of a Decathlon folder as a dataset of its own."""
    facts = json.loads((source / "dataset.json").read_text())
    facts["training"] = facts["training"][:training]
    facts["test"] = facts["test"][:test]
    facts["numTraining"], facts["numTest"] = training, test
    names = [name for entry in facts["training"] for name in entry.values()] + facts["test"]
    names += [name.replace("imagesTs", "labelsTs") for name in facts["test"]]
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, small_dataset) -> Path:
    """The four training cases planned and preprocessed with a patch that trains in seconds."""
    import medmamba

    run = tmp_path_factory.mktemp("runs") / "run"
    medmamba.plan(small_dataset, run, patch_size=(16, 24, 16), batch_size=2)
    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, small_run) -> Path:
    """A run whose folds 0 and 1 are trained."""
    from tiny_models import make_fold

    from medmamba.disk.atomic import write_text
    from medmamba.plans.schema import Plan

    run = tmp_path_factory.mktemp("tiny") / "run"
    plan = Plan.from_json((small_run / "plan.json").read_text())
    for name in ("plan.json", "fingerprint.json", "splits.json"):
        write_text(run / name, (small_run / name).read_text())
    for seed in (0, 1):
        make_fold(run / "models" / "3d_fullres" / f"fold_{seed}", plan, seed)
    return run


@pytest.fixture(scope="session")
def learned_run(tiny_run, small_run, tmp_path_factory) -> Path:
    """A run whose two folds validate four cases; patients are made to be enough for a rule of expected quality."""
    from medmamba.model_selection.run import find_best

    run = tmp_path_factory.mktemp("learned") / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medmamba.model_selection.expected_quality.LEAST_PATIENTS", 2)
        patch.setattr("medmamba.model_selection.expected_quality.COPIES", (1, 1))
        find_best(run, mirror=False)
    return run


@pytest.fixture
def registrations_undone():
    """Networks, planner facts, routes, normalisations and metrics that a test registers are forgotten after it."""
    tables = [getattr(import_module(module), table) for module, table in REGISTRIES]
    before = [dict(table) for table in tables]
    yield
    for table, own in zip(tables, before, strict=True):
        table.clear()
        table.update(own)
