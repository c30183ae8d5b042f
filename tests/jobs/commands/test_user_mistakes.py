"""A user's mistake: exit code 2, one line that names the thing and the mend, nothing written."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from emolake.jobs.cli import main
from tests.pipeline.faces.networks import onnx_detector


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """A folder of things to be wrong about; {g} in a case stands for it."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"x")
    (tmp_path / "bad.yaml").write_text("faces: [unclosed")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "unknown.yaml").write_text("faces:\n  min_fase: 3\n")
    (tmp_path / "negative.yaml").write_text("decode:\n  sample_fps: -1\n")
    (tmp_path / "no_uri.csv").write_text("path\n/a.mp4\n")
    (tmp_path / "ragged.csv").write_text("uri,corpus\n/a.mp4,x,y,z\n")
    (tmp_path / "text.parquet").write_text("this is no parquet")
    (tmp_path / "bad.jsonl").write_text('{"uri": ')
    pq.write_table(pa.table({"uri": pa.array([None], pa.string())}), tmp_path / "null.parquet")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"vision": {"widht": 3}}')
    (broken / "model.safetensors").write_bytes(b"")
    (tmp_path / "file").write_text("")
    labelled = pa.table({"image": pa.array([b""]), "label": ["bored"]})
    pq.write_table(labelled, tmp_path / "labels.parquet")
    seen = pa.table({"image": pa.array([b"x"]), "label": ["happy"]})
    pq.write_table(seen, tmp_path / "seen.parquet")
    case = tmp_path / "case"
    case.mkdir()
    (case / "config.json").write_text('{"family": "gpt"}')
    return tmp_path


