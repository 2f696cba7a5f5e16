"""ALFWorld's real engine in worker processes of its own Python, over games that are generated here."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_empg.environments.alfworld.manifest import GAME_FILE, GAMES, KINDS, read_manifest, write_manifest
from megatron_empg.environments.base import EpisodeLimits
from megatron_empg.environments.conformance.hostile_texts import HOSTILE_TEXTS
from megatron_empg.environments.conformance.run import check_environment
from megatron_empg.environments.settings import MANIFEST
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.workers import WorkerPool, errors
from tests.environments.alfworld_engine import generate, python_with_engine, run_engine, source_of

SECONDS = 240.0
"""Of one call: a machine may be busy."""
SEED = 645
"""With it the expert solves the first games that are invented, most of them in small rooms."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A game of each kind for training, and one in a scene of the unseen ones."""
    python_with_engine()
    made = tmp_path_factory.mktemp("alfworld") / "games"
    generate(made, seed=SEED, train=6, test_ood=1)
    return made


@pytest.fixture(scope="module")
def source(folder):
    return source_of(folder)


def test_a_worker_loads_the_engine_before_its_first_episode(folder):
    program = (
        "import sys; from pathlib import Path; from megatron_empg.environments.alfworld.source import AlfWorld; "
        "from megatron_empg.environments.base import EpisodeLimits; "
        "source = AlfWorld(AlfWorld.Settings(data=Path(sys.argv[1])), EpisodeLimits(50, None)); "
        "before = set(sys.modules); source.warm_up(); "
        "assert 'textworld' not in before; warm = set(sys.modules); "
        "world = source.world(source.tasks('train')[0]); world.begin(); "
        "print(sorted(name for name in set(sys.modules) - warm if name.startswith(('textworld', 'alfworld'))))"
    )
    assert run_engine("-c", program, folder).stdout.strip() == "[]"


def with_pool(source, play, *, seconds=SECONDS, memory=None):
    """What `play(pool)` gives, with worker processes in ALFWorld's Python."""
    of_one = memory or source.worker_memory_gib

    async def run():
        pool = WorkerPool(
            "alfworld",
            source.settings,
            EpisodeLimits(50, seconds),
            memory_gib=2 * of_one,
            worker_memory_gib=of_one,
            python=type(source).worker_python(source.settings),
        )
        try:
            return await play(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


async def played(pool, task, actions):
    """The results of an episode's turns, and its opening."""
    episode = pool.make(task)
    try:
        opening = await episode.reset()
        return opening, [await episode.step(action) for action in actions]
    finally:
        await episode.close()


def test_games_of_all_kinds_are_made_and_named_as_generated(folder, source):
    manifest = read_manifest(folder)
    assert manifest.counts() == {
        "train": dict.fromkeys(KINDS, 1),
        "test_id": {},
        "test_ood": {KINDS[0]: 1},
    }
    assert manifest.generated
    assert manifest.versions["alfworld"] == "0.4.2"
    assert source.data_name == "ALFWorld engine, locally generated games"
    scene = manifest.games["test_ood"][0].id.split("/")[1].rpartition("-")[2]
    assert scene in ("10", "219", "308", "424")


def test_the_seam_is_kept(folder, tmp_path):
    """With the games that are solved soonest, wherever they belong: each rule plays them."""
    copied = tmp_path / "games"
    shutil.copytree(folder, copied)
    manifest = read_manifest(copied)
    _, light, clean, *_ = manifest.games["train"]
    short = {"train": (light,), "test_id": (clean,), "test_ood": manifest.games["test_ood"]}
    write_manifest(copied, replace(manifest, games=short))
    settings = {"data": str(copied), "max_turns": 50}
    findings = check_environment("alfworld", settings, call_timeout=SECONDS)
    faults = [finding for finding in findings if finding.verdict in ("broken", "doubtful")]
    assert faults == []


def test_the_engine_answers_the_experts_turns_as_their_transcripts_do(source):
    """Of every kind, to the end: what a policy is warmed up on is what it will meet."""

    async def play(pool):
        for task in source.tasks("train"):
            told = source.walkthrough(task, seed=0)
            opening, met = await played(pool, task, [turn.action for turn in told.turns])
            assert opening == told.opening
            assert [(result.observation, result.context) for result in met] == [
                (turn.observation, turn.context) for turn in told.turns
            ], task.id
            assert (met[-1].done, met[-1].success, met[-1].reward) == (True, True, 10.0)

    with_pool(source, play)


def test_whatever_a_policy_writes_is_answered(source):
    turns = [write_turn("so", " ".join(text.split()) or "x") for text in HOSTILE_TEXTS.values()]
    turns = [turn for turn in turns if turn.count("<action>") == 1] + list(HOSTILE_TEXTS.values())

    async def play(pool):
        _, results = await played(pool, source.tasks("train")[0], [*turns, write_turn("so", "inventory")])
        assert all(result.observation and not result.done and result.reward <= 0 for result in results)
        assert "You are not carrying anything." in results[-1].observation

    with_pool(source, play)


def test_a_corrupted_game_costs_its_episode_and_no_other(source, folder, tmp_path):
    copied = tmp_path / "games"
    shutil.copytree(folder, copied)
    broken = source_of(copied)
    sound, bad = broken.tasks("train")[:2]
    path = copied / GAMES / bad.id / GAME_FILE
    path.write_text(path.read_text(encoding="utf-8").replace("inReceptacle", "inReceptacel"), encoding="utf-8")

    async def play(pool):
        with pytest.raises(errors.EnvironmentRaised, match=f"alfworld game '{bad.id}': .* is not the file"):
            await played(pool, bad, [])
        _, (result,) = await played(pool, sound, [write_turn("so", "inventory")])
        assert "You are not carrying anything." in result.observation

    with_pool(broken, play)


@pytest.fixture
def published(folder, tmp_path):
    """The games under names like those of published ones, and without a manifest."""
    copied = tmp_path / "games"
    shutil.copytree(folder, copied)
    (copied / MANIFEST).unlink()
    for game in sorted((copied / GAMES).rglob("trial_generated_*")):
        game.rename(game.with_name(game.name.replace("trial_generated", "trial_T")))
    return copied


def test_a_game_that_the_engine_cannot_read_costs_its_episode_with_the_engines_word(published):
    """One whose manifest was written for it, so that only the engine finds the fault."""
    for path in (published / GAMES).rglob(GAME_FILE):
        body = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(body | {"pddl_problem": "(define (problem cut)"}), encoding="utf-8")
    run_engine("-m", "megatron_empg.environments.alfworld.index", published)
    source = source_of(published)

    async def play(pool):
        with pytest.raises(errors.EnvironmentWorkerError, match=r"worker \d+ of environment 'alfworld'"):
            await played(pool, source.tasks("train")[0], [])

    with_pool(source, play)


