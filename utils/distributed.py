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
import re
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from threading import Event, Thread
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import AlreadyTold, Interrupted, Stopped, UserError, one_line, run, status_of

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)  # that a process may keep the others waiting
BEAT = 1.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without any, after which a process counts as lost
GRACE = 10.0  # seconds in which a process may end by itself once another has failed
GONE = "gone"  # in place of a sign of life, from one who has left as he should
AHEAD = 2  # steps between rank 0's decision to stop and the stop, so that nobody has to wait for it
# Later versions of torch have another name for it.
FORWARD_SYNC = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class Place(NamedTuple):
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1


_place = Place()
_device = torch.device("cpu")
_peers: Peers | None = None


def announced_place() -> Place:
    """What whoever started us says of our place; alone, if nobody says anything.

    Raises:
        UserError: The variables contradict each other.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    try:
        numbers = [int(os.environ.get(name, default)) for name, default in _variables(size)]
    except ValueError:
        numbers = [0, 0, 0, 0]
    place = Place(*numbers)
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
    place = announced_place()
    if place.size == 1:
        yield
        return
    name = _join(place, device)
    _place, _device = place, device
    _peers = Peers(place, (dist.PrefixStore(name, _connect()), dist.PrefixStore(name, _connect())))
    try:
        yield
    except BaseException as error:
        told = _peers.tell(error)
        if told is error:
            raise
        raise told from error
    finally:
        leave()
        _place, _peers = Place(), None


def _join(place: Place, device: torch.device) -> str:
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


def _meet(store: dist.Store, place: Place) -> str:
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


def add_up(tensor: Tensor) -> Tensor:
    """The sum of what each process holds; the tensor itself where there is one process. No host sync."""
    if _place.size == 1:
        return tensor
    total = tensor.detach().to(_device, copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def largest(value: int) -> int:
    """The largest of the numbers that the processes hold."""
    if _place.size == 1:
        return value
    found = torch.tensor(value, device=_device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes rank 0's values of `tensors`, such as the running statistics of batch norm."""
    if _place.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first(make: Callable[[], T]) -> T:
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
        # Nothing in training reads running means; `copy_from_first` sees to them before they count.
        **forward_sync,
    )


def keeping_gradients(network: nn.Module, keep: bool) -> AbstractContextManager[None]:
    """Within it, and if `keep`, gradients stay with their process: another part of the batch will add to them."""
    while not hasattr(network, "no_sync") and hasattr(network, "_orig_mod"):
        network = network._orig_mod  # type: ignore[assignment]  # of torch.compile
    return network.no_sync() if keep and hasattr(network, "no_sync") else nullcontext()  # type: ignore[operator]


def agreed(step: int, wish: int) -> int:
    """What all processes do after optimiser step `step`: 0 goes on, all else is a wish that one of them had before.

    A process alone gets its wish. Otherwise rank 0 decides, `AHEAD` steps before, and everybody reads its last word:
    hosts learn from each other without a device in between, and all stop after the same step.

    Raises:
        Stopped: Rank 0 or whoever keeps the store cannot be reached.
    """
    return wish if _peers is None or _place.size == 1 else _peers.agreed(step, wish)


