"""The model card: what a model is, what it scored, and how to act with it.

Front matter as the Hugging Face Hub reads it, then Markdown. What it says comes from a run folder,
which may be a stranger's, so every text in it is escaped.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tql_offline.eval.report_tables import figure
from tql_offline.markdown import code_block, escape_markdown

LIBRARY = "tql-offline"
MAX_COMMAND = 4000
_FLATTEN = "gymnasium.spaces.flatten(env.observation_space, observation)"


def make_card(facts: Mapping[str, Any]) -> str:
    """The card of a model.

    Args:
        facts: `model.json`.

    Returns:
        `README.md`.
    """
    parts = [
        _front_matter(facts),
        f"# {_text(facts['method'])} on {_text(facts['dataset'])}, seed {facts['seed']}",
        _state(facts),
        _usage(facts),
        _scores(facts),
        _training(facts),
        _versions(facts),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate of a run's text


# Front matter.


def _front_matter(facts: Mapping[str, Any]) -> str:
    tags = ["offline-rl", "reinforcement-learning", facts["method"].lower(), facts["objective"]]
    header: dict[str, Any] = {
        "library_name": LIBRARY,
        "pipeline_tag": "reinforcement-learning",
        "tags": list(dict.fromkeys(tags)),
    }
    if results := [_result(facts, score) for score in facts["evaluations"]]:
        header["model-index"] = [{"name": facts["run"], "results": results}]
    return "\n".join(["---", *_yaml(header), "---"])


def _result(facts: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    kind = {"success": "success_rate", "return": "mean_return"}.get(score["unit"], "score")
    name = f"{score['policy']} policy, {score['protocol']}, {score['episodes']} episodes"
    task = facts["task"] or "reinforcement-learning"
    return {
        "task": {"type": "reinforcement-learning", "name": task},
        "dataset": {"type": "offline-rl", "name": facts["dataset"]},
        "metrics": [{"type": kind, "value": score["score"], "name": f"{kind}, {name}"}],
    }


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Lines of a document of mappings, lists and scalars; scalars are written as in JSON."""
    pairs = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in pairs:
        start = f"{indent}{'-' if key is None else f'{key}:'}"
        if not isinstance(item, dict | list):
            yield f"{start} {_scalar(item)}"
            continue
        lines = list(_yaml(item, indent + "  "))
        if key is None:  # its first line begins after the dash
            yield f"{start} {lines[0].lstrip()}"
            yield from lines[1:]
        else:
            yield start
            yield from lines


def _scalar(value: Any) -> str:
    r"""A string or number as YAML writes it.

    >>> print(_scalar('a"b: \x85'))
    "a\"b: \U00000085"
    """
    text = value if not isinstance(value, str) else value.encode("utf-8", "replace").decode()
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written)


# Text.


def _state(facts: Mapping[str, Any]) -> str:
    step, of = f"{facts['step']:,}", f"{facts['updates']:,}"
    if facts["step"] == facts["updates"]:
        return f"The last checkpoint of a finished run of {of} updates."
    run = "a finished run" if facts["finished"] else "an **unfinished** run"
    return f"The checkpoint of update {step} of {run} of {of} updates."


def _usage(facts: Mapping[str, Any]) -> str:
    own = facts["own_method"]
    flattened = facts["flattened"]
    action = "policy(flat)" if flattened else "policy(observation)"
    if facts["action_bounds"]:
        action = f"policy.to_environment({action})"
    code = [
        *_own_method(own, facts["objective"]),
        *(["import gymnasium"] if flattened else []),
        "import tql_offline",
        'policy = tql_offline.load("FOLDER")',
        *([f"flat = {_FLATTEN}"] if flattened else []),
        f"action = {action}",
    ]
    lines = [
        "## Use",
        f"```python\n{chr(10).join(code)}\n```",
        f"`FOLDER` is this folder. An observation has {facts['observation_dim']} numbers, "
        f"{_flattening(flattened)}; an action has {facts['action_dim']}, each in [-1, 1] as "
        "`policy` gives it. NumPy in and out, one observation or a batch.",
    ]
    if own:
        module, _, name = own.partition(":")
        lines.append(
            f"The method is its author's own: class `{name}` of the module `{module}`, which is "
            "neither in this folder nor in tql-offline. Get it from the author, and import it "
            "first if you trust it. tql-offline's commands find it in the Python path."
        )
    if facts["action_bounds"]:
        low, high = map(_bound, facts["action_bounds"])
        lines.append(
            "The environment itself takes other actions, to which `policy.to_environment` scales. "
            "Without it, as after `policy.onnx`, multiply each number by (high - low)/2 and add "
            f"(high + low)/2, where low is {low} and high is {high} (`action_bounds` in "
            "`model.json`)."
        )
    noise = facts["policies"]["learned"]
    if noise:
        lines.append(
            f"The policy is stochastic: noise of {noise} standard normal numbers makes each action "
            "another, from a generator of its own (`tql_offline.load(FOLDER, seed=0)`) or from you "
            "(`policy(observation, noise)`)."
        )
    else:
        lines.append("The policy is deterministic.")
    if "behaviour" in facts["policies"]:
        lines.append(
            '`tql_offline.load(FOLDER, policy="behaviour")` is the policy cloned from the data.'
        )
    if facts["onnx"]:
        inputs = "`observation` and `noise`" if noise else "`observation`"
        lines.append(
            f"`policy.onnx` is the learned policy for ONNX runtimes: {inputs}, float32, the batch "
            f"first; output `action`. {facts['onnx']}"
        )
    return "\n\n".join(lines)


