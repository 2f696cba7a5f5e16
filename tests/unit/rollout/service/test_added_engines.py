"""What an engine that comes to a run may be called."""

from __future__ import annotations

import pytest

from megatron_empg.rollout.service.added_engines import UnusableRequest, added_engines


def test_addresses_are_taken_without_the_slash_at_their_ends() -> None:
    asked = {"engines": ["http://10.0.0.7:8000/", "http://node-3:8001", "http://[fd00::7]:8000"]}
    assert added_engines(asked) == ["http://10.0.0.7:8000", "http://node-3:8001", "http://[fd00::7]:8000"]


@pytest.mark.parametrize(
    "asked",
    [{"engines": "http://10.0.0.7:8000"}, {"engines": []}, {"engines": {"url": 1}}, {}, [], None, "http://a:1"],
)
def test_what_is_no_list_of_engines_is_refused(asked: object) -> None:
    with pytest.raises(UnusableRequest, match="must be a list of engines"):
        added_engines(asked)


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "10.0.0.7:8000", "http://10.0.0.7", "https://10.0.0.7:8000", "http://:8000", "http://a:port"),
        *("http://a:99999", "http://a:8000/v1", "http://a:8000?b", "http://me:secret@a:8000", "http://a b:8000"),
        *("http://a:8000\n", 7, None),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_with_the_others(url: object) -> None:
    with pytest.raises(UnusableRequest, match="not the address of a server: give http://HOST:PORT"):
        added_engines({"engines": ["http://10.0.0.7:8000", url]})
