"""Tests of memory that is used again."""

import pickle

import jax
import numpy as np

from segloss.data.loading.canvases import Canvases


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_no_array_of_it_is_left():
    canvases = Canvases((3, 8, 8), 7)
    first = canvases.take(2)
    first[:2] = 1
    where, part = address(first), first[1:].view(bool)
    del first
    assert address(canvases.take(1)) != where, "a view still shows it"
    del part
    again = [canvases.take(0) for _ in range(2)]
    assert where in map(address, again)
    for array in again:
        np.testing.assert_array_equal(array, np.full((3, 8, 8), 7))


def test_an_array_on_the_device_keeps_its_memory():
    canvases = Canvases((2, 16, 16), 0)
    arrays = []
    for k in range(8):
        memory = canvases.take(2)
        memory[:] = k
        arrays.append(jax.device_put(memory))
    for k, array in enumerate(arrays):
        assert (np.asarray(array) == k).all()


def test_arrays_are_where_xla_uses_them_without_a_copy():
    canvases = Canvases((5, 3), 255)
    array = canvases.take(5)
    assert address(array) % 64 == 0
    assert jax.device_put(array).unsafe_buffer_pointer() == address(array)


def test_a_worker_gets_canvases_without_their_memory():
    canvases = Canvases((100, 100), 3)
    canvases.take(0)
    sent = pickle.dumps(canvases)
    assert len(sent) < 1000
    assert (pickle.loads(sent).take(0) == 3).all()
