import hashlib
import json
from pathlib import Path

import pytest

from megatron_empg.environments.base import SPLITS
from megatron_empg.environments.deep_search.searcher import SEARCHERS, ScriptedSearcher
from megatron_empg.environments.registry import make_task_source
from megatron_empg.rollout.chat_tokens import ChatTokens
from tests.support.tokenizers_for_tests import CHATML, make_tokenizer

PROMPT = [{"role": "system", "content": "answer"}, {"role": "user", "content": "the capital of Peru?"}]

MINIATURE = Path(__file__).resolve().parents[3] / "recipes" / "miniature"
MINIATURE_IDS = {
    "flawless": "7ea6dcebc2cf440765b4814ee119a6ef85ba2d1714c27c83a512187dee5975de",
    "fallible": "f85e35649a246a722c3ca0c4513df58915aab06c42e118c9041071785fa26e3a",
    "habit": "dcd4a190d68bc62c0dfd4e8c3aca807074dcb2370aa506fa94e3b036bf329879",
}
TOLD = (
    "no results",
    "no page",
    "malformed call : think , then one search , visit or answer",
    "malformed call : the visit is empty",
)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_pieces_append_to_what_the_template_renders(family):
    tokenizer = make_tokenizer(family)
    chat = ChatTokens(tokenizer)
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}[family]
    assert chat.end_of_turn == tokenizer.convert_tokens_to_ids(end)

    turn = encode(tokenizer, "search Peru")
    ended = chat.prompt(PROMPT) + turn + [chat.end_of_turn] + chat.between_turns("Lima", cut=False)
    cut = chat.prompt(PROMPT) + turn + chat.between_turns("Lima", cut=True)
    assert ended == cut
    conversation = [*PROMPT, {"role": "assistant", "content": "search Peru"}, {"role": "user", "content": "Lima"}]
    whole = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert ended == encode(tokenizer, whole)
    assert chat.drift(ended, conversation) == 0


def test_drift_counts_from_the_first_other_token():
    tokenizer = make_tokenizer("chatml")
    chat = ChatTokens(tokenizer)
    spelled = [token for letter in "search" for token in encode(tokenizer, letter)]
    assert len(spelled) > len(encode(tokenizer, "search"))
    tokens = chat.prompt(PROMPT) + spelled + [chat.end_of_turn]
    messages = [*PROMPT, {"role": "assistant", "content": chat.text(spelled)}]
    assert chat.text(spelled) == "search"
    assert chat.drift(tokens, messages) == len(spelled) + 1
    tokens = chat.prompt(PROMPT) + encode(tokenizer, "search") + [chat.end_of_turn]
    assert chat.drift(tokens, messages) == 0


def test_template_that_rewrites_earlier_turns_is_refused():
    earlier = "message['role'] == 'assistant' and loop.revindex > 3"
    content = "{{ message['content'] }}"
    rewriting = CHATML.replace(content, "{% if " + earlier + " %}...{% else %}" + content + "{% endif %}")
    with pytest.raises(ValueError, match="renders earlier turns differently"):
        ChatTokens(make_tokenizer("chatml", template=rewriting))


def test_template_without_special_end_is_refused():
    plain = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    with pytest.raises(ValueError, match="not a special token"):
        ChatTokens(make_tokenizer("chatml", template=plain))


def test_tokenizer_without_template_is_refused():
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ChatTokens(tokenizer)


def test_templates_that_only_look_alike_are_told_apart_by_empty_turns():
    """One that leaves an empty turn out would not render what an episode is made of."""
    skipping = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.content %}")
    with pytest.raises(ValueError, match="empty ones differently"):
        ChatTokens(make_tokenizer("chatml", template=skipping))


def test_a_template_that_refuses_empty_turns_is_never_asked_for_them():
    loop = "{% for message in messages %}"
    refusal = "{% if not message.content %}{{ raise_exception('empty message') }}{% endif %}"
    refusing = CHATML.replace(loop, loop + refusal)
    tokenizer = make_tokenizer("chatml", template=refusing)
    chat = ChatTokens(tokenizer)
    assert chat.turn("") == [chat.end_of_turn]
    with pytest.raises(Exception, match="empty message"):
        chat.drift([], [*PROMPT, {"role": "assistant", "content": ""}])


def test_a_template_that_leaves_messages_out_is_refused():
    content = "{{ message['content'] }}"
    silent = CHATML.replace(content, "{% if message.role != 'system' %}" + content + "{% endif %}")
    with pytest.raises(ValueError, match="leaves out or rewrites what a message of the role 'system' says"):
        ChatTokens(make_tokenizer("chatml", template=silent)).prompt(PROMPT)


@pytest.mark.parametrize("clock", ["strftime_now('%d %b %Y')", "strftime_now('%H:%M:%S.%f')", "date_string"])
def test_the_date_is_the_runs_and_not_the_clocks(clock, monkeypatch):
    import transformers.utils.chat_template_utils as rendering

    tokenizer = make_tokenizer("chatml", template="<|im_start|>today is {{ " + clock + " }}<|im_end|>" + CHATML)
    chat = ChatTokens(tokenizer)
    rendering._compile_jinja_template.cache_clear()
    before = chat.prompt(PROMPT)

    class Later(rendering.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2, 3, 4, 5)

    monkeypatch.setattr(rendering, "datetime", Later)
    rendering._compile_jinja_template.cache_clear()
    later = tokenizer.apply_chat_template(PROMPT, tokenize=False)
    assert "2031" in later or "03:04" in later or clock == "date_string", "the clock has been changed"
    assert chat.prompt(PROMPT) == before
    assert chat.drift(before, PROMPT) == 0


def test_ids_that_the_tokenizer_does_not_have_are_named():
    """A model's rows may be padded; what is sampled there must not vanish from the text."""
    tokenizer = make_tokenizer("chatml")
    chat = ChatTokens(tokenizer)
    known = encode(tokenizer, "search")
    unknown = len(tokenizer) + 7
    assert chat.text([*known, unknown, *known, chat.end_of_turn]) == f"search<|token {unknown}|>search"
    assert chat.text([*known, chat.end_of_turn]) == "search"
    assert chat.text([]) == ""


def test_the_ids_of_the_miniatures_episodes_are_those_that_its_policies_were_trained_on():
    """Prompts, turns and observations of 180 walkthroughs, and what errors are told."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MINIATURE / "tokenizer"))
    chat = ChatTokens(tokenizer)
    source = make_task_source("deep_search", corpus=str(MINIATURE / "corpus.jsonl"), prompt="none")
    for searcher, expected in MINIATURE_IDS.items():
        # Another source would read and index the corpus again.
        world = source._world()
        world._searcher = ScriptedSearcher(world.corpus, world.retriever, SEARCHERS[searcher])
        digest = hashlib.sha256()
        for split in SPLITS:
            for number, task in enumerate(source.sample(split, 20, 5)):
                digest.update(json.dumps(episode_ids(chat, source, task, number)).encode())
        assert digest.hexdigest() == expected, searcher


def episode_ids(chat, source, task, seed):
    """A walkthrough with every third turn cut, and then what malformed and vain calls are told."""
    tokens = chat.prompt(task.prompt)
    for turn, (action, observation, _) in enumerate(source.walkthrough(task, seed).turns):
        cut = turn % 3 == 2
        own = chat.turn(action)
        tokens += own[:-1] if cut else own
        if observation is not None:
            tokens += chat.between_turns(observation, cut=cut)
    for told in TOLD:
        tokens += chat.between_turns(told, cut=False)
    return tokens
