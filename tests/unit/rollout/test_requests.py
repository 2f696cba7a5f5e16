import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_empg.rollout.client import Sampling, request_body
from megatron_empg.rollout.seeds import derive_seed
from megatron_empg.rollout.server import parse_arguments, vllm_arguments

KEY = st.tuples(*[st.integers(0, 2**31)] * 5)


@given(KEY, KEY)
def test_seeds_differ_unless_all_five_parts_agree(first, second):
    assert 0 <= derive_seed(*first) < 2**63
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_seed_does_not_change_between_versions_and_processes():
    assert derive_seed(1, 2, "question", 3, 4) == 5393629943823672153  # sha256sum


def test_every_sampling_parameter_is_sent():
    body = request_body([1, 2], Sampling(0.7, (5,)), max_tokens=9, seed=11)["sampling_params"]
    said = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 9, "seed": 11, "n": 1}
    said |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_tokens": 0}
    said |= {"stop": [], "stop_token_ids": [5], "ignore_eos": False, "logprobs": 0, "detokenize": False}
    assert body == said


def test_server_command_line():
    args, extra = parse_arguments(["--model", "m", "--port", "1", "--max-model-len", "64", "--", "--foo", "1"])
    command = vllm_arguments(args, extra, cuda=False)
    pairs = dict(itertools.pairwise(command))
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--generation-config"] == "vllm"
    assert pairs["--logprobs-mode"] == "processed_logprobs"
    assert pairs["--weight-transfer-config"] == '{"backend": "empg_broadcast"}'
    assert "--enable-prefix-caching" in command
    assert command[-2:] == ["--foo", "1"]
    assert '{"backend": "empg_broadcast"}' in vllm_arguments(args, extra, cuda=True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "0"),
        ("--port", "65536"),
        ("--max-model-len", "0"),
        ("--max-num-seqs", "0"),
        ("--kv-cache-bytes", "0"),
        ("--tensor-parallel", "0"),
        ("--threads", "-1"),
        ("--seed", "-1"),
    ],
)
def test_a_size_that_no_server_has_is_refused_by_name(capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--model", "m", "--port", "1", "--max-model-len", "64", option, value])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"Invalid value for '{option}': " in said


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", True), ("float16", True), ("float32", False)])
def test_logits_are_float32_whatever_the_policy_is(cuda, dtype, said):
    args, extra = parse_arguments(["--model", "m", "--port", "1", "--max-model-len", "64", "--dtype", dtype])
    pairs = dict(itertools.pairwise(vllm_arguments(args, extra, cuda=cuda)))
    assert pairs.get("--hf-overrides") == ('{"head_dtype": "float32"}' if said else None)


def test_rollout_and_weights_import_nothing_heavy():
    code = (
        "import sys, megatron_empg.rollout.episodes, megatron_empg.launch.engine_process;"
        "import megatron_empg.weights.sync.transfer;"
        "print([m for m in ('vllm', 'transformers', 'megatron') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
