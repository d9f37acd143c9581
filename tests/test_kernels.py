"""Honest code in real kernels: what people, and models, write in notebooks does here what it does there.

Nothing is pretended: each cell runs in a sandbox of this machine. What hostile code comes to is in other files.
"""

import asyncio
import hashlib
import json
import re
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from keeping import Kept
from tools.attached import AttachedFile
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels
from tools.outcomes import Kernels, Outcome, Picture, Raised, Shown, Written

Said = list[tuple[str, str]]

#: Only a hang takes so long, however loaded the machine is.
SETTINGS = KernelSettings(cell_time_s=60, wait_s=60)

#: A cell that is to run out of time gets so much, which is enough for all that it does before.
SHORT_S = 1.0

DIED = "The kernel has ended, and its variables and imports with it."
RESTARTED = "The kernel was restarted: variables and imports of earlier cells are lost, their files are kept."


@pytest.fixture(scope="module")
async def kernels() -> AsyncIterator[Kernels]:
    """Kernels that all tests here share."""
    opened = open_kernels(SETTINGS)
    if reason := opened.unavailable():
        pytest.skip(f"NO SANDBOXES HERE, so that nothing of real kernels is tested: {reason}")
    await opened.start()
    yield opened
    await opened.aclose()


class Notebook:
    """A session, and what its cells said."""

    def __init__(self, kernels: Kernels, session: str | None, caller: str = "ada") -> None:
        self._kernels = kernels
        self._session = session
        self._caller = caller
        self._kept = Kept()

    async def run(self, code: str, files: Sequence[AttachedFile] = (), time_s: float | None = None) -> Outcome:
        """Runs a cell, whatever becomes of it."""
        return await self._kernels.run(
            code, caller=self._caller, session=self._session, files=files, time_s=time_s, keep=self._kept
        )

    def read(self, outcome: Outcome) -> dict[str, bytes]:
        """The files that the newest cell made, each of the size that was told."""
        files = {file.name: self._kept.files[file.name] for file in outcome.files}
        assert [file.size_bytes for file in outcome.files] == list(map(len, files.values()))
        return files

    async def outcome(self, code: str, *files: AttachedFile) -> Outcome:
        """Runs a cell that ends well, and is not told anything that is out of the way."""
        outcome = await self.run(code, files)
        assert (outcome.status, outcome.notes) == ("ok", ()), outcome
        return outcome

    async def said(self, code: str, *files: AttachedFile) -> Said:
        """What a cell that ends well puts out: kinds of output, each with its text, in their order."""
        return said(await self.outcome(code, *files))

    async def value(self, code: str, *files: AttachedFile) -> str:
        """The value of a cell that puts out nothing else."""
        [(kind, text)] = await self.said(code, *files)
        assert kind == "result"
        return text

    async def error(self, code: str) -> Raised:
        """The exception that ends a cell."""
        outcome = await self.run(code)
        assert outcome.status == "error", outcome
        return next(piece for piece in outcome.pieces if isinstance(piece, Raised))


def said(outcome: Outcome) -> Said:
    told = []
    for piece in outcome.pieces:
        match piece:
            case Written(stream, text):
                told.append((str(stream), text))
            case Shown(text, is_result):
                told.append(("result" if is_result else "shown", text))
            case Picture(name):
                told.append(("picture", name))
            case Raised(name, message):
                told.append(("error", f"{name}: {message}"))
    return told


@pytest.fixture
def notebook(kernels: Kernels, request: pytest.FixtureRequest) -> Notebook:
    """A session of the test's own."""
    return Notebook(kernels, request.node.name)


@pytest.fixture
def shared(kernels: Kernels) -> Notebook:
    """A session of all tests to which it does not matter what ran before."""
    # Of another caller, as the oldest session of one who has too many ends.
    return Notebook(kernels, "shared", "all")


def attached(path: Path, data: bytes, file_id: str = "file-1") -> AttachedFile:
    path.write_bytes(data)
    return AttachedFile(file_id, path.name, len(data), hashlib.sha256(data).hexdigest(), path)


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert picture.data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture.data[16:24])
    return width, height


