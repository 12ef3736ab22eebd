"""Images that kill, hang or starve who decodes them cost a child process, and become errors with their evidence."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from detr.images.decoding import ImageError, ImageTooLarge, SizeRule, TooExtreme, decode, resize, resize_shape
from detr.tiles import Tiling
from pipelines.labelling.decoding import DecodingLimits, InProcessDecoder, PreparedHere, limits_for
from pipelines.labelling.decoding_child import Settings
from pipelines.labelling.isolated_decoding import (
    DecoderCrashed,
    DecoderInChild,
    DecoderLost,
    DecodeTimeout,
    OutOfMemory,
    Report,
    child_environment,
    judge,
)
from pipelines.labelling.labeler_spec import LabelerSpec, build_decoder, build_detector
from pipelines.store import StoreOptions
from tests.families import write_family
from tests.faults.poison import SITE, Harm, poison, victims
from tests.waiting import wait_until

LIMITS = DecodingLimits(memory_bytes=10**9, cpu_seconds=1.5, asleep_seconds=1.5)
PLENTY = 64 * 10**9


def picture(*, width: int = 120, height: int = 90, seed: int = 0, kind: str = "JPEG", exif: int | None = None) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
    image, tags = Image.fromarray(pixels).resize((width, height)), Image.Exif()
    if exif is not None:
        tags[0x0112] = exif
        tags.get_ifd(0x8769)[0x9003] = "2024:02:29 06:30:00"
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=tags)
    return buffer.getvalue()


def heic() -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(picture(kind="PNG")))).save(buffer)
    return buffer.getvalue()


def decoder_in_child(threads: int = 1, limits: DecodingLimits = LIMITS, max_pixels: int = 10**6) -> DecoderInChild:
    return DecoderInChild(
        size_rule=SizeRule(shorter=64, longest=128), max_pixels=max_pixels, threads=threads, limits=limits
    )


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderInChild]:
    """A decoder whose children are open to poison, as is nobody else in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(SITE))
        found = decoder_in_child(threads=2)
        yield found
        found.close()


