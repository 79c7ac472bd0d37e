"""Lists of seeds, GPUs and transitions as a user writes them."""

import pytest

from tql_offline.errors import InputError
from tql_offline.number_lists import parse_numbers, split_numbers


@pytest.mark.parametrize(
    ("text", "numbers"), [("", ()), ("3", (3,)), ("0-2,7", (0, 1, 2, 7)), ("5, 1", (5, 1))]
)
def test_numbers_are_read_in_their_order(text, numbers):
    assert parse_numbers(text, "--seeds") == numbers


@pytest.mark.parametrize(
    "text", ["a", "1-", "3-1", "1,1", "0-99999", "-1", "1,,2", "1e3", "²", "9" * 30, "0-40,50-90"]
)
def test_bad_lists_are_refused_by_the_name_of_their_option(text):
    with pytest.raises(InputError, match="^--gpus "):
        parse_numbers(text, "--gpus")


@pytest.mark.parametrize("text", ["", "8x", "x8", "8xx8", "8x-1", "²", "8,8", "9" * 10, "9" * 5000])
def test_what_is_no_list_of_whole_numbers_splits_to_none(text):
    assert split_numbers("256x 64", "x") == (256, 64)
    assert split_numbers(text, "x") is None
