"""Differences between a board's methods as a table and sentences on the report's page."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from tql_offline.errors import listed
from tql_offline.eval.averages import number_of_tasks
from tql_offline.eval.differences import Comparisons, Difference
from tql_offline.eval.ended import survivors
from tql_offline.eval.report_tables import (
    Cell,
    Table,
    between,
    cell,
    chance,
    make_table,
    number_cell,
)
from tql_offline.eval.rows import MAX_NAMED

MAX_CLAIMS = 3
"""Most differences of one size that a sentence tells; the table has them all."""
MAX_TOLD = 6
"""Most methods of one size of which differences are told one by one."""


def difference_table(comparisons: Comparisons, unit: str, digits: int) -> Table:
    """Table of all pairs that were compared.

    Args:
        comparisons: the pairs.
        unit: the unit of a score, in words.
        digits: decimals of a difference of scores.
    """
    tests = len(comparisons.found)
    corrected = f", corrected for {tests} pairs (Holm)" if tests > 1 else ""
    alone = " of each pair alone" if tests > 1 else ""
    return make_table(
        f"Differences between methods of equal size, {unit}: mean over the tasks that both have, "
        f"with the 95 % interval{alone} (Student's t); two-sided p-value of the Mann-Whitney test "
        f"by permutation within tasks{corrected}",
        (
            *("size", "method", "against", "difference", "p", "tasks", "more on", "less on"),
            *("not on", "settings that differ"),
        ),
        (_row(difference, tests, digits) for difference in comparisons.found),
    )


def _row(difference: Difference, tests: int, digits: int) -> tuple[Cell, ...]:
    lack = _lack(difference, tests) if difference.is_untestable else ""
    text = f"{difference.p:.3f}" if difference.p >= 0.001 else "< 0.001"
    return (
        cell(difference.size),
        cell(difference.first),
        cell(difference.second),
        between(difference.difference, digits, "+"),
        Cell(text=f"{text} ({lack})" if lack else text, sort=difference.p),
        cell(number_of_tasks(difference.tasks)),
        *(number_cell(n) for n in (difference.more, difference.less)),
        cell(listed(difference.lacking, MAX_NAMED)),
        cell(listed(difference.differing, MAX_NAMED)),
    )


def _lack(difference: Difference, tests: int) -> str:
    """Why no order of these scores could show a difference."""
    if difference.alike:
        return "all scores are equal"
    return "too few runs" if _are_few(difference, tests) else "too many equal scores"


def _are_few(difference: Difference, tests: int) -> bool:
    return difference.test.fewest_runs < difference.test.runs_enough(tests)


def difference_answers(comparisons: Comparisons, methods: int, digits: int) -> Iterator[str]:
    """Yield for each size whether methods differ or, where none are compared, why.

    Args:
        comparisons: the pairs that were compared.
        methods: number of methods on the board.
        digits: decimals of a difference of scores.
    """
    found = comparisons.found
    for size in dict.fromkeys(difference.size for difference in found):
        here = [difference for difference in found if difference.size == size]
        labels = _labels(here)
        lost = {label: n for label, n in comparisons.lost.items() if label in labels}
        answer = _answer(here, len(found), comparisons.baseline, digits)
        yield f"{answer}{survivors(lost)}"
    if not found:
        yield from _not_compared(comparisons, methods)


def difference_notes(comparisons: Comparisons, methods: int) -> Iterator[str]:
    """Yield what was not compared beside the pairs that were, and how to have it compared."""
    if comparisons.found:
        yield from _not_compared(comparisons, methods)
    for size, many in comparisons.crowded:
        yield (
            f"{_at(size)}there are {many} methods, {math.comb(many, 2)} pairs: too many to compare "
            "each with each; `report --baseline METHOD` compares each with one."
        )


def _not_compared(comparisons: Comparisons, methods: int) -> Iterator[str]:
    baseline, alone = comparisons.baseline, comparisons.alone
    if comparisons.apart:
        pairs = [f"{first} and {second}" for first, second in comparisons.apart]
        yield f"Not compared, since they share no task: {listed(pairs, MAX_NAMED)}."
    if not alone or (methods < 2 and not baseline):
        return
    if baseline:
        yield f"Not compared, since {baseline} has no runs of this size: {_named(alone)}."
    elif comparisons.found or comparisons.apart:
        yield f"Not compared, since no other method has this size: {_named(alone)}."
    else:
        yield (
            "No two methods have a size in common, so a difference between methods cannot be told "
            "from one of size."
        )


def _named(labels: Sequence[str]) -> str:
    return listed(labels, MAX_NAMED)


def _answer(here: Sequence[Difference], tests: int, baseline: str, digits: int) -> str:
    """The answer for one size; the pairs of all sizes are `tests`."""
    shown = [difference for difference in here if difference.is_shown]
    if shown and not baseline:
        shown = [d if d.rises else d.turned() for d in shown]
    if shown:
        return _shown(shown, here, tests, digits)
    said = _single(here[0], tests, digits) if len(here) == 1 else _several(here, tests, baseline)
    return f"{said}.{_enough(here, tests)}"


def _several(here: Sequence[Difference], tests: int, baseline: str) -> str:
    """The answer for one size's pairs if none is shown to differ."""
    who, size = _who(here, baseline), _at(here[0].size)
    if all(difference.alike for difference in here):
        return f"{size}all runs of a task score the same, so no difference between methods can show"
    if all(difference.is_untestable for difference in here):
        are_few = any(_are_few(difference, tests) for difference in here)
        which = "the runs are too few" if are_few else "too many scores are equal"
        return f"{size}{which} to show a difference between {who}, whatever their scores"
    least = chance(min(difference.p for difference in here))
    return (
        f"{size}no difference between {who} is more than chance explains "
        f"(smallest {least}{_corrected(tests)})"
    )


