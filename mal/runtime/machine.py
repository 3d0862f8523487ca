"""What this machine offers: processors, GPUs, memory used. Standard library only."""

import ctypes
import math
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

_CPU = Path("/proc/cpuinfo")
_CAPABILITY = (75, 76)  # CUdevice_attribute: compute capability, major and minor


def cpu_count() -> int:
    """Processors this process may use: its affinity, and the quota of its container if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or "max"
        return allowed


def byte_products() -> str | None:
    """The processor's instruction that multiplies and adds four bytes at a time, by its name in /proc/cpuinfo.

    Intel's and AMD's VNNI, ARM's dot product; None: none, or not known. Without one INT8 is not faster, and sums of
    products may saturate.
    """
    try:
        flags = _CPU.read_text().split()
    except OSError:
        return None
    return next((name for name in ("avx512_vnni", "avx_vnni", "asimddp") if name in flags), None)


@dataclass(frozen=True)
class Gpu:
    """A CUDA GPU, as its driver describes it."""

    index: int
    name: str
    compute_capability: int  # x 10: 90 is sm_90


def gpus() -> tuple[Gpu, ...]:
    """CUDA GPUs that the driver sees; none without a driver. Asks the driver itself, no framework."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_describe(driver, index) for index in range(count.value))


def gpu_count() -> int:
    """CUDA GPUs that the driver sees."""
    return len(gpus())


def cuda_version() -> str | None:
    """Newest CUDA that the driver runs, such as "13.2"; None without a driver."""
    driver, version = _driver(), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def driver_version() -> str | None:
    """Version of NVIDIA's driver, such as "595.12"; None without one."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    text = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
    if management.nvmlInit_v2() != 0 or management.nvmlSystemGetDriverVersion(text, len(text)) != 0:
        return None
    return text.value.decode()


def _driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def _describe(driver: ctypes.CDLL, index: int) -> Gpu:
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    capability = 0
    for attribute in _CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability = 10 * capability + value.value
    return Gpu(index, name.value.decode(), capability)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    try:
        # Not ru_maxrss: after fork and exec that one starts at the parent's size.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
