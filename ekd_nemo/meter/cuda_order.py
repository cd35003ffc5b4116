"""Which GPUs CUDA's own numbers mean: asked of the CUDA driver, in a process of its own.

CUDA counts the fastest GPU first unless CUDA_DEVICE_ORDER says otherwise, NVML counts by PCI bus. Only the CUDA driver
knows what `CUDA_VISIBLE_DEVICES=2,0` means; initialising it costs memory on the host, hence a short-lived process:
`python -m ekd_nemo.meter.cuda_order`.
"""

import ctypes
import json
import subprocess
import sys
import uuid
from typing import Any, Final

LIBRARY: Final = "libcuda.so.1"
TIMEOUT_S: Final = 30.0
_UUID_BYTES: Final = 16


class CudaDriverError(Exception):
    """The CUDA driver did not answer; the message says which call."""


def visible_to_cuda() -> list[str] | None:
    """UUIDs, without prefix, of the GPUs that CUDA shows under this environment, in CUDA's order.

    Returns: None where there is no CUDA driver to ask, or it does not answer.
    """
    command = [sys.executable, "-P", "-m", "ekd_nemo.meter.cuda_order"]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout) if done.returncode == 0 else None


def uuids_of(driver: Any) -> list[str]:
    """UUIDs of all devices that the CUDA driver's library shows.

    Raises: CudaDriverError naming the call that failed.
    """
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    found: list[str] = []
    for ordinal in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * _UUID_BYTES)()
        _call(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
        # _v2 tells a MIG instance's own UUID; drivers before 11.4 have the first version only
        name = "cuDeviceGetUuid_v2" if hasattr(driver, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        _call(driver, name, ctypes.byref(raw), device)
        found.append(str(uuid.UUID(bytes=bytes(raw))))
    return found


def _call(driver: Any, name: str, *arguments: Any) -> None:
    code = getattr(driver, name)(*arguments)
    if code != 0:
        raise CudaDriverError(f"{name}: error {code}")


def main() -> int:
    """Write the UUIDs as JSON; exit code 1, and why on stderr, where they cannot be had."""
    try:
        found = uuids_of(ctypes.CDLL(LIBRARY))
    except (OSError, AttributeError, CudaDriverError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
