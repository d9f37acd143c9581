"""Files of a sandbox, seen from outside: they go in and come out whole, and nothing put there leads elsewhere."""

import errno
import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confining import OWNER, WORKDIR, Confined, confined
from tools.errors import ToolError
from tools.sandbox.workdir import Changed, Workdir

SECRET = b"s3cr3t"

#: So often a race is run; without the care that is tested, some of them are lost.
TRIES = 200

_MEMORY = "/dev/shm"  # noqa: S108 - where every Linux has a tmpfs


class Source(io.BytesIO):
    """A file that does something while it is read."""

    def __init__(self, content: bytes, on_read: Callable[[], None]) -> None:
        super().__init__(content)
        self.on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.on_read()
        return data


def opened(path: Path, *, owner: int | None = None, **limits: int) -> Workdir:
    return Workdir(os.open(path, os.O_RDONLY | os.O_DIRECTORY), owner=owner, **limits)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, as the working directory of a sandbox is."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as path:
        yield Path(path)


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    path = tmp_path / "inside"
    path.mkdir()
    return path


@pytest.fixture
def workdir(inside: Path) -> Iterator[Workdir]:
    workdir = opened(inside, max_files=5, max_bytes=100)
    yield workdir
    workdir.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_bytes(SECRET)
    return path / "secret"


@pytest.fixture
def sandbox() -> Iterator[Confined]:
    with confined() as sandbox:
        yield sandbox


@contextmanager
def meanwhile(path: Path, act: str) -> Iterator[None]:
    """Does it over and over in that directory, in another process, beside which ours is held up by no lock."""
    text = "import os, shutil, sys\nos.chdir(sys.argv[1])\nparent = os.getppid()\nprint(flush=True)\n"
    # Not without us, should we be killed.
    text += f"while os.getppid() == parent:\n{indent(act, '    ')}"
    with subprocess.Popen([sys.executable, "-c", text, path], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield
            assert process.poll() is None, "it has failed"
        finally:
            process.kill()


def swapping(*turns: str) -> str:
    """Renames: `a b` is a to b."""
    return "\n".join("os.rename({!r}, {!r})".format(*turn.split()) for turn in turns)


def read(workdir: Workdir, changed: list[Changed]) -> dict[str, bytes]:
    """What is in those of the files that can be read."""
    found = {}
    for file in changed:
        with suppress(ToolError):
            found[file.name] = b"".join(workdir.pieces(file))
    return found


def news(workdir: Workdir) -> dict[str, bytes]:
    """What is in the files that are new or changed; each has the size that is told."""
    changed = workdir.changes()
    found = read(workdir, changed)
    assert [(file.name, file.size_bytes) for file in changed] == [(name, len(data)) for name, data in found.items()]
    return found


def names_in(path: Path) -> set[str]:
    return {str(below.relative_to(path)) for below in path.rglob("*")}


# -- in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "数据.csv", "in/put/a.csv", ".hidden", "a b\nc", "\udcff", "x" * 255])
def test_what_is_put_there_is_there(workdir: Workdir, inside: Path, tmp_path: Path, name: str) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(content)
    workdir.put(name, tmp_path / "source")
    assert (inside / name).read_bytes() == content
    workdir.put(name, io.BytesIO(b""))
    assert (inside / name).read_bytes() == b""
    assert names_in(inside) == {name, *(str(parent) for parent in Path(name).parents if parent != Path())}


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "/etc/x",
        "../x",
        "a/../x",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\0b",
        "\ud800",
        "a/\ud800",
        "x" * 256,
    ],
)
def test_what_is_no_name_below_is_refused(workdir: Workdir, inside: Path, name: str) -> None:
    with pytest.raises(ToolError) as refused:
        workdir.put(name, io.BytesIO(b"x"))
    refused.value.message.encode()
    assert names_in(inside) <= {"a"}


def test_what_has_the_name_is_replaced_and_not_written_to(workdir: Workdir, inside: Path, secret: Path) -> None:
    (inside / "link").symlink_to(secret)
    (inside / "nowhere").symlink_to(secret.parent / "new")
    (inside / "hard").hardlink_to(secret)
    os.mkfifo(inside / "fifo")
    (inside / "file").write_bytes(b"a longer one")
    for name in names_in(inside):
        workdir.put(name, io.BytesIO(b"mine"))
        assert stat.S_ISREG((inside / name).lstat().st_mode)
        assert (inside / name).read_bytes() == b"mine"
    assert secret.read_bytes() == SECRET
    assert names_in(secret.parent) == {"secret"}


