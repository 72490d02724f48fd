"""How processes come together: who is not there, who came twice, who disagrees; each in one line, in all of them."""

import concurrent.futures
import socket
import threading
import time

import pytest
from several import free_port

from vlm_jax.errors import UserError
from vlm_jax.parallel import meeting
from vlm_jax.parallel.meeting import Place, meet
from vlm_jax.parallel.processes import find_place
from vlm_jax.parallel.wire import receive, send


def come(*places, patience=1.5):
    """What each gets of the meeting: (Met or error)."""

    def one(place):
        try:
            return meet(Place(address, *place), patience)
        except UserError as error:
            return str(error)

    address = f"127.0.0.1:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def close(met):
    for connection in (*met.connections.values(), met.door):
        if connection is not None:
            connection.close()


def test_all_come_and_learn_each_others_names_and_where_jax_is_to_meet():
    found = come((3, 0), (3, 1), (3, 2))
    host = socket.gethostname()
    assert {met.coordinator for met in found} == {found[0].coordinator}
    assert found[0].coordinator.startswith("127.0.0.1:")
    assert all(met.names == [f"process {i} ({host})" for i in range(3)] for met in found)
    assert [sorted(met.connections) for met in found] == [[1, 2], [0], [0]]
    for met in found:
        close(met)


def test_who_does_not_come_is_named_to_all_who_did():
    found = come((4, 0), (4, 2))
    assert len(set(found)) == 1
    assert "2 of 4 processes came" in found[0]
    assert "without 1, 3" in found[0]


def test_who_came_long_before_the_first_does_not_wait_twice(monkeypatch):
    monkeypatch.setattr(meeting, "_ANSWER_S", 1.0)
    place = Place(f"127.0.0.1:{free_port()}", 3, 0)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, place, 60)
        with meeting._connect(place, 60) as early:
            early.settimeout(60)
            send(early, {"process": 1, "processes": 3, "host": "here", "pid": 1, "waited": 59.5})
            assert "2 of 3 processes came" in receive(early)["error"]
        with pytest.raises(UserError, match="without 2;"):
            first.result()
    assert time.monotonic() - began < 50


def test_nobody_at_the_address():
    began = time.monotonic()
    (found,) = come((2, 1))
    assert "no process 0 was there within 2 s" in found
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (((3, 0), (3, 1), (3, 1)), "two processes were started with --process 1"),
        (((2, 0), (3, 1)), "was started with --processes 3, process 0 with 2"),
    ],
)
def test_contradictions_are_told_to_everybody(places, said):
    found = come(*places)
    assert len(set(found)) == 1
    assert said in found[0]


def test_two_processes_0_on_one_machine():
    found = come((2, 0), (2, 0))
    assert any("cannot listen there (Address already in use)" in each for each in found)


def test_something_else_listens_at_the_address():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="no process 0 of a `vlm` run"):
            meet(Place(f"127.0.0.1:{server.getsockname()[1]}", 2, 1), 2)


def test_a_passer_by_does_not_disturb():
    port = free_port()
    place = f"127.0.0.1:{port}"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, Place(place, 2, 0), 5)
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port)) as passer_by:
                    passer_by.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except OSError:
                time.sleep(0.02)
        second = pool.submit(meet, Place(place, 2, 1), 5)
        close(first.result())
        close(second.result())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("host:1", 2, 2), "from 0 to 1"),
        (("host:1", 2, -1), "from 0 to 1"),
        (("host:1", 0, 0), "at least 1"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:port", 2, 0), "HOST:PORT"),
        ((":80", 2, 0), "HOST:PORT"),
        (("host:70000", 2, 0), "HOST:PORT"),
    ],
)
def test_places_that_make_no_sense(place, said):
    with pytest.raises(UserError, match=said):
        Place(*place)


def test_an_address_of_ipv6():
    place = Place("[::1]:80", 2, 0)
    assert (place.host, place.port, place.loopback) == ("::1", 80, True)


def test_where_this_process_is_told_by_flags_or_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find_place(environment=environment) == Place("a:1", 4, 3)
    assert find_place("b:2", 2, 1, environment) == Place("b:2", 2, 1)
    assert find_place(index=0, environment=environment) == Place("a:1", 4, 0)
    assert find_place(environment={}) is None
    assert find_place("b:2", 1, 0, {}) is None, "one process by itself"
    with pytest.raises(UserError, match="--processes and --process is missing"):
        find_place("b:2", environment={})
    for word in ("first", "--1", ""):
        with pytest.raises(UserError, match=f"JAX_PROCESS_ID={word}: give a number"):
            find_place(environment={**environment, "JAX_PROCESS_ID": word})
