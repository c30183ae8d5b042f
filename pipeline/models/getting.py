"""Published systems onto this machine: room is made sure of, parts are fetched, and converted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emolake.pipeline.errors import UserError
from emolake.pipeline.models.catalog import place_of
from emolake.pipeline.models.convert import Sources, check_output, convert, weight_files_of
from emolake.pipeline.models.systems import PARTS, System
from emolake.pipeline.storage import downloads, hub
from emolake.pipeline.storage.hub import Part, room


@dataclass(frozen=True)
class _Lying:
    """A part of a system where it was published, or on this machine."""

    place: str
    part: Part

    def sizes(self) -> tuple[int, int, Path]:
        """Bytes of its weights, how many have to come, and where to. UserError where it is nowhere."""
        if downloads.is_address(self.place):
            return (*downloads.sizes(self.place), downloads.cache())
        path = Path(self.place).expanduser()
        if not path.exists() and hub.is_hub_name(self.place):
            return (*hub.sizes(self.place, self.part), hub.cache())
        if not path.exists():
            raise UserError(f"{self.place} is neither a file or folder here nor a hub's name")
        files: list[Path] = []
        with suppress(UserError):  # the conversion says what is missing
            files = weight_files_of(path)
        return sum(file.stat().st_size for file in files if file.exists()), 0, path

    def bring(self) -> Path:
        if downloads.is_address(self.place):
            return downloads.downloaded(self.place)
        return place_of(self.place, self.part)


def get(name: str, found: System, output: Path) -> Path:
    """Fetches the parts, converts them to a model folder where they need it, and returns that folder, or the
    hub's in the cache. UserError where they do not fit on the disk, before any comes."""
    assert found.source is not None
    if found.family is None:
        if downloads.is_address(found.source):
            raise UserError(f"models get {name}: --source takes a folder or org/name, no address")
        return place_of(found.source, "model")
    check_output(output)
    parts = {
        option: _Lying(place, "tokenizer" if option == "question_tokenizer" else "published")
        for option in PARTS
        if (place := getattr(found, option)) is not None
    }
    _make_room(name, list(parts.values()), output)
    places = {option: part.bring() for option, part in parts.items()}
    sources = Sources(places["source"], *(places.get(option) for option in PARTS[1:]))
    convert(found.family, sources, output, name, found.licence)
    return output


def _make_room(name: str, parts: list[_Lying], output: Path) -> None:
    told = [part.sizes() for part in parts]
    wanted = Counter[int]()
    at: dict[int, tuple[int, Path]] = {}
    for size, place in [(sum(whole for whole, _, _ in told), output), *(t[1:] for t in told)]:
        free, folder = room(place)
        device = folder.stat().st_dev
        wanted[device] += size
        at.setdefault(device, (free, folder))
    for device, size in wanted.items():
        free, folder = at[device]
        if size > free:
            raise UserError(
                f"models get {name} takes {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB left; "
                "HF_HOME and --output name other places"
            )
