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
from demucs_lightning.commands.options import Parser
from demucs_lightning.evaluation.bootstrap import LEVEL, RESAMPLES, SEED
from demucs_lightning.evaluation.comparison import Comparison, Difference, as_json, compare
from demucs_lightning.evaluation.results import METRICS, read_results, write_text
from demucs_lightning.evaluation.scoring import FULL, NAMES
from demucs_lightning.evaluation.table import KINDS, OVERALL, shown, weights
from demucs_lightning.evaluation.unscored import count, listed

FEW = 10  # tracks, below which an interval is narrower than it should be
WIDTH = 16  # of a column
SIGNED = "+.3f"


def main(argv: Sequence[str] | None = None) -> None:
    options = parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    with explained():
        run(options)


def parser() -> argparse.ArgumentParser:
    top = Parser(
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
        written = json.dumps(as_json(comparison), indent=1, ensure_ascii=False, allow_nan=False)
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
    lines += [f"on {count(len(comparison.tracks), 'track')}", *comparison.notes]
    for metric in comparison.metrics:
        lines += ["", *_table(comparison, metric)]
        if by_track:
            for model in range(1, len(comparison.results)):
                lines += ["", *_by_track(comparison, metric, model)]
    return "\n".join([*lines, "", *_footnotes(comparison)])


def _legend(comparison: Comparison, model: int) -> str:
    results = comparison.results[model]
    separation = results.settings.get("separation") or {}
    told = [f"{key} {'own' if value is None else value}" for key, value in separation.items()]
    digest = weights(results)
    parts = [results.name, str(results.folder), *([f"weights {digest}"] if digest else [])]
    return f"{letter(model):<3}{' · '.join([*parts, ', '.join(told) or 'a folder of stems'])}"


def _row(title: str, cells: Sequence[str], first: int) -> str:
    return f"{title:<{first}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells)


def _table(comparison: Comparison, metric: str) -> list[str]:
    columns = comparison.columns
    models = range(len(comparison.results))
    first = 2 + len(f"{letter(models[-1])} - A improved")
    lines = [FULL[metric], _row("dB", columns, first)]
    for model in models:
        for kind in KINDS:
            cells = [shown(comparison.level(metric, c, kind)[model]) for c in columns]
            lines.append(_row(f"{letter(model)} {kind}", cells, first))
    for model in models[1:]:
        title = f"{letter(model)} - A"
        found = {c: comparison.difference(metric, c, model) for c in columns}
        means = [shown(each.mean, SIGNED) for each in found.values()]
        improved = [f"{each.improved} of {each.tracks}" for each in found.values()]
        lines.append(_row(f"{title} mean", means, first))
        lines.append(_row(f"   {LEVEL:.0%}", [_interval(each) for each in found.values()], first))
        lines.append(_row(f"{title} improved", improved, first))
        lines += _verdict(found, NAMES[metric], letter(model))
    return lines + _left_out(comparison, metric)


def _interval(difference: Difference) -> str:
    if math.isnan(difference.low):
        return shown(math.nan)
    return f"{difference.low:{SIGNED}} {difference.high:{SIGNED}}"


def _verdict(found: dict[str, Difference], name: str, other: str) -> list[str]:
    """Where the interval excludes 0, in words, and where there is none."""
    said = {
        f"{other} is better than A in {{}}: the interval excludes 0": [
            c for c, each in found.items() if each.low > 0
        ],
        f"{other} is worse than A in {{}}: the interval excludes 0": [
            c for c, each in found.items() if each.high < 0
        ],
        "no difference is shown in {}: the interval includes 0": [
            c for c, each in found.items() if each.low <= 0 <= each.high
        ],
        "no interval for {}: that takes two tracks": [
            c for c, each in found.items() if math.isnan(each.low)
        ],
    }
    lines = [f"{name}: {text.format(', '.join(c))}." for text, c in said.items() if c]
    counts = [each.tracks - each.infinite for each in found.values()]
    if few := [number for number in counts if 2 <= number < FEW]:
        lines.append(f"{name}: from so few tracks ({min(few)}) intervals come out too narrow.")
    if infinite := {c: each.infinite for c, each in found.items() if each.infinite}:
        where = ", ".join(f"{column} in {count(n, 'track')}" for column, n in infinite.items())
        lines.append(
            f"{name}: {other} - A is infinite for {where}: in no mean of others and no interval."
        )
    return lines


def _left_out(comparison: Comparison, metric: str) -> list[str]:
    """Where a model has no score, and why."""
    return [
        f"{NAMES[metric]}: {letter(model)} has none for {listed(counts)}: not compared."
        for model, counts in enumerate(comparison.unscored(metric))
        if counts
    ]


def _by_track(comparison: Comparison, metric: str, model: int) -> list[str]:
    """Every track's difference, the worst overall first."""
    columns = [comparison.differences(metric, c, model) for c in comparison.columns]
    rows = list(zip(comparison.tracks, *columns, strict=True))
    rows.sort(key=lambda row: (math.isnan(row[-1]), row[-1]))
    title = f"{NAMES[metric]}, {letter(model)} - A, dB"
    first = 2 + max(map(len, [*comparison.tracks, title]))
    cells = [(track, [shown(value, SIGNED) for value in values]) for track, *values in rows]
    return [_row(title, comparison.columns, first), *(_row(*each, first) for each in cells)]


def _footnotes(comparison: Comparison) -> list[str]:
    definitions = comparison.results[0].settings["metrics"]
    return [
        *(f"{NAMES[m]}: {definitions[m].rstrip('.')}." for m in comparison.metrics),
        f"median, mean: over the tracks that all have a score of; {OVERALL}: the mean over the "
        "sources.",
        f"{LEVEL:.0%}: BCa bootstrap of the mean over the tracks, paired, {RESAMPLES:,} draws, "
        f"seed {comparison.seed}. Each interval stands by itself: of twenty between models that "
        "are alike, one is expected to exclude 0.",
    ]


if __name__ == "__main__":
    main()