def test_no_file_is_put_through_a_link_or_in_place_of_a_directory(workdir: Workdir, inside: Path, secret: Path) -> None:
    (inside / "link").symlink_to(secret.parent)
    (inside / "within").symlink_to("directory")
    (inside / "directory").mkdir()
    (inside / "file").touch()
    before = names_in(inside)
    for name in ("link/secret", "link/new", "within/new", "file/new", "directory"):
        with pytest.raises(ToolError, match="cannot be put there"):
            workdir.put(name, io.BytesIO(b"mine"))
    assert names_in(inside) == before
    assert secret.read_bytes() == SECRET
    assert names_in(secret.parent) == {"secret"}


def test_a_directory_that_becomes_a_link_while_a_file_is_put_there_leads_nowhere(
    workdir: Workdir, inside: Path, secret: Path
) -> None:
    def swap() -> None:
        if not (inside / "moved").exists():
            (inside / "a").rename(inside / "moved")
            (inside / "a").symlink_to(secret.parent)

    workdir.put("a/secret", Source(b"mine", swap))
    assert secret.read_bytes() == SECRET
    assert (inside / "moved" / "secret").read_bytes() == b"mine"


def test_what_is_put_there_while_directories_and_links_change_places_never_lands_outside(
    workdir: Workdir, inside: Path, secret: Path
) -> None:
    swap = """
try:
    os.rename("a", "b")
    os.symlink("../outside", "a")
    os.unlink("a")
except OSError:
    pass
shutil.rmtree("b", ignore_errors=True)
"""
    with meanwhile(inside, swap):
        for _ in range(TRIES):
            with suppress(ToolError):
                workdir.put("a/secret", io.BytesIO(b"mine"))
    assert secret.read_bytes() == SECRET
    assert names_in(secret.parent) == {"secret"}


def test_of_a_source_that_fails_nothing_is_left(workdir: Workdir, inside: Path) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "the disk is broken")

    (inside / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="the disk is broken"):
        workdir.put("a", Source(b"new", fail))
    with pytest.raises(FileNotFoundError):
        workdir.put("a", inside / "missing")
    assert (names_in(inside), (inside / "a").read_bytes()) == ({"a"}, b"old")


def test_a_file_larger_than_files_may_be_is_refused(inside: Path) -> None:
    # In a process of its own, for which the limit holds.
    script = """if True:
        import io, os, resource, sys
        from tools.errors import ToolError
        from tools.sandbox.workdir import Workdir
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        workdir = Workdir(os.open(sys.argv[1], os.O_DIRECTORY))
        workdir.put("small", io.BytesIO(bytes(1000)))
        try:
            workdir.put("large", io.BytesIO(bytes(1001)))
        except ToolError as error:
            print(error.message, end="")
    """
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", script, inside], cwd=root, stdout=subprocess.PIPE, check=True)
    assert said.stdout == b"'large' is larger than a file may be there."
    assert names_in(inside) == {"small"}


def test_a_file_for_which_there_is_no_room_is_refused_and_leaves_nothing(sandbox: Confined) -> None:
    workdir = Workdir(sandbox.workdir(), owner=OWNER)
    inodes = workdir.used_inodes()
    with pytest.raises(ToolError, match=r"There is no room left in the working directory for 'a\.bin'\."):
        workdir.put("a.bin", io.BytesIO(bytes(5 << 20)))
    assert sandbox.run("ls -A") == ""
    workdir.put("a.bin", io.BytesIO(bytes(3 << 20)))
    assert workdir.used_inodes() == inodes + 1
    workdir.close()


def test_what_is_put_there_belongs_to_the_sandbox(sandbox: Confined) -> None:
    workdir = Workdir(sandbox.workdir(), owner=OWNER)
    workdir.put("in/a.txt", io.BytesIO(b"ours, "))
    assert sandbox.run("printf 'and mine' >> in/a.txt && cat in/a.txt && rm -r in && ls -A") == "ours, and mine"
    workdir.close()


def test_whoever_puts_files_there_stays_who_he_is(sandbox: Confined, tmp_path: Path) -> None:
    workdir = Workdir(sandbox.workdir(), owner=OWNER)
    ids: list[tuple[int, int]] = []

    def note() -> None:
        path = tmp_path / str(len(ids))
        path.touch()
        ids.append((path.stat().st_uid, path.stat().st_gid))

    workdir.put("a", Source(b"x", note))
    sandbox.run("mkdir directory")
    for name in ("directory", "a/b"):
        with pytest.raises(ToolError):
            workdir.put(name, Source(b"x", note))
        note()
    assert len(ids) > 4
    assert set(ids) == {(os.geteuid(), os.getegid())}
    workdir.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files that the sandbox cannot have")
