"""The conformance test keeps quiet about a sound environment, and each rule finds what breaks it."""

import asyncio
import time

import pytest

from megatron_empg.environments.conformance import RULES, check_environment
from megatron_empg.environments.conformance.thread_time import LongestHold

CASES = "tests.unit.environments.conformance_cases"
SOUND = f"{CASES}:Sound"
BY_NAME = {rule.check.__name__: rule for rule in RULES}

BROKEN = [
    ("Usurping", "metrics_have_names_of_their_own", "broken", "'environment/train/success'"),
    ("Undocumented", "settings_are_documented", "broken", "setting doors has no text"),
    ("NestedUndocumented", "settings_are_documented", "broken", "setting inner.width has no text"),
    ("Elsewhere", "isolation_is_known", "broken", "isolation is 'thread'; allowed"),
    ("Weightless", "isolation_is_known", "broken", "worker_memory_gib is 0.0"),
    ("ServingInOneText", "services_can_be_started", "broken", "not a tuple of words: '-m doors'"),
    ("ServingNobody", "services_can_be_started", "broken", "'doors', which is not a ServiceAddress"),
    ("ServingSecretly", "services_can_be_started", "broken", "'doors token', no variable"),
    ("Untrained", "splits_exist", "broken", "train is empty"),
    ("Untested", "splits_exist", "doubtful", "test_id and test_ood: no tasks"),
    ("Twins", "ids_are_unique", "broken", "two tasks of the id 'twin'"),
    ("Leaking", "ids_are_unique", "doubtful", "is in train and in test_id"),
    ("Unwritable", "tasks_are_well_formed", "broken", "a payload that is not JSON: Object of type set"),
    ("Altered", "tasks_are_well_formed", "broken", "comes back as something else"),
    ("Roles", "tasks_are_well_formed", "broken", "role 'teacher'"),
    ("Hopping", "tasks_are_well_formed", "broken", "the hops True; they must be a whole number or None"),
    ("Shuffling", "draws_follow_from_the_seed", "broken", "with one seed differ"),
    ("Seedless", "draws_follow_from_the_seed", "broken", "the same for every seed"),
    ("Counting", "fixed_sets_stay_fixed", "broken", "is not how fixed('train', 8) begins"),
    ("Resizing", "fixed_sets_stay_fixed", "broken", "is not how fixed('train', 8) begins"),
    ("Boundless", "fixed_sets_stay_fixed", "broken", "raises no ValueError"),
    ("Hashed", "draws_are_the_same_in_another_process", "broken", "sample('train') has other tasks"),
    ("Synchronous", "making_costs_nothing", "broken", "write `async def step`"),
    ("Shared", "making_costs_nothing", "broken", "the same episode twice"),
    ("Heavy", "making_costs_nothing", "doubtful", "belongs into reset"),
    ("NoOpening", "a_reset_opens_the_episode", "broken", "a NoneType, not an Opening"),
    ("Silent", "a_reset_opens_the_episode", "broken", "no message at all"),
    ("LateSystem", "a_reset_opens_the_episode", "broken", "a system message that is not the first"),
    ("Prefilled", "a_reset_opens_the_episode", "broken", "not the policy's turn"),
    ("Monologue", "a_reset_opens_the_episode", "doubtful", "two messages of the user's in a row"),
    ("Tuple", "steps_give_results", "broken", "a tuple, not a StepResult"),
    ("Garrulous", "steps_give_results", "broken", "an observation where it is done"),
    ("Speechless", "steps_give_results", "broken", "no observation where it goes on"),
    ("Priceless", "steps_give_results", "broken", "a reward of nan"),
    ("Chatty", "steps_give_results", "broken", "info['all'] of [1, 2]"),
    ("Synchronous", "steps_give_results", "broken", "step is not a coroutine"),
    ("Endless", "nothing_follows_the_end", "broken", "raises no RuntimeError"),
    ("Fragile", "junk_is_answered_and_never_rewarded", "broken", "lone surrogates raises UnicodeEncodeError"),
    ("Generous", "junk_is_answered_and_never_rewarded", "broken", "100 kB of junk earns a reward of 1"),
    ("ClosedOnce", "closing_twice_is_fine", "broken", "AttributeError"),
    ("Dicing", "same_turns_same_answers", "broken", "say `deterministic = False`"),
    ("Entangled", "episodes_do_not_disturb_each_other", "broken", "while another episode is played"),
    ("Locking", "a_cancelled_step_costs_its_episode_alone", "broken", "step took more than"),
    ("Stubborn", "a_cancelled_step_costs_its_episode_alone", "broken", "a step that is cancelled goes on"),
    ("WrongGold", "the_gold_turn_answers_right", "broken", "cannot be read: 'exit'"),
    ("WorthlessGold", "the_gold_turn_answers_right", "doubtful", "earns 0: 'leave'"),
    ("Boasting", "demonstrations_can_be_played", "broken", "turn 1 of the walkthrough"),
    ("Rambling", "demonstrations_can_be_played", "broken", "has 99 turns; 1 to 8 fit"),
    ("Mumbling", "demonstrations_can_be_played", "broken", "cannot be read"),
    ("Unrehearsed", "rehearsals_can_be_read", "broken", "'mumble'"),
    ("Hanging", "steps_give_results", "broken", "step took more than 2 s"),
    ("Unclosable", "the_source_can_be_closed", "broken", "ValueError: the door is stuck"),
    ("Gigantic", "isolation_is_known", "doubtful", "worker_memory_gib is 1e+06, and this machine has"),
    ("Negative", "isolation_is_known", "broken", "worker_memory_gib is -1; it must be above 0"),
    ("Negative", "steps_give_results", "not tried", "there are no worker processes for episodes"),
    ("Exiting", "steps_give_results", "broken", "raised SystemExit in step: 0"),
    ("Cancelling", "steps_give_results", "broken", "cancelled its own step"),
    ("Baseless", "a_reset_opens_the_episode", "broken", "raised BaseException in reset: base"),
    ("Clinging", "a_reset_opens_the_episode", "broken", "close took more than 2 s"),
]


