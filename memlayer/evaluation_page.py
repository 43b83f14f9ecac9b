"""The reports of an evaluation as one HTML page: what was measured, as plots with their numbers beside them.

One file that loads nothing: no script, no font, no picture, which its own content policy enforces. It follows the
reader's choice of light or dark. What it shows are numbers, ids and categories; texts only where the reports have them.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from memlayer.curves import ACCEPTED_LOSS
from memlayer.evaluation_report import run_names
from memlayer.guards import GUARDS
from memlayer.metrics import METRICS
from memlayer.plots import STYLE, Line, Mark, bars, lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from memlayer.curves import Abstention, Bin, Floor
    from memlayer.evaluation_report import Comparison, EvaluationReport, Missed

__all__ = ["page"]

_SHOWN_MISSED: Final = 200
_MAIN: Final = "recall@10"
_SERIES: Final = ("memlayer", "plain cosine")
# Where the loss of right hits is no longer of interest.
_WORST_LOSS: Final = 0.3

_PAGE_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #57606a; --grid: #dfe3e8; --panel: #f6f8fa;
  --first: #0b62a8; --second: #c2570c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6e9ed; --faint: #a3acb6; --grid: #353c45;
  --panel: #1d232a; --first: #6cb6ff; --second: #f2a25c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { max-width: 48rem; margin: .25rem 0 .75rem; } .faint { color: var(--faint); }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; list-style: none; }
.tiles li { background: var(--panel); border-radius: .5rem; padding: .6rem 1rem; min-width: 11rem; }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.3; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem; align-items: start; }
@media (max-width: 60rem) { .pair { grid-template-columns: minmax(0, 1fr); } }
.scroll { overflow: auto; max-height: 28rem; min-width: 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding-bottom: .25rem; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td.words { text-align: left; } td.words { white-space: normal; min-width: 16rem; }
thead th { position: sticky; top: 0; background: var(--paper); }
th[scope=row] { font-weight: 500; }
figure { margin: 0; }
"""


def page(reports: Sequence[EvaluationReport]) -> str:
    """The whole page.

    Args:
        reports: as `memlayer.evaluation.compare` gives them; the first one is shown in full, the others beside it.
    """
    main = reports[0]
    parts = [
        f"<h1>Evaluation of {escape(main.embedder)}</h1>",
        f'<p class="faint">{_told(main)}</p>',
        _tiles(main),
        _overall(main),
    ]
    if len(reports) > 1:
        parts.append(_runs(reports))
    parts.append(_slices(main))
    for report in reports:
        if report.without == main.without and report.guard is None:
            parts += [_calibration(report), _abstention(report)]
    parts += [_missed(main.missed), _times(main)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>memlayer: evaluation of {escape(main.embedder)}</title>\n"
        f"<style>{_PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n<main>\n{''.join(parts)}\n</main>\n</body>\n</html>\n"
    )


# --- The sections ---


def _told(report: EvaluationReport) -> str:
    off = f" Switched off: {', '.join(report.without)}." if report.without else ""
    return (
        f"{len(report.by_conversation)} conversations, {report.turns} turns, {report.overall.questions} questions with "
        f"known evidence; {report.skipped} questions were left out for their category, {report.without_evidence} have "
        f"no evidence.{off} Plain cosine searches the very same vectors with the bare question."
    )


def _tiles(report: EvaluationReport) -> str:
    overall, own = report.overall, report.abstention.recall
    told = [
        (f"{overall.recall[name]:.3f}", name, f"plain cosine {overall.cosine[name]:.3f}")
        for name in (_MAIN, "recall@50", "mrr")
    ]
    if own.default is not None:
        told.append((f"{own.default.lost:.1%}", "lose a right hit", f"at the default floor of {own.default.floor:.2f}"))
        if own.default.silent is not None:
            plain = report.abstention.cosine.accepted.silent or 0
            told.append(
                (
                    f"{own.default.silent:.1%}",
                    "of foreign questions get nothing",
                    f"plain cosine {plain:.1%}, where it loses {ACCEPTED_LOSS:.0%}",
                )
            )
    tiles = "".join(f'<li>{name}<b>{value}</b><span class="faint">{beside}</span></li>' for value, name, beside in told)
    return f'<ul class="tiles">{tiles}</ul>'


