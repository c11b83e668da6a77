from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from serving.errors import AudioError, AudioTooLong, RequestError
from serving.model.separator import Separator
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec
from serving.songs.fact_sheet import FactSheet, SongFacts, sha256_of
from serving.songs.request import Limits, Request

SPEC = ModelSpec(
    architecture="banded",
    dimensions={},
    stems=("vocals", "drums", "other"),
    audio=AudioSpec(sample_rate_hz=44_100),
    stft=StftSpec(n_fft=4096, hop_samples=1024),
    chunk=ChunkSpec(length_s=12, overlap_s=1),
)
THERE = SPEC.stems


@pytest.mark.parametrize(
    ("stems", "accept", "answer"),
    [
        (None, None, Request(THERE, "wav", zipped=True)),
        ("", "*/*", Request(THERE, "wav", zipped=True)),
        ("vocals", None, Request(("vocals",), "wav", zipped=True)),
        ("vocals", "audio/wav", Request(("vocals",), "wav", zipped=False)),
        ("vocals", "audio/flac", Request(("vocals",), "flac", zipped=False)),
        ("vocals", "audio/mpeg", Request(("vocals",), "mp3", zipped=False)),
        (None, "audio/ogg", Request(THERE, "ogg", zipped=True)),
        ("vocals", "application/zip, audio/flac", Request(("vocals",), "flac", zipped=True)),
        ("vocals", "Audio/FLAC;q=0.9, */*;q=0.1", Request(("vocals",), "flac", zipped=False)),
        (None, "audio/flac", Request(THERE, "flac", zipped=True)),
        (" Other, vocals,other,", "application/zip", Request(("other", "vocals"), "wav", zipped=True)),
        (None, "text/html, application/xml;q=0.9, */*;q=0.8", Request(THERE, "wav", zipped=True)),
        ("vocals", "audio/*", Request(("vocals",), "wav", zipped=False)),
        ("vocals", "audio/x-wav", Request(("vocals",), "wav", zipped=False)),
        ("vocals", "audio/*, audio/flac", Request(("vocals",), "flac", zipped=False)),
        ("vocals", "audio/wav;q=0.5, audio/flac;q=0.8", Request(("vocals",), "flac", zipped=False)),
        ("vocals", "audio/wav; q=0, audio/mp3", Request(("vocals",), "mp3", zipped=False)),
        ("vocals", "audio/flac;q=nonsense", Request(("vocals",), "flac", zipped=False)),
        (None, "audio/wav;q=0.2, application/zip;q=0.9, audio/ogg;q=0.3", Request(THERE, "ogg", zipped=True)),
    ],
)
def test_headers_say_what_is_wanted(stems: str | None, accept: str | None, answer: Request) -> None:
    headers = {name: value for name, value in (("x-stems", stems), ("accept", accept)) if value is not None}
    assert Request.from_headers(headers, SPEC) == answer


