"""Turns a fresh Python process into a kernel. Runs inside the sandbox, before any user's code; needs ipykernel only.

    stdin: one JSON object, as `tools.kernels.starting` writes it      stdout: `ready`, or what went wrong

With the argument `fonts` it prints matplotlib's list of fonts instead, which kernels are started with, as making one
takes a second. For the pool, whatever is slow at its first use is used once here, so that nobody waits for that.
"""

import base64
import contextlib
import contextvars
import dataclasses
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

#: Names under which code that was written by models expects these, even if it does not import them.
#: Source: Qwen-Agent's `qwen_agent/tools/resource/code_interpreter_init_kernel.py`.
_KNOWN_AS = {"numpy": "np", "pandas": "pd", "matplotlib.pyplot": "plt"}
_KNOWN = ("json", "math", "os", "re")

#: Fonts with Chinese, Japanese and Korean letters, as matplotlib names them: the first that is there is used.
_CJK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
)

#: Fonts of other systems, which code and themes ask for nevertheless: they get the one that is there.
_ELSEWHERE = ("Arial", "SimHei", "SimSun", "Microsoft YaHei", "KaiTi", "FangSong", "STHeiti", "PingFang SC", "Heiti TC")

#: What is slow at its first use, by the name that it needs: how an error is told, a figure, and a table.
_WARMING = {
    "": "1/0",
    "plt": "plt.figure(); plt.plot([0, 1], [0, 1], label='0'); plt.title('0'); plt.legend(); plt.show()",
    "pd": "pd.DataFrame({'a': [1.0, 2.0], 'b': ['c', 'd']}).groupby('b').describe()",
}

#: A third of the weight that others have.
_NICENESS = 5

#: File descriptors that may have been left open for us are below this.
_INHERITED = 1024

#: A kernel has some 65 of its own. Linux makes the table of them longer where it becomes too short, and waits 15 ms for
#: all processors then, if there are several threads.
_DESCRIPTORS = 256

#: As much as a pipe holds.
_PIPE_BYTES = 65_536

#: So wide is a table as text; pandas' own 80 breaks it into blocks, which models misread.
_TABLE_COLUMNS = 160


def main() -> None:
    """Starts what the arguments ask for, and tells whoever reads stdout how that went."""
    # What whoever started us had open is not for the user's code.
    os.closerange(3, _INHERITED)
    os.close(os.dup2(0, _DESCRIPTORS - 1))
    # Where processors, or memory, are short for all, the server goes on.
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    own = Path(os.environ["TMPDIR"])
    os.environ |= {"MPLCONFIGDIR": str(own / "matplotlib"), "IPYTHONDIR": str(own / "ipython")}
    if sys.argv[1:] == ["fonts"]:
        print(_fonts())
        return
    told = os.fdopen(os.dup(1), "w")
    try:
        app = _kernel(json.load(sys.stdin))
    except BaseException:  # noqa: BLE001 - it is all that whoever waits will learn
        told.write(traceback.format_exc())
        told.close()
        sys.exit(1)
    told.write("ready\n")
    told.close()
    app.start()