def _overall(report: EvaluationReport) -> str:
    both = report.overall
    rows = [[name, *_three(both.recall[name], both.cosine[name])] for name in METRICS]
    return _section(
        "All questions",
        "recall@k is the share of the evidence among the first k turns that come back; hit@10 whether any of it is; "
        "mrr 1 / the place of the first; ndcg@10 how near the order is to the best one.",
        bars(
            "Every metric over all questions, of memlayer and of plain cosine",
            [(name, (both.recall[name], both.cosine[name])) for name in METRICS],
            series=_SERIES,
        ),
        _table("All questions", ["metric", *_SERIES, "difference"], rows),
    )


def _runs(reports: Sequence[EvaluationReport]) -> str:
    main = reports[0]
    metrics = (_MAIN, "recall@50", "mrr")
    names = run_names(reports)
    rows = []
    for name, report in zip(names, reports, strict=True):
        own, plain = report.overall.recall, report.overall.cosine
        floor = report.abstention.recall.default
        rows.append(
            [
                name,
                *(f"{own[name]:.3f}" for name in metrics),
                f"{own[_MAIN] - main.overall.recall[_MAIN]:+.3f}",
                f"{plain[_MAIN]:.3f}",
                f"{own[_MAIN] - plain[_MAIN]:+.3f}",
                "" if floor is None else f"{floor.lost:.1%}",
                "" if floor is None or floor.silent is None else f"{floor.silent:.1%}",
            ]
        )
    # Where settings and guards cross there are too many to draw; the table has them all.
    shown = [
        (name, _both(report.overall))
        for name, report in zip(names, reports, strict=True)
        if report.guard is None or report.without == main.without
    ]
    headers = ["run", *metrics, "to the first", f"cosine {_MAIN}", "to cosine", "lost", "silent"]
    parts = [
        "<h2>Runs side by side</h2><p>One line for each embedder, each setting and each guard. <i>lost</i> and "
        "<i>silent</i> are at the embedder's default floor: answerable questions that lose a right hit, and foreign "
        "questions that get nothing.</p>",
        _pair(
            bars(f"{_MAIN} by run, of memlayer and of plain cosine", shown, series=_SERIES),
            _table("Every run", headers, rows),
        ),
    ]
    if len({report.guard for report in reports}) > 1:
        parts.append(_guards(reports))
    return "".join(parts)


def _guards(reports: Sequence[EvaluationReport]) -> str:
    """Settings down, guards across."""
    guards = [None, *(guard for guard in GUARDS if any(report.guard == guard for report in reports))]
    names = run_names([report.model_copy(update={"guard": None}) for report in reports])
    table: dict[str, dict[str | None, Comparison]] = {}
    for name, report in zip(names, reports, strict=True):
        table.setdefault(name, {})[report.guard] = report.overall
    rows = [[name, *(f"{own[guard].recall[_MAIN]:.3f}" for guard in guards)] for name, own in table.items()]
    first = names[0]
    rows.append(["plain cosine, first embedder", *(f"{table[first][guard].cosine[_MAIN]:.3f}" for guard in guards)])
    return (
        "<h3>Guards against over-fitting</h3><p>The same conversations as another kind of chat: short turns joined "
        "into long ones of a user and an assistant in turn, turns cut into sentences, speakers under other names, "
        "speakers without names. A part that gains on the file and costs on the guards knows the file.</p>"
        + _table(f"{_MAIN} by setting and guard", ["setting", *(guard or "as it is" for guard in guards)], rows)
    )


