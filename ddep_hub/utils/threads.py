"""Temporary changes to state that all threads of a process share."""

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any


_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # otherwise a child would wait for a lock held by a thread of its parent
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_changes: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def shared_change(key: Hashable, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Changes state shared by threads: the first thread to enter makes the change, the last one to leave undoes it.

    Otherwise, one thread would undo what another still needs, and that one would later restore the changed state.
    `key` identifies the change; `change` makes it, and returns a function that undoes it.
    """
    with _lock:
        users, undo = _changes.get(key) or (0, change())
        _changes[key] = users + 1, undo
    try:
        yield
    finally:
        with _lock:
            users, undo = _changes.pop(key)
            if users > 1:
                _changes[key] = users - 1, undo
            else:
                undo()


@contextlib.contextmanager
def shared_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of `owner` inside the block, such as a setting of a library; see [`shared_change`]."""

    def change() -> Callable[[], None]:
        previous = getattr(owner, name)
        setattr(owner, name, value)
        return lambda: setattr(owner, name, previous)

    with shared_change((id(owner), name, value), change):
        yield
