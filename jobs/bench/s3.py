"""A local S3 server for benchmarks: moto, in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emolake.pipeline.errors import UserError


@dataclass(frozen=True)
class LocalS3:
    """A server on loopback. options: of `Storage`."""

    options: dict[str, Any]

    def fill(self, bucket: str, keys: Iterable[str]) -> None:
        """Makes a bucket with one small object a key, not over the wire: that would take minutes."""
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        backend.create_bucket(bucket, "us-east-1")
        for key in keys:
            backend.put_object(bucket, key, b"x")


@contextmanager
def local_s3() -> Iterator[LocalS3]:
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        raise UserError("this benchmark needs moto; install emolake[dev]") from None

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield LocalS3(
            {"endpoint_url": f"http://{host}:{port}", "key": "local", "secret": "local"}
            | {"client_kwargs": {"region_name": "us-east-1"}}
        )
    finally:
        server.stop()
