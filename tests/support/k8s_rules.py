"""What Kubernetes and KubeRay 1.7.0 refuse or do wrong, and no schema says: all rules.

Each takes manifests and returns its faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.support.k8s_manifests import Manifest
from tests.support.k8s_rules_containers import (
    containers_are_plain,
    groups_are_in_order,
    jobs_have_time,
    parameters_fit,
    variables_are_read,
)
from tests.support.k8s_rules_links import (
    one_namespace,
    paths_agree,
    redis_is_reached,
    routes_lead_to_the_service,
    secrets_are_documented,
    selectors_select,
)
from tests.support.k8s_rules_monitoring import (
    alerts_are_whole,
    dashboards_are_found,
    exporters_are_scraped_once,
    expressions_name_objects,
    expressions_read_metrics,
    monitors_are_found,
    scrapes_find_their_targets,
    texts_of_alerts_fit,
)
from tests.support.k8s_rules_names import (
    configs_are_named,
    images_are_of_one_registry,
    names_resolve,
    secrets_are_named,
)
from tests.support.k8s_rules_network import policies_hold_off, policies_let_through
from tests.support.k8s_rules_pods import (
    disruption_budget,
    graceful_shutdown,
    network_is_closed,
    operator_probes,
    references_resolve,
    writable_folders,
    zones_are_required,
)
from tests.support.k8s_rules_ray import (
    autoscaler_v2,
    feature_gates,
    haproxy_everywhere,
    name_fits,
    redis_in_one_place,
    replicas_in_order,
    resources_in_one_place,
    serve_port_on_head,
    token_authentication,
    upgrade_steps,
)
from tests.support.k8s_rules_security import (
    autoscaler_can_write,
    commands_and_probes_fit,
    pods_are_restricted,
    volumes_are_whole,
)
from tests.support.k8s_rules_storage import (
    cache_is_shared,
    downloads_are_found,
    files_are_mounted,
)
from tests.support.k8s_rules_values import (
    gpu_nodes_agree,
    head_serves_no_client,
    models_fit_a_group,
    ports_agree,
    sizes_fit,
    times_agree,
    versions_agree,
)

Rule = Callable[[list[Manifest]], Iterator[str]]

RULES: tuple[Rule, ...] = (
    name_fits,
    serve_port_on_head,
    resources_in_one_place,
    replicas_in_order,
    upgrade_steps,
    autoscaler_v2,
    token_authentication,
    redis_in_one_place,
    feature_gates,
    haproxy_everywhere,
    operator_probes,
    graceful_shutdown,
    disruption_budget,
    writable_folders,
    references_resolve,
    network_is_closed,
    one_namespace,
    secrets_are_documented,
    routes_lead_to_the_service,
    redis_is_reached,
    selectors_select,
    paths_agree,
    autoscaler_can_write,
    policies_let_through,
    policies_hold_off,
    ports_agree,
    versions_agree,
    sizes_fit,
    gpu_nodes_agree,
    models_fit_a_group,
    cache_is_shared,
    times_agree,
    scrapes_find_their_targets,
    monitors_are_found,
    expressions_read_metrics,
    expressions_name_objects,
    exporters_are_scraped_once,
    pods_are_restricted,
    volumes_are_whole,
    commands_and_probes_fit,
    alerts_are_whole,
    head_serves_no_client,
    parameters_fit,
    containers_are_plain,
    variables_are_read,
    jobs_have_time,
    groups_are_in_order,
    names_resolve,
    secrets_are_named,
    dashboards_are_found,
    texts_of_alerts_fit,
    configs_are_named,
    images_are_of_one_registry,
    zones_are_required,
    downloads_are_found,
    files_are_mounted,
)
