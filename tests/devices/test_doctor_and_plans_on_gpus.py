"""What doctor and plan say about a GPU, and what the first training on a new machine would end with."""

import pytest
import torch

pytest.importorskip("triton")

from pretended_gpu import pretended_gpus

import medmamba
from medmamba import doctor_gpu
from medmamba.cli.main import run as run_command
from medmamba.doctor_gpu import gpu_findings
from medmamba.kernels import availability
from medmamba.kernels.availability import why_not_triton
from medmamba.plans.cost.machines import MACHINES, machine_of_card


@pytest.fixture
def without_duality(monkeypatch):
    """No check of the state-space duality, which the pretended GPU does not have."""
    checks = doctor_gpu._kernel_checks()
    del checks["state-space duality"]
    monkeypatch.setattr(doctor_gpu, "_kernel_checks", lambda: checks)
    monkeypatch.setattr(doctor_gpu, "ROUNDS", 1)


def test_doctor_starts_every_kernel_on_the_gpu_asked_for_and_compares_it(without_duality):
    with pretended_gpus(2) as gpu:
        findings = list(gpu_findings("cuda:1"))
        kernels, places = {launch.kernel for launch in gpu.launches}, {launch.current for launch in gpu.launches}
    assert places == {1}
    assert kernels >= {"scan_forward", "scan_backward", "scan_forward_one", "scan_backward_one", "pass_spans"}
    assert kernels >= {"adjoint_spans", "deform_forward", "deform_offset_gradient", "deform_image_gradient"}
    text = "\n".join(finding.text for finding in findings)
    assert all(finding.right for finding in findings), text
    assert text.startswith("cuda:1: Pretended GPU, 80 GiB, 132 multiprocessors, compute capability 9.0, trains in bf16")
    assert text.count("right, forward and backward") == 5
    for words in ("copy from page-locked memory: ", "convolution 3^3", "scan of 64 x 40", "small vm_unet"):
        assert words in text


def test_doctor_names_kernels_that_are_wrong_or_fail_and_ends_with_1(without_duality, monkeypatch, capsys):
    def wrong(**inputs):
        return sum(value.sum() for name, value in inputs.items() if name != "backend") * (
            2 if inputs["backend"] == "triton" else 1
        )

    def broken(**inputs):
        if inputs["backend"] == "triton":
            raise RuntimeError("PTXAS error: Internal Triton PTX codegen error\nmore")
        return sum(value.sum() for name, value in inputs.items() if name != "backend")

    inputs = {"a": torch.ones(3, dtype=torch.float64)}
    monkeypatch.setattr(doctor_gpu, "_kernel_checks", lambda: {"one": (wrong, inputs), "two": (broken, inputs)})
    monkeypatch.setattr(doctor_gpu, "_times", lambda device: [])
    with pretended_gpus(), pytest.raises(SystemExit) as ended:
        run_command(["doctor", "--gpu"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert "one: WRONG by 3e+00. Use --scan-backend torch" in out
    assert "two: FAILED (RuntimeError: PTXAS error: Internal Triton PTX codegen error)" in out
    assert "2 checks of cuda failed" in err


def test_doctor_without_a_gpu_says_so(capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(["doctor", "--gpu"])
    assert ended.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_a_gpu_without_a_compiler_for_triton_is_told_what_to_install(monkeypatch):
    assert why_not_triton("cuda", torch.float32) is None
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(availability.shutil, "which", lambda name: None)
    assert why_not_triton("cuda", torch.float32) == "Triton finds no C compiler (install gcc, or set CC)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GeForce GTX 1080", None),
        ("cpu", None),
    ],
)
def test_cards_are_known_by_the_names_of_their_drivers(name, expected):
    found = machine_of_card(name)
    assert (None if found is None else found.name) == expected


def test_machines_get_faster_from_one_generation_to_the_next():
    for older, newer in [("t4", "rtx3090"), ("rtx3090", "rtx4090"), ("rtx4090", "rtx5090"), ("a100", "h100")]:
        assert MACHINES[older].bytes < MACHINES[newer].bytes
        assert MACHINES[older].macs < MACHINES[newer].macs
    assert MACHINES["h100"].bytes < MACHINES["h200"].bytes < MACHINES["b200"].bytes
    assert MACHINES["h100"].memory_gb < MACHINES["h200"].memory_gb < MACHINES["b200"].memory_gb


def test_a_plan_for_less_than_this_machines_gpus_says_what_to_choose(small_dataset, tmp_path, monkeypatch):
    def said(run, **options):
        lines = []
        with pretended_gpus(2):
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "NVIDIA H100 80GB HBM3")
            medmamba.plan(small_dataset, tmp_path / run, workers=1, on_message=lines.append, **options)
        return lines

    [line] = said("run")
    assert "NVIDIA H100 80GB HBM3 with 86 GB; the plan is for 8 GB, and its hours are those of cpu" in line
    assert "--device-memory 77GB --machine h100" in line
    assert "2 of them train folds side by side" in line
    assert said("chosen", device_memory_gb=24.0) == []
