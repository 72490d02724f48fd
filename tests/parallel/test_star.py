"""What processes tell each other while a run goes on, and how they notice that one of them is gone."""

import concurrent.futures
import contextlib
import re
import socket
import threading
import time

import pytest
from several import free_port

from vlm_jax.errors import RunError
from vlm_jax.parallel.meeting import Place, meet
from vlm_jax.parallel.star import Star
from vlm_jax.parallel.wire import Inbox, Stranger, send


class Members:
    """Some processes in one: each with its connections, and what made it give up."""

    def __init__(self, count, silence=30.0, without=()):
        address = f"127.0.0.1:{free_port()}"
        self.ended = {i: threading.Event() for i in range(count)}
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            self.met = list(pool.map(lambda i: meet(Place(address, count, i), 10), range(count)))
        self.stars = {
            i: Star(i, met, silence, lambda _, i=i: self.end(i)) for i, met in enumerate(self.met) if i not in without
        }

    def all(self, act):
        with concurrent.futures.ThreadPoolExecutor(len(self.stars)) as pool:
            return list(pool.map(act, self.stars.values()))

    def end(self, index):
        self.ended[index].set()
        self.kill(index)

    def kill(self, index):
        """As the system does when a process dies."""
        for connection in self.met[index].connections.values():
            with contextlib.suppress(OSError):  # the other side did the same
                connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def members():
    made = []

    def make(*args, **kwargs):
        made.append(Members(*args, **kwargs))
        return made[-1]

    yield make
    for each in made:
        for star in each.stars.values():
            star.close()


def test_everybody_gets_everybodys_values_in_order(members):
    group = members(3)
    for number in range(5):
        values = group.all(lambda star, number=number: star.gather([star.index, number, "привет"]))
        assert values == [[[i, number, "привет"] for i in range(3)]] * 3
    large = "x" * 3_000_000
    assert group.all(lambda star: star.gather(large)) == [[large] * 3] * 3


def test_values_are_the_same_in_all_and_some_only_the_first_needs(members):
    group = members(3)
    assert group.all(lambda star: star.gather((star.index, ()))) == [[[i, []] for i in range(3)]] * 3
    assert group.all(lambda star: star.gather(star.index, at_first=True)) == [[0, 1, 2], [], []]


def test_one_that_dies_ends_the_others_and_they_say_why(members, capfd):
    group = members(3, without=(1,))
    waiting = concurrent.futures.ThreadPoolExecutor(1).submit(group.stars[2].gather, 1)
    group.kill(1)
    assert group.ended[2].wait(60)
    assert group.ended[0].wait(60)
    with pytest.raises(RunError, match=r"process 1 \(.*\) ended without a word"):
        waiting.result(5)
    said = capfd.readouterr().err
    assert said.count("vlm: process 1") >= 2


def test_one_that_is_silent_is_given_up(members, capfd):
    group = members(2, silence=2.5, without=(1,))
    with pytest.raises(RunError, match="process 1 "):
        group.stars[0].gather(1)
    group.kill(1)
    assert group.ended[0].wait(60)
    assert "gave no sign of life for 2 s" in capfd.readouterr().err


def test_one_that_stops_reading_holds_up_nobody_and_is_the_one_that_is_named(members):
    """What it is sent is more than the system keeps for it, so that the rest cannot be sent."""
    group = members(3, silence=2.5, without=(1,))
    large = "x" * 20_000_000
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(group.stars[index].gather, index or large) for index in (0, 2)]
        time.sleep(0.5)
        send(group.met[1].connections[0], {"number": 0, "value": 1, "at_first": False, "last": False})
        for values in (one.result() for one in waiting):
            assert values[0] == large
            assert values[1:] == [1, 2]
    for index in (0, 2):
        with pytest.raises(RunError) as why:
            group.stars[index].gather(3)
        assert re.fullmatch(r"process 1 \(.*\) gave no sign of life for 2 s", str(why.value))
    group.kill(1)


def test_silence_of_values_is_no_silence(members):
    group = members(2, silence=2.5)
    time.sleep(4)
    assert group.all(lambda star: star.gather(star.index)) == [[0, 1]] * 2
    assert not any(event.is_set() for event in group.ended.values())


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_is_what_the_others_end_by(members, index):
    group = members(3)
    teller = concurrent.futures.ThreadPoolExecutor(1).submit(group.stars[index].tell, "the disk is full")
    for other in {0, 1, 2} - {index}:
        assert f"process {index} (" in (verdict := group.stars[other].verdict(5))
        assert verdict.endswith("ended: the disk is full")
        with pytest.raises(RunError, match="the disk is full"):
            group.stars[other].gather(1)
        if other:
            group.kill(other)
    teller.result(10)


def test_after_the_last_word_nobody_is_missed(members):
    group = members(3)
    assert group.all(lambda star: star.gather(None, last=True)) == [[None] * 3] * 3
    group.kill(0)
    time.sleep(0.5)
    assert not any(event.is_set() for event in group.ended.values())


def test_who_comes_late_is_told_that_the_run_has_begun(members):
    from vlm_jax.errors import UserError

    group = members(2)
    port = group.met[0].door.getsockname()[1]
    with pytest.raises(UserError, match="all 2 processes of this run are there already"):
        meet(Place(f"127.0.0.1:{port}", 2, 1), 3)
    assert group.all(lambda star: star.gather(1)) == [[1, 1]] * 2


def test_messages_are_whole_however_they_arrive():
    one, other = socket.socketpair()
    other.settimeout(5)
    send(one, {"a": 1})
    send(one, {"b": "два"})
    content = other.recv(1000)
    inbox, found = Inbox(), []
    for byte in content:
        one.sendall(bytes([byte]))
        found += inbox.read(other)
    assert found == [{"a": 1}, {"b": "два"}]
    one.sendall(b"GET / HTTP/1.1\r\n")
    with pytest.raises(Stranger):
        inbox.read(other)
    one.close()
    assert inbox.read(other) is None
    other.close()
