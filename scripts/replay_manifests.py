"""Runs the base of k8s/ on this machine without a container engine, and says what works.

Two network namespaces stand for the head's Pod and a worker's. In each the root file system is
read-only, /tmp is its own, the user is 1000, the variables are those of the manifests, and Ray is
started as KubeRay starts it. Then the Serve file is deployed as the operator does it, KubeRay's
probes run by their own command lines, and the service is asked on both Pods. The packages are those
of this environment, not of an image. Needs root, `ip`, `nsenter`, `setpriv`, `wget` and kubectl:

    unshare -n .venv/bin/python -m scripts.replay_manifests
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.support.k8s_manifests import ROOT, Manifest, build, environment, groups, one
from tests.support.k8s_manifests import ray_container as container_of

HEAD, WORKER = "192.0.2.1", "192.0.2.2"
USER = "1000"
PROBE = "wget --tries 1 -T 2 -q -O- http://localhost:{}/{} | grep success"
RAYLET = PROBE.format(52365, "api/local_raylet_healthz")
PROBES = {
    HEAD: f"{RAYLET} && {PROBE.format(8265, 'api/gcs_healthz')}",
    WORKER: f"{RAYLET} && {PROBE.format(8000, '-/healthz')}",
}
"""KubeRay's, for Pods of a RayService: `initLivenessAndReadinessProbe` in its pod.go."""
ALIKE = "--block --dashboard-agent-listen-port=52365 --metrics-export-port=8080"
SMALL = "--memory=4000000000 --object-store-memory=200000000"
"""Less than the manifests' memory, for a machine of this size."""
START_S = 300.0
DEPLOY_S = 300.0
ANSWER_S = 60.0
CHAT = {"model": "story", "max_tokens": 8, "messages": [{"role": "user", "content": "Once"}]}


class Pod:
    """One node: a network and mount namespace, and what runs in it.

    Args:
        folder: Where its files are; outside /tmp, which is its own.
        address: Its address.
        stack: Ends it.
    """

    def __init__(self, folder: Path, address: str, stack: ExitStack) -> None:
        self._folder = folder
        self.address = address
        # With the first process of its namespace everything in it ends, whatever it drains.
        keep = ["unshare", "-nmpf", "--kill-child", "--mount-proc", "sleep", "infinity"]
        self._holder = subprocess.Popen(keep)
        stack.callback(_end, self._holder)
        self._stack = stack
        self.environment: dict[str, str] = {}
        time.sleep(1)

    @property
    def pid(self) -> str:
        """The process that holds the namespaces."""
        holder = self._holder.pid
        return Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0]

    def plug(self, device: str) -> None:
        """Gives it a link, and makes its file systems what a container's are."""
        _run("ip", "link", "set", device, "netns", self.pid)
        tmp = self._folder / f"tmp-{self.address}"
        tmp.mkdir()
        os.chown(tmp, int(USER), int(USER))
        python = Path(sys.base_prefix)
        kept = self._folder / "python"
        kept.mkdir(exist_ok=True)
        commands = [
            "ip link set lo up",
            f"ip addr add {self.address}/24 dev {device}",
            f"ip link set {device} up",
            "mount --make-rprivate /",
            f"mount --bind {ROOT} {self._folder}/source",
            f"mount --bind {python} {kept}",
        ]
        if python.is_relative_to("/root"):  # which other users may not enter
            hidden = f"mount -t tmpfs -o mode=755 tmpfs /root && mkdir -p {python}"
            commands += [hidden, f"mount --bind {kept} {python}"]
        commands += [
            f"mount --bind {tmp} /tmp",
            "mount -t tmpfs -o mode=1777,size=1g tmpfs /dev/shm",
            "mount -o remount,bind,ro /",
        ]
        done = self.run("bash", "-c", " && ".join(commands))
        if done.returncode:
            sys.exit(f"{self.address}: {done.stderr}")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in its namespaces as root."""
        inside = ["nsenter", "-t", self.pid, "-n", "-m", "-p", *command]
        return subprocess.run(inside, capture_output=True, text=True, timeout=120, check=False)

    def probe(self, command: str) -> bool:
        """Runs a command line as the container's user."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return self.run(*_as_user(), "env", *variables, "bash", "-c", command).returncode == 0

    def start(self, command: str, variables: dict[str, str]) -> None:
        """Starts Ray as the container's user; its output goes to a file."""
        self.environment = variables
        inside = ["nsenter", "-t", self.pid, "-n", "-m", "-p", *_as_user(), *command.split()]
        with (self._folder / f"log-{self.address}").open("w") as log:
            process = subprocess.Popen(
                inside, env=variables, stdout=log, stderr=log, cwd=self._folder
            )
        self._stack.callback(process.wait, timeout=30)  # after its namespace has ended
        self._stack.callback(_end, self._holder)


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(timeout=30)


def make_variables(manifests: list[Manifest], group: Manifest, folder: Path) -> dict[str, str]:
    """Returns a container's variables, with this machine's folders instead of the image's."""
    programs = Path(sys.prefix) / "bin"
    return {
        **environment(manifests, container_of(group)),
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": f"{folder}/source",
        "TRUTHGPT_CONFIG_DIR": f"{folder}/configs",
        "RAY_SERVE_HAPROXY_BINARY_PATH": f"{programs}/truthgpt-haproxy",
        "RAY_AUTH_TOKEN": TOKEN,
        "HF_HOME": "/tmp",
        "HF_HUB_OFFLINE": "1",
    }


