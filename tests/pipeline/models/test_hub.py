"""Models by their names on a hub: fetched once, whole, at one commit, and told in one line where not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Emolake, read_rows
from tests.local_server import running
from tests.pipeline.annotators.classifiers import vit_folder
from tests.pipeline.models.fake_hub import FakeHub, Files

NAME = "lab/vit-fer"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = vit_folder(tmp_path_factory.mktemp("vit") / "vit")
    told = {path.name: path.read_bytes() for path in folder.iterdir()}
    return told | {
        "README.md": b"a card",
        "training_args.bin": b"pickled",
        "onnx/model.onnx": b"onnx",
    }


@pytest.fixture
def hub(files: Files) -> Iterator[FakeHub]:
    with running(FakeHub()) as server:
        server.publish(NAME, files)
        yield server


def env(hub: FakeHub, cache: Path, **more: str) -> dict[str, str]:
    # HF_TOKEN_PATH: nobody's own token; a short patience with a server that does not answer.
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    return told | {"HF_HUB_ETAG_TIMEOUT": "2", "HF_TOKEN": ""} | more


@pytest.fixture
def show(emolake: Emolake, hub: FakeHub, tmp_path: Path):
    def show(name: str, **more: str) -> subprocess.CompletedProcess[str]:
        return emolake("models", "show", name, "--json", env=env(hub, tmp_path / "cache", **more))

    return show


def test_what_makes_a_model_is_fetched_and_nothing_else(show, hub: FakeHub, tmp_path: Path) -> None:
    done = show(NAME)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (commit,) = hub.models[NAME]
    assert told["name"] == "vit-fer"
    assert told["revision"].endswith(f"-{commit[:12]}")
    assert set(hub.given) == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "README.md",
    }
    before = hub.asked
    assert show(f"{NAME}@{commit}").returncode == 0
    assert hub.asked == before, "what a commit holds stands still"
    offline = show(NAME, HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout) == told


def test_a_body_that_breaks_off_is_gone_on_with(show, hub: FakeHub) -> None:
    hub.breaks_off = 2
    done = show(NAME)
    if done.returncode:  # the library gave up: the same command goes on
        assert done.returncode == 2
        assert "goes on where it broke off" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        done = show(NAME)
    assert done.returncode == 0, done.stderr
    assert hub.breaks_off == 0


def test_a_body_that_stalls_is_not_waited_for(show, hub: FakeHub) -> None:
    hub.stalls = 1
    done = show(NAME)
    if done.returncode:
        assert "goes on where it broke off" in done.stderr
        done = show(NAME)
    assert done.returncode == 0, done.stderr
    assert hub.stalls == 0


def test_many_at_once_fetch_it_once(hub: FakeHub, tmp_path: Path) -> None:
    fetching = (
        "import sys; from emolake.pipeline.storage.hub import fetched; print(fetched(sys.argv[1]))"
    )
    actors = [
        subprocess.Popen(
            [sys.executable, "-c", fetching, NAME],
            env=env(hub, tmp_path / "cache", PYTHONPATH=":".join(sys.path), PATH=""),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    folders = {actor.communicate(timeout=120)[0].strip() for actor in actors}
    assert len(folders) == 1
    assert hub.given["model.safetensors"] == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("lab/nowhere", "has no model lab/nowhere"),
        (f"{NAME}@v9", "has no revision 'v9'"),
        ("lab/gated", "is gated: accept its terms at"),
        ("lab/pickles", "has no weights as safetensors"),
        ("lab/cats", "'tabby', 'siamese' of its classes are no emotion"),
        ("lab/half", "is not whole: model.safetensors.index.json names"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    show, hub: FakeHub, files: Files, tmp_path: Path, name: str, line: str
) -> None:
    hub.publish("lab/gated", files)
    hub.gated.add("lab/gated")
    hub.publish("lab/pickles", {"config.json": files["config.json"], "weights.pkl": b"x"})
    cats = vit_folder(tmp_path / "cats", ("tabby", "siamese"))
    hub.publish("lab/cats", {path.name: path.read_bytes() for path in cats.iterdir()})
    index = json.dumps({"weight_map": {"a": "model-2.safetensors"}}).encode()
    half = files | {"model.safetensors.index.json": index, "model-00001-of-00002.safetensors": b""}
    hub.publish("lab/half", {k: v for k, v in half.items() if k != "model.safetensors"})
    done = show(name)
    assert done.returncode == 2, done.stdout
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_token_opens_what_is_gated(show, hub: FakeHub) -> None:
    hub.gated.add(NAME)
    assert show(NAME).returncode == 2
    assert show(NAME, HF_TOKEN="hf_mine").returncode == 0


def test_a_hub_that_is_away_is_told_in_one_line(
    emolake: Emolake, hub: FakeHub, tmp_path: Path
) -> None:
    away = env(hub, tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    done = emolake("models", "show", NAME, env=away)
    assert done.returncode == 2
    assert NAME in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_run_keeps_to_the_commit_it_was_planned_with(
    emolake: Emolake, hub: FakeHub, files: Files, demo_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").symlink_to(demo_videos / "portrait.mp4")
    asked = ["annotate", tmp_path / "in", "--output", tmp_path / "out", "--model", NAME, "--quiet"]
    done = emolake(*asked, env=env(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (first,) = hub.models[NAME]
    rows = read_rows(tmp_path / "out", "annotations")
    assert {r["model"] for r in rows} == {"vit-fer"}
    assert {r["model_revision"].partition("-")[2] for r in rows} == {first[:12]}
    (record,) = (tmp_path / "out" / "_runs").glob("*/run.json")
    assert json.loads(record.read_text())["config"]["model"] == f"{NAME}@{first}"
    # A new card makes no new model: nothing is done again, and nothing refused.
    hub.publish(NAME, files | {"README.md": b"a better card"})
    again = emolake(*asked, "--json", env=env(hub, tmp_path / "cache"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["videos"]["skipped"] == 1


def test_a_description_names_the_commit_of_a_hubs_weights(
    emolake: Emolake, hub: FakeHub, tmp_path: Path
) -> None:
    (commit,) = hub.models[NAME]
    (tmp_path / "mine.yaml").write_text(f"weights: {NAME}\n")
    asked = ["models", "show", tmp_path / "mine.yaml", "--json"]
    done = emolake(*asked, env=env(hub, tmp_path / "cache"))
    assert done.returncode == 2
    assert f"weights: {NAME}@{commit}" in done.stderr
    (tmp_path / "mine.yaml").write_text(f"weights: {NAME}@{commit}\n")
    done = emolake(*asked, env=env(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["revision"].endswith(f"-{commit[:12]}")


def test_a_file_that_is_not_there_is_looked_for_on_no_hub(show, hub: FakeHub) -> None:
    done = show("out/net.yaml")
    assert done.returncode == 2
    assert "neither an embedded model" in done.stderr
    assert hub.asked == 0


def test_what_was_fetched_serves_while_the_hub_is_away(show, hub: FakeHub) -> None:
    told = show(NAME).stdout
    away = show(NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 0, away.stderr
    assert away.stdout == told


def test_a_cache_that_holds_a_part_is_filled_up(show, hub: FakeHub, tmp_path: Path) -> None:
    (commit,) = hub.models[NAME]
    part = (
        "import sys; from huggingface_hub import hf_hub_download as get; "
        "[get(sys.argv[1], name, revision=sys.argv[2]) for name in ('config.json', 'model.safetensors')]"
    )
    surroundings = os.environ | env(hub, tmp_path / "cache")
    subprocess.run([sys.executable, "-c", part, NAME, commit], env=surroundings, check=True)
    done = show(f"{NAME}@{commit}")
    assert done.returncode == 0, done.stderr
    assert hub.given["preprocessor_config.json"] == 1


def test_a_folder_of_that_name_comes_first(emolake: Emolake, hub: FakeHub, tmp_path: Path) -> None:
    vit_folder(tmp_path / "lab" / "vit-fer", ("angry", "happy"))
    done = emolake("models", "show", NAME, "--json", cwd=tmp_path, env=env(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert "-" not in json.loads(done.stdout)["revision"]
    assert hub.asked == 0
