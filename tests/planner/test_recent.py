"""What is kept of late: by key, up to a number of bytes, the least asked leaves first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.recent import Recent


def asked(recent, key, log):
    def make():
        log.append(key)
        return key * 2

    return recent.get(key, make, float)


def test_what_is_held_is_not_made_again():
    recent, log = Recent(most_bytes=100), []
    assert [asked(recent, 5, log) for _ in range(3)] == [10, 10, 10]
    assert log == [5]
    recent.clear()
    asked(recent, 5, log)
    assert log == [5, 5]


def test_the_one_asked_longest_ago_leaves_first():
    recent, log = Recent(most_bytes=40), []
    for key in (5, 10, 5, 4, 5, 10):  # 10 + 20 + 8 bytes
        asked(recent, key, log)
    assert log == [5, 10, 4]
    asked(recent, 3, log)  # 10 + 20 + 8 + 6 bytes: 4 was asked longest ago
    asked(recent, 4, log)
    assert log == [5, 10, 4, 3, 4]


def test_what_is_too_large_is_made_each_time_and_drives_nothing_out():
    recent, log = Recent(most_bytes=40), []
    for key in (5, 30, 30, 5):
        asked(recent, key, log)
    assert log == [5, 30, 30]


def test_what_fails_is_not_kept():
    recent = Recent(most_bytes=40)

    def fails():
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - any
        recent.get(1, fails, float)
    assert recent.get(1, lambda: 2, float) == 2


@given(st.lists(st.integers(1, 60), max_size=40))
def test_values_are_those_of_their_keys_and_fit_the_room(keys):
    recent = Recent(most_bytes=100)
    assert [asked(recent, key, []) for key in keys] == [key * 2 for key in keys]
    assert sum(size for _, size in recent._held.values()) <= 100