TOKEN = secrets.token_hex(32)


def write_mounts(manifests: list[Manifest], folder: Path) -> None:
    """Writes the models' files where Pods mount them, and the Serve file for the request."""
    models = folder / "configs" / "models"
    models.mkdir(parents=True)
    (folder / "source").mkdir()
    (folder / "models").symlink_to(folder / "source" / "models")
    for manifest in manifests:
        if manifest["metadata"]["name"].startswith("truthgpt-models-"):
            for name, text in manifest["data"].items():
                (models / name).write_text(text, encoding="utf-8")
    served = yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])
    (folder / "serve.json").write_text(json.dumps(served), encoding="utf-8")


def ask(pod: Pod, url: str, *options: str) -> str:
    """Returns what curl prints within a Pod."""
    return pod.run("curl", "-sS", "-m", "60", *options, url).stdout


def statuses(head: Pod) -> dict[str, str]:
    """Returns the states of the applications, as the operator reads them."""
    token = f"Authorization: Bearer {TOKEN}"
    text = ask(head, f"http://{HEAD}:8265/api/serve/applications/", "-H", token)
    try:
        return {name: one["status"] for name, one in json.loads(text)["applications"].items()}
    except ValueError:
        return {}


def start_pods(manifests: list[Manifest], folder: Path, stack: ExitStack) -> tuple[Pod, Pod]:
    """Starts the head and a worker of the group `cpu`."""
    specs: dict[str, Any] = dict(groups(one(manifests, "RayService")))
    _run("ip", "link", "add", "replay1", "type", "veth", "peer", "name", "replay2")
    head, worker = (Pod(folder, address, stack) for address in (HEAD, WORKER))
    head.plug("replay1")
    worker.plug("replay2")
    parameters = " ".join(f"--{k}={v}" for k, v in specs["headgroup"]["rayStartParams"].items())
    command = f"ray start --head {ALIKE} {SMALL} --dashboard-host=0.0.0.0 --no-monitor {parameters}"
    variables = make_variables(manifests, specs["headgroup"], folder)
    head.start(f"{command} --node-ip-address={HEAD}", variables)
    wait(lambda: head.probe(PROBES[HEAD]), START_S, "the head's probes succeed")
    labels = ",".join(f"{k}={v}" for k, v in specs["cpu"]["labels"].items())
    command = f"ray start --address={HEAD}:6379 {ALIKE} {SMALL} --num-cpus=6 --labels={labels}"
    variables = make_variables(manifests, specs["cpu"], folder)
    worker.start(f"{command} --node-ip-address={WORKER}", variables)
    return head, worker


def wait(check: Any, timeout_s: float, text: str) -> None:
    """Waits until `check` is true, and says so.

    Raises:
        SystemExit: It did not come to be.
    """
    started = time.monotonic()
    while not check():
        if time.monotonic() - started > timeout_s:
            sys.exit(f"FAILED after {timeout_s:.0f} s: {text}")
        time.sleep(2)
    print(f"ok: {text} ({time.monotonic() - started:.0f} s)", flush=True)


def examine(head: Pod, worker: Pod, folder: Path) -> None:
    """Deploys the Serve file as the operator does, and asks what clients and Prometheus ask."""
    token = ["-H", f"Authorization: Bearer {TOKEN}", "-H", "Content-Type: application/json"]
    body = ["-X", "PUT", "--data-binary", f"@{folder}/serve.json"]
    answer = ask(head, f"http://{HEAD}:8265/api/serve/applications/", *token, *body)
    wait(lambda: answer == "", 1, f"the operator's request is taken {answer[-300:]}")
    wait(lambda: set(statuses(head).values()) == {"RUNNING"}, DEPLOY_S, "all applications run")
    wait(lambda: worker.probe(PROBES[WORKER]), START_S, "the worker's probes succeed")
    wait(lambda: not worker.probe("touch /usr/x"), 1, "the root file system is read-only")
    chat = ["-H", "Content-Type: application/json", "-d", json.dumps(CHAT)]
    wanted = [
        (f"http://{WORKER}:8000/v1/models", '"story"', []),
        (f"http://{HEAD}:8000/v1/models", '"story"', []),
        (f"http://{WORKER}:8000/v1/chat/completions", '"content"', chat),
        (f"http://{HEAD}:8000/models/story/metrics", "vllm:num_requests_running", []),
        (f"http://{HEAD}:8080/metrics", "ray_serve_application_status{", []),
    ]
    for url, text, options in wanted:
        wait(lambda u=url, t=text, o=options: t in ask(head, u, *o), ANSWER_S, f"{url} has {text}")


def main() -> None:
    """Command line: no arguments."""
    folder = Path(tempfile.mkdtemp(prefix="replay", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with ExitStack() as stack:
            manifests = build("base")
            write_mounts(manifests, folder)
            try:
                head, worker = start_pods(manifests, folder, stack)
                examine(head, worker, folder)
            except SystemExit:
                for log in sorted(folder.glob("log-*")):
                    print(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}")
                raise
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
