"""What a cluster is asked for, and whether it answers: needed before Ray, and without it."""

import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

PROBE = 8.0  # seconds that a cluster has to answer: as a host, and as Ray


class Stopped(RuntimeError):
    """The work cannot go on, for the reason that the message tells."""


class WorkersError(Stopped):
    """The work cannot go on. What is committed is not lost. `failed` holds the units set aside until then."""

    def __init__(self, message: str, failed: dict[str, str] | None = None):
        super().__init__(message)
        self.failed = failed or {}


class DamagedError(ValueError):
    """The file `name` of the store is not what its name says: its bytes changed, or it is another one's. store:
    its URL, where several are read at once."""

    def __init__(self, name: str, why: str, store: str = ""):
        where = f"{store}: " if store else ""
        super().__init__(f"{where}{name} {why} (jobs/verify.py STORE --repair sets it aside, to be made again)")
        self.name, self.why, self.store = name, why, store

    def __reduce__(self):
        return DamagedError, (self.name, self.why, self.store)


@dataclass(frozen=True)
class Unit:
    """A piece of work that commits one file.

    name: that file; group: what a worker keeps loaded between units (a backbone); cost: relative, for the order and
    the progress bar; task: what the handler is called with; needs: names of units that must be done before; rides: it
    can be made by the worker that makes its last need, from memory; on_demand: made only for others that need it.
    """

    name: str
    group: str
    cost: float
    task: object
    needs: tuple[str, ...] = ()
    rides: bool = False
    on_demand: bool = False


@dataclass(frozen=True)
class Limits:
    """Seconds. longest: of a unit whose pace is not known yet; overdue: times the slowest pace of its group, once it is
    known, but not under `shortest`; start: of a worker; away: of a store that does not answer."""

    longest: float = 7200.0
    shortest: float = 600.0
    overdue: float = 20.0
    start: float = 600.0
    away: float = 1800.0


@dataclass(frozen=True)
class Resources:
    """workers: actors; threads: CPU threads of each; gpus: GPUs of each, and Ray pins it to them; limits: of each
    run."""

    workers: int
    threads: int = 1
    gpus: float = 0
    limits: Limits = Limits()


def in_a_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster: `ray job submit` sets it."""
    return bool(os.environ.get("RAY_ADDRESS"))


def probe(address: str) -> None:
    """Raise OSError or ValueError, within twice PROBE seconds, if no Ray answers at `address`: HOST:PORT or
    ray://HOST:PORT. Ray would try for minutes, and then end the process. `auto` and `local` are for Ray to find.
    """
    if address in ("auto", "local"):
        return
    at = urlsplit(address if "://" in address else f"ray://{address}")
    if at.scheme != "ray" or not at.hostname or not at.port:  # a port that is none raises ValueError by itself
        raise ValueError("expected HOST:PORT, ray://HOST:PORT or auto")
    with socket.create_connection((at.hostname, at.port), PROBE):
        pass
    if os.environ.get("RAY_USE_TLS", "0") == "0":  # with it Ray alone knows the certificates
        import grpc

        channel = grpc.insecure_channel(f"{at.hostname}:{at.port}" if ":" not in at.hostname else at.netloc)
        try:
            grpc.channel_ready_future(channel).result(PROBE)
        except grpc.FutureTimeoutError:
            raise OSError("something answers there, but it is not Ray") from None
        finally:
            channel.close()
