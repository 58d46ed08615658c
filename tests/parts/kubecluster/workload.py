"""Objects that use the cluster: deployments and daemon sets of an image that runs and does nothing."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]


def _pod(name: str, image: str) -> Object:
    """A pod template of one container, gone at once when it is deleted."""
    labels = {"app": name}
    spread = {
        "topologyKey": "kubernetes.io/hostname",
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    return {
        "metadata": {"labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "topologySpreadConstraints": [spread],
            "containers": [{"name": "app", "image": image, "imagePullPolicy": "Always"}],
        },
    }


def deployment(name: str, image: str, replicas: int) -> Object:
    """*replicas* pods, spread over the nodes."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": _pod(name, image),
        },
    }


def daemon_set(name: str, image: str) -> Object:
    """A pod on every node."""
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": _pod(name, image)},
    }
