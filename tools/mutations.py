"""The faults that tools/test_mutations.py plants: what a slip would change, and the test that must notice."""

from dataclasses import dataclass

ALGORITHMS = "algorithms/"

ORACLES = "tests/unit/algorithms/test_oracles.py::"

MEAN_WEIGHTS = "tests/unit/algorithms/test_mean_weights.py::test_masked_tokens_and_samples_count_in_no_mean"

LOSSES = "tests/unit/algorithms/test_loss_oracles.py::test_loss_and_gradient_equal_the_loop"


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in the definition at ``place``; ``test`` must then fail with words like ``told``.

    tools/mutation_places.py says what a place is. An example is ``algorithms/grpo:Grpo.advantages``.
    """

    name: str
    place: str
    old: str
    new: str
    test: str
    told: str


def in_advantages(name: str, place: str, old: str, new: str, choice: str) -> Mutation:
    """A fault that makes an algorithm's advantages others than the plain loop's."""
    test = f"{ORACLES}test_advantages_equal_the_loop[{choice}]"
    return Mutation(name, ALGORITHMS + place, old, new, test, "Tensor-likes are not close")


def in_modulation(name: str, place: str, old: str, new: str, choice: str) -> Mutation:
    """A fault that makes modulated advantages others than the plain loop's."""
    test = f"{ORACLES}test_modulation_equals_the_loop[{choice}]"
    return Mutation(name, ALGORITHMS + place, old, new, test, "Tensor-likes are not close")


def in_correction(name: str, place: str, old: str, new: str, choice: str) -> Mutation:
    """A fault that makes a correction's weights others than the plain loop's."""
    test = f"{ORACLES}test_correction_equals_the_loop[{choice}]"
    return Mutation(name, ALGORITHMS + place, old, new, test, "Tensor-likes are not close")


def in_epo(name: str, definition: str, old: str, new: str, choice: str) -> Mutation:
    """A fault that makes EPO's term, over the batches of a run, other than the plain loop's."""
    test = "tests/unit/algorithms/test_loss_oracles.py::test_epo_equals_the_loop_over_the_batches_of_a_run"
    place = f"{ALGORITHMS}epo:{definition}"
    return Mutation(name, place, old, new, f"{test}[{choice}]", "Tensor-likes are not close")


def in_loss(name: str, place: str, old: str, new: str, choice: str) -> Mutation:
    """A fault that makes the loss or its gradient other than the plain loop's; ``choice``: name-KL-regularizer."""
    return Mutation(name, ALGORITHMS + place, old, new, f"{LOSSES}[{choice}]", "Tensor-likes are not close")


def in_mask(name: str, old: str, new: str, choice: int) -> Mutation:
    """A fault that masks other tokens than the plain loop does; ``choice``: of the combinations of masks."""
    test = f"{ORACLES}test_masks_equal_the_loop[chosen{choice}]"
    return Mutation(name, f"{ALGORITHMS}masks:MasksSection.kept", old, new, test, r"assert")


