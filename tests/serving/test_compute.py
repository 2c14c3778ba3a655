"""The thread that runs the model."""

from __future__ import annotations

import signal
import threading

from finetune.serving.compute import ComputeThread

LONG = 10  # seconds; more is for ever


def test_a_signal_that_does_not_interrupt_the_waiting_thread_is_handled_all_the_same():
    thread, handled, seen = ComputeThread(), threading.Event(), []
    waits = threading.Event()

    class Idle:
        def has_work(self) -> bool:
            waits.set()
            return False

    def signalled() -> None:
        assert waits.wait(LONG)
        with thread.changed:  # the other one has let go of it: it waits
            pass
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # Python handles it in the main thread
        seen.append(handled.wait(LONG))
        thread.stop()

    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    try:
        thread.adopt()
        thread.add(Idle())
        other = threading.Thread(target=signalled)
        other.start()
        thread.work()
        other.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [True]
