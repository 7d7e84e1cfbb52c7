"""A Slurm of one node on loopback, thrown away after use: what the tests marked `slurm` run on.

`python tests/slurm.py COMMAND …` runs a command beside such a Slurm, so that `sbatch` and `squeue` find it:

    python tests/slurm.py make sweep VARIANTS="kav1 kav11" CLUSTER=slurm

It wants Debian's slurmctld, slurmd, slurm-client and munge (`apt-get install`), and root.
Nothing outside of a temporary folder is touched, and the daemons end with this process.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

CONFIGURATION = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=5
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=throwaway Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What is not here of what it takes, "" if all is."""
    absent = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    return f"not installed: {', '.join(absent)}" if absent else "" if os.geteuid() == 0 else "this is not root"


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """A running Slurm; gives the environment in which its commands find it."""
    if why := missing():
        raise RuntimeError(f"no Slurm can be started: {why}")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder, host = Path(name), socket.gethostname().partition(".")[0]
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        configuration = folder / "slurm.conf"
        values = {"host": host, "folder": folder, "user": "root", "ports": free_ports(2), "cores": os.cpu_count()}
        configuration.write_text(CONFIGURATION.format(**values))
        environment = {
            **os.environ,
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin",
            "SLURM_CONF": str(configuration),
        }
        own = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "log", "seed")]
        commands = (
            ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *own],
            ["slurmctld", "-D", "-f", str(configuration)],
            ["slurmd", "-D", "-f", str(configuration), "-N", host],
        )
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                log = folder / f"{command[0]}.out"
                with open(log, "wb") as out:
                    daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
                if command[0] == "munged":
                    wait((folder / "munge.socket").exists, daemons, folder)
            idle = ["sinfo", "--noheader", "--format=%t"]
            wait(lambda: "idle" in answer(idle, environment), daemons, folder)
            yield environment
        finally:
            subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False, timeout=60)
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(daemons):
                try:
                    daemon.wait(20)
                except subprocess.TimeoutExpired:
                    daemon.kill()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def answer(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; "" where it fails."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60).stdout


def wait(ready: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], folder: Path, seconds: float = 60) -> None:
    """Until it is ready; a daemon that ends, or too long a time, is an error that shows the logs."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in daemons):
            logs = "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(folder.glob("*.out")))
            raise RuntimeError(f"Slurm did not start\n{logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    with slurm() as found:
        sys.exit(subprocess.run(sys.argv[1:], env=found, check=False).returncode)
