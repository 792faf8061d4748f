"""Batches in memory that is used again: the same as others, and nobody's pixels change under their feet."""

from __future__ import annotations

import gc
import multiprocessing
import os

import numpy as np
import pytest

from base.base_dataloader import Batch, Loader
from base.base_dataset import DatasetView
from base.batch_memory import BatchMemory
from tests.tiny import Squares

SIZE = (24, 30)
fork_only = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers are not forked here")


def loader(workers: int, *, reuse: bool = True, length: int = 23, batch_size: int = 4, training: bool = True) -> Loader:
    dataset = Squares(length=length, size=SIZE)
    size = SIZE if reuse else None
    return Loader(DatasetView(dataset, None), batch_size, num_workers=workers, training=training, size=size)


def memory_of(loader: Loader) -> BatchMemory:
    return loader._loader.collate_fn.keywords["memory"]


def run_through(loader: Loader, epoch: int) -> None:
    for _ in loader.batches(epoch):
        pass


def taken(memory: BatchMemory) -> int:
    gc.collect()
    return sum(memory.taken[:])


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.keys for batch in found] == [batch.keys for batch in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.images.stride() == other.images.stride()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_epochs_on_end(workers, training):
    again, plain = loader(workers, training=training), loader(0, training=training)
    for epoch in range(4):
        for one, other in zip(again.batches(epoch), plain.batches(epoch), strict=True):
            assert_same([one], [other])


@fork_only
def test_batches_that_are_kept_stay_as_they_are():
    ours, plain = loader(2, length=80, batch_size=2), loader(0, length=80, batch_size=2)
    kept = list(ours.batches(0))
    assert taken(memory_of(ours)) == len(memory_of(ours).taken)  # no slot is free, and more were sent
    assert len(kept) > len(memory_of(ours).taken)
    assert_same(kept, list(plain.batches(0)))
    run_through(ours, 1)
    assert_same(kept, list(plain.batches(0)))
    del kept
    assert taken(memory_of(ours)) == 0


@fork_only
def test_a_slot_is_free_when_the_last_view_of_it_is_gone():
    ours = loader(1)
    batch = next(ours.batches(0))
    array, part = batch.labels[1].numpy(), batch.part(0, 1).images.float().mean()
    label = array.copy()
    del batch
    for epoch in range(3):
        run_through(ours, epoch)
    np.testing.assert_array_equal(array, label)
    assert taken(memory_of(ours)) == 1
    del array, part
    assert taken(memory_of(ours)) == 0


@fork_only
def test_an_epoch_that_was_left_gives_all_back():
    ours, plain = loader(2), loader(0)
    for epoch in range(3):
        for number, _ in enumerate(ours.batches(epoch)):
            if number == 1:
                break
    del _
    assert_same(list(ours.batches(5)), list(plain.batches(5)))
    assert taken(memory_of(ours)) == 0


@fork_only
def test_a_forked_process_gives_nothing_back_that_its_parent_has():
    ours = loader(1, length=4)
    (batch,) = ours.batches(0)  # the only one, so that the worker has nothing more to do
    assert taken(memory_of(ours)) == 1
    child = os.fork()
    if not child:
        del batch
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert taken(memory_of(ours)) == 1
    del batch
    assert taken(memory_of(ours)) == 0


@fork_only
def test_what_does_not_fit_comes_as_torch_sends_it(monkeypatch):
    monkeypatch.setattr(BatchMemory, "put", lambda self, *parts: None)
    ours = loader(2)
    assert_same(list(ours.batches(1)), list(loader(0).batches(1)))
    assert taken(memory_of(ours)) == 0
    memory = BatchMemory(1, 100)
    assert memory.put([np.zeros((200, 200), np.uint8)]) is None  # not even in a worker


def test_workers_that_are_not_forked_do_without(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda *_: "spawn")
    assert memory_of(loader(1)) is None
    assert memory_of(loader(0)) is None
    monkeypatch.undo()
    assert memory_of(loader(1, reuse=False)) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_were_prepared_are_those_that_are_asked_for(workers):
    ours, plain = loader(workers), loader(0)
    ours.prepare(3)  # nothing is running yet
    assert ours.starts_workers == (workers > 0)
    assert_same(list(ours.batches(0)), list(plain.batches(0)))
    ours.prepare(1)
    assert_same(list(ours.batches(1)), list(plain.batches(1)))
    ours.prepare(2, 8)
    assert_same(list(ours.batches(2, 8)), list(plain.batches(2, 8)))
    ours.prepare(3)
    assert_same(list(ours.batches(4)), list(plain.batches(4)))  # something else after all
    assert_same(list(ours.batches(4)), list(plain.batches(4)))  # and once more


def test_what_workers_have_read_is_used_where_an_epoch_is_gone_on_with():
    ours, plain = loader(2), loader(0)
    source = ours.batches(1)
    found = [next(source), next(source)]
    sent = ours._loader._iterator._send_idx  # torch forgets it where it begins anew
    more = ours.batches(1, 8)
    found.append(next(more))
    assert ours._loader._iterator._send_idx >= sent
    assert_same([*found, *more], list(plain.batches(1)))