def _slices(report: EvaluationReport) -> str:
    kinds: tuple[tuple[str, str, Mapping[str, Comparison]], ...] = (
        ("category", "By category", report.by_category),
        ("words", "By the question's length", report.by_question_length),
        ("said within", "By the evidence's age at the end of the conversation", report.by_evidence_age),
        ("language", "By the question's language", report.by_language),
        ("conversation", "By conversation", report.by_conversation),
    )
    shown = []
    for header, title, groups in kinds:
        rows = [
            [
                name or "none",
                str(both.questions),
                *_three(both.recall[_MAIN], both.cosine[_MAIN]),
                f"{both.recall['mrr']:.3f}",
            ]
            for name, both in groups.items()
        ]
        labels = [(f"{name or 'none'} ({both.questions})", _both(both)) for name, both in groups.items()]
        shown.append(
            f"<h3>{title}</h3>"
            + _pair(
                bars(f"{title}: {_MAIN} of memlayer and of plain cosine", labels, series=_SERIES),
                _table(title, [header, "asked", *_SERIES, "difference", "mrr"], rows),
            )
        )
    return f"<h2>In parts</h2><p>{_MAIN}; how many were asked stands in brackets.</p>{''.join(shown)}"


def _calibration(report: EvaluationReport) -> str:
    found = report.calibration
    drawn = [
        _by_score("memlayer: a hit is evidence", found.recall, 0),
        _by_score("plain cosine: a hit is evidence", found.cosine, 1),
    ]
    told = (
        "Of the first ten hits of every question, how many are evidence, by their score. A line that rises says that a "
        "higher score is worth more; it lies below the diagonal, because ten hits are shown and few turns are evidence."
    )
    if report.abstention.recall.foreign:
        drawn += [
            _by_score("memlayer: the store answers", found.answered, 0),
            _by_score("plain cosine: the store answers", found.answered_cosine, 1),
        ]
        told += (
            " The thin lines are what a floor needs: of all questions, own and foreign, how many are own ones, by the "
            "score of the best hit. Half of them are, so that a score which says nothing gives .5 everywhere."
        )
    rows = [
        [
            f"{bins[0].low:.1f} to {bins[0].high:.1f}",
            *(cell for each in bins for cell in (str(each.hits), _share(each.evidence))),
        ]
        for bins in zip(found.recall, found.answered, found.cosine, found.answered_cosine, strict=True)
    ]
    headers = ["score", "hits", "evidence", "questions", "own", "cosine: hits", "evidence", "questions", "own"]
    return _section(
        f"Calibration: {_embedder(report)}",
        told,
        lines(
            "How often a hit is evidence, and how often the store answers, by the score",
            drawn,
            x_name="score (plain cosine: the cosine)",
            y_name="share",
            diagonal=True,
        ),
        _table("Hits and questions by score", headers, rows),
    )


def _abstention(report: EvaluationReport) -> str:
    own, plain = report.abstention.recall, report.abstention.cosine
    title, default = f"Abstention: {_embedder(report)}", own.default
    by_floor = [
        Line("memlayer: right hits lost", [(each.floor, each.lost) for each in own.curve], 0),
        Line("plain cosine: right hits lost", [(each.floor, each.lost) for each in plain.curve], 1),
    ]
    if own.foreign:
        by_floor += [
            Line("memlayer: foreign get nothing", _silent(own.curve), 0),
            Line("plain cosine: foreign get nothing", _silent(plain.curve), 1),
        ]
    marks = [] if default is None else [Mark(f"default floor {default.floor:.2f}", default.floor, default.lost)]
    floors = [
        [f"{a.floor:.2f}", f"{a.lost:.1%}", _percent(a.silent), f"{b.lost:.1%}", _percent(b.silent)]
        for a, b in zip(own.curve[::5], plain.curve[::5], strict=True)
    ]
    headers = ["floor", "lost", "foreign silent", "cosine: lost", "foreign silent"]
    told = (
        f"A floor leaves weak hits out. It should leave foreign questions ({own.foreign} were asked of a conversation "
        f"that they are not about, with its own speakers' names) without an answer, and cost the {own.questions} "
        "answerable ones nothing. <i>lost</i>: of these, the share that loses evidence which stood among its first ten."
    )
    if not own.foreign:
        told += " The file has one conversation alone, so there are no foreign questions."
    curve = lines(
        "Right hits lost, and foreign questions that get nothing, by the floor",
        by_floor,
        x_name="floor",
        y_name="share of questions",
        marks=marks,
        at=None if default is None else default.floor,
    )
    shown = _section(title, told, curve, _table("Floors", headers, floors))
    return shown + _price(own, plain) if own.foreign else shown


