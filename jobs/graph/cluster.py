"""The door to a Ray cluster's jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emolake.pipeline.errors import UserError, in_a_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


def job_client(address: str) -> JobSubmissionClient:
    """A client of the Ray Jobs API behind a dashboard's URL; UserError where there is none, or of another
    version of Ray."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("submit needs Ray's client: pip install 'emolake[cluster]'") from None
    import ray

    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address} is no dashboard's URL, such as http://HOST:8265")
    try:
        client = JobSubmissionClient(address)
        theirs = str(client._server_ray_version or "")
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"--address {address} does not answer as Ray: {in_a_line(error, 300)}"
        ) from None
    if theirs and theirs != ray.__version__:
        raise UserError(
            f"{address} runs Ray {theirs}, this machine has {ray.__version__}; they must be the same"
        )
    return client