def test_an_owner_whom_the_sandbox_does_not_have_is_our_fault_and_nobody_elses(sandbox: Confined) -> None:
    workdir = Workdir(sandbox.workdir(), owner=None)
    with pytest.raises(OSError, match="too large for defined data type"):
        workdir.put("a", io.BytesIO(b"x"))
    assert sandbox.run("ls -A") == ""
    workdir.close()


def test_an_owner_who_cannot_be_taken_on_is_our_fault(inside: Path) -> None:
    # The kernel knows nobody of this number; who is not root cannot be anybody else either.
    workdir = opened(inside, owner=0xFFFF_FFFF)
    with pytest.raises(RuntimeError, match="files cannot be made as the user and group 4294967295"):
        workdir.put("a", io.BytesIO(b"x"))
    assert names_in(inside) == set()
    workdir.close()


# -- out ---------------------------------------------------------------------------------------------------


def test_files_that_are_new_or_changed_are_told_once(workdir: Workdir, inside: Path) -> None:
    (inside / "b").write_bytes(b"1")
    (inside / "a" / "c").mkdir(parents=True)
    (inside / "a" / "c" / "d").write_bytes(b"2")
    assert news(workdir) == {"a/c/d": b"2", "b": b"1"}
    assert workdir.changes() == []
    (inside / "b").write_bytes(b"changed")
    (inside / "a" / "c" / "d").rename(inside / "e")
    assert news(workdir) == {"b": b"changed", "e": b"2"}
    (inside / "b").unlink()
    assert workdir.changes() == []
    (inside / "b").write_bytes(b"changed")
    assert news(workdir) == {"b": b"changed"}


def test_what_was_put_there_is_told_when_it_is_changed(workdir: Workdir, inside: Path) -> None:
    workdir.put("in/a", io.BytesIO(b"x"))
    assert workdir.changes() == []
    with (inside / "in" / "a").open("ab") as file:
        file.write(b"y")
    assert news(workdir) == {"in/a": b"xy"}
    workdir.put("in/a", io.BytesIO(b"z"))
    assert workdir.changes() == []


_NAMES = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"])


@given(st.lists(st.tuples(st.sampled_from(["write", "remove", "put", "look"]), _NAMES), max_size=20))
def test_each_look_tells_exactly_what_was_written_since_the_last(steps: list[tuple[str, str]]) -> None:
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY)))
        workdir = opened(path)
        stack.callback(workdir.close)
        written: dict[str, bytes] = {}
        for number, (step, name) in enumerate([*steps, ("look", "a")]):
            # Each longer than the one before: clocks of old kernels are too coarse to tell them by the time.
            content = b"x" * number
            if step == "write":
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(content)
                written[name] = content
            elif step == "remove":
                (path / name).unlink(missing_ok=True)
                written.pop(name, None)
            elif step == "put":
                workdir.put(name, io.BytesIO(content))
                written.pop(name, None)
            else:
                assert list(news(workdir).items()) == sorted(written.items())
                written.clear()


