"""`slurm/prepare.sh webshop` and `scienceworld`: files from whichever place has them, a catalogue, an engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_empg.environments.scienceworld import java_installation
from megatron_empg.environments.webshop.settings import WebShopSettings
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import SCIENCEWORLD, WEBSHOP, PreparedFolder, read_prepared
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparations import preparation
from megatron_empg.prepare.run import run
from megatron_empg.prepare.sources import FOLDER, read_sources
from megatron_empg.prepare.webshop import FilesPart, WebShopSources
from tests.support.file_server import FileServer, file_server

PRODUCTS = b'[{"asin": "B000000001"}]' * 20
ATTRIBUTES = b'{"B000000001": {"attributes": ["soft"]}}'
INSTRUCTIONS = b'{"B000000001": [{"instruction": "find it"}]}'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        found.put("model", "Own/Tiny", {"config.json": b"{}", "model.safetensors": b"w" * 1000})
        found.put("dataset", "own/shop", {"items.json": PRODUCTS, "human.json": INSTRUCTIONS})
        found.files["/drive"] = ATTRIBUTES
        yield found


def content_of(server: FileServer) -> dict[str, Any]:
    attributes = {"place": f"{server.url}/drive?id=1&confirm=t", "name": "ins.json"}
    attributes |= {"bytes": len(ATTRIBUTES), "sha256": hashlib.sha256(ATTRIBUTES).hexdigest()}
    files = {
        "products": [{"place": "hub:own/gone:items.json"}, {"place": "hub:own/shop:items.json"}],
        "attributes": [attributes],
        "instructions": [{"place": "hub:own/shop:human.json"}],
    }
    return {"model": "hub:Own/Tiny", "files": files}


def sources_of(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def prepared(
    sources: Path | None, folder: Path, *only: str, of: str = WEBSHOP, **options: Any
) -> tuple[PreparedFolder, str]:
    said: list[str] = []
    found = run(preparation(of, sources), PreparationOptions(folder, only=only, **options), said.append)
    return found, "\n".join(said)


def test_products_come_from_the_first_place_that_has_them(server: FileServer, tmp_path: Path) -> None:
    found, said = prepared(sources_of(content_of(server), tmp_path), tmp_path / "data")
    assert read_prepared(tmp_path / "data", WEBSHOP) == found
    assert found.missing() == []
    contents = {name: (tmp_path / "data" / file.path).read_bytes() for name, file in found.files.items()}
    assert contents == {"products": PRODUCTS, "attributes": ATTRIBUTES, "instructions": INSTRUCTIONS}
    checked = {name: file.checked for name, file in found.files.items()}
    assert checked == {"products": "hub", "attributes": "published", "instructions": "hub"}
    assert "not to be had: " in said, "the first place has them no more"
    server.requests.clear()
    assert prepared(sources_of(content_of(server), tmp_path), tmp_path / "data")[0].files == found.files
    assert server.requests == []


def test_a_page_that_asks_to_sign_in_is_no_file(server: FileServer, tmp_path: Path) -> None:
    """As a file host answers where a file is large or was asked for too often."""
    content = content_of(server)
    content["files"]["attributes"][0].pop("sha256")
    content["files"]["attributes"][0].pop("bytes")
    server.types["/drive"] = "text/html; charset=utf-8"
    with pytest.raises(PrepareError, match="answers with a web page instead of the file"):
        prepared(sources_of(content, tmp_path), tmp_path / "data", "data")
    content["files"]["attributes"].append({"place": "hub:own/shop:ins.json"})
    server.put("dataset", "own/shop", {"items.json": PRODUCTS, "human.json": b"{}", "ins.json": ATTRIBUTES})
    assert (
        prepared(sources_of(content, tmp_path), tmp_path / "data", "data")[0].files["attributes"].checked == "hub"
    )


@pytest.mark.parametrize(
    ("known", "said"), [({"bytes": 7}, "must have 7"), ({"sha256": "0" * 64}, "must be 0000")]
)
def test_products_of_another_size_or_content_are_refused(
    server: FileServer, tmp_path: Path, known: dict[str, Any], said: str
) -> None:
    content = content_of(server)
    content["files"]["attributes"][0].update(known)
    with pytest.raises(PrepareError, match=said):
        prepared(sources_of(content, tmp_path), tmp_path / "data", "data")
    assert read_prepared(tmp_path / "data", WEBSHOP) is None


def test_a_generated_catalogue_needs_neither_network_nor_disk(server: FileServer, tmp_path: Path) -> None:
    found, said = prepared(None, tmp_path / "data", "data", generated=1500)
    assert server.requests == []
    assert found.catalogue is not None
    settings = WebShopSettings(generated_products=found.catalogue.products, generated_seed=found.catalogue.seed)
    assert "generated catalogue" in settings.measured_as
    assert "WebShop engine, generated catalogue: 1500 products of seed 0; no score of WebShop's" in said
    assert found.missing() == ["model"]
    with pytest.raises(PrepareError, match="--generated 3: Input should be greater than or equal to 150"):
        prepared(None, tmp_path / "data", "data", generated=3)


def test_real_products_take_the_place_of_a_generated_catalogue_and_back(
    server: FileServer, tmp_path: Path
) -> None:
    sources = sources_of(content_of(server), tmp_path)
    prepared(sources, tmp_path / "data", "data", generated=200)
    real, _ = prepared(sources, tmp_path / "data", "data")
    assert (real.catalogue, sorted(real.files)) == (None, ["attributes", "instructions", "products"])
    again, _ = prepared(sources, tmp_path / "data", "data", generated=200)
    assert (again.catalogue is not None, again.files) == (True, {})


@pytest.mark.parametrize(
    ("shipped", "size"),
    [("webshop_sources.yaml", 5_479_720_229 + 186_295_270 + 5_137_548),
     ("webshop_small_sources.yaml", 4_467_013 + 147_099 + 5_137_548)],
)  # fmt: skip
def test_the_shipped_places_of_a_file_agree_on_its_size_and_checksum(shipped: str, size: int) -> None:
    sources = read_sources(FOLDER / shipped, WebShopSources)
    assert sum(places[0].estimate for places in sources.files.values()) == size
    for places in sources.files.values():
        assert len(places) == 3
        assert len({(place.bytes, place.sha256, place.called()) for place in places}) == 1


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"products": [{"place": "hub:a/b:x.json"}]}, "attributes or instructions"),
        ({"attributes": [{"place": "hub:a/b:x.json"}]}, "must have products"),
        ({"products": []}, r"files\.products"),
        ({"goods": [{"place": "hub:a/b:x.json"}]}, r"files\.goods"),
        (
            {"products": [{"place": "hub:a/b:x.json"}], "attributes": [{"place": "hub:a/c:x.json"}]},
            "both be called",
        ),
    ],
)
def test_files_that_cannot_be_are_named(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(PrepareError, match=said):
        preparation(WEBSHOP, sources_of({"model": "a/b", "files": files}, tmp_path))


# --- ScienceWorld ----------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has a `java` and the packages; what it calls itself can be changed."""
    java = tmp_path / "jdk/bin/java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"17.0.15\" 2025-04-15' >&2\n", encoding="utf-8")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(java_installation, "engine_jar", lambda: Path("scienceworld.jar"))
    return java