PROGRAM = [
    Mutation(
        "weight sync skipped after an update",
        "trainer/loop:Training._step",
        "self._publish(step + 1)",
        "pass",
        "tests/distributed/test_training_resume.py::test_every_version_is_published_before_it_samples",
        r"weights in the engines are stale",
    ),
    Mutation(
        "spans shifted by one in the actor",
        "actor/packing:Packer.pack",
        "targets[where - 1]",
        "targets[where - 2]",
        "tests/unit/actor/test_packing.py::test_a_packed_batch_by_hand",
        r"assert",
    ),
    Mutation(
        "spans shifted by one in the rollout",
        "rollout/episode:_record",
        "start = len(episode.tokens)",
        "start = len(episode.tokens) - 1",
        "tests/unit/rollout/test_episode.py::test_a_cut_turn_gets_its_end_from_the_template",
        r"assert",
    ),
    Mutation(
        "end token of a cut turn counted as the policy's own",
        "rollout/episode:_Play._observe",
        "self.episode.tokens += tokens",
        "self.episode.tokens += tokens; self.episode.turns[-1].end += cut",
        "tests/unit/rollout/test_episode.py::test_a_cut_turn_gets_its_end_from_the_template",
        r"assert",
    ),
    Mutation(
        "control tokens found in foreign text",
        "rollout/text_tokens:TextTokens._runs",
        "piece.message is not None",
        "False",
        "tests/unit/rollout/test_hostile_text.py::test_what_once_forged_a_turn_is_text",
        r"assert",
    ),
    Mutation(
        "entropy without the cross-rank reduction",
        "vocab_parallel/statistics:combine",
        "(weight * (c + delta * s)).sum(0)",
        "(weight * (c + delta * s))[0]",
        "tests/distributed/test_actor_logits.py::test_score_and_export_equal_hugging_face[qwen2-{'tensor': 2}]",
        r"Tensor-likes are not close",
    ),
    Mutation(
        "temperature not applied by the actor",
        "actor/actor:Actor._run.forward_step",
        "temperature=temperature), partial(last, batch)",
        "temperature=1.0), partial(last, batch)",
        "tests/distributed/test_actor_logits.py::test_score_and_export_equal_hugging_face[qwen2-{}]",
        r"Tensor-likes are not close",
    ),
    Mutation(
        "a bonus across trajectories",
        f"{ALGORITHMS}empg:last_turns",
        "turns.cumsum(0)",
        "turns.cumsum(0)[-1:]",
        "tests/unit/algorithms/test_empg.py::test_last_steps_have_no_bonus_and_none_crosses_trajectories",
        r"assert",
    ),
    Mutation(
        "turn entropies paired with the wrong turns",
        f"{ALGORITHMS}base:Experience.turn_means",
        "self.turn_of_token",
        "self.turn_of_token.flip(0)",
        "tests/unit/trainer/test_advantages.py::test_a_turns_entropy_is_the_mean_over_its_own_tokens",
        r"assert",
    ),
    Mutation(
        "episodes that ended in an error trained as reward 0",
        "rollout/service/collect:_usable",
        'episode.outcome != "error"',
        "True",
        "tests/unit/rollout/service/test_collect.py::test_errors_never_train_and_leave_the_rest_of_their_group",
        r"assert",
    ),
    Mutation(
        "a mean per microbatch instead of the global token mean",
        "actor/model:transformer_config",
        "calculate_per_token_loss=True",
        "calculate_per_token_loss=False",
        "tests/distributed/test_actor_training.py::test_packing_does_not_matter",
        r"loss|grad_norm",
    ),
    Mutation(
        "an algorithm's history starts anew on resuming",
        "actor/checkpoint:Checkpoints.load_newest",
        'self.algorithm.load_state_dict(manifest["algorithm"])',
        "pass",
        "tests/distributed/test_training_resume.py::test_an_interrupted_run_ends_as_an_uninterrupted_one",
        r"assert",
    ),
    Mutation(
        "episodes shuffled by another seed",
        "trainer/policy_update:update_policy",
        "split_episodes(len(experience.rewards), wanted, seed)",
        "split_episodes(len(experience.rewards), wanted, seed + 1)",
        "tests/unit/trainer/test_policy_update.py::test_an_episodes_samples_stay_together",
        r"assert",
    ),
    Mutation(
        "learning-rate schedule starts anew on resuming",
        "actor/sharded_state:restore",
        "actor.scheduler.step(increment=schedule_steps)",
        "pass",
        "tests/distributed/test_training_resume.py::test_an_interrupted_run_ends_as_an_uninterrupted_one",
        r"assert_same",
    ),
    Mutation(
        "one step tensor for all parameters after loading",
        "upstream/megatron_optimizer:own_step_after_loading.load_state_dict",
        'state["step"].clone()',
        'state["step"]',
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_distributed_optimizer]",
        r"assert_same",
    ),
    Mutation(
        "step missing in the reshardable format",
        "upstream/megatron_optimizer:keep_step_in_reshardable_loading.set_states",
        '{**tensors, "step": self.optimizer.state[parameter]["step"]}',
        "tensors",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_distributed_optimizer]",
        r"KeyError: 'step'",
    ),
    Mutation(
        "no state saved of an optimizer that has not stepped",
        "actor/sharded_state:sharded_state",
        "complete_state(actor.optimizer)",
        "pass",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_before_any_update]",
        r"Traceback",
    ),
    Mutation(
        "the next update leaks into a checkpoint being written",
        "actor/background_write:_copied_to_cpu",
        'copy = device().type == "cpu"',
        "copy = False",
        "tests/distributed/test_checkpoints.py::test_resumed_training_is_bit_equal[resumed_torch_optimizer]",
        r"assert_same",
    ),
    Mutation(
        "an engine takes weights whose checksums differ",
        "weights/sync/receiver:Receiver.weights",
        "arrival.check()",
        "assert arrival",
        "tests/unit/weights/test_publishing.py::test_a_flipped_bit_ends_it_by_tensor_engine_and_sums",
        r"DID NOT RAISE",
    ),
    Mutation(
        "settle under a rank condition",
        "actor/weights:export_hugging_face",
        "actor.settle()",
        "actor.sends_weights and actor.settle()",
        "tests/recipes/test_rehearsal.py::test_a_warm_up_in_a_clusters_layout_exports[deepsearch_7b]",
        r"settle",
    ),
    Mutation(
        "a flag that a layout cannot bear",
        "recipes/deepsearch_7b.yaml",
        "context_parallel: 2",
        "context_parallel: 2\n  context_exchange: a2a",
        "tests/recipes/test_as_written.py::test_model_and_layout_fit_each_other[deepsearch_7b]",
        r"actor\.context_exchange is a2a",
    ),
    Mutation(
        "a recipe without an action format",
        "recipes/deepsearch_7b.yaml",
        "prompt: tools",
        "prompt: none",
        "tests/recipes/test_as_written.py::test_the_policy_is_told_how_to_act_unless_it_was_taught[deepsearch_7b]",
        r"does not tell its model how to search, visit, answer",
    ),
    Mutation(
        "an evaluation longer than its limit",
        "trainer/loop:Training._asked",
        "self._agree(named)",
        "named",
        "tests/recipes/test_as_written.py::test_an_evaluation_may_take_what_all_of_its_passes_take[deepsearch_7b]",
        r"an evaluation longer than its limit",
    ),
    Mutation(
        "an observation past the limit",
        "rollout/episode:_Play._observe",
        "len(tokens) > most",
        "False",
        "tests/recipes/test_as_written.py::test_no_observation_carries_an_episode_past_its_limit[quickstart]",
        r"carried the episode past its limit",
    ),
    Mutation(
        "a rank begins to read at the wrong row",
        "weights/mapping/mappings:Column.read_shard",
        "TensorSlice(0, rank * length, (rank + 1) * length)",
        "TensorSlice(0, rank, rank + length)",
        "tests/unit/weights/test_mapping_kinds.py::test_a_rank_reads_its_shard_and_little_more",
        r"assert",
    ),
    Mutation(
        "engines that may not share a key-value head",
        "actor/layout_rules:engine_faults",
        "kv_heads % tensor_parallel and tensor_parallel % kv_heads",
        "kv_heads % tensor_parallel",
        "tests/unit/actor/test_layout_rules.py::test_engines_share_heads_evenly_or_a_head_in_whole_groups",
        r"assert",
    ),
    Mutation(
        "a third restart from one checkpoint",
        "launch/restart:MOST_FROM_ONE_CHECKPOINT",
        "3",
        "4",
        "tests/unit/launch/test_restart.py::"
        "test_a_run_is_not_restarted_too_often_nor_a_third_time_from_one_checkpoint",
        r"two restarts brought no checkpoint",
    ),
    Mutation(
        "a lasting fault restarted",
        "launch/restart:decide",
        "end.cause is EndCause.FAULT",
        "False",
        "tests/unit/launch/test_restart.py::test_a_lasting_fault_ends_the_run_with_the_code_of_its_part",
        r"assert",
    ),
]

