"""Where a number comes from: the code and the machine that measured it."""

import os
import platform
import re
import subprocess
from pathlib import Path

from pipelines.engine.identity import digest


def commit() -> str:
    """The commit that this code is, `-dirty` if it was changed since. Without git (Ray leaves .git out of a working
    directory) a checksum of its sources."""
    folder = Path(__file__).parents[2]
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        files = sorted(file for part in ("postdiff", "pipelines", "jobs") for file in folder.glob(f"{part}/**/*.py"))
        return f"sources {digest(b''.join(file.read_bytes() for file in files))} (no git checkout)"


def machine(gpu: bool = True) -> str:
    """What torch runs on here, in words: the GPU, if there is one and `gpu`; else the cores."""
    import torch

    if gpu and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else []
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}, torch {torch.__version__}"