def _flattening(space: str | None) -> str:
    """How an environment's observations become the policy's."""
    if not space:
        return "as the environment gives them"
    return (
        f"to which the environment's own, of the space {_text(space)}, are flattened as above or "
        "by `gymnasium.wrappers.FlattenObservation` (Dicts by sorted keys, as Gymnasium sorts "
        "them unless the space was made of an OrderedDict)"
    )


def _own_method(own: str, objective: str) -> list[str]:
    """Lines of code before a model of a method outside the package can be loaded."""
    if not own:
        return []
    lines = [f"import {own.partition(':')[0]}"]
    if objective != own:  # a short name, which only the author's processes have
        lines += [
            "from tql_offline.config import OBJECTIVES",
            f"OBJECTIVES[{json.dumps(objective)}] = {json.dumps(own)}",
        ]
    return lines


def _bound(numbers: Sequence[float]) -> str:
    """Format numbers, as one where all are the same.

    >>> _bound([2.0, 2.0]), _bound([0.5, 1])
    ('2', '[0.5, 1]')
    """
    each = [f"{number:g}" for number in numbers]
    return each[0] if len(set(each)) == 1 else f"[{', '.join(each)}]"


def _scores(facts: Mapping[str, Any]) -> str:
    if not facts["evaluations"]:
        return "## Scores\n\nThis checkpoint was not evaluated."
    columns = ("policy", "protocol", "environment", "episodes", "success", "mean return", "score")
    rows = [
        (
            score["policy"],
            score["protocol"],
            score["environment"],
            str(score["episodes"]),
            _success(score),
            with_interval(score["return_mean"], score["return_interval"]),
            _score(score),
        )
        for score in facts["evaluations"]
    ]
    note = (
        "In brackets 95 % intervals over the episodes of this one policy: Wilson's of success "
        "rates, Student's t of means. They say nothing of other seeds."
    )
    return f"## Scores\n\n{_table(columns, rows)}\n\n{note}"


def _success(score: Mapping[str, Any]) -> str:
    if score["successes"] is None:
        return "–"
    interval = [100 * bound for bound in score["success_interval"]]
    rate = 100 * score["successes"] / score["episodes"]
    return f"{score['successes']}/{score['episodes']}: {with_interval(rate, interval)} %"


def _score(score: Mapping[str, Any]) -> str:
    unit = {"success": " %", "return": "", "normalised": " (normalised return)"}
    return with_interval(score["score"], score["score_interval"]) + unit.get(score["unit"], "")


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """A number and its interval.

    >>> with_interval(96.0, (86.538, 98.9)), with_interval(-3.25, None)
    ('96 [86.54, 98.9]', '-3.25')
    """
    if interval is None:
        return figure(value)
    low, high = interval
    return f"{figure(value)} [{figure(low)}, {figure(high)}]"


def _training(facts: Mapping[str, Any]) -> str:
    critic = facts["critic"]
    described = f"{critic}, {facts['size']} ({facts['parameters']:,} parameters)"
    rows = [
        ("method", facts["method"]),
        ("objective", facts["objective"]),
        ("critic", critic if critic == "none" else described),
        ("updates", f"{facts['step']:,}"),
        ("seed", str(facts["seed"])),
        ("dataset", facts["dataset"]),
        ("dataset's SHA-256", facts["dataset_sha256"]),
        ("environment", facts["task"] or "none"),
        ("device", facts["device"]),
        ("code", facts["git_commit"] or "not recorded"),
    ]
    text = f"## Training\n\n{_table(('what', ''), rows)}"
    if command := facts["command"]:
        shortened = "".join(c if c.isprintable() else "?" for c in command)[:MAX_COMMAND]
        text += f"\n\nTrained by\n\n{code_block(shortened)}"
    return f"{text}\n\n`config.toml` has every setting: `tql-offline train --config config.toml`."


def _versions(facts: Mapping[str, Any]) -> str:
    return f"## Versions\n\n{_table(('package', 'version'), list(facts['versions'].items()))}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    text: str = escape_markdown("".join(c if c.isprintable() else " " for c in value))
    return text