ADVANTAGES = [
    in_advantages(
        "a biased standard deviation",
        "grpo:normalized_in_groups",
        "(squares / (counts - 1).clamp(min=1)).sqrt()",
        "(squares / counts).sqrt()",
        "grpo",
    ),
    in_advantages(
        "Dr. GRPO divided by the standard deviation",
        "grpo:Grpo.advantages",
        "group_relative(experience, normalize_std=self.normalize_std)",
        "group_relative(experience, normalize_std=True)",
        "dr_grpo",
    ),
    in_advantages(
        "a group of one compared with itself",
        "grpo:group_advantages",
        "torch.where(grouping.sizes > 1, compared, alone)",
        "compared",
        "grpo",
    ),
    in_advantages(
        "a reward for overlong episodes",
        "dapo:Dapo.shaped_rewards",
        "experience.rewards.double() + penalties",
        "experience.rewards.double() - penalties",
        "dapo_overlong",
    ),
    in_advantages(
        "the overlong penalty begins where it should end",
        "dapo:overlong_penalty",
        "(lengths - (max_length - buffer))",
        "(lengths - max_length)",
        "dapo_overlong",
    ),
    in_advantages(
        "RLOO without its factor",
        "rloo:leave_one_out",
        "factor * normalized_in_groups",
        "normalized_in_groups",
        "rloo",
    ),
    in_advantages(
        "REINFORCE++ whitened by group",
        "reinforce_pp:ReinforcePP.advantages",
        "mean, std = mean_and_std(returns, counted)",
        "from megatron_empg.algorithms.grpo import grouped, normalized_in_groups; "
        "mean, std = mean_and_std(returns, counted); "
        "questions = grouped(experience.groups[experience.episode_of_turn]); "
        "returns = mean + std * normalized_in_groups(returns, questions, normalize_std=True)",
        "reinforce_pp",
    ),
    in_advantages(
        "REINFORCE++ counts turns for tokens",
        "reinforce_pp:ReinforcePP.advantages",
        'self.weights == "token"',
        "False",
        "reinforce_pp",
    ),
    in_advantages(
        "a return across episodes",
        "returns:discounted_returns",
        "returns[reach:].where(to_come[:-reach] >= reach, 0.0)",
        "returns[reach:]",
        "reinforce_pp_turns",
    ),
    in_advantages(
        "one discount for many turns",
        "returns:discounted_returns",
        "2 * reach, factor * factor",
        "2 * reach, factor",
        "gigpo",
    ),
    Mutation(
        "a shaped reward at every turn",
        f"{ALGORITHMS}returns:turn_rewards_in_force",
        "added.where(is_last_turn(experience.episode_of_turn), 0.0)",
        "added",
        "tests/unit/algorithms/test_returns.py::test_the_last_turn_takes_what_a_shaping_changed",
        r"assert",
    ),
    in_advantages(
        "GiGPO's groups without the question",
        "gigpo:step_groups",
        "grouped(question_of_turn * len(states.counts) + states.index)",
        "grouped(states.index)",
        "gigpo",
    ),
    in_advantages(
        "GiGPO without its weight",
        "gigpo:with_step_advantages",
        "+ omega * of_steps",
        "+ of_steps",
        "gigpo_means",
    ),
    in_advantages(
        "GiGPO compares rewards for returns",
        "gigpo:with_step_advantages",
        "normalized_in_groups(returns, states",
        "normalized_in_groups(rewards, states",
        "gigpo",
    ),
    in_advantages(
        "IGPO's gain reversed",
        "igpo:Igpo._gains",
        "before.roll(-1) - before",
        "before - before.roll(-1)",
        "igpo",
    ),
    in_advantages(
        "IGPO's gold turn behind the turn",
        "igpo:gold_in_place_of_turns",
        "for start in sample.turns[:, 0].tolist():",
        "for start in sample.turns[:, 1].tolist():",
        "igpo",
    ),
    in_advantages(
        "IGPO's outcome lost",
        "igpo:Igpo.advantages",
        "torch.where(last, rewards, self._gains(experience, probes))",
        "torch.where(last, 0.0, self._gains(experience, probes))",
        "igpo",
    ),
    Mutation(
        "DAPO's filter keeps equal rewards",
        f"{ALGORITHMS}dapo:informative_groups",
        "return (low < high)[index]",
        "return (low <= high)[index]",
        f"{ORACLES}test_only_dapo_and_sampo_leave_out_groups_of_equal_rewards",
        r"assert",
    ),
    Mutation(
        "SAMPO's filter off",
        f"{ALGORITHMS}sampo:Sampo.keeps",
        "return rewards_differ(rewards)",
        "return True",
        f"{ORACLES}test_only_dapo_and_sampo_leave_out_groups_of_equal_rewards",
        r"sampo",
    ),
    Mutation(
        "SAMPO's mean over tokens",
        f"{ALGORITHMS}sampo:Sampo.own_mean",
        'return "sequence"',
        'return "token"',
        "tests/unit/algorithms/test_sampo.py::test_the_loss_is_the_mean_over_sequences",
        r"assert",
    ),
]

