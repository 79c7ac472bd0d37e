"""Functions that stand in for others."""


def raising(error):
    def raise_it(*_arguments, **_options):
        raise error

    return raise_it
