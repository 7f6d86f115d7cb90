"""State that threads of a process share, changed for a time by several of them at once."""

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any


_lock = threading.Lock()
_changes: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextlib.contextmanager
def shared_change(key: Hashable, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Changes something that other threads see: the first to come changes it, the last to leave changes it back.

    Otherwise, one thread would take back what another still needs, and that one would restore the changed state.

    Args:
        key: What is changed, and how.
        change: Changes it, and returns what changes it back.
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
    """Sets an attribute, such as a setting of a library, see [`shared_change`]."""

    def change() -> Callable[[], None]:
        previous = getattr(owner, name)
        setattr(owner, name, value)
        return lambda: setattr(owner, name, previous)

    with shared_change((id(owner), name, value), change):
        yield
