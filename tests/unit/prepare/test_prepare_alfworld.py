"""`slurm/prepare.sh alfworld`: games fetched from a local server, unpacked, indexed, whatever breaks meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_empg.environments.alfworld.manifest import Game, GamesManifest, read_manifest, write_manifest
from megatron_empg.environments.alfworld.transcript import TRANSCRIPT_FILE
from megatron_empg.prepare import alfworld_games
from megatron_empg.prepare.alfworld import AlfWorldSources
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import ALFWORLD, PreparedFolder, read_prepared
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparations import preparation
from megatron_empg.prepare.run import run
from megatron_empg.prepare.sources import FOLDER, read_sources
from tests.support.archives import zipped
from tests.support.file_server import FileServer, file_server
from tests.unit.prepare.alfworld_archives import FACTS, GAME, facts, games, places

ROOT = Path(__file__).parents[3]
GAMES = 5
FACTS_ZIP, GAMES_ZIP = "/0.2.2/facts.zip", "/0.4.0/games.zip"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with file_server() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("ALFWORLD_DATA", raising=False)
        found.files |= {FACTS_ZIP: zipped(facts(GAMES)), GAMES_ZIP: zipped(games(GAMES))}
        found.put("model", "Own/Tiny", {"config.json": b"{}", "model.safetensors": b"w" * 1000})
        yield found


def sources_of(server: FileServer, folder: Path, **known: Any) -> Path:
    """`known`: what is said besides of the archive of games."""
    content = {
        "model": "hub:Own/Tiny",
        "archives": [
            {"holds": FACTS, "from": [{"place": f"{server.url}{FACTS_ZIP}"}]},
            {"holds": GAME, "from": [{"place": f"{server.url}{GAMES_ZIP}"} | known]},
        ],
        "games": {"about_bytes": 3_000_000_000, "hours": 0.5},
    }
    path = folder / "sources.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def prepared(server: FileServer, tmp_path: Path, *only: str, **options: Any) -> tuple[PreparedFolder, str]:
    said: list[str] = []
    options = PreparationOptions(tmp_path / "data", only=only, **options)
    found = run(preparation(ALFWORLD, sources_of(server, tmp_path)), options, said.append)
    return found, "\n".join(said)


def command(server: FileServer, tmp_path: Path, *words: str) -> list[str]:
    sources = ["--sources", str(sources_of(server, tmp_path))]
    return ["bash", "slurm/prepare.sh", "alfworld", str(tmp_path / "data"), *sources, *words]


def ended(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"EMPG_PYTHON": sys.executable}
    return subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False)


def killed_once(words: Sequence[str], is_time: Any) -> None:
    """Start the command, and kill it and all that it started as soon as it is time."""
    variables = os.environ | {"EMPG_PYTHON": sys.executable}
    first = subprocess.Popen(words, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not is_time():
        assert time.monotonic() < deadline, "it did not get so far"
        assert first.poll() is None, "it ended before it was killed"
        time.sleep(0.002)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()


def assert_all_games(folder: Path, count: int) -> None:
    manifest = read_manifest(folder / "games")
    assert not manifest.generated
    found = {split: [game.id for game in games] for split, games in manifest.games.items()}
    names = places(count)
    assert found == {"train": sorted(names[:-2]), "test_id": names[-2:-1], "test_ood": names[-1:]}
    assert not list(folder.rglob("*.part*"))


# --- published games -------------------------------------------------------------------------------------------


def test_model_archives_and_games_are_prepared_and_written_down(server: FileServer, tmp_path: Path) -> None:
    found, said = prepared(server, tmp_path)
    folder = tmp_path / "data"
    assert read_prepared(folder, ALFWORLD) == found
    assert found.missing() == []
    assert list(found.models) == ["Tiny"]
    assert_all_games(folder, GAMES)
    assert found.games is not None
    assert found.games.counts == {"train": GAMES, "test_id": 1, "test_ood": 1}
    manifest = (folder / "games/manifest.json").read_bytes()
    assert found.games.manifest == hashlib.sha256(manifest).hexdigest()
    assert found.files[GAME].path == "archives/games.zip"
    assert not list((folder / "games").rglob("*valid_train*")), "what no one reads is not unpacked"
    assert "ALFWorld games: train 5, test_id 1, test_ood 1" in said


def test_a_second_run_asks_nobody_and_writes_no_game(server: FileServer, tmp_path: Path) -> None:
    first, _ = prepared(server, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data/games").rglob("*")}
    server.requests.clear()
    second, _ = prepared(server, tmp_path)
    assert server.requests == []
    assert second.games == first.games
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data/games").rglob("*")} == before


def test_a_damaged_game_is_mended_from_its_archive_without_a_network(server: FileServer, tmp_path: Path) -> None:
    first, _ = prepared(server, tmp_path)
    victim = tmp_path / "data/games/json_2.1.1" / places(GAMES)[0] / GAME
    sound = victim.read_bytes()
    victim.write_bytes(b"!" + sound[1:])
    server.requests.clear()
    second, _ = prepared(server, tmp_path, "games")
    assert victim.read_bytes() == sound
    assert (second.games, server.requests) == (first.games, [])


def test_a_lost_manifest_is_written_again(server: FileServer, tmp_path: Path) -> None:
    first, _ = prepared(server, tmp_path)
    (tmp_path / "data/games/manifest.json").unlink()
    assert prepared(server, tmp_path, "games")[0].games == first.games


def test_games_of_other_archives_replace_those_that_are_there(server: FileServer, tmp_path: Path) -> None:
    prepared(server, tmp_path)
    server.files |= {"/new.zip": zipped(games(2)), "/new_facts.zip": zipped(facts(2))}
    path = sources_of(server, tmp_path)
    text = path.read_text(encoding="utf-8").replace(GAMES_ZIP, "/new.zip").replace(FACTS_ZIP, "/new_facts.zip")
    path.write_text(text, encoding="utf-8")
    said: list[str] = []
    run(preparation(ALFWORLD, path), PreparationOptions(tmp_path / "data", only=("data", "games")), said.append)
    assert "those of other archives" in "\n".join(said)
    assert_all_games(tmp_path / "data", 2)


def test_games_without_archives_are_refused(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="--only data"):
        prepared(server, tmp_path, "games")
    assert prepared(server, tmp_path, "data")[0].missing() == ["model", "games"]


def test_after_a_kill_amid_a_download_the_same_command_goes_on(server: FileServer, tmp_path: Path) -> None:
    padded = zipped(facts(3, padding=0) | {"json_2.1.1/train/noise.bin": os.urandom(200_000)})
    server.files[FACTS_ZIP] = padded
    server.slow = 0.01
    words = command(server, tmp_path, "--only", "data", "--only", "games")
    part = tmp_path / "data/archives/facts.zip.part"
    killed_once(words, lambda: part.exists() and part.stat().st_size > 0)
    server.slow = 0.0
    server.requests.clear()
    done = ended(words)
    assert done.returncode == 0, done.stderr
    assert server.asked(FACTS_ZIP)[0]["range"].startswith("bytes=")
    assert (tmp_path / "data/archives/facts.zip").read_bytes() == padded


def test_after_a_kill_amid_the_unpacking_the_same_command_goes_on(server: FileServer, tmp_path: Path) -> None:
    many = 600
    server.files |= {FACTS_ZIP: zipped(facts(many, padding=20_000)), GAMES_ZIP: zipped(games(many))}
    words = command(server, tmp_path, "--only", "data", "--only", "games")
    folder = tmp_path / "data/games/json_2.1.1/train"
    killed_once(words, lambda: folder.is_dir() and len(os.listdir(folder)) > 20)
    assert len(list(folder.rglob(FACTS))) < many, "it was killed in the middle"
    assert not (tmp_path / "data/games/manifest.json").exists()
    server.requests.clear()
    done = ended(words)
    assert done.returncode == 0, done.stderr
    assert server.requests == [], "the archives were there already"
    assert_all_games(tmp_path / "data", many)


def test_an_archive_of_another_size_or_content_is_refused(server: FileServer, tmp_path: Path) -> None:
    for known, said in (({"bytes": 7}, "must have 7"), ({"sha256": "0" * 64}, "must be 0000")):
        sources = sources_of(server, tmp_path, **known)
        with pytest.raises(PrepareError, match=said):
            run(
                preparation(ALFWORLD, sources),
                PreparationOptions(tmp_path / "data", only=("data",)),
                lambda text: None,
            )
    assert not list((tmp_path / "data").rglob("games.zip*"))


def test_an_archive_that_would_write_elsewhere_is_refused_and_nothing_is_unpacked(
    server: FileServer, tmp_path: Path
) -> None:
    server.files[FACTS_ZIP] = zipped(facts(GAMES) | {f"json_2.1.1/train/../../../../{FACTS}": b"{}"})
    with pytest.raises(PrepareError, match=r"facts\.zip is refused: the file name"):
        prepared(server, tmp_path, "data", "games")
    assert not list(tmp_path.rglob(FACTS))


def test_archives_in_which_no_game_can_be_played_are_named(server: FileServer, tmp_path: Path) -> None:
    unsolvable = {name: b'{"solvable": false}' for name in games(GAMES)}
    server.files[GAMES_ZIP] = zipped(unsolvable)
    with pytest.raises(PrepareError, match=r"the games cannot be indexed: .*no game for training"):
        prepared(server, tmp_path, "data", "games")
    assert read_prepared(tmp_path / "data", ALFWORLD).missing() == ["model", "games"]  # type: ignore[union-attr]


def test_a_disk_that_runs_full_is_named_and_the_next_run_goes_on(server: FileServer, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses to write on, in the middle."""
    server.files[FACTS_ZIP] = zipped(facts(2, padding=400_000))
    words = command(server, tmp_path, "--only", "data", "--only", "games")
    done = ended(["bash", "-c", 'ulimit -f 100; exec "$@"', "limited", *words])
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{FACTS} was written" in done.stderr
    assert "files may not grow so large" in done.stderr
    assert "Traceback" not in done.stderr
    done = ended(words)
    assert done.returncode == 0, done.stderr
    assert "but for: model" in done.stdout


