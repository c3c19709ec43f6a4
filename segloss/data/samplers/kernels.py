"""Sequential loops of the samplers, compiled by numba."""

from typing import no_type_check

import numpy as np

from segloss.data.compiling import compiled

# Bit masks of pairs, nibbles and bytes. LLVM compiles the steps below to one popcount.
_ODD, _PAIRS, _NIBBLES, _BYTES = (
    np.uint64(x * 0x0101010101010101) for x in (0x55, 0x33, 0x0F, 0x01)
)


# `no_type_check` keeps jaxtyping's import hook from wrapping what numba compiles.
@compiled
@no_type_check
def count_bits(word):
    word -= (word >> np.uint64(1)) & _ODD
    word = (word & _PAIRS) + ((word >> np.uint64(2)) & _PAIRS)
    word = (word + (word >> np.uint64(4))) & _NIBBLES
    return np.int64((word * _BYTES) >> np.uint64(56))


@compiled
@no_type_check
def count_new(words, sample, held):
    """Returns how many classes of a sample are not in the class set `held`.

    `words[i]` holds the classes of sample i, as bits.
    """
    gain = 0
    for j in range(words.shape[1]):
        gain += count_bits(words[sample, j] & ~held[j])
    return gain


@compiled
@no_type_check
def add_classes(words, sample, held):
    for j in range(words.shape[1]):
        held[j] |= words[sample, j]


@compiled
@no_type_check
def deal_by_rule(order, words, batch_cl, batch_max, exact):
    """Applies the rule of `BalanceBatch` to the sample ids `order`.

    `words[i]` holds the classes of sample `order[i]`, as bits. Returns the sample ids
    of all batches, the offsets of the batches in them, the ids of the samples in no
    batch, and the number of attempts that gave a batch or drew `batch_max` samples.
    """
    n = len(order)
    # The system provides memory when it is first written to, so the unused ends of
    # large arrays take none: the results are views, and copies would take more.
    ids, left = np.empty_like(order), np.empty_like(order)
    offsets = np.empty(n + 1, np.int64)
    offsets[0] = 0
    # Positions set aside by earlier attempts, next one on top, and by this attempt.
    stack = np.empty(n if exact else 0, np.int64)
    aside = np.empty(n if exact else 0, np.int64)
    held = np.empty(words.shape[1], np.uint64)
    position = stacked = num_left = attempts = batches = used = 0
    while position < n or stacked > 0:
        held[:] = 0
        size = classes = passed = 0
        while size < batch_max and classes < batch_cl and (position < n or stacked > 0):
            if stacked > 0:
                stacked -= 1
                place = stack[stacked]
            else:
                place = position
                position += 1
            gain = count_new(words, place, held)
            if exact and classes + gain > batch_cl:
                aside[passed] = place
                passed += 1
                continue
            add_classes(words, place, held)
            classes += gain
            ids[used + size] = order[place]
            size += 1
        if classes >= batch_cl:
            used += size
            batches += 1
            offsets[batches] = used
        else:
            left[num_left : num_left + size] = ids[used : used + size]
            num_left += size
        attempts += classes >= batch_cl or size == batch_max
        for i in range(passed):
            stack[stacked + i] = aside[passed - 1 - i]
        stacked += passed
    return ids[:used], offsets[: batches + 1], left[:num_left], attempts


@compiled
@no_type_check
def list_members(words, num_classes):
    """Lists the samples of each class; bits of `words[i]` are the classes of sample i.

    Returns `starts` and `members`; those of class c are the sorted samples
    `members[starts[c] : starts[c + 1]]`.
    """
    one = np.uint64(1)
    starts = np.zeros(num_classes + 1, np.int64)
    for i in range(len(words)):
        for j in range(words.shape[1]):
            rest = words[i, j]
            while rest:
                c = 64 * j + count_bits((rest & (~rest + one)) - one)
                starts[c + 1] += 1
                rest &= rest - one
    starts = np.cumsum(starts)
    members = np.empty(starts[num_classes], np.int32)
    filled = starts[:-1].copy()
    for i in range(len(words)):
        for j in range(words.shape[1]):
            rest = words[i, j]
            while rest:
                c = 64 * j + count_bits((rest & (~rest + one)) - one)
                members[filled[c]] = i
                filled[c] += 1
                rest &= rest - one
    return starts, members


