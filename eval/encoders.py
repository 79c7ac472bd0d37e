"""Video files, written frame by frame, so that only one frame is held in memory.

They are MP4 (H.264) by imageio-ffmpeg if it is installed, otherwise GIF by Pillow.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError

Frame = NDArray[np.uint8]


def suffix() -> str:
    """The suffix of videos: `.mp4`, or `.gif` without ffmpeg."""
    return ".mp4" if _has_ffmpeg() else ".gif"


def encoder_version(suffix: str) -> str:
    """The package that writes files with a suffix, such as `imageio-ffmpeg 0.6.0`."""
    package = {".mp4": "imageio-ffmpeg", ".gif": "pillow"}[suffix]
    return f"{package} {importlib.metadata.version(package)}"


@contextmanager
def writing_video(path: Path, fps: float) -> Iterator["Mp4 | Gif"]:
    """Open a video file for a `with` block, at whose end it is finished.

    Args:
        path: ends in `.mp4` or `.gif`.
        fps: frames per second.

    Raises:
        InputError: it cannot be written.
    """
    writer = Mp4(path, fps) if path.suffix == ".mp4" else Gif(path, fps)
    try:
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()
    except OSError as error:
        # ffmpeg's own message has several lines and contains its whole command.
        why = error.strerror or str(error).partition("\n")[0] or "the encoder failed"
        raise InputError(
            f"{path.name} cannot be written ({why}); make room on its disk, or leave --video out"
        ) from error


def _has_ffmpeg() -> bool:
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


class Mp4:
    """H.264 by ffmpeg, in a process that receives the frames through a pipe."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._frames = 0
        self._shape: tuple[int, ...] = ()
        self._ffmpeg: Any = None

    def add(self, frame: Frame) -> None:
        """Append a frame."""
        if self._ffmpeg is None:
            self._ffmpeg, self._shape = self._start(frame), frame.shape
        if frame.shape != self._shape:
            # ffmpeg would cut the bytes into frames of the first size.
            raise OSError(f"a frame of {frame.shape} after one of {self._shape}")
        self._ffmpeg.send(np.ascontiguousarray(frame))
        self._frames += 1

    def close(self) -> None:
        """Finish the file, and count its frames: ffmpeg does not say whether it wrote them all."""
        import imageio_ffmpeg

        self.abandon()
        try:
            written, _seconds = imageio_ffmpeg.count_frames_and_secs(self._path)
        except RuntimeError:
            written = 0
        if written != self._frames:
            raise OSError(f"it holds {written} of {self._frames} frames")

    def abandon(self) -> None:
        """End ffmpeg."""
        if self._ffmpeg is not None:
            self._ffmpeg.close()

    def _start(self, frame: Frame) -> Any:
        import imageio_ffmpeg

        ffmpeg = imageio_ffmpeg.write_frames(
            str(self._path),
            (frame.shape[1], frame.shape[0]),
            fps=self._fps,
            # Players need even sizes: an odd one is padded rather than scaled.
            macro_block_size=1,
            output_params=["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"],
            ffmpeg_log_level="quiet",
        )
        ffmpeg.send(None)
        return ffmpeg


class Gif:
    """GIF frames, one after the other, each with its own palette."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path = path
        # GIF counts hundredths of a second, and players take fewer than 2 for a mistake.
        self._duration = 10 * max(2, round(100 / fps))
        self._file: BinaryIO | None = None

    def add(self, frame: Frame) -> None:
        """Append a frame."""
        from PIL import GifImagePlugin, Image

        image = Image.fromarray(frame).quantize(256)
        if self._file is None:
            self._file = self._path.open("wb")
            for block in GifImagePlugin.getheader(image.copy(), info={"loop": 0})[0]:
                self._file.write(block)
        blocks = GifImagePlugin.getdata(image, duration=self._duration, include_color_table=True)
        self._file.writelines(blocks)

    def close(self) -> None:
        """Finish the file."""
        if self._file is not None:
            with self._file as file:
                file.write(b";")

    def abandon(self) -> None:
        """Close the file as it is."""
        if self._file is not None:
            self._file.close()
