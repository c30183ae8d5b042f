"""The face child, except that a name can crash it, hang it, make it eat memory or break its device."""

import os
import signal
import sys
import time
from typing import Any

from emolake.actors import face_child


class _PoisonedWorker(face_child._Worker):
    def answer(self, request: dict[str, Any]) -> bytes:
        uri = request.get("probe") or request["faces"]["uri"]
        if "segv" in uri:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in uri:
            time.sleep(600)
        if "exit" in uri:
            sys.exit(7)
        return super().answer(request)

    def _face_stage(self) -> Any:
        asked, self.device = self.device, "cpu"
        stage = super()._face_stage()
        self.device = asked
        return stage

    def _faces(self, segment: dict[str, Any], *more: Any) -> dict[str, Any]:
        if "broken-device" in segment["uri"]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "full-device" in segment["uri"]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super()._faces(segment, *more)

    def _source(self, uri: str) -> Any:
        if "memory" in uri:
            bytearray(1 << 40)
        return super()._source(uri)


face_child._Worker = _PoisonedWorker  # type: ignore[misc]

if __name__ == "__main__":
    face_child.main()
