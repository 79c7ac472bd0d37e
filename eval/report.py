"""A report of runs: a self-contained HTML file, a Markdown file, and the leaderboard's files.

The same run folders give the same bytes: no clock, no host, no random ids. All text from a run is
untrusted: HTML is escaped by the template engine, Markdown by `escape_markdown`, and the page's
content security policy allows no script but its own.
"""

import base64
import hashlib
import importlib.resources
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from tql_offline.errors import InputError, listed, shown
from tql_offline.eval.ended import ended_runs
from tql_offline.eval.imported import ImportedScore, beside, read_scores, without_board
from tql_offline.eval.leaderboard import Board, make_boards
from tql_offline.eval.leaderboard_files import as_csv, as_json, as_latex
from tql_offline.eval.leaderboard_notes import formula
from tql_offline.eval.leaderboard_page import BoardSection, alone_table, board_section
from tql_offline.eval.measured import SIMULATORS, Measured, Setting, measured, setting_played
from tql_offline.eval.published import published_scores, published_sizes
from tql_offline.eval.report_plots import curves_of_runs
from tql_offline.eval.report_scores import dataset_of, main_scores, with_distinct_names
from tql_offline.eval.report_tables import Table, as_text
from tql_offline.eval.rows import natural
from tql_offline.eval.run_page import (
    NO_FACTS,
    RunSection,
    have_rates,
    overview_table,
    run_section,
    score_table,
)
from tql_offline.eval.run_records import Run, lookup, read_result, read_run
from tql_offline.files import write_atomic, writing
from tql_offline.markdown import code_block, escape_markdown
from tql_offline.runs import RunFolder
from tql_offline.version import __version__

MAX_LISTED_WARNINGS = 20
"""Warnings listed per run; the rest are counted."""
MAX_LISTED_RUNS = 12
"""With more runs, their answers are in the overview instead of at the top of the page."""
MAX_DETAILED_RUNS = 50
"""With more runs, the page has no section per run: it would be megabytes that nobody reads."""
ENTROPIES = ("entropy", "value_entropy")
"""Metrics that the overview of many runs looks at."""
MAX_NAMED_RUNS = 5
_BOARD_FILES = ("leaderboard.csv", "leaderboard.json", "leaderboard.tex")


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written.

    Attributes:
        boards: the leaderboard's files.
        answers: its first lines: of one run what it reached, of more what its boards answer.
        warnings: a sentence for everything that it leaves out.
    """

    html: Path
    markdown: Path
    boards: tuple[Path, ...] = ()
    answers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def write_report(
    runs: list[RunFolder],
    out: Path,
    progress: Callable[[int], None] | None = None,
    *,
    merged: Sequence[Path] = (),
    without_result: Sequence[RunFolder] = (),
    published: bool = True,
    scores: Sequence[Path] = (),
    baseline: str = "",
) -> ReportFiles:
    """Write `report.html`, `report.md` and, where scores can be compared, `leaderboard.*`.

    Args:
        runs: run folders in the order to show them; unfinished and damaged ones are shown as such.
        out: output folder, created if missing.
        progress: called with the number of runs done.
        merged: others' `result.json` files; they appear on the leaderboard only.
        without_result: others' run folders without one; boards count those that ended early, and
            warnings name them all.
        published: whether to show printed scores of the same tasks and protocol alongside.
        scores: files of scores from elsewhere to show alongside; see `imported.read_scores`.
        baseline: the method that others of its size are compared with; empty to compare each pair.

    Returns:
        Where the files are.

    Raises:
        InputError: there is neither a run nor a usable result, no finished run is of the baseline,
            a file of scores is unusable, or `out` cannot be written to.
    """
    if not runs and not merged and not without_result:
        raise InputError("a report needs at least one run; name a run folder or a folder of runs")
    imported = read_scores(scores)
    found, is_detailed = [], len(runs) <= MAX_DETAILED_RUNS
    for folder in runs:
        # Of runs without sections of their own, entropies alone are looked at.
        found.append(read_run(folder, curves=None if is_detailed else ENTROPIES))
        if progress is not None:
            progress(len(found))
    read = with_distinct_names(found)
    sections = [
        run_section(run, f"run-{index}" if is_detailed else "")
        for index, run in enumerate(read, start=1)
    ]
    own = {folder.path.resolve() for folder in runs}
    lacking = [
        (folder.path.as_posix(), read_run(folder, timed=False))
        for folder in without_result
        if folder.path.resolve() not in own
    ]
    boards, warnings = _boards(read, merged, lacking, published, imported, baseline)
    page = _page(read, sections, boards, warnings)
    texts = {
        "report.html": render("report.html.jinja", page),
        "report.md": render("report.md.jinja", page),
    }
    if boards:
        made = (as_csv(boards), as_json(boards), as_latex(boards))
        texts |= dict(zip(_BOARD_FILES, made, strict=True))
    _write_all(out, texts)
    return ReportFiles(
        html=out / "report.html",
        markdown=out / "report.md",
        boards=tuple(out / name for name in _BOARD_FILES if name in texts),
        answers=tuple(page["answers"] or (s.answer for s in sections[:1] if len(sections) == 1)),
        warnings=(*warnings, *(f"{s.name}: {w}" for s in sections for w in s.warnings)),
    )


def _write_all(out: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        write_atomic(out / name, text.encode("utf-8", "replace").decode("utf-8"))
    for name in set(_BOARD_FILES) - set(texts):  # from an earlier report
        with writing(out / name):
            (out / name).unlink(missing_ok=True)


def _boards(
    named: list[tuple[str, Run]],
    merged: Sequence[Path],
    lacking: list[tuple[str, Run]],
    published: bool,
    imported: Sequence[ImportedScore],
    baseline: str,
) -> tuple[list[BoardSection], list[str]]:
    """The leaderboard's sections, and sentences on what was left out."""
    own = [measured(replace(run, name=name)) for name, run in named]
    others, warnings = _read_merged(merged)
    if len(named) + len(merged) + len(lacking) > 1:
        warnings += _left_out(named, own)
    warnings += _left_out(lacking, [measured(run) for _, run in lacking])
    if not own and not others:
        more = f"; nor can {len(warnings) - 1} more" if len(warnings) > 1 else ""
        raise InputError(
            f"nothing to report: no result can be used ({warnings[0]}{more}); "
            "name run folders, or result.json files of finished runs"
        )
    found = [scores for scores in own if isinstance(scores, Measured)]
    found += _with_paths(others, {name for name, _ in named})
    ended = ended_runs(run for _, run in (*named, *lacking))
    boards, left_out = make_boards(found, published_scores() if published else (), ended)
    _check_baseline(baseline, boards)
    printed = published_sizes() if published else ()
    sections = [
        board_section(beside(b, imported), f"board-{i}", printed if b.reported else (), baseline)
        for i, b in enumerate(boards, start=1)
    ]
    return sections, [*warnings, *left_out, *without_board(boards, imported)]


