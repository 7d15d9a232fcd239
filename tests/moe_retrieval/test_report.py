"""python -m moe_retrieval.report: a page of what the real commands left, and what a browser makes of it."""

import json
import re
import sys

import numpy as np
import pytest

from moe_retrieval.analyze import AnalyzeConfig, analyze
from moe_retrieval.compare import CompareConfig, compare
from moe_retrieval.errors import InputError
from moe_retrieval.report import ReportConfig, report
from moe_retrieval.reporting import library
from moe_retrieval.reporting.assembly import assemble
from moe_retrieval.reporting.sources import read_sources
from moe_retrieval.train import main
from moe_retrieval.training import comparison
from tests.moe_retrieval.chromium import look
from tests.moe_retrieval.rare_words import SCRATCH, write_collection

EVIL = "</script><script>document.title='obeyed'</script><img src=x onerror=\"document.title='obeyed'\">"
PARTS = [
    "Result", "By how far down one looks", "By num-experts", "What the experts do", "Balance over training",
    "Where embeddings lie", "Costs", "Training", "Query by query",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A comparison with a sweep, of texts that would be a program, and an analysis of one of its runs."""
    folder = tmp_path_factory.mktemp("home")
    write_collection(folder / "collection")
    for name in ("corpus", "queries"):
        path = folder / "collection" / f"{name}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, line in enumerate(lines):
            line |= {"text": f"{line['text']} {EVIL}"}
            line |= {"metadata": {"domain": f"odd {EVIL}" if number % 3 else "thirds"}} if name == "corpus" else {}
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = SCRATCH | dict(num_experts=3, max_steps=20, batch_size=16, eval_every=10, precision="fp32", lr=0.01)
    config = CompareConfig(
        **flags, dataset=str(folder / "collection"), output_dir=str(folder / "runs"), seeds=2,
        variants="dense,sb-moe", sweep="num-experts=2,3",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "train_apart", main)
        compare(config)
    run, output = folder / "runs" / "sb-moe-seed0", folder / "runs" / "analysis"
    analyze(AnalyzeConfig(str(run), str(output), str(folder / "collection"), precision="fp32"))
    return folder


@pytest.fixture(scope="module")
def page(home):
    return report(ReportConfig(str(home / "runs")))


def test_every_part_is_there_and_every_plot_lies_beside_the_page(home, page):
    assert page == home / "runs" / "report" / "report.html"
    assert re.findall(r"<h2>([^<]*)</h2>", page.read_text()) == PARTS
    made = assemble(read_sources(home / "runs"), 500, None, None)
    lie_there = {path.name for path in (home / "runs" / "report" / "plots").iterdir()}
    assert lie_there == {f"{plot.name}.{kind}" for plot in made.plots() for kind in ("png", "svg")}
    assert len(lie_there) > 40


def test_figures_are_those_of_the_commands(home):
    made = {part.title: part for part in assemble(read_sources(home / "runs"), 500, None, None).parts}
    written = json.loads((home / "runs" / "comparison.json").read_text())["systems"]
    queries = made["Query by query"].items[0].content
    assert queries["systems"] == ["dense", "sb-moe"]
    for number, name in enumerate(queries["systems"]):
        scores = [query["scores"][number] for query in queries["queries"]]
        assert np.mean(scores) == pytest.approx(written[name]["measures"]["test"]["NDCG@10"]["mean"], abs=1e-4)
    shares = made["Balance over training"].items[0].plots[0]
    assert [list(line.x) for line in shares.lines] == [[20]] * 3
    assert sum(line.y[0] for line in shares.lines) == pytest.approx(1, abs=0.01)
    titles = [plot.title for plot in made["Where embeddings lie"].items[0].plots]
    assert titles[0] == "analysis: t-SNE by domain"
    assert "analysis: PCA by expert of block" in titles


def test_the_same_again_is_the_same_page(home, page, tmp_path, capsys):
    again = report(ReportConfig(str(home / "runs"), output_dir=str(tmp_path)))
    assert again.read_bytes() == page.read_bytes()
    for plot in (tmp_path / "plots").iterdir():
        assert plot.read_bytes() == (page.parent / "plots" / plot.name).read_bytes()
    assert f"{again}: {', '.join(PARTS)}" in capsys.readouterr().out


def test_without_the_library_the_plots_are_pictures(home, tmp_path, monkeypatch, capsys):
    library.plotly_js.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    page = report(ReportConfig(str(home / "runs"), output_dir=str(tmp_path)))
    library.plotly_js.cache_clear()
    assert "its plots are pictures: with pip install 'moe-retrieval[report]'" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<img data-name=") == len(list((tmp_path / "plots").glob("*.png")))
    assert 'id="library"' not in text


def test_what_is_not_there_is_said(home, tmp_path, capsys):
    report(ReportConfig(str(home / "runs" / "analysis"), output_dir=str(tmp_path), queries=0))
    told = capsys.readouterr().out
    assert "not on the page: Sweep (no setting was swept): python -m moe_retrieval.compare --sweep" in told
    assert "not on the page: Query by query (--queries 0 leaves it out)\n" in told
    assert "Result, What the experts do, Where embeddings lie\n" in told


def test_torchrun_and_an_empty_folder_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds nothing to report on"):
        report(ReportConfig(str(tmp_path)))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        report(ReportConfig(str(tmp_path)))


# In a browser.

WATCH = """<script>
const asked = (selector) => [...document.querySelectorAll(selector)];
const pick = (select, value) => { select.value = value; select.dispatchEvent(new Event("change", { bubbles: true })); };
const wait = setInterval(async () => {
  if (document.documentElement.dataset.ready === undefined) return;
  clearInterval(wait);
  const ink = () => asked(".plot .xtick text")[0].style.fill;
  const observed = {
    title: document.title,
    places: asked(".plot").length,
    drawn: asked(".plot").filter((place) => place.querySelector(".main-svg")).length,
    points: asked("#where-embeddings-lie .plot")[0].querySelectorAll(".point").length,
    queries: asked(".query").length,
    why: asked(".query .why")[0].textContent,
    width: [document.documentElement.scrollWidth, innerWidth],
    to_a_cloud: asked(".plot").some((place) => place._context.showSendToCloud),
    paper: getComputedStyle(document.body).backgroundColor,
    ink: ink(),
  };
  const [search] = asked(".controls input");
  const seek = (words) => { search.value = words; search.dispatchEvent(new Event("input")); };
  seek("THIRDS");
  observed.found = asked(".query .scores").map((each) => each.textContent);
  seek("nothing like this");
  observed.nothing = asked(".query").length;
  seek("");
  observed.gain = asked(".change")[0].textContent;
  pick(asked(".controls select")[2], 1);
  observed.loss = asked(".change")[0].textContent;
  const choice = asked("#where-embeddings-lie select")[0];
  pick(choice, choice.options[choice.options.length - 1].value);
  asked("input[value=dark]")[0].click();
  await new Promise((done) => setTimeout(done, 2000));
  observed.legend = asked("#where-embeddings-lie .plot")[0].textContent;
  observed.dark = getComputedStyle(document.body).backgroundColor;
  observed.darkInk = ink();
  parent.postMessage(JSON.stringify(observed), "*");
}, 100);
</script></html>"""


def watched(page, folder, size):
    """The page with a program that uses it and tells what it sees."""
    path = folder / "watched.html"
    path.write_text(page.read_text().replace("</html>", WATCH))
    return look(path, *size)


@pytest.mark.parametrize("size", [(1200, 900), (390, 844)], ids=["desk", "phone"])
def test_a_browser_draws_it_all_and_complains_of_nothing(home, page, tmp_path, size):
    pytest.importorskip("plotly", reason="plots are pictures without plotly")
    observed, complaints = watched(page, tmp_path, size)
    assert not complaints
    assert observed, "the page was not ready in time"
    assert observed["title"] == "collection, test split"
    assert observed["places"] == observed["drawn"] > 8
    assert observed["points"] == 120 + 20
    assert observed["queries"] == 20
    assert observed["why"].startswith("answers")
    assert observed["width"] == [size[0], size[0]]
    assert not observed["to_a_cloud"]
    assert observed["found"]
    assert all("thirds" in scores for scores in observed["found"])
    assert observed["nothing"] == 0
    asked = assemble(read_sources(home / "runs"), 500, None, None).parts[-1].items[0].content["queries"]
    changes = [query["scores"][1] - query["scores"][0] for query in asked]
    shown = [f"{'−' if change < 0 else '+'}{abs(change):.3f}" for change in (max(changes), min(changes))]
    assert [observed["gain"], observed["loss"]] == shown
    assert observed["legend"] == "documentquery"  # that of the last map, not of the first
    assert observed["paper"] == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", observed["dark"]))) < 150
    assert observed["ink"] != observed["darkInk"]


def test_what_a_browser_complains_of_is_seen(tmp_path):
    """So that a page without complaints says something."""
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><script>parent.postMessage('3', '*'); undefined.x</script>")
    seen = look(page, 390, 844)
    assert seen.told == 3
    assert len(seen.complaints) == 1
    assert "TypeError" in seen.complaints[0]
