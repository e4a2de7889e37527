"""The report of a run: complete, self-contained, escaped, and right."""

import base64
import html.parser
import io
import json
import math
import os
import re

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from headrace.cases import pictures
from headrace.cases.baseline import Superposition
from headrace.cases.catalogue import find_case
from headrace.cases.command_line import build_app
from headrace.cases.evaluation import evaluate_held_out, ranked
from headrace.cases.report import write_report
from headrace.cases.run_data import RunData
from headrace.online_training.ledger import RecordWriter
from headrace.rom.model_folder import installed_version
from headrace.solvers import MemorySink, Parameters
from headrace.solvers.simulate import simulate
from headrace.surrogates import FNO
from headrace.surrogates.metrics import nrmse
from tests.cases.synthetic_run import make_run


class Elements(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "heat")


@pytest.fixture(scope="module")
def report(run):
    return Elements(write_report(run).read_text(encoding="utf-8"))


def command(*arguments):
    return CliRunner().invoke(build_app(), list(arguments), env={"COLUMNS": "160", "TERM": "dumb"})


def test_every_section_is_there_and_every_tag_is_closed(report):
    assert report.open == []
    sections = {attributes.get("id") for tag, attributes in report.tags if tag == "section"}
    assert sections == {
        "headline", "held-out", "error-over-time", "training", "stream", "simulations", "settings",
    }  # fmt: skip
    for words in ("∂T/∂t", "nRMSE", "VRMSE", "superposition of 6 solves", "still want uses", "never seen", "SHA-256"):
        assert words.lower() in report.text.lower(), words


def test_nothing_is_fetched_from_elsewhere(report, run):
    for tag, attributes in report.tags:
        assert tag not in ("script", "link", "iframe"), tag
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith("data:image/png;base64,"), attributes[name][:60]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)


def test_every_picture_is_a_readable_png_with_a_description(report):
    images = [attributes for tag, attributes in report.tags if tag == "img"]
    assert len(images) >= 8
    for attributes in images:
        assert attributes["alt"]
        data = base64.b64decode(attributes["src"].partition(",")[2], validate=True)
        pixels = matplotlib.image.imread(io.BytesIO(data), format="png")
        assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.01, "an empty picture"


def test_the_headline_is_the_error_on_the_held_out_simulations(report, run):
    """Computed here a second time from the files, with the metrics' own definition."""
    evaluation = evaluate_held_out(RunData.read(run))
    pairs = [evaluation.compare(number) for number in evaluation.files]
    truth, predicted = np.stack([one.states for one, _ in pairs]), np.stack([prediction for _, prediction in pairs])
    expected = float(nrmse(predicted, truth))
    assert evaluation.errors["nrmse"] == pytest.approx(expected, rel=1e-6)
    assert f"{100 * expected:.3g} %" in report.text
    lines = command("evaluate", str(run)).output.splitlines()
    assert lines[-2] == f"validation nRMSE {expected:#.4g}"
    assert lines[-1].startswith("validation VRMSE ")


def test_a_surrogate_that_steps_is_compared_from_its_first_prediction_on(tmp_path):
    model = FNO(modes=2, width=4, layers=1)
    run = make_run(tmp_path / "run", model=model, epochs=1, simulations=1, held_out=1)
    evaluation = evaluate_held_out(RunData.read(run))
    one, predicted = evaluation.compare(1)
    assert predicted.shape == one.states.shape == (101, 1, 8, 8)
    assert (predicted[0] == one.states[0]).all() and (predicted[1] != one.states[1]).any()
    assert len(evaluation.errors["steps"]["times"]) == 100
    assert nrmse(predicted[None, 1:], one.states[None, 1:]) == pytest.approx(evaluation.errors["nrmse"], rel=1e-5)


def test_a_roll_out_that_is_lost_is_the_worst():
    errors = {"simulations": [{"simulation": n, "nrmse": e} for n, e in enumerate((0.3, math.nan, 0.1, math.inf))]}
    assert [one["simulation"] for one in ranked(errors)] == [2, 0, 3, 1]


def test_what_comes_from_a_case_is_escaped(run, tmp_path):
    copy = make_run(tmp_path / "run", epochs=1, simulations=2, held_out=0)
    study = (copy / "study.toml").read_text()
    (copy / "study.toml").write_text(study.replace('class = "MLP"', 'class = "<b>MLP & co</b>"'))
    text = write_report(copy).read_text(encoding="utf-8")
    assert "&lt;b&gt;MLP &amp; co&lt;/b&gt;" in text and "<b>MLP" not in text


def test_a_run_that_has_only_begun_has_a_report_too(tmp_path):
    """No model, no metrics, no held-out file: the report says so instead of failing."""
    run = make_run(tmp_path / "run", epochs=1, simulations=2, held_out=1, finished=False)
    for name in ("metrics.jsonl", "validation.jsonl", "intake.jsonl", "model/config.json", "held_out/sim-000002.h5"):
        (run / name).unlink()
    report = Elements(write_report(run).read_text(encoding="utf-8"))
    assert "has not finished" in report.text and "No held-out simulation is complete yet" in report.text
    status = command("status", str(run))
    assert status.exit_code == 0 and "not started yet" in status.output
    evaluate = command("evaluate", str(run))
    assert evaluate.exit_code == 2 and "--resume" in evaluate.stderr


