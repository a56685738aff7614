"""Folders of masks: tables, intervals, comparisons, subgroups and the page."""

from __future__ import annotations

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest

from medmamba.cli.main import run as medmamba
from medmamba.errors import InputError, InputErrors
from medmamba.evaluation.report import evaluate_folders
from medmamba.evaluation.run import run_evaluation
from medmamba.evaluation.statistics import bootstrap_interval, holm, paired_difference, summarise

CASES = 8


def save(folder, name, labels, spacing=(1.0, 1.0, 2.0)):
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")


@pytest.fixture
def folders(tmp_path):
    """Truth, a good prediction and one that is shifted by one voxel more in every case; case_3 is the worst."""
    random = np.random.default_rng(0)
    for number in range(CASES):
        truth = np.zeros((24, 20, 12), int)
        size = int(random.integers(5, 9))
        truth[4 : 4 + size, 4 : 4 + size, 2:8] = 1
        truth[16:20, 10:14, 4:8] = 2
        shift = 4 if number == 3 else number % 2
        save(tmp_path / "truth", f"case_{number}", truth)
        save(tmp_path / "good", f"case_{number}", np.roll(truth, shift, axis=0))
        save(tmp_path / "worse", f"case_{number}", np.roll(truth, shift + 1, axis=0))
    return tmp_path


def test_every_metric_of_every_case_and_structure_is_in_the_table(folders):
    result = run_evaluation(folders / "good", folders / "truth", output=folders / "out")
    rows = list(csv.DictReader((folders / "out" / "evaluation.csv").open()))
    assert len(rows) == CASES * 2
    for row in rows:
        score = result.evaluation.cases[row["case"]][row["structure"]]
        assert float(row["hd95_mm"]) == pytest.approx(score.value("hd95_mm"))
        assert float(row["dice"]) == pytest.approx(score.value("dice"))
    record = json.loads((folders / "out" / "evaluation.json").read_text())
    summary = record["summary"]["label_1"]["dice"]
    assert summary["low"] <= summary["mean"] <= summary["high"]
    assert record["metrics"]["hd95_mm"]["unit"] == "mm"
    assert record["cases"]["case_0"]["label_1"]["hd95_px"] is None
    assert record["nsd_tolerance_mm"] == 1


