"""One model of nnU-Net through the commands: converted, explained, predicted as nnU-Net does, evaluated, reproduced."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from medmamba.cli.main import run as medmamba
from medmamba.images import read_label_map

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "nnunet_models" / "Dataset601_coarse"


def test_from_a_folder_of_results_to_nnunets_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def called(*words: object) -> dict:
        with suppress(SystemExit):
            medmamba([*map(str, words), "--json"])
        return json.loads(capsys.readouterr().out)

    run, masks = tmp_path / "run", tmp_path / "masks"
    made = called("convert", "model", GOLDEN, "--model", "nnUNetTrainer__plainPlans", "-o", run)
    assert made["folds"] == {"3d_fullres": ["fold_0", "fold_1"]}
    assert called("explain", run)["plan"]["conventions"] == "nnunet"
    assert called("predict", run, GOLDEN / "images", "-o", masks)["cases"].keys() == {"coarse_6"}
    wanted = read_label_map(GOLDEN / "masks" / "3d_fullres_mirrored" / "coarse_6.nii.gz").array
    assert (read_label_map(masks / "coarse_6.nii.gz").array == wanted).all()
    assert called("evaluate", masks, masks)["missing"] == []
    assert called("reproduce", masks / "report.json", run, GOLDEN / "images")["same"] == ["coarse_6"]
