"""Rules about what one object says of another: namespaces, Secrets, Services, selectors, volumes.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from tests.support.k8s_links import (
    CLUSTER_SCOPED,
    Pod,
    documented_secrets,
    longest_request_s,
    namespace_of,
    pods,
    quantity,
    ray_pods,
    seconds,
    secret_keys,
    selects,
    serve_service,
    variables,
)
from tests.support.k8s_manifests import Manifest, cluster_spec, one

CLIENT_PATHS = {
    "/v1": "PathPrefix",
    "/v2": "PathPrefix",
    "/health": "Exact",
    "/ready": "Exact",
    "/ui": "PathPrefix",
}
"""What a gateway may route, and how: no way past the router, and nothing of operators."""
OPERATOR_CLEANUP_S = 300
"""What the operator's clean-up of Redis may take once the Pods have ended."""
SAFE_FSYNC = ("everysec", "always")
DELETION_TIMEOUT = "ray.io/gcs-ft-deletion-timeout"


def one_namespace(manifests: list[Manifest]) -> Iterator[str]:
    """All objects are in the RayService's namespace, which is the one that is made."""
    wanted = namespace_of(manifests)
    if not wanted:
        yield "the RayService has no namespace"
    for manifest in manifests:
        name, metadata = f"{manifest['kind']} {manifest['metadata']['name']}", manifest["metadata"]
        if manifest["kind"] == "Namespace" and metadata["name"] != wanted:
            yield f"{name} is not {wanted}"
        elif manifest["kind"] not in CLUSTER_SCOPED and metadata.get("namespace") != wanted:
            yield f"{name} is in {metadata.get('namespace')}, the RayService in {wanted}"


def secrets_are_documented(manifests: list[Manifest]) -> Iterator[str]:
    """Secrets and keys are in the build or in secrets.example.yaml, the hub's token too."""
    known = dict(documented_secrets())
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            known[manifest["metadata"]["name"]] = {*manifest.get("data", {})}
    tokens: dict[str, tuple[str, str | None]] = {}
    for place, name, key in secret_keys(manifests):
        if name not in known:
            yield f"{place}: no Secret {name} is documented"
        elif key is not None and key not in known[name]:
            yield f"{place}: Secret {name} has no key {key}"
        if place.endswith(": HF_TOKEN"):
            tokens[place.partition(":")[0]] = (name, key)
    for pod in pods(manifests):
        needs_token = "ray.io/group" in pod.labels or pod.name.startswith("Job/")
        if needs_token and tokens.get(pod.name) != ("truthgpt-secrets", "hf-token"):
            yield f"{pod.name}: HF_TOKEN is {tokens.get(pod.name)}"


def routes_lead_to_the_service(manifests: list[Manifest]) -> Iterator[str]:
    """Routes name a listener that is there and the operator's Service, and wait long enough."""
    gateways = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "Gateway"}
    least = longest_request_s(manifests)
    for route in (m for m in manifests if m["kind"] == "HTTPRoute"):
        name = route["metadata"]["name"]
        protocols = set()
        for parent in route["spec"]["parentRefs"]:
            gateway = gateways.get(parent["name"], {"spec": {"listeners": []}})
            listeners = {each["name"]: each for each in gateway["spec"]["listeners"]}
            listener = listeners.get(parent.get("sectionName", ""))
            if listener is None:
                yield f"{name}: no listener {parent['name']}/{parent.get('sectionName')}"
            else:
                protocols.add(listener["protocol"])
        for rule in route["spec"]["rules"]:
            yield from (f"{name}: {fault}" for fault in _rule_faults(rule, protocols, least))
            for backend in rule.get("backendRefs", []):
                if (backend["name"], backend.get("port")) != serve_service(manifests):
                    yield f"{name}: {backend} is not {serve_service(manifests)}"
    for gateway in gateways.values():
        yield from _listener_faults(gateway)


def _rule_faults(rule: dict[str, Any], protocols: set[str], least: float) -> Iterator[str]:
    redirects = [each["requestRedirect"] for each in rule.get("filters", [])]
    if redirects and (protocols != {"HTTP"} or redirects[0].get("scheme") != "https"):
        yield f"redirects {protocols} to {redirects[0].get('scheme')}"
    if not redirects and (protocols != {"HTTPS"} or not rule.get("backendRefs")):
        yield f"answers {protocols} from {rule.get('backendRefs')}"
    if redirects:
        return
    waits = rule.get("timeouts", {})
    for key in ("request", "backendRequest"):
        if seconds(waits.get(key, "0s")) <= least:
            yield f"timeouts.{key} is {waits.get(key)}, a request may take {least:.0f} s"
    chosen = [match.get("path", {}) for match in rule.get("matches", [{}])]
    paths = {path.get("value", "/"): path.get("type", "PathPrefix") for path in chosen}
    for path, kind in paths.items():
        if CLIENT_PATHS.get(path) != kind:
            yield f"routes {kind} {path}"
    for path in CLIENT_PATHS.keys() - {"/v2", *paths}:
        yield f"does not route {path}"


