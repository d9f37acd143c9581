"""The warden of the landlock tier, as a process: whatever was made in its directory, nothing of it stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving import PATIENCE_S
from tools.sandbox import warden

MADE = {
    "thousands of levels": "for _ in range(3000): os.mkdir('d'); os.chdir('d')",
    "what its owner cannot enter": "os.makedirs('a/b'); open('a/b/c', 'w'); os.chmod('a/b', 0); os.chmod('a', 0)",
    "links": "os.symlink('/', 'root'); os.symlink('a', 'a'); os.mkfifo('b'); os.mkdir('d'); os.symlink('.', 'd/e')",
    "names": "[open(bytes([n]) * 200, 'w').close() for n in range(1, 256) if n != 47]",
    "many": "for n in range(3000): os.mkdir(str(n)); open(f'{n}/f', 'w').close()",
}


@pytest.mark.parametrize("made", MADE)
def test_nothing_stays_of_the_directory_once_whoever_asked_for_it_has_gone(tmp_path: Path, made: str) -> None:
    directory, outside = tmp_path / "own", tmp_path / "outside"
    outside.write_text("stays")
    (tmp_path / "source").write_text("given")
    watched, alive = os.pipe()
    ended, told = os.pipe()
    command = [
        *(sys.executable, "-I", warden.__file__, str(watched), str(told), str(directory), "-1"),
        f'{{"a.txt": "{tmp_path / "source"}"}}',
        *(sys.executable, "-c", f"import os\nos.chdir({str(directory / 'data')!r})\n{MADE[made]}"),
    ]
    with subprocess.Popen(command, pass_fds=(watched, told)) as process:
        os.close(watched)
        os.close(told)
        assert os.read(ended, 1) == b""
        assert (directory / "files" / "a.txt").read_text() == "given"
        assert any((directory / "data").iterdir())
        os.close(alive)
        assert process.wait(PATIENCE_S) == 0
    os.close(ended)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "source"]
