"""KubeRay's custom resources as JSON Schema: the fields of the published CRDs (ray.io/v1, KubeRay 1.6) by
name and type, closed, so that a misspelt one is found. Pod templates are Kubernetes' own matter."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
_NUMBER: Schema = {"type": "number"}
_ANY: Schema = {"type": "object"}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_AUTOSCALER = _object(
    args={"type": "array", "items": _TEXT},
    command={"type": "array", "items": _TEXT},
    env={"type": "array"},
    envFrom={"type": "array"},
    idleTimeoutSeconds=_COUNT,
    image=_TEXT,
    imagePullPolicy=_TEXT,
    resources=_ANY,
    securityContext=_ANY,
    upscalingMode=_one_of("Default", "Aggressive", "Conservative"),
    version=_one_of("v1", "v2"),
    volumeMounts={"type": "array"},
)
_HEAD = _object(
    ("template",),
    enableIngress=_FLAG,
    headService=_ANY,
    labels=_TEXTS,
    rayStartParams=_TEXTS,
    resources=_TEXTS,
    serviceType=_TEXT,
    template=_ANY,
)
_WORKERS = _object(
    ("groupName", "maxReplicas", "minReplicas", "template"),
    groupName=_TEXT,
    idleTimeoutSeconds=_COUNT,
    labels=_TEXTS,
    maxReplicas=_COUNT,
    minReplicas=_COUNT,
    numOfHosts=_COUNT,
    rayStartParams=_TEXTS,
    replicas=_COUNT,
    resources=_TEXTS,
    scaleStrategy=_ANY,
    suspend=_FLAG,
    template=_ANY,
)
_CLUSTER = _object(
    ("headGroupSpec",),
    authOptions=_ANY,
    autoscalerOptions=_AUTOSCALER,
    enableInTreeAutoscaling=_FLAG,
    gcsFaultToleranceOptions=_ANY,
    headGroupSpec=_HEAD,
    headServiceAnnotations=_TEXTS,
    managedBy=_TEXT,
    rayVersion=_TEXT,
    suspend=_FLAG,
    upgradeStrategy=_ANY,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_JOB = _object(
    activeDeadlineSeconds=_COUNT,
    backoffLimit=_COUNT,
    clusterSelector=_TEXTS,
    deletionStrategy=_ANY,
    entrypoint=_TEXT,
    entrypointNumCpus=_NUMBER,
    entrypointNumGpus=_NUMBER,
    entrypointResources=_TEXT,
    jobId=_TEXT,
    managedBy=_TEXT,
    metadata=_TEXTS,
    preRunningDeadlineSeconds=_COUNT | {"minimum": 1},
    rayClusterSpec=_CLUSTER,
    runtimeEnvYAML=_TEXT,
    shutdownAfterJobFinishes=_FLAG,
    submissionMode=_one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=_object(backoffLimit=_COUNT),
    submitterPodTemplate=_ANY,
    suspend=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
)
_CRON = _object(
    ("jobTemplate", "schedule"),
    jobTemplate=_JOB,
    schedule=_TEXT,
    suspend=_FLAG,
    timeZone=_TEXT | {"minLength": 1},
)


def _resource(kind: str, spec: Schema) -> Schema:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_ANY,
        spec=spec,
    )


RESOURCES = {"RayJob": _resource("RayJob", _JOB), "RayCronJob": _resource("RayCronJob", _CRON)}