def _kernel(start: dict[str, Any]) -> Any:
    # At once: confined, it reads nothing more here.
    confinement, streams = _beside("confinement"), _beside("streams")
    if warden := os.environ.pop("FLORETTE_WARDEN", None):
        confinement.die_with_parent(int(warden))
    confinement.limit(**start["limits"])
    os.chdir(start["workdir"])
    # debugpy costs a third of the start, and nobody debugs here.
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    _take_fonts(start["fonts"])
    loaded = {name: module for name in start["preload"] if (module := _module(name))}
    if start["landlock"] is not None:
        # It holds for the thread that asks for it, and what comes next has several.
        confinement.restrict(**start["landlock"])
    _silence()
    if "matplotlib.pyplot" in loaded:
        _choose_fonts()
    # By the width of the terminal pandas finds how many columns fit, whatever its own width says.
    os.environ["COLUMNS"] = str(_TABLE_COLUMNS)
    if "pandas" in loaded:
        loaded["pandas"].set_option("display.width", _TABLE_COLUMNS)
    stream = streams.stream_class(importlib.import_module("ipykernel.iostream"), start["output_chars"])
    app = _app(start["connection"], stream)
    _wake_by_signals()
    # Each thread that tells what is written opens a socket when it first does, and ends if none is left: now, for a
    # cell may use up all descriptors. Nobody listens yet.
    os.write(1, b"\n")
    print(flush=True)
    known = {_KNOWN_AS[name]: module for name, module in loaded.items() if name in _KNOWN_AS}
    app.shell.push({name: importlib.import_module(name) for name in _KNOWN} | known, interactive=False)
    if start["warm"]:
        _warm(app.shell, known)
    # What is loaded stays, and need not be looked at again and again: a figure makes objects enough for that.
    gc.collect()
    gc.freeze()
    _keep_threads_apart()
    if start["seccomp"] is not None:
        # It holds for all threads, and lets none connect to anything; the kernel has to connect to itself before.
        confinement.filter_system_calls(base64.b64decode(start["seccomp"]))
    return app


def _wake_by_signals() -> None:
    # What is awaited at the top is cancelled by a callback of an interrupt, which a loop that sleeps does not see.
    out, into = os.pipe()
    os.set_blocking(out, False)
    os.set_blocking(into, False)
    signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    ioloop = importlib.import_module("tornado.ioloop").IOLoop
    ioloop.current().add_handler(out, lambda *_: os.read(out, _PIPE_BYTES), ioloop.READ)


def _beside(name: str) -> Any:
    # Neither Python's isolated mode nor user's code is to find what lies here.
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module(name)
    finally:
        del sys.path[0]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        # This Python has no such library; code that wants it is told so by its own import.
        return None


def _silence() -> None:
    # Whoever started it reads no further than `ready`; what a kernel writes goes through its sockets.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _app(connection: dict[str, Any], stream: Any) -> Any:
    kernelapp = importlib.import_module("ipykernel.kernelapp")
    iostream = importlib.import_module("ipykernel.iostream")
    config = importlib.import_module("traitlets.config").Config
    kernel = _kernel_class(importlib.import_module("ipykernel.ipkernel"))

    class App(kernelapp.IPKernelApp):  # type: ignore[misc, name-defined]
        """The kernel, without the pipe by which processes that it forks write: that would be TCP. See `streams`."""

        kernel_class = kernel

        def init_iopub(self, context: Any) -> None:
            self.iopub_socket = context.socket(importlib.import_module("zmq").XPUB)
            self.iopub_socket.linger = 1000
            self.iopub_port: int = self._bind_socket(self.iopub_socket, self.iopub_port)
            self.iopub_thread = iostream.IOPubThread(self.iopub_socket, pipe=False, session=self.session)
            self.iopub_thread.start()
            self.iopub_socket = self.iopub_thread.background_socket

    # What packs messages is not what the user's code may put in the place of `json.dumps`.
    setattr(importlib.import_module("jupyter_client.session"), "json", SimpleNamespace(**vars(json)))  # noqa: B010
    # It is named there, and found by that name.
    setattr(iostream, "Stream", stream)  # noqa: B010 - a type checker knows that it is not there
    settings = config()
    settings.IPKernelApp.outstream_class = "ipykernel.iostream.Stream"
    settings.IPKernelApp.log_level = 50
    # orjson, where there is one, does not survive it when memory is short.
    settings.Session.packer = settings.Session.unpacker = "json"
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "nocolor"
    # Packing a figure as tightly as possible would take longer than to draw it.
    settings.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "pil_kwargs": {"compress_level": 1}}
    if "matplotlib" in sys.modules:
        settings.IPKernelApp.matplotlib = "inline"
    where = Path(os.environ["TMPDIR"]) / ".connection.json"
    where.write_text(json.dumps(connection), "utf-8")
    app = App.instance(config=settings)
    app.initialize(["-f", str(where)])
    # `exit()` at the end of a script would end the kernel 0.1 s later, in the middle of another cell.
    app.shell.ask_exit = lambda: None
    app.shell.events.register("pre_execute", stream.begin)
    # Python runs isolated, so IPython leaves it out: modules of the user's own are to be found.
    sys.path.insert(0, "")
    return app


