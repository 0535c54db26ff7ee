"""``demucs-lightning compare A B [C ...]``: results of ``evaluate`` side by side.

Prints nSDR and SDR of each model per source and overall, how far each is from the first, track by
track, with the confidence interval of that, and says where the interval excludes 0.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from demucs_lightning.commands.explain import explained
from demucs_lightning.evaluation.bootstrap import RESAMPLES, SEED
from demucs_lightning.evaluation.comparison import Comparison, Difference, as_json, compare
from demucs_lightning.evaluation.results import METRICS, read_results, write_text
from demucs_lightning.evaluation.table import KINDS, OVERALL

NAMES = {
    "nsdr": "nSDR",
    "si_sdr": "SI-SDR",
    "sdr": "SDR",
    "isr": "ISR",
    "sir": "SIR",
    "sar": "SAR",
}
FEW = 10  # tracks, below which an interval is narrower than it should be
WIDTH = 16  # of a column


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    with explained():
        run(options)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        "demucs-lightning compare",
        description="Models side by side, on the tracks and sources that all results have.",
    )
    top.add_argument("first", type=Path, metavar="A", help="a folder that evaluate has written")
    top.add_argument("others", type=Path, metavar="B", nargs="+", help="more, compared with A")
    top.add_argument(
        "--metric",
        action="append",
        choices=METRICS,
        help="may be given several times; default: nsdr and sdr",
    )
    top.add_argument("--sources", metavar="NAMES", help="only these, such as vocals,bass")
    top.add_argument("--tracks", action="store_true", help="the difference of every track, too")
    top.add_argument("--json", metavar="FILE", help="all of it as JSON; - for stdout")
    top.add_argument("--report", type=Path, metavar="FILE.html", help="a report of all results")
    top.add_argument("--seed", type=int, default=SEED, help=f"of the intervals ({SEED})")
    return top


def run(options: argparse.Namespace) -> None:
    """Print the comparison and write what was asked for."""
    results = [read_results(folder) for folder in (options.first, *options.others)]
    asked = {"metrics": options.metric} if options.metric else {}
    comparison = compare(
        *results, **asked, sources=_listed(options.sources), seed=_seed(options.seed)
    )
    quiet = options.json == "-"
    print(described(comparison, by_track=options.tracks), file=sys.stderr if quiet else sys.stdout)
    if options.json:
        written = json.dumps(as_json(comparison), indent=1, ensure_ascii=False)
        if quiet:
            print(written)
        else:
            write_text(Path(options.json), written + "\n")
    if options.report:
        from demucs_lightning.evaluation.report import write_report

        write_report(results[0], options.report, others=results[1:])
        print(f"The report: {options.report}", file=sys.stderr if quiet else sys.stdout)


def _listed(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--sources is {text!r}: it must be names, such as vocals,bass.")
    return names


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}: it must be 0 or more, and less than 2^63.")
    return seed


def letter(model: int) -> str:
    """A for the first; as in a spreadsheet, AA follows Z."""
    rest, index = divmod(model, 26)
    return (letter(rest - 1) if rest else "") + chr(ord("A") + index)


def described(comparison: Comparison, *, by_track: bool = False) -> str:
    """What the command prints."""
    lines = [_legend(comparison, model) for model in range(len(comparison.results))]
    count = len(comparison.tracks)
    lines += [f"on {count} track{'s' * (count != 1)}", *comparison.notes]
    for metric in comparison.metrics:
        lines += ["", *_table(comparison, metric)]
        if by_track:
            for model in range(1, len(comparison.results)):
                lines += ["", *_by_track(comparison, metric, model)]
    return "\n".join([*lines, "", *_footnotes(comparison)])


def _legend(comparison: Comparison, model: int) -> str:
    results = comparison.results[model]
    separation = results.settings.get("separation") or {}
    shown = [f"{key} {'own' if value is None else value}" for key, value in separation.items()]
    digest = results.settings["model"].get("hash")
    parts = [results.name, str(results.folder), *([f"weights {digest[:8]}"] if digest else [])]
    return f"{letter(model):<3}{' · '.join([*parts, ', '.join(shown) or 'a folder of stems'])}"


def _row(title: str, cells: Sequence[str], first: int) -> str:
    return f"{title:<{first}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)


def _table(comparison: Comparison, metric: str) -> list[str]:
    columns, name = comparison.columns, NAMES[metric]
    models = range(len(comparison.results))
    first = 2 + max(len(name), len(f"{letter(models[-1])} - A improved"))
    lines = [_row(f"{name}, dB", columns, first)]
    for model in models:
        for kind in KINDS:
            cells = [f"{comparison.level(metric, c, kind)[model]:.2f}" for c in columns]
            lines.append(_row(f"{letter(model)} {kind}", cells, first))
    for model in models[1:]:
        title = f"{letter(model)} - A"
        found = {c: comparison.difference(metric, c, model) for c in columns}
        lines.append(_row(f"{title} mean", [f"{d.mean:+.3f}" for d in found.values()], first))
        lines.append(_row("   95 %", [_interval(d) for d in found.values()], first))
        improved = [f"{d.improved} of {d.tracks}" for d in found.values()]
        lines.append(_row(f"{title} improved", improved, first))
        lines += [*_verdict(found, name, letter(model))]
    return lines


def _interval(difference: Difference) -> str:
    if math.isnan(difference.low):
        return "-"
    return f"{difference.low:+.3f} {difference.high:+.3f}"


def _verdict(found: dict[str, Difference], name: str, other: str) -> list[str]:
    """Where the interval excludes 0, in words, and what is missing."""
    groups = {
        f"{other} is better than A": [c for c, d in found.items() if d.low > 0],
        f"{other} is worse than A": [c for c, d in found.items() if d.high < 0],
    }
    lines = [
        f"{name}: {title} in {', '.join(columns)}: the interval excludes 0."
        for title, columns in groups.items()
        if columns
    ]
    open_ = [c for c, d in found.items() if d.tracks > 1 and not d.decided]
    if open_:
        lines.append(f"{name}: no difference is shown in {', '.join(open_)}: it includes 0.")
    if single := [c for c, d in found.items() if d.tracks < 2]:
        lines.append(f"{name}: no interval for {', '.join(single)}: that takes two tracks.")
    if few := [c for c, d in found.items() if 2 <= d.tracks < FEW]:
        counts = min(found[c].tracks for c in few)
        lines.append(f"{name}: from so few tracks ({counts}) intervals come out too narrow.")
    if lacking := {c: d.left_out for c, d in found.items() if d.left_out}:
        counts = ", ".join(f"{column} in {count}" for column, count in lacking.items())
        lines.append(f"{name}: tracks without a score in A or {other} are left out: {counts}.")
    return lines


def _by_track(comparison: Comparison, metric: str, model: int) -> list[str]:
    """Every track's difference, the worst overall first."""
    columns = [comparison.differences(metric, c, model) for c in comparison.columns]
    rows = list(zip(comparison.tracks, *columns, strict=True))
    rows.sort(key=lambda row: (math.isnan(row[-1]), row[-1]))
    first = 2 + max(len(track) for track in [*comparison.tracks, "SI-SDR, B - A"])
    title = f"{NAMES[metric]}, {letter(model)} - A"
    cells = [(track, [f"{v:+.3f}" for v in values]) for track, *values in rows]
    return [_row(title, comparison.columns, first), *(_row(*each, first) for each in cells)]


def _footnotes(comparison: Comparison) -> list[str]:
    definitions = comparison.results[0].settings["metrics"]
    return [
        *(f"{NAMES[m]}: {definitions[m].rstrip('.')}." for m in comparison.metrics),
        f"median, mean: over the tracks; {OVERALL}: the mean over the sources.",
        f"95 %: BCa bootstrap of the mean over the tracks, paired, {RESAMPLES:,} draws, seed "
        f"{comparison.seed}. Each interval stands by itself: of twenty between models that are "
        "alike, one is expected to exclude 0.",
    ]


if __name__ == "__main__":
    main()
