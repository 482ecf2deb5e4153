import os
import signal

import pytest

from experiments import interrupt


@pytest.fixture(autouse=True)
def handlers_given_back():
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    interrupt._wanted.clear()
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_lands_in_a_callback_still_stops_the_work(number):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.install()
    interrupt.check()

    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass

    thing = Swallows()
    del thing  # the exception of the handler is printed and ignored here
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
