"""Known faults, each put into a copy of the project, each of which a named test must notice.

    python tools/test_mutations.py            all of them
    python tools/test_mutations.py bonus      those whose name contains the word

A fault counts as noticed when the named test fails by an assertion whose message says what it should: a mutated
program that merely no longer imports or crashes elsewhere proves nothing. Every named test must also pass on the
unchanged copy. The working tree is never touched. Exit status 1 when a fault survives.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("megatron_empg", "tests", "recipes", "pyproject.toml")
PARALLEL = 2
TIMEOUT_SECONDS = 500


@dataclass(frozen=True)
class Mutation:
    """``old`` in ``file`` becomes ``new``; ``test`` must then fail with a message that matches ``told``."""

    name: str
    file: str
    old: str
    new: str
    test: str
    told: str


MUTATIONS = [
    Mutation(
        "weight sync skipped after an update",
        "megatron_empg/trainer/loop.py",
        "            self._publish(step + 1)\n",
        "            pass\n",
        "tests/distributed/test_training_resume.py::test_every_version_is_published_before_it_samples",
        r"weights in the engines are stale",
    ),
    Mutation(
        "spans shifted by one in the actor",
        "megatron_empg/actor/packing.py",
        "        targets[where - 1] = tokens[where]\n",
        "        targets[where - 2] = tokens[where]\n",
        "tests/unit/actor/test_packing.py::test_a_packed_batch_by_hand",
        r"assert",
    ),
    Mutation(
        "spans shifted by one in the rollout",
        "megatron_empg/rollout/episode.py",
        "    start = len(episode.tokens)\n",
        "    start = len(episode.tokens) - 1\n",
        "tests/unit/rollout/test_episode.py::test_a_cut_turn_gets_its_end_from_the_template",
        r"assert",
    ),
    Mutation(
        "end token of a cut turn counted as the policy's own",
        "megatron_empg/rollout/episode.py",
        "        self.episode.tokens += tokens\n",
        "        self.episode.tokens += tokens\n        self.episode.turns[-1].end += cut\n",
        "tests/unit/rollout/test_episode.py::test_a_cut_turn_gets_its_end_from_the_template",
        r"assert",
    ),
    Mutation(
        "control tokens found in foreign text",
        "megatron_empg/rollout/text_tokens.py",
        "            if piece.message is not None:\n                parts = [piece.text]\n",
        "",
        "tests/unit/rollout/test_hostile_text.py::test_what_once_forged_a_turn_is_text",
        r"assert",
    ),
    Mutation(
        "entropy without the cross-rank reduction",
        "megatron_empg/vocab_parallel/statistics.py",
        "(weight * (c + delta * s)).sum(0)",
        "(weight * (c + delta * s))[0]",
        "tests/distributed/test_actor_logits.py::test_score_and_export_equal_hugging_face[qwen2-{'tensor': 2}]",
        r"Tensor-likes are not close",
    ),
    Mutation(
        "temperature not applied by the actor",
        "megatron_empg/actor/actor.py",
        "temperature=temperature), partial(last, batch)",
        "temperature=1.0), partial(last, batch)",
        "tests/distributed/test_actor_logits.py::test_score_and_export_equal_hugging_face[qwen2-{}]",
        r"Tensor-likes are not close",
    ),
    Mutation(
        "a bonus across trajectories",
        "megatron_empg/algorithms/empg.py",
        "    following[:-1] = trajectory_ids[1:] == trajectory_ids[:-1]\n",
        "    following[:-1] = True\n",
        "tests/unit/algorithms/test_empg.py::test_last_steps_have_no_bonus_and_none_crosses_trajectories",
        r"assert",
    ),
    Mutation(
        "turn entropies paired with the wrong turns",
        "megatron_empg/algorithms/base.py",
        "return sums.index_add(0, self.turn_of_token, values.double()) / self.turn_lengths",
        "return sums.index_add(0, self.turn_of_token.flip(0), values.double()) / self.turn_lengths",
        "tests/unit/trainer/test_advantages.py::test_a_turns_entropy_is_the_mean_over_its_own_tokens",
        r"assert",
    ),
    Mutation(
        "episodes that ended in an error trained as reward 0",
        "megatron_empg/trainer/collect.py",
        '        usable = [e for e in episodes if e.outcome != "error" and e.turns]\n        rewarded',
        "        usable = [e for e in episodes if e.turns]\n        rewarded",
        "tests/unit/trainer/test_collect.py::test_errors_never_train_and_leave_the_rest_of_their_group",
        r"assert",
    ),
    Mutation(
        "a mean per microbatch instead of the global token mean",
        "megatron_empg/actor/model.py",
        "calculate_per_token_loss=True",
        "calculate_per_token_loss=False",
        "tests/distributed/test_actor_training.py::test_packing_does_not_matter",
        r"loss|grad_norm",
    ),
    Mutation(
        "an algorithm's history starts anew on resuming",
        "megatron_empg/actor/checkpoint.py",
        '                self.algorithm.load_state_dict(manifest["algorithm"])\n',
        "                pass\n",
        "tests/distributed/test_training_resume.py::test_an_interrupted_run_ends_as_an_uninterrupted_one",
        r"assert",
    ),
    Mutation(
        "episodes shuffled by another seed",
        "megatron_empg/trainer/policy_update.py",
        "split_episodes(len(experience.rewards), wanted, seed)",
        "split_episodes(len(experience.rewards), wanted, seed + 1)",
        "tests/unit/trainer/test_policy_update.py::test_an_episodes_samples_stay_together",
        r"assert",
    ),
    Mutation(
        "learning-rate schedule starts anew on resuming",
        "megatron_empg/actor/sharded_state.py",
        "    actor.scheduler.step(increment=schedule_steps)\n",
        "",
        "tests/distributed/test_training_resume.py::test_an_interrupted_run_ends_as_an_uninterrupted_one",
        r"assert_same",
    ),
    Mutation(
        "one step tensor for all parameters after loading",
        "megatron_empg/actor/optimizer_repairs.py",
        'state["step"].clone()',
        'state["step"]',
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_distributed_optimizer]",
        r"assert_same",
    ),
    Mutation(
        "step missing in the reshardable format",
        "megatron_empg/actor/optimizer_repairs.py",
        '{**tensors, "step": self.optimizer.state[parameter]["step"]}',
        "tensors",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_distributed_optimizer]",
        r"KeyError: 'step'",
    ),
    Mutation(
        "no state saved of an optimizer that has not stepped",
        "megatron_empg/actor/sharded_state.py",
        "    complete_state(actor.optimizer)\n",
        "",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_before_any_update]",
        r"Traceback",
    ),
    Mutation(
        "the next update leaks into a checkpoint being written",
        "megatron_empg/actor/background_write.py",
        'copy = device().type == "cpu"',
        "copy = False",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_torch_optimizer]",
        r"assert_same",
    ),
    Mutation(
        "settle under a rank condition",
        "megatron_empg/actor/weights.py",
        "    actor.settle()\n    if actor.sends_weights:\n",
        "    if actor.sends_weights:\n        actor.settle()\n",
        "tests/recipes/test_rehearsal.py::test_a_warm_up_in_a_clusters_layout_exports[deepsearch_7b]",
        r"settle",
    ),
    Mutation(
        "a flag that a layout cannot bear",
        "recipes/deepsearch_7b.yaml",
        "  context_parallel: 2\n",
        "  context_parallel: 2\n  context_exchange: a2a\n",
        "tests/recipes/test_as_written.py::test_model_and_layout_fit_each_other[deepsearch_7b]",
        r"actor\.context_exchange is a2a",
    ),
    Mutation(
        "a recipe without an action format",
        "recipes/deepsearch_7b.yaml",
        "    prompt: tags ",
        "    prompt: none ",
        "tests/recipes/test_as_written.py::test_the_policy_is_told_how_to_act_unless_it_was_taught[deepsearch_7b]",
        r"does not tell its model how to search, visit, answer",
    ),
    Mutation(
        "an evaluation longer than its limit",
        "megatron_empg/trainer/loop.py",
        "(split, greedy).metrics()\n                dist.barrier()\n",
        "(split, greedy).metrics()\n        dist.barrier()\n",
        "tests/recipes/test_as_written.py::test_an_evaluation_may_take_what_all_of_its_passes_take[deepsearch_7b]",
        r"an evaluation longer than its limit",
    ),
    Mutation(
        "an observation past the limit",
        "megatron_empg/rollout/episode.py",
        "        if len(tokens) > most:\n            return False\n",
        "",
        "tests/recipes/test_as_written.py::test_no_observation_carries_an_episode_past_its_limit[quickstart]",
        r"carried the episode past its limit",
    ),
]


@dataclass(frozen=True)
class Outcome:
    """What tests did in one copy: "passed", "failed" (by an assertion) or "broken", with the first message."""

    verdict: str
    message: str
    seconds: float


def copy_tree(destination: Path) -> Path:
    """The project's own files, without what runs leave behind."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, destination / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, destination / name)
    return destination


