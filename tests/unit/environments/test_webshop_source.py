"""WebShop as a plug-in: its splits, episodes, rewards and demonstrations, over the generated catalogue."""

import random
import subprocess
import sys
import threading

import pytest

from megatron_empg.environments.registry import make_task_source
from megatron_empg.environments.text_worlds.turns import write_turn
from megatron_empg.environments.webshop import catalogue as catalogues
from megatron_empg.environments.webshop.catalogue import Catalogue, GeneratedCatalogue, shared_catalogue
from megatron_empg.environments.webshop.goals import SHUFFLED_BY, combination
from megatron_empg.environments.webshop.settings import WebShopSettings
from megatron_empg.environments.webshop.source import WebShop
from tests.support.acting import begun, step

SMALL = {"generated_products": 300, "test_goals": 50, "dev_goals": 20}


def source_of(**settings):
    return make_task_source("webshop", max_turns=15, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def source():
    return source_of()


def act(episode, command):
    return step(episode, write_turn("so", command))


def test_splits_are_those_of_the_field(source):
    goals = source.catalogue().goals
    ours = [number for number in range(len(goals)) if goals.category(number) != "garden"]
    numbers = {split: [task.payload["number"] for task in source.tasks(split)] for split in ("train", "test_id")}
    assert numbers["test_id"] == ours[:50]
    assert numbers["train"] == ours[70:]
    assert {task.kind for task in source.tasks("test_ood")} == {"garden"}
    assert {task.kind for task in source.tasks("train")} == {"beauty", "electronics", "fashion", "grocery"}


def test_nothing_held_out_leaves_webshops_own_order():
    source = source_of(held_out=[], dev_goals=0)
    assert [task.payload["number"] for task in source.tasks("test_id")] == list(range(50))
    assert source.tasks("train")[0].payload["number"] == 50
    assert len(source.tasks("test_ood")) == 0


def test_goals_are_shuffled_as_in_webshop(source):
    """Python's shuffle from seed 233, over the goals in the order of products and of their combinations."""
    store, goals = source.catalogue().store, source.catalogue().goals
    plain = []
    for number in range(len(store)):
        product = store.product(number)
        count = 1
        for values in product.options.values():
            count *= len(values)
        plain += [(product.asin, combination(product.options, choice)) for choice in range(count)]
    random.seed(SHUFFLED_BY)
    random.shuffle(plain)
    assert [(goal.asin, goal.options) for goal in goals] == plain


def test_an_unknown_department_is_refused_by_name():
    with pytest.raises(ValueError, match="no department 'books'; it has beauty, electronics"):
        source_of(held_out=["books"]).tasks("train")


def test_an_episode_opens_with_the_goal_and_ends_with_the_fields_reward(source):
    task = source.tasks("train")[0]
    turns = source.scripted(task, 0).turns
    episode = source.make(task)
    begun(episode)
    for turn in turns[:-1]:
        result = act(episode, turn.command)
        assert (result.reward, result.done, result.malformed) == (0.0, False, False)
        assert result.info["measured_as"] == source.measured_as
        assert task.payload["goal"] in result.context[0]["content"]
    last = act(episode, turns[-1].command)
    assert last.done
    assert last.reward == (10.0 if last.info["score"] == 1.0 else 0.0)
    assert last.success is (last.info["score"] == 1.0)
    assert last.info["measured_as"] == "WebShop engine, generated catalogue, substitute title score"
    with pytest.raises(RuntimeError, match="done"):
        act(episode, "search[x]")


def test_the_score_itself_may_be_the_reward():
    source = source_of(reward="score", success_reward=2.0)
    task = next(task for task in source.tasks("train") if source.catalogue().goals[task.payload["number"]].options)
    script = source.scripted(task, 0)
    episode = begun(source.make(task))
    opened = [turn.command for turn in script.turns if not turn.thought.startswith("I choose")]
    results = [act(episode, command) for command in opened]
    score = results[-1].info["score"]
    assert 0 < score < 1
    assert results[-1].reward == 2.0 * score
    assert results[-1].success is False


def test_the_flawless_shopper_gets_full_scores_within_its_turns():
    source = source_of(shopper="flawless")
    scores = []
    for task in source.sample("train", 60, seed=0):
        episode = begun(source.make(task))
        turns = source.scripted(task, 0).turns
        assert len(turns) <= 15
        scores.append([act(episode, turn.command) for turn in turns][-1].info["score"])
    assert sum(score == 1.0 for score in scores) >= 57


def test_the_fallible_shopper_errs_by_its_seed(source):
    task = source.tasks("train")[3]
    plays = {tuple(turn.command for turn in source.scripted(task, seed).turns) for seed in range(40)}
    assert len(plays) > 1
    assert source.walkthrough(task, 1) == source.walkthrough(task, 1)


@pytest.mark.parametrize("results", [1, 3, 10])
def test_the_shopper_turns_pages_until_its_product_is_there(results):
    source = source_of(results_per_page=results, shopper="flawless")
    turned = 0
    for task in source.sample("train", 20, seed=0):
        episode, seen = begun(source.make(task)), ""
        for turn in source.scripted(task, 0).turns:
            if turn.command.startswith("click[b0"):
                assert turn.command[len("click[") : -1].upper() in seen
            turned += turn.command == "click[next >]"
            seen = act(episode, turn.command).observation
    assert turned > 0 if results < 10 else turned == 0


def test_a_prompt_may_be_the_task_and_the_page_alone(source):
    told = ["Think first, within <think>", "Commands that are possible now:", "search[words] searches"]
    task = source.tasks("train")[0]
    full = source.walkthrough(task, 0).opening.messages[0]["content"]
    assert all(words in full for words in told)
    bare = source_of(rules="none", list_commands=False).walkthrough(task, 0).opening.messages[0]["content"]
    assert bare == f"Your task: {task.payload['goal']}\n\nSearch"
    listed = source_of(rules="none").walkthrough(task, 0).opening.messages[0]["content"]
    assert listed == f"{bare}\nCommands that are possible now:\nsearch[<your query>]"


def test_pages_that_are_not_webshops_are_named():
    settings = WebShopSettings(results_per_page=3, show_chosen=True, show_attributes=True)
    assert told_beside_the_defaults(settings) == ["results per page", "chosen options", "page of attributes"]
    assert settings.changes_pages
    assert not WebShopSettings(rules="none", list_commands=False).changes_pages


@pytest.mark.parametrize("server", [None, "http://x"])
def test_prompts_that_are_not_the_papers_are_named(server):
    without_rules = WebShopSettings(rules="none", server=server)
    assert told_beside_the_defaults(without_rules) == ["no rules are told, unlike the papers'"]
    unlisted = WebShopSettings(list_commands=False, server=server)
    assert told_beside_the_defaults(unlisted) == ["no commands are listed, unlike in the papers' prompts"]


def told_beside_the_defaults(settings):
    """How each caveat begins that is not there by default."""
    usual = WebShop.caveats(WebShopSettings())
    return [caveat.partition(":")[0] for caveat in WebShop.caveats(settings) if caveat not in usual]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8])