@pytest.mark.parametrize(
    ("request_", "content_type", "file_name"),
    [
        (Request(("vocals",), "flac", zipped=False), "audio/flac", "vocals.flac"),
        (Request(("vocals",), "flac", zipped=True), "application/zip", "stems.zip"),
    ],
)
def test_an_answer_has_a_type_and_a_name(request_: Request, content_type: str, file_name: str) -> None:
    assert (request_.content_type, request_.file_name) == (content_type, file_name)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-stems": "vocals,guitar,piano"}, "no stem guitar, piano: it gives vocals, drums, other, accompaniment"),
        ({"x-quality": "ultra"}, "X-Quality cannot be ultra: ask for fast or best"),
        ({"accept": "audio/wav;q=0"}, "Accept cannot be audio/wav;q=0"),
        ({"accept": "image/png, audio/aac"}, "Accept cannot be image/png, audio/aac: ask for application/zip"),
    ],
)
def test_what_there_is_not_is_named(headers: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Request.from_headers(headers, SPEC)


def test_a_bit_depth_is_understood_in_capitals() -> None:
    assert Request.from_headers({"x-bit-depth": " FLOAT "}, SPEC).bit_depth == "float"
    assert Request.from_headers({"x-bit-depth": " "}, SPEC).bit_depth is None


def test_several_stems_need_a_zip() -> None:
    with pytest.raises(RequestError, match="one wav file holds one stem, not vocals, drums: ask for a zip"):
        Request(("vocals", "drums"), "wav", zipped=False)


def test_files_come_with_their_facts(tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path) -> None:
    separator, song = Separator(tiny_spec, tiny_network, weights_sha256="f" * 64), tmp_path / "song.flac"
    mixture = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2))
    soundfile.write(song, mixture, 8_000, "PCM_24")
    steps: list[tuple[str, int, int]] = []
    request, out = Request(tiny_spec.stems, "wav", zipped=True), tmp_path / "out"
    paths = request.files(separator, song, out, on_progress=lambda *step: steps.append(step))
    assert paths == {stem: out / f"{stem}.wav" for stem in tiny_spec.stems}
    assert steps[-1] == ("separate", 20_000, 20_000)
    sheet = FactSheet.from_json((out / "stems.json").read_bytes())
    assert sheet.song == SongFacts(
        "song.flac", song.stat().st_size, sha256_of(song), None, 20_000, 8_000, 2, "FLAC", "PCM_24"
    )
    assert (sheet.stems, sheet.quality, sheet.format, sheet.bit_depth) == (tiny_spec.stems, "fast", "wav", "24")
    assert sheet.model.weights_sha256 == "f" * 64
    assert sheet.work_s["separate"] > 0 < sheet.work_s["encode"]
    for stem, path in paths.items():
        peak = np.abs(soundfile.read(path)[0]).max()
        assert (sheet.files[stem].name, sheet.files[stem].size_bytes) == (path.name, path.stat().st_size)
        assert sheet.files[stem].peak == pytest.approx(peak, abs=1e-6)


def test_stems_come_by_name_not_by_place(tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path) -> None:
    separator, song = Separator(tiny_spec, tiny_network), tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2)), 8_000, "PCM_16")

    def stem(name: str) -> np.ndarray:
        path = tmp_path / f"{name}.wav"
        path.write_bytes(b"".join(Request((name,), "wav", zipped=False).answer(separator, song)))
        return np.asarray(soundfile.read(path, dtype="float32")[0])

    mixture, rate_hz = soundfile.read(song, dtype="float32")
    wanted = separator.separate(np.ascontiguousarray(mixture.T), rate_hz)
    for name in tiny_spec.stems:
        np.testing.assert_allclose(stem(name), wanted[name].T, atol=1e-4)
    assert np.abs(wanted["vocals"] - wanted["accompaniment"]).max() > 0.1, "or the two could be mixed up"


def test_quality_is_asked_for_by_a_header() -> None:
    assert Request.from_headers({}, SPEC).quality == "fast"
    assert Request.from_headers({"x-quality": " Best"}, SPEC).quality == "best"


def test_the_quality_asked_for_is_what_comes(tiny_banded: tuple[ModelSpec, nn.Module], tmp_path: Path) -> None:
    separator, song = Separator(*tiny_banded), tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2)), 44_100, "FLOAT")
    mixture = np.ascontiguousarray(soundfile.read(song, dtype="float32")[0].T)
    fast, best = (separator.separate(mixture, 44_100, quality)["vocals"] for quality in ("fast", "best"))
    headers = {"x-stems": "vocals", "accept": "audio/wav", "x-quality": "best"}
    (tmp_path / "vocals.wav").write_bytes(
        b"".join(Request.from_headers(headers, separator.spec).answer(separator, song))
    )
    found = soundfile.read(tmp_path / "vocals.wav")[0].T
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-6)
    assert np.abs(fast - best).max() > 1e-4


def test_accompaniment_is_offered_by_a_model_of_four_stems_as_the_sum_of_all_but_the_vocals(
    tiny_banded: tuple[ModelSpec, nn.Module], tmp_path: Path
) -> None:
    separator, song = Separator(*tiny_banded), tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2)), 44_100, "FLOAT")
    request = Request.from_headers({"x-stems": "accompaniment", "accept": "audio/wav"}, separator.spec)
    (tmp_path / "music.wav").write_bytes(b"".join(request.answer(separator, song)))
    stems = separator.separate(np.ascontiguousarray(soundfile.read(song, dtype="float32")[0].T), 44_100)
    wanted = stems["drums"] + stems["bass"] + stems["other"]
    np.testing.assert_allclose(soundfile.read(tmp_path / "music.wav")[0].T, wanted, rtol=0, atol=1e-6)
    assert Request.from_headers({}, separator.spec).stems == ("vocals", "drums", "bass", "other")


