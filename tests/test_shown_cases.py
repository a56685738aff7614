"""Pictures on every page: a place in the patient is at one place of the page, whichever way its file is stored."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medmamba.evaluation.run import run_evaluation
from medmamba.geometry import Grid, Reorient, SpatialTrail, affine_from, all_reorientations
from medmamba.geometry.display import Display
from medmamba.images import MedicalImage
from medmamba.inference.prediction import Prediction
from medmamba.models.run_folder import RunFolder
from medmamba.pages.picture import EDGE, draw_case, outline, sheet
from medmamba.preprocessing.case import plan_display, preprocess_case
from medmamba.preprocessing.store import CaseReader, write_case
from medmamba.run_report.cross_validation import CaseScore, ShownCase
from medmamba.run_report.volumes import volume
from medmamba.training import epochs

SHAPE = (16, 20, 12)
GRID = Grid(SHAPE, affine_from((1.0, 1.25, 1.5)))
ORIENTATIONS = all_reorientations()


def patient() -> tuple[np.ndarray, np.ndarray]:
    """An image that is bright at the right anterior edge in all slices, and a label at the left posterior one."""
    image = np.full(SHAPE, 20.0, np.float32)
    image[10:, 13:] = 200
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 2:8, 3:9] = 1
    labels[2:5, 2:7, 7] = 2
    return image, labels


def stored_as(array, how):
    trail = SpatialTrail(GRID).then(Reorient(SHAPE, *how))
    return trail.apply(array[None])[0], trail.grid


def pixels_in(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def check_picture(png: bytes) -> None:
    """The bright edge is at the upper left, the label's colour at the lower right."""
    pixels = pixels_in(png)
    rows, columns = pixels.shape[:2]
    assert (rows, columns) == (EDGE, round(EDGE * 16 / 25))
    upper, left = slice(0, rows // 3), slice(0, columns // 3)
    assert (pixels[upper, left].min(axis=2) > 150).all()
    assert pixels[rows // 2 :, : columns // 3].max() < 100
    orange = np.argwhere((pixels == (0xFF, 0xB0, 0)).all(axis=2)).mean(axis=0)
    assert orange[0] > rows / 2
    assert orange[1] > columns / 2


def pictures_of(page: str) -> list[bytes]:
    return [base64.b64decode(code) for code in re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)"', page)]


@pytest.fixture(scope="module")
def plan_of(small_run):
    plan = RunFolder(small_run).read_plan()
    return plan, plan.default


def test_the_evaluation_shows_all_48_orientations_alike(tmp_path):
    for name in ("masks", "truths", "images"):
        (tmp_path / name).mkdir()
    image, labels = patient()
    for number, how in enumerate(ORIENTATIONS):
        (pixels, grid), (truth, _) = stored_as(image, how), stored_as(labels, how)
        for name, array in (("images", pixels), ("truths", truth), ("masks", np.where(truth == 2, 1, truth))):
            nib.save(nib.Nifti1Image(array, grid.affine), tmp_path / name / f"case_{number:02d}.nii.gz")
    found = run_evaluation(tmp_path / "masks", tmp_path / "truths", images=tmp_path / "images", pictures=48)
    check_picture(next(iter(found.pictures.values())).png)
    assert len(found.pictures) == 48
    assert len({picture.png for picture in found.pictures.values()}) == 1
    assert {picture.place for picture in found.pictures.values()} == {"axial slice 8 of 12"}
    shown = pictures_of((tmp_path / "masks" / "evaluation.html").read_text())
    assert len(shown) == 48
    assert set(shown) == {picture.png for picture in found.pictures.values()}


@pytest.mark.parametrize("how", ORIENTATIONS[::7])
def test_the_page_of_a_prediction_shows_it_too(tmp_path, how):
    (pixels, grid), (labels, _) = (stored_as(array, how) for array in patient())
    made_by = SimpleNamespace(labels={"background": 0, "one": 1, "two": 2}, as_dict=dict)
    prediction = Prediction(
        labels, grid, {"one": 0.1}, {"one": 9}, like=MedicalImage(pixels[None], grid), provenance=made_by
    )
    prediction.save_report(tmp_path / "p.html")
    (png,) = pictures_of((tmp_path / "p.html").read_text())
    check_picture(png)


@pytest.mark.parametrize("how", ORIENTATIONS[::5])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_dataset_the_training_and_the_report_show_a_preprocessed_case_alike(
    tmp_path, plan_of, monkeypatch, how, order
):
    plan, configuration = plan_of
    spacing = tuple((1.0, 1.25, 1.5)[axis] for axis in order)
    configuration = configuration.model_copy(update={"spacing_mm": list(spacing)})
    plan = plan.model_copy(update={"axis_order": list(order)})
    (pixels, grid), (labels, _) = (stored_as(array, how) for array in patient())
    made = preprocess_case("c", pixels[None], grid, plan, configuration, labels)
    assert made.labels is not None
    display = Display(made.trail.grid, plan.axis_order)
    thumbnail = draw_case(display, [1, 2], coloured=made.labels, image=made.image)
    check_picture(thumbnail.png)
    affine = made.trail.grid.affine
    write_case(tmp_path / "new" / "c", "c", made.image, made.labels, chunk=(8, 8, 8), affine=affine)
    write_case(tmp_path / "old" / "c", "c", made.image, made.labels, chunk=(8, 8, 8))
    monkeypatch.setattr(epochs, "predict_logits", lambda network, image, *rest: _logits(made.labels))
    for age in ("new", "old"):  # cases of earlier versions have no affine
        case = CaseReader(tmp_path / age / "c")
        assert (case.affine is None) == (age == "old")
        found = epochs.validate(torch.nn.Identity(), [case], plan, configuration, torch.device("cpu"))
        assert found.mean == 1
        check_picture(found.examples["c"].png)
        shown = plan_display(made.labels.shape, plan, configuration, case.affine)
        report = ShownCase(CaseScore("c", "fold_0", {}), made.image[:1], made.labels, made.labels, shown)
        viewed = volume("best", report, plan.normalization[0])
        assert viewed["shape"] == list(SHAPE)
        np.testing.assert_allclose(viewed["spacing"], (1.0, 1.25, 1.5))
        assert viewed["letters"] == ["RL", "AP", "SI"]
        sheet = pixels_in(base64.b64decode(viewed["sheet"].split(",")[1])).reshape(*SHAPE, 3)
        assert sheet[:6, :7, :, 0].min() == 255  # right, anterior
        assert sheet[6:, 7:, :, 0].max() == 0
        assert set(np.unique(sheet[..., 1])) == {0, 1, 2}
        assert (sheet[..., 1] == sheet[..., 2]).all()
        labelled = np.argwhere(sheet[..., 1] == 2)
        assert labelled.min(axis=0).tolist() == [11, 13, 4]  # counted from right, anterior, superior
        assert labelled.max(axis=0).tolist() == [13, 17, 4]


def _logits(labels: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(labels == value).float() for value in range(3)])


def test_a_photograph_is_shown_as_it_is_stored_and_in_colour():
    photograph = np.zeros((3, 40, 20, 1), np.float32)  # red and wide, its first row green
    photograph[0] = 9
    photograph[:, :, 0] = np.array([0, 9, 0])[:, None, None]
    labels = np.zeros((40, 20, 1), np.uint8)
    labels[30:39, 10:19] = 1
    for display, order in ((Display(Grid((40, 20, 1))), (0, 1, 2)), (Display(Grid((1, 40, 20)), (2, 0, 1)), (2, 0, 1))):
        picture = draw_case(
            display,
            [1],
            coloured=labels.transpose(order),
            image=photograph.transpose(0, *(1 + axis for axis in order)),
        )
        pixels = pixels_in(picture.png)
        assert pixels.shape == (160, 320, 3)
        assert (pixels[:8] == (0, 255, 0)).all()
        assert (pixels[8:80] == (255, 0, 0)).all()
        assert (pixels[80, 240] == (0xFF, 0xB0, 0)).all()
        assert picture.place == ""


def test_white_lies_behind_colour_and_the_slice_with_most_differences_is_shown():
    truth = np.zeros((20, 20, 9), np.uint8)
    truth[2:10, 2:10, 2:7] = 1
    found = truth.copy()
    found[2:10, 8:14, 5] = 1
    picture = draw_case(Display(Grid((20, 20, 9), np.eye(4))), [1], coloured=found, white=truth)
    assert (picture.slice_number, picture.slices, picture.plane) == (6, 9, "axial")
    pixels = pixels_in(picture.png)
    white, orange = ((pixels == colour).all(axis=2).sum() for colour in ((255, 255, 255), (0xFF, 0xB0, 0)))
    assert 0 < white < orange


def test_an_outline_is_the_rim_of_a_mask():
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    assert outline(mask).sum() == 12
    assert not outline(mask)[2:4, 2:4].any()


def test_a_sheet_keeps_captions_inside_their_place():
    picture = draw_case(Display(Grid((8, 8, 1))), [1], coloured=np.zeros((8, 8, 1), np.uint8)).png
    names = {f"{'a very long name of a case ' * 5}{number}": picture for number in range(3)}
    pixels = pixels_in(sheet(names, {"truth": "white"}, 2))
    assert pixels.shape == (2 * (EDGE + 32) + 16, 2 * (EDGE + 16), 3)
    assert pixels[16:32, :EDGE].max() > 200  # the caption
    assert pixels[16:32, EDGE : EDGE + 16].max() == 0  # and nothing between it and the next
