"""Published systems by name: every part from where it lies, converted, in one command."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emolake.jobs.cli import main
from emolake.pipeline.errors import UserError, in_a_line
from emolake.pipeline.models.catalog import size_and_licence
from emolake.pipeline.models.convert import _made_aside
from emolake.pipeline.models.getting import get
from emolake.pipeline.models.systems import System, systems
from emolake.pipeline.storage import downloads
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

    def fetched(*more: object, **told: str):
        return emolake(
            *("models", "get", NAME, "--output", output, "--json"),
            *("--vision", f"{hub.url}/lab/eva/resolve/main/eva_vit_g.pth", *more),
            env=env(hub, tmp_path / "cache", **told),
        )

    asked = fetched()
    assert asked.returncode == 2
    assert "CC BY-NC 4.0" in asked.stderr
    assert "--accept-licence" in asked.stderr
    assert not hub.asked, "nothing comes before its licence is accepted"
    done = fetched("--accept-licence")
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), "no bars where nobody looks"
    told = json.loads(done.stdout)
    assert (told["output"], told["name"]) == (str(output), NAME)
    assert (
        size_and_licence(output)["licence"]
        == told["licence"]
        == in_a_line(systems()[NAME].licence, 100)
    )
    assert "llama-vid-7b-full-224-video-fps-1 (llama-vid)" in (output / "README.md").read_text()
    same(output, golden, "llamavid_a")
    assert [path.name for path in tmp_path.glob(".ours*")] == []
    assert (output / "question_tokenizer.json").exists()
    assert "model.safetensors" not in hub.given, "of BERT its tokenizer alone"
    again = fetched("--accept-licence")
    assert again.returncode == 2
    assert "is there already" in again.stderr
    nowhere = fetched("--accept-licence", "--output", output / "config.json" / "new")
    assert nowhere.returncode == 2
    assert "is no folder to write to" in nowhere.stderr
    shutil.rmtree(output)
    offline = fetched("--accept-licence", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert hub.given["eva_vit_g.pth"] == 1
    same(output, golden, "llamavid_a")


def test_a_gated_part_is_one_line_before_anything_comes(
    emolake: Emolake, hub: FakeHub, tmp_path: Path
) -> None:
    hub.gated.add(systems()[NAME].source)
    done = emolake(
        *("models", "get", NAME, "--accept-licence", "--output", tmp_path / "ours"),
        *("--vision", f"{hub.url}/lab/eva/resolve/main/eva_vit_g.pth"),
        env=env(hub, tmp_path / "cache"),
    )
    assert done.returncode == 2
    assert "is gated: accept its terms" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not any(size for name, size in hub.given.items() if name.endswith((".bin", ".pth")))


DOWNLOAD = (
    "import sys; from emolake.pipeline.storage.downloads import downloaded; "
    "print(downloaded(sys.argv[1]))"
)


@pytest.mark.parametrize("fault", ["breaks_off", "stalls"])
def test_an_address_whose_body_breaks_off_is_gone_on_with(
    hub: FakeHub, tmp_path: Path, fault: str
) -> None:
    setattr(hub, fault, 1)
    url = f"{hub.url}/lab/eva/resolve/main/eva_vit_g.pth"
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD, url],
        env=env(hub, tmp_path / "cache", PYTHONPATH=":".join(sys.path), PATH=""),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file = Path(done.stdout.strip())
    assert file.read_bytes() == (tmp_path / "eva_vit_g.pth").read_bytes()
    assert [path.name for path in file.parent.iterdir()] == ["eva_vit_g.pth"]
    assert not getattr(hub, fault)


def test_an_address_has_a_place_of_its_own_and_keeps_its_secrets(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "cache", lambda: tmp_path / "c")
    hub.publish("lab/a", {"w.bin": b"a" * 3000})
    hub.publish("lab/b", {"w.bin": b"b" * 4000})
    urls = [f"{hub.url}/lab/{name}/resolve/main/w.bin" for name in ("a", "b")]
    assert [downloads.sizes(url) for url in urls] == [(3000, 3000), (4000, 4000)]
    first, second = map(downloads.downloaded, urls)
    assert (first.stat().st_size, second.stat().st_size) == (3000, 4000)
    assert downloads.sizes(urls[0]) == (3000, 0)
    planted = f"{hub.url}/lab/none/resolve/main/w.bin?X-Amz-Signature=planted{'x' * 300}"
    with pytest.raises(UserError) as refused:
        downloads.downloaded(planted)
    assert "planted" not in str(refused.value)
    assert len(list((tmp_path / "c").rglob("*.bin"))) == 2
    with pytest.raises(UserError, match="names no file"):
        downloads.downloaded(f"{hub.url}/")


def test_two_at_once_do_not_make_one_output(tmp_path: Path) -> None:
    with _made_aside(tmp_path / "ours") as aside:
        (aside / "config.json").write_text("{}")
        with (
            pytest.raises(UserError, match="is being written by another process"),
            _made_aside(tmp_path / "ours"),
        ):
            pass
    assert (tmp_path / "ours" / "config.json").exists()


def test_of_torchs_files_and_safetensors_of_the_same_those_come_that_are_read(
    hub: FakeHub, tmp_path: Path
) -> None:
    shards = {f"pytorch_model-0000{k}-of-00002.bin": b"x" for k in (1, 2)}
    index = json.dumps({"weight_map": {"a": min(shards), "b": max(shards)}}).encode()
    hub.publish(
        "lab/both",
        {"config.json": b"{}", "model.safetensors": b"x", "pytorch_model.bin.index.json": index}
        | shards,
    )
    program = (
        "import sys; from emolake.pipeline.models.convert import weight_files_of\n"
        "from emolake.pipeline.storage.hub import fetched\n"
        "print([p.name for p in weight_files_of(fetched('lab/both', 'published'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env(hub, tmp_path / "cache", PYTHONPATH=":".join(sys.path), PATH=""),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['model.safetensors']", done.stderr
    assert not any(name in hub.given for name in shards)


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
        (("emot5-large", "--accept-licence", "--base", "x"), "leave --base out"),
        (("emot5-large", "--accept-licence", "--output", "x"), "leave --output out"),
        (
            ("emot5-large", "--accept-licence", "--source", "https://h/x.pth"),
            "a folder or org/name",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(arguments, line: str, capsys, monkeypatch) -> None:
    monkeypatch.chdir("/")
    assert main(["models", "get", *arguments]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.strip().splitlines()) == 1
