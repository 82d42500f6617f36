"""Mutants: faults put into the code on purpose, and the tests that must see each of them (`make mutants`).

    python tests/mutants.py            all of them
    python tests/mutants.py seeds keys those whose name holds one of the words

Each is applied in a temporary copy of the checkout, never in the checkout itself, and only its own tests run. It is killed where one
of them fails. The tests of all that are chosen run first on the code as it is: there they must pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv", "outputs", "__pycache__", ".*_cache", "*.egg-info")
LIMIT_SECONDS = 900


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: What is wrong.
        file: File of the checkout.
        text: What it holds exactly once.
        replacement: What stands there instead.
        tests: Ids of the tests that must see it.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


ARGUMENTS = "tests/unit/test_trainer_arguments.py"
TRAINER = "tests/unit/test_ngrpo_trainer.py"
SEEDS = f"{TRAINER}::test_every_rollout_has_a_seed_of_its_own"
ASKED = f"{TRAINER}::test_rollouts_are_asked_for_with_the_settings_of_training"
ORDER = f"{TRAINER}::test_every_epoch_has_an_order_of_its_own"
PASSES = f"{TRAINER}::test_every_pass_sees_the_recorded_inputs"
MASK = f"{TRAINER}::test_mixed_positions_can_be_left_out_of_the_loss"
MEASURING = "tests/unit/test_benchmark_evaluation.py"
WAYS = f"{MEASURING}::test_samples_that_are_generated_in_another_way_are_not_reused"
SETTINGS = f"{MEASURING}::test_samples_of_other_settings_are_not_reused"
GATE = "tests/unit/test_gate.py"
LETTERS = "tests/unit/test_multiple_choice.py"
STORAGE = "tests/pipeline/test_storage.py"
DAMAGE = f"{STORAGE}::test_damage_in_the_store_is_seen_and_never_used"
LARGE = f"{STORAGE}::test_a_large_file_that_is_another_is_seen_without_reading_it"
SERVED = "tests/pipeline/test_served_evaluation.py"
CONTAMINATION = "tests/unit/test_contamination.py"
SLOTS = "tests/unit/test_slots.py"
SLOTS_HOST = "tests/unit/test_slots_host.py"
VLLM_WEIGHTS = "tests/unit/test_vllm_weights.py"
EQUATIONS = "tests/unit/test_mixing.py"
REPLAY = "tests/unit/test_replay.py"
READY = "tests/unit/test_ready_strategies.py"
READY_REPLAY = f"{READY}::test_rollouts_replay_and_a_damaged_record_is_noticed"
RATIO = "tests/unit/test_mixed_ratio.py"
KEYS = "tests/pipeline/test_keys.py"
FUSED = "tests/unit/test_fused.py"
SIGNING = "tests/unit/test_signing.py"
STOPPING = "tests/unit/test_early_stopping.py"
DRIFT = "tests/unit/test_drift.py"
EQUIVALENCE = "tests/unit/test_equivalence.py"
NOTIFICATIONS = "tests/unit/test_notifications.py"
COSTS = "tests/unit/test_costs.py"
ENDPOINT = "tests/unit/test_endpoint.py"
SERVING = "tests/unit/test_serving.py"
PRUNING = "tests/pipeline/test_pruning.py"
NOTIFIED = "tests/pipeline/test_notified_runs.py::test_what_became_of_a_deployment_is_told_after_the_decision"
SIGNED = "tests/pipeline/test_signed_promotion.py::test_the_key_of_the_run_that_made_it_counts_not_that_of_the_latest"
SIGNED_DIRECTORY = "tests/pipeline/test_signed_promotion.py::test_a_directory_must_be_signed_by_the_key_of_the_version_that_it_came_from"
UNDONE = "tests/pipeline/test_watching.py::test_where_the_settings_say_so_the_promotion_is_undone_and_that_is_signed"

_GRPO = "components/ngrpo/training/policy_optimization.py"
_SFT = "components/ngrpo/training/warm_start.py"
_TRAINER = "components/ngrpo/training/ngrpo_trainer.py"
_ROLLOUTS = "components/ngrpo/training/rollout_trainer.py"
_PROMPTS = "components/ngrpo/training/prompt_sampler.py"
_SAMPLER = "components/ngrpo/evaluation/configured_sampler.py"
_MEASURING = "components/ngrpo/stages/benchmark_evaluation.py"
_GATE = "components/ngrpo/evaluation/gate.py"
_PROTOCOL = "components/ngrpo/evaluation/protocol.py"
_SLOTS = "components/ngrpo/rollout/slots.py"
_ENGINE = "components/ngrpo/rollout/transformers_engine.py"
_EQUATIONS = "components/ngrpo/mixing/neighbor_mixing.py"
_DECISION = "components/ngrpo/rollout/fused/decision.py"
_SCAN = "components/ngrpo/rollout/fused/scan.py"
_MIXTURE = "components/ngrpo/rollout/fused/mixture.py"
_COUNTER = "components/ngrpo/rollout/fused/counter.py"
_RANDOM = "components/ngrpo/mixing/counter.py"
_MIXER = "components/ngrpo/mixing/mixer.py"
_INPUTS = "components/ngrpo/mixing/inputs.py"
_RECORDS = "components/ngrpo/mixing/records.py"
_STRATEGIES = "components/ngrpo/mixing/strategies"
_CONTAMINATION = "components/ngrpo/data/contamination.py"
_KEYS = "components/ngrpo/stages/keys.py"
_VERIFICATION = "components/ngrpo/signing/verification.py"
_CURTAILMENT = "components/ngrpo/evaluation/curtailment.py"
_DRIFT = "components/ngrpo/evaluation/drift.py"
_MESSAGES = "components/ngrpo/notifications/messages.py"
_WEBHOOKS = "components/ngrpo/notifications/webhooks.py"
_SPENDING = "components/ngrpo/ledger/spending.py"
_PRUNING = "pipelines/local/pruning.py"

_TEN = """        "top_p": rollout.top_p,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _schedule(settings),
        "warmup_steps": round(settings.warmup_ratio * settings.steps),
        "adam_beta2": settings.adam_beta2,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "beta": settings.kl_coefficient,
        "use_bias_correction_kl": settings.use_bias_correction_kl,
        "epsilon": settings.clip_epsilon,
        "epsilon_high": settings.epsilon_high,
        "delta": settings.delta,
        "loss_type": settings.loss_type,
        "scale_rewards": settings.scale_rewards,