# -- what a cell says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1\n2\n3", [("result", "3")]),
        ("5; 6", [("result", "6")]),
        ("5;", []),
        ("None", []),
        ("x = 5", []),
        ("", []),
        (" \n\n", []),
        ("# nothing", []),
        ("print('a'); 'b'", [("stdout", "a\n"), ("result", "'b'")]),
        ("'{}'", [("result", "'{}'")]),
        ("[1, (2, {'三': None})]", [("result", "[1, (2, {'三': None})]")]),
        ("print(end='no line end')", [("stdout", "no line end")]),
        ("if True:\n    print('in a block')\n", [("stdout", "in a block\n")]),
        ("s = '''```python\nprint(1)\n```'''\nprint(s)", [("stdout", "```python\nprint(1)\n```\n")]),
        ("display('a'); display(1, 2)", [("shown", "'a'"), ("shown", "1"), ("shown", "2")]),
        ("h = display('one', display_id=True); h.update('two')", [("shown", "'two'")]),
        (
            "from IPython.display import clear_output\nprint('gone'); clear_output(); print('kept')",
            [("stdout", "kept\n")],
        ),
        (
            "class A:\n    def _repr_html_(self): return '<b>'\n    def __repr__(self): return 'A()'\nA()",
            [("result", "A()")],
        ),
        ("from IPython.display import Markdown\nMarkdown('# Title')", [("result", "# Title")]),
        ("import math as m\nm.floor(2.5), 10 ** 30", [("result", "(2, 1000000000000000000000000000000)")]),
        ("sum(x * x for x in range(10))", [("result", "285")]),
        ("def f(): return g()\ndef g(): return 'later'\nf()", [("result", "'later'")]),
        (
            "help(len)",
            [
                (
                    "stdout",
                    "Help on built-in function len in module builtins:\n\nlen(obj, /)\n"
                    "    Return the number of items in a container.\n\n",
                )
            ],
        ),
    ],
    ids=ascii,
)
async def test_a_cell_says_what_it_would_say_in_a_notebook(shared: Notebook, code: str, told: Said) -> None:
    assert await shared.said(code) == told


async def test_output_comes_in_the_order_in_which_it_was_written(shared: Notebook) -> None:
    code = "import sys; print('a'); print('b', file=sys.stderr); display('c'); print('d'); print('e'); 'f'"
    assert await shared.said(code) == [
        ("stdout", "a\n"),
        ("stderr", "b\n"),
        ("shown", "'c'"),
        ("stdout", "d\ne\n"),
        ("result", "'f'"),
    ]


async def test_text_in_any_script_comes_back_as_it_was_written(shared: Notebook) -> None:
    texts = ["北京 ✿FUNCTION✿: x", "👩‍👩‍👧🎉🇪🇺", "שלום \u202eمرحبا\u202c", "e\u0301 ﬁ ß İ", "𝕏𐍈"]
    for text in texts:
        assert await shared.said(f"print({text!r}); print({text!a})") == [("stdout", f"{text}\n{text}\n")]
    assert await shared.said(r"print('\u2028|\u2029|\x00|')") == [("stdout", "\u2028|\u2029||\n")]
    assert await shared.value("变量 = '值'; 变量") == "'值'"


async def test_a_long_text_comes_whole(shared: Notebook) -> None:
    [(kind, text)] = await shared.said("for i in range(30_000): print(i, 'ä')")
    assert (kind, text) == ("stdout", "".join(f"{i} ä\n" for i in range(30_000)))


async def test_of_a_progress_bar_the_end_is_told(shared: Notebook) -> None:
    bar = """
    import sys
    for i in range(101):
        sys.stderr.write(f"\\r{i:3}%|{'█' * (i // 10):10}| {i}/100")
        sys.stderr.flush()
    print("\\nall done", file=sys.stderr)
    """
    assert await shared.said(bar) == [("stderr", f"100%|{'█' * 10}| 100/100\nall done\n")]


async def test_colours_are_left_out(shared: Notebook) -> None:
    assert await shared.said(r"print('\x1b[1;31mred\x1b[0m')") == [("stdout", "red\n")]


async def test_warnings_and_log_records_are_told(shared: Notebook) -> None:
    [(kind, warned)] = await shared.said("import warnings; warnings.warn('careful')")
    assert kind == "stderr"
    assert "UserWarning: careful" in warned
    assert await shared.said("import logging; logging.getLogger('mine').warning('look')") == [("stderr", "look\n")]


# -- state -------------------------------------------------------------------------------------------------


async def test_a_cell_finds_what_earlier_ones_made(notebook: Notebook) -> None:
    await notebook.outcome("import collections\nx = 20\ndef double(n): return 2 * n\nclass Box: pass")
    await notebook.outcome("x += 1; box = Box(); box.held = double(x)")
    assert await notebook.value("box.held, collections.Counter('aab')['a']") == "(42, 2)"
    assert await notebook.value("_[0] + 1") == "43"
    assert (await notebook.error("1 / 0")).name == "ZeroDivisionError"
    assert await notebook.value("x") == "21"


async def test_what_models_forget_to_import_is_there(shared: Notebook) -> None:
    """Qwen-Agent's kernels have it, and so code that Qwen writes counts on it."""
    code = "np.arange(3).sum(), pd.Series([1]).size, plt.__name__, json.dumps(1), math.pi > 3, os.sep, re.escape('a')"
    assert await shared.value(code) == "(np.int64(3), 1, 'matplotlib.pyplot', '1', True, '/', 'a')"


async def test_names_of_our_own_are_not_among_the_users(notebook: Notebook) -> None:
    await notebook.outcome("mine = 1")
    [(_, listed)] = await notebook.said("%who")
    assert listed.split() == ["mine"]