@pytest.mark.parametrize("early", [False, True])
def test_a_held_out_simulation_without_a_file_is_explained_with_what_makes_it(early, tmp_path):
    run = make_run(tmp_path / "run", epochs=1, simulations=2, held_out=2, finished=False)
    (run / "held_out" / "sim-000002.h5").unlink()
    reason = "it could not be written: [Errno 28] No space left on device"
    with RecordWriter(run / "ledger" / "intake-2.log") as log:
        log.append({"e": "unwritten", "s": 2, "a": 1, "reason": reason})
    with RecordWriter(run / "ledger" / "study-2.log") as log:
        log.append({"e": "session", "n": 2})
        log.append({"e": "finished", **({"early": "enough"} if early else {})})
    text = Elements(write_report(run).read_text(encoding="utf-8")).text
    assert f"Held-out simulation 2 has no file: {reason}." in text and "Held-out simulation 3" not in text
    assert ("`headrace train ... --resume` makes it" in text) == (not early), "what ended early ends there"


def test_a_full_disk_is_said_of_the_file_that_did_not_fit(tmp_path):
    run = make_run(tmp_path / "run", epochs=1, simulations=2, held_out=1)
    (run / f"report.html.{os.getpid()}.tmp").symlink_to("/dev/full")
    done = command("report", str(run))
    assert done.exit_code == 2 and re.search(r"No space left.*make room: '\S+/run/report.html'", done.stderr)
    assert not list(run.glob("report.html*"))


def test_a_package_that_lies_on_the_path_alone_has_no_version():
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-package") == "not installed"


def test_status_tells_what_the_logs_say(run):
    text = command("status", str(run)).output
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert "finished" in text and "7 of 7 completed" in text and "707 of 707" in text
    assert f"{last['windows']:,} windows used, {last['total_windows']:,} aimed at" in text


def test_status_of_a_finished_run_tells_how_the_whole_run_was(tmp_path):
    """The last report of a training, when nothing is left to wait for, says little of the others."""
    run = make_run(tmp_path / "run", epochs=4, simulations=2, held_out=1)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record, starved, speed in zip(records, (0.9, 0.9, 0.8, 0.0), (100.0, 120.0, 110.0, 9000.0), strict=True):
        record.update(starved=starved, samples_per_second=speed)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in command("status", str(run)).output.splitlines())
    assert rows["trainer starved"] == "65%" and rows["samples/s"] == "115"


def test_superposition_is_exact_for_constant_conductivity_and_not_otherwise():
    case = find_case("heat2d", (8, 8)).load()
    baseline = Superposition(case)
    errors = {}
    for beta in (0.0, 2.0):
        values = {"t0": 150.0, "t_left": 480.0, "t_right": 120.0, "t_bottom": 350.0, "t_top": 210.0, "beta": beta}
        sink = MemorySink()
        simulate(case, Parameters(values), sink)
        predicted = baseline.predict(None, [[values[name] for name in case.parameters]], sink.times)[0]
        errors[beta] = float(np.abs(predicted.numpy() - sink.values).max())
    assert errors[0.0] < 1e-2, errors  # K, on a range of 400 K; what the solver's tolerance leaves
    assert errors[2.0] > 1.0, errors


@pytest.mark.parametrize("shape", [(12,), (8, 6), (6, 5, 4)])
def test_pictures_of_one_two_and_three_dimensions(shape):
    times = np.linspace(0, 1, 11)
    truth = np.random.default_rng(0).normal(size=(11, *shape))
    png = pictures.comparison(truth, truth + 0.1, times, field="u", extent=(1.0,) * len(shape))
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    assert min(pixels.shape[:2]) > 150


@pytest.mark.parametrize("losses", [(0.936, 0.611, 0.544), (0.61, 0.65), (0.7,), (0.02, 3.0)])
def test_curves_within_a_decade_have_numbers_beside_them(losses):
    """A short training's losses: the axes begin where their labels end, so there must be some."""
    png = pictures.curves({"loss": (list(range(len(losses))), losses)}, x="batches", y="Loss", logarithmic=True)
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3].min(axis=-1)
    axis = int(np.argmax((pixels < 0.5).mean(axis=0) > 0.5))
    assert (pixels[:, : axis - 8] < 0.5).any(), "left of the axis and its ticks there are words"


def test_frames_show_x_to_the_right_and_y_upwards():
    """A state that is 1 for large x and 0 for small x is bright on the right."""
    values = np.zeros((2, 8, 8))
    values[:, 4:, :] = 1.0
    pixels = matplotlib.image.imread(
        io.BytesIO(pictures.frames({"u": values}, np.array([0.0, 1.0]), (1.0, 1.0))), format="png"
    )
    yellow = (pixels[..., 0] > 0.9) & (pixels[..., 1] > 0.8) & (pixels[..., 2] < 0.3)
    dark = (pixels[..., 0] < 0.35) & (pixels[..., 1] < 0.1) & (pixels[..., 2] > 0.25)
    # The colour bar stands on the far right, so the frame is the left part of the picture.
    frame = slice(0, int(0.8 * pixels.shape[1]))
    columns = [np.nonzero(mask[:, frame])[1] for mask in (yellow, dark)]
    assert columns[0].size > 100 and columns[1].size > 100
    assert columns[0].min() > columns[1].max() - 2
