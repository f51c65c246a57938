"""Requests to stop: a signal becomes a word in the run's folder, which training reads after every step.

So a request reaches the process that trains wherever it comes from: SLURM's signals, `kill`, Ctrl-C, or the dispatcher.
That process is a grandchild in a session of its own, and a signal alone would end it without a word.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@contextmanager
def forward_signals(to: Callable[[str], object]) -> Iterator[Callable[[], None]]:
    """While the block lasts, SIGTERM, SIGUSR2 and SIGINT do nothing but call `to` with their name.

    Gives a function that takes the signals once more, for when a library has taken them for itself.
    """

    def handler(number: int, _: Any) -> None:
        to(signal.Signals(number).name)

    def take() -> None:
        for number in SIGNALS:
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    take()
    try:
        yield take
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, previous in before.items():
            signal.signal(number, previous)
