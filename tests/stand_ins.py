"""What stands in for others."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from tql_offline.training.reporters import SilentReporter


def raising(error):
    def raise_it(*_arguments, **_options):
        raise error

    return raise_it


def shortened(get, **numbers):
    """`protocol.get` with other numbers for whoever plays.

    Who reads a label gets the number of episodes that were played, and the rest as it is; all is
    as it is where the label itself has a number.
    """

    def get_shortened(name, version=None):
        if version and ":" in name:
            return get(name, version)
        changed = {"episodes": numbers["episodes"]} if version else numbers
        return replace(get(name, version), **changed)

    return get_shortened


@contextmanager
def one_drawing():
    """Every figure is the same, an empty one: for tests that do not look into any."""
    from tql_offline.eval import plots

    document = plots._document(lambda _figure: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_document", lambda *_: document)
        yield


class Noting(SilentReporter):
    """Keeps the sentences that it is told."""

    def __init__(self):
        self.sentences = []

    def noted(self, sentence):
        self.sentences.append(sentence)


class SilentSweep:
    """Keeps why runs were passed over or refused."""

    def __init__(self):
        self.left = {}
        self.not_begun = {}

    def begun(self, run, how):
        pass

    def passed(self, run, why):
        self.left[run.name] = why

    def refused(self, run, why):
        self.not_begun[run.name] = why

    def ended(self, end):
        assert end.code == 0, end.said