def test_a_dry_run_says_what_it_costs_and_asks_nobody(server: FileServer, tmp_path: Path) -> None:
    _, said = prepared(server, tmp_path, dry_run=True)
    assert server.requests == []
    assert not (tmp_path / "data").exists()
    assert "games        0.0 GB     3.0 GB     0.5" in said
    assert "what the games take is an estimate" in said


def test_the_shipped_archives_are_those_of_alfworlds_own_download_script() -> None:
    shipped = read_sources(FOLDER / "alfworld_sources.yaml", AlfWorldSources)
    found = {archive.holds: archive.places[0] for archive in shipped.archives}
    assert found["traj_data.json"].place.endswith("/0.2.2/json_2.1.1_json.zip")
    assert found["game.tw-pddl"].place.endswith("/0.4.0/json_2.1.2_tw-pddl.zip")
    assert sum(place.estimate for place in found.values()) == 72_018_818 + 36_493_542
    assert shipped.model.endswith("Qwen2.5-1.5B-Instruct")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw["archives"].pop(), "archives must be one that holds"),
        (lambda raw: raw["archives"][1].update(holds="all"), r"archives\.1\.holds"),
        (lambda raw: raw["archives"][1].update({"from": []}), r"archives\.1\.from"),
        (lambda raw: raw["archives"][1]["from"][0].update(name="facts.zip"), "both archives would be called"),
    ],
)
def test_sources_that_cannot_be_are_named(server: FileServer, tmp_path: Path, change: Any, said: str) -> None:
    path = sources_of(server, tmp_path)
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(PrepareError, match=said):
        preparation(ALFWORLD, path)