def test_a_walkthrough_fits_into_few_turns(most):
    source = make_task_source("webshop", max_turns=most, **SMALL)
    for task in source.sample("train", 10, seed=0):
        assert 1 <= len(source.walkthrough(task, 0).turns) <= most


def test_a_catalogue_is_loaded_once_for_all_who_ask(monkeypatch):
    loaded = []
    original = GeneratedCatalogue.load

    def load(named):
        loaded.append(named)
        return original(named)

    monkeypatch.setattr(catalogues.GeneratedCatalogue, "load", load)
    named = GeneratedCatalogue(160, 7)
    found: list[Catalogue] = []
    threads = [threading.Thread(target=lambda: found.append(shared_catalogue(named))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == [named]
    assert len({id(catalogue) for catalogue in found}) == 1


def test_making_a_source_reads_nothing(monkeypatch):
    monkeypatch.setattr(catalogues.GeneratedCatalogue, "load", lambda named: pytest.fail("it was loaded"))
    source_of(generated_seed=99)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"server": "http://x", "spacy_model": "m"}, "spacy_model: a server has its own"),
        ({"server": "http://x", "results_per_page": 3}, "results_per_page: a server has its own"),
        ({"server": "http://x", "show_chosen": True}, "show_chosen: a server has its own"),
        ({"server": "http://x", "show_attributes": True}, "show_attributes: a server has its own"),
        ({"results_per_page": 0}, "results_per_page is 0"),
        ({"server": "http://x", "server_goals": 70}, "leave nothing of 70 goals"),
        ({"attributes": "a.json"}, "attributes: they go with products"),
        ({"products": "a.json"}, "without attributes or instructions"),
        ({"products": "a.json", "attributes": "b", "goals": "human"}, "made of instructions, which are not given"),
        ({"generated_products": 10}, "generated_products is 10"),
        ({"reward": "half"}, "reward 'half' is unknown; allowed: success, score"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        source_of(**settings)


def test_results_are_named_by_what_they_were_measured_with(source):
    assert source.metrics() == {
        "environment/webshop_generated_catalogue": 1.0,
        "environment/webshop_substitute_title_score": 1.0,
        "environment/webshop_changed_pages": 0.0,
    }
    assert source_of(show_chosen=True).metrics()["environment/webshop_changed_pages"] == 1.0
    assert WebShopSettings(spacy_model="a_model").measured_as == "WebShop engine, generated catalogue"
    files = WebShopSettings.model_validate({"products": "a", "attributes": "b", "spacy_model": "a_model"})
    assert files.measured_as == "WebShop, search by bm25s"
    for changed in ({"results_per_page": 3}, {"show_chosen": True}, {"show_attributes": True}):
        assert files.model_copy(update=changed).measured_as == "WebShop engine, changed pages"
    assert WebShopSettings(show_chosen=True).measured_as == (
        "WebShop engine, generated catalogue, substitute title score, changed pages"
    )
    assert source_of(server="http://x").measured_as == "WebShop, a running server"


def test_a_model_that_is_not_there_is_refused_before_anything_is_bought():
    with pytest.raises(ValueError, match=r"spacy_model is 'no_such_model'.*(pip install|spacy download)"):
        source_of(spacy_model="no_such_model")


def test_tasks_of_a_server_are_numbers():
    source = source_of(server="http://x")
    assert [len(source.tasks(split)) for split in ("train", "test_id", "test_ood")] == [12017, 50, 0]
    assert source.tasks("train")[0].payload == {"goal": "", "number": 70}
    assert source.demonstrations() is None
    assert source.rehearse(source.tasks("train")[0]) == []


def test_importing_the_source_loads_no_engine():
    program = (
        "import sys; import megatron_empg.environments.webshop.source; "
        "heavy = ('spacy', 'bm25s', 'numpy', 'torch', 'httpx', 'thefuzz', 'yaml'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
