"""Pictures of a run: speed-up over tokens and experts, the roofline of the primitives, memory."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.harness.record import OURS, Case, Run
from bench.harness.timing import quantile

BASE = {
    "layer": "MoE", "dtype": "bf16", "backward": False, "skewed": False, "activation": "gelu", "hidden": 384,
    "ffn": 1536, "top_k": 2, "tokens": 4096, "experts": 8,
}  # fmt: skip
"""The settings that the pictures keep while they vary one."""


def draw(run: Run, path: Path) -> list[str]:
    """Writes PNG files beside the result file, and says so."""
    try:
        import matplotlib
    except ImportError:
        return ["plots: none, because matplotlib is not importable"]
    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    pictures: dict[str, Callable[[Run, Any], bool]] = {"speedup": _speedup, "roofline": _roofline, "memory": _memory}
    for name, picture in pictures.items():
        figure = pyplot.figure(figsize=(11, 5), layout="constrained")
        if picture(run, figure):
            target = path.with_name(f"{path.stem}-{name}.png")
            figure.suptitle(f"{run.run['device']}, {run.run['time'][:10]}")
            figure.savefig(target, dpi=110, metadata={"Software": None})
            written.append(f"plot: {target}")
        pyplot.close(figure)
    return written


def _speedup(run: Run, figure: Any) -> bool:
    """How many times as fast ours is as each peer, as tokens and as experts grow."""
    drawn = False
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (varied, label) in zip(axes, (("tokens", "tokens T"), ("experts", "experts E"))):
        sizes: set[float] = set()
        for peer, points in _curves(run.cases, varied):
            line = axis.plot(*zip(*[(x, middle) for x, _, middle, _ in points]), marker="o", label=peer)[0]
            x, low, _, high = zip(*points)
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
            sizes.update(x)
        drawn = drawn or bool(sizes)
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks(sorted(sizes), labels=[f"{size:.0f}" for size in sorted(sizes)])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:.2g}x")
        axis.yaxis.set_minor_formatter("{x:.2g}x")
    axes[0].set(ylabel="speed-up: peer's time / ours (band: quartiles)")
    if drawn:
        axes[0].legend()
    return drawn


def _curves(cases: Iterable[Case], varied: str) -> Iterator[tuple[str, list[tuple[float, float, float, float]]]]:
    """For each peer the points (size, lower quartile, median, upper quartile) of bf16 forwards around the base."""
    base = {key: value for key, value in BASE.items() if key != varied}
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for case in cases:
        if case.group == "layer" and all(case.settings.get(key) == value for key, value in base.items()):
            for peer in [name for name in case.samples if name != case.ours]:
                ratios = [theirs / mine for mine, theirs in zip(case.samples[case.ours], case.samples[peer])]
                low, middle, high = (quantile(ratios, q) for q in (0.25, 0.5, 0.75))
                points.setdefault(peer, []).append((case.settings[varied], low, middle, high))
    for peer, found in points.items():
        if len(found) > 1:
            yield peer, sorted(found)


def _roofline(run: Run, figure: Any) -> bool:
    """FLOP/s of each primitive over its FLOPs a byte, under what the device was measured to do."""
    cases = [case for case in run.cases if {"flops", "bytes"} <= set(case.work) and OURS in case.samples]
    cases = [case for case in cases if all(case.settings[key] == BASE[key] for key in ("hidden", "tokens", "dtype"))]
    if not cases:
        return False
    axis = figure.subplots()
    intensities = [case.work["flops"] / case.work["bytes"] for case in cases]
    ends = [min(intensities) / 2, max(intensities) * 2]
    grid = [ends[0] * (ends[1] / ends[0]) ** (step / 200) for step in range(201)]
    for peak in sorted({case.work["peak"] for case in cases}):
        limit = [min(run.peaks[peak], intensity * run.peaks["copy"]) for intensity in grid]
        axis.plot(grid, limit, label=f"measured limit, {peak.removeprefix('gemm_')}")
    for case, intensity in zip(cases, intensities):
        rate = case.work["flops"] / case.timings.minimum(OURS)
        axis.plot(intensity, rate, "o", color="black", markersize=4)
        axis.annotate(
            case.name.split(" T=")[0], (intensity, rate), textcoords="offset points", xytext=(5, 3), fontsize=7
        )
    axis.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s")
    axis.legend()
    return True


def _memory(run: Run, figure: Any) -> bool:
    """Every contender's bytes, a bar each."""
    cases = [case for case in run.cases if case.unit == "bytes"]
    if not cases:
        return False
    kinds = list(dict.fromkeys(case.name.partition(":")[0] for case in cases))
    bars = {kind: [] for kind in kinds}
    for number, case in enumerate(cases):
        kind, _, what = case.name.partition(": ")
        for name in case.samples:
            bars[kind].append((f"{what}: {name}", case.timings.median(name) / 1e6, f"C{number % 10}"))
    figure.set_figheight(1 + 0.25 * sum(map(len, bars.values())) + 0.7 * len(kinds))
    axes = figure.subplots(len(kinds), squeeze=False, height_ratios=[len(bars[kind]) for kind in kinds])[:, 0]
    for axis, kind in zip(axes, kinds):
        labels, values, colors = zip(*bars[kind])
        drawn = axis.barh(range(len(labels)), values, color=colors)
        axis.bar_label(drawn, fmt="%.0f MB", fontsize=7, padding=2)
        axis.set_yticks(range(len(labels)), labels=labels, fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.1)
        axis.set(title=kind)
    return True
