"""State that threads share, see `utils/threads.py`."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from ddep_hub.utils import threads


def test_the_last_to_leave_takes_a_change_back():
    owner = SimpleNamespace(value=1)
    outer = threads.shared_attribute(owner, "value", 2)
    inner = threads.shared_attribute(owner, "value", 2)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # as another thread would, while the second still needs it
    assert owner.value == 2
    inner.__exit__(None, None, None)
    assert owner.value == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_does_not_wait_for_a_thread_it_does_not_have():
    held, done = threading.Event(), threading.Event()

    def hold():
        with threads._lock:
            held.set()
            done.wait(0.2)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    if (child := os.fork()) == 0:
        signal.alarm(5)
        with threads.shared_attribute(SimpleNamespace(value=1), "value", 2):
            os._exit(0)
    done.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0
