"""A Python that everybody may read: kernels without bubblewrap's sandbox run as another user, if we are root."""

import os
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory that others may walk through; pytest closes its own again and again."""
    with tempfile.TemporaryDirectory(prefix="tests-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


def readable_python(directory: Path) -> Path:
    """This Python, or, if only root may read it, the system's of the same version, with this one's libraries.

    It is made in an open directory.
    """
    places = (Path(sys.base_prefix).resolve(), *Path(sys.base_prefix).resolve().parents)
    if os.geteuid() != 0 or all(place.stat().st_mode & stat.S_IXOTH for place in places):
        return Path(sys.executable)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    made = directory / "python"
    (made / "bin").mkdir(parents=True)
    (made / "lib" / version).mkdir(parents=True)
    (made / "bin" / "python").symlink_to(Path("/usr/bin") / version)
    (made / "lib" / version / "site-packages").symlink_to(sysconfig.get_path("purelib"))
    (made / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    return made / "bin" / "python"
