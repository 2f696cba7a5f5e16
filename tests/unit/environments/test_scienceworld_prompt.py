"""What a policy is told of ScienceWorld's commands."""

from megatron_empg.environments.scienceworld.commands import commands_of
from megatron_empg.environments.scienceworld.prompt import prompt_of
from megatron_empg.environments.text_worlds.world import Scene


def forms(task, simplifications):
    return {command.form for command in commands_of(task, simplifications)}


def test_easy_takes_the_electrical_commands_where_the_task_needs_none():
    assert "connect OBJ to OBJ" not in forms("boil", "easy")
    assert "connect OBJ to OBJ" in forms("power-component", "easy")
    assert "connect OBJ to OBJ" in forms("test-conductivity", "easy")
    assert "teleport OBJ" in forms("boil", "easy")


def test_without_simplifications_nothing_is_added_or_taken():
    assert "teleport OBJ" not in forms("boil", "")
    assert "connect OBJ to OBJ" in forms("boil", "")
    assert "connect OBJ to OBJ" not in forms("boil", "openDoors,noElectricalAction")


def test_giving_up_is_not_advised():
    assert "reset task" not in prompt_of("boil", "easy", "templates").rules


def test_things_are_named_behind_the_observation():
    prompt = prompt_of("boil", "easy", "templates")
    assert prompt.show(Scene("A room.", ("door", "sink"))) == "A room.\nThings that OBJ can be now: door, sink"
    assert prompt.show(Scene("A room.")) == "A room."


def test_commands_are_listed_a_line_each():
    prompt = prompt_of("boil", "easy", "valid")
    told = prompt.show(Scene("A room.", ("open door", "activate sink")))
    assert told == "A room.\nCommands that are possible now:\nopen door\nactivate sink"


def test_the_first_turn_reads_rules_task_and_scene_in_one_message():
    prompt = prompt_of("boil", "easy", "none")
    (message,) = prompt.first("Your task is to boil water.", Scene("A room."))
    assert message["role"] == "user"
    for part in ("go to OBJ: ", "teleport to OBJ: ", "Your task is to boil water.", "A room.", "<action>"):
        assert part in message["content"]


def test_a_policy_that_was_warmed_up_without_rules_reads_task_and_scene_alone():
    prompt = prompt_of("boil", "easy", "none", "none")
    (message,) = prompt.first("boil water.", Scene("A room."))
    assert message["content"] == "Your task: boil water.\n\nA room."
