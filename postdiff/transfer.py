"""Copies between host and GPU that the host does not wait for. On a CPU all of it is done at once."""

import time

import numpy as np
import torch


def send(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """`tensor` on `device`, in `dtype` (its own by default).

    To a GPU it goes by way of pinned memory, in the order of the work that the GPU was given: from ordinary memory the
    host would wait until all of that work is done.
    """
    dtype = dtype or tensor.dtype
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device, dtype)
    return tensor.to(dtype).pin_memory().to(device, non_blocking=True)


class Moment:
    """When `device` has done what it was given until now; on a CPU that is now."""

    def __init__(self, device: torch.device):
        self.at = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event:
            self.event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        if self.event:
            self.event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Seconds from `earlier` on, by the clock of the device. Both moments have been waited for, or this one."""
        if self.event and earlier.event:
            return earlier.event.elapsed_time(self.event) / 1000
        return self.at - earlier.at


class Fetched:
    """Tensors on their way to the host: a GPU goes on with what it is given next. ready: when they are there."""

    def __init__(self, *tensors: torch.Tensor):
        self.tensors = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]  # pinned, of a GPU
        self.ready = Moment(tensors[0].device)

    def arrays(self) -> list[np.ndarray]:
        """The values, once they are there, in ordinary memory: what is pinned is used again by the next."""
        self.ready.wait()
        return [tensor.numpy().copy() if self.ready.event else tensor.numpy() for tensor in self.tensors]