def _kernel_class(ipkernel: Any) -> Any:
    in_cell = ipkernel.IPythonKernel.do_execute.__code__

    def interrupt(_: int, frame: FrameType | None) -> None:
        # Only where a cell runs: one that has ended by itself would take the kernel with it, or lose its answer.
        while frame is not None and frame.f_code is not in_cell:
            frame = frame.f_back
        if frame is not None:
            raise KeyboardInterrupt

    class Kernel(ipkernel.IPythonKernel):  # type: ignore[misc]
        """A kernel that an interrupt ends never, whenever it comes; a cell it ends, while that runs."""

        def pre_handler_hook(self) -> None:
            self.saved_sigint_handler = signal.signal(signal.SIGINT, interrupt)

        async def do_execute(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().do_execute(*args, **kwargs)
            except KeyboardInterrupt:
                # It came while the cell began, or ended: all there was to say of it has been said.
                return {"status": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}

    return Kernel


def _keep_threads_apart() -> None:
    # What a thread writes belongs to the cell that started it, also while a later one runs: ipykernel asks the context.
    start = threading.Thread.start

    def start_in_context(thread: threading.Thread) -> None:
        context, run = contextvars.copy_context(), thread.run
        setattr(thread, "run", lambda: context.run(run))  # noqa: B010
        start(thread)

    setattr(threading.Thread, "start", start_in_context)  # noqa: B010 - no type checker would have it
    # The threads of a pool work for many cells: there each piece of work belongs to the cell that asked for it.
    pool = importlib.import_module("concurrent.futures.thread").ThreadPoolExecutor
    submit = pool.submit

    def submit_in_context(self: Any, work: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, contextvars.copy_context().run, work, *args, **kwargs)

    setattr(pool, "submit", submit_in_context)  # noqa: B010


def _warm(shell: Any, known: dict[str, Any]) -> None:
    # Through the shell, as users' cells do it; nobody listens yet.
    for name, cell in _WARMING.items():
        if not name or name in known:
            shell.run_cell(cell, store_history=False, silent=True)
    # Of an error that nobody made nobody is to be told: `%debug` would show it.
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    sys.stdout.flush()
    sys.stderr.flush()


# -- fonts -------------------------------------------------------------------------------------------------


def _fonts() -> str:
    try:
        manager = importlib.import_module("matplotlib.font_manager")
    except ImportError:
        return json.dumps(None)
    fonts = manager.fontManager.ttflist
    cjk = [font for name in _CJK for font in fonts if font.name == name]
    absent = set(_ELSEWHERE) - {font.name for font in fonts}
    fonts += [dataclasses.replace(cjk[0], name=name) for name in sorted(absent) if cjk]
    name = f"fontlist-v{manager.FontManager.__version__}.json"
    path = Path(os.environ["MPLCONFIGDIR"]) / name
    manager.json_dump(manager.fontManager, path)
    return json.dumps({"name": name, "text": path.read_text("utf-8")})


def _choose_fonts() -> None:
    present = {font.name for font in importlib.import_module("matplotlib.font_manager").fontManager.ttflist}
    cjk = [font for font in _CJK if font in present][:1]
    matplotlib = importlib.import_module("matplotlib")
    # The defaults, too: `plt.style.use("default")` and `plt.rcdefaults()` go back to them.
    for settings in (matplotlib.rcParams, matplotlib.rcParamsDefault):
        # Letters that the first does not have are taken from the second; of a kind of fonts only the first is taken.
        settings["font.family"] = ["DejaVu Sans", *cjk]
        settings["font.sans-serif"] = [*cjk, *settings["font.sans-serif"]]


def _take_fonts(fonts: dict[str, str] | None) -> None:
    if fonts is not None:
        directory = Path(os.environ["MPLCONFIGDIR"])
        directory.mkdir(exist_ok=True)
        (directory / fonts["name"]).write_text(fonts["text"], "utf-8")


if __name__ == "__main__":
    main()