def test_scienceworld_is_a_model_and_a_look_at_the_engine(
    server: FileServer, tmp_path: Path, engine: Path
) -> None:
    sources = sources_of({"model": "hub:Own/Tiny"}, tmp_path)
    found, said = prepared(sources, tmp_path / "data", of=SCIENCEWORLD)
    assert found.missing() == []
    assert found.engine is not None
    assert (found.engine.java, list(found.models)) == ("17.0.15", ["Tiny"])
    assert "the nodes that roll out need both too" in said


def test_without_java_it_is_said_before_anything_is_fetched(
    server: FileServer, tmp_path: Path, engine: Path
) -> None:
    engine.unlink()
    sources = sources_of({"model": "hub:Own/Tiny"}, tmp_path)
    with pytest.raises(PrepareError, match=r"needs Java 8 or newer .*; `--only model` prepares the rest"):
        prepared(sources, tmp_path / "data", of=SCIENCEWORLD)
    assert server.requests == []
    _, said = prepared(sources, tmp_path / "data", of=SCIENCEWORLD, dry_run=True)
    assert "fix this first: scienceworld needs Java" in said
    assert prepared(sources, tmp_path / "data", "model", of=SCIENCEWORLD)[0].missing() == ["engine"]


def test_a_folder_of_another_preparation_is_refused(server: FileServer, tmp_path: Path, engine: Path) -> None:
    prepared(None, tmp_path / "data", "data", generated=200)
    with pytest.raises(PrepareError, match="of the preparation 'webshop', not of 'scienceworld'"):
        prepared(None, tmp_path / "data", of=SCIENCEWORLD)


def test_what_another_preparation_noted_meanwhile_is_kept(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one runs to its end after this one has looked at the folder, and before it has it to itself."""
    sources, folder = sources_of(content_of(server), tmp_path), tmp_path / "data"
    require = FilesPart.require

    def after_another(part: FilesPart) -> None:
        monkeypatch.setattr(FilesPart, "require", require)
        prepared(sources, folder, "model")

    monkeypatch.setattr(FilesPart, "require", after_another)
    found, _ = prepared(sources, folder, "data")
    assert FilesPart.require is require, "the other one has run"
    assert found.missing() == []
    assert read_prepared(folder, WEBSHOP) == found