def _check_baseline(baseline: str, boards: Sequence[Board]) -> None:
    methods = sorted({run.method for board in boards for run in board.runs}, key=natural)
    if baseline and baseline not in methods:
        variants = [method for method in methods if method.startswith(f"{baseline} (")]
        names = ", ".join(map(repr, variants or methods))
        known = f"name one of these: {names}" if methods else "finish one"
        several = " alone, since its runs differ in their settings" if variants else ""
        raise InputError(f"no finished run is of the baseline {shown(baseline)}{several}; {known}")


def _left_out(named: list[tuple[str, Run]], own: Sequence[Measured | str]) -> Iterator[str]:
    """Which of one's own runs are on no board, and why; many for one reason in one sentence."""
    reasons: dict[str, list[str]] = {}
    for (name, _), scores in zip(named, own, strict=True):
        if isinstance(scores, str):
            reasons.setdefault(scores, []).append(name)
    for reason, names in reasons.items():
        if len(names) == 1:
            yield f"{names[0]} {reason}, so it is on no leaderboard"
        else:
            some = listed(names, MAX_NAMED_RUNS)
            yield f"each of {len(names)} runs {reason}, so they are on no leaderboard: {some}"


def _read_merged(paths: Sequence[Path]) -> tuple[list[tuple[Path, Measured]], list[str]]:
    """The usable results, and a sentence for each that is not, or not wholly."""
    usable, warnings = [], []
    for path in paths:
        run = read_result(path)
        scores = measured(run)
        reasons = list(run.warnings)
        if isinstance(scores, Measured):
            usable.append((path, scores))
        elif not reasons:
            reasons.append(f"the run {scores} and was left out")
        if reasons:
            more = f"; {len(reasons) - 1} more like it" if len(reasons) > 1 else ""
            warnings.append(f"{path}: {reasons[0]}{more}")
    return usable, warnings


def _with_paths(results: list[tuple[Path, Measured]], taken: set[str]) -> Iterator[Measured]:
    """Merged results; those that share a name have their file added to it.

    The path follows the name, so that a run of one's own still comes first.
    """
    times = Counter(scores.name for _, scores in results) + Counter(taken)
    for path, scores in results:
        is_shared = times[scores.name] > 1
        yield replace(scores, name=f"{scores.name} ({path})") if is_shared else scores


