"""The page in a real browser, before a real server."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.listening import RATE_HZ, TAP, TAP_SAMPLES, clock_s, gains_heard, heard, listen_for
from tests.browser.progress import note_statuses, statuses_noted, throttle
from tests.torchserve import Server, wait_for

pytestmark = pytest.mark.slow

SONG_S = 30
REFUSED = "Failed to load resource"
ALL = np.ones(4)


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of stereo: tones that come and go, beats, and noise that never repeats."""
    chance, time_s = np.random.default_rng(0), np.arange(SONG_S * RATE_HZ) / RATE_HZ
    voice = (0.6 + 0.4 * np.sin(2 * np.pi * time_s / 7)) * np.sin(2 * np.pi * 220 * time_s)
    beats = np.exp(-((2 * time_s) % 1) * 6) * chance.standard_normal(time_s.size)
    audio = 0.3 * voice + 0.1 * beats + 0.05 * chance.standard_normal(time_s.size)
    path = tmp_path_factory.mktemp("songs") / "Night Drive.wav"
    soundfile.write(path, np.stack([audio, audio], 1).clip(-1, 1), RATE_HZ, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def short(song: Path) -> Path:
    """Its first five seconds."""
    path = song.with_name("Short.wav")
    soundfile.write(path, soundfile.read(song)[0][: 5 * RATE_HZ], RATE_HZ)
    return path


@pytest.fixture(scope="module")
def stems(server: Server, song: Path) -> NDArray[np.float64]:
    """The stems that the server makes of the song, (s, n)."""
    answer = server.post(song.read_bytes(), accept="application/zip, audio/wav")
    with zipfile.ZipFile(io.BytesIO(answer.data)) as members:
        names = [name for name in members.namelist() if name.endswith(".wav")]
        return np.stack([soundfile.read(io.BytesIO(members.read(name)))[0].mean(axis=1) for name in names])


@pytest.fixture
def tab(context: BrowserContext, address: str) -> Iterator[Page]:
    """The open page. It says nothing on the console and asks nobody but its own server, whatever a test does with it."""
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(TAP)
    page.goto(address)
    expect(page.get_by_text("This model gives vocals, drums, bass and other.")).to_be_visible()
    yield page
    assert [text for text in said if not text.startswith(REFUSED)] == []
    assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []


def drop(tab: Page, *songs: Path) -> None:
    """Give files to the page; its file input takes them as it takes dropped ones."""
    tab.set_input_files("#files", list(songs))


def separated(tab: Page, *songs: Path) -> None:
    drop(tab, *songs)
    expect(tab.locator("[data-state=done]")).to_have_count(len(songs))


def serious(tab: Page) -> list[str]:
    found = Axe().run(tab).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]


def right_edge(tab: Page) -> float:
    """How far anything reaches to the right, also if it is cut off there."""
    return float(
        tab.evaluate("""() => {
          const all = [...document.body.querySelectorAll("*")].map((one) => one.getBoundingClientRect().right);
          return Math.max(document.scrollingElement.scrollWidth, ...all);
        }""")
    )