"""


def _dropped(file: str, line: str) -> Mutant:
    """A setting that no longer reaches TRL."""
    name, _, value = line.partition("=")
    return Mutant(f"argument {name} of {Path(file).stem}", file, f'        "{name}": {value},\n', "", (ARGUMENTS,))


MUTANTS = (
    # The translation.
    Mutant("arguments: ten settings of training at once", _GRPO, _TEN, "", (ARGUMENTS,)),
    *(
        _dropped(_GRPO, line)
        for line in (
            "weight_decay=settings.weight_decay",
            "max_grad_norm=settings.max_grad_norm",
            "epsilon=settings.clip_epsilon",
            "importance_sampling_level=settings.importance_sampling_level",
            "seed=config.seed",
            "disable_dropout=True",
            "logging_nan_inf_filter=False",
            'bf16=config.model.dtype == "bfloat16"',
        )
    ),
    *(
        _dropped(_SFT, line)
        for line in (
            "weight_decay=settings.weight_decay",
            "warmup_steps=round(settings.warmup_ratio * settings.steps)",
            "max_length=settings.max_tokens",
        )
    ),
    # Bases, adapters and selection.
    Mutant(
        "selection: measured at checkpoints alone",
        _GRPO,
        "settings.selection.steps or settings.save_steps",
        "settings.save_steps",
        (f"{ARGUMENTS}::test_the_policy_is_measured_as_often_as_it_is_asked_for",),
    ),
    Mutant(
        "selection: the best is not saved between checkpoints",
        "components/ngrpo/training/checkpointing.py",
        'metrics["eval_mean"] <= state.best_metric',
        'metrics["eval_mean"] > state.best_metric',
        ("tests/unit/test_checkpoints.py::test_a_policy_that_is_the_best_is_saved_wherever_it_is_measured",),
    ),
    Mutant(
        "adapters: the first stage takes any target",
        "components/ngrpo/stages/prepare_data.py",
        "in config.adapters.items()",
        "in ()",
        (
            "tests/unit/test_checking.py"
            "::test_adapters_for_layers_that_the_model_does_not_have_are_refused_before_anything_runs",
        ),
    ),
    Mutant(
        "plain template: an end token in front",
        "components/ngrpo/config/template_file.py",
        "{% if bos_token and bos_token != eos_token %}",
        "{% if bos_token %}",
        ("tests/unit/test_chat_format.py::test_the_plain_template_writes_what_is_said_and_ends_a_response",),
    ),
    Mutant(
        "arguments: memory of vLLM",
        "components/ngrpo/rollout/engine_from_files.py",
        "gpu_memory_utilization=config.vllm.gpu_memory_utilization",
        "gpu_memory_utilization=0.4",
        (ARGUMENTS,),
    ),
    Mutant(
        "arguments: nucleus of validation",
        "components/ngrpo/training/validation.py",
        "self.config.temperature, self.config.top_p)",
        "self.config.temperature)",
        (ARGUMENTS,),
    ),
    Mutant(
        "arguments: loss of mixed positions",
        _GRPO,
        "mask_mixed_positions=config.training.mask_mixed_positions",
        "mask_mixed_positions=False",
        (ARGUMENTS,),
    ),
    Mutant(
        "arguments: refresh of the index",
        _GRPO,
        'every_batch=config.training.index_refresh == "every_batch"',
        "every_batch=False",
        (ARGUMENTS,),
    ),
    Mutant(
        "arguments: nucleus of evaluation",
        _SAMPLER,
        "config.evaluation.temperature, config.evaluation.top_p)",
        "config.evaluation.temperature)",
        (ARGUMENTS,),
    ),
    Mutant(
        "arguments: nucleus of a rollout",
        _ROLLOUTS,
        "Sampling(self.max_completion_length, self.temperature, self.top_p)",
        "Sampling(self.max_completion_length, self.temperature)",
        (ASKED,),
    ),
    Mutant(
        "arguments: temperature of a rollout",
        _ROLLOUTS,
        "Sampling(self.max_completion_length, self.temperature, self.top_p)",
        "Sampling(self.max_completion_length, 1.0, self.top_p)",
        (ASKED,),
    ),
    # Randomness of training.
    Mutant(
        "seeds without the step",
        _ROLLOUTS,
        "request_seed(self.args.seed, step, part, first + row)",
        "request_seed(self.args.seed, 0, part, first + row)",
        (SEEDS,),
    ),
    Mutant(
        "seeds without the row",
        _ROLLOUTS,
        "request_seed(self.args.seed, step, part, first + row)",
        "request_seed(self.args.seed, step, part, first)",
        (SEEDS,),
    ),
    Mutant(
        "seeds without the part of the step",
        _ROLLOUTS,
        "request_seed(self.args.seed, step, part, first + row)",
        "request_seed(self.args.seed, step, 0, first + row)",
        (f"{TRAINER}::test_rollout_batches_of_one_step_have_seeds_of_their_own",),
    ),
    Mutant(
        "seeds without the run's seed",
        _ROLLOUTS,
        "request_seed(self.args.seed, step, part, first + row)",
        "request_seed(0, step, part, first + row)",
        (SEEDS,),
    ),
    Mutant(
        "order of every epoch the same",
        _PROMPTS,
        "request_seed(self.seed, self._epoch())",
        "request_seed(self.seed, 0)",
        (ORDER,),
    ),
    Mutant("order knows no epoch", _ROLLOUTS, "lambda: int(self.state.epoch or 0),", "lambda: 0,", (ORDER,)),
    Mutant(
        "order is not shuffled",
        _ROLLOUTS,
        "            shuffle=stock.shuffle,\n",
        "            shuffle=False,\n",
        (ORDER,),
    ),
    Mutant(
        "order without the run's seed",
        _PROMPTS,
        "request_seed(self.seed, self._epoch())",
        "request_seed(0, self._epoch())",
        (ORDER,),
    ),
    # Keys of samples.
    *(
        Mutant(f"samples' key without {name}", _MEASURING, text, replacement, (test,))
        for name, test, text, replacement in (
            (
                "prompts",
                f"{MEASURING}::test_samples_of_other_prompts_are_not_reused",
                "[weights, prompts, config.seed,",
                "[weights, config.seed,",
            ),
            ("dtype", WAYS, "        config.model.dtype,\n    ]\n", "    ]\n"),
            (
                "generator",
                f"{MEASURING}::test_samples_of_another_generator_are_not_reused",
                "sampling, mixing, generator, libraries]",
                "sampling, mixing, libraries]",
            ),
            (
                "weights",
                f"{MEASURING}::test_both_models_get_the_same_prompts_and_seeds",
                "[weights, prompts, config.seed,",
                "[prompts, config.seed,",
            ),
            ("seed", SETTINGS, "[weights, prompts, config.seed,", "[weights, prompts,"),
            ("mixing", SETTINGS, "sampling, mixing, generator, libraries]", "sampling, generator, libraries]"),
            (
                "libraries",
                f"{MEASURING}::test_samples_have_another_key_with_another_version_of_what_generates_them",
                "sampling, mixing, generator, libraries]",
                "sampling, mixing, generator]",
            ),
            (
                "candidates",
                WAYS,
                '[evaluation.mixing.model_dump(mode="json"), config.neighbors.candidates]',
                '[evaluation.mixing.model_dump(mode="json")]',
            ),
            (
                "temperature",
                SETTINGS,
                "        evaluation.temperature,\n        evaluation.top_p,\n",
                "        evaluation.top_p,\n",
            ),
        )
    ),
    # The gate of promotion.
    Mutant(
        "gate: protocol of a tolerated benchmark",
        _GATE,
        "    for name in names:\n",
        "    for name in [config.benchmark]:\n",
        (GATE,),
    ),
    Mutant(
        "gate: loss at the tolerated limit",
        _GATE,
        'entry["interval"][0] < -entry["tolerated"]',
        'entry["interval"][0] <= -entry["tolerated"]',
        (GATE,),
    ),
    Mutant("gate: any loss is tolerated", _GATE, "if gained and not lost", "if gained", (GATE,)),
    Mutant("gate: gain at the limit", _GATE, "low > config.min_gain", "low >= config.min_gain", (GATE,)),
    Mutant(
        "gate: two-sided bound",
        _GATE,
        "confidence=2 * config.confidence - 1",
        "confidence=config.confidence",
        (GATE,),
    ),
    Mutant(
        "gate: other problems",
        _GATE,
        'if set(candidate.results[name]["per_problem"]) != set(opponent.results[name]["per_problem"]):',
        "if False:",
        (GATE,),
    ),
    Mutant(
        "gate: gain over the wrong one",
        _GATE,
        "paired_difference(ours, theirs,",
        "paired_difference(theirs, ours,",
        (GATE,),
    ),
    Mutant(
        "gate: a benchmark the opponent lacks",
        _GATE,
        "    if name not in opponent.results:\n",
        "    if False:\n",
        (GATE,),
    ),
    Mutant(
        "gate: unpaired problems",
        _GATE,
        'problems = sorted(candidate.results[name]["per_problem"])',
        'problems = list(candidate.results[name]["per_problem"])',
        (GATE,),
    ),
    *(
        Mutant(f"protocol without {part}", _PROTOCOL, f'    "{part}": "{words}",\n', "", (GATE,))
        for part, words in (
            ("revision", "data revision"),
            ("prompts", "prompts"),
            ("sampling", "sampling settings"),
            ("grader", "graders"),
        )
    ),
    # Verdicts.
    Mutant(
        "letter inside the thought",
        "components/ngrpo/grading/extraction.py",
        "    return text.rpartition(_END_OF_THOUGHT)[2]\n",
        "    return text\n",
        (LETTERS,),
    ),
    Mutant(
        "letter: the first one counts",
        "components/ngrpo/grading/extraction.py",
        "    return answers[-1] or None if answers else None\n",
        "    return answers[0] or None if answers else None\n",
        (LETTERS,),
    ),
    Mutant(
        "box inside the thought",
        "components/ngrpo/grading/extraction.py",
        "    return text.rpartition(_END_OF_THOUGHT)[2]\n",
        "    return text\n",
        ("tests/unit/test_grading.py",),
    ),
    Mutant(
        "parser: errors of the first stage are believed",
        "components/ngrpo/grading/grammar.py",
        "            self._interp.exact = True\n",
        "            raise\n",
        ("tests/unit/test_grammar.py",),
    ),
    # Artifacts.
    Mutant(
        "verify: a changed stored hash",
        "components/ngrpo/storage/inspection.py",
        "if stored is not None and stored != entry.sha256:",
        "if False:",
        (LARGE,),
    ),
    Mutant(
        "verify: a changed size",
        "components/ngrpo/storage/inspection.py",
        "if head.size != entry.size:",
        "if False:",
        (LARGE,),
    ),
    Mutant(
        "verify: a hash that is not stored",
        "components/ngrpo/storage/inspection.py",
        "if stored is not None and not read:",
        "if not read:",
        (DAMAGE,),
    ),
    Mutant(
        "verify: a small artifact is not read",
        "components/ngrpo/storage/inspection.py",
        "read = suspect or manifest.size <= _READ_TO_VERIFY",
        "read = suspect",
        (f"{STORAGE}::test_a_byte_flipped_on_the_servers_disk_is_seen_and_never_used",),
    ),
    Mutant(
        "verify: a changed manifest",
        "components/ngrpo/storage/artifacts.py",
        "if found is None or found.digest != reference.digest:\n            return [",
        "if found is None:\n            return [",
        (f"{STORAGE}::test_a_manifest_that_was_changed_is_refused",),
    ),
    # Contamination.
    Mutant(
        "contamination without NFKC",
        _CONTAMINATION,
        'unicodedata.normalize("NFKC", _COMMAND.sub(" ", text)).casefold()',
        '_COMMAND.sub(" ", text).casefold()',
        (CONTAMINATION,),
    ),
    Mutant(
        "contamination without NFKC of a whole text",
        "components/ngrpo/data/screening.py",
        'unicodedata.normalize("NFKC", text).casefold()',
        "text.casefold()",
        (CONTAMINATION,),
    ),
    Mutant(
        "contamination without a set per problem",
        _CONTAMINATION,
        "for run in set(self._of(problem.problem)):",
        "for run in self._of(problem.problem):",
        (CONTAMINATION,),
    ),
    Mutant(
        "contamination: a shared phrase is a match",
        _CONTAMINATION,
        "runs[run] = None if run in runs else Match(",
        "runs[run] = Match(",
        (CONTAMINATION,),
    ),
    Mutant(
        "contamination: case",
        _CONTAMINATION,
        '_COMMAND.sub(" ", text)).casefold()',
        '_COMMAND.sub(" ", text))',
        (CONTAMINATION,),
    ),
    # Kernels of a decode step.
    Mutant("kernel: random numbers of half a seed", _COUNTER, "(seed >> 32)", "(seed >> 31)", (FUSED,)),
    Mutant("kernel: mixing never ends", _DECISION, "(state != last_state)", "(state >= 0)", (FUSED,)),
    Mutant("kernel: any token may be mixed", _DECISION, " & (tl.load(eligible + head) != 0)", "", (FUSED,)),
    Mutant("kernel: the block's place is forgotten", _DECISION, "threshold - before", "threshold", (FUSED,)),
    Mutant("kernel: drawn from the full distribution", _DECISION, "    if NUCLEUS:\n", "    if False:\n", (FUSED,)),
    Mutant("kernel: minus infinity throughout", _SCAN, 'tl.where(top == float("-inf"), 0.0, top)', "top", (FUSED,)),
    Mutant("kernel: NaN goes unseen", _SCAN, 'tl.where(first_nan < size, float("nan"), top)', "top", (FUSED,)),
    Mutant(
        "kernel: one candidate", _MIXTURE, "step * width + each).to(tl.int64)", "step * width).to(tl.int64)", (FUSED,)
    ),
    # Slots of a serving engine.
    Mutant(
        "slot: marker moves on at every decision",
        _SLOTS,
        "tables.progress[rows, positions + 1] = marker",
        "tables.progress[rows, positions] = marker",
        (SLOTS,),
    ),
    Mutant("slot keeps `mixed`", _SLOTS, "        tables.mixed.index_fill_(0, rows, value=False)\n", "", (SLOTS,)),
    Mutant(
        "slot: index keeps the old tables",
        _SLOTS,
        "        self._tables = Tables.empty(self._tables.slots, 1, 1, device)\n",
        "",
        (SLOTS,),
    ),
    Mutant("slot is not freed", _SLOTS, "        self._free += self._finished.values()\n", "", (SLOTS_HOST,)),
    Mutant(
        "slot: the marker of another row",
        _SLOTS,
        "emits & ~marker.passed(progress)",
        "emits",
        (SLOTS,),
    ),
    Mutant(
        "slot: a prompt's middle is remembered",
        _SLOTS,
        "emits = emits & (slots >= 0)",
        "emits = (slots >= 0)",
        (SLOTS,),
    ),
    Mutant(
        "slot: strategy of another request",
        _SLOTS,
        "active=active & (tables.strategy[slots] == number)",
        "active=active",
        (SLOTS,),
    ),
    Mutant(
        "slot: nucleus of nobody",
        _SLOTS,
        "change if settings.top_p < 1",
        "change if settings.top_p > 1",
        (SLOTS,),
    ),
    Mutant(
        "slot: who has ended still mixes",
        _SLOTS,
        "self._note_running(settings, -1)",
        "self._note_running(settings, 0)",
        (SLOTS_HOST,),
    ),
    Mutant(
        "slot: the host waits when records leave",
        "components/ngrpo/rollout/transfers.py",
        "            self._arrived = stream.record_event()\n",
        "            stream.record_event().synchronize()\n",
        (SLOTS_HOST,),
    ),
    Mutant(
        "vLLM: weights are kept on the host while it sleeps",
        "components/ngrpo/rollout/vllm/engine.py",
        "self._llm.sleep(level=2)",
        "self._llm.sleep(level=1)",
        (VLLM_WEIGHTS,),
    ),
    Mutant(
        "vLLM: the cache wakes before the weights are there",
        "components/ngrpo/rollout/vllm/engine.py",
        'self._llm.wake_up(tags=["weights"])',
        'self._llm.wake_up(tags=["weights", "kv_cache"])',
        (VLLM_WEIGHTS,),
    ),
    Mutant(
        "slot: input embedding of another strategy",
        _SLOTS,
        "its_own = mixed & (tables.strategy[slots] == number)",
        "its_own = mixed",
        (SLOTS,),
    ),
    Mutant(
        "gaussian: noise is not added",
        "components/ngrpo/mixing/strategies/gaussian.py",
        "add_noise(mix(vectors, weights), seeds, positions, self.noise_std)",
        "mix(vectors, weights)",
        (SLOTS, EQUATIONS),
    ),
    Mutant(
        "slot: log-probabilities after the nucleus",
        _SLOTS,
        "token_logprobs(scaled_logits, tokens)",
        "token_logprobs(nucleus, tokens)",
        (SLOTS,),
    ),
    # Equations of mixing.
    Mutant(
        "mixing: gate the wrong way",
        _EQUATIONS,
        "uniform(seeds, positions, GATE) < rate",
        "uniform(seeds, positions, GATE) > rate",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: gate of the token's stream",
        _EQUATIONS,
        "uniform(seeds, positions, GATE) < rate",
        "uniform(seeds, positions, 1) < rate",
        (EQUATIONS, REPLAY),
    ),
    Mutant("mixing: k neighbors beside the anchor", _EQUATIONS, ": k - 1].long()", ": k].long()", (EQUATIONS,)),
    Mutant(
        "mixing: weights over the vocabulary",
        _EQUATIONS,
        "    logits = scaled_logits.gather(-1, candidates)\n",
        "    return scaled_logits.softmax(-1).gather(-1, candidates)\n    logits = scaled_logits.gather(-1, candidates)\n",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: equal weights",
        _EQUATIONS,
        "    return logits.softmax(dim=-1)\n",
        "    return torch.full_like(logits, 1 / logits.shape[-1])\n",
        (EQUATIONS,),
    ),
    Mutant("mixing: no temperature", _EQUATIONS, "logits.float() / temperature", "logits.float()", (EQUATIONS,)),
    Mutant(
        "mixing: weights in the embedding's precision",
        _EQUATIONS,
        "(embeddings.float() * weights.float()[..., None])",
        "(embeddings * weights.to(embeddings.dtype)[..., None])",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: logits in their own precision",
        _EQUATIONS,
        "logits.float() / temperature",
        "logits / temperature",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: noise of the first position",
        _INPUTS,
        "mixture.positions[rows] + columns)",
        "mixture.positions[rows])",
        (EQUATIONS, REPLAY, TRAINER),
    ),
    Mutant(
        "mixing: anchors that may not be",
        _MIXER,
        "gated & step.eligible[decision.tokens]",
        "gated",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: past the marker",
        _MIXER,
        "gate(step.seeds, step.positions, rate) & active",
        "gate(step.seeds, step.positions, rate)",
        (EQUATIONS,),
    ),
    Mutant(
        "mixing: every row emits the token of a mixed one",
        _MIXER,
        "torch.where(mixed, decision.tokens, step.sampled)",
        "decision.tokens",
        (EQUATIONS,),
    ),
    # The strategies beside the paper's: of each a fault that breaks its replay, and what its equation says.
    Mutant(
        "sampled label: records without candidates",
        f"{_STRATEGIES}/neighbor.py",
        'return self.label == "sampled"',
        "return False",
        (f"{READY_REPLAY}[sampled]",),
    ),
    Mutant(
        "release weights: records hold those of equation 9",
        _ENGINE,
        "self.weights[self.request, position] = step.weights",
        "self.weights[self.request, position] = (1e3 * step.weights).softmax(-1)",
        (f"{READY_REPLAY}[release]",),
    ),
    *(
        Mutant(
            f"{name}: records without candidates",
            f"{_STRATEGIES}/{name}.py",
            "    k: int\n",
            "    records_candidates = False\n    k: int\n",
            (f"{READY_REPLAY}[{name}]",),
        )
        for name in ("soft", "gumbel")
    ),
    Mutant(
        "gaussian: noise of one position after another",
        f"{_STRATEGIES}/gaussian.py",
        "seeds, positions, self.noise_std)",
        "seeds, positions + len(vectors), self.noise_std)",
        (f"{READY}::test_noise_of_a_third_at_every_step_is_a_setting_and_replays",),
    ),
    Mutant(
        "replay: candidates of the step before",
        _ENGINE,
        "self.candidates[self.request, position] = step.candidates.int()",
        "self.candidates[self.request, max(position - 1, 0)] = step.candidates.int()",
        (READY_REPLAY,),
    ),
    Mutant(
        "release weights: logits in place of probabilities",
        _EQUATIONS,
        "probabilities = scaled_logits.softmax(dim=-1).gather(-1, candidates)",
        "probabilities = scaled_logits.gather(-1, candidates)",
        (READY,),
    ),
    Mutant(
        "sampled label: anchors that may not be mixed",
        "components/ngrpo/mixing/strategy.py",
        "torch.where(step.eligible[anchors], step.sampled, anchors)",
        "step.sampled",
        (READY,),
    ),
    Mutant(
        "neighbor: the label is the anchor whatever is asked for",
        f"{_STRATEGIES}/neighbor.py",
        "labels(step, anchor_ids, self.label)",
        'labels(step, anchor_ids, "anchor")',
        (READY,),
    ),
    Mutant(
        "soft: the label is the anchor whatever is asked for",
        f"{_STRATEGIES}/soft.py",
        "labels(step, candidates[:, 0], self.label)",
        "candidates[:, 0]",
        (READY,),
    ),
    Mutant(
        "gumbel: the noise of a position",
        _RANDOM,
        "keys = random_bits(seeds, positions, GUMBEL)[:, None]",
        "keys = random_bits(torch.zeros_like(seeds), positions, GUMBEL)[:, None]",
        (READY,),
    ),
    Mutant(
        "gumbel: the noise of a seed",
        _RANDOM,
        "keys = random_bits(seeds, positions, GUMBEL)[:, None]",
        "keys = random_bits(seeds, torch.zeros_like(positions), GUMBEL)[:, None]",
        (READY,),
    ),
    Mutant(
        "gumbel: noise of the other sign",
        _RANDOM,
        "return -torch.log(-torch.log(",
        "return torch.log(-torch.log(",
        (READY,),
    ),
    Mutant(
        "gumbel: no noise in the weights",
        f"{_STRATEGIES}/gumbel.py",
        "noisy / self.gumbel_temperature if self.noise_in_weights else logits",
        "logits",
        (READY,),
    ),
    Mutant(
        "gumbel: weights without their temperature",
        f"{_STRATEGIES}/gumbel.py",
        "noisy / self.gumbel_temperature if",
        "noisy if",
        (READY,),
    ),
    Mutant(
        "gumbel: the most likely token is emitted",
        f"{_STRATEGIES}/gumbel.py",
        "Decision(candidates[:, 0], ",
        "Decision(logits.argmax(-1), ",
        (READY,),
    ),
    Mutant(
        "kernels: they serve what they do not know",
        "components/ngrpo/rollout/fused/__init__.py",
        "return strategy == Neighbor(strategy.k)",
        "return True",
        (READY,),
    ),
    Mutant(
        "ratio of mixed steps: the gradient stops",
        _TRAINER,
        'torch.where(inputs["mix_mask"], logps.detach(), old)',
        'torch.where(inputs["mix_mask"], logps, old)',
        (RATIO,),
    ),
    Mutant(
        "ratio of mixed steps: the unmixed ones are one",
        _TRAINER,
        'torch.where(inputs["mix_mask"], logps.detach(), old)',
        'torch.where(inputs["mix_mask"], old, logps.detach())',
        (RATIO,),
    ),
    Mutant(
        "ratio of mixed steps: the policy's",
        _TRAINER,
        'if self._mixed_ratio == "one":',
        "if False:",
        (RATIO,),
    ),
    Mutant(
        "ratio of mixed steps: the setting is not passed on",
        _GRPO,
        "            mixed_ratio=settings.mixed_ratio,\n",
        "",
        (f"{ARGUMENTS}::test_the_ratio_of_mixed_steps_is_what_is_asked_for",),
    ),
    # Replay.
    Mutant(
        "replay: chunks with the records of the first",
        _TRAINER,
        "chosen = None if mixture is None else mixture.select(rows, columns.kept)",
        "chosen = None if mixture is None else mixture.select(slice(0, batch_size), columns.kept)",
        (PASSES,),
    ),
    Mutant(
        "replay: the loss without records",
        _TRAINER,
        "        if self._mixer is None:\n            return None\n        mask, candidates",
        "        if True:\n            return None\n        mask, candidates",
        (PASSES,),
    ),
    Mutant(
        "replay: noise of other positions in the loss",
        _TRAINER,
        "InputMixture(mask, candidates, weights, seeds, torch.zeros_like(seeds), self._mixer.strategy)",
        "InputMixture(mask, candidates, weights, seeds, torch.ones_like(seeds), self._mixer.strategy)",
        (PASSES,),
    ),
    Mutant(
        "micro-batches: rows move where the loss divides by their tokens",
        "components/ngrpo/training/micro_batches.py",
        'frozenset({"grpo",',
        'frozenset({"bnpo", "grpo",',
        ("tests/unit/test_micro_batches.py::test_rows_stay_where_an_objective_depends_on_the_micro_batch",),
    ),
    Mutant(
        "mismatch: mixed steps are corrected",
        _TRAINER,
        "math.nan if place in mixed else value",
        "value",
        ("tests/unit/test_mismatch.py::test_ratios_of_tokens_correct_unmixed_steps_alone",),
    ),
    Mutant(
        "replay: neighbors from the second on",
        _RECORDS,
        "candidate_sets(anchor_ids, neighbors, strategy.k)",
        "candidate_sets(anchor_ids, neighbors[:, 1:], strategy.k)",
        (EQUATIONS,),
    ),
    Mutant(
        "replay: recorded candidates are not used",
        _RECORDS,
        "if record.candidates is None:",
        "if True:",
        (EQUATIONS,),
    ),
    Mutant(
        "end marker: what a mismatch leaves is forgotten",
        "components/ngrpo/mixing/end_marker.py",
        "        table[state] = table[fallback]\n",
        "",
        ("tests/unit/test_end_marker.py",),
    ),
    Mutant(
        "replay: index version is not checked",
        _RECORDS,
        "if record.index_version != index_version:",
        "if False:",
        (EQUATIONS,),
    ),
    Mutant(
        "replay: seeds of the first rollout",
        _RECORDS,
        "[record.seed for record in records]",
        "[records[0].seed for record in records]",
        (EQUATIONS, TRAINER),
    ),
    Mutant(
        "replay: rows that left keep their marker",
        _ENGINE,
        "self.alive, self.progress = self.alive[kept], self.progress[kept]",
        "self.alive, self.progress = self.alive[kept], self.progress[: len(kept)]",
        (REPLAY,),
    ),
    Mutant(
        "replay: log-probabilities after the nucleus",
        _ENGINE,
        "token_logprobs(scaled, tokens)[self.alive]",
        "token_logprobs(nucleus, tokens)[self.alive]",
        (REPLAY,),
    ),
    Mutant("replay: mixed positions stay in the loss", _TRAINER, "int(position not in mixed)", "1", (MASK,)),
    # Deployment.
    Mutant(
        "deployment: a try whose pod was lost hides what was served before",
        "components/serving/deployment.py",
        "first_seen(kubernetes.get(path))",
        "kubernetes.get(path)",
        (f"{SERVED}::test_a_run_refuses_what_does_worse_and_goes_back_even_where_an_earlier_try_was_lost",),
    ),
    # Keys of stages.
    *(
        Mutant(
            f"stage's key without {name}",
            _KEYS,
            "[stage, config, code_version, dict(inputs), rerun_token, dict(libraries), dict(content)]",
            f"[{', '.join(part for part in parts if part != left_out)}]",
            (KEYS,),
        )
        for parts in [
            ("stage", "config", "code_version", "dict(inputs)", "rerun_token", "dict(libraries)", "dict(content)")
        ]
        for name, left_out in (
            ("stage", "stage"),
            ("settings", "config"),
            ("code", "code_version"),
            ("inputs", "dict(inputs)"),
            ("token", "rerun_token"),
            ("libraries", "dict(libraries)"),
            ("content", "dict(content)"),
        )
    ),
    # From champion to service.
    Mutant(
        "signing: files that git ignores are not signed",
        "components/ngrpo/signing/files.py",
        "set_ignored_paths(paths=(), ignore_git_paths=False)",
        "set_ignored_paths(paths=(), ignore_git_paths=True)",
        (SIGNING,),
    ),
    Mutant(
        "signing: the statement is taken at its word",
        "components/ngrpo/signing/statement.py",
        "        envelope.verify([_named(key)], 1)\n",
        "",
        (SIGNING,),
    ),
    Mutant(
        "verify: any evaluation will do",
        _VERIFICATION,
        'if sha256 != signed["sha256"]:',
        "if not sha256:",
        (f"{SIGNING}::test_a_replaced_evaluation",),
    ),
    Mutant(
        "verify: a decision of that name is enough",
        _VERIFICATION,
        "if not any(_of(entry) == dict(signed) for entry in decided):",
        'if not any(entry["decision"] == signed["decision"] for entry in decided):',
        (f"{SIGNING}::test_an_interval_that_was_changed_in_the_history",),
    ),
    Mutant(
        "verify: whoever signed is the one that was asked for",
        _VERIFICATION,
        "if signer.fingerprint != key.fingerprint:",
        "if not signer.fingerprint:",
        (f"{SIGNING}::test_a_foreign_key",),
    ),
    Mutant(
        "early stop: each look has the whole error",
        _CURTAILMENT,
        "    return error / chances\n",
        "    return error\n",
        (f"{STOPPING}::test_the_error_is_shared_out_over_looks_and_bounds",),
    ),
    Mutant(
        "early stop: what all samples agree on is certain",
        _CURTAILMENT,
        "    variance = parts.sum(axis=-1) + unseen\n",
        "    variance = parts.sum(axis=-1)\n",
        (STOPPING,),
    ),
    Mutant(
        "watch: the first evaluation is no sample",
        _DRIFT,
        "np.sqrt(within * (1 / samples + 1 / more))",
        "np.sqrt(within * (1 / more))",
        (DRIFT,),
    ),
    Mutant(
        "watch: each look has the whole error",
        _DRIFT,
        "may = int(_spent(time, alpha) * _PATHS - gone)",
        "may = int(alpha * len(walk))",
        (DRIFT,),
    ),
    Mutant(
        "watch: a drop below the margin is an alarm",
        _DRIFT,
        "bool(low > margin)",
        "bool(low > 0.0)",
        (DRIFT,),
    ),
    Mutant(
        "endpoint: an interval that reaches over the bound is within it",
        "components/ngrpo/evaluation/equivalence.py",
        "if each.low < -margin or each.high > margin:",
        "if each.high < -margin or each.low > margin:",
        (EQUIVALENCE,),
    ),
    Mutant(
        "endpoint: whatever it serves is the model",
        "components/ngrpo/evaluation/endpoint_identity.py",
        "    if not difference <= TOLERANCES[dtype]:\n",
        "    if False:\n",
        (f"{ENDPOINT}::test_a_model_that_was_trained_a_little_further_is_refused",),
    ),
    Mutant(
        "webhooks: what is sent holds credentials",
        _MESSAGES,
        "for each in redacted(whole)",
        "for each in whole",
        (f"{NOTIFICATIONS}::test_no_credential_is_in_a_message",),
    ),
    Mutant(
        "webhooks: a redirect is followed",
        _WEBHOOKS,
        "build_opener(_NoRedirect)",
        "build_opener()",
        (f"{NOTIFICATIONS}::test_a_redirect_is_not_followed",),
    ),
    Mutant(
        "prune: what a version was judged by goes",
        _PRUNING,
        'needs.add(("benchmark_evaluation", judged))',
        "pass",
        (PRUNING,),
    ),
    Mutant(
        "prune: a replaced service goes although its run goes on",
        "pipelines/local/superseded_deployments.py",
        ' if last.outcome != "running"',
        "",
        (PRUNING,),
    ),
    Mutant(
        "early stop: the gain takes the warm start's samples for as many as the trained model's",
        "components/ngrpo/evaluation/gains.py",
        'trained["per_problem"]]), result["n_samples"])',
        'trained["per_problem"]]), trained["n_samples"])',
        (STOPPING,),
    ),
    Mutant(
        "deployment: a refusal is told as a failure of the run",
        "components/ngrpo/stages/end_of_run.py",
        'Event("not_deployed", run',
        'Event("failed", run',
        (NOTIFIED,),
    ),
    Mutant(
        "verify: the key of the newest run counts, whoever made the version",
        "pipelines/local/required_key.py",
        "if own is not None and own.config.signing.public_key is not None:",
        "if False:",
        (SIGNED,),
    ),
    Mutant(
        "verify: a directory is looked up in no registry",
        "pipelines/local/verifying.py",
        "    if evidence.signed:  # without",
        "    if False:  # without",
        (SIGNED_DIRECTORY,),
    ),
    Mutant(
        "evaluate: an endpoint that names another model is asked for answers",
        "components/ngrpo/evaluation/endpoint_names.py",
        "if digest is not None and digests and digest_name(digest) not in digests:",
        "if False:",
        (SERVED,),
    ),
    Mutant(
        "vLLM: a new bias of the output head is dropped",
        "components/ngrpo/rollout/vllm/worker.py",
        "                    layer.weight_loader(layer.bias, bias)\n",
        "                    pass\n",
        (VLLM_WEIGHTS,),
    ),
    Mutant(
        "watch: a rollback is not signed",
        "components/ngrpo/stages/champion_watch.py",
        'signer = decision_key(config) if settings.action == "rollback" else None',
        "signer = None",
        (UNDONE,),
    ),
    Mutant(
        "prune: the payload goes before the manifest",
        _PRUNING,
        'key=lambda key: not key.endswith(f"/{MANIFEST}")',
        'key=lambda key: key.endswith(f"/{MANIFEST}")',
        (PRUNING,),
    ),
    Mutant(
        "ledger: tries that failed cost nothing",
        _SPENDING,
        "return total(record for record in records if begin <= record.span[0] <= end)",
        'return total(each for each in records if begin <= each.span[0] <= end and each.outcome == "published")',
        (COSTS,),
    ),
    Mutant(
        "ledger: nodes that work side by side take their time twice",
        _SPENDING,
        "        covered += max(0.0, end - max(begin, until))\n",
        "        covered += end - begin\n",
        (COSTS,),
    ),
    Mutant(
        "served heads: queries are as long as they were",
        "components/ngrpo/data/wider_heads.py",
        'math.sqrt(factor) if found[1] == "q" else 1.0',
        "1.0",
        (f"{SERVING}::test_heads_that_vllm_has_not_are_made_wider_and_the_answers_stay",),
    ),
    Mutant(
        "served heads: pairs turn by other angles",
        "components/ngrpo/data/wider_heads.py",
        "wider[:, ::factor] =",
        "wider[:, :width] =",
        (f"{SERVING}::test_heads_that_vllm_has_not_are_made_wider_and_the_answers_stay",),
    ),
)


def main(words: Sequence[str]) -> int:
    """Run the mutants whose name holds one of the words, all of them without words; returns 0 if all were killed."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print(f"no mutant's name holds {' or '.join(words)}")
        return 2
    stale = [mutant for mutant in chosen if (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.text) != 1]
    for mutant in stale:
        print(f"{mutant.name}: {mutant.file} does not hold its text exactly once: bring the mutant up to date")
    if stale:
        return 2
    _import_once()
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        copy = _copied(Path(directory))
        if _run(copy, list(dict.fromkeys(test for mutant in chosen for test in mutant.tests))) != "survived":
            print((copy / "output").read_text(encoding="utf-8", errors="replace"))
            print("the tests must pass before any mutant is looked at")
            return 2
        outcomes = {}
        for mutant in chosen:
            outcomes[mutant.name] = outcome, seconds = _outcome(copy, mutant)
            print(f"{outcome:<9} {seconds:5.0f} s  {mutant.name}", flush=True)
    killed = sum(outcome == "killed" for outcome, _ in outcomes.values())
    print(f"{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


def _copied(directory: Path) -> Path:
    """Copy the checkout, with the names that its packages have once they are installed."""
    copy = directory / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for command in (["init", "-q"], ["add", "-A"]):  # some tests ask git which files are the project's
        subprocess.run(["git", *command], cwd=copy, check=True)
    namespace = directory / "names" / "ngrpo_kfp"
    namespace.mkdir(parents=True)
    for name in ("components", "pipelines"):
        (namespace / name).symlink_to(copy / name)
    return copy


def _outcome(copy: Path, mutant: Mutant) -> tuple[str, float]:
    """Apply a mutant, run its tests, take it back."""
    path = copy / mutant.file
    original = path.read_text(encoding="utf-8")
    began = time.monotonic()
    path.write_text(original.replace(mutant.text, mutant.replacement), encoding="utf-8")
    try:
        return _run(copy, mutant.tests), time.monotonic() - began
    finally:
        path.write_text(original, encoding="utf-8")


def _import_once() -> None:
    """Import slow third-party libraries; every run is a fork of this process."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant may have the size and the second of its original
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.dont_write_bytecode = True
    import datasets  # noqa: F401
    import mlflow  # noqa: F401
    import pytest  # noqa: F401
    import sympy  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401


def _run(copy: Path, tests: Sequence[str]) -> str:
    """Run tests on the copy in a process of its own; returns `survived`, `killed` or `error`."""
    child = os.fork()
    if child == 0:
        _test(copy, tests)
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {0: "survived", 1: "killed"}.get(os.waitstatus_to_exitcode(status), "error")
        if time.monotonic() > deadline:
            os.killpg(child, 9)
            os.waitpid(child, 0)
            return "killed"
        time.sleep(0.05)


def _test(copy: Path, tests: Sequence[str]) -> None:
    """Run the tests in this process; it and the processes that tests start import only the copy."""
    import pytest

    os.setsid()
    os.chdir(copy)
    log = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    own = [str(copy / "components"), str(copy.parent / "names")]
    os.environ["PYTHONPATH"] = os.pathsep.join(own)
    sys.path[:1] = own  # in the place of the folder of this script
    import ngrpo
    import ngrpo_kfp.pipelines

    code = 3
    try:
        for module in (ngrpo, ngrpo_kfp.pipelines):
            assert Path(module.__file__).resolve().is_relative_to(copy.resolve()), f"{module.__file__} is not the copy"
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