def test_bad_audio_is_refused_before_the_first_piece(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path
) -> None:
    song = tmp_path / "song.wav"
    audio = np.zeros((8_000 * 40, 1))
    audio[-1] = np.nan
    soundfile.write(song, audio, 8_000, "FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        next(Request(("vocals",), "wav", zipped=False).answer(Separator(tiny_spec, tiny_network), song))


@pytest.mark.parametrize(
    ("sent", "zip_name", "disposition"),
    [
        ("", "stems.zip", 'attachment; filename="stems.zip"'),
        ("attachment", "stems.zip", 'attachment; filename="stems.zip"'),
        ('attachment; filename="My Song.mp3"', "My Song.zip", 'attachment; filename="My Song.zip"'),
        (
            "attachment; filename*=UTF-8''J%C3%B3ga%20%22live%22.flac",
            "Jóga live.zip",
            "attachment; filename=\"J_ga live.zip\"; filename*=UTF-8''J%C3%B3ga%20live.zip",
        ),
        ('attachment; filename="../../etc/passwd"', "passwd.zip", 'attachment; filename="passwd.zip"'),
        (r'attachment; filename="C:\\music\\song.wav"', "song.zip", 'attachment; filename="song.zip"'),
        ('attachment; filename=".."', "stems.zip", 'attachment; filename="stems.zip"'),
        ("attachment; filename*=UTF-8''a%0D%0ASet-Cookie:x.wav", "aSet-Cookiex.zip", None),
        ("attachment; filename*=no-such-charset''%FF.wav", "\xff.zip", None),
        ('attachment; filename="Beyonc\u00c3\u00a9.wav"', "Beyonc\u00e9.zip", None),
        ('attachment; filename="Beyonc\u00e9.wav"', "Beyonc\u00e9.zip", None),
        (f'attachment; filename="{"a" * 1000}.wav"', "a" * 150 + ".zip", None),
    ],
)
def test_the_answer_is_named_after_the_song(sent: str, zip_name: str, disposition: str | None) -> None:
    request = Request.from_headers({"content-disposition": sent}, SPEC)
    assert request.file_name == zip_name
    assert disposition in (None, request.content_disposition)
    assert request.content_disposition.isascii()
    assert request.content_disposition.isprintable()


def test_one_stem_is_named_after_the_song_and_itself() -> None:
    headers = {"content-disposition": 'attachment; filename="song.wav"', "accept": "audio/mpeg", "x-stems": "drums"}
    assert Request.from_headers(headers, SPEC).file_name == "song (drums).mp3"


def test_temporary_files_are_bounded_before_one_is_written(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path
) -> None:
    separator, song = Separator(tiny_spec, tiny_network), tmp_path / "song.flac"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2)), 8_000, "PCM_24")
    stem_bytes = 20_000 * 2 * 3
    zipped, one = Request(tiny_spec.stems, "wav", zipped=True), Request(("vocals",), "wav", zipped=False)
    for request, waiting in ((zipped, 1), (one, 0)):
        needed = song.stat().st_size + waiting * stem_bytes
        assert next(request.answer(separator, song, Limits(temporary_bytes=needed)))
        with pytest.raises(AudioTooLong, match=r"take 0 MB of temporary files, .* ask for one stem, for mp3, or send"):
            next(request.answer(separator, song, Limits(temporary_bytes=needed - 1)))
    limits = Limits(temporary_bytes=song.stat().st_size + 2 * stem_bytes - 1)
    with pytest.raises(AudioTooLong):
        next(zipped.writing(separator, song, tmp_path / "stems", limits=limits))
    assert not (tmp_path / "stems").exists()
    assert next(Request(tiny_spec.stems, "mp3", zipped=True).answer(separator, song, limits))


def test_a_song_is_hashed_after_the_first_byte_of_its_answer(
    tiny_spec: ModelSpec, tiny_network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    separator, song = Separator(tiny_spec, tiny_network), tmp_path / "song.wav"
    soundfile.write(song, np.zeros((20_000, 2)), 8_000)
    hashed: list[object] = []
    monkeypatch.setattr("serving.songs.fact_sheet.sha256_of", lambda source: hashed.append(source) or "a" * 64)
    pieces = Request(tiny_spec.stems, "wav", zipped=True).answer(separator, song)
    assert next(pieces) and not hashed
    assert b'"sha256": "' + b"a" * 64 in b"".join(pieces) and hashed == [song]
