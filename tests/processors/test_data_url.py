"""Images and videos as ``data:`` addresses, and back."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Images

from vlm.common.errors import DataError
from vlm.processors.data_url import image_url, video_part
from vlm.processors.image.decode import decode
from vlm.processors.messages import to_messages
from vlm.processors.video.read import first_frame, open_clip

LEVELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def read(url: str) -> np.ndarray:
    (message,) = to_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    return np.asarray(decode(message.media[0].source))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_file_keeps_its_bytes(tmp_path, kind) -> None:
    file = tmp_path / f"a.{kind}"
    Images.fromarray(LEVELS).save(file)
    for source in (file, str(file), file.read_bytes()):
        head, _, data = image_url(source).partition(";base64,")
        assert head == f"data:image/{kind}" and base64.b64decode(data) == file.read_bytes()
    assert (read(image_url(file)) == np.asarray(decode(file))).all()


def test_pixels_become_a_png() -> None:
    for source in (LEVELS, Images.fromarray(LEVELS)):
        assert (read(image_url(source)) == LEVELS).all()
    with pytest.raises(DataError, match="Tensor"):
        image_url(torch.zeros(3, 4, 4))
    with pytest.raises(DataError, match=r"none\.png: cannot be read \(No such file"):
        image_url("none.png")


def test_frames_become_images_and_are_read_back(tmp_path) -> None:
    frames = [LEVELS, LEVELS[::-1].copy(), 255 - LEVELS]
    for number, frame in enumerate(frames):
        Images.fromarray(frame).save(tmp_path / f"{number}.png")
    for source in (frames, tmp_path, [str(tmp_path / f"{n}.png") for n in range(3)]):
        part = video_part(source)
        assert part["type"] == "video" and len(part["video"]) == 3
        (message,) = to_messages([{"role": "user", "content": [part]}])
        clip = open_clip(message.media[0].source, "it")
        assert [np.asarray(decode(f)).tolist() for f in clip.read(range(3))] == [f.tolist() for f in frames]
        assert (np.asarray(decode(first_frame(message.media[0].source))) == LEVELS).all()


def test_a_video_file_keeps_its_bytes(tmp_path) -> None:
    file = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 4, (32, 32))
    for level in range(0, 250, 50):
        writer.write(np.full((32, 32, 3), level, np.uint8))
    writer.release()
    for source in (str(file), file, file.read_bytes()):
        part = video_part(source)
        head, _, data = part["video_url"]["url"].partition(";base64,")
        assert head == "data:video/mp4" and base64.b64decode(data) == file.read_bytes()
    (message,) = to_messages([{"role": "user", "content": [part]}])
    assert open_clip(message.media[0].source, "it").count == 5
    with pytest.raises(DataError, match=r"none\.mp4: cannot be read"):
        video_part("none.mp4")
