"""Several processes that train one model: how they start and join, their collectives, and how they end.

A process that trains alone is rank 0 of 1, and everything here costs it nothing. Started by `torchrun`, or by
`launch` for ``"n_gpu": N``, processes find each other through the variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT. Sums go through torch's process group; what only hosts need to know (who is alive, when to stop, what
went wrong) goes through the key-value store behind it, see `utils.heartbeat`, so that no device ever waits for it.
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
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import Stopped, UserError, run
from utils.heartbeat import GRACE, LOST_AFTER, Heartbeat, Process, is_communication_error, short_message

if TYPE_CHECKING:  # torch.distributed has it too, but does not say so to type checkers
    from torch._C._distributed_c10d import Store, TCPStore

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # that a process may keep the others waiting

# Later versions of torch have another name for it.
FORWARD_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


@dataclass
class ProcessGroup:
    """The processes that train together, as this one sees them.

    Args:
        process: This process.
        device: What it computes on.
        heartbeat: Its connection to the others; None for a process that trains alone.
    """

    process: Process = field(default_factory=Process)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    heartbeat: Heartbeat | None = None


_group = ProcessGroup()  # the only state here: made by `joined`, which takes it back; `leave` makes it one of one


def announced_process() -> Process:
    """Return this process as its launcher announces it in the environment; alone, if there is no launcher.

    Raises:
        UserError: The variables contradict each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in _variables(size)]
    except ValueError:
        numbers = [0, 0, 0, 0]
    process = Process(*numbers)
    if not (0 <= process.rank < process.size and 0 <= process.local_rank < process.local_size):
        shown = ", ".join(f"{name}={os.environ.get(name)}" for name, _ in _variables(size))
        raise UserError(f"environment: {shown} cannot be. Start with torchrun, or unset them.")
    return process


def _variables(size: str) -> tuple[tuple[str, str], ...]:
    """Return the launcher's variables, in the order of `Process`, and what stands for those that are missing."""
    rank = "0" if size == "1" else "?"
    return ("RANK", rank), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", size)


def rank() -> int:
    """Return this process's number, from 0."""
    return _group.process.rank


def world_size() -> int:
    """Return how many processes train together."""
    return _group.process.size


def is_first() -> bool:
    """Tell whether this is the process that writes files and prints."""
    return _group.process.rank == 0


# ------------------------------------------------------------------------------------------- joining and leaving


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Train together with the other processes of the launcher; an error within it reaches them all.

    Args:
        device: What this process computes on.

    Raises:
        UserError: The port is taken.
        Stopped: A process is missing; it is named.
        PeerFailed: Another process has failed and said so.
    """
    global _group
    process = announced_process()
    if process.size == 1:
        yield
        return
    name = _init_process_group(process, device)
    heartbeat = Heartbeat(process, (_prefixed(name, _connect()), _prefixed(name, _connect())))
    _group = ProcessGroup(process, device, heartbeat)
    try:
        yield
    except BaseException as error:
        reported = heartbeat.report(error)
        if reported is error:
            raise
        raise reported from error
    finally:
        leave()
        _group = ProcessGroup()


def _init_process_group(process: Process, device: torch.device) -> str:
    """Form torch's process group, NCCL with a GPU for each process and gloo otherwise.

    Returns:
        A name for the keys of these processes in the store.
    """
    own_gpu = device.type == "cuda" and process.local_size <= torch.cuda.device_count()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store = _connect(keep=process.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True")
        name = _rendezvous(store, process)
        dist.init_process_group(
            "nccl" if own_gpu else "gloo",
            store=_prefixed(f"{name}/torch", store),
            rank=process.rank,
            world_size=process.size,
            timeout=TIMEOUT,
        )
        return name
    except (RuntimeError, ValueError, KeyError) as error:
        reason = short_message(error)
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UserError(
                f"MASTER_PORT: {address} is in use by another program. Choose another port, or use torchrun with "
                f"--standalone."
            ) from error
        raise Stopped(
            f"MASTER_ADDR: rank {process.rank} of {process.size} did not meet the others at {address} ({reason}). "
            f"Start all processes within {TIMEOUT}, and let them reach that port"
        ) from error


def _connect(*, keep: bool = False) -> Store:
    """Connect to the store that all processes share; this one hosts it if `keep`."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _tcp_store(address, port, is_master=keep, timeout=TIMEOUT, wait_for_workers=False)


def _tcp_store(*arguments: Any, **options: Any) -> TCPStore:
    """Make a store that is reached by TCP; arguments are torch's."""
    return dist.TCPStore(*arguments, **options)  # type: ignore[attr-defined]


