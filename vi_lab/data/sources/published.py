"""Data sets that everybody has the same files of: found below `data.root`, or downloaded to there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vi_lab.data.sources.source import Images, Place, Shape
from vi_lab.errors import ViLabError, one_line


@dataclass(frozen=True)
class Published:
    """A published data set: the files `data.root`/`folder`/`files`."""

    size: Shape
    images: int
    """How many there are."""
    folder: str
    files: tuple[str, ...]
    fetch: Callable[[Path], Path]
    """Downloads into an empty folder; returns the one below it that then holds the files."""
    read: Callable[[Path], Images]
    """Reads the folder that holds the files."""
    packed: str = ""
    """A suffix with which the files may come as well."""

    def shape(self, place: Place) -> Shape:
        """Of an image: known."""
        return self.size

    def count(self, place: Place) -> int:
        """How many images there are: known."""
        return self.images

    def load(self, place: Place) -> Images:
        """Read the files, which are downloaded first where they are absent and `download` allows it.

        Raises:
            ViLabError: the files are absent and cannot be downloaded, or they are damaged.
        """
        folder = place.path("FOLDER") / self.folder
        if absent := [name for name in self.files if not self._has(folder / name)]:
            if not place.download:
                raise ViLabError(f"{place.source}: {folder} lacks {', '.join(absent)}; {self._advice}")
            self._download(place.source, folder)
        return self.read(folder)

    def _has(self, file: Path) -> bool:
        return file.is_file() or (bool(self.packed) and file.with_name(file.name + self.packed).is_file())

    @property
    def _advice(self) -> str:
        return f"give the folder that holds {self.folder} by data.root=FOLDER, or use data=digits, which needs no files"

    def _download(self, source: str, folder: Path) -> None:
        """Download into a folder beside the target and move it there whole, so that a broken download or two runs
        at once leave nothing half-written."""
        root = folder.parents[len(Path(self.folder).parts) - 1]
        absent = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
        except OSError as error:
            raise ViLabError(f"{source}: cannot write to {root} ({one_line(error)}); {self._advice}") from error
        try:
            fetched = self.fetch(scratch)
            folder.mkdir(parents=True, exist_ok=True)
            for file in fetched.iterdir():
                file.replace(folder / file.name)
        except Exception as error:
            reason = one_line(error).partition(":")[0]  # torchvision's goes on with every mirror that it tried
            raise ViLabError(
                f"{source}: not in {folder} and could not be downloaded ({reason}); {self._advice}"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            for place in absent:
                with suppress(OSError):  # it holds something: the download came
                    place.rmdir()
