import random

import pytest

from deploy.standalone import ports
from deploy.standalone.child import Restarts, exit_status
from deploy.standalone.program import StartFailed


def test_a_port_with_a_listener_is_not_free() -> None:
    port = ports.pick("127.0.0.1")
    with ports.listen("127.0.0.1", port):
        assert not ports.is_free("127.0.0.1", port)
    assert ports.is_free("127.0.0.1", port)


def test_a_remembered_port_is_kept_while_it_is_free() -> None:
    port = ports.pick("127.0.0.1")
    assert ports.pick("127.0.0.1", remembered=port) == port
    with ports.listen("127.0.0.1", port):
        assert ports.pick("127.0.0.1", remembered=port) != port


def test_the_same_randomness_picks_the_next_port_when_the_first_is_taken() -> None:
    first = ports.pick("127.0.0.1", rng=random.Random(7))
    with ports.listen("127.0.0.1", first):
        assert ports.pick("127.0.0.1", rng=random.Random(7)) != first


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartFailed, match=r"No free port was found on 192\.0\.2\.1"):
        ports.pick("192.0.2.1")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")],  # noqa: S104
)
def test_a_wildcard_host_is_reached_on_the_loopback(host: str, local: str) -> None:
    assert ports.local_address(host) == local


def test_a_wildcard_host_never_appears_in_public_addresses() -> None:
    assert ports.public_address("10.1.2.3") == "10.1.2.3"
    assert ports.public_address("0.0.0.0") not in {"0.0.0.0", ""}  # noqa: S104


def test_ipv6_addresses_are_bracketed_in_urls() -> None:
    assert ports.authority("::1", 80) == "[::1]:80"
    assert ports.authority("127.0.0.1", 80) == "127.0.0.1:80"


def test_a_child_starts_again_at_once_then_after_pauses_then_slowly() -> None:
    restarts = Restarts(pauses_s=(0.0, 0.5, 1.0, 2.0), slow_s=30.0)
    assert restarts.limit == 5
    assert [restarts.pause(deaths) for deaths in range(1, 8)] == [0.0, 0.5, 1.0, 2.0, 30.0, 30.0, 30.0]


def test_exit_statuses_are_named() -> None:
    assert exit_status(3) == "exited with status 3"
    assert exit_status(-9) == "was killed by SIGKILL"