def children_of(pid: int) -> set[int]:
    """The living processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


# What is said of an image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "kind"),
    [
        (Report("died", exit_code=-signal.SIGSEGV), "crashed"),
        (Report("died", exit_code=-signal.SIGABRT), "crashed"),
        (Report("died", exit_code=-signal.SIGBUS), "crashed"),
        (Report("died", exit_code=0), "crashed"),
        (Report("died", exit_code=3), "crashed"),
        (Report("answered", {"kind": "crashed", "text": "ZeroDivisionError: x"}), "crashed"),
        (Report("computing", exit_code=-signal.SIGKILL), "decode_timeout"),
        (Report("asleep", exit_code=-signal.SIGKILL), "decode_timeout"),
        (Report("answered", {"kind": "out_of_memory", "text": "MemoryError"}, free_bytes=PLENTY), "out_of_memory"),
        (Report("died", exit_code=-signal.SIGABRT, said="std::bad_alloc", free_bytes=PLENTY), "out_of_memory"),
        (Report("answered", {"kind": "truncated", "text": "cut"}), "truncated"),
    ],
)
def test_what_an_image_did_is_its_error(report: Report, kind: str) -> None:
    verdict = judge(report, LIMITS)

    assert isinstance(verdict, ImageError)
    assert verdict.kind == kind


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (Report("died", exit_code=-signal.SIGKILL), "its process was ended by SIGKILL, sent by another process"),
        (Report("died", exit_code=-signal.SIGTERM), "its process was ended by SIGTERM, sent by another process"),
        (Report("lost", exit_code=-signal.SIGSEGV), "its process had already ended"),
        (
            Report("answered", {"kind": "out_of_memory", "text": "MemoryError"}, peak_bytes=10**8, free_bytes=10**8),
            "the machine had 100 MB of memory left",
        ),
        (
            Report("died", exit_code=-signal.SIGABRT, said="std::bad_alloc", free_bytes=10**8),
            "the machine had 100 MB of memory left",
        ),
        (Report("answered", {"machine": "no room for its pixels"}), "no room for its pixels"),
    ],
)
def test_what_the_machine_or_an_operator_did_is_never_blamed_on_an_image(report: Report, reason: str) -> None:
    assert judge(report, LIMITS) == reason


def test_an_error_carries_its_evidence() -> None:
    figures = {"cpu_seconds": 1.52, "asleep_seconds": 0.0, "wall_seconds": 9.1, "peak_bytes": 1_234_000_000}
    crash = Report("died", exit_code=-11, said="malloc(): bad\nAborted", **figures)  # type: ignore[arg-type]
    slow = Report("computing", exit_code=-9, **figures)  # type: ignore[arg-type]

    assert str(judge(crash, LIMITS)) == (
        "decoding it ended its process by SIGSEGV (1.5 s of CPU time, 9.1 s in all, peak memory 1,234 MB; "
        "last line of its output: Aborted)"
    )
    assert str(judge(slow, LIMITS)) == (
        "decoding it was stopped for taking more than the 1.5 s of CPU time that an image may take "
        "(1.5 s of CPU time, 9.1 s in all, peak memory 1,234 MB)"
    )


def test_the_largest_picture_that_is_allowed_may_take_32_bytes_a_pixel() -> None:
    assert limits_for(1_000_000, 120) == DecodingLimits(568_870_912, cpu_seconds=120, asleep_seconds=120)


def test_children_are_given_no_credentials() -> None:
    given = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "LD_LIBRARY_PATH": "/lib", "LC_ALL": "C"}

    kept = child_environment(given)

    assert {name: value for name, value in kept.items() if name in given} == {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/lib",
        "LC_ALL": "C",
    }
    assert not {value for value in kept.values() if value in ("s", "t")}


# What real children do ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_good_image_is_decoded_as_it_is_elsewhere(decoder: DecoderInChild, kind: str, orientation: int) -> None:
    data = picture(kind=kind, exif=orientation)
    upright = decode(data)
    expected = resize(upright, *resize_shape(*upright.shape[1:], shorter=64, longest=128))

    header, found = decoder.read_header(data), decoder.prepare(data)

    assert (header.height, header.width) == tuple(upright.shape[1:]) == (found.height, found.width)
    assert (header.format, header.orientation) == (kind, orientation)
    assert header.taken_at is not None
    assert header.taken_at.isoformat() == "2024-02-29T06:30:00"
    assert found.pixels.equal(expected)
    assert found.pixels.stride() == expected.stride()


@pytest.mark.slow
def test_what_only_the_model_can_resize_is_decoded_in_a_child_and_prepared_here(tmp_path: Path) -> None:
    spec = LabelerSpec(
        table="", run_id="", model=str(write_family("yolos", tmp_path)), model_sha256="", threshold=0.0, classes=None,
        device="cpu", precision="fp32", threads=1, max_pixels=10**8, image_options=StoreOptions(),
        table_options=StoreOptions(), isolated=True,
    )  # fmt: skip
    detector, _ = build_detector(spec)
    isolated, here = build_decoder(spec, detector), InProcessDecoder(detector, max_pixels=10**8)
    assert isinstance(isolated, PreparedHere)
    data, narrow = picture(kind="PNG", exif=6), picture(kind="PNG", width=600, height=3)
    large = picture(kind="PNG", width=5_000, height=4_000)  # more than a model takes whose images are not resized

    assert isolated.read_header(large).width == 5_000
    assert isolated.read_header(data) == here.read_header(data)
    found, expected = isolated.prepare(data), here.prepare(data)
    assert found.pixels.equal(expected.pixels)
    assert (found.height, found.width) == (expected.height, expected.width) == (120, 90)
    for decoder in (isolated, here):
        header = decoder.read_header(narrow)
        with pytest.raises(TooExtreme, match="cannot be resized by the image processor"):
            detector.target_shape(header.height, header.width)
    isolated.close()


@pytest.mark.slow
def test_what_is_cut_into_tiles_is_decoded_in_a_child_and_cut_here() -> None:
    spec = LabelerSpec(
        table="", run_id="", model="scenes", model_sha256="", threshold=0.0, classes=None, device="cpu",
        precision="fp32", threads=1, max_pixels=10**6, image_options=StoreOptions(), table_options=StoreOptions(),
        isolated=True, tiling=Tiling(128, 96),
    )  # fmt: skip
    detector, _ = build_detector(spec)
    isolated, here = build_decoder(spec, detector), InProcessDecoder(detector, max_pixels=10**6)
    assert isinstance(isolated, PreparedHere)

    for data in (picture(kind="PNG", width=400, height=300, exif=6), picture(kind="PNG", width=90, height=90)):
        assert isolated.read_header(data) == here.read_header(data)
        found, expected = isolated.prepare(data), here.prepare(data)
        assert type(found) is type(expected)
        assert found.pixels.equal(expected.pixels)
        assert detector.detect([found])[0].boxes_xyxy.equal(detector(data).boxes_xyxy)
    for decoder in (isolated, here):
        with pytest.raises(ImageTooLarge):
            decoder.read_header(picture(kind="PNG", width=3_000, height=2_000))
    isolated.close()


@pytest.mark.slow
def test_a_heic_is_decoded_as_it_is_elsewhere(decoder: DecoderInChild) -> None:
    upright = decode(heic())
    expected = resize(upright, *resize_shape(*upright.shape[1:], shorter=64, longest=128))

    assert decoder.read_header(heic()).format == "HEIC"
    assert decoder.prepare(heic()).pixels.equal(expected)


@pytest.mark.slow
def test_what_is_wrong_with_an_image_comes_across_in_the_same_words(decoder: DecoderInChild) -> None:
    whole = picture(width=900, height=900)
    broken = [b"", b"good morning", whole[:2000], picture(width=3000, height=3), b"\xff\xd8\xff\xd9", whole[:100]]
    broken.append(picture(width=1200, height=1200, kind="PNG"))
    damaged = bytearray(picture(kind="PNG"))
    damaged[len(damaged) // 2] ^= 0xFF
    broken.append(bytes(damaged))
    here: list[tuple[str, str]] = []
    there: list[tuple[str, str]] = []
    for data in broken:
        with pytest.raises(ImageError) as expected:
            resize_shape(*decode(data, max_pixels=10**6).shape[1:], shorter=64, longest=128)
        here.append((expected.value.kind, str(expected.value)))
        with pytest.raises(ImageError) as found:
            decoder.prepare(data)
        there.append((found.value.kind, str(found.value)))

    assert there == here
    assert {kind for kind, _ in here} >= {
        "empty",
        "not_an_image",
        "truncated",
        "too_extreme",
        "unreadable",
        "too_large",
    }


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("when", ["decode", "header"])
@pytest.mark.parametrize(
    ("harm", "error", "text"),
    [
        ("segfault", DecoderCrashed, r"ended its process by SIGSEGV \(0\.\d s of CPU time, .* peak memory \d+ MB\)"),
        ("abort", DecoderCrashed, "ended its process by SIGABRT"),
        ("exit", DecoderCrashed, "ended its process by exit code 3"),
        ("raise", DecoderCrashed, "raised ZeroDivisionError: poison"),
        ("loop", DecodeTimeout, r"more than the 1\.5 s of CPU time that an image may take \(1\.[5-9] s of CPU time"),
        ("sleep", DecodeTimeout, r"sleeping longer than 1\.5 s, as in a deadlock"),
        ("grip", DecodeTimeout, r"sleeping longer than 1\.5 s"),
        ("allocate", OutOfMemory, r"more than the 1,000 MB of memory .*MemoryError; .* peak memory 1,[1-5]\d\d MB"),
    ],
)
def test_poison_costs_one_child_and_the_next_image_is_decoded(
    decoder: DecoderInChild, tmp_path: Path, harm: Harm, error: type[ImageError], text: str, when: str
) -> None:
    data = poison(picture(), harm, when=when, log=tmp_path / "deaths")  # type: ignore[arg-type]
    if harm == "allocate":  # touching a gigabyte takes more CPU time than is given here
        decoder = decoder_in_child(limits=replace(LIMITS, cpu_seconds=60))

    with pytest.raises(error, match=text):
        decoder.read_header(data) if when == "header" else decoder.prepare(data)

    assert len(victims(tmp_path / "deaths")) == 1
    assert decoder.prepare(picture()).height == 90
    if harm == "allocate":
        decoder.close()


@pytest.mark.slow
@pytest.mark.faults
def test_a_harmful_heic_costs_one_child_and_the_next_image_is_decoded(decoder: DecoderInChild, tmp_path: Path) -> None:
    with pytest.raises(DecoderCrashed, match="ended its process by SIGSEGV"):
        decoder.prepare(poison(heic(), "segfault", log=tmp_path / "deaths"))

    assert len(victims(tmp_path / "deaths")) == 1
    assert decoder.prepare(heic()).height == 90


@pytest.mark.slow
@pytest.mark.faults
def test_a_child_that_somebody_kills_is_tried_again_and_then_the_machine_is_blamed(
    decoder: DecoderInChild, tmp_path: Path
) -> None:
    once = poison(picture(), "kill", log=tmp_path / "once", times=1)
    always = poison(picture(), "kill", log=tmp_path / "always")

    assert decoder.prepare(once).height == 90
    with pytest.raises(DecoderLost, match=r"could not be decoded in 3 attempts; none failed because of the im"):
        decoder.prepare(always)

    assert len(victims(tmp_path / "once")) == 1
    assert len(victims(tmp_path / "always")) == 3


@pytest.mark.slow
@pytest.mark.faults
def test_all_children_may_be_killed_between_images() -> None:
    decoder = decoder_in_child()
    decoder.prepare(picture())

    assert len(children_of(os.getpid())) >= 1 + 2 + 2  # the fork server, supervisors, workers
    for pid in children_of(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):  # a worker ends with its supervisor
            if "decoding_child" in Path("/proc", str(pid), "cmdline").read_text():
                os.kill(pid, signal.SIGKILL)

    assert decoder.prepare(picture()).height == 90
    decoder.close()


@pytest.mark.slow
def test_many_threads_decode_different_images_at_once(decoder: DecoderInChild) -> None:
    images = [picture(width=90 + number, seed=number) for number in range(24)]
    expected = [decode(data).shape[2] for data in images]

    with ThreadPoolExecutor(8) as threads:
        assert [found.width for found in threads.map(decoder.read_header, images)] == expected
        assert [found.width for found in threads.map(decoder.prepare, images)] == expected


@pytest.mark.slow
@pytest.mark.faults
def test_children_end_with_the_process_that_started_them_even_while_they_decode(tmp_path: Path) -> None:
    (tmp_path / "hangs").write_bytes(poison(picture(), "grip", log=tmp_path / "deaths"))
    code = (
        "import pathlib, sys; from pipelines.labelling.decoding import DecodingLimits;"
        "from detr.images.decoding import SizeRule; from pipelines.labelling.isolated_decoding import DecoderInChild;"
        "limits = DecodingLimits(10**9, 1000, 1000);"
        "rule = SizeRule(shorter=64, longest=128);"
        "decoder = DecoderInChild(size_rule=rule, max_pixels=10**6, threads=2, limits=limits);"
        "decoder.prepare(pathlib.Path(sys.argv[1]).read_bytes())"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "hangs")], env={**os.environ, "PYTHONPATH": f"{SITE}:{Path.cwd()}"}
    )
    try:
        wait_until(lambda: bool(victims(tmp_path / "deaths")))
        children = children_of(parent.pid)
        assert {pid for _, pid, _ in victims(tmp_path / "deaths")} <= children
        wait_until(lambda: len(children_of(parent.pid)) == 1 + 2 + 2)  # the fork server, supervisors, workers
        children = children_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()

    wait_until(lambda: not any(Path("/proc", str(pid)).exists() for pid in children))


@pytest.mark.slow
def test_a_good_image_that_waits_long_for_a_core_is_waited_for() -> None:
    """Ten processes and the children share one core: an image takes far longer than it may compute or sleep."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # inherited by all that are started here
    busy: list[subprocess.Popen[bytes]] = []
    decoder = decoder_in_child(limits=replace(LIMITS, cpu_seconds=0.3, asleep_seconds=0.3))
    try:
        decoder.prepare(picture(width=11, height=9))  # starts the child, which would take minutes on the busy core
        busy += [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(10)]
        began = time.monotonic()
        for number in range(4):
            assert decoder.prepare(picture(width=1100, height=900, seed=number, kind="PNG")).height == 900
        seconds = time.monotonic() - began
    finally:
        os.sched_setaffinity(0, allowed)
        for process in busy:
            process.kill()
            process.wait()
        decoder.close()
    assert seconds > 3  # else the machine was not busy, and nothing is shown


@pytest.mark.parametrize(
    ("rule", "shape"),
    [(SizeRule("fit", height=30, width=90), (30, 45)), (SizeRule("stretch", height=20, width=50), (20, 50))],
)
def test_every_size_rule_of_a_model_reaches_the_children(rule: SizeRule, shape: tuple[int, int]) -> None:
    settings = Settings((), rule, 10**6, 1.0, 1.0, 10**9)

    assert Settings.from_json(settings.to_json()) == settings
    assert settings.shape(60, 90) == shape


def test_children_without_a_size_rule_have_no_limit_of_their_own() -> None:
    settings = Settings((), None, 10**9, 1.0, 1.0, 10**9)

    assert Settings.from_json(settings.to_json()) == settings
    assert settings.shape(5_000, 4_000) == (5_000, 4_000)  # more than a model without resizing takes