async def test_tasks_go_on_from_one_cell_to_the_next(shared: Notebook) -> None:
    await shared.outcome(
        "import asyncio\nasked = asyncio.Event()\nasync def answer():\n    await asked.wait()\n    return 42"
    )
    await shared.outcome("task = asyncio.create_task(answer())")
    await shared.outcome("asked.set()")
    assert await shared.value("await task") == "42"


async def test_chance_is_another_in_each_kernel(kernels: Kernels) -> None:
    """Kernels of a pool that had the same seed would tell one caller another's numbers."""
    code = (
        "import random, uuid, secrets\n"
        "random.random(), np.random.rand(), np.random.default_rng().random(), uuid.uuid4(), secrets.token_hex()"
    )
    values = [await Notebook(kernels, f"chance {number}").value(code) for number in range(2)]
    first, second = (set(value.strip("()").split(",")) for value in values)
    assert len(first) == len(second) == 5
    assert not first & second


async def test_one_callers_session_is_not_anothers_of_the_same_name(kernels: Kernels) -> None:
    adas, bobs = Notebook(kernels, "same name", "ada"), Notebook(kernels, "same name", "bob")
    await adas.outcome("x = 'hers'; _ = open('diary.txt', 'w').write(x)")
    assert (await bobs.error("x")).name == "NameError"
    assert await bobs.value("os.listdir()") == "[]"
    assert await adas.value("x, os.listdir()") == "('hers', ['diary.txt'])"


async def test_cells_of_one_session_run_one_after_the_other(shared: Notebook) -> None:
    await shared.outcome("import time; seen = []")
    cells = [shared.outcome(f"seen.append({n}); time.sleep(0.01); seen.append({n})") for n in range(5)]
    await asyncio.gather(*cells)
    seen = json.loads(await shared.value("seen"))
    assert seen[::2] == seen[1::2]
    assert sorted(seen[::2]) == list(range(5))


async def test_without_a_session_nothing_is_kept(kernels: Kernels) -> None:
    forgetful = Notebook(kernels, None)
    assert (await forgetful.outcome("x = 1; open('a', 'w').close()")).files[0].name == "a"
    assert (await forgetful.error("x")).name == "NameError"
    assert await forgetful.value("os.listdir()") == "[]"


# -- tables ------------------------------------------------------------------------------------------------


async def test_a_table_is_text_in_columns(shared: Notebook) -> None:
    code = "pd.DataFrame({'city': ['北京', 'Rome'], 'people': [2189, None]})"
    assert await shared.value(code) == "   city  people\n0    北京  2189.0\n1  Rome     NaN"
    assert await shared.said(f"print({code})") == [("stdout", "   city  people\n0    北京  2189.0\n1  Rome     NaN\n")]
    assert await shared.value("pd.Series([1, 2], name='x')") == "0    1\n1    2\nName: x, dtype: int64"


async def test_a_long_table_shows_its_ends_and_its_size(shared: Notebook) -> None:
    lines = (await shared.value("pd.DataFrame({'n': range(100_000), 'square': np.arange(100_000) ** 2})")).split("\n")
    assert len(lines) < 20
    assert lines[1].split() == ["0", "0", "0"]
    assert lines[-1] == "[100000 rows x 2 columns]"
    assert lines[-3].split() == ["99999", "99999", "9999800001"]


async def test_a_table_of_twelve_columns_is_whole(shared: Notebook) -> None:
    header, *rows = (await shared.value("pd.DataFrame({f'column_{n}': [n, n] for n in range(12)})")).split("\n")
    assert header.split() == [f"column_{n}" for n in range(12)]
    assert [row.split() for row in rows] == [[f"{row}", *map(str, range(12))] for row in range(2)]


async def test_a_wide_table_is_not_broken_into_blocks(shared: Notebook) -> None:
    """Models read the lines of a second block as those of another table."""
    forty = (await shared.value("pd.DataFrame({f'column_{n}': [n] for n in range(40)})")).split("\n")
    assert forty[-1] == "[1 rows x 40 columns]"
    assert "..." in forty[0]
    assert len(forty) == 4


async def test_tables_are_read_grouped_and_written(shared: Notebook) -> None:
    code = """
    df = pd.DataFrame({"region": ["north", "south", "north"], "sales": [1.5, 2.0, 3.25]})
    df["day"] = pd.date_range("2026-01-30", periods=3)
    df.to_csv("sales.csv", index=False)
    back = pd.read_csv("sales.csv", parse_dates=["day"])
    back.groupby("region")["sales"].sum().to_dict(), str(back["day"].max().date())
    """
    outcome = await shared.outcome(code)
    assert said(outcome) == [("result", "({'north': 4.75, 'south': 2.0}, '2026-02-01')")]
    assert shared.read(outcome) == {
        "sales.csv": b"region,sales,day\nnorth,1.5,2026-01-30\nsouth,2.0,2026-01-31\nnorth,3.25,2026-02-01\n"
    }