MODULATIONS = [
    in_modulation(
        "EMPG's scale without its mean",
        "empg:_combined",
        "g /= _mean(g, weights, group)",
        "pass",
        "empg_minmax_turn",
    ),
    in_modulation(
        "EMPG amplifies the unsure",
        "empg:_combined",
        "g = (-k * h_norm).exp_()",
        "g = (k * h_norm).exp_()",
        "empg_minmax_turn",
    ),
    in_modulation(
        "EMPG's bonus for a turn's own clarity",
        "empg:future_clarity",
        "torch.mul(h_norm[1:], -k_f, out=clarity[:-1])",
        "torch.mul(h_norm[:-1], -k_f, out=clarity[:-1])",
        "empg_minmax_turn",
    ),
    in_modulation(
        "EMPG centred before its bonus",
        "empg:_combined",
        "_mean(modulated, weights, group)",
        "_mean(modulated - bonus, weights, group)",
        "empg_minmax_turn",
    ),
    in_modulation(
        "EMPG counts turns where tokens were asked for",
        "empg:EmpgModulation.modulate",
        'section.weights == "token"',
        "False",
        "empg_minmax_token",
    ),
    in_modulation(
        "EMPG's control is not reversed",
        "empg:EmpgModulation.modulate",
        "section.reverse",
        "False",
        "empg_reversed",
    ),
    in_modulation(
        "outliers beyond the quantiles",
        "normalization:by_quantiles",
        ".clamp_(0, 1)",
        "",
        "empg_quantile_turn",
    ),
    in_modulation(
        "ties ranked as their last",
        "normalization:by_rank",
        "counts.cumsum(0) - (counts.double() + 1) / 2",
        "counts.cumsum(0).double() - 1",
        "empg_rank_turn",
    ),
    Mutation(
        "EMPG's k of the batch itself",
        f"{ALGORITHMS}empg:EmpgModulation.modulate",
        "k=k",
        "k=self.targets.k(section.k)",
        "tests/unit/algorithms/test_automatic.py::test_the_first_batch_has_the_given_constants",
        r"assert",
    ),
    in_modulation(
        "AEM's set is always the batch",
        "aem:AemModulation._sets",
        'if self.section.set == "batch":',
        "if True:",
        "aem_question",
    ),
    in_modulation(
        "AEM's question is an episode",
        "aem:AemModulation._sets",
        'if self.section.set == "trajectory":',
        'if self.section.set != "batch":',
        "aem_question",
    ),
    in_modulation(
        "AEM amplifies the unsure",
        "aem:_scale",
        "-strength",
        "strength",
        "aem_batch",
    ),
]