class Peers:
    """The other processes, as the store shows them: signs of life, failures, and rank 0's last word.

    A thread gives a sign of life every second and looks for those of the others. When one is lost or has failed, it
    sees to it that this process ends too, even if its main thread waits for a device that waits for the lost one.
    Ending without notice is safe: what is on the disk is complete at any moment.

    Args:
        place: This process's place.
        stores: Two connections to the store, one for each thread, empty of keys of other runs.
    """

    def __init__(self, place: Place, stores: tuple[dist.Store, dist.Store]) -> None:
        self.place, self.failed = place, False
        self._store, self._watched = stores
        self.at = 0  # step that the main thread has reached
        self.asked = 0  # what another process wishes, as the thread has read
        self._stop: tuple[int, int] | None = None  # after which step to do what, once that is decided
        self._over = Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._store.set(f"host/{place.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._thread = Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def agreed(self, step: int, wish: int) -> int:
        """See the function of this name."""
        self.at = step
        try:
            if self.place.rank == 0:
                wish = wish or self.asked
                if wish and self._stop is None:
                    self._stop = (step + AHEAD, wish)
                self._store.set("word", " ".join(map(str, (step, *(self._stop or (0, 0))))))
            else:
                if wish:
                    self._store.set("wish", str(wish))
                self._stop = self._last_word(step)
        except RuntimeError as error:
            if wish:  # it is gone because whoever started us is, which we have heard of all
                return wish
            raise Stopped(f"training: the store that all processes share is gone ({first_line(error)})") from error
        return self._stop[1] if self._stop and step >= self._stop[0] else 0

    def _last_word(self, step: int) -> tuple[int, int] | None:
        """What rank 0 has decided, as of a step that is late enough to decide about `step`."""
        while True:
            said, stop, wish = map(int, self._store.get("word").split())
            if stop:
                return stop, wish
            if said >= step - AHEAD:
                return None
            time.sleep(0.001)

    def tell(self, error: BaseException) -> BaseException:
        """Let the others know of `error`; returns what this process is to raise in its place."""
        if is_of_communication(error):
            error = Stopped(f"training: {self.explain(error)}. Go on with --resume")
        status = status_of(error)
        if isinstance(error, Interrupted):  # all have heard of it, and end together
            return AlreadyTold(status) if self.place.rank else error
        self.failed = True
        if not self._is_first_to_fail(self._store, status):
            return AlreadyTold(self._status_of_failed())
        if self.place.local_rank and status > 1:  # else `errors.run`, or Python, will show it
            say(f"rank {self.place.rank}: {error}")
        return error

    def explain(self, error: BaseException) -> str:
        """Why we could not talk to each other: a process that is gone, or one that is late; in words."""
        with suppress(ValueError):  # whoever started us will have noticed, and ask us to end
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = first_line(error)
        try:
            before = self._beats(self._store)
            for _ in range(5):
                if self._store.check(["failed"]):  # it has said why, and we are a consequence
                    return reason
                time.sleep(BEAT)
            now = self._beats(self._store)
            if lost := [other for other, beat in now.items() if beat == before[other] != GONE]:
                return f"{self._name(lost)} gone ({reason})"
            steps = {other: int(beat.split()[1]) for other, beat in now.items() if beat not in ("", GONE)}
            if late := [other for other, step in steps.items() if step < max(self.at, *steps.values())]:
                return f"{self._name(late)} late, and the others have waited ({reason})"
        except RuntimeError:
            return f"the store that all processes share is gone ({reason})"
        return reason

    def leave(self) -> None:
        """Say goodbye, so that nobody waits for further signs of life."""
        self._over.set()
        self._thread.join(2 * BEAT)
        if self.failed:  # a device may hold the main thread back
            Thread(target=end_soon, args=(4,), daemon=True).start()
            return
        with suppress(RuntimeError):
            self._store.set(f"beat/{self.place.rank}", GONE)

    def _is_first_to_fail(self, store: dist.Store, status: int) -> bool:
        """Whether no other process has failed before, so that it is this one that says why."""
        mine = f"{self.place.rank} {status}"
        try:
            return store.compare_set("failed", "", mine).decode() == mine
        except RuntimeError:  # no store, no others
            return True

    def _status_of_failed(self) -> int:
        try:
            return int(self._store.get("failed").split()[1])
        except RuntimeError:
            return 4

    def _beats(self, store: dist.Store) -> dict[int, str]:
        """Last sign of life of each other process: a count and its step; empty before the first."""
        keys = {other: f"beat/{other}" for other in range(self.place.size) if other != self.place.rank}
        return {other: store.get(key).decode() if store.check([key]) else "" for other, key in keys.items()}

    def _name(self, ranks: Sequence[int]) -> str:
        """Ranks and where they run, with a verb."""
        keys = {other: f"host/{other}" for other in ranks}
        hosts = {other: self._store.get(k).decode() if self._store.check([k]) else "?" for other, k in keys.items()}
        each = ", ".join(f"{other} ({host})" for other, host in hosts.items())
        return f"of {self.place.size} processes, rank {each} is"

    def _watch(self) -> None:
        """What the thread does."""
        store, count = self._watched, 0
        try:
            while not self._over.wait(BEAT if count else 0):
                count += 1
                store.set(f"beat/{self.place.rank}", f"{count} {self.at}")
                self.asked = int(store.get("wish")) if store.check(["wish"]) else 0
                if silent := self._silent(store):
                    if self._is_first_to_fail(store, 4):
                        say(f"training: {self._name(silent)} silent for {SILENCE:.0f} s. Go on with --resume")
                    end_soon(4)
                if store.check(["failed"]):
                    end_soon(int(store.get("failed").split()[1]))
        except RuntimeError:  # the store is gone, and with it rank 0 or whoever started us
            if not self._over.is_set():
                end_soon(4)

    def _silent(self, store: dist.Store) -> list[int]:
        """Ranks that have given no sign of life for too long, by our own clock."""
        now, silent = time.monotonic(), []
        for other, beat in self._beats(store).items():
            if other not in self._seen or self._seen[other][0] != beat:
                self._seen[other] = (beat, now)
            elif beat != GONE and now - self._seen[other][1] > SILENCE:
                silent.append(other)
        return silent


def is_of_communication(error: BaseException) -> bool:
    """Whether `error` says that processes could not talk to each other; known by torch's and gloo's words."""
    if _place.size == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(words in str(error) for words in ("gloo", "Connection ", "NCCL"))


def explain(error: BaseException) -> str:
    """Why processes could not talk to each other, naming the one that is missing."""
    return _peers.explain(error) if _peers is not None else first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow and the places in torch's code that it comes from."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\[/[^]]*\] *", "", line).partition(". ")[0].rstrip(". ") or type(error).__name__


def say(problem: str) -> None:
    """Print an error as `errors.run` does."""
    print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)


def end_soon(status: int) -> None:
    """End this process unless it does so by itself."""
    time.sleep(GRACE)
    os._exit(status)
