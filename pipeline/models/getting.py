"""Published systems onto this machine: room is made sure of, parts are fetched, and converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.catalog import place_of
from emolake.pipeline.models.convert import Sources, convert
from emolake.pipeline.models.systems import PARTS, System
from emolake.pipeline.storage import downloads, hub
from emolake.pipeline.storage.downloads import is_address
from emolake.pipeline.storage.hub import Part, room


@dataclass(frozen=True)
class _Lying:
    """A part of a system where it was published, or on this machine."""

    place: str
    part: Part

    def sizes(self) -> tuple[int, int]:
        """Bytes that it has, and how many of them have to come."""
        if is_address(self.place):
            return downloads.sizes(self.place)
        path = Path(self.place).expanduser()
        if not path.exists() and hub.is_hub_name(self.place):
            return hub.sizes(self.place, self.part)
        if not path.exists():
            raise UserError(f"{self.place} is neither a file or folder here nor a hub's name")
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file()), 0

    def bring(self) -> Path:
        if is_address(self.place):
            return downloads.downloaded(self.place)
        return place_of(self.place, self.part)


def get(name: str, found: System, output: Path) -> Path:
    """Fetches the parts, converts them to a model folder where they need it, and returns that folder, or the
    hub's in the cache. UserError where they do not fit on the disk, before any comes."""
    assert found.source is not None
    if found.family is None:
        return place_of(found.source, "model")
    if output.exists():
        raise UserError(f"--output {output} is there already; name a new folder")
    parts = {
        option: _Lying(place, "tokenizer" if option == "question_tokenizer" else "published")
        for option in PARTS
        if (place := getattr(found, option)) is not None
    }
    _make_room(name, list(parts.values()), output)
    places = {option: part.bring() for option, part in parts.items()}
    sources = Sources(places["source"], *(places.get(option) for option in PARTS[1:]))
    convert(found.family, sources, output)
    return output


def _make_room(name: str, parts: list[_Lying], output: Path) -> None:
    told = [part.sizes() for part in parts]
    made, missing = sum(whole for whole, _ in told), sum(left for _, left in told)
    cache, at = room(downloads.cache_folder())
    own, there = room(output)
    same = at.stat().st_dev == there.stat().st_dev
    for size, free, place in (
        [(made + missing, own, there)] if same else [(missing, cache, at), (made, own, there)]
    ):
        if size > free:
            raise UserError(
                f"models get {name} takes {size / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB left; "
                "HF_HOME and --output name other places"
            )
