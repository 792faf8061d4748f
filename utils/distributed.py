"""Several processes that train one model: who we are, what we add up, and what happens when one of us is lost.

A process that trains alone is rank 0 of 1, and everything here costs it nothing. Started by `torchrun`, or by
`launch` for ``"n_gpu": N``, processes find each other through the variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT. Sums go through torch's process group; what only hosts need to know (who is alive, when to stop, what
went wrong) goes through the key-value store behind it, so that no device ever waits for it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import Stopped, UserError, run
from utils.heartbeat import GRACE, SILENCE, Heartbeat, Process, first_line, is_communication_error

T = TypeVar("T")


TIMEOUT = timedelta(minutes=30)  # that a process may keep the others waiting

# Later versions of torch have another name for it.
FORWARD_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


_place = Process()

_device = torch.device("cpu")

_peers: Heartbeat | None = None


def announced_process() -> Process:
    """What whoever started us says of our place; alone, if nobody says anything.

    Raises:
        UserError: The variables contradict each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in _variables(size)]
    except ValueError:
        numbers = [0, 0, 0, 0]
    place = Process(*numbers)
    if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size):
        shown = ", ".join(f"{name}={os.environ.get(name)}" for name, _ in _variables(size))
        raise UserError(f"environment: {shown} cannot be. Start with torchrun, or unset them.")
    return place


def _variables(size: str) -> tuple[tuple[str, str], ...]:
    rank = "0" if size == "1" else "?"
    return ("RANK", rank), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", size)


def rank() -> int:
    """This process's number, from 0."""
    return _place.rank


def world_size() -> int:
    """How many processes train together."""
    return _place.size


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to people."""
    return _place.rank == 0


# ------------------------------------------------------------------------------------------- joining and leaving


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Train together with the other processes that were started with us; an error in here reaches them all.

    Args:
        device: What this process computes on.

    Raises:
        UserError: The port is taken.
        Stopped: A process is missing; it is named.
        AlreadyTold: Another process has failed and said so.
    """
    global _place, _device, _peers
    place = announced_process()
    if place.size == 1:
        yield
        return
    name = _join(place, device)
    _place, _device = place, device
    _peers = Heartbeat(place, (dist.PrefixStore(name, _connect()), dist.PrefixStore(name, _connect())))
    try:
        yield
    except BaseException as error:
        told = _peers.tell(error)
        if told is error:
            raise
        raise told from error
    finally:
        leave()
        _place, _peers = Process(), None


