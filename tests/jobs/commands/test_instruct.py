"""`emolake instruct`: published layouts, templates, and a model behind an endpoint that misbehaves."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emolake.jobs.cli import main
from emolake.jobs.commands.instruct import _Journal, _read_journal
from emolake.pipeline.errors import UserError
from emolake.pipeline.labels import LABEL_SETS
from emolake.pipeline.learning.records.endpoint import (
    Ask,
    Endpoint,
    EndpointConfig,
    Reply,
    Unfit,
    checked,
)
from emolake.pipeline.learning.records.sources import read_items
from emolake.pipeline.learning.records.templates import KINDS, Templates
from tests.conftest import ROOT

LEVELS = " ".join(["90"] * 48 * 48)


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((48, 48, 3), 90, np.uint8))
    return path


def raf(root: Path) -> list[tuple]:
    put(
        root / "basic/EmoLabel/list_patition_label.txt",
        "train_00001.jpg 5\ntrain_00002.jpg 1\ntest_0001.jpg 4\n",
    )
    one = picture(root / "basic/Image/aligned/train_00001_aligned.jpg")
    two = picture(root / "basic/Image/original/train_00002.jpg")
    points = "1 2\n" * 5
    put(root / "basic/Annotation/manual/train_00001_manu_attri.txt", f"{points}1\n2\n3\n")
    told = {"gender": "female", "race": "Asian", "age": "40-69"}
    return [({"uri": str(one)}, "sadness", told), ({"uri": str(two)}, "surprise", {})]


def affectnet_new(root: Path) -> list[tuple]:
    for name, number in (("10", 7), ("9", 0), ("11", 8)):
        picture(root / f"train_set/images/{name}.jpg")
        (root / "train_set/annotations").mkdir(exist_ok=True)
        np.save(root / f"train_set/annotations/{name}_exp.npy", np.array(str(number)))
    uris = [str(root / f"train_set/images/{n}.jpg") for n in ("9", "10", "11")]
    return [
        ({"uri": uri}, label, {})
        for uri, label in zip(uris, ("neutral", "contempt", None), strict=True)
    ]


def affectnet_first(root: Path) -> list[tuple]:
    shown = picture(root / "Manually_Annotated_Images/12/a.jpg")
    put(
        root / "Manually_Annotated_file_lists/training.csv",
        "subDirectory_filePath,face_x,expression,valence\n12/a.jpg,0,6,0.1\n13/b.jpg,0,9,0.1\n",
    )
    missing = {"uri": str(root / "Manually_Annotated_Images/13/b.jpg")}
    return [({"uri": str(shown)}, "anger", {}), (missing, None, {})]


def fer_csv(root: Path) -> list[tuple]:
    rows = f'3,"{LEVELS}",Training\n6,"{LEVELS}",PublicTest\n'
    put(root / "fer2013.csv", "emotion,pixels,Usage\n" + rows)
    return [({"image": 48}, "happiness", {})]


def fer_folders(root: Path) -> list[tuple]:
    shown = picture(root / "train/angry/1.png")
    return [({"uri": str(shown)}, "anger", {})]


VOTES = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def ferplus(root: Path) -> list[tuple]:
    put(
        root / "fer2013new.csv",
        f"Usage,Image name,{VOTES}\n"
        "Training,fer0000000.png,4,0,0,1,3,2,0,0,0,0\n"
        "Training,fer0000001.png,0,0,0,5,5,0,0,0,0,0\n"
        "Training,fer0000002.png,0,0,0,0,0,0,0,7,3,0\n"
        "Training,,0,0,0,0,0,0,0,0,0,10\n"
        "PublicTest,fer0000004.png,9,0,0,0,0,0,0,0,0,0\n",
    )
    folder = root / "FER2013Train"
    labels = ("neutral", None, "contempt")
    return [
        ({"uri": str(folder / f"fer000000{k}.png")}, label, {}) for k, label in enumerate(labels)
    ]


def dfew(root: Path) -> list[tuple]:
    put(
        root / "EmoLabel_DataSplit/train(single-labeled)/set_2.csv",
        "video_name,label\n1,1\n12,7\n13,4\n",
    )
    frames = [str(picture(root / f"Clip/clip_224x224_16f/00001/{k}.jpg")) for k in (1, 2, 10)]
    video = put(root / "Clip/original/part_1/12.mp4")
    absent = {"uri": str(root / "Clip/13")}
    return [
        ({"frames": frames}, "happiness", {}),
        ({"uri": str(video)}, "fear", {}),
        (absent, "anger", {}),
    ]


def mafw(root: Path) -> list[tuple]:
    put(
        root / "Train & Test Set/single/no_caption/set_2/train.txt",
        "00001.mp4 anxiety\n00002.mp4 happiness\n",
    )
    clip = put(root / "data/clips/00001.mp4")
    frames = [str(picture(root / f"data/frames/00002/{k:05d}.png")) for k in (1, 2)]
    return [({"uri": str(clip)}, "anxiety", {}), ({"frames": frames}, "happiness", {})]


def ferv39k(root: Path) -> list[tuple]:
    put(
        root / "4_setups/All_scenes/train_All.csv",
        "Action/Happy/0267 Happy\nWar/Angry/0001 Angry\n",
    )
    frames = [str(picture(root / f"2_ClipsforFaceCrop/Action/Happy/0267/{k}.jpg")) for k in (1, 2)]
    clip = put(root / "2_ClipsforFaceCrop/War/Angry/0001.mp4")
    return [({"frames": frames}, "happiness", {}), ({"uri": str(clip)}, "anger", {})]


@pytest.mark.parametrize(
    ("name", "lay_out"),
    [
        ("raf-db", raf), ("affectnet", affectnet_new), ("affectnet", affectnet_first),
        ("fer2013", fer_csv), ("fer2013", fer_folders), ("ferplus", ferplus), ("dfew", dfew),
        ("mafw", mafw), ("ferv39k", ferv39k),
    ],
)  # fmt: skip
def test_each_set_is_read_as_it_is_published(name, lay_out, tmp_path: Path) -> None:
    wanted = lay_out(tmp_path)
    found = []
    for item in read_items(name, tmp_path, "train", 2):
        media = dict(item.media)
        if "image" in media:
            shown = cv2.imdecode(np.frombuffer(media["image"], np.uint8), cv2.IMREAD_GRAYSCALE)
            assert (shown == 90).all()
            media["image"] = len(shown)
        found.append((media, item.label, item.attributes))
    assert found == wanted


@pytest.mark.parametrize("name", ["raf-db", "ferplus", "dfew", "mafw", "ferv39k", "affectnet"])
def test_a_folder_of_something_else_is_told(name: str, tmp_path: Path, capsys) -> None:
    assert main(["instruct", name, str(tmp_path), "--output", str(tmp_path / "o.jsonl")]) == 2
    told = capsys.readouterr().err
    assert "as it is published" in told
    assert told.count("\n") == 1


def test_templates_say_something_of_every_label_of_every_set() -> None:
    templates = Templates.read()
    for name, labels in LABEL_SETS.items():
        if name not in ("emollms",):  # a set for text, of no faces
            for kind in KINDS:
                templates.check(kind, labels)
                for label in labels:
                    told = templates.filled(kind, label, labels, "any")
                    assert label in told.answer
                    assert "{" not in told.question + told.answer


def table(fer2013: Path, folder: Path) -> Path:
    """Three real faces of each label."""
    rows = pq.read_table(fer2013 / "fer2013_valid.parquet", columns=["image", "label"]).to_pylist()
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["label"]] += 1
        if seen[row["label"]] <= 3:
            kept.append(row)
    kept += [{"image": None, "label": "happy"}, {"image": b"", "label": "bored"}]
    pq.write_table(pa.Table.from_pylist(kept), folder / "faces.parquet")
    return folder / "faces.parquet"


def test_records_by_templates(fer2013: Path, tmp_path: Path, capsys) -> None:
    source = table(fer2013, tmp_path)
    asked = [
        "instruct", "table", source, "--label-set", "fer2013", "--kind", "label,reason", "--json",
    ]  # fmt: skip
    outputs = [tmp_path / "a.parquet", tmp_path / "b.jsonl"]
    for output in outputs:
        assert main([*map(str, asked), "--output", str(output)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["records"] == 42
        assert told["left_out"] == {"no media": 1, "unknown label": 1}
    rows = pq.read_table(outputs[0]).to_pylist()
    lines = [json.loads(line) for line in outputs[1].read_text().splitlines()]
    assert [r["answer"] for r in rows] == [line["answer"] for line in lines]
    assert rows[0]["answer"] == rows[0]["label"]
    assert rows[1]["label"] in rows[1]["answer"]
    assert rows[1]["written_by"] == "template:reason"
    assert {row["question"] for row in rows if row["written_by"] == "template:reason"} > {
        rows[1]["question"]
    }, "questions vary"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    log = tmp_path / "requests.log"
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/jobs/commands/fake_endpoint.py", log], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    yield f"http://127.0.0.1:{port}/v1", log
    server.kill()
    server.wait()


def test_a_model_that_errs_stalls_and_lies_costs_what_it_spoils(
    fer2013: Path, tmp_path: Path, endpoint: tuple[str, Path], emolake
) -> None:
    url, log = endpoint
    output = tmp_path / "described.jsonl"
    asked = [
        "instruct", "table", table(fer2013, tmp_path), "--label-set", "fer2013", "--output", output,
        "--endpoint", url, "--endpoint-model", "fake", "--timeout", 2, "--retries", 2,
        "--token-prices", "1,10", "--json",
    ]  # fmt: skip
    key = {"OPENAI_API_KEY": "secret-key"}
    done = emolake(*asked, env=key)
    assert done.returncode == 1, done.stderr
    assert "3 examples have no answer; the same command asks for them again" in done.stderr
    assert "secret-key" not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["dropped"] == {"another label": 3}, "anger: each attempt was a lie"
    assert told["unanswered"] == 3, "disgust: a server that only errs"
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert Counter(row["label"] for row in rows) == dict.fromkeys(
        ("happiness", "sadness", "fear", "surprise", "neutral"), 3
    )
    assert all(row["label"] in row["answer"] and row["written_by"] == "fake" for row in rows)
    per_label = Counter(line.split()[1] for line in log.read_text().splitlines())
    twice = dict.fromkeys(("happiness", "sadness", "fear", "surprise"), 6)
    assert per_label == twice | {"neutral": 3, "anger": 9, "disgust": 9}
    spent = told["spent"]
    assert spent["requests"] == sum(per_label.values())
    answered = spent["input_tokens"] / 300
    assert spent["output_tokens"] == 40 * answered
    assert spent["cost"] == pytest.approx((300 * answered + 400 * answered) / 1e6)
    journal = output.with_name(f".{output.name}.journal")
    with journal.open("a") as torn:
        torn.write('{"key": "the run was killed he')
    emolake(*asked, env=key)
    again = Counter(line.split()[1] for line in log.read_text().splitlines())
    assert again - per_label == {"disgust": 9}, "only what had no answer is asked again"


def test_a_torn_line_of_the_journal_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"key": "the run was killed he')
    with _Journal(path, "m") as entries:
        entries.write(Reply("k", "A smile.", None, False, 1, 2, 3))
    assert _read_journal(path, "m")["k"]["description"] == "A smile."
    assert _read_journal(path, "another") == {}


def ask(number: int) -> Ask:
    return Ask(str(number), [bytes([number])], "neutral", LABEL_SETS["fer2013"])


def test_requests_keep_to_the_rate(
    endpoint: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, log = endpoint
    waited: list[float] = []
    standing = SimpleNamespace(monotonic=lambda: 100.0, sleep=waited.append)
    monkeypatch.setattr("emolake.pipeline.storage.chat.time", standing)
    client = Endpoint(EndpointConfig(url, "fake", "secret-key", requests_per_minute=120))
    replies = list(client.replies(ask(number) for number in range(4)))
    assert {reply.key for reply in replies} == set("0123")
    assert len(log.read_text().splitlines()) == 4
    assert sorted(waited) == [0.0, 0.5, 1.0, 1.5], "each waits for its turn"


def test_a_refusal_ends_it_and_the_key_stays_secret(endpoint: tuple[str, Path]) -> None:
    url, _ = endpoint
    config = EndpointConfig(url, "fake", "wrong")
    with pytest.raises(
        UserError, match=r"refuses the request \(HTTP 401\); check the key"
    ) as error:
        list(Endpoint(config).replies([ask(1)]))
    assert "wrong" not in f"{error.value}{config}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"label": "sad", "description": "The corners of the lips are drawn down."}', None),
        ('{"label": "sadness", "description": "No anger, plain sadness in the eyes."}', None),
        ('{"label": "sadness", "description": "short"}', "5 characters"),
        ('{"label": "sadness", "description": "Pressed lips show much anger."}', "names 'anger'"),
        ('{"label": "sadness", "descr', "no whole JSON"),
        ('{"description": "The corners of the lips are drawn down."}', "its label is 'missing'"),
        ("[]", "no whole JSON"),
    ],
)
def test_an_answer_has_to_agree_with_the_label(text: str, fault: str | None) -> None:
    asked = Ask("", [], "sadness", LABEL_SETS["fer2013"])
    if fault is None:
        assert checked(text, asked)
    else:
        with pytest.raises(Unfit, match=fault):
            checked(text, asked)