REGULARIZERS = [
    in_loss(
        "entropy costs",
        "entropy_bonus:BonusTerm.__call__",
        "return -self.coefficient * entropies",
        "return self.coefficient * entropies",
        "grpo-none-entropy",
    ),
    in_epo(
        "EPO's band never applied",
        "EpoRegularizer._band",
        "known = place < len(self._means)",
        "known = place < 0",
        "differentiable",
    ),
    in_epo(
        "EPO's band of the batch itself",
        "EpoRegularizer.begin",
        "return metrics",
        "self._means = torch.tensor([history.mean for history in self.histories]).double(); return metrics",
        "differentiable",
    ),
    in_epo(
        "EPO's distance without gradient",
        "EpoTerm.__call__",
        "self.alpha * side * (entropies - end)",
        "self.alpha * side * (entropies.detach() - end)",
        "differentiable",
    ),
    in_epo(
        "EPO's mean over all turns alike",
        "kept_mean_weights",
        "(tokens * turns[episode] * episodes)",
        "(tokens * some.sum())",
        "differentiable",
    ),
    in_epo(
        "EPO's one history for all places",
        "EpoRegularizer._band",
        'self.settings.history == "turn"',
        "False",
        "released",
    ),
    in_epo(
        "EPO's phase weights left out",
        "EpoRegularizer.term",
        "self.settings.alpha * self._phase_weight",
        "self.settings.alpha",
        "distance by place, with phases",
    ),
    in_epo(
        "EPO counts masked turns in its means",
        "kept_mean_weights",
        "some = (tokens > 0).double()",
        "some = torch.ones_like(tokens)",
        "differentiable",
    ),
    in_loss(
        "EPO's mean taken twice",
        "epo:EpoTerm",
        "weighted: bool = True",
        "weighted: bool = False",
        "sampo-none-epo",
    ),
]

