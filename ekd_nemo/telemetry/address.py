"""Names of the abstract Unix sockets by which marks reach the sampler and devices have one owner.

Abstract sockets (Linux) lie in no folder, so a container's private /tmp does not hide them, and the
kernel frees them when their process ends, however it ends.
"""

from pathlib import Path


def marks_address(telemetry: Path, node: str) -> str:
    """Where the sampler of this run on this node listens.

    Made of the folder's device and inode, the same under every mount point of it on a node.

    Raises: FileNotFoundError if the folder is not there.
    """
    stat = telemetry.stat()
    return f"\0ekd-marks-{stat.st_dev}-{stat.st_ino}-{node}"


def owner_address(uuid: str) -> str:
    """Who holds this name measures the device."""
    return f"\0ekd-owner-{uuid}"
