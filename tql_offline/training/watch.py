"""Watching a run at its log steps: Q beyond what the data allow, and attention that has collapsed.

A NaN or infinite metric always stops the run (metrics.py). These rules look only at lines of
`metrics.jsonl`, so that they need no device sync, and a resumed run finds what it would have found
anyway.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.config import Config, WatchConfig
from tql_offline.datasets.episodes import Episodes
from tql_offline.eval.attention_health import alarm_sentence
from tql_offline.training.metrics import EndedError, checkpoint_told

VALUES = ("q_mean", "target_mean", "value_mean")
"""Metrics that are estimates of returns."""


@dataclass(frozen=True)
class Warned:
    """What a rule found, at the line at which it had held for `patience` lines in a row.

    Attributes:
        rule: `exploding_q` or `collapsed_entropy`.
        step: step of that line.
        since: step of the last line before the first bad one; 0 if there is none.
        sentence: what holds, in one sentence.
    """

    rule: str
    step: int
    since: int
    sentence: str


class Watch:
    """The rules of one run, fed with its lines of metrics in order.

    Args:
        settings: `[watch]` of its config.
        bound: the largest return that the data allow, in absolute value.
        tokens: L of the critic; 0 without attention.
        value_tokens: L of V, if there is one.
    """

    def __init__(
        self, settings: WatchConfig, bound: float, tokens: int, value_tokens: int = 0
    ) -> None:
        self.settings = settings
        rules: dict[str, Callable[[dict[str, Any]], str]] = {
            "exploding_q": lambda line: _exploded(line, settings.q_factor, bound),
            "collapsed_entropy": lambda line: _collapsed(line, tokens, value_tokens),
        }
        self._rules = {n: rule for n, rule in rules.items() if getattr(settings, n) != "off"}
        self._good = dict.fromkeys(self._rules, 0)  # step of the last good line
        self._bad = dict.fromkeys(self._rules, 0)  # bad lines in a row since

    def see(self, line: dict[str, Any]) -> list[Warned]:
        """What begins to hold with a line; what continues to hold is not reported again."""
        found = []
        for name, rule in self._rules.items():
            sentence = rule(line)
            if not sentence:
                self._good[name], self._bad[name] = line["step"], 0
                continue
            self._bad[name] += 1
            if self._bad[name] == self.settings.patience:
                found.append(Warned(name, line["step"], self._good[name], sentence))
        return found

    def catch_up(self, lines: Iterable[dict[str, Any]]) -> None:
        """Replay the lines of a resumed run, which were judged when they were written."""
        for line in lines:
            self.see(line)


def make_watch(config: Config, episodes: Episodes, tokens: int) -> Watch:
    """The rules of a run on its data."""
    # V has a token per scalar of the state; without a V, no line has its entropies.
    value_tokens = 1 + episodes.observations.shape[1]
    return Watch(config.watch, largest_return(episodes, config.discount), tokens, value_tokens)


def largest_return(episodes: Episodes, discount: float) -> float:
    """The largest discounted return, in absolute value, that rewards of the data can add up to.

    It is at least 1, since a critic need not be more exact than that.
    """
    least, most = return_bounds(episodes, discount)
    return max(-least, most, 1.0)


def return_bounds(episodes: Episodes, discount: float) -> tuple[float, float]:
    """The least and the greatest return of rewards like the data's, with 0 after a task's end.

    Without discounting, these are sums over the longest episode.
    """
    rewards: NDArray[np.float32] = episodes.rewards
    steps = 1 / (1 - discount) if discount < 1 else float(episodes.lengths.max())
    return min(float(rewards.min()), 0.0) * steps, max(float(rewards.max()), 0.0) * steps


def stop_error(warned: Warned, last_good: str) -> EndedError:
    """The error of a run that a rule stops; `last_good` is empty if there is no checkpoint."""
    last = checkpoint_told(last_good)
    go_on = "resume" if last_good else "train anew"
    return EndedError(
        f"{warned.sentence}, and watch.{warned.rule} is 'stop'; {last}, so change the settings, or "
        f"set watch.{warned.rule} to 'warn' and {go_on}",
        rule=warned.rule,
        step=warned.step,
        sentence=warned.sentence,
    )


def _exploded(line: dict[str, Any], factor: float, bound: float) -> str:
    values = {name: line[name] for name in VALUES if isinstance(line.get(name), float)}
    name = max(values, key=lambda n: abs(values[n]), default="")
    if not name or abs(values[name]) <= factor * bound:
        return ""
    return (
        f"Q explodes at update {line['step']}: {name} is {values[name]:.4g} where no return of the "
        f"data can be beyond ±{bound:.4g}"
    )


def _collapsed(line: dict[str, Any], tokens: int, value_tokens: int) -> str:
    """The alarm for the critic's attention or, failing that, for V's."""
    at = f"at update {line['step']}"
    of_critic = _alarm(line.get("entropy"), tokens, at)
    return of_critic or _alarm(line.get("value_entropy"), value_tokens, f"in V {at}")


def _alarm(entropy: list[list[float]] | None, tokens: int, where: str) -> str:
    return alarm_sentence(entropy, tokens, where).rstrip(".") if tokens and entropy else ""
