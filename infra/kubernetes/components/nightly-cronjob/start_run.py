"""Starts tonight's run: copies the suspended RayJob `TEMPLATE` to one named after this tick that runs."""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
_API = os.environ.get("API", "https://kubernetes.default.svc")


def main() -> int:
    jobs = f"/apis/ray.io/v1/namespaces/{os.environ['NAMESPACE']}/rayjobs"
    template = ask("GET", f"{jobs}/{os.environ['TEMPLATE']}")
    run = {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": os.environ["TICK"],
            "labels": template["metadata"].get("labels", {}),
        },
        "spec": {**template["spec"], "suspend": False},
    }
    try:
        ask("POST", jobs, run)
    except urllib.error.HTTPError as error:
        if error.code != 409:  # there already: an earlier try got as far as this
            raise
        print(f"{os.environ['TICK']} runs already")
        return 0
    print(f"{os.environ['TICK']} started")
    return 0


def ask(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - the cluster's own API server
        _API + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(_ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    authority = _ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if authority.exists() else None
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
        told: dict[str, Any] = json.load(answer)
        return told


if __name__ == "__main__":
    sys.exit(main())
