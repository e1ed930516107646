"""A real Slurm cluster on this machine: munged, slurmctld, and a slurmd for each of a few nodes on loopback.

The nodes are named by loopback addresses, so that JAX, which takes the coordinator's name from Slurm, can reach it.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "apt-get install munge slurmctld slurmd slurm-client"
NODES = tuple(f"127.0.0.{number}" for number in range(1, 5))
TIMEOUT_S = 300

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# Slurm delays a requeued job until the credentials of its first start have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
KillWait=20
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL PriorityTier=1 Default=YES GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=2
"""


class SlurmCluster:
    """The daemons, as child processes, and the commands of a user of the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen] = {}
        host, ports = socket.gethostname().partition(".")[0], _free_ports(1 + len(NODES))
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={port} CPUs=1"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        conf = _CONF.format(host=host, port=ports[0], user=self.user, folder=folder, nodes="\n".join(lines))
        (folder / "slurm.conf").write_text(conf)

    def start(self) -> None:
        """Starts the daemons, and returns when all nodes are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{suffix}" for option, suffix in files.items()]
        self._start("munged", "--foreground", "--force", *options)
        self.wait_until((self.folder / "munge.socket").exists)
        self._start("slurmctld", "-D", "-c")
        self.wait_until(lambda: subprocess.run(["scontrol", "ping"], env=self.env, capture_output=True).returncode == 0)
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Starts the slurmd of `node`, and returns when Slurm considers it available."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start(node, "-D", "-N", node, program="slurmd")
        self.wait_until(lambda: self.run("sinfo", "--noheader", "--nodes", node, "--format=%T").strip() == "idle")

    def lose_node(self, node: str) -> None:
        """Everything on `node` dies at once, and Slurm is told that it is down."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        for process in self._processes_on(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons."""
        try:
            self.run("scancel", "--user", self.user)
            self.wait_until(lambda: not self.run("squeue", "--noheader"))
        finally:
            for daemon in reversed(self._daemons.values()):
                daemon.terminate()
                daemon.wait(TIMEOUT_S)

    def run(self, *command: str) -> str:
        """What a command prints."""
        return subprocess.run(command, env=self.env, check=True, capture_output=True, text=True).stdout

    def submit(self, *command: str, **env: str) -> int:
        """The number of the job that `sbatch` makes from `command`, with `env` added to the environment."""
        done = subprocess.run(["sbatch", "--parsable", *command], env=self.env | env, check=True, capture_output=True)
        return int(done.stdout)

    def job(self, number: int) -> dict[str, str]:
        """Slurm's record of a job: JobState, ExitCode, Restarts, NodeList and so on."""
        fields = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for_state(self, number: int, *states: str) -> dict[str, str]:
        """The job, once it is in one of `states`."""
        self.wait_until(lambda: self.job(number)["JobState"] in states)
        return self.job(number)

    def update_job(self, number: int, **settings: object) -> None:
        """Changes settings of a job, such as its TimeLimit in minutes."""
        self.run("scontrol", "update", f"JobId={number}", *(f"{name}={value}" for name, value in settings.items()))

    def cancel(self, number: int) -> None:
        """Cancels a job, as a user does."""
        self.run("scancel", str(number))

    def hosts(self, node_list: str) -> list[str]:
        """The names that a list such as 127.0.0.[1-2] stands for."""
        return self.run("scontrol", "show", "hostnames", node_list).split()

    def wait_until(self, condition: Callable[[], bool], log: Callable[[], str] = str) -> None:
        """Waits until `condition` holds; after a timeout it shows `log()` and the state of Slurm."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, self.run("scontrol", "show", "jobs") + log()
            time.sleep(0.2)

    def _start(self, name: str, *options: str, program: str = "") -> None:
        with (self.folder / f"{name}.output").open("w") as output:
            command = [program or name, *options]
            self._daemons[name] = subprocess.Popen(command, stdout=output, stderr=output, env=self.env)

    def _processes_on(self, node: str) -> set[int]:
        """The processes of jobs on `node`, and the parent slurmstepd of each."""
        marks = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode()}
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if marks <= set((process / "environ").read_bytes().split(b"\0")):
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    is_daemon = (Path("/proc") / parent / "comm").read_text() == "slurmstepd\n"
                    found |= {int(process.name), *([int(parent)] if is_daemon else [])}
        return found


def missing_programs() -> list[str]:
    """Slurm's programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