# -- figures -----------------------------------------------------------------------------------------------


async def test_figures_come_as_pictures_with_and_without_show(shared: Notebook) -> None:
    shown = await shared.outcome("plt.plot([1, 2]); plt.show()")
    left = await shared.outcome("plt.figure(figsize=(2, 1)); plt.plot([1, 2]);")
    assert said(shown) == said(left) == [("picture", "image-1.png")]
    sizes = [size_of(piece) for outcome in (shown, left) for piece in outcome.pieces if isinstance(piece, Picture)]
    assert sizes[0][0] > 2 * sizes[1][0], "each is of its own size"


async def test_several_figures_of_a_cell_come_where_they_were_shown(shared: Notebook) -> None:
    code = """
    plt.plot([1]); plt.show(); print("between"); plt.plot([2]); plt.show()
    for i in range(2): plt.figure(); plt.plot([i])
    """
    assert await shared.said(code) == [
        ("picture", "image-1.png"),
        ("stdout", "between\n"),
        *(("picture", f"image-{number}.png") for number in (2, 3, 4)),
    ]


async def test_a_figure_of_an_earlier_cell_is_shown_when_it_is_the_value(shared: Notebook) -> None:
    await shared.outcome("figure, axes = plt.subplots(); plt.close(figure)")
    assert await shared.said("axes.plot([1, 2]); figure") == [("picture", "image-1.png")]


async def test_a_figure_is_saved_as_a_file(shared: Notebook) -> None:
    outcome = await shared.outcome("plt.plot([1, 2]); plt.savefig('plot.png'); plt.savefig('plot.pdf'); plt.close()")
    files = shared.read(outcome)
    assert said(outcome) == []
    assert files["plot.png"].startswith(b"\x89PNG")
    assert files["plot.pdf"].startswith(b"%PDF")


async def test_images_of_pillow_are_shown(shared: Notebook) -> None:
    outcome = await shared.outcome(
        "from PIL import Image\ndisplay(Image.new('RGB', (7, 5), 'red')); print('and'); Image.new('L', (2, 3))"
    )
    assert said(outcome) == [("picture", "image-1.png"), ("stdout", "and\n"), ("picture", "image-2.png")]
    assert [size_of(piece) for piece in outcome.pieces if isinstance(piece, Picture)] == [(7, 5), (2, 3)]


async def test_the_bytes_of_a_jpeg_are_shown(shared: Notebook) -> None:
    code = (
        "import io\nfrom PIL import Image\nfrom IPython.display import Image as Show\nto = io.BytesIO()\n"
        "Image.new('RGB', (4, 4)).save(to, 'jpeg'); Show(to.getvalue())"
    )
    [picture] = (await shared.outcome(code)).pieces
    assert isinstance(picture, Picture)
    assert picture.name == "image-1.jpeg"
    assert picture.data.startswith(b"\xff\xd8\xff")


LABELS = (
    "plt.plot([-1, 2], label='图例'); plt.title('中文标题：日本語'); plt.xlabel('时间（秒）'); plt.legend(); plt.show()"
)


@pytest.fixture
async def chinese(shared: Notebook) -> None:
    """There is a font with Chinese letters."""
    code = """
    import matplotlib.font_manager, re
    names = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
    any(re.search("CJK|WenQuanYi|Han Sans|Droid Sans Fallback", name) for name in names)
    """
    if await shared.value(code) != "True":
        pytest.skip("NO FONT WITH CHINESE LETTERS is installed (apt-get install fonts-wqy-microhei)")


@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    "before",
    [
        "",
        "plt.rcParams['font.sans-serif'] = ['SimHei']; plt.rcParams['axes.unicode_minus'] = False",
        "plt.rcParams['font.sans-serif'] = ['SimHei']; plt.rcParams['font.family'] = 'sans-serif'",
        "plt.rcParams['font.family'] = ['Microsoft YaHei']",
        "plt.rc('font', family='SimHei')",
        "plt.style.use('ggplot')",
        "plt.rcParams['font.family'] = 'sans-serif'",
        "plt.style.use('default')",
        "plt.rcdefaults()",
    ],
    ids=ascii,
)
async def test_chinese_labels_are_letters_and_no_boxes(shared: Notebook, before: str) -> None:
    """Matplotlib warns of each letter for which it draws a box."""
    assert await shared.said(f"with plt.rc_context():\n    {before}\n    {LABELS}") == [("picture", "image-1.png")]


async def test_of_a_letter_that_no_font_has_the_model_is_told(shared: Notebook) -> None:
    [(kind, warned), picture] = await shared.said("plt.title('\\U000F1234'); plt.show()")
    assert kind == "stderr"
    assert "missing from font" in warned
    assert picture == ("picture", "image-1.png")


