"""The report: right numbers behind the pictures, one file that needs nothing else, the same bytes again."""

import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.profile import Profile, profile_of
from ekd_nemo.metrics.render import as_json
from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.metrics.summary import summarise
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.report.content import gather
from ekd_nemo.report.figures import FIGURES
from ekd_nemo.report.page import build
from ekd_nemo.report.style import PHASE_COLOURS
from tests.unit.metrics.synthetic import Recorder, make_run

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two repeats of a method, one of its baseline, one run without telemetry."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        make_run(folder, f"a-s{seed}", watts=290 + 10 * seed, recipe="a", baseline="b", seed=seed)
    make_run(folder, "b-s1", watts=200, recipe="b", recipe_hash="b" * 12, method="sft", val_kl=0.9)
    begun = make_run(folder, "<c>-s1", recipe="<c>", recipe_hash="c" * 12)
    shutil.rmtree(begun.telemetry)
    return folder


def profile(run: RunDir, bin_s: float = 1.0) -> Profile:
    found = profile_of(ledger_of_run(run), read_telemetry(run.power_files()), bin_s)
    assert found is not None
    return found


def test_the_profile_holds_the_energy_of_the_run(runs: Path) -> None:
    found = profile(RunDir(runs / "a-s1"), 0.7)
    last = found.edges_s[-1] - 114  # the last bin reaches beyond the run
    energy_j = found.power_w.sum() * 0.7 - found.power_w[-1] * last
    assert energy_j == pytest.approx(2 * 300 * 114)
    assert {uuid: power[3] for uuid, power in found.devices_w.items()} == {
        "GPU-0": pytest.approx(300), "GPU-1": pytest.approx(300),
    }  # fmt: skip
    assert found.phases[0] == (0.0, 8.0, "prerun")


@pytest.mark.parametrize("node", ["n0", "n9"])
def test_a_run_that_went_on_elsewhere_and_was_evaluated_elsewhere_has_its_power(
    tmp_path: Path, node: str
) -> None:
    """The boards of one attempt are not missing in the other's time, nor those of the evaluation in the run's."""
    run = RunDir(tmp_path)
    for name, first, last, attempt, phase in [
        ("n1", 10, 35, 1, "student_train"), ("n2", 10, 25, 2, "student_train"), (node, 5, 30, 2, "eval"),
    ]:  # fmt: skip
        recorder = Recorder(node=name, boot_id=f"b{name}", sampler=name)
        recorder.device(f"GPU-{name}")
        recorder.sample(f"GPU-{name}", 0, 50, lambda _, watts=100.0 * attempt: watts)
        recorder.phase(0, phase, first, last, attempt=attempt, uuids=[f"GPU-{name}"])
        recorder.write(run)
    found = profile(run, 10)
    assert found.power_w == pytest.approx([100, 100, 150, 200])
    assert found.energy_so_far_j[-1] == pytest.approx(25 * 100 + 15 * 200)
    assert set(found.devices_w) == {"GPU-n1", "GPU-n2"}
    assert found.phases == ((0, 25, "student_train"), (25, 40, "student_train"))