def test_a_hanging_engine_is_ended(source):
    async def play(pool):
        with pytest.raises(errors.WorkerTimeout, match=r"was killed: reset took more than 0.05 s"):
            await played(pool, source.tasks("train")[0], [])

    with_pool(source, play, seconds=0.05)


TRANSCRIPT_OF_RANDOM_COMMANDS = """
import hashlib, random, sys
from pathlib import Path
from megatron_empg.environments.alfworld.engine import open_game
rng = random.Random(int(sys.argv[2]))
game = open_game(Path(sys.argv[1]), cached=sys.argv[3] == "cached")
state, said = game.reset(), []
for _ in range(12):
    said += [state.feedback, *state.admissible_commands]
    state, _, done = game.step(rng.choice(state.admissible_commands))
    if done:
        break
print(hashlib.sha256(repr(said).encode()).hexdigest())
"""


def test_the_caches_and_the_order_of_sets_change_nothing(folder, source):
    task = next(task for task in source.tasks("train") if task.kind == "pick_clean_then_place_in_recep")
    path = folder / GAMES / task.id / GAME_FILE
    cached, again, uncached = [
        run_engine("-c", TRANSCRIPT_OF_RANDOM_COMMANDS, path, "0", how, hash_seed=hash_seed).stdout
        for how, hash_seed in (("cached", "1"), ("cached", "2"), ("uncached", "3"))
    ]
    assert cached == again == uncached


def test_generation_goes_on_where_it_was_ended_and_makes_the_same(folder, tmp_path):
    """By any number of processes, and in any order."""
    copied = tmp_path / "games"
    shutil.copytree(folder, copied)
    manifest = read_manifest(folder)
    first = manifest.games["train"][0]
    shutil.rmtree((copied / GAMES / first.id).parent)
    (copied / MANIFEST).unlink()
    generate(copied, seed=SEED, train=6, test_ood=1, processes=1)
    assert read_manifest(copied) == manifest


def test_generated_games_are_not_put_among_others(published):
    run_engine("-m", "megatron_empg.environments.alfworld.index", published)
    words = ("--train=1", "--test-id=0", "--test-ood=0")
    done = run_engine("-m", "megatron_empg.environments.alfworld.generate", published, *words, check=False)
    assert done.returncode == 1
    assert "holds games that were not generated" in done.stderr
