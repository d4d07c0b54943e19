"""Rules about NetworkPolicies: what must pass, and what must not, decided as Kubernetes decides it.

What must pass is what docs/ports.md and k8s/README.md say of the ways between Pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from tests.support.k8s_links import Pod, pods, ray_pods, selects
from tests.support.k8s_manifests import Manifest, cluster_spec, one

OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
OPERATOR_NAMESPACE = "kuberay-system"
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
DNS_PORTS = (53, 5353)
API_PORTS = (443, 6443, 8443, 16443)
INTERNAL_PORTS = (6379, 8265, 8500, 10001, 30000, 41234, 52365)


@dataclass(frozen=True)
class Peer:
    """The other end of a connection: labels of a Pod and of its namespace; None is the same one."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] | None = None


THE_OPERATOR = Peer(OPERATOR, {"kubernetes.io/metadata.name": OPERATOR_NAMESPACE})
OUTSIDE = Peer({}, {"kubernetes.io/metadata.name": "somewhere"})


def passes(
    manifests: list[Manifest], pod: Pod, way: str, peer: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Tells whether policies let a connection through at this Pod; `way` is ingress or egress."""
    chosen = [
        m["spec"]
        for m in manifests
        if m["kind"] == "NetworkPolicy"
        and way.capitalize() in m["spec"]["policyTypes"]
        and selects(m["spec"]["podSelector"], pod.labels)
    ]
    if not chosen:
        return True
    side = "from" if way == "ingress" else "to"
    return any(
        _port_fits(rule.get("ports"), port, protocol, pod)
        and (not rule.get(side) or any(_is_peer(entry, peer) for entry in rule[side]))
        for spec in chosen
        for rule in spec.get(way, [])
    )


def _port_fits(ports: list[dict[str, Any]] | None, port: int, protocol: str, pod: Pod) -> bool:
    for entry in ports or []:
        number = entry.get("port", port)
        first = pod.ports.get(number, -1) if isinstance(number, str) else number
        if (
            first <= port <= entry.get("endPort", first)
            and entry.get("protocol", "TCP") == protocol
        ):
            return True
    return not ports


def _is_peer(entry: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in entry:
        return False
    if "namespaceSelector" in entry:
        home = {"kubernetes.io/metadata.name": "truthgpt"}
        names = home if peer.namespace is None else peer.namespace
        if not selects(entry["namespaceSelector"], names):
            return False
    elif peer.namespace is not None:
        return False
    return selects(entry.get("podSelector", {}), peer.labels)


def policies_let_through(manifests: list[Manifest]) -> Iterator[str]:
    """What the service needs passes: Ray, DNS, API server, hub, operator, clients, components."""
    yield from _outside_faults(manifests)
    for pod in ray_pods(manifests):
        for peer, port in _wanted_senders(manifests, pod):
            if not passes(manifests, pod, "ingress", peer, port):
                yield f"{pod.name}: {peer} does not reach {port}"
        for peer, port in [(Peer(pod.labels), 41234), *((OUTSIDE, port) for port in API_PORTS)]:
            if not passes(manifests, pod, "egress", peer, port):
                yield f"{pod.name}: does not reach {port} of {peer}"
    yield from _redis_faults(manifests)


def _outside_faults(manifests: list[Manifest]) -> Iterator[str]:
    for pod in pods(manifests):
        if not _asks_names(pod):
            continue
        for port, protocol in product(DNS_PORTS, ("UDP", "TCP")):
            if not passes(manifests, pod, "egress", OUTSIDE, port, protocol):
                yield f"{pod.name}: no DNS at {protocol} {port}"
        if not passes(manifests, pod, "egress", OUTSIDE, 443):
            yield f"{pod.name}: no way to the hub"


def _wanted_senders(manifests: list[Manifest], pod: Pod) -> Iterator[tuple[Peer, int]]:
    serve = pod.ports.get("serve", 0)
    yield from ((THE_OPERATOR, port) for port in (8265, serve))
    yield Peer({"truthgpt.io/client": "true"}), serve
    yield from ((Peer(pod.labels), port) for port in INTERNAL_PORTS)
    yield from ((peer, serve) for peer in _gateways(manifests))
    yield from ((_prometheus(), port) for port in _scraped(manifests, pod))


def _asks_names(pod: Pod) -> bool:
    return "ray.io/group" in pod.labels or pod.name.startswith("Job/")


def _gateways(manifests: list[Manifest]) -> Iterator[Peer]:
    names = [m["metadata"]["name"] for m in manifests if m["kind"] == "Gateway"]
    service = one(manifests, "RayService")
    strategy = service["spec"].get("upgradeStrategy") or {}
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        names.append(service["metadata"]["name"] + "-gateway")
    for name in names:
        yield Peer({GATEWAY_LABEL: name})
        yield Peer({GATEWAY_LABEL: name}, {"truthgpt.io/gateway": "true"})


def _prometheus() -> Peer:
    return Peer({"app.kubernetes.io/name": "prometheus"}, {"truthgpt.io/monitoring": "true"})


def _scraped(manifests: list[Manifest], pod: Pod) -> Iterator[int]:
    for monitor in (m["spec"] for m in manifests if m["kind"] == "PodMonitor"):
        if selects(monitor["selector"], pod.labels):
            for endpoint in monitor["podMetricsEndpoints"]:
                if endpoint["port"] in pod.ports:
                    yield pod.ports[endpoint["port"]]


def _redis_faults(manifests: list[Manifest]) -> Iterator[str]:
    options = cluster_spec(one(manifests, "RayService")).get("gcsFaultToleranceOptions")
    stores = [pod for pod in pods(manifests) if "redis" in pod.ports]
    if options is None or not stores:
        return
    head, redis = ray_pods(manifests)[0], stores[0]
    port = redis.ports["redis"]
    if not passes(manifests, head, "egress", Peer(redis.labels), port):
        yield "the head may not ask Redis"
    # The operator's Job that removes a cluster's keys has the head's labels of the template.
    if not passes(manifests, redis, "ingress", Peer(head.labels), port):
        yield "Redis does not let the head in"
    if passes(manifests, redis, "ingress", Peer({"a": "b"}), port):
        yield "any Pod reaches Redis"


def _open_ends(manifests: list[Manifest]) -> Iterator[str]:
    """Ways out that nothing needs, and rules that say less than they should."""
    elsewhere = Peer({"app": "x"}, {"kubernetes.io/metadata.name": "x"})
    for pod in pods(manifests):
        for peer, port in product((elsewhere, Peer({"app": "x"})), (22, 6379, 12345)):
            if passes(manifests, pod, "egress", peer, port):
                yield f"{pod.name} reaches port {port} of any Pod"
    for policy in (m for m in manifests if m["kind"] == "NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        rules = [*spec.get("ingress", []), *spec.get("egress", [])]
        for entry in (port for rule in rules for port in rule.get("ports", [])):
            if "port" not in entry or "protocol" not in entry:
                yield f"{name}: {entry} is every port"
        for rule in rules:
            peers = rule.get("from", rule.get("to", []))
            ours = {"podSelector": {"matchLabels": {"truthgpt.io/component": "ray"}}}
            if not rule.get("ports") and peers != [ours]:
                yield f"{name}: all ports of {peers}"


def policies_hold_off(manifests: list[Manifest]) -> Iterator[str]:
    """Nothing else passes: no stranger, no false operator, and clients the service's port only."""
    strangers = {
        "a Pod": Peer({"app": "x"}),
        "a Pod elsewhere": Peer({"app": "x"}, {"kubernetes.io/metadata.name": "x"}),
        "a false operator": Peer(OPERATOR, {"kubernetes.io/metadata.name": "x"}),
        "a false client": Peer({"truthgpt.io/client": "true"}, {}),
        "the operator's neighbor": Peer({"app": "x"}, THE_OPERATOR.namespace),
    }
    yield from _open_ends(manifests)
    for pod in pods(manifests):
        for (who, peer), port in product(strangers.items(), (*INTERNAL_PORTS, *pod.ports.values())):
            if passes(manifests, pod, "ingress", peer, port):
                yield f"{who} reaches {pod.name} at {port}"
    known = [Peer({"truthgpt.io/client": "true"}), *_gateways(manifests)]
    closed = [*product(known, INTERNAL_PORTS)]
    closed += [(THE_OPERATOR, port) for port in INTERNAL_PORTS if port != 8265]
    for pod in ray_pods(manifests):
        for peer, port in closed:
            if passes(manifests, pod, "ingress", peer, port):
                yield f"{peer} reaches {pod.name} at {port}"
