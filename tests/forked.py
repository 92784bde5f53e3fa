"""`run.py` in a process of its own without its imports each time: a server imports the package once and forks a process per command.

The processes of pytest-xdist share one server: it forks a process per connection, which forks one per command.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parent.parent
WARM = (  # what a run on a bank at hand does not load is loaded here as well
    *("multicrop.runs.experiment", "multicrop.runs.finished_jobs", "multicrop.data.embedded.scenes", "multicrop.show.pictures"),
    *("multicrop.features.fill", "multicrop.features.on_the_fly", "multicrop.adapters.descent", "multicrop.encoder.loading"),
    *("lightning.pytorch.loggers", "torchvision.transforms.v2", "peft", "pandas", "inflect"),
)
PLACE = "MULTICROP_TESTS_SERVER"  # the folder of the server's socket, for the processes that pytest starts
ENVIRONMENT = dict(os.environ)  # of the server, which may be started by a test that has changed its own
_RUNNING: list["Process"] = []  # the process whose status was not read yet


@dataclass
class Process:
    """A command that runs; `pid` is the process's own, so that a test may kill it."""

    pid: int
    folder: tempfile.TemporaryDirectory

    def ended(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([_server()], [], [], 0)[0])

    def wait(self, timeout: float = 500) -> subprocess.CompletedProcess:
        """The exit status (negative for a signal), and what was written to the two streams."""
        ended = _answer(timeout)
        _RUNNING.clear()
        stdout, stderr = ((Path(self.folder.name) / name).read_text() for name in ("stdout", "stderr"))
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.pid, ended["status"], stdout, stderr)


def start(arguments: Sequence[object], env: Mapping[str, str] | None = None, cwd: Path = ROOT, code: str | None = None) -> Process:
    """Start `python run.py ARGUMENTS`, or this code as a script with these arguments; one command at a time."""
    folder = tempfile.TemporaryDirectory()
    environment = dict(os.environ if env is None else env)
    command = {"arguments": [*map(str, arguments)], "env": environment, "cwd": str(cwd), "code": code, "folder": folder.name}
    _end_abandoned()
    _server().sendall(json.dumps(command).encode() + b"\n")
    _RUNNING.append(Process(_answer(60)["pid"], folder))
    return _RUNNING[0]


def run(arguments: Sequence[object], env: Mapping[str, str] | None = None, cwd: Path = ROOT, code: str | None = None, timeout: float = 500):
    """Run it to its end, as subprocess.run does with captured text."""
    return start(arguments, env, cwd, code).wait(timeout)


def _end_abandoned() -> None:
    """Kill a process that no test waited for, and read its status, so that the next answer is that of the next command."""
    if _RUNNING:
        with suppress(ProcessLookupError):
            os.kill(_RUNNING[0].pid, signal.SIGKILL)
        _RUNNING[0].wait(60)


def make_place() -> None:
    """Make the folder of the server's socket, unless a process that started this one has; the first one removes it at its end."""
    if PLACE not in os.environ:
        made = tempfile.TemporaryDirectory(prefix="forked-", ignore_cleanup_errors=True)
        os.environ[PLACE] = made.name
        atexit.register(made.cleanup)


@cache
def _server() -> socket.socket:
    """A connection to the server, which is started where there is none."""
    make_place()
    path = Path(os.environ[PLACE]) / "socket"
    with FileLock(path.with_name("lock")):
        for start_it in (False, True):
            if start_it:
                _start(path)
            with suppress(OSError):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(str(path))
                _answer(300, connection)  # it has imported all
                return connection
    raise OSError(f"the server of {__file__} has ended; what it said is above")


def _start(path: Path) -> None:
    """Start the server, which listens at once and answers when it has imported all."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [sys.executable, __file__, str(listener.fileno())]
        silent, kept = subprocess.DEVNULL, [listener.fileno()]
        subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=silent, stdout=silent, pass_fds=kept)


def _answer(timeout: float, server: socket.socket | None = None) -> dict:
    """The next line that the server writes; raises ConnectionError where it has ended."""
    server, line = server or _server(), b""
    while not line.endswith(b"\n"):
        if not select.select([server], [], [], timeout)[0]:
            raise TimeoutError(f"no answer in {timeout} seconds")
        if not (piece := server.recv(4096)):
            raise ConnectionError("the server has ended")
        line += piece
    return json.loads(line)


def _serve(listener: socket.socket) -> dict:
    """Fork a process per connection until the last one is closed; returns the command in each process that they fork."""
    handlers: list[int] = []
    while True:
        if not handlers or select.select([listener], [], [], 1)[0]:
            connection = listener.accept()[0]
            if (pid := os.fork()) == 0:
                listener.close()
                return _handle(connection)
            connection.close()
            handlers.append(pid)
        handlers = [pid for pid in handlers if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if not handlers:
            os._exit(0)


def _handle(connection: socket.socket) -> dict:
    """Fork a process per line of a connection; returns the command in each of them."""
    lines, answers = connection.makefile("r"), connection.makefile("w")
    print("{}", file=answers, flush=True)
    for line in lines:
        if (pid := os.fork()) == 0:
            for file in (lines, answers, connection):
                file.close()
            return json.loads(line)
        print(json.dumps({"pid": pid}), file=answers, flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status}), file=answers, flush=True)
    os._exit(0)


def _become(command: dict) -> None:
    """Run the command in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
    os.environ.clear()
    os.environ.update(command["env"])
    os.chdir(command["cwd"])
    for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
        file = os.open(Path(command["folder"]) / name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115, PTH123
    sys.path[0] = str(ROOT)
    sys.argv = [str(ROOT / "run.py"), *command["arguments"]]
    if command["code"] is not None:
        exec(compile(command["code"], "<code>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    import conf_files
    import torch
    from hydra import compose, initialize_config_dir

    from multicrop import config
    from multicrop.data.embedded import artwork
    from multicrop.encoder import load_encoder

    artwork.load_drawings = cache(artwork.load_drawings)  # before others import it by name
    for module in WARM:
        __import__(module)
    for vendors in (artwork.TRAINING_VENDORS, *((vendor,) for vendor in artwork.HELD_OUT_VENDORS)):
        for drawing in artwork.load_drawings(vendors, unseen=False):
            _ = drawing.image  # decoded once for all processes
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    load_encoder("tiny")  # the modules of its model, tokenizer and image processor
    torch.set_num_threads(threads)
    conf_files.read_once()
    config.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for task in ("zero_shot", "few_shot", "tta"):
            compose("config", [f"task={task}"])  # Hydra's plugins are imported, and most files read
    assert "wandb" not in sys.modules, "the first process that ends would remove the folder that wandb makes at its import"
    gc.freeze()  # what all processes share is not looked through again
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
