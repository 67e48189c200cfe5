"""Who speaks: clips of five voices, and a voice encoder's weights.

The clips are the prompts of the Asterisk telephone exchange, one voice a Debian package (CC-BY-SA-3.0 and CC-BY-3.0,
8 kHz). Two of the voices are one person's, in English and in Spanish. The weights are those of the PyPI package
``resemblyzer`` (Apache-2.0), a speaker encoder trained by generalised end-to-end loss (Wan et al., ICASSP 2018) on
other people's voices; a voice is the mean embedding of its training clips, and a clip is that of the voice nearest to
it.

Features are the package's: 40 mel bands (Slaney's) of power, every 10 ms. The encoder hears the loudest 0.8 s of a
clip; its package takes 1.6 s at a time and cuts out pauses, with a detector of voices.

Power spans six orders of magnitude. Floating point holds that; linear integers of 8 bits round most of it to zero. With
ranges that hold all of it the encoder tells 28 % of validation clips right in int8, with ranges that hold 98 % of its
values 64 %, and after six epochs of training so 92 % (95 % in FP32; seed 1).
"""

import io
import pickle
import wave
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import signal
from torch import nn

from eden.datasets import SPLIT_SEED, Dataset, Split, stratified_split
from eden.networks import SpeakerEncoder
from eden.packages import file_in, remedy
from profiles.errors import NetworkError
from profiles.files import one_line, read_bounded

FOLDERS = (Path("data/asterisk-sounds"), Path("/usr/share/asterisk/sounds"))  # one's own, Debian's
VOICES = ("en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
DEBIAN_PACKAGES = " ".join(f"asterisk-core-sounds-{voice[:2]}-wav" for voice in VOICES)
PACKAGE, WEIGHTS = "resemblyzer", "resemblyzer/pretrained.pt"
CLIPS_PER_VOICE = (60, 100, 200)  # to enrol it by, for validation, test
CLIP_BYTES = 4 << 20  # the longest prompt takes 1.8 MB
CLIP_RATE, RATE = 8000, 16_000  # Hz, of the clips and of the encoder's features
WINDOW, HOP, BANDS, FRAMES = 400, 160, 40, 80  # samples, samples, mel bands, frames
HEARD = FRAMES * HOP * CLIP_RATE // RATE  # samples of a clip
LOUDNESS = 10 ** (-30 / 20)  # root mean square that a clip is raised to, of full scale

Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=1)
def voices() -> Dataset:
    """Clips of five voices, in balance: 300 to enrol them by (``train``), 500 to validate, 1000 to test.

    Clips are float32 [n, 80, 40], frames of mel bands; classes are the voices in the order of `VOICES`. A clip is in
    one split only, and once.

    Raises:
        NetworkError: a voice is not installed, or a clip of it is damaged.
    """
    folder = next((folder for folder in FOLDERS if all((folder / voice).is_dir() for voice in VOICES)), None)
    if folder is None:
        raise NetworkError(
            f"not all of {', '.join(VOICES)} are in one of {', '.join(map(str, FOLDERS))}; install them "
            f"(apt-get install {DEBIAN_PACKAGES}), or put their folders into {FOLDERS[0]}"
        )
    clips, labels = list[Floats](), list[int]()
    for label, voice in enumerate(VOICES):
        found = {samples.tobytes(): samples for samples in map(read_clip, sorted((folder / voice).rglob("*.wav")))}
        usable = [samples for samples in found.values() if len(samples) >= HEARD and samples.any()]
        if len(usable) < sum(CLIPS_PER_VOICE):
            raise NetworkError(
                f"{folder / voice} holds {len(usable)} clips long enough, {sum(CLIPS_PER_VOICE)} are needed; "
                f"install it again (apt-get install --reinstall {DEBIAN_PACKAGES})"
            )
        clips += usable
        labels += [label] * len(usable)
    classes = np.array(labels, np.int64)
    return Dataset(
        "voices",
        *(
            Split(torch.from_numpy(np.stack([features(clips[k]) for k in chosen])), torch.from_numpy(classes[chosen]))
            for chosen in stratified_split(classes, CLIPS_PER_VOICE, SPLIT_SEED)
        ),
    )


