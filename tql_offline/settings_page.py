"""docs/config.md, which `make docs` writes."""

from typing import Any

import tomli_w

from tql_offline.config import MAX_OWN, Config, OwnConfig, Table

_OWN = (
    f"Settings of a method of your own, up to {MAX_OWN} of any name: numbers, texts, true and "
    "false, "
    'which it reads\nas `config.own["NAME"]` or `config.own.get("NAME", DEFAULT)` '
    "([python.md](python.md))."
)


def reference() -> str:
    """All settings with their defaults as Markdown: docs/config.md, written by `make docs`."""
    lines = [
        "# Settings",
        "",
        "Written by `make docs` from tql_offline/config.py. Defaults are the paper's where it has",
        "one; presets (tql_offline/presets.toml) change some of them by environment family.",
        "On the command line: the flag of the same name, or `--set table.key=value`.",
    ]
    for name, field in Config.model_fields.items():
        if isinstance(field.default, Table):
            lines += ["", f"## [{name}]", "", *_setting_rows(type(field.default))]
    top = [n for n, f in Config.model_fields.items() if not isinstance(f.default, Table)]
    lines[5:5] = ["", "## Top of the file", "", *_setting_rows(Config, top)]
    return "\n".join(lines) + "\n"


def _setting_rows(table: type[Table], names: list[str] | None = None) -> list[str]:
    if table is OwnConfig:
        return [_OWN]
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name in names or table.model_fields:
        field = table.model_fields[name]
        default = tomli_w.dumps({"x": _plain(field.default)}, multiline_strings=False)
        value = " ".join(default.removeprefix("x = ").split())
        rows.append(f"| `{name}` | `{value}` | {field.description} |")
    return rows


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