def test_what_is_hidden_or_pythons_own_is_not_told(workdir: Workdir, inside: Path) -> None:
    for name in (".hidden", ".cache/a", "__pycache__/a.pyc", "a/.git/config", "a/__pycache__/b"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(b"x")
    assert workdir.changes() == []


def test_of_many_files_the_first_are_told_and_the_others_counted(workdir: Workdir, inside: Path) -> None:
    for number in range(5000):
        (inside / f"{number:04}").touch()
    assert [file.name for file in workdir.changes()] == ["0000", "0001", "0002", "0003", "0004"]
    assert workdir.left_out == 4995
    (inside / "new").touch()
    assert [file.name for file in workdir.changes()] == ["new"]
    assert workdir.left_out == 0


def test_what_is_too_large_is_told_and_not_read(workdir: Workdir, inside: Path) -> None:
    for name, size in {"a": 101, "b": 100}.items():
        (inside / name).write_bytes(bytes(size))
    changed = workdir.changes()
    assert [(file.name, file.size_bytes) for file in changed] == [("a", 101), ("b", 100)]
    assert read(workdir, changed) == {"b": bytes(100)}
    with pytest.raises(ToolError, match=r"^It is longer than 100 bytes\.$"):
        next(workdir.pieces(changed[0]))


def test_what_is_long_is_read_in_pieces(inside: Path) -> None:
    workdir = opened(inside)
    content = os.urandom((5 << 20) + 1)
    (inside / "a").write_bytes(content)
    pieces = list(workdir.pieces(workdir.changes()[0]))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= 1 << 20
    workdir.close()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("rm a", "It cannot be read: No such file or directory."),
        ("rm a; mkfifo a", "It is no file any more."),
        ("rm a; mkdir a", "It is no file any more."),
        ("rm a; ln -s /etc/passwd a", "It cannot be read: Too many levels of symbolic links."),
    ],
)
def test_a_file_that_has_gone_before_it_is_read_is_told(workdir: Workdir, inside: Path, act: str, said: str) -> None:
    (inside / "a").touch()
    [file] = workdir.changes()
    subprocess.run(["/bin/sh", "-c", act], cwd=inside, check=True)
    with pytest.raises(ToolError) as refused:
        next(workdir.pieces(file))
    assert refused.value.message == said


def test_a_file_that_is_one_large_hole_is_not_read(inside: Path) -> None:
    workdir = opened(inside)
    with (inside / "hole").open("wb") as file:
        file.truncate(200 << 20)
    changed = workdir.changes()
    assert [(file.name, file.size_bytes) for file in changed] == [("hole", 200 << 20)]
    assert read(workdir, changed) == {}
    workdir.close()


def test_of_a_file_that_grows_meanwhile_no_more_is_read_than_it_had(inside: Path) -> None:
    workdir = opened(inside, max_bytes=50_000)

    (inside / "a").touch()
    with meanwhile(inside, "os.truncate('a', 10_000_000)\nos.truncate('a', 10)"):
        # What has not changed is not read: each that is read has been the other's turn since.
        looks = (found for _ in range(100 * TRIES) for found in read(workdir, workdir.changes()).values())
        sizes = set(map(len, islice(looks, 2 * TRIES)))
    assert max(sizes) <= 10
    workdir.close()


def test_names_are_told_without_what_harms_those_who_read_them(inside: Path) -> None:
    workdir = opened(inside)
    names = [b"a\nb", b"\xff.txt", b"\x1b[31m", b"\xe2\x80\xa8", b"\r", "数据".encode(), b"\xed\xa0\x80"]
    for name in names:
        (inside / os.fsdecode(name)).write_bytes(name)
    made = workdir.changes()
    assert {b"".join(workdir.pieces(file)) for file in made} == set(names)
    assert [file.name for file in made] == sorted(file.name for file in made)
    assert {"数据", "a\ufffdb", "\ufffd.txt", "\ufffd[31m", "\ufffd"} <= {file.name for file in made}
    assert all(file.name.encode() and file.name.isprintable() for file in made)
    workdir.close()