def _listener_faults(gateway: Manifest) -> Iterator[str]:
    for listener in gateway["spec"]["listeners"]:
        name, protocol = listener["name"], listener["protocol"]
        if listener["port"] != {"HTTPS": 443, "HTTP": 80}.get(protocol):
            yield f"listener {name}: {protocol} at {listener['port']}"
        certificates = listener.get("tls", {}).get("certificateRefs", [])
        kinds = {reference.get("kind", "Secret") for reference in certificates}
        if protocol == "HTTPS" and kinds != {"Secret"}:
            yield f"listener {name}: certificates are {kinds}"
        if protocol == "HTTPS" and listener.get("tls", {}).get("mode", "Terminate") != "Terminate":
            yield f"listener {name}: TLS is not ended here, and the Service has none"
        if listener.get("allowedRoutes", {}).get("namespaces", {}).get("from", "Same") != "Same":
            yield f"listener {name}: takes routes of other namespaces"


def redis_is_reached(manifests: list[Manifest]) -> Iterator[str]:
    """Address, Service, port, password and log of Redis fit, and its keys can be removed."""
    service = one(manifests, "RayService")
    options = cluster_spec(service).get("gcsFaultToleranceOptions")
    if options is None:
        return
    grace = max(pod.spec.get("terminationGracePeriodSeconds", 30) for pod in ray_pods(manifests))
    given = service["metadata"].get("annotations", {}).get(DELETION_TIMEOUT, "300")
    if not str(given).isdigit() or int(given) < grace + OPERATOR_CLEANUP_S:
        yield f"{DELETION_TIMEOUT} is {given}, Pods may take {grace} s to end"
    address, _, port = options["redisAddress"].removeprefix("redis://").rpartition(":")
    host, _, domain = address.partition(".")
    space = domain.partition(".")[0] or namespace_of(manifests)
    has_own = any("redis" in pod.ports for pod in pods(manifests))
    if "." in address and not has_own:  # of a cloud
        return
    if space != namespace_of(manifests):
        yield f"{address} is in another namespace than the Redis of this build"
    services = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "Service"}
    if host not in services:
        yield f"there is no Service {host}"
        return
    ports = {str(entry["port"]): entry for entry in services[host]["spec"]["ports"]}
    if port not in ports:
        yield f"Service {host} has no port {port}"
        return
    behind = [p for p in pods(manifests) if selects(_labels(services[host]), p.labels)]
    for pod in behind:
        target = ports[port].get("targetPort", ports[port]["port"])
        if ports[port].get("protocol", "TCP") != "TCP":
            yield f"Service {host} is {ports[port]['protocol']}"
        number = pod.ports.get(target) if isinstance(target, str) else target
        yield from _redis_faults(pod, number, options.get("redisPassword"))


def _labels(service: Manifest) -> dict[str, Any]:
    return {"matchLabels": service["spec"].get("selector") or {"": "selects nothing"}}


def _redis_faults(pod: Pod, port: int | None, password: dict[str, Any] | None) -> Iterator[str]:
    container = pod.spec["containers"][0]
    words = " ".join(container.get("command", []) + container.get("args", [])).split()
    options = {a: b for a, b in pairwise(words) if a.startswith("--")}
    if str(port) != options.get("--port", "6379") or port not in pod.ports.values():
        yield f"{pod.name}: the Service leads to port {port}"
    if options.get("--appendonly") != "yes" or options.get("--appendfsync") not in SAFE_FSYNC:
        yield f"{pod.name}: Redis keeps no log"
    written = re.search(r"requirepass %s\\n' \"\$REDIS_PASSWORD\" > (\S+)", " ".join(words))
    if written is None or f"redis-server {written[1]} " not in " ".join(words):
        yield f"{pod.name}: Redis does not ask for the password"
    if options.get("--dir") not in {mount["mountPath"] for mount in container["volumeMounts"]}:
        yield f"{pod.name}: Redis' folder {options.get('--dir')} is no volume"
    memory = options.get("--maxmemory", "")
    limit = quantity(container["resources"]["limits"]["memory"])
    if not memory.endswith("mb") or float(memory[:-2]) * 2**20 > 0.8 * limit:
        yield f"{pod.name}: maxmemory {memory or 'is not set'}, limit {limit / 2**20:.0f} MiB"
    if options.get("--maxmemory-policy") != "noeviction":
        yield f"{pod.name}: Redis drops keys of the cluster's state"
    own = {entry["name"]: entry.get("valueFrom") for entry in container.get("env", [])}
    if own.get("REDIS_PASSWORD") is None or own["REDIS_PASSWORD"] != (password or {}).get(
        "valueFrom"
    ):
        yield f"{pod.name}: the head's password is {password}, Redis' {own.get('REDIS_PASSWORD')}"