def findings(case, *names, settings=None, call_timeout=2.0):
    rules = [BY_NAME[name] for name in names] or RULES
    return check_environment(f"{CASES}:{case}", settings or {}, rules=rules, call_timeout=call_timeout)


@pytest.mark.parametrize(("case", "rule", "verdict", "detail"), BROKEN)
def test_what_breaks_a_rule_is_found_and_said(case, rule, verdict, detail):
    (finding,) = findings(case, rule)
    assert (finding.rule, finding.verdict) == (BY_NAME[rule].sentence, verdict), finding.detail
    assert detail in finding.detail


def test_settings_are_no_words_of_another_process():
    """Where every user of the machine could read them."""
    (finding,) = findings(
        "Keyed", "draws_are_the_same_in_another_process", settings={"key": "a-secret-of-24-letters"}
    )
    assert (finding.verdict, finding.detail) == ("kept", "")


def test_every_rule_can_be_broken():
    tried = {rule for _, rule, _, _ in BROKEN} | {"the_event_loop_stays_free"}
    assert set(BY_NAME) == tried


@pytest.mark.parametrize(("case", "words"), [("Computing", "computed for"), ("Sleeping", "slept or waited for")])
def test_a_call_that_holds_the_event_loop_is_doubtful(case, words):
    _, finding = findings(case, "steps_give_results", "the_event_loop_stays_free")
    assert (finding.verdict, words in finding.detail) == ("doubtful", True)
    assert "in_thread" in finding.detail


def test_a_sound_environment_keeps_every_rule():
    found = findings("Sound", settings={"doors": 4}, call_timeout=30.0)
    missing = {"the services that it needs can be started", "the gold turn of a task answers right"}
    assert {finding.rule for finding in found if finding.verdict == "not tried"} == missing
    assert [finding for finding in found if finding.verdict == "broken"] == []
    assert [finding.rule for finding in found] == [rule.sentence for rule in RULES]
    (served,) = findings("Serving", "services_can_be_started")
    assert served.verdict == "kept"


def test_episodes_in_worker_processes_keep_the_rules_there():
    found = findings("InProcesses", call_timeout=60.0)
    assert [finding for finding in found if finding.verdict in ("broken", "doubtful")] == []
    skipped = {finding.rule for finding in found if finding.detail == "episodes run in worker processes"}
    assert len(skipped) == 2


def test_an_environment_that_says_it_is_not_deterministic_is_not_held_to_it():
    same, undisturbed = findings("DicingOpenly", "same_turns_same_answers", "episodes_do_not_disturb_each_other")
    assert (same.verdict, undisturbed.verdict) == ("not tried", "kept")


def test_what_cannot_be_made_is_an_error_and_no_finding():
    with pytest.raises(ValueError, match="doors: must be given"):
        findings("Refused")
    with pytest.raises(ValueError, match=r"not a subclass of megatron_empg\.environments\.TaskSource"):
        findings("Corridor")
    with pytest.raises(ValueError, match="it raised KeyError: 'key'"):
        findings("Unmade")
    with pytest.raises(ValueError, match="it raised SystemExit: 3"):
        findings("UnmadeByExit")


@pytest.mark.parametrize("case", ["Exiting", "Cancelling", "Baseless"])
def test_no_environment_ends_the_check(case):
    assert [finding.rule for finding in findings(case)] == [rule.sentence for rule in RULES]


@pytest.mark.parametrize(("case", "said"), [("Unlisted", "ValueError: line 3 is cut"), ("Untrained", "is empty")])
def test_tasks_that_cannot_be_listed_are_told_once(case, said):
    found = findings(case)
    listing = BY_NAME["splits_exist"].sentence
    (broken,) = [finding for finding in found if finding.verdict == "broken"]
    assert (broken.rule, said in broken.detail) == (listing, True)
    after = found[found.index(broken) + 1 :]
    assert {(finding.verdict, finding.detail) for finding in after} == {
        ("not tried", "tasks cannot be listed, as said above")
    }
    assert len(after) == 18


def test_whoever_waits_is_told_for_what():
    said = []
    check_environment(
        SOUND,
        {},
        rules=[BY_NAME["isolation_is_known"]],
        begun=said.append,
        found=lambda finding: said.append(finding.verdict),
    )
    assert said == ["isolation is one that a run knows", "kept"]


def test_only_what_the_loop_waits_for_counts_as_a_hold():
    """Not what a coroutine itself awaits; and errors, results and cancellations pass through."""
    hold = LongestHold()

    async def waits():
        await asyncio.sleep(1.0)
        raise KeyError("its own")

    async def computes():
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        return "result"

    async def cancelled():
        task = asyncio.ensure_future(await_it(hold.of(asyncio.sleep(60))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    async def await_it(answer):
        return await answer

    with pytest.raises(KeyError, match="its own"):
        asyncio.run(await_it(hold.of(waits())))
    assert hold.asleep < 1.0
    assert hold.cpu < 0.05
    assert asyncio.run(cancelled())
    assert asyncio.run(await_it(hold.of(computes()))) == "result"
    assert hold.cpu >= 0.05