# -- what notebooks can do ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("!echo out; echo err >&2; exit 3", [("stdout", "out\nerr\n")]),
        ("lines = !printf 'a\\nb'\nlines", [("result", "['a', 'b']")]),
        ("word = 'hi'\n!echo {word} $word", [("stdout", "hi hi\n")]),
        ("%%bash\nfor i in 1 2; do echo $i; done", [("stdout", "1\n2\n")]),
        ("%%writefile shopping.txt\neggs\n", [("stdout", "Writing shopping.txt\n")]),
        ("%cd -q .", []),
        ("%matplotlib inline", []),
        ("%env GREETING=hi\n!echo $GREETING", [("stdout", "env: GREETING=hi\nhi\n")]),
        (
            "import subprocess, sys\nsubprocess.check_output([sys.executable, '-c', 'print(6 * 7)'])",
            [("result", "b'42\\n'")],
        ),
        ("os.system('exit 3') >> 8", [("result", "3")]),
    ],
    ids=ascii,
)
async def test_commands_and_magics_work(shared: Notebook, code: str, told: Said) -> None:
    assert await shared.said(code) == told


#: On one processor, which another program uses, threads that read what programs write hardly ever get their turn.
BUSY = """
import subprocess, sys, threading
one = {min(os.sched_getaffinity(0))}
for thread in threading.enumerate():
    os.sched_setaffinity(thread.native_id, one)
    if "watch_pipe_fd" in thread.name:
        os.sched_setscheduler(thread.native_id, os.SCHED_IDLE, os.sched_param(0))
busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
"""


async def test_what_programs_write_is_told_with_their_cell(notebook: Notebook) -> None:
    await notebook.outcome(BUSY)
    told = [await notebook.said(f"os.system('echo {n}');") for n in range(5)]
    await notebook.outcome("busy.kill()")
    assert told == [[("stdout", f"{n}\n")] for n in range(5)]


async def test_output_is_captured(shared: Notebook) -> None:
    assert await shared.said("%%capture held\nprint('held')") == []
    assert await shared.value("held.stdout") == "'held\\n'"


async def test_cells_are_timed(shared: Notebook) -> None:
    [(kind, timed)] = await shared.said("%timeit -n 10 -r 2 sum(range(10))")
    assert (kind, "10 loops each" in timed) == ("stdout", True)
    assert [kind for kind, _ in await shared.said("%%time\nsum(range(10))")] == ["stdout", "result"]


async def test_await_works_at_the_top(shared: Notebook) -> None:
    code = """
    import asyncio
    async def double(n):
        await asyncio.sleep(0)
        print("doubled", n)
        return 2 * n
    async with asyncio.timeout(10):
        doubled = await asyncio.gather(*map(double, range(3)))
    doubled
    """
    assert await shared.said(code) == [("stdout", "doubled 0\ndoubled 1\ndoubled 2\n"), ("result", "[0, 2, 4]")]


async def test_threads_write_into_their_cell(shared: Notebook) -> None:
    code = """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    threads = [threading.Thread(target=print, args=(f"thread {n}\\n",), kwargs={"end": ""}) for n in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    with ThreadPoolExecutor(4) as pool: total = sum(pool.map(int, "1234"))
    total
    """
    [(kind, written), result] = await shared.said(code)
    assert (kind, sorted(written.splitlines())) == ("stdout", [f"thread {n}" for n in range(4)])
    assert result == ("result", "10")


async def test_processes_share_the_work_and_write_into_their_cell(kernels: Kernels, shared: Notebook) -> None:
    await shared.outcome("import multiprocessing, concurrent.futures\ndef square(n):\n    return n * n")
    assert await shared.value("with multiprocessing.Pool(2) as p: out = p.map(square, range(4))\nout") == "[0, 1, 4, 9]"
    code = "with concurrent.futures.ProcessPoolExecutor(2) as p: out = list(p.map(square, range(4)))\nout"
    assert await shared.value(code) == "[0, 1, 4, 9]"
    assert (
        await shared.value("with multiprocessing.get_context('spawn').Pool(1) as p: out = p.map(abs, [-1])\nout")
        == "[1]"
    )
    if kernels.described()["isolation"] == "bwrap":
        # What a process writes that was forked comes by TCP, of which Landlock's tier has none.
        code = "p = multiprocessing.Process(target=print, args=('from a child',)); p.start(); p.join(); p.exitcode"
        assert await shared.said(code) == [("stdout", "from a child\n"), ("result", "0")]