# --- generated games -------------------------------------------------------------------------------------------


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands for the engine that makes games: the words of each call."""
    calls: list[list[str]] = []

    def make(python: str, module: str, words: Sequence[str]) -> None:
        calls.append(list(words))
        options = dict(zip(words[1::2], words[2::2], strict=True))
        _make_games(Path(words[0]), int(options["--train"]), int(options["--test-id"]))

    monkeypatch.setattr(alfworld_games, "_run_module", make)
    monkeypatch.setattr(alfworld_games, "_engine_python", lambda named: "python-with-alfworld")
    return calls


def _make_games(folder: Path, train: int, others: int) -> None:
    made: dict[Any, tuple[Game, ...]] = {}
    for split, name, count in (("train", "train", train), ("test_id", "valid_seen", others),
                               ("test_ood", "valid_unseen", others)):  # fmt: skip
        found = []
        for number in range(count):
            place = folder / "json_2.1.1" / name / f"kind-{number}" / "trial_generated"
            content = json.dumps({"of": f"{name} {number}"}).encode()
            if not place.exists():
                place.mkdir(parents=True)
                (place / GAME).write_bytes(content)
                (place / FACTS).write_text("{}", encoding="utf-8")
                (place / TRANSCRIPT_FILE).write_bytes(b"turns")
            sha256 = hashlib.sha256((place / GAME).read_bytes()).hexdigest()
            found.append(Game(f"{name}/kind-{number}/trial_generated", places(0)[0].split("/")[1].split("-")[0],
                              "put it", sha256, hashlib.sha256(b"turns").hexdigest()))  # fmt: skip
        made[split] = tuple(found)
    write_manifest(folder, GamesManifest(True, made, 0))


def test_generated_games_need_no_network_and_are_named_so(
    server: FileServer, tmp_path: Path, generator: list[list[str]]
) -> None:
    found, said = prepared(server, tmp_path, "games", generated=36)
    assert server.requests == []
    assert found.games is not None
    assert (found.games.generated, found.games.counts["train"], found.games.counts["test_ood"]) == (36, 36, 36)
    assert "ALFWorld engine, locally generated games: train 36, test_id 36, test_ood 36" in said
    assert found.missing() == ["model"], "published archives are not wanted"
    prepared(server, tmp_path, "games", generated=36)
    assert len(generator) == 1, "they are made once"


@pytest.mark.parametrize("file", [GAME, TRANSCRIPT_FILE])
def test_a_generated_game_that_is_damaged_is_made_again(
    server: FileServer, tmp_path: Path, generator: list[list[str]], file: str
) -> None:
    first, _ = prepared(server, tmp_path, "games", generated=6)
    victim = tmp_path / "data/generated_games/json_2.1.1/train/kind-1/trial_generated" / file
    victim.write_bytes(b"{}")
    second, said = prepared(server, tmp_path, "games", generated=6)
    assert "train/kind-1/trial_generated is damaged and made again" in said
    assert (second.games, len(generator)) == (first.games, 2)


def test_more_generated_games_are_made_where_more_are_asked_for(
    server: FileServer, tmp_path: Path, generator: list[list[str]]
) -> None:
    prepared(server, tmp_path, "games", generated=6)
    found, _ = prepared(server, tmp_path, "games", generated=60)
    assert found.games is not None
    assert (found.games.counts["train"], found.games.counts["test_id"], len(generator)) == (60, 60, 2)


def test_published_and_generated_games_lie_apart_and_a_job_gets_those_that_were_asked_for_last(
    server: FileServer, tmp_path: Path, generator: list[list[str]]
) -> None:
    made, _ = prepared(server, tmp_path, "games", generated=6)
    found, _ = prepared(server, tmp_path, "data", "games")
    again, _ = prepared(server, tmp_path, "games", generated=6)
    assert [games.path for games in (made.games, found.games, again.games) if games is not None] == [
        "generated_games", "games", "generated_games",
    ]  # fmt: skip
    assert again.games == made.games
    assert_all_games(tmp_path / "data", GAMES)
    assert read_manifest(tmp_path / "data/generated_games").generated


@pytest.mark.parametrize(("training", "others"), [(6, 6), (360, 128), (3600, 600)])
def test_each_test_split_gets_the_games_that_the_recipes_evaluate(training: int, others: int) -> None:
    counts = alfworld_games.GeneratedGames(training, None).counts
    assert counts == {"--train": training, "--test-id": others, "--test-ood": others}


def test_the_engines_python_finds_this_package_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So do the processes that it starts: they have its variables."""
    told = tmp_path / "told"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nls "$PYTHONPATH" > "{told}"; echo "$@" >> "{told}"\n', encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    alfworld_games._run_module(str(python), "a.module", ["word"])
    assert told.read_text(encoding="utf-8") == "megatron_empg\n-P -s -m a.module word\n"


def test_without_the_engine_games_cannot_be_made_and_nothing_is_fetched(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "python"
    with pytest.raises(PrepareError, match=r"games are made by ALFWorld's engine: .*cannot be asked"):
        prepared(server, tmp_path, generated=6, python=nowhere)
    assert server.requests == []
    _, said = prepared(server, tmp_path, generated=6, python=nowhere, dry_run=True)
    assert "fix this first: games are made by ALFWorld's engine" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("alfworld", "d", "--only", "index"),
            "'index' is not a part of alfworld: choose from ",
        ),
        (("deepsearch", "d", "--generated", "6"), "deepsearch has nothing that can be made here"),
        (("alfworld", "d", "--generated", "0"), "'0' is not a number to make"),
        (("webshop", "d", "--python", "p"), "it goes with `alfworld` and --generated alone"),
        (("alfword", "d"), "'alfword' cannot be prepared: choose from deepsearch, alfworld"),
    ],
)
def test_words_that_do_not_fit_are_refused(words: tuple[str, ...], said: str) -> None:
    done = ended(["bash", "slurm/prepare.sh", *words, "--dry-run"])
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
