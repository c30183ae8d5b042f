#!/usr/bin/env bash
# A local S3 server with one bucket, on loopback only: local-s3.sh [BUCKET] [PORT]
set -euo pipefail
bucket=${1:-archive} port=${2:-9000}
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
"$python" -m moto.server --host 127.0.0.1 --port "$port" &
server=$!
trap 'kill $server' EXIT
export AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local AWS_ENDPOINT_URL=http://127.0.0.1:$port
"$python" - "$bucket" <<'PY'
import sys, time
import s3fs

for _ in range(100):
    try:
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(sys.argv[1])
        break
    except Exception:
        time.sleep(0.2)
PY
echo "export AWS_ENDPOINT_URL=$AWS_ENDPOINT_URL AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local"
wait $server