def render(template: str, page: dict[str, Any]) -> str:
    """Fill one of this folder's templates.

    Args:
        template: its file name; `.md.jinja` is escaped as Markdown, any other as HTML.
        page: the template's variables.

    Returns:
        Text that UTF-8 can encode (a lone surrogate in a run's text becomes `?`).
    """
    markdown = template.endswith(".md.jinja")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_source),
        autoescape=not markdown,
        finalize=escape_markdown if markdown else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(csp_hash=csp_hash, code_block=code_block)
    return environment.get_template(template).render(page)


def _template_source(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def csp_hash(script: str) -> str:
    """The source expression that lets a content security policy run only this inline script."""
    digest = hashlib.sha256(str(script).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _page(
    named: list[tuple[str, Run]],
    sections: list[RunSection],
    boards: list[BoardSection],
    board_warnings: list[str],
) -> dict[str, Any]:
    runs = [run for _, run in named]
    many = len(runs) > 1
    shown = [board for board in boards if not board.is_alone]
    alone = sections[0].name if sections else "Leaderboard"
    return {
        "title": f"{len(runs)} runs" if many else alone,
        "boards": shown,
        "board_warnings": board_warnings,
        "alone": _alone(boards, len(named)),
        "version": __version__,
        "sections": sections,
        "overview": overview_table(sections, runs) if many else None,
        "scores": score_table(sections, runs),
        "formulas": _formulas(runs),
        "has_rates": have_rates(runs),
        "differences": _differences(runs),
        "curves": curves_of_runs(named) if many else None,
        "answers": _answers(shown) if many or not runs else [],
        "is_listed": len(runs) <= MAX_LISTED_RUNS,
        "is_detailed": len(runs) <= MAX_DETAILED_RUNS,
        "max_detailed": MAX_DETAILED_RUNS,
        "warning_count": len(board_warnings) + sum(len(section.warnings) for section in sections),
        "max_warnings": MAX_LISTED_WARNINGS,
    }


def _answers(boards: Sequence[BoardSection]) -> list[str]:
    """What all boards answer; of several, each sentence begins with what tells its board apart."""
    settings = [section.board.setting for section in boards]
    alike = [f for f in Setting._fields if len({getattr(one, f) for one in settings}) == 1]
    names = [f"{setting._replace(**dict.fromkeys(alike, ''))}: " for setting in settings]
    return [
        f"{name if len(boards) > 1 else ''}{sentence}"
        for name, section in zip(names, boards, strict=True)
        for sentence in section.answers
    ]


def _alone(boards: list[BoardSection], own: int) -> Table:
    """The boards of one run in a table; none on the page of that run, which tells its score."""
    if own == len(boards) == 1:
        return NO_FACTS
    return alone_table([section.board for section in boards if section.is_alone])


def _formulas(runs: list[Run]) -> list[str]:
    """The meaning of a score under each protocol that was used."""
    used = {(e.protocol, e.counted, e.success_timing) for run in runs for e in run.evaluations}
    references = {
        f"{dataset_of(run)}: of the mean return, {e.reference}."
        for run in runs
        for e in run.evaluations
        if e.reference
    }
    return [formula(*setting) for setting in sorted(used)] + sorted(references)


def _differences(runs: list[Run]) -> list[str]:
    """Sentences on what keeps the runs' scores from being compared as they stand."""
    minari = {as_text(v) for run in runs if (v := lookup(run.provenance, "minari")) is not None}
    facts: dict[str, set[str]] = {"minari": minari}
    played = [
        setting_played(run, scores[0].last.protocol, scores[0].last)
        for run in runs
        if (scores := [*main_scores(run).values()])
    ]
    # What boards tell runs apart by; a name is "" where it is not known or there is no such thing.
    for name in ("protocol", "success_timing", *SIMULATORS):
        facts[name.replace("_", " ")] = {getattr(setting, name) for setting in played} - {""}
    for dataset in {dataset_of(run) for run in runs}:
        hashes = {_dataset_hash(run) for run in runs if dataset_of(run) == dataset}
        facts[f"content of dataset {dataset}"] = {h[:12] for h in hashes if h}
    for run in runs:
        digest = run.provenance.get("environment.code.sha256")  # of one of one's own
        if isinstance(digest, str):
            name = f"code of environment {as_text(run.provenance.get('environment.env_id'))}"
            facts.setdefault(name, set()).add(digest[:12])
    return [
        f"The runs differ in {name} ({', '.join(sorted(values))}): their scores are not comparable "
        "as they stand."
        for name, values in sorted(facts.items())
        if len(values) > 1
    ]


def _dataset_hash(run: Run) -> str:
    value = run.result.get("dataset_sha256") or run.provenance.get("dataset.sha256")
    return value if isinstance(value, str) else ""