async def test_the_standard_library_works(shared: Notebook) -> None:
    code = """
    import csv, dataclasses, datetime, decimal, gzip, hashlib, pathlib, pickle
    import sqlite3, statistics, tempfile, zipfile, zoneinfo
    with tempfile.TemporaryDirectory() as directory:
        pathlib.Path(directory, "a").write_text("a")
        listed = os.listdir(directory)
    with tempfile.NamedTemporaryFile() as file: file.write(b"x")
    @dataclasses.dataclass
    class Point: x: int
    database = sqlite3.connect("points.db")
    database.execute("create table point (x)")
    database.executemany("insert into point values (?)", [(1,), (2,)])
    database.commit()
    with zipfile.ZipFile("all.zip", "w") as archive: archive.write("points.db")
    (
        listed,
        pickle.loads(pickle.dumps(Point(1))) == Point(1),
        database.execute("select sum(x) from point").fetchone(),
        gzip.decompress(gzip.compress(b"z")),
        datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Asia/Shanghai")).isoformat(),
        decimal.Decimal("0.1") + decimal.Decimal("0.2"),
        statistics.median([3, 1, 2]),
    )
    """
    outcome = await shared.outcome(code)
    assert "".join(text for _, text in said(outcome)).replace("\n", "") == (
        "(['a'], True, (3,), b'z', '2026-01-01T00:00:00+08:00', Decimal('0.3'), 2)"
    )
    assert sorted(file.name for file in outcome.files) == ["all.zip", "points.db"]


async def test_numbers_are_computed(shared: Notebook) -> None:
    code = (
        "a = np.random.default_rng(1).random((300, 300)); x = np.linalg.solve(a, a @ np.ones(300)); np.allclose(x, 1)"
    )
    assert await shared.value(code) == "True"


async def test_time_and_text_are_as_elsewhere(shared: Notebook) -> None:
    code = """
    import locale, sys, time
    print(time.time(), sys.stdout.encoding, locale.getpreferredencoding(), open("x", "w").encoding)
    """
    [(_, told)] = await shared.said(code)
    at, *encodings = told.split()
    assert abs(float(at) - time.time()) < 60
    assert {encoding.lower() for encoding in encodings} == {"utf-8"}


async def test_home_is_where_files_go(shared: Notebook) -> None:
    code = """
    import pathlib, tempfile
    pathlib.Path.home().joinpath("kept.txt").write_text("x")
    pathlib.Path(tempfile.gettempdir(), "draft.txt").write_text("x")
    """
    assert [file.name for file in (await shared.outcome(code)).files] == ["kept.txt"]


# -- errors ------------------------------------------------------------------------------------------------


async def test_an_error_tells_its_line_and_what_came_before_is_kept(shared: Notebook) -> None:
    outcome = await shared.run("def invert(n):\n    return 1 / n\nprint('before')\ninvert(0)\nprint('after')")
    assert said(outcome) == [("stdout", "before\n"), ("error", "ZeroDivisionError: division by zero")]
    traceback = outcome.pieces[-1]
    assert isinstance(traceback, Raised)
    assert "----> 4 invert(0)" in traceback.traceback
    assert "----> 2     return 1 / n" in traceback.traceback
    assert traceback.traceback.endswith("ZeroDivisionError: division by zero")
    assert not any(internal in traceback.traceback for internal in ("\x1b", "IPython/core", "ipykernel/"))


async def test_of_an_error_in_a_library_the_cells_line_is_told(shared: Notebook) -> None:
    error = await shared.error("pd.read_csv('nowhere.csv')")
    assert error.name == "FileNotFoundError"
    assert "----> 1 pd.read_csv('nowhere.csv')" in error.traceback
    assert error.traceback.endswith("No such file or directory: 'nowhere.csv'")
    assert len(error.traceback.splitlines()) < 80


async def test_an_error_tells_its_cause(shared: Notebook) -> None:
    code = "try:\n    {}['key']\nexcept KeyError as e:\n    raise ValueError('no such\\nthing 没有') from e"
    error = await shared.error(code)
    assert (error.name, error.message) == ("ValueError", "no such\nthing 没有")
    assert "KeyError: 'key'" in error.traceback
    assert "The above exception was the direct cause of the following exception:" in error.traceback


async def test_what_is_no_python_is_told_with_its_place(shared: Notebook) -> None:
    error = await shared.error("x = 1\nif x\n    y = 2")
    assert error.name == "SyntaxError"
    assert "line 2" in error.traceback
    assert "expected ':'" in error.traceback
    assert (await shared.error("def f():\nreturn 1")).name == "IndentationError"


async def test_a_recursion_without_end_is_told_in_few_lines(shared: Notebook) -> None:
    # Of Python's own 1000 frames ipykernel's telling takes seconds.
    code = """
    import sys
    limit = sys.getrecursionlimit()
    def down(n): return down(n + 1)
    try: sys.setrecursionlimit(250); down(0)
    finally: sys.setrecursionlimit(limit)
    """
    error = await shared.error(code)
    assert error.name == "RecursionError"
    assert len(error.traceback.splitlines()) < 100


async def test_an_error_of_many_errors_tells_them_all(shared: Notebook) -> None:
    outcome = await shared.run("raise ExceptionGroup('both', [ValueError('one'), TypeError('two')])")
    assert outcome.status == "error"
    told = "\n".join(text for _, text in said(outcome))
    assert all(text in told for text in ("both", "ValueError: one", "TypeError: two"))


