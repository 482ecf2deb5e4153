import os
import signal

import pytest

from experiments import interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_check_raises_after_signal_whose_exception_was_swallowed(number):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt.install()
    interrupt.check()

    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass

    swallower = Swallows()
    del swallower  # Python prints and ignores the handler's exception in a finalizer
    with pytest.raises(KeyboardInterrupt):
        interrupt.check()


def test_install_leaves_ignored_ctrl_c_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt.install()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
