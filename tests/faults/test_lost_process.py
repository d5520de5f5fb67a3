"""When one process of a run ends, the others say which and why, at once and without a traceback."""

import json
import os
import signal
import threading
import time

import pytest

from vlm.common.errors import DataError
from vlm.common.processes import ending
from vlm.common.processes import peers as peers_module
from vlm.common.processes.peers import FAILED, Peers, ProcessLostError, machine


class Store:
    """What is used of torch's store, in this process."""

    def __init__(self, **values):
        self.values = values

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values[key].encode()

    def check(self, keys):
        return all(k in self.values for k in keys)

    def compare_set(self, key, expected, value):
        if self.values.get(key, "") == expected:
            self.values[key] = value


@pytest.fixture
def sleeper():
    process = os.fork()
    if not process:
        time.sleep(60)
        os._exit(0)
    yield process
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def pair(process, host=None):
    store = Store(**{"peer/1": json.dumps([host or machine(), process])})
    return Peers(store, 0, 2), store


def test_nothing_is_said_while_all_live(sleeper):
    one, _ = pair(sleeper)
    assert one.reason() == "" and one.lost(wait=0.2) is None
    one.close()


def test_a_killed_process_is_named_before_its_parent_has_waited_for_it(sleeper):
    one, store = pair(sleeper)
    os.kill(sleeper, signal.SIGKILL)
    error = one.lost(wait=5)
    assert isinstance(error, ProcessLostError) and "Traceback" not in str(error)
    assert f"process 0 stops because process 1 of 2 (pid {sleeper}) is gone without a word: it was killed" in str(error)
    assert "is gone" in store.values[FAILED]  # for processes of other machines
    one.close()


def test_a_store_that_goes_before_the_process_is_seen_to_end_names_the_process(sleeper):
    one, store = pair(sleeper)
    one.close()

    def lost(keys):
        threading.Timer(0.2, os.kill, (sleeper, signal.SIGKILL)).start()
        raise RuntimeError("Connection reset by peer")

    store.check = lost
    assert f"process 1 of 2 (pid {sleeper}) is gone" in str(one.lost(wait=0))


def test_the_reason_of_a_process_that_failed_is_passed_on(sleeper):
    one, store = pair(sleeper, host="elsewhere")
    other = Peers(Store(**{"peer/0": json.dumps(["x", 1])}), 1, 2)
    other._store = store
    other.fail(DataError("no such file: a.jpg"))
    other.fail(ValueError("later"))
    assert "process 1 of 2" in str(one.lost()) and "ended: no such file: a.jpg" in str(one.lost())
    one.close(), other.close()


def test_a_process_that_goes_on_waiting_is_ended(sleeper, monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(peers_module, "GRACE", 0.1)
    monkeypatch.setattr(peers_module, "PERIOD", 0.05)
    monkeypatch.setattr(os, "_exit", ended.append)
    one, _ = pair(sleeper)
    os.kill(sleeper, signal.SIGKILL)
    one._thread.join(timeout=5)
    assert ended == [2] and "error: process 0 stops because process 1 of 2" in capfd.readouterr().err


def test_a_command_that_fails_without_a_message_of_its_own_tells_the_others(sleeper, monkeypatch, capfd):
    one, store = pair(sleeper)
    codes = []
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr(ending, "_others", [one])
    ending.leave(0)
    assert FAILED not in store.values
    ending.leave(2)
    assert "process 0 of 2" in store.values.pop(FAILED) and codes == [0, 2]
    ending.leave(1, SystemExit(3)), ending.leave(1, KeyboardInterrupt()), ending.leave(1, ValueError("x"))
    assert codes[2:] == [3, 130, 1] and "ValueError: x" in capfd.readouterr().err
    store.values.clear()
    os.kill(sleeper, signal.SIGKILL)
    ending.leave(1, RuntimeError("Connection closed by peer"))
    said = capfd.readouterr().err
    assert codes[-1] == 2 and "error: process 0 stops because" in said and "Connection closed" not in said
    try:
        raise RuntimeError("shapes of mine")  # not what torch raises because another process is gone
    except RuntimeError as error:
        ending.leave(1, error)
    said = capfd.readouterr().err
    assert codes[-1] == 2 and "RuntimeError: shapes of mine" in said and "error: process 0 stops because" in said
    one.close()


def test_one_process_ends_as_python_ends():
    assert ending.leave(7) == 7
