"""What stands in for others."""

from dataclasses import replace

from tql_offline.training.reporters import SilentReporter


def raising(error):
    def raise_it(*_arguments, **_options):
        raise error

    return raise_it


def shortened(get, **numbers):
    """`protocol.get` with other numbers for whoever plays, and as it is for who reads a label."""

    def get_shortened(name, version=None):
        return get(name, version) if version else replace(get(name), **numbers)

    return get_shortened


class Noting(SilentReporter):
    """Keeps the sentences that it is told."""

    def __init__(self):
        self.sentences = []

    def noted(self, sentence):
        self.sentences.append(sentence)


class SilentSweep:
    """Keeps why runs were passed over."""

    def __init__(self):
        self.left = {}

    def begun(self, run, how):
        pass

    def passed(self, run, why):
        self.left[run.name] = why

    def ended(self, end):
        assert end.code == 0, end.said