VIDEOS = "{g}/videos --output {g}/out"
TUNE = "tune --config emo-llama-tiny --output {g}/out"
ASKED = "instruct table {g}/seen.parquet --output {g}/o.jsonl --label-set fer2013 --endpoint http://h/v1"
TABLE = "instruct table {g}/labels.parquet --output {g}/o.jsonl"
CASES = [
    ("", "COMMAND"),
    ("annotat", "invalid choice: 'annotat'"),
    ("bench scenes --scenes 0", "--scenes 0"),
    ("annotate {g}/videos", "--output"),
    ("annotate --output {g}/out", "INPUT"),
    (f"annotate {VIDEOS} --colour red", "--colour"),
    ("annotate {g}/none --output {g}/out", "{g}/none does not exist"),
    ("annotate {g}/*.avi --output {g}/out", "no file matches"),
    ("annotate nosuch://bucket/x --output {g}/out", "nosuch"),
    ("annotate {g}/none.csv --output {g}/out", "none.csv does not exist"),
    ("annotate {g}/no_uri.csv --output {g}/out", "no column 'uri'; its columns: path"),
    ("annotate {g}/ragged.csv --output {g}/out", "malformed"),
    ("annotate {g}/text.parquet --output {g}/out", "malformed"),
    ("annotate {g}/bad.jsonl --output {g}/out", "malformed"),
    ("annotate {g}/null.parquet --output {g}/out", "row 1 has no uri"),
    (f"annotate {VIDEOS} --config {{g}}/none.yaml", "cannot be read"),
    (f"annotate {VIDEOS} --config {{g}}/bad.yaml", "is not YAML"),
    (f"annotate {VIDEOS} --config {{g}}/list.yaml", "key: value"),
    (f"annotate {VIDEOS} --config {{g}}/unknown.yaml", "did you mean 'faces.min_face'?"),
    (f"annotate {VIDEOS} --config {{g}}/negative.yaml", "decode.sample_fps"),
    (f"annotate {VIDEOS} --set faces.min_fac=3", "did you mean 'faces.min_face'?"),
    (f"annotate {VIDEOS} --set min_face=3", "did you mean 'faces.min_face'?"),
    (f"annotate {VIDEOS} --set faces.min_face", "is not key=value"),
    (f"annotate {VIDEOS} --set faces.min_face=many", "faces.min_face"),
    (f"annotate {VIDEOS} --set faces.detector=haar", "mtcnn"),
    (f"annotate {VIDEOS} --set faces.detector=retinaface", "needs faces.weights=FILE"),
    (
        f"annotate {VIDEOS} --set faces.detector=retinaface --set faces.weights={{g}}/none",
        "download RetinaFace weights from ternaus/retinaface",
    ),
    (
        f"annotate {VIDEOS} --set faces.detector=yunet",
        "needs faces.weights=FILE; download face_detection_yunet_2023mar.onnx",
    ),
    (
        f"annotate {VIDEOS} --set faces.detector=scrfd --set faces.weights={{g}}/none",
        "none does not exist; download det_10g.onnx",
    ),
    (
        f"annotate {VIDEOS} --set faces.detector=yunet --set faces.weights={{g}}/bad.jsonl",
        "{g}/bad.jsonl is no YuNet",
    ),
    (
        f"annotate {VIDEOS} --set faces.detector=scrfd --set faces.weights={{g}}/bad.jsonl",
        "{g}/bad.jsonl is no ONNX model",
    ),
    (f"annotate {VIDEOS} --set faces.attributes={{g}}/none", "download res34_fair_align_multi_7"),
    (f"annotate {VIDEOS} --set limits.max_failed_fraction=2", "max_failed_fraction"),
    (f"annotate {VIDEOS} --set windows.window_seconds=0", "window_seconds"),
    (f"annotate {VIDEOS} --set decode.backend=ffmpeg", "pyav"),
    (f"annotate {VIDEOS} --set model.name=x", "model"),
    (f"annotate {VIDEOS} --corpus a/b", "corpus"),
    (f"annotate {VIDEOS} --model nothing", "neither an embedded model"),
    (f"annotate {VIDEOS} --model {{g}}/videos", "holds no config.json"),
    (f"annotate {VIDEOS} --model {{g}}/model", "holds no model.safetensors"),
    (f"annotate {VIDEOS} --model {{g}}/broken", "vision.widht"),
    (f"annotate {VIDEOS} --set annotator.action_units=true", "does nothing for emo-llama-tiny"),
    (f"annotate {VIDEOS} --storage-option key", "--storage-option"),
    (f"annotate {VIDEOS} --run-id ../up", "--run-id"),
    ("annotate {g}/videos --output {g}/file/out", "{g}/file/out"),
    ("plan {g}/videos --output {g}/file", "cannot be read"),
    ("plan s3://bucket/videos --output {g}/out", "NoCredentialsError"),
    ("plan http://[::1/a.mp4 --output {g}/out", "http://[::1/a.mp4"),
    (f"annotate {VIDEOS} --storage-option a=x --storage-option a.b=y", "given as a value and as"),
    ("status s3://bucket/lake", "NoCredentialsError"),
    ("plan {g}/none --output {g}/out", "does not exist"),
    ("plan {g}/videos --output {g}/out --since yesterday", "is no time"),
    ("status {g}/videos", "holds no run"),
    ("status {g}/none", "holds no run"),
    ("compact {g}/videos", "holds no run"),
    ("compact {g}/videos --target-mb 0", "must be at least 1"),
    ("publish {g}/videos --catalog sqlite:///{g}/c.db", "holds no run"),
    (f"annotate {VIDEOS} --set iceberg.catalog=nowhere", "catalogue 'nowhere' cannot be opened"),
    (f"annotate {VIDEOS} --set iceberg.catalog=sqlite:////no/c.db", "cannot be opened"),
    ("export {g}/videos a.mp4 --csv {g}/x.csv", "holds no run"),
    ("report {g}/videos --html {g}/r.html", "holds no run"),
    ("models", "ACTION"),
    ("models show nothing", "neither an embedded model"),
    ("models verify {g}/none", "cannot be read"),
    ("models compare nothing --data {g}/labels.parquet", "neither an embedded model"),
    ("models compare emo-llama-tiny", "--data"),
    ("models convert --family gpt {g}/case --output {g}/new", "invalid choice"),
    ("models convert --family emola {g}/case --output {g}/new", "name its --base"),
    ("models convert --family llama-vid {g}/case --output {g}/videos", "is there already"),
    ("models convert --family llama-vid {g}/case --output {g}/new", "holds no checkpoint"),
    ("models convert --family llama-vid {g}/none --output {g}/new", "holds no config.json"),
    ("models verify {g}/case", "family 'gpt' is unknown"),
    ("evaluate --data {g}/none.parquet", "does not exist"),
    ("evaluate --data {g}/text.parquet", "not a readable Parquet"),
    ("evaluate --data {g}/no_uri.csv", "no column 'image'"),
    ("evaluate", "give --data FILE"),
    ("evaluate --output {g}/videos", "--output needs --labels"),
    ("evaluate --output {g}/videos --labels {g}/labels.parquet", "holds no run"),
    ("evaluate --data {g}/null.parquet", "no column 'label'"),
    ("evaluate --data {g}/labels.parquet", "label 'bored' is not in the label set"),
    ("evaluate --data {g}/labels.parquet --label-set moods", "known sets: fer2013"),
    ("tune --config {g}/none.yaml --output {g}/out", "cannot be read"),
    ("tune --config emo-llama-tiny --set seeed=1 --output {g}/out", "did you mean 'seed'?"),
    ("tune --config emo-llama-tiny --set data.train={g}/none --output {g}/out", "does not exist"),
    (
        f"{TUNE} --set data.train={{g}}/no_uri.csv --set data.valid={{g}}/no_uri.csv",
        "no column 'image'",
    ),
    (f"{TUNE} --set adapter.rank=4", "`adapter` adapts a whole model"),
    (f"{TUNE} --set workers.count=0", "workers.count"),
    ("instruct raf-db {g}/videos --output {g}/o.txt", "name a .parquet or a .jsonl file"),
    ("instruct raf {g}/videos --output {g}/o.jsonl", "invalid choice: 'raf'"),
    (f"{TABLE}", "needs --label-set NAME"),
    (f"{TABLE} --label-set fer2013", "gives no example of split 'train': 1 unknown label"),
    (f"{TABLE} --label-set fer2013 --kind poem", "known kinds: label, reason, description"),
    (f"{TABLE} --label-set fer2013 --templates {{g}}/bad.yaml", "is not YAML"),
    (f"{TABLE} --label-set fer2013 --templates {{g}}/list.yaml", "templates"),
    (f"{ASKED}", "needs --endpoint-model NAME"),
    (f"{ASKED} --endpoint-model m --api-key-env NO_SUCH_KEY", "needs a key in $NO_SUCH_KEY"),
    (
        f"{ASKED} --endpoint-model m --api-key-env PATH --attempts 0",
        "--attempts must be at least 1",
    ),
    (f"{ASKED} --endpoint-model m --api-key-env PATH --token-prices 1", "is not IN,OUT"),
    ("instruct table {g}/none.csv --label-set dfew --output {g}/o.jsonl", "does not exist"),
]