@pytest.mark.parametrize(
    "leave", ["import sys; sys.exit(1)", "raise SystemExit", "raise KeyboardInterrupt", "assert 0"]
)
async def test_what_ends_a_program_ends_the_cell_alone(shared: Notebook, leave: str) -> None:
    await shared.outcome("kept = 1")
    assert (await shared.run(leave)).status == "error"
    assert await shared.value("kept") == "1"


async def test_exit_ends_its_cell_and_no_later_one(notebook: Notebook) -> None:
    """Scripts end so, and models write scripts."""
    await notebook.outcome("kept = 1\nexit()")
    await notebook.outcome("import asyncio; await asyncio.sleep(0.2)")
    assert await notebook.value("kept") == "1"


async def test_half_of_a_surrogate_pair_costs_nothing_else(shared: Notebook) -> None:
    for half in ("\\udcff", "\\ud83d"):
        [(kind, text)] = await shared.said(f"print('before {half} after')")
        assert kind == "stdout"
        assert re.fullmatch("before . after\n", text)


async def test_code_with_half_of_a_surrogate_pair_has_an_outcome(shared: Notebook) -> None:
    """JSON can hold one, and models that are cut in the middle of an emoji write one."""
    assert (await shared.run("print('\ud83d')")).status in ("ok", "error")


# -- the end of cells and kernels --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(3600)",
        "await asyncio.sleep(3600)",
    ],
)
async def test_a_cell_that_takes_too_long_is_stopped_and_all_else_is_kept(notebook: Notebook, code: str) -> None:
    await notebook.outcome("import asyncio; x = 1")
    outcome = await notebook.run(f"x += 1; print('begun')\n{code}", time_s=SHORT_S)
    assert (outcome.status, said(outcome), outcome.notes) == ("timeout", [("stdout", "begun\n")], ())
    assert await notebook.value("x") == "2"


async def test_a_program_that_goes_on_speaks_for_its_own_cell_only(notebook: Notebook) -> None:
    writes = "while echo late; do echo >> .lines; sleep 0.01; done"
    await notebook.outcome(f"import subprocess; program = subprocess.Popen(['sh', '-c', {writes!r}])")
    # It has written ten lines more, and the cell says its own.
    goes_on = "size = lambda: os.path.getsize('.lines') if os.path.exists('.lines') else 0\nends = size() + 10\n"
    mine = await notebook.said(f"{goes_on}while size() < ends: pass\nprint('mine')\n!echo ours")
    assert mine == [("stdout", "mine\nours\n")]
    assert await notebook.said("program.kill(); program.wait()") == [("result", "-9")]


async def test_a_pool_of_threads_speaks_for_the_cell_that_asks_it(notebook: Notebook) -> None:
    pool = "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(2)\n"
    assert await notebook.said(f"{pool}list(pool.map(print, 'a'));") == [("stdout", "a\n")]
    assert await notebook.said("list(pool.map(print, 'b'));") == [("stdout", "b\n")]
    awaited = "import asyncio\nawait asyncio.get_running_loop().run_in_executor(None, print, 'c')"
    assert await notebook.said(awaited) == await notebook.said(awaited) == [("stdout", "c\n")]


async def test_what_closes_its_output_is_heard_again(notebook: Notebook) -> None:
    await notebook.run("import os, sys; sys.stdout.close(); os.system('echo lost')")
    assert await notebook.said("print('a'); _ = os.system('echo b')") == [("stdout", "a\nb\n")]


async def test_who_has_used_up_all_descriptors_is_heard_when_there_are_some_again(notebook: Notebook) -> None:
    fill = "held = []\ntry:\n    while True: held.append(open('/dev/null'))\nexcept OSError: print('full')"
    assert await notebook.said(fill) == [("stdout", "full\n")]
    await notebook.run("held.clear()")
    assert await notebook.said("import os; print('a'); _ = os.system('echo b')") == [("stdout", "a\nb\n")]


@pytest.mark.parametrize("turns", range(0, 60, 4))
async def test_who_leaves_as_soon_as_a_cell_is_sent_loses_the_cell_only(notebook: Notebook, turns: int) -> None:
    await notebook.outcome("import time; x = 1")
    leaving = asyncio.create_task(notebook.run("time.sleep(60)"))
    for _ in range(turns):
        await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await notebook.value("x") == "1"


async def test_no_cell_leaves_a_thread_or_a_descriptor_behind(notebook: Notebook) -> None:
    count = "import threading\n!true\nlen(threading.enumerate()), len(os.listdir('/proc/self/fd'))"
    await notebook.value(count)
    counts = {await notebook.value(count) for _ in range(20)}
    assert len(counts) <= 3, counts


