"""What becomes of a run: its file, its report, its pictures, the README's table, the comparison of two."""

import re
from dataclasses import replace

import pytest

from bench import compare, table
from bench.harness.machine import ROOT
from bench.harness.record import RESULTS, Run, committed
from bench.harness.target import BEST, Target
from bench.reports import markdown, terminal
from bench.reports.plots import draw
from tests.bench.runs import a_layer, a_memory, a_run


def test_a_file_is_read_as_it_was_written(tmp_path):
    layer = a_layer(work={"flops": 1e9, "peak": "gemm_bf16"}, skipped={"liger": "needs a GPU"}, figures={"bytes": 7})
    run = a_run([judged(layer), a_memory()])
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run
    text = (tmp_path / "run.json").read_text()
    assert re.search(r'"kernels": \[ ?0\.00098, 0\.001,', text), "the rounds of a contender share a line"
    (tmp_path / "other.json").write_text('{"targets": []}')
    assert committed(tmp_path) == [tmp_path / "run.json"]
    with pytest.raises(ValueError, match="format must be"):
        Run.load(tmp_path / "other.json")


def judged(case):
    best, dense = Target("kernels", BEST, least=1.5), Target("kernels", "dense", most=1.0)
    case.verdicts = [best.verdict("loop", 2.0, 2.0408), dense.verdict("dense", 1.1111, 1.0889, 0.25)]
    return case


def test_report():
    fit = replace(a_layer(), ours="", name="over tokens", fit={"kernels": 0.98})
    noisy = replace(a_layer(peer=1.05, spread=0.4), name="noisy one")
    layer = a_layer(work={"flops": 1e8, "peak": "gemm_bf16"}, skipped={"liger": "needs a GPU"})
    latency = replace(a_layer(name="one query"), settings={"latency": True})
    text = "\n".join(terminal.lines(a_run([layer, noisy, fit, a_memory(), latency])))
    assert text.count("\nlayer\n") == 1, "a group is shown once"
    assert "against loop: 2.00x faster (2.00 ms ±0%)" in text
    assert "10% of the measured limit" in text  # 0.1 ms of work in 1 ms
    assert "against loop: noisy" in text
    assert "0.98 (kernels)" in text
    assert "kernels p50 1.00 ms, p95 1.02 ms, p99 1.02 ms" in text
    assert "against loop: 2.54x (145 MB" in text
    assert "liger: needs a GPU" in text


def test_the_roofline_share_is_of_the_nearer_limit():
    """3e7 bytes take 1 ms at 3e10 a second, and 1e8 FLOPs 0.1 ms: of a call of 2 ms, memory explains a half."""
    case = a_layer(ours=2.0, spread=0.0, work={"flops": 1e8, "bytes": 3e7, "peak": "gemm_bf16"})
    assert terminal.peak_share(case, "kernels", a_run().peaks) == pytest.approx(0.5)


def test_table():
    rows = markdown.headlines([a_run([a_layer(), a_memory(), replace(a_layer(), headline=False, name="a detail")])])
    assert "| MoE T=4096 | 1.00 ms | 4.10M tokens | loop, 2.00 ms | 2.00x | 2.00x | 0.90x |" in rows
    assert "| saved for backward: MoE | 57.0 MB |  | loop, 145 MB | 2.54x | 2.54x |  |" in rows
    assert "a detail" not in rows
    noisy = markdown.headlines([a_run([a_layer(peer=1.05, spread=0.4)])])
    assert "| noisy | noisy |" in noisy


def test_contenders_are_listed_the_fastest_first():
    encode = replace(a_layer(), group="encoder", name="encode")
    rows = markdown.contenders(
        [a_run([encode, a_layer(), replace(encode, name="alone", samples={"kernels": [1.0]})])], "encoder"
    )
    first, *rest = [line for line in rows.splitlines() if line.startswith("| ") and "contender" not in line]
    assert first.startswith("| encode | dense | 900 µs |")
    assert [row.split(" | ")[1] for row in rest] == ["kernels", "loop"]
    assert rest[-1].endswith("| 2.00x |")


def test_targets():
    layer = judged(a_layer())
    text = "\n".join(terminal.case_lines(replace(layer, figures={"gflops": {"loop": 3.0}, "rounds": 5}), {}))
    assert [verdict.verdict for verdict in layer.verdicts] == ["met", "missed"]
    assert "met: kernels: at least 1.5 times as fast as best peer: 2 (loop), 2.0408 of the fastest calls" in text
    assert "missed: kernels: at most 1 times the cost of dense: 1.1111, 1.0889 of the fastest calls, spread 25" in text
    assert "gflops: 3 (loop)" in text
    assert "rounds: 5" in text
    rows = markdown.targets([a_run([layer]), a_run([a_memory()])])
    assert rows.count("| verdict |") == 1, "a run without targets has no table"
    assert "| MoE T=4096 | kernels: at least 1.5 times as fast as best peer | 2 (loop), 2.0408 of the" in rows


def test_machines_have_a_table_each():
    runs = [a_run(), a_run([a_memory()], device="Another CPU"), a_run([replace(a_layer(), headline=False)])]
    rows = markdown.headlines(runs)
    assert re.findall(r"^\*\*(.*?)\*\*", rows, re.MULTILINE) == ["A CPU, 2 cores", "Another CPU"]