@pytest.mark.parametrize(("command", "told"), CASES, ids=[c[0][:60] for c in CASES])
def test_a_mistake_is_one_line_and_writes_nothing(
    ground, capsys, monkeypatch, command: str, told: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(S3FileSystem, "cachable", False)  # credentials stay in what is kept
    before = sorted(ground.rglob("*"))
    code = main(command.format(g=ground).split())
    output, error = capsys.readouterr()
    assert code == 2, error
    assert told.format(g=ground) in error
    assert len(error.strip().splitlines()) == 1
    assert output == ""
    assert sorted(ground.rglob("*")) == before


@pytest.mark.parametrize(
    ("extra", "told"),
    [(True, "tells no landmarks; take a *_kps"), (False, "pip install 'emolake[onnx]'")],
)
def test_an_scrfd_that_cannot_run_is_told_before_any_work(
    ground, capsys, monkeypatch, extra: bool, told: str
) -> None:
    boxes_only = {"score": np.zeros((4, 2, 1)), "bbox": np.zeros((4, 2, 4))}
    weights = onnx_detector(ground / "scrfd_10g.onnx", boxes_only, (8, 16, 32))
    if not extra:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = f"annotate {VIDEOS} --set faces.detector=scrfd --set faces.weights={weights}"
    assert main(arguments.format(g=ground).split()) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert not (ground / "out").exists()


def test_an_environment_key_overrides_the_file_and_set_wins(ground, capsys, monkeypatch) -> None:
    (ground / "c.yaml").write_text("faces: {min_face: 20}\ndecode: {sample_fps: 2}\n")
    arguments = f"plan {VIDEOS} --json --config {{g}}/c.yaml".format(g=ground).split()
    hashes = {}
    for name, env, extra in [
        ("file", {}, []),
        ("env", {"EMOLAKE_FACES__MIN_FACE": "30"}, []),
        ("set", {"EMOLAKE_FACES__MIN_FACE": "30"}, ["--set", "faces.min_face=20"]),
    ]:
        with monkeypatch.context() as patch:
            for key, value in env.items():
                patch.setenv(key, value)
            assert main([*arguments, *extra]) == 0
        hashes[name] = json.loads(capsys.readouterr().out)["config_hash"]
    assert hashes["file"] == hashes["set"] != hashes["env"]
    for key, near in {
        "EMOLAKE_FACES__MIN_FASE": "faces.min_face",
        "EMOLAKE_FACESS__MIN_FACE": "faces.min_face",
        "EMOLAKE_CORPUSS": "corpus",
        "EMOLAKE_MODEL__X": "model",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(key, "3")
            assert main(arguments) == 2
        assert f"did you mean {near!r}?" in capsys.readouterr().err


def test_what_kubernetes_tells_of_services_is_no_option(ground, capsys, monkeypatch) -> None:
    arguments = f"plan {VIDEOS} --json".format(g=ground).split()
    for service in ("EMOLAKE", "EMOLAKE_METRICS"):
        port = "tcp://10.0.0.7:8080"
        for name, value in {
            "SERVICE_HOST": "10.0.0.7", "SERVICE_PORT": "8080", "SERVICE_PORT_HTTP": "8080",
            "PORT": port, "PORT_8080_TCP": port, "PORT_8080_TCP_PROTO": "tcp",
            "PORT_8080_TCP_PORT": "8080", "PORT_8080_TCP_ADDR": "10.0.0.7",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"{service}_{name}", value)
    assert main(arguments) == 0
    capsys.readouterr()
    monkeypatch.setenv("EMOLAKE_PORT", "8080")
    assert main(arguments) == 2, "that is nobody's but the user's"
    assert "unknown key 'port'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "annotate",
        "plan",
        "status",
        "models list",
        "models show",
        "models verify",
        "evaluate",
        "instruct",
        "publish",
        "tune",
        "bench",
    ],
)
def test_each_command_explains_itself(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "example: emolake" in text
    assert re.search(r"--json", text)


def test_results_stand_alone_whatever_a_library_prints(capsys, monkeypatch) -> None:
    from emolake.jobs.commands import models

    real = models.list_command

    def chatty(options):
        print("(raylet) A worker died")
        return real(options)

    monkeypatch.setattr(models, "list_command", chatty)
    assert main(["models", "list", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert "(raylet) A worker died" in told.err
    assert main(["models", "list"]) == 0
    assert "(raylet) A worker died" in capsys.readouterr().out
