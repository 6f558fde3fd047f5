"""The count of large responses that clients have not read."""

from unittest.mock import Mock

import pytest

from groqchat.errors import Overloaded
from groqchat.runtime import unsent_responses
from groqchat.runtime.unsent_responses import UnsentResponses


@pytest.fixture
def now() -> Mock:
    return Mock(return_value=0.0)


@pytest.fixture
def unsent(now: Mock, monkeypatch: pytest.MonkeyPatch) -> UnsentResponses:
    monkeypatch.setattr(unsent_responses, "MAX_UNSENT_BYTES", 10)
    return UnsentResponses(now)


def test_a_body_that_several_responses_share_counts_once(unsent: UnsentResponses) -> None:
    page = bytes(8)
    ends = [unsent.add(Mock(), page, is_repeatable=True) for _ in range(3)]
    with pytest.raises(Overloaded):
        unsent.add(Mock(), bytes(3), is_repeatable=True)
    for end in ends:
        end()
        end()
    unsent.add(Mock(), bytes(10), is_repeatable=True)


def test_the_oldest_response_is_cut_off_after_a_second(unsent: UnsentResponses, now: Mock) -> None:
    old, new = Mock(), Mock()
    unsent.add(old, bytes(8), is_repeatable=True)
    now.return_value = 1.0
    unsent.add(new, bytes([1] * 8), is_repeatable=True)
    assert (old.abort.call_count, new.abort.call_count) == (1, 0)


def test_a_response_that_cannot_be_repeated_is_always_sent(unsent: UnsentResponses) -> None:
    first = Mock()
    unsent.add(first, bytes(8), is_repeatable=True)
    unsent.add(Mock(), bytes([1] * 8), is_repeatable=False)
    assert first.abort.call_count == 0
