"Packed batches, the order of an epoch and prefetching: properties that hold for all inputs."

import threading
import time
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertlab import packing
from bertlab.core.files import BertlabError
from bertlab.packing import Layout
from bertlab.token_store import TokenStore


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=30))
def test_padded_view_and_back(lengths):
    layout = Layout.from_lengths(lengths)
    flat = torch.arange(layout.n_tokens) + 7
    index, mask = layout.pad_index
    expected = (
        torch.nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True)
        if lengths
        else torch.zeros(0, 0).long()
    )
    assert torch.equal(torch.where(mask, flat[index] if lengths else index, 0), expected)
    assert torch.equal(index[mask], torch.arange(layout.n_tokens))
    assert (index[~mask] == 0).all()


@settings(deadline=None)
@given(st.data())
def test_a_batch_is_its_sentences(data):
    lengths = np.array(data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=30)))
    offsets = np.concatenate([[0], lengths.cumsum()])
    store = TokenStore(np.arange(offsets[-1]).astype("<u2"), offsets, {})
    chosen = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=20)))
    batch = store.batch(chosen)
    assert sorted(batch.sentence_ids.tolist()) == sorted(chosen.tolist())
    assert batch.layout.lengths.tolist() == sorted(lengths[chosen].tolist())
    for i, ids in zip(batch.sentence_ids.tolist(), batch.ids.split(batch.layout.lengths.tolist())):
        assert ids.tolist() == list(range(offsets[i], offsets[i + 1]))


@settings(deadline=None)
@given(
    n=st.integers(1, 50),
    size=st.integers(1, 12),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    start=st.integers(0, 5),
)
def test_an_epoch_shows_each_sentence_once(n, size, seed, epoch, start):
    store = TokenStore(np.arange(n).astype("<u2"), np.arange(n + 1), {})
    got = [b.sentence_ids.sort().values.tolist() for b in packing.batches(store, size, seed, epoch)]
    assert sorted(chain.from_iterable(got)) == list(range(n))
    assert [
        b.sentence_ids.sort().values.tolist() for b in packing.batches(store, size, seed, epoch, start)
    ] == got[start:]
    full = [b for b in got if len(b) == size]
    assert [
        b.sentence_ids.sort().values.tolist()
        for b in packing.batches(store, size, seed, epoch, drop_last=True)
    ] == full


def test_prefetch_ends_with_its_reader():
    made = []

    def endless():
        i = 0
        while True:
            made.append(i)
            yield i
            i += 1

    items = packing.prefetch(endless(), depth=3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 5 + 3 + 2


def test_prefetch_raises_what_its_source_raises():
    def breaks():
        yield 1
        raise BertlabError("the disk is gone")

    items = packing.prefetch(breaks())
    assert next(items) == 1
    with pytest.raises(BertlabError, match="the disk is gone"):
        next(items)
