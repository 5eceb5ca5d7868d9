"""Reading ahead: a thread reads what comes next while the caller computes."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def read_ahead(items: Iterable[T], read: Callable[[T], R]) -> Iterator[Iterator[R]]:
    """What ``read`` makes of each item, in their order; within the block a thread reads at most one item ahead.

    An error of ``read`` is raised when its item's turn comes. A block that ends early, by an error or a signal, waits
    for the item that is being read, so that ``read`` removes what it has unpacked, and begins no other.
    """
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
    try:
        yield _in_turn(reader, items, read)
    finally:
        reader.shutdown(cancel_futures=True)


@contextmanager
def unheard() -> Iterator[None]:
    """No warning is heard within the block, in whichever thread.

    Python's filters are common to all threads: of two that change them at a time one undoes what the other has set, and
    a warning that quotes a DICOM header would be printed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _in_turn(reader: ThreadPoolExecutor, items: Iterable[T], read: Callable[[T], R]) -> Iterator[R]:
    coming: deque[Future[R]] = deque()
    for item in items:
        coming.append(reader.submit(read, item))
        if len(coming) > 1:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()