def read_clip(path: Path) -> Floats:
    """Samples within -1..1 of a WAV file with one channel of 16 bits at 8 kHz: float64[n].

    Raises:
        NetworkError: no such file, or another kind of one.
    """
    try:
        with wave.open(io.BytesIO(read_bounded(path, CLIP_BYTES))) as file:
            kind = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(file.getnframes())
    except (OSError, wave.Error, EOFError) as error:
        raise NetworkError(f"cannot read {path} ({one_line(error)}); install the voices again") from error
    if kind != (1, 2, CLIP_RATE):
        raise NetworkError(
            f"{path} has {kind[0]} channels of {8 * kind[1]} bits at {kind[2]} Hz; give one of 16 at {CLIP_RATE}"
        )
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768


def features(samples: Floats) -> npt.NDArray[np.float32]:
    """What the encoder hears of a clip: float32[80, 40], frames of mel bands."""
    heard = signal.resample_poly(loudest(levelled(samples), HEARD), RATE // CLIP_RATE, 1)
    return mel_bands(heard)[:FRAMES]


def levelled(samples: Floats) -> Floats:
    """``samples``, not all of them zero, raised to the encoder's loudness; louder ones as they are."""
    return samples * max(1.0, LOUDNESS / float(np.sqrt(np.mean(samples**2))))


def loudest(samples: Floats, count: int) -> Floats:
    """The ``count`` samples in a row with the most power."""
    power = np.concatenate([[0.0], np.cumsum(samples**2)])
    first = int(np.argmax(power[count:] - power[:-count]))
    return samples[first : first + count]


def mel_bands(samples: Floats) -> npt.NDArray[np.float32]:
    """Power in mel bands, float32[frames, 40], of frames of 25 ms, 10 ms apart, the first centred on the first sample.

    As librosa's ``melspectrogram`` computes it by default, and so the encoder's package.
    """
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectra = np.fft.rfft(frames * signal.get_window("hann", WINDOW), axis=1)
    bands: npt.NDArray[np.float32] = (np.abs(spectra) ** 2 @ mel_filters().T).astype(np.float32)
    return bands


@lru_cache(maxsize=1)
def mel_filters() -> Floats:
    """Triangles of equal area over the bins of the spectrum, equally far apart in Slaney's mel: float64[40, 201].

    That scale is linear up to 1 kHz, 15 mel, and logarithmic above, 27 mel for a factor of 6.4 (Slaney, Auditory
    Toolbox, Interval Research technical report 1998-010).
    """
    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, BANDS + 2)
    edges = np.where(mels < 15, mels * 1000 / 15, 1000 * 6.4 ** ((mels - 15) / 27))
    bins, widths = np.fft.rfftfreq(WINDOW, 1 / RATE), np.diff(edges)[:, None]
    rising, falling = (bins - edges[:-2, None]) / widths[:-1], (edges[2:, None] - bins) / widths[1:]
    area = (edges[2:] - edges[:-2])[:, None] / 2
    filters: Floats = np.maximum(0, np.minimum(rising, falling)) / area
    return filters


def enrol(encoder: nn.Module, clips: Split) -> None:
    """Fill a `SpeakerEncoder` with the package's weights, and its head with the voices of ``clips``, by class.

    Raises:
        NetworkError: the package is not installed, or its weights are damaged.
    """
    assert isinstance(encoder, SpeakerEncoder)
    weights = read_weights(file_in(PACKAGE, WEIGHTS))
    try:
        for number, layer in enumerate(encoder.layers):
            layer.load_state_dict(
                {
                    f"{name}_l0": weights[f"lstm.{name}_l{number}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                }
            )
        encoder.linear.load_state_dict({name: weights[f"linear.{name}"] for name in ("weight", "bias")})
        steepness = float(weights["similarity_weight"])
    except (KeyError, RuntimeError) as error:
        raise NetworkError(
            f"{PACKAGE} holds the weights of another network ({one_line(error)}); {remedy(PACKAGE)}"
        ) from error
    with torch.no_grad():
        heard = torch.cat([encoder.embedding(batch) for batch in clips.batches(100)])
        means = torch.stack([heard[clips.labels == label].mean(dim=0) for label in range(len(encoder.head.weight))])
        encoder.head.weight.copy_(steepness * nn.functional.normalize(means))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the encoder's checkpoint, of which nothing but tensors and numbers is unpickled.

    Raises:
        NetworkError: no such file, or not one that holds tensors only.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        return {str(name): value.float() for name, value in state.items()}
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"cannot read the weights in {path} ({one_line(error)}); {remedy(PACKAGE)}") from error