CORRECTIONS = [
    in_correction(
        "TIS without its cap",
        "truncated_sampling:Tis.weigh",
        "bounded_ratio(log_ratio).clamp(max=self.cap)",
        "bounded_ratio(log_ratio)",
        "tis",
    ),
    in_correction(
        "TIS by token where sequences were asked for",
        "rollout_correction:at_level",
        'level == "token"',
        "True",
        "tis_sequence",
    ),
    in_correction(
        "the engine by the actor",
        "rollout_correction:log_ratios",
        "return actor.double() - engine.double()",
        "return engine.double() - actor.double()",
        "tis",
    ),
    in_correction(
        "MIS keeps small ratios",
        "truncated_sampling:Mis.weigh",
        "inside(log_ratio, self.low, self.high)",
        "inside(log_ratio, 0.0, self.high)",
        "mis",
    ),
    in_correction(
        "IcePop's bounds swapped",
        "icepop:IcePop.weigh",
        "inside(log_ratio, self.low, self.high)",
        "inside(log_ratio, 1 / self.high, 1 / self.low)",
        "icepop",
    ),
    in_correction(
        "sequence rejection by token",
        "sequence_rejection:SequenceRejection.weigh",
        "over_samples(log_ratios(logprobs, experience), experience, self.measure)",
        "log_ratios(logprobs, experience)",
        "rejection",
    ),
    in_correction(
        "the geometric mean is a product",
        "rollout_correction:over_samples",
        "totals = totals / lengths.clamp(min=1)",
        "pass",
        "rejection",
    ),
]

LOSS = [
    in_loss(
        "the correction's weights unused",
        "algorithm:PolicyLoss.__call__",
        "loss * streams.loss_weights * streams.mean_weights",
        "loss * streams.mean_weights",
        "grpo-none-none",
    ),
    in_loss(
        "PPO's better bound for the worse",
        "policy_loss:clipped_policy_loss",
        "loss = torch.maximum(free, bounded)",
        "loss = torch.minimum(free, bounded)",
        "grpo-none-none",
    ),
    in_loss(
        "DAPO without clip-higher",
        "dapo:Dapo.surrogate",
        "TokenClip(self.clip_low, self.clip_high,",
        "TokenClip(self.clip_low, self.clip_low,",
        "dapo-none-none",
    ),
    in_loss(
        "GSPO's mean over a turn",
        "sequence_clip:SequenceClip.__call__",
        "segments.sample_means(",
        "segments.turn_means(",
        "gspo-none-none",
    ),
    in_loss(
        "GSPO's ratio without gradient",
        "sequence_clip:SequenceClip.__call__",
        "(logprobs - logprobs.detach())",
        "0 * logprobs",
        "gspo-none-none",
    ),
    Mutation(
        "masked tokens decide on GSPO's clip",
        f"{ALGORITHMS}sequence_clip:SequenceClip.__call__",
        "streams.mean_weights != 0",
        "streams.mean_weights >= 0",
        "tests/unit/algorithms/test_sequence_clip.py::test_what_the_loss_does_not_see_decides_on_no_clip",
        "Tensor-likes are not close",
    ),
    in_loss(
        "the KL's estimator differentiated",
        "kl:KlTerm.__call__",
        "term = value + slope * (logprobs - now)",
        "term = importance * kl_estimate(logprobs, streams.reference_logprobs, self.estimator)",
        "grpo-k3-none",
    ),
    in_loss(
        "the KL's gradient at the old policy's tokens",
        "kl:KlTerm.__call__",
        "slope = importance * (now - streams.reference_logprobs)",
        "slope = now - streams.reference_logprobs",
        "grpo-k3-none",
    ),
    Mutation(
        "the KL held to the gold turns' scores",
        f"{ALGORITHMS}algorithm:Algorithm.credit",
        "reference[0].logprobs if reference else None",
        "probes[0].logprobs if reference else None",
        f"{ORACLES}test_credit_equals_the_loops[igpo]",
        "attribute 'shape' do not match",
    ),
    in_loss(
        "log-probs of other episodes",
        "algorithm:Algorithm.samples",
        "tokens = experience.tokens_of(episodes)",
        "tokens = experience.tokens_of(sorted(episodes))",
        "grpo-none-none",
    ),
    Mutation(
        "masked tokens counted in the mean",
        f"{ALGORITHMS}algorithm:mean_weights",
        "return (kept * len(kept) / kept.sum().clamp(min=1)).float()",
        "return kept.float()",
        f"{MEAN_WEIGHTS}[0.6-token]",
        r"assert",
    ),
    Mutation(
        "masked samples counted in the mean",
        f"{ALGORITHMS}algorithm:mean_weights",
        "samples = in_sample.count_nonzero().clamp(min=1)",
        "samples = max(len(lengths), 1)",
        f"{MEAN_WEIGHTS}[0.1-sequence]",
        r"assert",
    ),
]

