"""Videos of an evaluation's best, median and worst episode.

The scored episodes themselves are not drawn, so they are replayed: the same seed, the same noise,
and the policy called with the same row of a batch of the same size. A replay that does not have the
same return, length and success is not kept.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.eval.drawing import Drawing, Shot
from tql_offline.eval.encoders import encoder_version, suffix, writing_video
from tql_offline.eval.noise import noise_generator
from tql_offline.eval.rollout import Policy, act
from tql_offline.files import write_json, writing
from tql_offline.version import __version__

VIDEOS_SCHEMA = "tql-offline/videos/1"
ROLES = ("best", "median", "worst")
_SUFFIXES = (".mp4", ".gif")


def chosen(episodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Index of the best, the median and the worst episode.

    Episodes are ordered by return, those with equal returns by success. The median of an even
    number is the lower of the middle two. Of episodes equal in both, the one with the lowest seed
    is chosen, so one episode may have several roles.

    Args:
        episodes: `return`, `success` and `seed` of each, at least one.

    >>> returns = [3.0, 1.0, 2.0, 3.0]
    >>> chosen([{"return": r, "success": False, "seed": 9 - k} for k, r in enumerate(returns)])
    {'best': 3, 'median': 2, 'worst': 1}
    """
    ranks = [(episode["return"], bool(episode["success"])) for episode in episodes]
    ordered = sorted(ranks)
    ranked = ordered[-1], ordered[(len(ordered) - 1) // 2], ordered[0]

    def first(rank: tuple[float, bool]) -> int:
        equal = (index for index, other in enumerate(ranks) if other == rank)
        return min(equal, key=lambda index: episodes[index]["seed"])

    return {role: first(rank) for role, rank in zip(ROLES, ranked, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Player:
    """Player that repeats episodes of an evaluation in an environment that is drawn.

    Attributes:
        policy: see `rollout.Policy`.
        drawing: the environment.
        description: description of the environment, see `environments.describe`.
        slots: number of slots in the evaluation, the policy's batch.
        noise_dim: dimension of the noise the policy takes per step.
    """

    policy: Policy
    drawing: Drawing
    description: Mapping[str, Any]
    slots: int
    noise_dim: int

    def shots(self, seed: int, index: int) -> Iterator[Shot]:
        """Play the episode with a seed, the evaluation's at `index`, from first state to last."""
        row = index % self.slots
        observations = np.zeros((self.slots, self.description["observation_dim"]), np.float32)
        noise = np.zeros((self.slots, self.noise_dim), dtype=np.float32)
        generator = noise_generator(seed)
        shot = self.drawing.reset(seed)
        yield shot
        while not shot.ended:
            observations[row] = shot.observation
            noise[row] = generator.standard_normal(self.noise_dim, dtype=np.float32)
            rows = np.array([row])
            shot = self.drawing.step(
                act(self.policy, self.description, observations, noise, rows)[0]
            )
            yield shot


def film(
    player: Player,
    line: Mapping[str, Any],
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Replay an evaluation's best, median and worst episode, and write videos of them.

    Files are `<step>-<policy>-<role>.mp4` (`.gif` without ffmpeg), and `<step>-<policy>.json` says
    what they show; earlier files of these names are replaced, once all new ones are complete.

    Args:
        player: the player, with the evaluation's policy and environment.
        line: the evaluation's line of evaluations.jsonl.
        folder: output folder, created if missing.
        progress: called with the number of frames drawn.

    Returns:
        A clause on each episode that came out differently and so has no video.

    Raises:
        InputError: the environment failed, or a file cannot be written.
    """
    roles = chosen(line["episodes"])
    stem, ending = f"{line['step']}-{line['policy']}", suffix()
    count = _counter(progress)
    with _aside(folder) as aside:
        differences: dict[int, str] = {}
        for index in sorted(set(roles.values())):
            path, scored = aside / f"{index}{ending}", line["episodes"][index]
            repeated = _record(player, scored, index, path, count)
            if repeated != {key: scored[key] for key in repeated}:
                differences[index] = _difference(scored, repeated)
        kept = {role: index for role, index in roles.items() if index not in differences}
        for role, index in kept.items():
            shutil.copyfile(aside / f"{index}{ending}", aside / f"{stem}-{role}{ending}")
        _put_in_place(aside, folder, stem, _document(player, line, kept, stem, ending))
    return list(differences.values())


def videos_of(line: Mapping[str, Any], folder: Path) -> list[Path]:
    """The existing videos of an evaluation's step and policy."""
    names = [f"{line['step']}-{line['policy']}-{role}{end}" for role in ROLES for end in _SUFFIXES]
    return [folder / name for name in names if (folder / name).is_file()]


def _record(
    player: Player, scored: Mapping[str, Any], index: int, path: Path, count: Callable[[], None]
) -> dict[str, Any]:
    """Replay an episode into a file, for at most one step more than it had."""
    return_, length, success = 0.0, -1, float("nan")
    with writing_video(path, player.drawing.fps) as video:
        for shot in player.shots(scored["seed"], index):
            video.add(shot.frame)
            return_, length, success = return_ + shot.reward, length + 1, shot.success
            count()
            if length > scored["length"]:
                break
    return {
        "return": return_,
        "length": length,
        "success": None if math.isnan(success) else success == 1.0,
    }


def _counter(progress: Callable[[int], None] | None) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done)

    return count


def _difference(scored: Mapping[str, Any], repeated: Mapping[str, Any]) -> str:
    def told(episode: Mapping[str, Any]) -> str:
        return f"return {episode['return']!r} in {episode['length']} steps"

    return f"the episode of seed {scored['seed']} came to {told(repeated)}, not {told(scored)}"


def _document(
    player: Player, line: Mapping[str, Any], kept: Mapping[str, int], stem: str, ending: str
) -> dict[str, Any]:
    """The JSON document that describes the videos."""
    shared = ("step", "policy", "protocol", "env_id", "success_timing")
    return {
        "schema": VIDEOS_SCHEMA,
        **{key: line[key] for key in shared},
        "versions": {"tql-offline": __version__, **line["versions"]},
        "renderer": player.drawing.renderer,
        "encoder": encoder_version(ending),
        "fps": player.drawing.fps,
        "videos": {
            role: {"file": f"{stem}-{role}{ending}", **line["episodes"][index]}
            for role, index in kept.items()
        },
    }


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A temporary folder within a folder; both are removed afterwards, the outer one if empty."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Its name must not be guessable: a link placed there would be written through.
            with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as aside:
                yield Path(aside)
        finally:
            with suppress(OSError):
                folder.rmdir()


def _put_in_place(aside: Path, folder: Path, stem: str, document: dict[str, Any]) -> None:
    """Replace the earlier videos of a step and policy, and finally the document on them."""
    described = folder / f"{stem}.json"
    # An interruption leaves videos without a document, never a document on other videos.
    described.unlink(missing_ok=True)
    new = {video["file"] for video in document["videos"].values()}
    for name in (f"{stem}-{role}{ending}" for role in ROLES for ending in _SUFFIXES):
        if name in new:
            (aside / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    if new:
        write_json(described, document)