def run_tests(tree: Path, *tests: str) -> Outcome:
    """Run tests, up to the first that fails, with ``tree`` in the place of the installed package."""
    report = tree / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        *tests,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return Outcome("broken", f"no end after {TIMEOUT_SECONDS} s", time.monotonic() - started)
    seconds = time.monotonic() - started
    if process.returncode == 0:
        return Outcome("passed", "", seconds)
    failures = list(ElementTree.parse(report).iter("failure")) if report.exists() else []
    if not failures:
        return Outcome("broken", output[-2000:], seconds)
    short, full = failures[0].get("message", ""), failures[0].text or ""
    by_assertion = re.match(r"AssertionError|assert |Failed", short)
    return Outcome("failed" if by_assertion else "broken", f"{short}\n{full}", seconds)


def uses_the_copy(tree: Path) -> bool:
    """Whether a process started there imports the copy, and not the installed project."""
    command = [sys.executable, "-c", "import megatron_empg; print(megatron_empg.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    answer = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    return Path(answer.stdout.strip()).is_relative_to(tree)


def apply(mutation: Mutation, tree: Path) -> None:
    """Raises ValueError when the text to change is not there exactly once: the code has moved on."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: {mutation.file} has {text.count(mutation.old)} places with {mutation.old!r}, not "
            "one; bring this list in line with the code"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def judge(mutation: Mutation, outcome: Outcome) -> str:
    """ "caught", or why not."""
    if outcome.verdict == "passed":
        return "SURVIVED"
    if outcome.verdict == "broken":
        return "BROKEN (no assertion failed)"
    return "caught" if re.search(mutation.told, outcome.message) else "CAUGHT BY ACCIDENT (another message)"


def main() -> int:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutation for mutation in MUTATIONS if word in mutation.name]
    with tempfile.TemporaryDirectory(prefix="mutations_") as scratch, ThreadPoolExecutor(PARALLEL) as pool:
        home = Path(scratch).resolve()
        first = copy_tree(home / "probe")
        if not uses_the_copy(first):
            print("the installed megatron_empg is imported instead of the copy; nothing would be tested")
            return 1
        trees = {}
        for index, mutation in enumerate(chosen):
            trees[mutation] = copy_tree(home / str(index))
            apply(mutation, trees[mutation])
        tests = sorted({mutation.test for mutation in chosen})
        sound = pool.submit(run_tests, first, *tests)
        mutated = {mutation: pool.submit(run_tests, trees[mutation], mutation.test) for mutation in chosen}
        return report(sound.result(), {mutation: job.result() for mutation, job in mutated.items()})


def report(sound: Outcome, mutated: dict[Mutation, Outcome]) -> int:
    """Print the table and what went wrong; the exit status."""
    bad = 0
    print(f"{'fault':56}{'verdict':12}{'seconds':>8}  test")
    for mutation, outcome in mutated.items():
        verdict = judge(mutation, outcome)
        print(f"{mutation.name:56}{verdict:12}{outcome.seconds:8.0f}  {mutation.test}")
        if verdict != "caught":
            bad += 1
            print(f"    wanted: {mutation.told}\n    got: {outcome.message[-1500:] or 'the test passed'}")
    print(f"{'none':56}{sound.verdict:12}{sound.seconds:8.0f}  all of these tests")
    if sound.verdict != "passed":
        bad += 1
        print(sound.message[-3000:])
    print(f"{bad} problems" if bad else f"all {len(mutated)} faults were caught")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