MASKS = [
    in_mask(
        "truncated episodes trained on",
        "(experience.truncated[experience.episode_of_turn] & self.truncated)",
        "(experience.truncated[experience.episode_of_turn] & self.cut_turns)",
        4,
    ),
    in_mask(
        "cut turns trained on",
        "experience.cut & self.cut_turns",
        "experience.cut & self.truncated",
        2,
    ),
    in_mask(
        "turns with an advantage left out",
        "((advantages.turns == 0) & self.bonus_only)",
        "((advantages.turns != 0) & self.bonus_only)",
        1,
    ),
    Mutation(
        "turns without an advantage told after their bonus",
        f"{ALGORITHMS}algorithm:Algorithm.credit",
        "section.masks.kept(experience, advantages)",
        "section.masks.kept(experience, replace(advantages, turns=turns))",
        "tests/unit/algorithms/test_masks.py::"
        "test_turns_that_a_bonus_alone_would_train_are_told_by_their_advantage_before_it",
        r"assert",
    ),
]

BOOTSTRAP = "tests/unit/study/test_hierarchical_bootstrap.py::"

STUDY = [
    Mutation(
        "a study's interval as narrow as seeds that agree",
        "study/bootstrap:paired_difference",
        "max(student_quantile(1 - TAIL, seeds - 1) * error, NORMAL * luck)",
        "student_quantile(1 - TAIL, seeds - 1) * error",
        f"{BOOTSTRAP}test_seeds_that_agree_by_chance_are_not_sure",
        r"assert",
    ),
    Mutation(
        "a study's effects as close as those of a sample",
        "study/bootstrap:_drawn_means",
        "math.sqrt(count / (count - 1))",
        "1.0",
        f"{BOOTSTRAP}test_where_seeds_alone_differ_the_interval_is_students",
        r"assert",
    ),
    Mutation(
        "a study's p-values corrected without Holm's steps",
        "study/holm:holm",
        "len(p_values) - place",
        "len(p_values)",
        "tests/unit/study/test_holm.py::test_an_example_by_hand",
        r"assert",
    ),
    Mutation(
        "a study's failures forgotten by a kill",
        "study/runner:StudyRunner._make",
        "len(place.failures()) < self._study.attempts",
        "True",
        "tests/unit/study/test_study_runner.py::test_a_kill_after_the_last_failure_loses_nothing",
        r"assert",
    ),
    Mutation(
        "a study's run made again beside another process",
        "study/runner:StudyRunner._look_at",
        "read_results(self._study.results).get(cell)",
        "None",
        "tests/unit/study/test_study_runner.py::test_a_line_that_another_process_has_written_meanwhile_is_seen",
        r"assert",
    ),
]

MUTATIONS = [*PROGRAM, *ADVANTAGES, *MODULATIONS, *REGULARIZERS, *CORRECTIONS, *LOSS, *MASKS, *STUDY]