def _corrected(tests: int) -> str:
    return f", Holm-corrected for {tests} pairs" if tests > 1 else ""


def _at(size: str) -> str:
    return f"At size {size}, " if size else "Without a critic, "


def _who(here: Sequence[Difference], baseline: str) -> str:
    if baseline:
        others = {difference.first for difference in here}
        return f"{baseline} and any of {len(others)} methods"
    return f"any two of {len(_labels(here))} methods"


def _labels(here: Sequence[Difference]) -> set[str]:
    return {label for difference in here for label in (difference.first, difference.second)}


def _shown(shown: Sequence[Difference], here: Sequence[Difference], tests: int, digits: int) -> str:
    """The differences that are more than chance explains."""
    if len(_labels(here)) > MAX_TOLD:
        return (
            f"{_at(here[0].size)}{len(shown)} of {len(here)} pairs of methods differ by more than "
            f"chance explains (p < 0.05{_corrected(tests)}), which the table shows."
        )
    # First what the method that scores more than the most others scores more than.
    times = Counter(difference.first for difference in shown)
    ordered = sorted(shown, key=lambda d: (-times[d.first], d.first, d.p, -abs(d.difference.value)))
    claims = [_claim(difference, digits) for difference in ordered[:MAX_CLAIMS]]
    if more := len(shown) - len(claims):
        claims.append(f"{more} more of {len(here)} pairs differ, which the table shows")
    corrected = f" P-values are Holm-corrected for {tests} pairs, intervals are not."
    return f"{'; '.join(claims)}.{corrected if tests > 1 else ''}"


def _claim(difference: Difference, digits: int) -> str:
    rises, value = difference.rises, difference.difference.value
    first, second, more = difference.first, difference.second, "more" if rises else "less"
    if not math.isnan(value) and (value if rises else -value) <= 0:
        # The test is of ranks: a few runs may move a mean against the others.
        said = (
            f"runs of {first} mostly score {more} than those of {second}, though its mean is not "
            f"{'higher' if rises else 'lower'}"
        )
    elif difference.difference.low <= 0 <= difference.difference.high:
        said = (
            f"{first} scores {more} than {second} by the ranks of runs, though the interval of "
            "their means' difference holds 0"
        )
    elif (difference.less - difference.more) * (1 if rises else -1) > 0:
        said = (
            f"runs of {first} mostly score {more} than those of {second}, though its mean is "
            f"{'lower' if rises else 'higher'} on more tasks"
        )
    else:
        said = f"{first} scores {more} than {second}"
    return f"{said}{_change(difference, digits)}, {chance(difference.p)}{_over(difference)}"


def _single(difference: Difference, tests: int, digits: int) -> str:
    """The answer for the only pair of its size if it is not shown to differ."""
    both, where = f"{difference.first} and {difference.second}", _over(difference)
    if difference.alike:
        return f"{both}: all runs of a task score the same, so no difference can show{where}"
    change = _change(difference, digits)
    if not math.isnan(difference.difference.value):
        change = f"; the first less the second{change}"
    if difference.is_untestable:
        which = _lack(difference, tests)
        return f"{both}: {which} to show a difference{where}, whatever their scores{change}"
    return (
        f"{both} do not differ by more than chance explains{where}{change}, "
        f"{chance(difference.p)}{_corrected(tests)}"
    )


def _change(difference: Difference, digits: int) -> str:
    """The difference after a claim or, without an average over tasks, how many agree."""
    if math.isnan(difference.difference.value):
        less = f", and less on {difference.less}" if difference.less else ""
        return f": more on {difference.more} of {number_of_tasks(difference.tasks)}{less}"
    return f": {between(difference.difference, digits, '+').text}"


def _over(difference: Difference) -> str:
    """The tasks that a pair is compared on."""
    count, every = len(difference.tasks), len(difference.tasks) + len(difference.lacking)
    if count == 1:
        more = f", the only one of {every} that both have" if difference.lacking else ""
        return f" on {difference.tasks[0]}{more}"
    tasks = number_of_tasks((*difference.tasks, *difference.lacking))
    return f" over {tasks}" if count == every else f" over the {count} of {tasks} that both have"


def _enough(here: Sequence[Difference], tests: int) -> str:
    """From how many runs each pair can show a difference, where some have too few."""
    few = [d for d in here if d.is_untestable and not d.alike and _are_few(d, tests)]
    if not few:
        return ""
    runs = max(difference.test.runs_enough(tests) for difference in few)
    each = " on each task" if any(len(difference.tasks) > 1 for difference in few) else ""
    return f" A difference can show from {runs} runs of each method{each} on."
