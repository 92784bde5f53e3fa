"""The live line of a sweep in a real terminal: a pseudo-terminal, two quick jobs, and what a reader of the screen sees."""

import os
import pty
import re
import threading

import forked

SMALL = ["dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1", "crop=random_k4"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, and moves of the cursor


IN_TERMINAL = """
import os, runpy, sys
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
for number in (1, 2):
    os.dup2(terminal, number)
sys.stdout.reconfigure(line_buffering=True)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def in_terminal(arguments, environment) -> tuple[int, str]:
    """Exit status, and all that run.py writes to a terminal that is 250 columns wide."""
    reader, writer = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(reader, 65536):
                written.append(piece)
        except OSError:  # Linux says so at the end of a pseudo-terminal
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    done = forked.run([os.ttyname(writer), *arguments], env=environment, code=IN_TERMINAL)
    os.close(writer)
    thread.join(timeout=30)
    os.close(reader)
    return done.returncode, b"".join(written).decode()


def test_a_terminal_shows_one_line_that_is_written_over_and_says_where_the_sweep_stands(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB") and name not in ("NO_COLOR", "CI")}
    env = clean | {"HOME": str(tmp_path), "TERM": "xterm-256color", "COLUMNS": "250", "LINES": "50"}
    paths = [f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    grid = ["-m", "task=zero_shot", "aggregator=dnd,max", *SMALL, "logger=none", "trainer.threads=1", *paths]
    status, raw = in_terminal(grid, env)
    shown = CONTROL.sub("", raw)
    assert status == 0, shown
    assert "\x1b[2K" in raw  # the line is erased before it is written anew
    states = re.findall(r"sweep: (\d) of 2 done", shown)
    assert states == sorted(states) and states[0] == "0" and states[-1] == "2", states  # it moves forward, from none to all
    assert re.search(r"2 of 2 done, best \d+\.\d % \([01]: aggregator=(dnd|max)\)", shown)
    assert "Testing" not in shown and "it/s" not in shown  # a job's own bars would write over the line
    assert shown.rstrip().splitlines()[-1].startswith("compare them: multicrop compare")