def _join(place: Process, device: torch.device) -> str:
    """Form torch's process group, NCCL with a GPU for each of us and gloo otherwise; returns a name for our keys."""
    own_gpu = device.type == "cuda" and place.local_size <= torch.cuda.device_count()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = _connect(keep=place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
        name = _meet(store, place)
        dist.init_process_group(
            "nccl" if own_gpu else "gloo",
            store=dist.PrefixStore(f"{name}/torch", store),
            rank=place.rank,
            world_size=place.size,
            timeout=TIMEOUT,
        )
        return name
    except (RuntimeError, ValueError, KeyError) as error:
        reason = first_line(error)
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError(
                f"MASTER_PORT: {address} is in use by another program. Choose another port, or use torchrun with "
                f"--standalone."
            ) from error
        raise Stopped(
            f"MASTER_ADDR: rank {place.rank} of {place.size} did not meet the others at {address} ({reason}). Start "
            f"all processes within {TIMEOUT}, and let them reach that port"
        ) from error


def _connect(*, keep: bool = False) -> dist.Store:
    """A connection to the store that all processes share, which this one may have to keep."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=keep, timeout=TIMEOUT, wait_for_workers=False)


def _meet(store: dist.Store, place: Process) -> str:
    """A name for the keys of these processes, since a store outlives those that torchrun starts again.

    Rank 0 invents it and tells whoever asks. A question has a random number in it, and so has the answer: nobody takes
    what an earlier group has left for a word of this one.

    Raises:
        RuntimeError: Some did not come; it names them.
    """
    own = os.urandom(8).hex()
    if place.rank:
        store.set(f"hello/{place.rank}", own)
        name = store.get(f"welcome/{own}").decode()
        store.set(f"thanks/{name}/{place.rank}", "")
        return name
    missing, deadline = set(range(1, place.size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"thanks/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(0.005)
    return own


def leave() -> None:
    """Part from the other processes; rank 0 goes on alone, as one of one."""
    global _place
    if _peers is not None:
        _peers.leave()
    if dist.is_initialized() and (_peers is None or not _peers.failed):  # of a broken group, NCCL would wait
        dist.destroy_process_group()
    _place = _place._replace(size=1)


def launch(command: str, argv: Sequence[str], processes: int, *, start_method: str = "spawn") -> int:
    """Call ``main(argv)`` of the module `command` in so many processes on this machine; returns the exit status.

    They are what torchrun would start. The port is the system's choice, and this process keeps the store: it outlives
    them all. A terminal's Ctrl-C comes here only, and is handed on once.
    """
    from torch.multiprocessing import start_processes

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (command, list(argv), processes, store.port)
    context = start_processes(_start, arguments, processes, join=False, start_method=start_method)
    received = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {each: signal.signal(each, hand_on) for each in heard}
    try:
        return _await(context.processes, received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(local_rank: int, command: str, argv: Sequence[str], processes: int, port: int) -> None:
    """What each process does: take its place, and be the command."""
    with suppress(OSError, AttributeError):  # Windows has no such groups
        os.setpgid(0, 0)  # out of reach of the terminal, whose signals the parent hands on
    multiprocessing.set_start_method(None, force=True)  # for data workers: as in a process that was started by hand
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // processes))
    torch.set_num_threads(threads)
    place = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        status = run(importlib.import_module(command).main, argv)
    except Exception:  # torch would keep it in a file
        traceback.print_exc()
        status = 1
    sys.exit(status)


def _await(processes: Sequence[Any], received: Sequence[int]) -> int:
    """Wait for all; once one has failed, the others get some time to end by themselves before they are killed."""
    deadline = math.inf
    while any(process.is_alive() for process in processes):
        time.sleep(0.05)
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + SILENCE + 2 * GRACE)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    for number, process in enumerate(processes):
        cause = -process.exitcode
        if cause in received:
            return 128 + cause
        if cause > 0:
            name = signal.Signals(cause).name
            print(f"error: rank {number} was killed by {name}. Go on with --resume auto", file=sys.stderr)
            return 4
    return max(process.exitcode for process in processes)


# --------------------------------------------------------------------------------------------- what we do together


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of what each process holds; the tensor itself where there is one process. No host sync."""
    if _place.size == 1:
        return tensor
    total = tensor.detach().to(_device, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_reduce_max(value: int) -> int:
    """The largest of the numbers that the processes hold."""
    if _place.size == 1:
        return value
    found = torch.tensor(value, device=_device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give all processes rank 0's values of `tensors`, such as the running statistics of batch norm."""
    if _place.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def broadcast_object(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, which alone calls it, on all processes."""
    made: list[Any] = [make() if is_first() else None]
    if _place.size > 1:
        dist.broadcast_object_list(made, 0, device=_device)
    return made[0]


def wrap(model: nn.Module, *, unused: bool = False) -> nn.Module:
    """`model` so that a backward pass averages the gradients of all processes; itself where there is one.

    Args:
        model: On its device. Its state stays free of the wrapper's prefix.
        unused: Whether some trained parameters take no part in the loss, so that nobody must wait for their gradients.
    """
    if _place.size == 1:
        return model
    # It means that copies cost a little where weights are not channels last; images always are.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    forward_sync: dict[str, Any] = {FORWARD_SYNC: False}
    device_ids = [_device] if _device.type == "cuda" else None
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
        # Nothing in training reads running means; `broadcast_` sees to them before they count.
        **forward_sync,
    )


def no_sync(network: nn.Module, keep: bool) -> AbstractContextManager[None]:
    """Within it, and if `keep`, gradients stay with their process: another part of the batch will add to them."""
    while not hasattr(network, "no_sync") and hasattr(network, "_orig_mod"):
        network = network._orig_mod  # type: ignore[assignment]  # of torch.compile
    return network.no_sync() if keep and hasattr(network, "no_sync") else nullcontext()  # type: ignore[operator]


def agree_on_stop(step: int, wish: int) -> int:
    """What all processes do after optimiser step `step`: 0 goes on, all else is a wish that one of them had before.

    A process alone gets its wish. Otherwise rank 0 decides, `AHEAD` steps before, and everybody reads its last word:
    hosts learn from each other without a device in between, and all stop after the same step.

    Raises:
        Stopped: Rank 0 or whoever keeps the store cannot be reached.
    """
    return wish if _peers is None or _place.size == 1 else _peers.agree_on_stop(step, wish)


def is_of_communication(error: BaseException) -> bool:
    """Whether `error` says that processes could not talk to each other; known by torch's and gloo's words."""
    return _place.size > 1 and is_communication_error(error)


def explain(error: BaseException) -> str:
    """Why processes could not talk to each other, naming the one that is missing."""
    return _peers.explain(error) if _peers is not None else first_line(error)
