"""A converted nnU-Net model answers requests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from http_service import form

from medmamba.images import read_label_map
from medmamba.inference.predictor import Predictor
from medmamba.nnunet.convert import convert_model

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "nnunet_models" / "Dataset601_coarse"


def test_an_uploaded_image_gets_the_mask_of_predict(running, tmp_path):
    run = convert_model(GOLDEN / "nnUNetTrainer__plainPlans__3d_fullres", tmp_path / "run").run
    service = running(Predictor(run, device="cpu"))
    channels = sorted((GOLDEN / "images").iterdir())
    body, headers = form(*((path.name, path.read_bytes()) for path in channels))
    code, answer = service.call("/predict", body, **headers)
    assert code == 200
    with zipfile.ZipFile(io.BytesIO(answer)) as packed:
        packed.extract("mask.nii.gz", tmp_path)
    wanted = Predictor(run, device="cpu").predict(channels).labels
    np.testing.assert_array_equal(read_label_map(tmp_path / "mask.nii.gz").array, wanted)
