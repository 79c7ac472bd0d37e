"""`tql-offline doctor`."""

from tql_offline.cli import app
from tql_offline.cli.tables import print_table


@app.command()
def doctor() -> None:
    """Show what is installed, what is missing and how to get it, devices, and data folders."""
    from tql_offline.doctor import diagnose

    findings = diagnose()
    rows = [(f.topic, f.state, f.detail, f.mend) for f in findings]
    print_table("tql-offline doctor", ("topic", "state", "found", "to mend it"), rows)
