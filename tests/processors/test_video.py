from __future__ import annotations

import base64
import io
import json
import pickle
import random
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlm.common.errors import ConfigError, DataError
from vlm.common.types import Prepared
from vlm.processors.image.native import NativeRecipe
from vlm.processors.image.recipe import ImageRecipe
from vlm.processors.image.split import SplitRecipe
from vlm.processors.image.tiles import TilesRecipe
from vlm.processors.video import read as video_read
from vlm.processors.video.read import open_clip
from vlm.processors.video.recipe import VideoRecipe, fps_ids, segment_ids, uniform_ids

LYNX = Path(__file__).parents[1] / "golden" / "lynx" / "open"
TABLES = json.loads((LYNX / "case.json").read_text())["frame_ids"]
DECODERS = ["opencv", pytest.param("decord", marks=pytest.mark.skipif(not video_read.installed("decord"), reason=""))]
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def recipe(frames: int = 4, size: int = 8, image: dict | None = None, **options: object) -> VideoRecipe:
    frame_recipe = ImageRecipe(ImageRecipe.Config(size=size, **PLAIN, **(image or {})))
    return VideoRecipe(VideoRecipe.Config(num_frames=frames, **options), frame_recipe)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 frames at 10 per second; frame k has brightness 10 k."""
    file = tmp_path_factory.mktemp("video") / "clip.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (32, 32))
    for k in range(25):
        writer.write(np.full((32, 32, 3), 10 * k, np.uint8))
    writer.release()
    return file


def which(tensor: torch.Tensor) -> list[int]:
    return (tensor.mean(dim=(1, 2, 3)) * 25.5).round().int().tolist()


@pytest.mark.parametrize("case", [k for k in TABLES["training_false"] if k != "key"])
def test_published_frames_in_evaluation(case: str) -> None:
    total, wanted = map(int, case.split(","))
    assert segment_ids(total, wanted) == TABLES["training_false"][case]


@pytest.mark.parametrize("case", TABLES["training_true_numpy_seed_7"])
def test_published_frames_in_training(case: str) -> None:
    """The random generators differ, so: the published draw is one that the rule here makes, and all stay in range."""
    total, wanted = map(int, case.split(","))
    drawn = Counter(tuple(segment_ids(total, wanted, random.Random(seed))) for seed in range(3000))
    per_place = [{ids[k] for ids in drawn} for k in range(wanted)]
    assert all(frame in place for frame, place in zip(TABLES["training_true_numpy_seed_7"][case], per_place))
    assert all(list(ids) == sorted(ids) and ids[0] >= 0 and ids[-1] < total and len(ids) == wanted for ids in drawn)
    if total <= wanted:
        assert all(set(ids) == set(range(total)) for ids in drawn)
    else:
        assert all(len(set(ids)) == wanted for ids in drawn)
        assert set().union(*per_place) == set(range(total))


def test_uniform_takes_the_middles() -> None:
    assert uniform_ids(100, 4) == [12, 37, 62, 87]
    assert uniform_ids(5, 1) == [2]
    assert uniform_ids(2, 5) == [0, 0, 0, 1, 1]
    assert all(len(set(uniform_ids(n, 7))) == 7 for n in range(8, 60))


def test_fps_takes_a_frame_per_interval() -> None:
    assert fps_ids(25, 10, 2, 8) == [0, 5, 10, 15, 20]
    assert fps_ids(25, 10, 2, 3) == [0, 10, 20]
    assert fps_ids(100, 29.97, 1, 8) == [0, 30, 60, 90]
    assert fps_ids(3, 10, 50, 8) == [0, 1, 2]  # no frame twice
    assert fps_ids(1, 10, 1, 8) == [0]


@pytest.mark.parametrize("backend", DECODERS)
def test_frames_of_a_file(clip: Path, backend: str) -> None:
    assert which(recipe(5, backend=backend)(str(clip))) == [2, 7, 12, 17, 22]
    assert which(recipe(3, sampling="segments", backend=backend)(clip)) == [0, 9, 17]
    assert which(recipe(8, sampling="fps", fps=2, backend=backend)(clip)) == [0, 5, 10, 15, 20]
    assert which(recipe(30, backend=backend)(clip)) == sorted(k % 25 for k in range(30))
    assert which(recipe(3, backend=backend)(clip.read_bytes())) == [4, 12, 20]


def test_decoders_agree(clip: Path) -> None:
    pytest.importorskip("decord")
    for options in ({}, {"sampling": "segments"}, {"sampling": "fps", "fps": 3}):
        one, two = (recipe(6, backend=b, **options)(clip) for b in ("decord", "opencv"))
        assert torch.equal(one, two)


def test_every_form_of_a_clip_gives_the_same_tensor(clip: Path, tmp_path: Path) -> None:
    frames = open_clip(clip, "", "opencv").read(range(12))
    images = [Image.fromarray(f) for f in frames]
    texts = []
    for k, frame_recipe in enumerate(images):
        frame_recipe.save(tmp_path / f"frame_{k}.png")
        out = io.BytesIO()
        frame_recipe.save(out, "PNG")
        texts.append(base64.b64encode(out.getvalue()).decode())
    (tmp_path / "clip.json").write_text(json.dumps(texts))
    (tmp_path / "notes.txt").write_text("not a frame")
    paths = [str(tmp_path / f"frame_{k}.png") for k in range(12)]
    want = recipe(4)(frames)
    assert which(want) == [1, 4, 7, 10]
    data = [base64.b64decode(t) for t in texts]
    for source in (tmp_path, tmp_path / "clip.json", texts, paths, images, tuple(data)):
        assert torch.equal(recipe(4)(source), want)
    one = recipe(3)(tmp_path / "frame_2.png")
    assert torch.equal(one, recipe(3)(data[2]))
    (tmp_path / "one.json").write_text(json.dumps(texts[2]))
    assert torch.equal(recipe(3)(tmp_path / "one.json"), one)


def test_a_file_of_frames_names_no_other_files(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "other.png")
    for names in ([str(tmp_path / "other.png")], ["other.png", "other.png"], str(tmp_path / "other.png")):
        (tmp_path / "clip.json").write_text(json.dumps(names))
        with pytest.raises(DataError, match=r"clip\.json frame 0: not base64"):
            recipe(2)(str(tmp_path / "clip.json"))


def test_published_clips() -> None:
    want = load_file(LYNX / "tensors.safetensors")["video/pixel_values"]
    made = recipe(3, want.shape[-1], {"resize": "shorter"}, sampling="segments")
    made.image = ImageRecipe(ImageRecipe.Config(size=want.shape[-1], resize="shorter"))
    for line, pixels in zip((LYNX / "videos.jsonl").read_text().splitlines(), want, strict=True):
        assert torch.equal(made(LYNX / json.loads(line)["video"]), pixels)


def test_training_draws_frames_and_one_crop(clip: Path) -> None:
    made = recipe(5, sampling="segments")
    draws = {tuple(which(made(clip, rng=random.Random(seed)))) for seed in range(6)}
    assert len(draws) > 3
    assert torch.equal(made(clip, rng=random.Random(1)), made(clip, rng=random.Random(1)))
    assert which(made(clip)) == [0, 5, 10, 15, 20]
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    cropped = recipe(3, image={"train": {"scale": (0.2, 0.4), "flip": 0.5}})
    frames = cropped([noise, noise, noise], rng=random.Random(4))
    assert torch.equal(frames[0], frames[1])
    assert not torch.equal(frames, cropped([noise, noise, noise]))


def test_a_clip_with_fewer_frames_than_asked(clip: Path) -> None:
    frames = open_clip(str(clip), "clip", "auto").count
    assert len(recipe(frames + 3)(str(clip))) == frames + 3  # published: some are repeated
    assert len(recipe(frames, on_short_video="error")(str(clip))) == frames
    with pytest.raises(DataError, match=rf"{frames} frames, but video.num_frames asks for {frames + 3}"):
        recipe(frames + 3, on_short_video="error")(str(clip))


def test_pickles(clip: Path) -> None:
    made = recipe()
    assert torch.equal(pickle.loads(pickle.dumps(made))(clip), made(clip))


def test_a_file_with_fewer_frames_than_it_says(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = video_read._with_opencv

    def boasting(source: object, label: str) -> video_read.Clip | None:
        found = honest(source, label)  # type: ignore[arg-type]
        assert found is not None
        found.count = 40
        return found

    monkeypatch.setattr(video_read, "_with_opencv", boasting)
    assert which(recipe(5, backend="opencv")(clip)) == [2, 7, 12, 17, 22]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.mp4", b"hello text", r"text\.mp4: no video that .* can read \(of an unknown kind\)"),
        ("empty.mp4", b"", r"empty\.mp4: empty"),
        ("bad.json", b'["no base64!"]', r"bad\.json frame 0: not base64"),
        ("junk.json", b'["aGVsbG8="]', r"junk\.json frame 0: not an image format"),
        ("none.json", b"[]", r"none\.json: no frames"),
        ("dict.json", b"{}", r"dict\.json: holds a dict"),
        ("cut.jpg", b"\xff\xd8\xff\xe0", r"cut\.jpg frame 0: corrupt or truncated"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        recipe()(str(tmp_path / name))


def test_a_damaged_video(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:600])
    with pytest.raises(DataError, match=r"cut\.mp4"):
        recipe()(str(tmp_path / "cut.mp4"))


def test_other_bad_clips(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.mp4: no such file or folder"):
        recipe()("gone.mp4")
    with pytest.raises(DataError, match="a folder without frames"):
        recipe()(tmp_path)
    with pytest.raises(DataError, match="toy/3: a float is not a video"):
        recipe()(1.5, name="toy/3")
    with pytest.raises(DataError, match="toy/4: no frames"):
        recipe()([], name="toy/4")
    with pytest.raises(DataError, match=r"bytes: no video that .* can read"):
        recipe()(b"no video")
    with pytest.raises(DataError, match="frames without a frame rate"):
        recipe(sampling="fps")([np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(DataError, match=r"frame 3: 32 x 32 pixels, allowed are 1 to 1000"):
        recipe(image={"max_pixels": 1000})(clip)


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"num_frames": 2, "fps": 0.0}])
def test_impossible_recipes(options: dict) -> None:
    with pytest.raises(ConfigError, match="(num_frames is 0, expected at least 1|fps is 0.0, expected above 0)"):
        VideoRecipe.Config(**options)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(video_read.log, "warning", lambda text, *args: said.append(text % args))
    video_read._say_once.cache_clear()
    return said


def test_decoders_that_are_not_installed(clip: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.setattr(video_read, "installed", lambda name: name == "opencv")
    for _ in range(2):
        assert which(recipe(1)(clip)) == [12]
    assert warnings == ["decord is not installed; OpenCV decodes videos, which is slower"]
    with pytest.raises(ConfigError, match="backend decord is not installed"):
        recipe(backend="decord")
    monkeypatch.setattr(video_read, "installed", lambda name: False)
    with pytest.raises(DataError, match=r"clip\.mp4: no video decoder is installed"):
        recipe()(str(clip))


def test_opencv_reads_what_decord_cannot(clip: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]) -> None:
    monkeypatch.setattr(video_read, "installed", lambda name: True)
    monkeypatch.setattr(video_read, "_with_decord", lambda source, label: None)
    for _ in range(2):
        assert which(recipe(1)(clip)) == [12]
    assert warnings == ["decord cannot open a video; trying OpenCV (shown once)"]


@pytest.mark.skipif(not video_read.installed("decord"), reason="needs decord")
def test_clip_of_a_size_that_decord_cannot_copy(tmp_path: Path) -> None:
    file = tmp_path / "odd.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 10, (48, 48))
    for k in range(6):
        writer.write(np.full((48, 48, 3), 40 * k, np.uint8))
    writer.release()
    assert torch.equal(recipe(3)(str(file)), recipe(3, backend="opencv")(str(file)))
    with pytest.raises(DataError, match="(?s)damaged .*set model.video.backend to opencv"):
        recipe(3, backend="decord")(str(file))


@pytest.mark.parametrize(
    "head", [b"#EXTM3U\nfile:///etc/hostname", b"ffconcat version 1.0\nfile /etc/hostname", b"<MPD>"]
)
def test_files_that_name_other_files_are_refused(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(head)
    for source in (str(tmp_path / "a.mp4"), head):
        with pytest.raises(DataError, match="a playlist, which names other files"):
            video_read.open_clip(source, "a")


@pytest.mark.parametrize("backend", ["decord", "opencv"])
def test_videos_of_absurd_size_and_length(clip: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not video_read.installed(backend):
        pytest.skip(f"needs {backend}")
    opened = video_read.open_clip(clip, "a", backend)  # type: ignore[arg-type]
    assert len(opened.read([0, 1])) == 2
    monkeypatch.setattr(video_read, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"2 frames of \d+ x \d+, allowed are"):
        opened.read([0, 1])
    monkeypatch.undo()
    monkeypatch.setattr(video_read, "MAX_FRAMES", 2)
    with pytest.raises(DataError, match="more than 2 frames"):
        video_read.open_clip(clip, "a", backend)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="null byte|no such file"):
        video_read.open_clip("a\0.mp4", "a")


def test_frames_of_any_size() -> None:
    images = NativeRecipe(NativeRecipe.Config(multiple=4, least=16, most=256))
    read = VideoRecipe(VideoRecipe.Config(num_frames=2), images)
    frames = [np.full((8, 16, 3), level, np.uint8) for level in (0, 99)]
    found = read(frames)
    assert isinstance(found, Prepared) and found.size == (8, 16)
    assert torch.equal(found.pixels, torch.cat([images(frame).pixels for frame in frames]))
    assert read(found) is found
    with pytest.raises(DataError, match="frames of different sizes"):
        read([frames[0], frames[1][:, :8]])


@pytest.mark.parametrize("recipe", [TilesRecipe, SplitRecipe])
def test_tiles_are_not_frames(recipe: type[ImageRecipe]) -> None:
    with pytest.raises(ConfigError, match="none is a frame"):
        VideoRecipe(VideoRecipe.Config(), recipe(recipe.Config()))