def test_the_page_needs_nothing_else_and_shows_the_worst_case_first(folders):
    run_evaluation(folders / "good", folders / "truth", output=folders / "out", images=folders / "truth", pictures=2)
    page = (folders / "out" / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<script") == 1  # that sorts tables
    every = page.split("Cases, the worst first")[1]
    places = [every.index(f"<td>case_{number}</td>") for number in range(CASES)]
    assert min(places) == places[3]


def test_a_page_holds_no_more_pictures_than_open_quickly(folders, monkeypatch):
    monkeypatch.setattr("medmamba.evaluation.run.MOST_PICTURE_MIB", 0.001)
    found = run_evaluation(folders / "good", folders / "truth", output=folders / "out", pictures=CASES)
    sizes = [len(picture.png) for picture in found.pictures.values()]
    assert sum(sizes[:-1]) <= 1000 < sum(sizes)
    assert f"<p>{len(sizes)} of {CASES} cases, each" in (folders / "out" / "evaluation.html").read_text()


def test_names_cannot_put_code_into_the_page(folders):
    save(folders / "truth", "<script>x", np.ones((4, 4, 4)))
    save(folders / "good", "<script>x", np.ones((4, 4, 4)))
    run_evaluation(folders / "good", folders / "truth", output=folders / "out")
    assert "<script>x" not in (folders / "out" / "evaluation.html").read_text()


def test_a_paired_comparison_has_the_sign_the_interval_and_the_test(folders):
    result = run_evaluation(folders / "good", folders / "truth", output=folders / "out", other=folders / "worse")
    assert result.comparison is not None
    found = result.comparison.differences["label_1"]["dice"]
    assert found.pairs == CASES
    assert found.high < 0
    assert found.lower == CASES
    assert found.p == pytest.approx(2 / 2**CASES)  # all eight differences negative: the smallest p there is
    assert found.p_holm >= found.p
    hd = result.comparison.differences["label_1"]["hd95_mm"]
    assert hd.difference > 0
    rows = list(csv.DictReader((folders / "out" / "comparison.csv").open()))
    assert {row["structure"] for row in rows} == {"label_1", "label_2", "mean of structures"}


def test_a_folder_compared_with_itself_shows_no_difference(folders):
    result = run_evaluation(folders / "good", folders / "truth", output=folders / "out", other=folders / "good")
    assert result.comparison is not None
    found = result.comparison.differences["label_2"]["dice"]
    assert (found.difference, found.low, found.high, found.p, found.equal) == (0, 0, 0, 1, CASES)


def test_subgroups_come_from_a_table(folders):
    lines = ["case,site,age,remark"] + [f"case_{n},{'AB'[n % 2]},{40 + n},{'x' * n}" for n in range(CASES)]
    (folders / "groups.csv").write_text("\n".join(lines))
    result = run_evaluation(
        folders / "good", folders / "truth", output=folders / "out", subgroups=folders / "groups.csv"
    )
    cases = result.subgroups["site"]["A"]
    assert result.evaluation.summary("dice", "label_1", cases).defined == CASES // 2
    record = json.loads((folders / "out" / "subgroups.json").read_text())
    assert record["site"]["B"]["cases"] == CASES // 2


def test_a_case_missing_in_the_table_of_subgroups_is_named(folders):
    (folders / "groups.csv").write_text("case,site\ncase_0,A\n")
    with pytest.raises(InputError, match=r"7 case\(s\) are not in the table, the first is case_1"):
        run_evaluation(folders / "good", folders / "truth", subgroups=folders / "groups.csv")


def test_missing_predictions_fail_unless_counted_as_empty(folders):
    (folders / "good" / "case_5.nii.gz").unlink()
    with pytest.raises(InputErrors, match="case_5: no prediction"):
        run_evaluation(folders / "good", folders / "truth", output=folders / "out")
    assert not (folders / "out").exists()
    result = run_evaluation(folders / "good", folders / "truth", output=folders / "out", missing="empty")
    assert result.evaluation.cases["case_5"]["label_1"].value("dice") == 0
    assert result.evaluation.missing == ("case_5",)
    assert result.evaluation.summary("hd95_mm", "label_1").infinite == 1


def test_another_grid_and_a_damaged_file_are_told_in_one_pass(folders):
    save(folders / "good", "case_1", np.zeros((24, 20, 12)), spacing=(1.0, 1.0, 2.5))
    path = folders / "good" / "case_2.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputErrors) as caught:
        run_evaluation(folders / "good", folders / "truth")
    assert "case_1: truth and prediction differ in spacing" in str(caught.value)
    assert "case_2" in str(caught.value)


def test_a_structure_absent_everywhere_stays_out_of_the_mean(folders):
    paths = {name: folders / "truth" / f"{name}.nii.gz" for name in ("case_0", "case_1")}
    evaluation = evaluate_folders(paths, paths, {"one": (1,), "absent": (9,)})
    assert evaluation.mean_foreground == 1
    assert math.isnan(evaluation.mean_per_label()["absent"])
    assert evaluation.summary("dice", "absent").defined == 0


def test_labels_and_regions_take_their_names_from_the_report(folders):
    report = {
        "model": {"labels": {"background": 0, "liver": 1, "tumour": 2}, "regions": {"whole": ["liver", "tumour"]}}
    }
    (folders / "good" / "report.json").write_text(json.dumps(report))
    result = run_evaluation(folders / "good", folders / "truth", output=folders / "out")
    assert list(result.evaluation.structures) == ["liver", "tumour", "whole"]
    assert result.evaluation.cases["case_0"]["whole"].value("dice") == 1


def test_the_command_prints_tables_and_writes_the_files(folders, capsys):
    with pytest.raises(SystemExit) as stop:
        medmamba(["evaluate", str(folders / "good"), str(folders / "truth"), "--compare", str(folders / "worse")])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "NSD" in text
    assert "worse minus good" in text


def test_the_tables_of_the_command_fit_80_columns(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = {"background": 0, "left_atrial_appendage": 1, "pulmonary_vein_superior": 2}
    (folders / "good" / "report.json").write_text(json.dumps({"model": {"labels": names}}))
    with pytest.raises(SystemExit):
        medmamba(["evaluate", str(folders / "good"), str(folders / "truth"), "-o", str(folders / "out")])
    lines = capsys.readouterr().out.split("evaluation.html")[0].splitlines()
    assert max(map(len, lines)) <= 80
    for name in [*names][1:]:
        assert any(line.startswith(name) for line in lines), lines
    assert sum(line.startswith("structure") for line in lines) > 1  # in parts, none of it left out
    assert any("lesion" in line for line in lines)


def test_every_table_of_the_page_can_be_sorted_and_has_a_dark_mode(folders):
    run_evaluation(folders / "good", folders / "truth", output=folders / "out")
    page = (folders / "out" / "evaluation.html").read_text()
    assert "@media (prefers-color-scheme:dark)" in page
    assert 'name="viewport" content="width=device-width' in page
    assert page.count("<table") == page.count("sortable") - page.count("table.sortable") > 1


def test_the_mean_of_known_values_has_a_known_interval():
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    low, high = bootstrap_interval(tuple(values))
    half = 1.96 * values.std() / math.sqrt(len(values))  # 0.0098; the bootstrap's own error is a tenth of it
    assert low == pytest.approx(values.mean() - half, abs=0.002)
    assert high == pytest.approx(values.mean() + half, abs=0.002)
    assert bootstrap_interval(tuple(values)) == (low, high)


def test_undefined_values_stay_out_and_infinite_ones_are_counted():
    found = summarise([1.0, math.nan, 3.0, math.inf])
    assert (found.defined, found.infinite, found.mean, found.median) == (3, 1, 2.0, 3.0)
    difference = paired_difference([1.0, math.nan, math.inf], [2.0, math.nan, 1.0])
    assert (difference.pairs, difference.left_out, difference.difference) == (1, 1, 1.0)


def test_holm_corrects_step_by_step():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