@compiled
@no_type_check
def deal_covers(
    words, rare_first, num_classes, batch_cl, batch_max, most_batches, depth, deep
):
    """Makes up to `most_batches` batches of `batch_cl` classes for `GreedyCover`.

    `words[i]` holds the classes of the i-th sample, as bits. Each sample, in order,
    leads a batch unless an earlier batch has it. The first search considers `depth`
    samples of each missing class. If it fails, a second one considers `deep` samples
    and prefers those that add the most classes. If that fails too, the sample is left
    out. Returns the positions i of the samples of all batches, and the offsets of the
    batches.
    """
    n = len(words)
    starts, members = list_members(words, num_classes)
    cursor, level = starts[:-1].copy(), np.zeros(num_classes, np.int32)
    uses = np.zeros(n, np.int32)
    lists = starts, members, cursor, level, uses
    ids, offsets = np.empty(n + batch_max, members.dtype), np.empty(n + 1, np.int64)
    offsets[0] = 0
    batches = used = 0
    for lead in range(n):
        if batches == most_batches:
            break
        if uses[lead]:
            continue
        if used + batch_max > len(ids):
            grown = np.empty(len(ids) + len(ids) // 2 + batch_max, ids.dtype)
            grown[:used] = ids[:used]
            ids = grown
        batch = ids[used : used + batch_max]
        size = fill(batch, lead, words, lists, rare_first, batch_cl, depth, False)
        if size == 0:
            size = fill(batch, lead, words, lists, rare_first, batch_cl, deep, True)
        if size > 0:
            for i in range(size):
                uses[batch[i]] += 1
            used += size
            batches += 1
            offsets[batches] = used
    return ids[:used], offsets[: batches + 1]


@compiled
@no_type_check
def fill(batch, lead, words, lists, rare_first, batch_cl, depth, most):
    """Writes `lead` and further samples to `batch` until they have `batch_cl` classes.

    Considers `depth` samples of each missing class. `most` prefers those that add the
    most classes; else the least used that add enough come first. Returns the number of
    samples, or 0 on failure.
    """
    starts, members, cursor, level, uses = lists
    held = words[lead].copy()
    classes = np.int64(0)
    for j in range(len(held)):
        classes += count_bits(held[j])
    batch[0] = lead
    size = 1
    while classes < batch_cl:
        slots = len(batch) - size
        if slots == 0:
            return 0
        # If the free slots can complete the batch, some sample adds at least this many.
        pace = (batch_cl - classes + slots - 1) // slots
        enough = len(rare_first) if most else pace
        best, best_rank, best_gain = np.int64(-1), np.int64(0), np.int64(0)
        for c in rare_first:
            if held[c >> 6] >> np.uint64(c & 63) & np.uint64(1):
                continue
            first, length = starts[c], starts[c + 1] - starts[c]
            # Moves the cursor to the least used sample of the class.
            while uses[members[cursor[c]]] > level[c]:
                cursor[c] += 1
                if cursor[c] == starts[c + 1]:
                    cursor[c] = first
                    level[c] += 1
            here = False
            for i in range(min(depth, length)):
                sample = members[first + (cursor[c] - first + i) % length]
                gain = count_new(words, sample, held)
                # Prefers samples that keep pace, then the least used, then the rarest
                # class; within one class, those that add the most classes.
                rank = (min(gain, enough) << 32) - uses[sample]
                if rank > best_rank or (
                    here and rank == best_rank and gain > best_gain
                ):
                    best, best_rank, best_gain, here = sample, rank, gain, True
            if best_rank == enough << 32:
                break
        if best < 0:
            return 0
        add_classes(words, best, held)
        classes += best_gain
        batch[size] = best
        size += 1
    return size
