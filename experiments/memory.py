"""Reads how much memory this process uses. Linux only."""

from pathlib import Path


def resident(field: str = "VmRSS") -> float:
    """Returns the resident memory of this process in megabytes.

    `resource.getrusage` is of no use for this: its maximum begins with that of the parent process.

    Args:
      field: field of /proc/self/status: "VmRSS" for the present value, "VmHWM" for the maximum so far.

    Raises:
      OSError: the machine has no /proc/self/status with this field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}: memory can be measured on Linux only")
