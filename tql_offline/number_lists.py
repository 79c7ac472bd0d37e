"""Lists of whole numbers as a user writes them: `0-7`, `0,3,5` or `256x256`."""

from tql_offline.errors import InputError, shown

MAX_NUMBERS = 64
"""More seeds, GPUs or transitions at once than this must be a mistake."""
_MAX_DIGITS = 9


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """Parse numbers such as `0-7` or `0,3,5`, in their order; "" gives none.

    Args:
        text: what the user wrote.
        what: where, for the message, as `--seeds`.

    Raises:
        InputError: it is neither, a number is named twice, or there are too many.

    >>> parse_numbers("0-2,7", "--seeds")
    (0, 1, 2, 7)
    """
    numbers: list[int] = []
    for part in text.split(",") if text else []:
        ends = split_numbers(part, "-")
        if ends is None or len(ends) > 2:
            raise InputError(f"{what} {shown(text)} is not of the form 0-7 or 0,3,5; correct it")
        if ends[-1] - ends[0] >= MAX_NUMBERS:
            raise _too_many(text, what)
        numbers += range(ends[0], ends[-1] + 1)
    if len(set(numbers)) < len(numbers) or (text and not numbers):
        raise InputError(f"{what} {shown(text)} names a number twice, or none; correct it")
    if len(numbers) > MAX_NUMBERS:
        raise _too_many(text, what)
    return tuple(numbers)


def split_numbers(text: str, separator: str) -> tuple[int, ...] | None:
    """Whole numbers between separators; None if a part is none, or has more than nine digits.

    >>> split_numbers("256x64", "x"), split_numbers("8x", "x")
    ((256, 64), None)
    """
    parts = [part.strip() for part in text.split(separator)]
    if not all(part.isascii() and part.isdecimal() and len(part) <= _MAX_DIGITS for part in parts):
        return None
    return tuple(map(int, parts))


def _too_many(text: str, what: str) -> InputError:
    return InputError(f"{what} {shown(text)} names more than {MAX_NUMBERS}; name fewer")