def test_a_dropped_song_shows_its_way(tab: Page, song: Path, screenshots: Path) -> None:
    tab.screenshot(path=screenshots / "empty.png", animations="disabled")
    note_statuses(tab)
    throttle(tab, up_bytes_per_s=1_500_000)
    script = """(base64) => {
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], "Night Drive.wav"));
      document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    tab.evaluate(script, base64.b64encode(song.read_bytes()).decode())
    expect(tab.get_by_text("0:30 · 4 stems")).to_be_visible()
    seen = statuses_noted(tab)
    sent = [float(match[1]) for text in seen if (match := re.fullmatch(r"Sending ([\d.]+) MB of 1.9 MB", text))]
    made = [int(match[1]) for text in seen if (match := re.fullmatch(r"0:(\d\d) of 0:30 separated", text))]
    assert sent == sorted(sent), seen
    assert any(0 < part < 1.9 for part in sent), seen
    assert made == sorted(made), seen
    assert any(0 < part < SONG_S for part in made), seen


def test_mute_and_solo_change_what_is_heard(
    tab: Page, song: Path, stems: NDArray[np.float64], screenshots: Path
) -> None:
    separated(tab, song)
    tab.get_by_role("button", name="Play").click()
    listen_for(tab, 0.65)
    gains, _, error = gains_heard(tab, stems)
    np.testing.assert_allclose(gains, ALL, atol=0.02)
    assert error < 1e-3
    changes = {"Mute Drums": [1, 0, 1, 1], "Solo Bass": [0, 0, 1, 0], "Mixture": [1, 1, 1, 1]}
    for button, expected in changes.items():
        tab.get_by_role("button", name=button, exact=True).click()
        listen_for(tab, 0.65)
        gains, _, error = gains_heard(tab, stems)
        np.testing.assert_allclose(gains, expected, atol=0.02, err_msg=button)
        assert error < 1e-3
    tab.screenshot(path=screenshots / "mixer.png", full_page=True, animations="disabled")


def test_level_and_key_change_what_is_heard(tab: Page, song: Path, stems: NDArray[np.float64]) -> None:
    separated(tab, song)
    tab.get_by_role("slider", name="Level of Vocals").fill("0.5")
    tab.get_by_role("button", name="Play").click()
    listen_for(tab, 0.65)
    np.testing.assert_allclose(gains_heard(tab, stems)[0], [0.5, 1, 1, 1], atol=0.02)
    for _ in range(3):
        tab.get_by_role("button", name="A semitone up").click()
    expect(tab.get_by_text("+3 st")).to_be_visible()
    listen_for(tab, 2.2)
    loudest = np.abs(np.fft.rfft(heard(tab) * np.hanning(TAP_SAMPLES))).argmax()
    assert loudest * RATE_HZ / TAP_SAMPLES == pytest.approx(220 * 2 ** (3 / 12), rel=0.005)


@pytest.mark.parametrize("semitones", [-6, -1, 3, 6])
def test_the_key_shifts_tones_and_keeps_the_time(tab: Page, semitones: int) -> None:
    script = """async ([semitones, hertz]) => {
      const { PitchShifter } = await import("./pitch.js");
      const shifter = new PitchShifter();
      shifter.ratio = 2 ** (semitones / 12);
      const wave = (n) => Math.sin((2 * Math.PI * hertz * n) / 22050);
      const tone = Float32Array.from({ length: 66150 }, (_, n) => (n < 44100 ? wave(n) : 0));
      const [left, right] = [new Float32Array(tone.length), new Float32Array(tone.length)];
      shifter.process(tone, tone, left, right);
      return [Array.from(left), PitchShifter.delay];
    }"""
    shifted, delay = tab.evaluate(script, [semitones, 440])
    turn = 2 * np.pi * 440 * 2 ** (semitones / 12) / 22_050 * np.arange(len(shifted))
    middle = slice(15_000, 37_000)
    waves = np.stack([np.sin(turn), np.cos(turn)])[:, middle]
    gains, *_ = np.linalg.lstsq(waves.T, np.array(shifted)[middle], rcond=None)
    noise = np.array(shifted)[middle] - gains @ waves
    assert np.hypot(*gains) == pytest.approx(1, rel=0.01)
    assert np.std(noise) < 0.01, "40 dB below the tone"
    end = np.flatnonzero(np.abs(shifted) > 0.5).max()
    assert end - delay == pytest.approx(44_100, abs=1_500)


def test_seek_and_loop(tab: Page, song: Path, stems: NDArray[np.float64]) -> None:
    separated(tab, song)
    tab.get_by_role("button", name="Play").click()
    lane = tab.locator(".lane .stage").first.bounding_box()
    assert lane is not None
    began_s = clock_s(tab)
    tab.mouse.click(lane["x"] + lane["width"] * 20 / SONG_S, lane["y"] + 20)
    listen_for(tab, 0.65)
    gains, at_s, error = gains_heard(tab, stems)
    assert 20.5 < at_s < 20.1 + clock_s(tab) - began_s
    np.testing.assert_allclose(gains, ALL, atol=0.02)
    assert error < 1e-3
    tab.keyboard.down("Shift")
    tab.mouse.move(lane["x"] + lane["width"] * 5 / SONG_S, lane["y"] + 20)
    tab.mouse.down()
    tab.mouse.move(lane["x"] + lane["width"] * 5.7 / SONG_S, lane["y"] + 20, steps=3)
    tab.mouse.up()
    tab.keyboard.up("Shift")
    expect(tab.get_by_role("button", name="Loop", exact=True)).to_have_attribute("aria-pressed", "true")
    listen_for(tab, 2.2)
    played = heard(tab)
    ends = tab.evaluate("""() => {
      const read = (name) => Number(getComputedStyle(document.querySelector(".board")).getPropertyValue(name));
      return [read("--from"), read("--to"), read("--at")];
    }""")
    length = round((ends[1] - ends[0]) * SONG_S * RATE_HZ)
    assert length == pytest.approx(0.7 * RATE_HZ, rel=0.1)
    errors = [
        np.abs(played[shift:] - played[:-shift])[-RATE_HZ // 2 :].max() for shift in range(length - 2, length + 3)
    ]
    assert min(errors) < 0.01, "every round is the same"
    assert ends[0] <= ends[2] <= ends[1]


def test_the_first_lane_plays_before_the_last_has_come(tab: Page, song: Path, stems: NDArray[np.float64]) -> None:
    throttle(tab, down_bytes_per_s=700_000)
    drop(tab, song)
    tab.get_by_role("button", name="Play").click()
    listen_for(tab, 0.7)
    assert tab.locator(".song").get_attribute("data-state") == "receiving"
    assert tab.locator(".lane.whole").count() < 4
    assert gains_heard(tab, stems)[2] < 1e-3
    throttle(tab)
    expect(tab.locator("[data-state=done]")).to_be_visible()
    listen_for(tab, 0.65)
    gains, _, error = gains_heard(tab, stems)
    np.testing.assert_allclose(gains, ALL, atol=0.02, err_msg="the others have joined in")
    assert error < 1e-3


def test_a_cancelled_song_leaves_no_work_on_the_server(tab: Page, server: Server, song: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(-3_000, 3_000, 600 * RATE_HZ, dtype=np.int16)
    soundfile.write(tmp_path / "Endless.flac", noise, RATE_HZ)
    tab.locator("[value=best]").check()
    drop(tab, tmp_path / "Endless.flac")
    expect(tab.locator("[data-state=receiving]")).to_be_visible()
    before = server.log.read_text().count('"status": 499')
    tab.get_by_role("button", name="Cancel").click()
    expect(tab.locator("[data-state=cancelled]")).to_be_visible()
    wait_for(lambda: server.log.read_text().count('"status": 499') == before + 1)
    tab.locator("[value=fast]").check()
    separated(tab, song)


def test_what_is_no_song_is_told_in_the_servers_words(tab: Page, server: Server, short: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk")
    (tmp_path / "gone.wav").write_bytes(short.read_bytes())
    drop(tab, tmp_path / "notes.txt", short, tmp_path / "gone.wav")
    (tmp_path / "gone.wav").unlink()
    expect(tab.locator("[data-state=done]")).to_be_visible()
    told = tab.locator("[data-state=failed] .status")
    expect(told).to_have_count(2)
    expect(told.first).to_have_text(server.post(b"buy milk").json()["message"])
    expect(told.last).to_contain_text("The file cannot be read")
    expect(tab.get_by_role("button", name="Try again")).to_have_count(2)


def test_several_songs_wait_for_each_other(tab: Page, song: Path, short: Path) -> None:
    tab.evaluate("""() => {
      window.most = 0;
      const running = "[data-state=sending], [data-state=working], [data-state=receiving]";
      const count = () => (most = Math.max(most, document.querySelectorAll(running).length));
      new MutationObserver(count).observe(document.body, { subtree: true, childList: true, attributes: true });
    }""")
    throttle(tab, down_bytes_per_s=1_000_000)
    drop(tab, short)
    drop(tab, song)
    expect(tab.locator("[data-state=receiving]", has_text="Night Drive")).to_be_visible()
    tab.get_by_role("button", name="Open Night Drive.wav").click()  # while it comes
    expect(tab.locator(".clock .length")).to_have_text(" / 0:30")
    throttle(tab)
    expect(tab.locator("[data-state=done]")).to_have_count(2)
    assert tab.evaluate("most") == 1
    expect(tab.locator(".lane.whole")).to_have_count(4)
    tab.get_by_role("button", name="Open Short.wav").click()
    expect(tab.locator(".clock .length")).to_have_text(" / 0:05")
    tab.get_by_role("button", name="Open Night Drive.wav").click()
    expect(tab.locator(".clock .length")).to_have_text(" / 0:30")
    expect(tab.get_by_role("button", name="Download Other")).to_be_enabled()
    expect(tab.locator(".lane.whole")).to_have_count(4)
    tab.get_by_role("button", name="Remove Night Drive.wav").click()
    expect(tab.locator(".lane")).to_have_count(0)


@pytest.mark.parametrize("audio_format", ["flac", "mp3"])
def test_compressed_stems_play(tab: Page, short: Path, audio_format: str) -> None:
    tab.get_by_label("Format").select_option(audio_format)
    for stem in ("drums", "bass"):
        tab.locator(f"#stems [data-stem={stem}]").click()
    separated(tab, short)
    expect(tab.locator(".lane.whole")).to_have_count(2)
    tab.get_by_role("button", name="Play").click()
    listen_for(tab, 0.6)
    assert np.abs(heard(tab)).max() > 0.01


def test_downloads(tab: Page, song: Path, stems: NDArray[np.float64], tmp_path: Path) -> None:
    separated(tab, song)
    files = {}
    tab.get_by_role("button", name="Mute Drums").click()
    tab.get_by_role("slider", name="Level of Vocals").fill("0.5")
    for button in ("Download Vocals", "Download mix", "Download zip"):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=button).click()
        files[button] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[button])
    assert [path.name for path in files.values()] == [
        "Night Drive (vocals).wav",
        "Night Drive (mix).wav",
        "Night Drive.zip",
    ]
    np.testing.assert_array_equal(soundfile.read(files["Download Vocals"])[0][:, 0], stems[0])
    karaoke, rate_hz = soundfile.read(files["Download mix"])
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(karaoke[:, 0], 0.5 * stems[0] + stems[2] + stems[3], atol=2**-22)
    with zipfile.ZipFile(files["Download zip"]) as members:
        assert members.testzip() is None
        assert {"vocals.wav", "drums.wav", "bass.wav", "other.wav"} <= set(members.namelist())


def test_the_keyboard_alone_is_enough(tab: Page, song: Path, stems: NDArray[np.float64]) -> None:
    with tab.expect_file_chooser() as chooser:
        # An answer of the page says that it hands choosers to this test from now on. A key alone may be faster than that order.
        while tab.evaluate("document.activeElement.id") != "files":
            tab.keyboard.press("Tab")
        tab.keyboard.press("Space")
    chooser.value.set_files(song)
    expect(tab.locator("[data-state=done]")).to_be_visible()
    tab.keyboard.press("Tab")
    tab.evaluate("document.activeElement.blur()")
    began_s = clock_s(tab)
    tab.keyboard.press("Space")
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    tab.keyboard.type("m2s1s3")
    listen_for(tab, 0.65)
    gains, at_s, _ = gains_heard(tab, stems)
    np.testing.assert_allclose(gains, [1, 0, 1, 0], atol=0.02)
    assert 15.5 < at_s < 15 + clock_s(tab) - began_s
    for key in ("a", "[", "+"):
        tab.keyboard.press(key)
    for button in ("Mixture", "Loop"):
        expect(tab.get_by_role("button", name=button, exact=True)).to_have_attribute("aria-pressed", "true")
    expect(tab.get_by_text("+1 st")).to_be_visible()
    tab.keyboard.press("Space")
    expect(tab.get_by_role("button", name="Play")).to_be_visible()
    solo = tab.get_by_role("button", name="Solo Bass")
    solo.click()
    tab.keyboard.press("Space")  # plays, although the button has the focus
    expect(tab.get_by_role("button", name="Pause")).to_be_visible()
    expect(solo).to_have_attribute("aria-pressed", "false")
    reached = set()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        )
    assert {"Pause", "Mute Other", "Level of Bass", "Download Drums", "Position", "Download zip"} <= reached


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_it_is_for_everyone(tab: Page, short: Path, screenshots: Path, scheme: str, width: int) -> None:
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    tab.set_viewport_size({"width": width, "height": 844})
    assert serious(tab) == []
    tab.screenshot(path=screenshots / f"empty-{scheme}-{width}.png", animations="disabled")
    separated(tab, short)
    tab.get_by_text("Keyboard").click()
    tab.get_by_role("button", name="Mute Drums").click()
    tab.get_by_role("button", name="Spectrogram of Bass").click()
    tab.get_by_role("slider", name="Position").focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_timeout(400)
    assert serious(tab) == []
    assert right_edge(tab) <= width
    tab.screenshot(path=screenshots / f"mixer-{scheme}-{width}.png", full_page=True, animations="disabled")
    tab.set_viewport_size({"width": 320, "height": 640})
    assert right_edge(tab) <= 320