def _price(own: Abstention, plain: Abstention) -> str:
    """Both ways on one scale: a floor of one is not a floor of the other."""
    marks = []
    rows = []
    for name, those in zip(_SERIES, (own, plain), strict=True):
        if those.default is not None and those.default.silent is not None:
            marks.append(Mark("default floor", those.default.lost, those.default.silent))
            rows.append([f"{name}, default floor", *_floor(those.default)])
        rows.append([f"{name}, {ACCEPTED_LOSS:.0%} lost", *_floor(those.accepted)])
    curves = [
        Line(name, [(each.lost, each.silent or 0) for each in those.curve], kind)
        for kind, (name, those) in enumerate(zip(_SERIES, (own, plain), strict=True))
    ]
    return (
        "<h3>What silence costs</h3><p>Floors of scores and of cosines cannot be compared, but their price can: the "
        "share of foreign questions that get nothing, by the share of answerable questions that lose a right hit. "
        "Higher is better.</p>"
        + _pair(
            lines(
                "Foreign questions that get nothing, by the right hits that it costs",
                curves,
                x_name="answerable questions that lose a right hit",
                y_name="foreign questions that get nothing",
                x_most=_WORST_LOSS,
                marks=marks,
                at=ACCEPTED_LOSS,
            ),
            _table("The price of silence", ["", "floor", "lost", "foreign silent"], rows),
        )
    )


def _missed(missed: Sequence[Missed]) -> str:
    if not missed:
        return "<h2>Missed</h2><p>Every question has evidence among its first ten hits.</p>"
    shown = missed[:_SHOWN_MISSED]
    texts = any(each.texts is not None for each in shown)
    headers = ["question", "conversation", "category", "cosine"] + ["asked", "evidence", "found first"] * texts
    rows = []
    for each in shown:
        words = (
            [each.texts.question, " | ".join(each.texts.evidence), " | ".join(each.texts.found)] if each.texts else []
        )
        rows.append([each.question, each.conversation, each.category, "found" if each.cosine else "", *words])
    lost = sum(each.cosine for each in missed)
    more = f" The first {len(shown)} are shown." if len(missed) > len(shown) else ""
    return (
        f"<h2>Missed</h2><p>{len(missed)} questions have no evidence among their first ten hits; to {lost} of them "
        f"plain cosine has some.{more}</p>" + _table("Missed questions", headers, rows, words=range(4, 7))
    )


def _times(report: EvaluationReport) -> str:
    rows = [[name.replace("_", " "), f"{value:.2f}"] for name, value in report.times.model_dump().items()]
    return f"<h2>Times</h2>{_table('Seconds (s) and milliseconds (ms)', ['', 'time'], rows)}"


# --- Their parts ---


def _section(title: str, told: str, plot: str, table: str) -> str:
    return f"<h2>{title}</h2><p>{told}</p>{_pair(plot, table)}"


def _pair(plot: str, table: str) -> str:
    return f'<div class="pair"><figure>{plot}</figure>{table}</div>'


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, words: Iterable[int] = ()) -> str:
    """A table; the first cell of a row is its name. `words` are the columns of running text."""
    wordy = frozenset(words)
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f'<td class="words">{escape(cell)}</td>' if number in wordy else f"<td>{escape(cell)}</td>"
            for number, cell in enumerate(rest, start=1)
        )
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _embedder(report: EvaluationReport) -> str:
    return escape(f"{report.embedder}, {report.dimensions} dimensions")


def _three(own: float, plain: float) -> list[str]:
    return [f"{own:.3f}", f"{plain:.3f}", f"{own - plain:+.3f}"]


def _both(comparison: Comparison) -> tuple[float, float]:
    return comparison.recall[_MAIN], comparison.cosine[_MAIN]


def _by_score(name: str, bins: Sequence[Bin], kind: int) -> Line:
    points = [(each.score, each.evidence) for each in bins if each.score is not None and each.evidence is not None]
    return Line(name, points, kind, dots=True)


def _silent(curve: Sequence[Floor]) -> list[tuple[float, float]]:
    return [(each.floor, each.silent or 0) for each in curve]


def _floor(floor: Floor) -> list[str]:
    return [f"{floor.floor:.2f}", f"{floor.lost:.1%}", _percent(floor.silent)]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