#: Interrupts its own process for a second or so, whatever that does meanwhile.
INTERRUPTS = """
import os, signal, threading, time
kept = 1
def storm():
    for _ in range(1000):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.001)
interrupting = threading.Thread(target=storm)
interrupting.start()
"""


async def test_an_interrupt_at_whatever_moment_ends_a_cell_and_never_the_kernel(notebook: Notebook) -> None:
    # It comes while a cell begins, or when it has ended, too.
    outcomes = [await notebook.run(INTERRUPTS)]
    while (outcome := await notebook.run("interrupting.is_alive()")).pieces != (Shown("False", is_result=True),):
        outcomes.append(outcome)
    assert {outcome.status for outcome in outcomes} <= {"ok", "error"}
    assert {piece.name for outcome in outcomes for piece in outcome.pieces if isinstance(piece, Raised)} == {
        "KeyboardInterrupt"
    }
    assert await notebook.value("kept") == "1"


async def test_after_the_kernels_death_files_are_kept_and_the_model_is_told(notebook: Notebook, tmp_path: Path) -> None:
    given = attached(tmp_path / "given.txt", b"given")
    await notebook.outcome("x = 1; os.makedirs('deep'); _ = open('deep/made.txt', 'w').write('made')", given)
    died = await notebook.run("import signal; print('last words', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert (died.status, died.notes) == ("died", (DIED,))
    after = await notebook.run("open('deep/made.txt').read(), open('given.txt').read(), 'x' in globals()", [given])
    assert (after.status, after.notes) == ("ok", (RESTARTED,))
    assert said(after) == [("result", "('made', 'given', False)")]
    assert after.files == (), "they have been told"
    assert await notebook.value("1 + 1") == "2"


# -- files -------------------------------------------------------------------------------------------------


async def test_a_file_that_was_attached_is_read_and_changed(notebook: Notebook, tmp_path: Path) -> None:
    data = "name,n\nä,1\n".encode()
    given = attached(tmp_path / "销售 2026.csv", data)
    read = await notebook.outcome("pd.read_csv('销售 2026.csv')['n'].sum(), os.listdir()", given)
    assert said(read) == [("result", "(np.int64(1), ['销售 2026.csv'])")]
    assert read.files == (), "nobody changed it"
    changed = await notebook.outcome("with open('销售 2026.csv', 'a') as f: f.write('ö,2\\n')", given)
    assert notebook.read(changed) == {"销售 2026.csv": data + "ö,2\n".encode()}
    assert await notebook.value("pd.read_csv('销售 2026.csv')['n'].sum()", given) == "np.int64(3)"
    assert given.path.read_bytes() == data, "the caller's own is as it was"


async def test_new_files_are_told_in_whatever_directory(notebook: Notebook) -> None:
    code = "os.makedirs('a/b'); open('a/b/ü.bin', 'wb').write(bytes(range(256))); open('empty', 'w').close()"
    assert notebook.read(await notebook.outcome(code)) == {"a/b/ü.bin": bytes(range(256)), "empty": b""}
    assert (await notebook.outcome("open('a/b/ü.bin', 'rb').read(); os.remove('empty')")).files == ()
    assert [file.name for file in (await notebook.outcome("open('a/b/ü.bin', 'ab').write(b'!');")).files] == [
        "a/b/ü.bin"
    ]


async def test_a_later_cell_imports_a_module_that_an_earlier_one_wrote(notebook: Notebook) -> None:
    written = await notebook.outcome("%%writefile mine.py\ndef answer():\n    return 42\n")
    assert [file.name for file in written.files] == ["mine.py"]
    imported = await notebook.outcome("import mine\nmine.answer()")
    assert (said(imported), imported.files) == ([("result", "42")], ())
    assert (
        await notebook.value("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import mine']).returncode")
        == "0"
    )
    assert (await notebook.error("import numpy.nothing_like_it")).name == "ModuleNotFoundError"


async def test_files_of_two_calls_are_both_there(notebook: Notebook, tmp_path: Path) -> None:
    first, second = attached(tmp_path / "a.txt", b"a"), attached(tmp_path / "b.txt", b"b", "file-2")
    assert await notebook.value("sorted(os.listdir())", first) == "['a.txt']"
    assert await notebook.value("sorted(os.listdir())", second) == "['a.txt', 'b.txt']"


# -- where there are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ("exit 1", "cannot be started"),
        ("echo no Python", "cannot be started"),
        (f'exec "{sys.executable}" -S "$@"', "needs ipykernel>=7: {python} -m pip install"),
    ],
)
async def test_without_a_python_that_can_there_are_no_kernels_and_the_reason_is_told(
    tmp_path: Path, answers: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{answers}\n")
    python.chmod(0o755)
    kernels = open_kernels(KernelSettings(python=python))
    told: Any = kernels.unavailable()
    assert said.format(python=python) in told
    assert kernels.described() == {"backend": "embedded", "unavailable": told}
    await kernels.aclose()