def test_attempts_follow_each_other_and_gaps_stay_open(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    recorder = Recorder()
    recorder.device("GPU-0")
    recorder.sample("GPU-0", 0, 300, lambda t: 100.0 if t < 60 else 200.0)
    recorder.telemetry = [line for line in recorder.telemetry if not 20 < line.t_mono_ns / 1e9 < 30]
    recorder.phase(0, "student_train", 10, 50)
    recorder.phase(0, "student_train", 200, 220, attempt=2)
    recorder.write(run)
    power = profile(run).power_w
    assert len(power) == 60
    assert power[:10] == pytest.approx(100)
    assert np.isnan(power[10:20]).all()
    assert power[20:40] == pytest.approx(100)
    assert power[40:] == pytest.approx(200)


def test_energy_so_far_and_shares_of_phases(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a-s1", watts=250)
    found = profile(run, 3.7)
    assert found.energy_so_far_j[-1] == pytest.approx(500 * 114, rel=1e-6)  # two boards
    assert (np.diff(found.energy_so_far_j) >= 0).all()
    shares = found.phase_shares(np.linspace(0, found.end_s, 58))  # stretches of two seconds
    assert list(shares) == ["prerun", "student_train", "checkpoint"]
    assert sum(share.sum() for share in shares.values()) * 2 == pytest.approx(8 + 100 + 5)
    assert shares["prerun"].max() <= 1 + 1e-9


def test_a_picture_shows_long_phases_alone_and_short_ones_in_blocks() -> None:
    turns = [(10.0 + at, 10.5 + at, "teacher_forward") for at in range(80)]
    steps = [(start + 0.5, start + 1.0, "student_train") for start, _, _ in turns]
    phases = ((0.0, 10.0, "prerun"), *sorted(turns + steps), (90.0, 95.0, "checkpoint"))
    found = Profile(np.arange(121.0), np.ones(120), {}, phases, 120.0)
    edges = found.phase_edges_s
    assert {0.0, 10.0, 90.0, 95.0, 120.0} <= set(edges)
    assert np.diff(edges).max() == 10.0  # a twelfth of the run; each block holds ten turns
    shares = found.phase_shares(edges)
    mixed = (edges[:-1] >= 10) & (edges[:-1] < 90)
    assert shares["teacher_forward"][mixed] == pytest.approx(0.5)
    assert shares["student_train"][mixed] == pytest.approx(0.5)
    assert shares["checkpoint"][edges[:-1] == 90] == pytest.approx(1)
    assert not any(share[edges[:-1] >= 95].any() for share in shares.values())  # idle is the rest


def test_phases_are_shaded_behind_the_energy_of_each_method(runs: Path) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    for folders, plots in (([runs / "a-s1"], 1), ([runs], 3)):
        figure = FIGURES["cumulative_energy"].draw(gather(folders))
        assert isinstance(figure, Figure)
        assert len(figure.axes) == plots
        for axes in figure.axes[-2:]:
            shaded = {to_hex(patch.get_facecolor()) for patch in axes.patches}
            assert shaded == {PHASE_COLOURS[p] for p in ("prerun", "student_train", "checkpoint")}
            assert max(p.get_zorder() for p in axes.patches) < axes.lines[0].get_zorder()
            reach = [p.get_extents().transformed(axes.transAxes.inverted()) for p in axes.patches]
            assert max(box.y1 for box in reach) == pytest.approx(1)  # up to the top of the plot


class _Tags(HTMLParser):
    """Counts tags and what they point at; complains of an end without its start."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_file_with_every_figure_and_nothing_from_elsewhere(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "one.html", tmp_path / "one"
    assert main(["report", "build", str(runs), "--out", str(out), "--figures", str(folder)]) == 0
    drawn = sorted(path.stem for path in folder.glob("*.png"))
    assert sorted(path.stem for path in folder.glob("*.pdf")) == drawn
    assert {"power_over_time", "energy_views", "energy_and_quality"} < set(drawn)
    text = out.read_text()
    told = capsys.readouterr().out
    assert f"{len(drawn)} of {len(FIGURES)} figures" in told
    assert "  temperature: n/a: no run has records of temperature" in told
    tags = _Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.seen.count("figure") == tags.seen.count("svg") == len(drawn)
    assert "script" not in tags.seen
    assert all(link.startswith(("#", "data:")) for link in tags.links)
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(ids)
    for name in FIGURES.keys() - set(drawn):
        assert re.search(rf'<h3 id="{name}">[^<]*</h3>\n<p class="absent">n/a: \w', text), name
    assert "&lt;c&gt;-s1" in text
    assert not re.search(r"<c>", text)
    found = re.search(r'download="summary.json" href="data:application/json;base64,([^"]*)"', text)
    assert found is not None
    assert b64decode(found[1]).decode() == as_json(summarise([runs]))


def test_the_same_records_give_the_same_bytes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: FIGURES[name] for name in ("power_over_time", "energy_views", "power_of_runs")}
    monkeypatch.setattr("ekd_nemo.report.page.FIGURES", some)
    monkeypatch.setattr("ekd_nemo.report.page.SECTIONS", {"Some": tuple(some.values())})
    files = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.html"
        build(gather([runs]), out, tmp_path / name)
        pictures = sorted((tmp_path / name).iterdir())
        files.append([out.read_bytes(), *(path.read_bytes() for path in pictures)])
    assert len(files[0]) == 7
    assert files[0] == files[1]


def test_runs_without_telemetry_give_tables_and_no_power(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "runs", "a-s1")
    shutil.rmtree(run.telemetry)
    out = tmp_path / "r.html"
    assert main(["report", "build", str(tmp_path / "runs"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"0 of {len(FIGURES)} figures" in told
    assert "  power_over_time: n/a: no run has power records" in told
    text = out.read_text()
    assert "No run has a record of energy." in text
    assert "no marks in telemetry/" in text


def test_a_folder_without_runs_leaves_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "build", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "."], "--out .: is a folder"),
        (["--out", "gone/r.html"], "--out gone/r.html: the folder"),
        (["--out", "r.html", "--figures", "file"], "--figures file: is a file"),
    ],
)
def test_places_that_cannot_be_written_to_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["report", "build", "runs", *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {says}")
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
