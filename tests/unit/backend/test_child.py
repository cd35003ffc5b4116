"""Helper processes under the signals that stop a run."""

import signal
import subprocess
import sys

PROGRAM = """
import sys
from ekd_nemo.backend.child import die_with_parent
die_with_parent()
print("ready", flush=True)
print(sys.stdin.readline().strip(), flush=True)
"""


def test_a_helper_outlives_the_signals_that_stop_a_run() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for each in (signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(each)
        said, _ = process.communicate("still here\n", timeout=180)
    assert said == "still here\n"
    assert process.returncode == 0
