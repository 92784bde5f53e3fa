"""A real SLURM of one node for the tests, from Debian's packages: installed where root may, configured in a folder of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("sinfo", "sbatch", "slurmctld", "slurmd", "munged")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
BRIEFLY = ["-o", "Acquire::http::Timeout=5", "-o", "Acquire::https::Timeout=5", "-o", "Acquire::Retries=0"]
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class CannotRunError(Exception):
    """Why there is no SLURM here; the reason of a skip."""


def install() -> None:
    """Install SLURM unless it is there; raises CannotRunError within about 20 seconds where that cannot be."""
    if all(shutil.which(program, path=PATH) for program in PROGRAMS):
        return
    if not shutil.which("apt-get"):
        raise CannotRunError("SLURM is not installed, and there is no apt-get to install it with")
    if os.geteuid() != 0:
        raise CannotRunError("SLURM is not installed, and only root can install it (apt-get install slurm-wlm munge)")
    if Path("/run/systemd/system").is_dir():
        raise CannotRunError(
            "SLURM is not installed, and this machine has an init system that would start its daemons: install it yourself"
        )
    if "Candidate: (none)" in (known := _apt("apt-cache", "policy", "slurm-wlm", seconds=10)) or not known:
        _apt("apt-get", *BRIEFLY, "update", seconds=15)
    with tempfile.TemporaryDirectory() as folder:  # a small package tells whether the mirror answers
        _apt("apt-get", *BRIEFLY, "download", "libmunge2", seconds=20, cwd=folder)
    _apt("apt-get", *BRIEFLY, "install", "-y", "--no-install-recommends", "slurm-wlm", "munge", seconds=300)


def _apt(*command: str, seconds: int, cwd: str = "/") -> str:
    try:
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=True, timeout=seconds).stdout
    except subprocess.TimeoutExpired:
        raise CannotRunError(f"SLURM is not installed, and {' '.join(command)} took more than {seconds} seconds") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["nothing"]
        raise CannotRunError(f"SLURM is not installed, and {' '.join(command)} said: {said[-1]}") from None


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A running node; yields the variables that its clients need. Raises CannotRunError."""
    install()
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        configure(folder)
        munge = [f"--{name}={folder}/munge.{end}" for name, end in _MUNGE.items()]
        _start(stack, folder, "munged", "--foreground", "--force", *munge)
        _until(lambda: (folder / "munge.socket").exists(), folder, "munged")
        for daemon in ("slurmctld", "slurmd"):
            _start(stack, folder, daemon, "-D", **variables)
        _until(lambda: "idle" in _sinfo(variables), folder, "slurmctld", "slurmd")
        yield variables


_MUNGE = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def configure(folder: Path) -> None:
    """Write slurm.conf, cgroup.conf and munge's key."""
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
            ports.append(taken.getsockname()[1])
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, controller=ports[0], node=ports[1], folder=folder))
    (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(64))
    (folder / "munge.key").chmod(0o600)


def _start(stack: ExitStack, folder: Path, program: str, *arguments: str, **variables: str) -> None:
    log = stack.enter_context((folder / f"{program}.out").open("w"))
    command = [shutil.which(program, path=PATH) or program, *arguments]
    process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
    stack.callback(process.wait, timeout=20)
    stack.callback(process.terminate)


def _sinfo(variables: dict[str, str]) -> str:
    try:
        return subprocess.run(["sinfo", "-h"], env=os.environ | variables, capture_output=True, text=True, timeout=5).stdout
    except subprocess.TimeoutExpired:
        return ""


def _until(true, folder: Path, *programs: str, seconds: int = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            said = " | ".join((folder / f"{program}.out").read_text()[-200:].strip() for program in programs)
            raise CannotRunError(f"SLURM is installed and does not start: {said}")
        time.sleep(0.1)
