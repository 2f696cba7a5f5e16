"""A model's folder: from the hub, from a URL that serves its files, or one that is here already."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from megatron_empg.prepare.download import FileToFetch
from megatron_empg.prepare.errors import PrepareError, SourceUnavailable
from megatron_empg.prepare.fetching import FolderFetcher, Origin, of_hub
from megatron_empg.prepare.places import HubPlace, UrlPlace, read_place, safe_name
from megatron_empg.weights.mapping.known_models import known_by_id

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_USED = re.compile(r"[^/]+\.(safetensors|json|jinja|model|txt)|LICENSE[^/]*|NOTICE[^/]*")
_NOT_USED = re.compile(r"consolidated.*|pytorch_model.*|.*\.bin\.index\.json")
"""The same weights in other forms."""
_ALWAYS = ("config.json", "tokenizer.json", "tokenizer_config.json")
_PERHAPS = ("generation_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja")


@dataclass(frozen=True)
class ModelFolder:
    """Where a model lies: below the preparation's folder, or anywhere where the user named a folder."""

    name: str
    path: str
    origin: str
    files: tuple[str, ...] = ()


def name_of(text: str) -> str:
    """What the model is called: the name that a recipe's model.path ends with. Raises PrepareError."""
    if is_folder(text):
        return Path(text).resolve().name
    place = read_place(text)
    if isinstance(place, HubPlace):
        return place.repository.partition("/")[2]
    if urlsplit(place.url).query:
        raise PrepareError(
            f"--model {place}: a URL of a model's folder has no query: its files' names go behind it"
        )
    return safe_name(str(place).rstrip("/").rpartition("/")[2] or "model")


def is_folder(text: str) -> bool:
    """Whether a model folder of this machine is meant."""
    return text.startswith(("/", ".", "~")) or Path(text).expanduser().is_dir()


def require_model(text: str) -> None:
    """What can be told of a model before anything is fetched or asked. Raises PrepareError."""
    if not text.strip():
        raise PrepareError("the model is named by an empty text: give OWNER/NAME of the hub, a URL or a folder")
    if is_folder(text):
        _own_folder(Path(text).expanduser().resolve())
        return
    name_of(text)
    place = read_place(text)
    if isinstance(place, HubPlace) and place.file is not None:
        raise PrepareError(f"the model {text!r} names a file: give hub:OWNER/NAME[@REVISION] alone")


def expected_bytes(text: str) -> int:
    """Bytes to fetch, as far as they are known before anything is asked; 0 where they are not."""
    if is_folder(text):
        return 0
    place = read_place(text)
    known = None
    if isinstance(place, HubPlace):
        known = known_by_id(place.repository)
    if known is None:
        return 0
    return known.weight_bytes


def fetch_model(text: str, fetching: FolderFetcher, before: ModelFolder | None) -> ModelFolder:
    """Fetch the model, or check the one that is here. `before`: of an earlier run. Raises PrepareError."""
    if is_folder(text):
        return _own_folder(Path(text).expanduser().resolve())
    name, place = name_of(text), read_place(text)
    folder = f"model/{name}"
    if before is not None and before.files and _is_whole(before, place.key, fetching):
        return before
    if isinstance(place, HubPlace):
        origins, origin = _of_hub(place, folder, fetching)
    else:
        origins, origin = _of_url(place, folder, fetching, before)
    fetching.each([partial(fetching.bring, file, origin) for file, origin in origins.items()])
    return ModelFolder(name, folder, origin, tuple(sorted(origins)))


def _own_folder(folder: Path) -> ModelFolder:
    if not folder.is_dir():
        raise PrepareError(f"there is no model folder {folder}")
    if not (folder / "config.json").is_file():
        raise PrepareError(f"{folder} is not a model folder: it has no config.json")
    return ModelFolder(folder.name, str(folder), "a folder of this machine")


def _is_whole(before: ModelFolder, place: str, fetching: FolderFetcher) -> bool:
    checks = [partial(fetching.is_sound, name, place) for name in before.files]
    return all(fetching.each(checks))


def _of_hub(place: HubPlace, folder: str, fetching: FolderFetcher) -> tuple[dict[str, Origin], str]:
    """What to fetch of a repository, by name: weights in safetensors, configuration, tokenizer, licence."""
    commit, files = fetching.listing(place, "model")
    used = [file for file in files if _USED.fullmatch(file.name) and not _NOT_USED.fullmatch(file.name)]
    if not any(file.name.endswith(".safetensors") for file in used):
        raise PrepareError(f"{place.repository} has no safetensors at commit {commit}; choose another model")
    origin = str(HubPlace(place.repository, commit))
    found = {}
    for file in used:
        name = f"{folder}/{file.name}"
        found[name] = Origin(of_hub(file, fetching.root / name), place.key, origin, "hub")
    return found, origin


def _of_url(
    place: UrlPlace, folder: str, fetching: FolderFetcher, before: ModelFolder | None
) -> tuple[dict[str, Origin], str]:
    """The same of a folder that a server offers. What its index names are its weights.

    Files are held to their first fetch, and the folder to those it had then: two versions never mix.
    """
    base = place.url.rstrip("/")

    def origin_of(file: str) -> tuple[str, Origin]:
        name = f"{folder}/{safe_name(file)}"
        checksum, if_changed = fetching.first_fetched(name, place.key)
        wanted = FileToFetch(f"{base}/{file}", fetching.root / name, checksum=checksum, if_changed=if_changed)
        return name, Origin(wanted, place.key, str(place), "first fetch")

    if before is not None and before.files and before.origin == str(place):
        files = [name.removeprefix(f"{folder}/") for name in before.files]
        return dict(origin_of(file) for file in files), str(place)
    found = dict(origin_of(file) for file in _ALWAYS)
    for file in (INDEX, *_PERHAPS):
        name, origin = origin_of(file)
        try:
            fetching.bring(name, origin)
        except SourceUnavailable:
            continue
        found[name] = origin
    index = fetching.root / folder / INDEX
    if index.is_file():
        weights = _named_by(index)
    else:
        weights = [SINGLE]
    return found | dict(origin_of(file) for file in weights), str(place)


def _named_by(index: Path) -> list[str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({safe_name(str(name)) for name in found})
    except (ValueError, KeyError, AttributeError, TypeError):
        raise PrepareError(f"{index} names no files of weights; is the URL that of a model's folder?") from None