def test_the_table_is_written_between_the_markers(tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    places = ["\nold\n".join(table.markers(name)) for name in table.TABLES]
    page.write_text("\n\n".join(["# Title", *places, "more\n"]))
    encode = replace(a_layer(), group="encoder", name="encode", headline=False, processes=[{}])
    runs = [a_run(), a_run([encode], device="Another CPU")]
    for place, run in enumerate(runs):
        run.save(tmp_path / f"{place}.json")
    monkeypatch.setattr(table, "README", page)
    monkeypatch.setattr(table, "committed", lambda: sorted(tmp_path.glob("*.json")))
    assert table.main([]) == 0
    text = page.read_text()
    assert text.startswith("# Title\n") and text.endswith("\n\nmore\n") and "old" not in text  # noqa: PT018
    assert table.between(text, "bench") == markdown.headlines(runs).strip("\n")
    assert table.between(text, "encoder") == markdown.contenders(runs[1:], "encoder").strip("\n")
    assert table.main([]) == 0
    assert page.read_text() == text
    page.write_text("no markers")
    assert table.main([]) == 2


def test_the_figures_of_the_readme_are_those_of_the_files():
    """`python -m bench.table` writes them."""
    page, runs = (ROOT / "README.md").read_text(encoding="utf-8"), [Run.load(path) for path in committed()]
    for name, made in table.TABLES.items():
        assert table.between(page, name) == made(runs).strip("\n")


def first_table(text):
    return re.search(r"^\|.*?(?=\n(?!\|))", text, re.MULTILINE | re.DOTALL)[0]


def test_the_quality_in_the_readme_is_that_of_the_evidence():
    """`make evidence` writes the file."""
    measured = (RESULTS / "evidence.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert first_table(readme) == first_table(measured)
    where_and_when = measured.splitlines()[-1]
    assert where_and_when.startswith("Measured on ")
    assert where_and_when in " ".join(readme.split())
    title = re.match(r"# \w+, test split, whole corpus: (\d+) queries, (\d+) documents", measured)
    for count in map(int, title.groups()):
        assert f"{count:,}" in readme


def test_the_memory_in_the_readme_is_that_of_the_files():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    share, sizes, dtype, ours, loop = re.search(
        r"keeps ([\d.]+) of the bytes that a loop .*?\((T=.*?), (\w+):\s+([\d.]+) against ([\d.]+) MB", page, re.DOTALL
    ).groups()
    name = f"saved for backward: MoE {sizes.replace(',', '')} {dtype} forward+backward"
    cases = [case for path in committed() for case in Run.load(path).cases if case.name == name]
    assert cases, f"no file has {name!r}"
    for case in cases:
        measured = {contender: case.timings.median(contender) / 1e6 for contender in ("kernels", "loop")}
        assert [f"{measured['kernels']:.1f}", f"{measured['loop']:.1f}"] == [ours, loop]
        assert f"{measured['kernels'] / measured['loop']:.2f}" == share


def test_a_run_in_one_process_shows_the_cases_of_the_headlines_too():
    detail = replace(a_layer(), headline=False, name="a detail")
    assert "a detail" in markdown.headlines([a_run([a_layer(), detail])], {"a detail"})


def verdicts(old, new):
    return [change.verdict for change in compare.changes(a_run([old]), a_run([new]))]


def test_compare_finds_what_became_slower():
    assert verdicts(a_layer(), a_layer(ours=1.3)) == ["REGRESSION"]
    assert verdicts(a_layer(), a_layer(ours=0.7)) == ["better"]
    assert verdicts(a_layer(), a_layer(ours=1.02)) == ["same"]


def test_compare_is_not_deceived_by_the_machine():
    assert verdicts(a_layer(), a_layer(scale=1.5)) == ["same"]
    assert verdicts(a_layer(scale=1.5), a_layer(ours=1.4)) == ["REGRESSION"]
    assert verdicts(a_layer(), a_layer(ours=1.3, spread=0.5)) == ["same"], "within noise"


def test_compare_takes_plain_times_where_the_peers_changed():
    old, new = a_run([a_layer()]), a_run([a_layer(peer=1.0)], versions={"torch": "2.14.0"})
    assert [change.verdict for change in compare.changes(old, new)] == ["same"]


def test_compare_memory():
    assert verdicts(a_memory(), a_memory(ours=70e6)) == ["REGRESSION"]
    assert verdicts(a_memory(), a_memory(ours=57e6, peer=300e6)) == ["same"]


def test_compare_as_a_command(tmp_path, capsys):
    old, new, elsewhere = (tmp_path / f"{name}.json" for name in ("old", "new", "elsewhere"))
    a_run([a_layer(), a_layer(name="gone")]).save(old)
    a_run([a_layer(ours=1.3)]).save(new)
    a_run(device="Another CPU").save(elsewhere)
    assert compare.main([str(old), str(old)]) == 0
    assert compare.main([str(old), str(new)]) == 1
    shown = capsys.readouterr().out
    assert "REGRESSION   1.30x    1.00 ms -> 1.30 ms" in shown
    assert "missing in the new run: layer: gone" in shown
    assert compare.main([str(old), str(elsewhere)]) == 2
    assert compare.main([str(old), str(tmp_path / "none.json")]) == 2
    assert "must be of one device" in capsys.readouterr().err


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    cases = [a_layer(), a_memory()]
    cases += [replace(a_layer(), settings=a_layer().settings | {key: 64}, name=key) for key in ("tokens", "experts")]
    cases.append(a_layer(name="up T=4096", work={"flops": 1e9, "bytes": 1e7, "peak": "gemm_bf16"}))
    lines = draw(a_run(cases), tmp_path / "cpu.json")
    names = ["cpu-memory.png", "cpu-roofline.png", "cpu-speedup.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(lines) == 3
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert draw(a_run([]), tmp_path / "empty.json") == []
