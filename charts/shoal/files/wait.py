"""Wait until a DaemonSet has a ready pod on each of its nodes: the last step of `helm uninstall`, and `helm test`.

Run by templates/uninstall.yaml and templates/test.yaml, so it is one file on the standard library alone. Arguments:
namespace, name, seconds, and what nodes mean that do not answer in time.
"restored": they are counted and left as they are. Their hosts.toml leads nowhere, and containerd goes upstream.
"ready": exit code 1.
"""
# ruff: noqa: INP001, S310, T201 - no package; the scheme is https below; printing is how a Job tells.

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))


def wait(namespace: str, name: str, seconds: float) -> tuple[int, int]:
    """(ready, wanted) nodes, at the deadline or once all are ready; wanted is -1 if nobody said.

    A watch without a resource version begins with the state of now.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    # Python 3.13 demands a key usage of every CA. Clusters that were made years ago have a CA without one.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    deadline = time.monotonic() + seconds
    status: dict[str, int] = {}
    while (left := deadline - time.monotonic()) > 0:
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": str(max(1, int(left)))}
        request = urllib.request.Request(
            f"https://{host}:{port}/apis/apps/v1/namespaces/{namespace}/daemonsets?{urllib.parse.urlencode(query)}",
            headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=left + 5, context=tls) as events:
                for line in events:
                    item = json.loads(line).get("object", {})
                    status = item.get("status", {})
                    seen = status.get("observedGeneration", 0) >= item.get("metadata", {}).get("generation", 1)
                    if seen and status.get("numberReady", 0) >= status.get("desiredNumberScheduled", 1):
                        return status.get("numberReady", 0), status.get("desiredNumberScheduled", 0)
                    if time.monotonic() > deadline:
                        break
        except (OSError, ValueError) as error:
            print(f"again: {type(error).__name__}", flush=True)
        time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))  # a watch that ends early must not spin
    return status.get("numberReady", 0), status.get("desiredNumberScheduled", -1)


def main(namespace: str, name: str, seconds: str, word: str) -> int:
    """Exit code. One line says on how many nodes."""
    ready, wanted = wait(namespace, name, float(seconds))
    if ready >= wanted >= 0:
        print(f"{word} on {ready} nodes")
        return 0
    hint = "on the others run: shoal containerd uninstall" if word == "restored" else "see: kubectl get pods -o wide"
    print(f"{word} on {ready} of {wanted if wanted >= 0 else '?'} nodes in time; {hint}")
    return 0 if word == "restored" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
