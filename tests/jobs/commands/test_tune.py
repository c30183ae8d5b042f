"""`emolake tune` as a user calls it: records of pictures and videos, processes under Ray Train."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import yaml


def test_records_of_pictures_and_videos_are_learnt_by_two_workers(
    fer2013: Path, demo_videos: Path, tmp_path: Path, emolake
) -> None:
    table = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image", "label"])
    pq.write_table(table.slice(0, 40), tmp_path / "valid.parquet")
    records = []
    for k, row in enumerate(table.slice(40, 14).to_pylist()):
        (tmp_path / f"{k}.jpg").write_bytes(row["image"])
        records.append({"uri": f"{k}.jpg", "label": row["label"]})
    video = str(demo_videos / "portrait.mp4")
    asked = {"question": "What does she do?", "answer": "She smiles.", "age": "40-49"}
    records += [
        {"uri": video, "start_s": 0.5, "end_s": 2.5, **asked},
        {"uri": video, "label": "happy"},
        {"uri": str(demo_videos / "no_face.mp4"), "label": "happy"},
        {"uri": str(demo_videos / "damaged.mp4"), "label": "happy"},
        {"uri": "absent.jpg", "label": "happy"},
        {"uri": "0.jpg", "label": "bored"},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "records.jsonl").write_text(lines)
    stage = {
        "name": "adapt", "trains": "model", "epochs": 1, "batch_size": 8, "warmup_steps": 1,
        "stem_learning_rate_factor": 0.0, "learning_rate": 1e-3, "frames": [2],
    }  # fmt: skip
    recipe = {
        "name": "mine", "start": {"model": "emo-llama-tiny"}, "reads": ["attributes"],
        "data": {"train": str(tmp_path / "records.jsonl"), "valid": str(tmp_path / "valid.parquet")},
        "stages": [stage], "workers": {"count": 2, "cpus": 0.5}, "tensorboard": True,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = emolake(
        "tune", "--config", tmp_path / "recipe.yaml", "--output", tmp_path / "mine", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["n"] == 40
    assert told["war"] > 0.4, "it starts from a model that knows much"
    assert sum(told["skipped"].values()) == 4
    assert told["skipped"]["unknown_label"] == told["skipped"]["no_face"] == 1
    assert "records.jsonl: 1 of 20 rows left out: no face was found" in done.stderr
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["attributes"] is True
    training = tmp_path / "mine" / "training"
    metrics = [json.loads(x) for x in (training / "adapt-metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2]
    assert list((training / "tensorboard" / "adapt").iterdir())
