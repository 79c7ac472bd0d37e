"""What stands in for others."""

from tql_offline.training.loop import SilentReporter


def raising(error):
    def raise_it(*_arguments, **_options):
        raise error

    return raise_it


class Noting(SilentReporter):
    """Keeps the sentences that it is told."""

    def __init__(self):
        self.sentences = []

    def noted(self, sentence):
        self.sentences.append(sentence)