def test_nothing_but_regular_files_is_told(workdir: Workdir, inside: Path, secret: Path) -> None:
    (inside / "link").symlink_to("/etc/passwd")
    (inside / "secret").symlink_to(secret)
    (inside / "up").symlink_to("..")
    (inside / "directory").symlink_to(secret.parent)
    (inside / "loop").symlink_to("loop")
    (inside / "here").symlink_to(".")
    (inside / "descriptor").symlink_to("/proc/self/fd/0")
    os.mkfifo(inside / "fifo")
    with suppress(PermissionError):
        os.mknod(inside / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listening:
        # By the descriptor, as the path may be too long for an address.
        descriptor = os.open(inside, os.O_PATH)
        listening.bind(f"/proc/self/fd/{descriptor}/socket")
        os.close(descriptor)
        (inside / "a").hardlink_to(secret)
        for name in ("CON", "NUL", "tty", "sda"):
            (inside / name).touch()
        assert news(workdir) == {"CON": b"", "NUL": b"", "a": SECRET, "sda": b"", "tty": b""}


def test_no_race_between_files_links_and_directories_is_won(inside: Path, secret: Path) -> None:
    # So many that between the first look and the last file that is read, all have changed places.
    (inside / "a").mkdir()
    for number in range(99):
        (inside / "a" / str(number)).write_bytes(b"mine")
        (secret.parent / str(number)).write_bytes(SECRET)
    (inside / "links").symlink_to(secret.parent)
    (inside / "file").write_bytes(b"mine")
    (inside / "link").symlink_to(secret)
    (inside / "directory").mkdir()
    os.mkfifo(inside / "fifo")
    swap = swapping(
        *("a x", "links a", "a links", "x a"),
        *("file x", "link file", "file link", "fifo file", "file fifo", "directory file", "file directory", "x file"),
    )
    seen = set()
    with meanwhile(inside, swap):
        for _ in range(TRIES):
            workdir = opened(inside, max_files=100)
            seen |= set(read(workdir, workdir.changes()).values())
            workdir.close()
    assert seen == {b"mine"}


def test_files_that_come_and_go_are_no_error(inside: Path) -> None:
    workdir = opened(inside)

    with meanwhile(inside, "os.mkdir('d')\nopen('d/a', 'w').close()\nos.unlink('d/a')\nos.rmdir('d')"):
        for _ in range(TRIES):
            assert {file.name for file in workdir.changes()} <= {"d/a"}
    workdir.close()


@pytest.mark.parametrize("depth", [16, 17, 40])
def test_what_is_deeper_than_sixteen_names_is_not_looked_for(workdir: Workdir, inside: Path, depth: int) -> None:
    path = inside.joinpath(*["d"] * (depth - 1))
    path.mkdir(parents=True)
    (path / "f").touch()
    assert len(workdir.changes()) == (depth <= 16)


def test_directories_into_which_nobody_looked_are_named(workdir: Workdir, inside: Path) -> None:
    inside.joinpath("a", *["d"] * 20).mkdir(parents=True)
    assert (workdir.changes(), workdir.unread) == ([], ["a" + "/d" * 15])
    (inside / "a").rename(inside / ".hidden")
    assert (workdir.changes(), workdir.unread) == ([], [])


def test_of_more_names_than_are_looked_at_some_are_told(inside: Path) -> None:
    workdir = opened(inside)
    for number in range(10_500):
        (inside / f"d{number % 3}").mkdir(exist_ok=True)
        (inside / f"d{number % 3}" / f"{number}").touch()
    assert len(workdir.changes()) == 20
    assert workdir.left_out == 10_000 - 3 - 20
    workdir.close()


def test_what_is_mounted_below_is_not_entered() -> None:
    mounts = ["--tmpfs", f"{WORKDIR}/mounted", "--ro-bind", "/usr/bin/env", f"{WORKDIR}/bound"]
    with confined(mounts=mounts) as sandbox:
        workdir = Workdir(sandbox.workdir(), owner=OWNER)
        sandbox.run("echo x > mounted/a; echo y > mine")
        assert read(workdir, workdir.changes()) == {"mine": b"y\n"}
        with pytest.raises(ToolError, match="cannot be put there"):
            workdir.put("mounted/b", io.BytesIO(b"x"))
        workdir.close()


# -- from one to another -----------------------------------------------------------------------------------


def test_files_outlive_their_sandbox(sandbox: Confined) -> None:
    dead = Workdir(sandbox.workdir(), owner=OWNER)
    sandbox.run(
        "mkdir -p a/b empty; echo 1 > a/b/c; echo 2 > .hidden; ln -s /etc/passwd link; mkfifo fifo; ln .hidden h"
    )
    sandbox.die()
    with confined() as other:
        workdir = Workdir(other.workdir(), owner=OWNER)
        assert workdir.copy_from(dead) == []
        assert workdir.changes() == []
        assert other.run("find . | sort") == "\n".join([".", "./.hidden", "./a", "./a/b", "./a/b/c", "./empty", "./h"])
        assert other.run("echo 3 >> a/b/c; cat a/b/c") == "1\n3"
        assert news(workdir) == {"a/b/c": b"1\n3\n"}
        workdir.close()
    dead.close()


def test_what_does_not_fit_is_named(sandbox: Confined, inside: Path) -> None:
    (inside / "small").write_bytes(b"x")
    (inside / "large\n").write_bytes(bytes(5 << 20))
    with (inside / "hole").open("wb") as file:
        file.truncate(1 << 40)
    (inside / "to" / "there").mkdir(parents=True)
    (inside / "to" / "there" / "a").touch()
    inside.joinpath(*["d"] * 20).mkdir(parents=True)
    sandbox.run("mkdir elsewhere; ln -s elsewhere to")
    dead, workdir = opened(inside), Workdir(sandbox.workdir(), owner=OWNER)
    assert workdir.copy_from(dead) == ["d/" * 16, "hole", "large\ufffd", "to/there/a"]
    assert sandbox.run("ls -p; ls elsewhere") == "d/\nelsewhere/\nsmall\nto"
    for one in (dead, workdir):
        one.close()


def test_files_that_are_longer_than_the_room_that_is_left_are_named_and_not_tried(
    sandbox: Confined, inside: Path
) -> None:
    fits = {"a": b"1", "m/b": b"2" * 1000, "z": bytes(1 << 20)}
    holes = [f"{directory}hole-{number:03}" for directory in ("", "m/") for number in range(100)]
    (inside / "m").mkdir()
    for name, content in fits.items():
        (inside / name).write_bytes(content)
    for name in holes:
        with (inside / name).open("wb") as file:
            # A little more than there is.
            file.truncate(5 << 20)
    dead, workdir = opened(inside), Workdir(sandbox.workdir(), owner=OWNER)
    before = written_bytes()
    assert workdir.copy_from(dead) == sorted(holes)
    # Each, if it were tried, would fill the 4 MB that there are before it failed.
    assert written_bytes() - before < 2 << 20
    assert sandbox.run("find . -type f | sort; cat a; wc -c < m/b; wc -c < z") == (
        f"./a\n./m/b\n./z\n1{1000}\n{1 << 20}"
    )
    for one in (dead, workdir):
        one.close()


def written_bytes() -> int:
    """What this process has written so far, to whatever."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["wchar"])


def test_links_and_directories_that_take_the_place_of_files_are_not_copied(
    inside: Path, secret: Path, tmp_path: Path
) -> None:
    # So many that between the first look and the last copy all have changed places.
    for name in ("a", *map(str, range(20))):
        (inside / name).write_bytes(b"mine")
    (inside / "link").symlink_to(secret)
    (inside / "directory").mkdir()
    (tmp_path / "new").mkdir()
    dead, workdir = opened(inside), opened(tmp_path / "new")

    swap = swapping("a x", "link a", "a link", "directory a", "a directory", "x a")
    with meanwhile(inside, swap):
        for _ in range(TRIES):
            workdir.copy_from(dead)
            copied = {path.read_bytes() for path in (tmp_path / "new").iterdir() if path.is_file()}
            assert copied == {b"mine"}
    for one in (dead, workdir):
        one.close()


# -- its end -----------------------------------------------------------------------------------------------


def test_when_it_is_closed_nothing_can_be_asked(workdir: Workdir, inside: Path) -> None:
    other = opened(inside)
    workdir.close()
    workdir.close()
    calls: list[Callable[[], object]] = [
        lambda: next(workdir.pieces(Changed("a", "a", 0))),
        *(workdir.changes, workdir.used_inodes, lambda: workdir.put("a", io.BytesIO())),
        *(lambda: workdir.copy_from(other), lambda: other.copy_from(workdir)),
    ]
    for call in calls:
        with pytest.raises(ToolError, match="The working directory is gone"):
            call()
    other.close()


def test_a_call_under_way_ends_in_its_own_directory_though_another_takes_the_place(
    workdir: Workdir, inside: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    others: list[int] = []

    def close() -> None:
        workdir.close()
        # The lowest free number is given anew.
        others.append(os.open(tmp_path / "other", os.O_RDONLY))

    workdir.put("a", Source(b"mine", close))
    assert (inside / "a").read_bytes() == b"mine"
    assert names_in(tmp_path / "other") == set()
    for descriptor in others:
        os.close(descriptor)


def test_no_descriptor_is_left_behind(workdir: Workdir, inside: Path, secret: Path) -> None:
    def open_below() -> list[Path]:
        descriptors = list(Path("/proc/self/fd").iterdir())
        # The descriptor by which they were listed has gone by now.
        links = [descriptor.readlink() for descriptor in descriptors if os.path.lexists(descriptor)]
        return [link for link in links if link.is_relative_to(inside)]

    def fail() -> None:
        raise OSError

    (inside / "directory" / "below").mkdir(parents=True)
    (inside / "link").symlink_to(secret.parent)
    (inside / "file").write_bytes(b"x")
    os.mkfifo(inside / "fifo")
    for name in ("a", "directory/below/a", "directory", "link/a", "file/a"):
        for source in (io.BytesIO(b"x"), Source(b"x", fail)):
            with suppress(ToolError, OSError):
                workdir.put(name, source)
    read(workdir, workdir.changes())
    assert open_below() == [inside]
    workdir.close()
    assert open_below() == []
