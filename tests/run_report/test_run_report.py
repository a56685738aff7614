"""The page of a run: complete, self-contained, and working in a real browser."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from medmamba.errors import InputError
from medmamba.geometry import Grid
from medmamba.geometry.display import Display
from medmamba.models.run_folder import RunFolder
from medmamba.run_report.cross_validation import SHOWN, CaseScore, CrossValidation, ShownCase
from medmamba.run_report.write import LONGEST_EDGE, run_page, volume, write_report

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


def test_a_large_volume_is_thinned_out_and_keeps_its_size_in_millimetres():
    shown = volume("best", case("x", 0.5, shape=(10, 3 * LONGEST_EDGE, 16)))
    assert shown["shape"] == [10, LONGEST_EDGE, 16]
    assert shown["spacing"] == [2.0, 3.0, 1.0]


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
    assert page.count("<script") == page.count("</script>") == 2
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
  const wait = () => new Promise((done) => setTimeout(done, 300));
  const canvas = part("canvas");
  const pixels = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const mark = () => Array.from(pixels()).reduce((sum, v, i) => (sum * 31 + v * (i % 7 + 1)) % 1000000007, 7);
  const white = () => { let n = 0; const d = pixels();
    for (let i = 0; i < d.length; i += 4) n += d[i] === 255 && d[i + 1] === 255 && d[i + 2] === 255;
    return n; };
  out.cases = part("case").options.length; out.first = mark(); out.place = part("place").textContent;
  out.white = white();
  part("slice").value = 0; part("slice").dispatchEvent(new Event("input")); out.slice = mark();
  out.place0 = part("place").textContent;
  part("axis").value = 2; part("axis").dispatchEvent(new Event("change")); out.axis = mark();
  out.size = [canvas.width, canvas.height];
  part("truth").click(); out.untruth = mark(); part("fill").click(); out.filled = mark();
  document.querySelectorAll("[data-case]")[1].click(); await wait();
  out.other = mark(); out.chosen = part("case").value;
  document.querySelector("details").querySelector("summary").click();
  out.open = document.querySelector("details").open;
  document.body.setAttribute("data-out", JSON.stringify(out));
}, 800));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_viewer_answers_to_clicks_in_a_real_browser(page, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(page.replace("</body>", DRIVER + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
         path.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    found = re.search(r'data-out="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    out = json.loads(html.unescape(found.group(1)))
    assert out["cases"] == 2 * SHOWN
    assert re.fullmatch(r"\d+ of 12", out["place"])
    assert out["place0"] == "1 of 12"
    assert out["white"] > 20
    marks = [out[name] for name in ("first", "slice", "axis", "untruth", "filled", "other")]
    assert len(set(marks)) == len(marks), out
    assert out["size"] == [400, 480]  # 20 x 1 mm across, 12 x 2 mm down
    assert (out["chosen"], out["open"]) == ("1", True)
