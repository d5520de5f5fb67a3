"""Stop requests."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from vlm.runners.train.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_is_kept_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.received == number
    assert signal.getsignal(number) is before


def test_second_signal_acts_at_once():
    before = signal.default_int_handler  # a shell starts background jobs with SIGINT ignored
    outside = signal.signal(signal.SIGINT, before)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, outside)


def test_second_sigterm_ends_the_process():
    code = (
        "import os, signal\nfrom vlm.runners.train.signals import StopSignals\n"
        "with StopSignals():\n    os.kill(os.getpid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGTERM


def test_outside_the_main_thread_nothing_is_installed():
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
