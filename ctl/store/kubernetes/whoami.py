"""Which Node this process is on, where nobody has said so: by its pod.

Flannel's manifest gives a pod its own name and namespace, and flanneld asks the API for the pod. Since
Kubernetes 1.30 the pod's token says it, too, for which nobody has to be asked.
"""

from __future__ import annotations

import json
import logging
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from ctl.core.errors import ConfigError, StoreAway, StoreError
from ctl.process.backoff import BackOff
from ctl.process.notify import Starting
from ctl.store.kubernetes.access import Access
from ctl.store.kubernetes.client import ApiClient

log = logging.getLogger(__name__)


def node_name(
    access: Access,
    client: Callable[[], ApiClient],
    environ: Mapping[str, str],
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """The Node's name; waits for as long as the API does not answer. ConfigError if nothing tells it."""
    claimed = by_token(access)
    if claimed:
        return claimed
    pod, namespace = environ.get("POD_NAME", ""), environ.get("POD_NAMESPACE", "")
    if not pod or not namespace:
        raise ConfigError(
            "kubernetes: which Node this is has not been said: set NODE_NAME (fieldRef: spec.nodeName),"
            " --node-name, or POD_NAME and POD_NAMESPACE"
        )
    asked = client()
    try:
        return _by_pod(asked, namespace, pod, sleep)
    finally:
        asked.close()


def by_token(access: Access) -> str:
    """What a pod's token says of its Node; empty if there is none, or it does not say.

    The API believes no token that does not hold what it says, so neither is this looked into.
    """
    try:
        with open(access.tokenfile, encoding="ascii") as file:
            payload = file.read().split(".")[1]
        claims: Any = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        name = claims["kubernetes.io"]["node"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return name if isinstance(name, str) else ""


def _by_pod(client: ApiClient, namespace: str, pod: str, sleep: Callable[[float], None]) -> str:
    back_off, starting, said = BackOff(), Starting(), ""
    while True:
        try:
            found = client.get(f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}")
            break
        except StoreAway as error:
            if str(error) != said:
                log.error("store: %s; waiting for it", error)
            said = str(error)
            starting.waits(f"waiting for the store: {said}")
            sleep(back_off.failed(time.monotonic()))
    starting.goes_on()
    try:
        name = json.loads(found)["spec"]["nodeName"]
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"kubernetes {client.where}: pod {namespace}/{pod} names no Node") from error
    return str(name)