def selectors_select(manifests: list[Manifest]) -> Iterator[str]:
    """What selects Pods selects some: Services, sets, budgets, policies, and spreads their own."""
    there = pods(manifests)
    services = {m["metadata"]["name"] for m in manifests if m["kind"] == "Service"}
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        name = f"{kind} {manifest['metadata']['name']}"
        if kind in ("StatefulSet", "Deployment"):
            own = spec["template"]["metadata"].get("labels", {})
            if not spec["selector"].get("matchLabels") or not selects(spec["selector"], own):
                yield f"{name} does not select its own Pods"
            if kind == "StatefulSet" and spec["serviceName"] not in services:
                yield f"{name}: there is no Service {spec['serviceName']}"
        elif kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            is_policy = kind == "NetworkPolicy"
            selector = spec.get("podSelector" if is_policy else "selector")
            selector = _labels(manifest) if kind == "Service" else selector
            if not any(selects(selector, pod.labels) for pod in there):
                yield f"{name} selects no Pod"
            if not selector.get("matchLabels"):
                yield f"{name} selects every Pod"
    for pod in there:
        yield from _spread_faults(pod)
    yield from _unspread_groups(manifests)


def _unspread_groups(manifests: list[Manifest]) -> Iterator[str]:
    for group in cluster_spec(one(manifests, "RayService"))["workerGroupSpecs"]:
        spreads = group["template"]["spec"].get("topologySpreadConstraints", [])
        keys = {spread["topologyKey"] for spread in spreads}
        if group["minReplicas"] > 1 and "kubernetes.io/hostname" not in keys:
            yield f"{group['groupName']}: its workers may all be on one node"


def _spread_faults(pod: Pod) -> Iterator[str]:
    for spread in pod.spec.get("topologySpreadConstraints", []):
        key = spread["topologyKey"]
        by_cluster = spread.get("matchLabelKeys") == ["ray.io/cluster"]
        if "ray.io/group" in pod.labels and spread.get("whenUnsatisfiable") == "DoNotSchedule":
            if not by_cluster:  # during an upgrade there are two clusters
                yield f"{pod.name}: the spread over {key} counts Pods of all clusters"
        elif {*spread.get("matchLabelKeys", [])} - {*pod.labels, "pod-template-hash"}:
            yield f"{pod.name}: has no labels {spread['matchLabelKeys']}"
        if not selects(spread.get("labelSelector", {"matchLabels": {"": ""}}), pod.labels):
            yield f"{pod.name}: the spread over {key} counts other Pods"
        if key not in ("kubernetes.io/hostname", "topology.kubernetes.io/zone"):
            yield f"{pod.name}: nodes have no label {key}"
        if not spread.get("labelSelector", {}).get("matchLabels"):
            yield f"{pod.name}: the spread over {key} counts every Pod"
        if spread.get("whenUnsatisfiable") not in ("ScheduleAnyway", "DoNotSchedule"):
            yield f"{pod.name}: whenUnsatisfiable is {spread.get('whenUnsatisfiable')}"
        if spread.get("maxSkew") != 1:
            yield f"{pod.name}: the spread over {key} may differ by {spread.get('maxSkew')}"


def paths_agree(manifests: list[Manifest]) -> Iterator[str]:
    """Folders that variables and commands name are those where volumes are mounted."""
    homes = set()
    for pod in pods(manifests):
        is_job = pod.name.startswith("Job/")
        if "ray.io/group" not in pod.labels and not is_job:
            continue
        container, found = pod.spec["containers"][0], variables(manifests, pod)
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        home = found.get("HF_HOME", "")
        homes.add(home)
        above = [mounts[str(p)] for p in PurePosixPath(home).parents if str(p) in mounts]
        if not above or "persistentVolumeClaim" not in volumes[above[0]["name"]]:
            yield f"{pod.name}: HF_HOME {home!r} is not on the model cache"
        elif above[0].get("readOnly"):
            yield f"{pod.name}: the model cache is read-only"
        models = mounts.get(found.get("TRUTHGPT_CONFIG_DIR", "") + "/models", {"name": ""})
        source = volumes.get(models["name"], {}).get("configMap", {}).get("name", "")
        if not source.startswith("truthgpt-models"):
            yield f"{pod.name}: no models below {found.get('TRUTHGPT_CONFIG_DIR')}"
        keys = PurePosixPath(found.get("TRUTHGPT_KEYS_FILE", "/nowhere"))
        if not is_job and str(keys) != "none":
            holder = mounts.get(str(keys.parent), {"name": ""})["name"]
            if "secret" not in volumes.get(holder, {}):
                yield f"{pod.name}: {keys} is in no Secret's folder"
        if not is_job and "/opt/truthgpt/keys" not in mounts:
            yield f"{pod.name}: keys are not at /opt/truthgpt/keys"
    if len(homes) > 1:
        yield f"HF_HOME differs: {sorted(homes)}"
