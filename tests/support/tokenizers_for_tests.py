"""Tiny trained tokenizers with a chat template, for tests."""

import json
from collections.abc import Iterable
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Structures of published templates, written anew. Jinja drops a newline that follows a tag.
_QWEN_RESULTS = (
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "<|im_start|>user{% endif %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
)
_QWEN_TOOLS = (
    "# Tools\n\nYou may call:\n<tools>{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\n\nCalls stand within <tool_call></tool_call>.<|im_end|>\n' }}"
)
QWEN25 = (
    "{% set first = messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content if first else 'You are helpful.' }}"
    "{% if tools %}{{ '\n\n' }}" + _QWEN_TOOLS + "{% else %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' and loop.first %}"
    + _QWEN_RESULTS
    + "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Thoughts of turns before the last question are dropped; a user message of a certain form is no question.
QWEN3 = (
    "{% set first = messages[0].role == 'system' %}{% if first or tools %}<|im_start|>system\n"
    "{% if first %}{{ messages[0].content }}{% endif %}"
    "{% if tools %}{{ '\n\n' if first }}" + _QWEN_TOOLS + "{% else %}<|im_end|>\n{% endif %}{% endif %}"
    "{% set ns = namespace(last=messages|length - 1, open=true) %}"
    "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}"
    "{% if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>') "
    "and m.content.endswith('</tool_response>')) %}"
    "{% set ns.open = false %}{% set ns.last = i %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set content = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ content }}<|im_end|>\n"
    + _QWEN_RESULTS
    + "{% elif m.role != 'system' or not loop.first %}<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Begins every turn with a thought.
QWEN3_THINKING = QWEN3.replace(
    "%}<|im_start|>assistant\n{% endif %}", "%}<|im_start|>assistant\n<think>\n{% endif %}"
)
# The date, tools in the first question, and results of tools as JSON.
LLAMA32 = (
    "{{ '<|begin_of_text|>' }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content']|trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n{% if tools %}Environment: ipython\n{% endif %}"
    "Today Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    "{% if tools %}<|start_header_id|>user<|end_header_id|>\n\nYou may call:\n\n"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}"
    "{{ messages[0]['content'] | trim }}<|eot_id|>{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>{% else %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The same with tools in the system message, and results that are named.
LLAMA31 = (
    LLAMA32.replace("{{ m.content | tojson }}", "{{ {'output': m.content} | tojson }}")
    .replace("{% if tools %}<|start_header_id|>user<|end_header_id|>\n\nYou may call:\n\n", "")
    .replace("{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}", "")
    .replace("{{ messages[0]['content'] | trim }}<|eot_id|>{% set messages = messages[1:] %}{% endif %}", "")
    .replace(
        "{{ system }}<|eot_id|>",
        "{% if tools %}{{ 'You may call:\n\n' }}{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}"
        "{% endfor %}{% endif %}{{ system }}<|eot_id|>",
    )
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# No system role; the assistant is called something else.
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Marks the assistant's turn by words alone.
INST = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
_IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "chatml": (CHATML, _IM),
    "llama3": (LLAMA3, _LLAMA),
    "qwen2.5": (QWEN25, _IM),
    "qwen3": (QWEN3, _IM),
    "qwen3-thinking": (QWEN3_THINKING, _IM),
    "llama3.1": (LLAMA31, _LLAMA),
    "llama3.2": (LLAMA32, _LLAMA),
    "smollm2": (SMOLLM2, _IM),
    "gemma": (GEMMA, ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "zephyr": (ZEPHYR, ["<unk>", "<s>", "</s>"]),
    "inst": (INST, ["<unk>", "<s>", "</s>"]),
}
ORDINARY = ["<think>", "</think>", "<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>", "    "]
"""Tokens that Qwen3 and others add without making them special."""
TEXT = ["user assistant system search visit answer the capital of Peru is Lima question first second seen"]


def make_tokenizer(
    family: str, *, template: str | None = None, vocab_size: int = 320, ordinary: Iterable[str] = ()
) -> Any:
    """A byte-level BPE tokenizer with that family's special tokens and template (or `template`).

    `ordinary`: tokens to add that are not special.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = FAMILIES[family][1]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_tokens(list(ordinary))
    return _with_template(tokenizer, family, template)


def make_sentencepiece(family: str, kind: str, scheme: str) -> Any:
    """A tokenizer whose tokens mark where words begin, as SentencePiece's do.

    `kind`: "bpe" (falls back on bytes) or "unigram". `scheme`: which stretches get a mark before their first word.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = FAMILIES[family][1]
    special = [AddedToken(text, special=True, normalized=False) for text in specials]
    letters = [chr(code) for code in range(32, 127)]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=specials[0], byte_fallback=True, fuse_unk=True))
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*special, *bytes_], initial_alphabet=letters
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token=specials[0], initial_alphabet=letters
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind == "unigram")
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    if kind == "bpe":
        tokenizer = _without_bytes_among_added(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
        if kind == "bpe"
        else [decoders.Metaspace(prepend_scheme=scheme)]
    )
    return _with_template(tokenizer, family, None)


def _without_bytes_among_added(tokenizer: Any) -> Any:
    """The trainer knows no other way to reserve the bytes' tokens."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))


def _with_template(tokenizer: Any, family: str, template: str | None) -> Any:
    from transformers import PreTrainedTokenizerFast

    chat_template, specials = FAMILIES[family]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[-1], pad_token=specials[0])
    if "<unk>" in specials:
        fast.unk_token = "<unk>"
    fast.chat_template = template or chat_template
    return fast
