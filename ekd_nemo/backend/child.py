"""Helper processes that do not outlive the process that started them. Linux only; imports little."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


# Ask a run to stop. torchrun and Slurm send them to the whole process group of a rank.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends, however it ends.

    Nothing else asks it to: the parent still needs its helper to save what it was told to save.

    Raises: OSError if the kernel refuses.
    """
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