def _prefixed(prefix: str, store: Store) -> Store:
    """Return `store` with `prefix` before all its keys."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _rendezvous(store: Store, process: Process) -> str:
    """Agree on a name for the keys of these processes, since a store outlives those that torchrun starts again.

    Rank 0 makes up the name and tells whoever asks. Each question has a random number in it, and so has its answer, so
    that nobody takes for an answer what an earlier group has left in the store.

    Raises:
        RuntimeError: Some did not come; it names them.
    """
    own = os.urandom(8).hex()
    if process.rank:
        store.set(f"hello/{process.rank}", own)
        name: str = store.get(f"welcome/{own}").decode()
        store.set(f"thanks/{name}/{process.rank}", "")
        return name
    missing = set(range(1, process.size))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
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
    """Leave the other processes; rank 0 goes on alone, as one of one."""
    heartbeat = _group.heartbeat
    if heartbeat is not None:
        heartbeat.leave()
    if dist.is_initialized() and (heartbeat is None or not heartbeat.failed):  # of a broken group, NCCL would wait
        dist.destroy_process_group()
    _group.process = _group.process._replace(size=1)


def launch(command: str, argv: Sequence[str], processes: int, *, start_method: str = "spawn") -> int:
    """Call ``main(argv)`` of the module `command` in so many processes on this machine; returns the exit status.

    They are what torchrun would start. The port is the system's choice, and this process hosts the store, since it
    outlives them all. A terminal's Ctrl-C comes here only, and is forwarded once.
    """
    from torch.multiprocessing.spawn import start_processes

    store = _tcp_store("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = (command, list(argv), processes, store.port)
    context = start_processes(  # type: ignore[no-untyped-call]
        _run_command, arguments, processes, join=False, start_method=start_method
    )
    received: list[int] = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, forward) for number in signals}
    try:
        return _wait_for_all(context.processes, received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_command(local_rank: int, command: str, argv: Sequence[str], processes: int, port: int) -> None:
    """Set the variables that torchrun would set, and be the command: what each started process does."""
    with suppress(OSError, AttributeError):  # Windows has no such groups
        os.setpgid(0, 0)  # out of reach of the terminal, whose signals the parent forwards
    multiprocessing.set_start_method(None, force=True)  # for data workers: as in a process that was started by hand
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // processes))
    torch.set_num_threads(threads)
    os.environ.update(RANK=str(local_rank), LOCAL_RANK=str(local_rank))
    os.environ.update(WORLD_SIZE=str(processes), LOCAL_WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        status = run(importlib.import_module(command).main, argv)
    except Exception:  # torch would keep it in a file
        traceback.print_exc()
        status = 1
    sys.exit(status)


def _wait_for_all(processes: Sequence[Any], received: Sequence[int]) -> int:
    """Wait until all `processes` have ended, and return the exit status of the whole.

    Once one has failed, the others get some time to end by themselves before they are killed.

    Args:
        processes: They have `is_alive`, `exitcode` and `kill`.
        received: Numbers of the signals that were forwarded to them.
    """
    deadline = math.inf
    while any(process.is_alive() for process in processes):
        time.sleep(0.05)
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + LOST_AFTER + 2 * GRACE)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    for rank, process in enumerate(processes):
        cause: int = -process.exitcode  # the number of the signal that killed it, if one did
        if cause in received:
            return 128 + cause
        if cause > 0:
            name = signal.Signals(cause).name
            print(f"error: rank {rank} was killed by {name}. Go on with --resume auto", file=sys.stderr)
            return 4
    status: int = max(process.exitcode for process in processes)
    return status


# ---------------------------------------------------------------------------------------------------- collectives


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes; the tensor itself where there is one process. No host sync."""
    if world_size() == 1:
        return tensor
    total = tensor.detach().to(_group.device, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_reduce_max(value: int) -> int:
    """Return the largest of the numbers that the processes hold."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=_group.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    number: int = int(largest)
    return number


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Broadcast rank 0's values of `tensors`, such as the running statistics of batch norm, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def broadcast_object(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 alone, and return its result on all processes."""
    made: list[Any] = [make() if is_first() else None]
    if world_size() > 1:
        dist.broadcast_object_list(made, 0, device=_group.device)
    result: T = made[0]
    return result


def wrap(model: nn.Module, *, unused: bool = False) -> nn.Module:
    """Wrap `model` so that a backward pass averages the gradients of all processes; itself where there is one.

    Args:
        model: On its device. Its state stays free of the wrapper's prefix.
        unused: Whether some trained parameters take no part in the loss, so that nobody must wait for their gradients.
    """
    if world_size() == 1:
        return model
    # The warning means that copies cost a little where weights are not channels last; images always are.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    forward_sync: dict[str, Any] = {FORWARD_SYNC: False}
    device_ids = [_group.device] if _group.device.type == "cuda" else None
    return DistributedDataParallel(
        model,
        device_ids=device_ids,
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
        # Nothing in training reads running means; `broadcast_` makes them equal before an evaluation.
        **forward_sync,
    )


def no_sync(network: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Keep gradients in their process within it, if `enabled`: another micro-batch will add to them."""
    while not hasattr(network, "no_sync") and hasattr(network, "_orig_mod"):
        network = network._orig_mod  # type: ignore[assignment]  # of torch.compile
    return network.no_sync() if enabled and hasattr(network, "no_sync") else nullcontext()  # type: ignore[operator]


def agree_on_stop(step: int, request: int) -> int:
    """Return what all processes do after optimizer step `step`: 0 goes on, all else is what one of them asked for.

    A process alone gets its request. Otherwise rank 0 decides, `heartbeat.AHEAD` steps before, and everybody reads its
    decision: hosts learn from each other without a device in between, and all stop after the same step.

    Args:
        step: Optimizer steps taken so far.
        request: A number of this process to stop with, or 0.

    Raises:
        Stopped: Rank 0 or the host of the store cannot be reached.
    """
    if _group.heartbeat is None or world_size() == 1:
        return request
    return _group.heartbeat.agree_on_stop(step, request)


def is_of_communication(error: BaseException) -> bool:
    """Tell whether `error` means that processes could not talk to each other."""
    return world_size() > 1 and is_communication_error(error)


def explain(error: BaseException) -> str:
    """Explain why processes could not talk to each other, naming the one that is missing."""
    return _group.heartbeat.explain(error) if _group.heartbeat is not None else short_message(error)
