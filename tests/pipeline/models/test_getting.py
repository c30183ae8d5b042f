"""Published systems by name: every part from where it lies, converted, in one command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emolake.jobs.cli import main
from emolake.pipeline.errors import UserError
from emolake.pipeline.models.getting import get
from emolake.pipeline.models.systems import System, systems
from tests.conftest import Emolake
from tests.local_server import running
from tests.pipeline.models.fake_hub import FakeHub
from tests.pipeline.models.test_convert import TOWER, published, same, sharded
from tests.pipeline.models.test_hub import env

NAME = "llama-vid-7b"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(golden: Path, tmp_path: Path) -> Iterator[FakeHub]:
    """With LLaMA-VID as its authors published it, the tower a file apart, and BERT."""
    source, weights = published(golden, "llamavid_a", tmp_path / "published")
    tower = {n.removeprefix(TOWER): t for n, t in weights.items() if n.startswith(TOWER)}
    torch.save(tower, tmp_path / "eva_vit_g.pth")
    sharded(source, {n: t for n, t in weights.items() if not n.startswith(TOWER)})
    told = systems()[NAME]
    with running(FakeHub()) as server:
        server.publish(told.source, files_of(source) | {"training_args.bin": b"pickled"})
        tokenizer = (source / "tokenizer.json").read_bytes()
        bert = {"tokenizer.json": tokenizer, "model.safetensors": b"x", "pytorch_model.bin": b"x"}
        server.publish(told.question_tokenizer, bert)
        server.publish("lab/eva", {"eva_vit_g.pth": (tmp_path / "eva_vit_g.pth").read_bytes()})
        yield server


def test_one_command_fetches_and_converts(
    emolake: Emolake, hub: FakeHub, golden: Path, tmp_path: Path
) -> None:
    output = tmp_path / "ours"

    def fetched(*more: object):
        return emolake(
            *("models", "get", NAME, "--output", output, "--json"),
            *("--vision", f"{hub.url}/lab/eva/resolve/main/eva_vit_g.pth", *more),
            env=env(hub, tmp_path / "cache"),
        )

    asked = fetched()
    assert asked.returncode == 2
    assert "CC BY-NC 4.0" in asked.stderr
    assert "--accept-licence" in asked.stderr
    assert not hub.asked, "nothing comes before its licence is accepted"
    hub.breaks_off = 1
    done = fetched("--accept-licence")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["output"], told["licence"]) == (str(output), systems()[NAME].licence)
    same(output, golden, "llamavid_a")
    assert (output / "question_tokenizer.json").exists()
    assert "model.safetensors" not in hub.given, "of BERT its tokenizer alone"
    again = fetched("--accept-licence")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    shutil.rmtree(output)
    assert fetched("--accept-licence").returncode == 0
    assert hub.given["eva_vit_g.pth"] == 1


def test_what_needs_no_conversion_stays_where_the_hub_puts_it(
    emolake: Emolake, hub: FakeHub, tmp_path: Path
) -> None:
    source = systems()["emot5-large"].source
    hub.publish(source, {"config.json": b'{"model_type": "t5"}', "model.safetensors": b"x"})
    done = emolake(
        *("models", "get", "emot5-large", "--accept-licence"),
        env=env(hub, tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert f"--model {source} runs it" in done.stdout


def test_a_disk_without_room_is_told_before_anything_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "pytorch_model.bin").write_bytes(b"x" * 5000)
    found = System(
        family="llama-vid", source=str(tmp_path / "llama"), licence="ours", terms="nowhere"
    )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4999))
    with pytest.raises(UserError, match="models get mine takes"):
        get("mine", found, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("emo-7b",), "known are llama-vid-7b"),
        (("emola-7b", "--accept-licence"), "name with --source the folder of the adapter"),
        ((NAME, "--accept-licence", "--source", "nowhere"), "nowhere is neither a file or folder"),
    ],
)
def test_what_cannot_be_had_is_one_line(arguments, line: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir("/")
    assert main(["models", "get", *arguments]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.strip().splitlines()) == 1
