"""Updates per second of all contenders of a workload, timed in turn in one run.

Every contender is warmed up (and so compiled), then all are timed in turn, A B C A B C …, waiting
for all its work before the next one starts; square matrix products take their turn too, so that a
rate and the peak it is compared with are measured under the same conditions. Rates are medians over
the rounds; a ratio is the median of the rounds' own ratios.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tql_offline.bench.memory import peak_memory
from tql_offline.bench.ours import WAYS, make_ours, waiting
from tql_offline.bench.workload import (
    Contender,
    Transitions,
    Unavailable,
    Workload,
    make_peer,
    peers_of,
    random_transitions,
)
from tql_offline.errors import first_line
from tql_offline.training.compile import set_matrix_precision

PEAK_SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product is taken as a device's peak."""


Products = tuple[torch.dtype, bool]
"""How matrix products are computed: the dtype, and whether float32 is computed as TF32."""


@dataclass
class Timing:
    """A contender's rounds.

    Attributes:
        contender: what is timed.
        calls: calls of `step` per round.
        per_second: updates per second of each round.
        per_cpu_second: updates per second of CPU time of this process.
    """

    contender: Contender
    calls: int
    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)

    def run_round(self) -> None:
        """Run the round's updates and wait for them."""
        use(self.contender)
        started, cpu_started = time.perf_counter(), time.process_time()
        updates = sum(self.contender.step() for _ in range(self.calls))
        self.contender.synchronise()
        self.per_second.append(updates / (time.perf_counter() - started))
        self.per_cpu_second.append(updates / (time.process_time() - cpu_started))


def compare(
    workload: Workload,
    names: Sequence[str],
    seconds: float,
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Time contenders of a workload's update, in turn.

    Others' implementations that fail are left out.

    Args:
        workload: what they run.
        names: names from `WAYS` and `peers_of(workload)`; ratios are of the first one's rates.
        seconds: seconds per contender.
        rounds: rounds that the seconds are divided into.
        say: called with a sentence on what is going on.
        keep: called after each round with what is returned in the end, so that a kill leaves it.

    Returns:
        `workload`, `title`, `rows` (one per contender) and `left_out` (name → why).
    """
    data = random_transitions(workload)
    timings: dict[str, Timing] = {}
    left_out: dict[str, str] = {}
    for name in names:
        say(f"{workload}: preparing {name}")
        with leaving_out(name, left_out):
            contender = make_contender(name, workload, data)
            timings[name] = warmed_up(contender, seconds / rounds)
    facts = {"workload": vars(workload), "title": str(workload), "left_out": left_out}
    found: dict[str, Any] = {**facts, "rows": []}
    if not timings:
        return found
    kinds = {products_of(timing.contender) for timing in timings.values()}
    peaks = {
        kind: warmed_up(matrix_product(workload.device, *kind), seconds / rounds / 4)
        for kind in kinds
    }
    for number in range(rounds):
        say(f"{workload}: round {number + 1} of {rounds}")
        for name, timing in [*timings.items()]:
            with leaving_out(name, left_out):
                timing.run_round()
            if name in left_out:
                del timings[name]
        if not timings:
            return found | {"rows": []}
        for timing in peaks.values():
            timing.run_round()
        first = next(iter(timings.values()))
        found["rows"] = [row(name, timing, first, peaks) for name, timing in timings.items()]
        keep(found)
    return found


@contextmanager
def leaving_out(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """Note why a contender takes no part; a fault of one of our ways is raised."""
    try:
        yield
    except Unavailable as reason:
        left_out[name] = str(reason)
    except Exception as error:
        if name in WAYS:
            raise
        left_out[name] = f"it failed: {first_line(error)}"


def add_memory(
    workload: Workload, rows: Sequence[dict[str, Any]], say: Callable[[str], None] = lambda _: None
) -> None:
    """Measure the peak memory of a comparison's contenders, each in a process of its own."""
    for line in rows:
        say(f"{workload}: memory of {line['name']}")
        line["peak_memory_bytes"] = peak_memory(workload, line["name"])


def make_contender(name: str, workload: Workload, data: Transitions) -> Contender:
    """Make one of our ways or someone else's implementation.

    Raises:
        Unavailable: it cannot take part here.
    """
    make = make_ours if name in WAYS else make_peer
    return make(name, workload, data)


def known_names(workload: Workload) -> Iterator[str]:
    """All contenders that a workload may have."""
    yield from (*WAYS, *peers_of(workload))


def warmed_up(contender: Contender, seconds_per_round: float) -> Timing:
    """Compile and warm up a contender, and find how many calls fill a round."""
    use(contender)
    done = 0
    while done < contender.warm_up:
        done += contender.step()
        contender.synchronise()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        contender.step()
        contender.synchronise()
        times.append(time.perf_counter() - started)
    return Timing(contender, max(1, round(seconds_per_round / min(times))))


def use(contender: Contender) -> None:
    """Set the process to the precision of a contender's matrix products."""
    set_matrix_precision("tf32" if contender.tf32 else "float32")


def products_of(contender: Contender) -> Products:
    """How a contender's matrix products are computed."""
    return contender.dtype, contender.tf32


def matrix_product(device: str, dtype: torch.dtype, tf32: bool = False) -> Contender:
    """The product of two square matrices, as an update that runs at the peak rate."""
    side = PEAK_SIDES[device]
    a = torch.randn(side, side, device=device).to(dtype)
    b, out = torch.randn_like(a), torch.empty_like(a)

    def step() -> int:
        torch.mm(a, b, out=out)
        return 1

    return Contender(
        version=torch.__version__,
        step=step,
        synchronise=waiting(device),
        dtype=dtype,
        tf32=tf32,
        flops=2 * side**3,
    )


def row(name: str, timing: Timing, first: Timing, peaks: dict[Products, Timing]) -> dict[str, Any]:
    """A contender's figures; `first_over_it` is the ratio of the first one's rate to its own."""
    contender = timing.contender
    peak = peaks[products_of(contender)]
    flops = [contender.flops * rate for rate in timing.per_second]
    most = [peak.contender.flops * rate for rate in peak.per_second]
    return {
        "name": name,
        "version": contender.version,
        "note": contender.note,
        "dtype": str(contender.dtype).removeprefix("torch."),
        "updates_per_second": statistics.median(timing.per_second),
        "updates_per_cpu_second": statistics.median(timing.per_cpu_second),
        "first_over_it": ratio(first.per_second, timing.per_second),
        "first_over_it_cpu": ratio(first.per_cpu_second, timing.per_cpu_second),
        "flops_per_update": contender.flops or None,
        "flops_per_second": statistics.median(flops) or None,
        "peak_flops_per_second": statistics.median(most),
        "ratio_to_peak": ratio(flops, most) or None,
        "peak_memory_bytes": None,
        "rounds_per_second": timing.per_second,
        "rounds_per_cpu_second": timing.per_cpu_second,
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' own ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
