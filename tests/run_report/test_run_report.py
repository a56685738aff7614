"""The page of a run: complete, self-contained, and working in a real browser."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.geometry.display import Display
from medmamba.models.run_folder import RunFolder
from medmamba.pages.volume import MOST_VALUES, steps_to
from medmamba.plans.schema import Normalization
from medmamba.run_report.cross_validation import SHOWN, CaseScore, CrossValidation, ShownCase
from medmamba.run_report.volumes import viewer_data, volume
from medmamba.run_report.write import run_page, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def case(name: str, dice: float, fold: str = "fold_0", shape=(12, 20, 16)) -> ShownCase:
    rng = np.random.default_rng(0)
    truth = np.zeros(shape, np.int16)
    truth[4:8, 5:12, 4:9] = 1
    truth[4:8, 12:16, 4:9] = 2
    prediction = np.roll(truth, round(4 * (1 - np.nan_to_num(dice))), axis=1)
    image = rng.normal(size=shape).astype(np.float32) + truth
    score = CaseScore(name, fold, {"Anterior": dice, "Posterior": math.nan})
    return ShownCase(score, image[None], truth, prediction, Display(Grid(shape, np.diag([2.0, 1.0, 1.0, 1.0]))))


def crossed() -> CrossValidation:
    found = CrossValidation("3d_fullres", held_out=True)
    for n in range(8):
        found.add(case(f"case_{n}", 0.1 * n + 0.1, f"fold_{n % 2}"))
    return found


def test_the_worst_and_the_best_cases_are_kept_and_means_leave_out_what_is_undefined():
    found = crossed()
    assert [kept.score.case_id for kept in found.worst] == [f"case_{n}" for n in range(SHOWN)]
    assert [kept.score.case_id for kept in found.best] == ["case_7", "case_6", "case_5"]
    mean, deviation, count = found.mean("Anterior", "fold_0")
    assert (round(mean, 6), count) == (0.4, 4)
    assert deviation == pytest.approx(np.std([0.1, 0.3, 0.5, 0.7]))
    assert math.isnan(found.mean("Posterior")[0])
    found.add(case("empty", math.nan))
    assert "empty" not in [kept.score.case_id for kept in (*found.worst, *found.best)]


ZSCORE = Normalization(scheme="zscore", use_mask=False)


def test_a_large_volume_is_thinned_out_along_its_finest_axes_and_keeps_its_millimetres():
    assert steps_to((10, 480, 16), (3.0, 1.0, 3.0), 10 * 160 * 16) == (1, 3, 1)
    assert steps_to((20, 512, 512), (5.0, 0.7, 0.7), 2_000_000) == (1, 2, 2)
    assert steps_to((20, 30, 1), (1.0, 1.0, 0.1), 600) == (1, 1, 1)
    shown = volume("best", case("x", 0.5, shape=(200, 220, 100)), ZSCORE)
    assert shown["shape"] == [200, 110, 50]
    assert shown["spacing"] == [2.0, 2.0, 2.0]
    assert math.prod(shown["shape"]) <= MOST_VALUES


def test_the_viewer_gets_hounsfield_units_and_the_windows_inside_their_range(tiny_run):
    plan = RunFolder(tiny_run).read_plan()
    ct = Normalization(scheme="ct", use_mask=False, mean=100.0, std=50.0, percentile_00_5=-50, percentile_99_5=250)
    shown = case("x", 0.5)
    shown.image[:] = np.linspace(-3, 3, shown.image.size).reshape(shown.image.shape)  # -50 to 250 HU
    data = viewer_data(plan.model_copy(update={"normalization": [ct]}), [("best", shown)])
    (viewed,) = data["cases"]
    assert data["unit"] == "HU"
    np.testing.assert_allclose(viewed["range"], (-50, 250), atol=1)
    np.testing.assert_allclose(viewed["window"], (297, 100), atol=1)
    assert data["presets"] == [["soft tissue", 400, 40], ["liver", 150, 30], ["brain", 80, 40]]
    other = viewer_data(plan, [("best", shown)])
    assert (other["unit"], other["presets"]) == ("", [])
    np.testing.assert_allclose(other["cases"][0]["range"], (-3, 3), atol=0.01)


def test_a_photograph_is_viewed_in_colour():
    score = CaseScore("p", "fold_0", {})
    labels = np.zeros((1, 8, 6), np.int16)
    image = np.zeros((3, 1, 8, 6), np.float32)
    image[0], image[2, :, :, 0] = 1, 5  # red, the first row with blue
    viewed = volume("best", ShownCase(score, image, labels, labels, Display(Grid((1, 8, 6)), (2, 0, 1))), ZSCORE)
    assert (viewed["shape"], viewed["plane"], viewed["letters"]) == ([8, 6, 1], 2, ["", "", ""])
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(viewed["photograph"].split(",")[1])))).reshape(
        8, 6, 1, 3
    )
    assert pixels[:, 0, 0, 2].min() == 255
    assert pixels[:, 1:, 0, 2].max() == 0


@pytest.fixture
def page(tiny_run) -> str:
    run = RunFolder(tiny_run)
    return run_page(run, run.read_plan(), crossed(), ["dataset.html", "training.html"])


def test_the_page_holds_results_reasons_and_links_and_loads_nothing(page, tiny_run):
    plan = RunFolder(tiny_run).read_plan()
    for text in ("case_0", "case_7", "fold_1", 'href="dataset.html"', 'href="training.html"', plan.dataset_name):
        assert text in page
    for decision in plan.default.decisions:
        assert decision.reason in html.unescape(page)
    assert "@media (prefers-color-scheme:dark)" in page
    assert not re.search(r'(src|href)="(?!data:|#|dataset|training)', page)
    assert "http" not in re.sub(r"https?://\S*arxiv\S*", "", page.split('<h2 id="plan">')[0])


def test_labels_cannot_end_the_script_that_holds_the_volumes(tiny_run):
    run = RunFolder(tiny_run)
    plan = run.read_plan()
    name = "<!--<script>&</script>"
    page = run_page(
        run, plan.model_copy(update={"dataset_name": name, "labels": {"background": 0, name: 1}}), crossed(), []
    )
    assert name not in page
    assert page.count("<script") == page.count("</script>") == 3
    data = page.split('id="v-data">')[1].split("</script>")[0]
    assert json.loads(data)["names"] == [name]


def test_a_run_is_cross_validated_and_the_page_written(tiny_run, tmp_path, small_run):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(InputError, match="no preprocessed cases"):
        write_report(run)
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    found = write_report(run, device="cpu")
    assert found.held_out
    assert found.folds() == ["fold_0", "fold_1"]
    splits = RunFolder(run).read_splits()
    assert [score.case_id for score in found.scores] == splits[0]["val"] + splits[1]["val"]
    record = json.loads((run / "report" / "cross_validation.json").read_text())
    assert len(record["cases"]) == len(found.scores)
    assert (run / "report" / "index.html").stat().st_size > 10_000


DRIVER = """<script>
addEventListener("load", () => setTimeout(async () => {
  const part = (name) => document.getElementById("v-" + name), out = {};
  const wait = (ms = 200) => new Promise((done) => setTimeout(done, ms));
  const planes = ["axial", "sagittal", "coronal"];
  const pixels = (name) => part(name).getContext("2d").getImageData(0, 0, part(name).width, part(name).height).data;
  const mark = (name) => Array.from(pixels(name)).reduce((sum, v, i) => (sum * 31 + v * (i % 7 + 1)) % 1000000007, 7);
  const marks = async () => { await wait(); return planes.map(mark); };
  const place = () => planes.map((name) => part(name).parentElement.querySelector("output").textContent);
  const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const mouse = (name, kind, x, y, button = 0) => part(name).dispatchEvent(new PointerEvent(kind, {
    pointerId: 1, button, clientX: part(name).getBoundingClientRect().left + x,
    clientY: part(name).getBoundingClientRect().top + y, bubbles: true, cancelable: true }));
  for (const name of planes) part(name).setPointerCapture = () => {};
  const white = () => { let n = 0; const d = pixels("axial");
    for (let i = 0; i < d.length; i += 4) n += d[i] === 255 && d[i + 1] === 255 && d[i + 2] === 255;
    return n; };
  out.cases = part("case").options.length;
  out.first = await marks(); out.place = place(); out.white = white();
  press(part("axial"), "PageDown"); out.slice = await marks(); out.place1 = place();
  press(part("axial"), "ArrowLeft"); out.left = await marks(); out.place2 = place();
  part("coronal").dispatchEvent(new WheelEvent("wheel", { deltaY: 120, cancelable: true }));
  out.wheel = await marks(); out.place3 = place();
  mouse("axial", "pointerdown", 3, 3); mouse("axial", "pointerup", 3, 3);
  out.click = await marks(); out.place4 = place();
  const before = [part("width").value, part("level").value];
  for (const [kind, x, y] of [["pointerdown", 50, 50], ["pointermove", 90, 70], ["pointerup", 90, 70]])
    mouse("axial", kind, x, y, 2);
  out.window = await marks();
  out.windowed = [part("width").value, part("level").value].map((v, i) => Number(v) - Number(before[i]));
  press(part("axial"), "+"); out.zoom = await marks();
  press(part("axial"), "t"); out.untruth = await marks(); out.unwhite = white();
  press(part("axial"), "f"); out.unfilled = await marks();
  press(part("axial"), "l"); out.unlabelled = await marks();
  press(part("axial"), "x"); out.uncrossed = await marks();
  press(part("axial"), "Enter"); await wait(); out.large = part("coronal").clientWidth === 0;
  press(part("axial"), "0"); await wait();
  document.querySelectorAll("[data-case]")[1].click(); await wait();
  out.other = await marks(); out.chosen = part("case").value; out.presets = part("presets").children.length;
  const details = document.querySelector("details"), table = details.querySelector("table");
  details.querySelector("summary").click();
  out.open = details.open;
  const column = () => [...table.tBodies[0].rows].map((row) => row.cells[2].textContent);
  const button = table.tHead.rows[0].cells[2].querySelector("button");
  button.click(); out.up = column(); button.click(); out.down = column();
  out.sort = table.tHead.rows[0].cells[2].getAttribute("aria-sort");
  document.body.setAttribute("data-out", JSON.stringify(out));
}, 800));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_viewer_answers_to_mouse_and_keys_in_a_real_browser(page, tmp_path):
    path = tmp_path / "index.html"
    frames = "<script>window.requestAnimationFrame = (draw) => setTimeout(draw, 16);</script>"  # virtual time has none
    path.write_text(page.replace("<head>", "<head>" + frames).replace("</body>", DRIVER + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1280,900"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    found = re.search(r'data-out="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(found.group(1)))
    assert out["cases"] == 2 * SHOWN
    places = [[int(re.search(r"(\d+) of", text)[1]) for text in out[f"place{n or ''}"]] for n in range(5)]
    assert [text.split(" of ")[1] for text in out["place"]] == ["16", "12", "20"]
    axial, sagittal, coronal = places[0]
    assert places[1] == [axial - 1, sagittal, coronal]  # towards inferior; slices are counted from there
    assert places[2] == [axial - 1, sagittal + 1, coronal]  # to the patient's right
    assert places[3] == [axial - 1, sagittal + 1, coronal - 1]  # towards posterior
    assert places[4] == [axial - 1, 12, 20]  # upper left of an axial slice: right, anterior
    wider, lower = out["windowed"]
    assert wider > 0 > lower
    assert out["white"] > 20
    assert out["unwhite"] < out["white"]
    steps = (
        "first",
        "slice",
        "left",
        "wheel",
        "click",
        "window",
        "zoom",
        "untruth",
        "unfilled",
        "unlabelled",
        "uncrossed",
        "other",
    )
    assert len({tuple(out[name]) for name in steps}) == len(steps), out
    assert (out["chosen"], out["open"], out["large"], out["presets"]) == ("1", True, True, 2)
    assert out["up"] == sorted(out["up"], key=float)
    assert (out["down"], out["sort"]) == (out["up"][::-1], "descending")
