"""One vLLM engine in a process of its own, put through the cases that its configuration calls for; prints what came out as JSON.

vLLM binds threads and replaces functions of torch for a whole process, so no engine lives in the process of the tests.
"""

import dataclasses
import json
import os
import sys
import tempfile
import threading
from contextlib import ExitStack, chdir, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

CONFIG = json.loads(os.environ["ENGINE"])
"""`runner` ("v1", "v2"), `in_process`, `async_scheduling`, `kernels`, `options` of the engine, and the names of the `cases`."""

# Before anything imports vLLM, in the processes that it starts too: they import this file.
if CONFIG["runner"] == "v2":
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "TORCHDYNAMO_DISABLE": "1"}
    import triton.backends

    # vLLM uses Triton only where a backend for the platform is listed; the interpreter needs none.
    triton.backends.backends["cpu"] = next(iter(triton.backends.backends.values()))

    from quick_interpreter import patch_once

    patch_once()

from ngrpo.checking.light_imports import import_transformers

import_transformers()

import psutil
import torch
from library_llm import use_library
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

from how_tos import GENERATE, MODEL, how_to, prepare
from ngrpo.environment import environment
from ngrpo.errors import EngineError, NGRPOError
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Gaussian, Neighbor
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.slots import MixingSlots, RequestSettings
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.rollout.vllm import compatibility, options, runner_v1, runner_v2, scheduler
from ngrpo.rollout.vllm.engine import VLLMEngine
from ngrpo.rollout.vllm.request import sampling_params
from own_strategy import own_mixer
from replay import replay_error
from tiny import EOS, FURTHER, MARKER, PAD, end_marker, mixer_for

TEMPERATURE = 0.7
PROMPTS = [[2, 5, 9, 3], [2, 11, 3], [2, 5, 44, 17, 44, 20, 3] * 7]
"""The last one is longer than a cache block of 32 tokens, and than a chunk of a chunked prefill; with 16 tokens more it fills another."""


class Cases:
    """What an engine is put through; each case returns what a test asserts on."""

    def __init__(self, directory: Path):
        self.model = AutoModelForCausalLM.from_pretrained(directory)
        self.mixer = mixer_for(self.model, "neighbor", 0.3)
        self.count, self.length = CONFIG["size"]
        self.prompts = [PROMPTS[row % len(PROMPTS)] for row in range(self.count)]
        self.sampling = Sampling(self.length, TEMPERATURE)
        self.directory = directory
        self.engine = start_engine(directory)

    def error(self, rollouts: list[Rollout], mixer: Mixer | None, prompts: list[list[int]] | None = None) -> float:
        return replay_error(self.model, prompts or self.prompts, rollouts, mixer, TEMPERATURE)

    def generate(self, mixer: Mixer | None) -> list[Rollout]:
        return self.engine.generate(self.prompts, range(self.count), self.sampling, mixer)

    def facts(self) -> dict:
        """How vLLM says that it was set up."""
        config = self.engine._llm.llm_engine.vllm_config
        return {
            "v2": config.use_v2_model_runner,
            "async_scheduling": config.scheduler_config.async_scheduling,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "ranks": config.parallel_config.tensor_parallel_size,
            "processes": len(psutil.Process().children()),
        }

    def rollouts(self) -> dict:
        """Every strategy replays, and depends on its records; tokens, gates and weights are the transformers engine's."""
        result = {}
        reference = TransformersEngine(self.model, [EOS], PAD, 64)
        for strategy in ("neighbor", "gaussian", "token"):
            mixer = None if strategy == "token" else mixer_for(self.model, strategy, 0.3)
            ours = self.generate(mixer)
            theirs = reference.generate(self.prompts, range(self.count), self.sampling, mixer)
            result[strategy] = {
                "error": self.error(ours, mixer),
                "records_ignored": self.error(ours, None),
                "mixed": sum(len(rollout.records.positions) for rollout in ours),
                "weights_differ": max(_weights_differ(a, b) for a, b in zip(ours, theirs, strict=True)),
                "tokens": [rollout.token_ids for rollout in ours],
                "their_tokens": [rollout.token_ids for rollout in theirs],
                "positions": [rollout.records.positions.tolist() for rollout in ours],
                "their_positions": [rollout.records.positions.tolist() for rollout in theirs],
                "finish": [rollout.finish_reason for rollout in ours],
                "their_finish": [rollout.finish_reason for rollout in theirs],
            }
        return result

    def own_strategy(self) -> dict:
        """The strategy of the documentation, from a file of the user's."""
        with tempfile.TemporaryDirectory() as directory:
            mixer = own_mixer(self.model, Path(directory))
            ours = self.generate(mixer)
        theirs = TransformersEngine(self.model, [EOS], PAD, 64).generate(
            self.prompts, range(self.count), self.sampling, mixer
        )
        return {
            "error": self.error(ours, mixer),
            "records_ignored": self.error(ours, None),
            "mixed": sum(len(rollout.records.positions) for rollout in ours),
            # With weights so free, what two engines round differently grows from step to step: later tokens may be others.
            "begin": [_begin(rollout, 10) for rollout in ours],
            "their_begin": [_begin(rollout, 10) for rollout in theirs],
        }

    def further_strategies(self) -> dict:
        """The strategies that the kernels do not know, side by side in one batch: each request is mixed in its own way."""
        names = [FURTHER[row % len(FURTHER)] for row in range(max(self.count, len(FURTHER)))]
        prompts = [PROMPTS[row % len(PROMPTS)] for row in range(len(names))]
        mixers = [mixer_for(self.model, name, 0.4) for name in names]
        shared = {"neighbors": mixers[0].neighbors, "eligible": mixers[0].eligible}
        mixers = [dataclasses.replace(mixer, **shared) for mixer in mixers]  # one index, as a run has
        samplings = [self.sampling] * len(names)
        ours = self.engine.generate_each(prompts, list(range(len(names))), samplings, mixers)
        reference = TransformersEngine(self.model, [EOS], PAD, 64)
        result: dict[str, dict] = {}
        for row, (name, mixer) in enumerate(zip(names, mixers, strict=True)):
            (theirs,) = reference.generate([prompts[row]], [row], self.sampling, mixer)
            of_row = {
                "error": replay_error(self.model, [prompts[row]], [ours[row]], mixer, TEMPERATURE),
                "records_ignored": replay_error(self.model, [prompts[row]], [ours[row]], None, TEMPERATURE),
                "mixed": len(ours[row].records.positions),
                "begin": _begin(ours[row], 6),
                "their_begin": _begin(theirs, 6),
            }
            for key, value in of_row.items():
                result.setdefault(name, {}).setdefault(key, []).append(value)
        return result

    def kernels(self) -> dict:
        """How often kernels decided and mixed, and torch did, while a request mixed with neighbors and then one with noise."""
        from ngrpo.rollout.fused import launch

        with (
            mock.patch.object(launch, "decide", wraps=launch.decide) as decide,
            mock.patch.object(launch, "mix", wraps=launch.mix) as mix,
        ):
            self.generate(self.mixer)
            served = decide.call_count, mix.call_count
            matrix = all(call.kwargs["matrix"] is not None for call in mix.call_args_list)
            self.generate(mixer_for(self.model, "gaussian", 0.3))
        return {"served": served, "matrix": matrix, "after": (decide.call_count, mix.call_count)}

    def preemption(self) -> dict:
        return {"preemptions": self.preemptions()}

    def alone(self) -> dict:
        """A request's rollout is the same without company."""
        rollouts = [self.engine.generate([self.prompts[row]], [row], self.sampling, self.mixer)[0] for row in range(3)]
        return {
            "tokens": [rollout.token_ids for rollout in rollouts],
            "positions": [rollout.records.positions.tolist() for rollout in rollouts],
        }

    def inputs(self) -> dict:
        """What the model is given: how many steps take embeddings, and what follows a prompt that a request brings as such."""
        llm = self.engine._llm
        runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
        greedy = SamplingParams(temperature=0, max_tokens=8, detokenize=False)
        ids = self.prompts[0]
        vectors = self.model.get_input_embeddings().weight.detach()[ids]
        steps = {}
        with mock.patch.object(runner, "_model_forward", wraps=runner._model_forward) as forward:
            for name, mixer in (("plain", None), ("mixing", self.mixer)):
                forward.reset_mock()
                self.generate(mixer)
                steps[name] = sum(call.kwargs["inputs_embeds"] is not None for call in forward.call_args_list)
        follow = [
            llm.generate(prompt, greedy, use_tqdm=False)[0].outputs[0].token_ids
            for prompt in ({"prompt_token_ids": ids}, {"prompt_embeds": vectors})
        ]
        return {"steps": steps, "of_ids": list(follow[0]), "of_vectors": list(follow[1])}

    def submitted(self) -> dict:
        """Batches that are taken up while others are decoded, more than are decoded at a time: the responses of one call."""
        whole = self.generate(self.mixer)
        waiting = [list(range(start, min(start + 5, self.count))) for start in range(0, self.count, 5)]
        numbers, under_way, order = iter(range(len(waiting))), set(), []
        found: dict[int, Rollout] = {}
        while len(found) < self.count:
            while len(under_way) < 3 and (number := next(numbers, None)) is not None:
                rows = waiting[number]
                self.engine.submit(number, [self.prompts[row] for row in rows], rows, self.sampling, self.mixer)
                under_way.add(number)
            for number, rollouts in self.engine.step():
                under_way.remove(number)
                order.append(number)
                found |= dict(zip(waiting[number], rollouts, strict=True))
        together = [found[row] for row in range(self.count)]
        return {
            "tokens": [rollout.token_ids for rollout in together],
            "whole": [rollout.token_ids for rollout in whole],
            "error": self.error(together, self.mixer),
            "order": order,
        }

    def different_settings(self) -> dict:
        """Requests that mix and requests that do not, each in its own way, in one batch."""
        index = {name: getattr(self.mixer, name) for name in ("neighbors", "eligible", "index_version")}
        index["end_marker"] = end_marker("stop")
        settings = [
            (Mixer(Neighbor(4), 1.0, **index), Sampling(self.length, 0.7)),
            (None, Sampling(self.length, 1.0, top_p=0.8)),
            (Mixer(Neighbor(2), 0.5, **index), Sampling(self.length // 2, 1.3)),
            (Mixer(Gaussian(0.5), 0.4, **index), Sampling(self.length, 0.7)),
            (None, Sampling(5, 0.4)),
        ]
        rows = range(2 * len(settings))
        mixers, samplings = zip(*(settings[row % len(settings)] for row in rows), strict=True)
        prompts = [PROMPTS[row % len(PROMPTS)] for row in rows]
        rollouts = self.engine.generate_each(prompts, list(rows), samplings, mixers)
        reference = TransformersEngine(self.model, [EOS], PAD, 64)
        return {
            "errors": [
                replay_error(self.model, [prompts[row]], [rollouts[row]], mixers[row], samplings[row].temperature)
                for row in rows
            ],
            "tokens": [rollout.token_ids for rollout in rollouts],
            "their_tokens": [
                reference.generate([prompts[row]], [row], samplings[row], mixers[row])[0].token_ids for row in rows
            ],
            "lengths": [sampling.max_tokens for sampling in samplings],
            "after_marker": [
                any(position > rollout.token_ids.index(MARKER) for position in rollout.records.positions.tolist())
                for rollout in rollouts
                if MARKER in rollout.token_ids
            ],
        }

    def cache(self) -> dict:
        """A plain request that continues a mixed text is not served the mixed text's keys and values; a prompt is shared."""
        mixed = self.generate(self.mixer)
        prompts = [[*prompt, *rollout.token_ids] for prompt, rollout in zip(self.prompts, mixed, strict=True)]
        short = Sampling(4, TEMPERATURE)
        hits = self.metric("vllm:prefix_cache_hits")
        plain = self.engine.generate(prompts, range(self.count), short, None)
        again = self.generate(self.mixer)
        return {
            "error": self.error(plain, None, prompts),
            "hits": self.metric("vllm:prefix_cache_hits") - hits,
            "repeats": [a.token_ids == b.token_ids for a, b in zip(mixed, again, strict=True)],
            "repeat_error": self.error(again, self.mixer),
        }

    def weights(self) -> dict:
        """Optimizer steps while the engine lives: each time the rollouts are those of the new weights and the new index."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        errors, stale = [], []
        for version in range(1, 3):
            before = [parameter.clone() for parameter in self.model.parameters()]
            loss = self.model(torch.tensor([PROMPTS[2]]), labels=torch.tensor([PROMPTS[2]])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.engine.load_weights(self.model.named_parameters())
            rebuilt = mixer_for(self.model, "neighbor", 0.3, version=version)
            rollouts = self.generate(rebuilt)
            errors.append(self.error(rollouts, rebuilt))
            assert {rollout.records.index_version for rollout in rollouts} == {version}
            after = [parameter.clone() for parameter in self.model.parameters()]
            _assign(self.model, before)
            stale.append(self.error(rollouts, rebuilt))
            _assign(self.model, after)
        self.mixer = rebuilt
        return {"errors": errors, "stale_errors": stale}

    def in_flight(self) -> dict:
        """While requests mix, weights and index stay; what is aborted leaves nothing behind."""
        core = self.engine._llm.llm_engine
        number = self.engine._number(self.mixer)
        settings = [RequestSettings(f"r{row}", row, 0.7, 1.0, self.length, 1.0, number) for row in range(4)]
        ids = [
            core.add_request(each.name, {"prompt_token_ids": PROMPTS[0]}, sampling_params(each, []))
            for each in settings
        ]
        for _ in range(3):
            core.step()
        refusals = []
        for replace in (
            lambda: self.engine.load_weights(self.model.named_parameters()),
            lambda: self.generate(mixer_for(self.model, "neighbor", 0.3, version=7)),
        ):
            try:
                replace()
            except RuntimeError as error:
                refusals.append(str(error))
        core.abort_request(ids)
        while core.has_unfinished_requests():
            core.step()
        after = self.generate(self.mixer)
        self.engine._rpc("mixing_take", [each.name for each in settings])
        return {"refusals": refusals, "error": self.error(after, self.mixer)}

    def refusals(self) -> dict:
        """What cannot be mixed is refused in words."""
        index = {"eligible": self.mixer.eligible, "index_version": 0}
        plain = SimpleNamespace(pipeline_parallel_size=1, enable_batch_sharded_sampling=False)
        refused = {
            "cold": lambda: Sampling(5, 0.0),
            "other_index": lambda: self.generate(Mixer(Neighbor(3), 0.1, self.mixer.neighbors[:-1], **index)),
            "wide": lambda: self.generate(Mixer(Neighbor(8), 0.1, self.mixer.neighbors, **index)),
            "long": lambda: self.engine.generate([[2] * 120], [0], self.sampling),
            "version": lambda: _with_version("0.33.0"),
            "signature": lambda: compatibility.require_hooks({MixingSlots.slot: ("logits",)}),
            "pipeline": lambda: compatibility.require_plain(
                SimpleNamespace(
                    parallel_config=SimpleNamespace(pipeline_parallel_size=2, enable_batch_sharded_sampling=False),
                    speculative_config=None,
                )
            ),
            "speculative": lambda: compatibility.require_plain(
                SimpleNamespace(parallel_config=plain, speculative_config=object())
            ),
        }
        messages = {}
        for name, attempt in refused.items():
            try:
                attempt()
            except NGRPOError as error:
                messages[name] = str(error)
        return messages

    def death(self) -> dict:
        """The engine's process is killed in the middle of a batch."""
        before = [rollout.token_ids for rollout in self.generate(self.mixer)]
        children = [child for child in psutil.Process().children(recursive=True) if child.name().startswith("VLLM")]
        killer = threading.Timer(0.15, lambda: [child.kill() for child in children if "Engine" in child.name()])
        killer.start()
        try:
            while True:
                self.generate(self.mixer)
        except EngineError as error:
            message = str(error)
        _, alive = psutil.wait_procs(children, timeout=20)
        self.engine = start_engine(self.directory)
        return {
            "message": message,
            "orphans": [child.name() for child in alive],
            "same": before == [rollout.token_ids for rollout in self.generate(self.mixer)],
        }

    def reset_while_running(self) -> dict:
        """Resetting the prefix cache throws every running request back: it is computed again, mixtures included."""
        core = self.engine._llm.llm_engine
        self.engine._use_index(self.mixer)
        number = self.engine._number(self.mixer)
        settings = [
            RequestSettings(f"s{row}", row, TEMPERATURE, 1.0, self.length, 0.3, number) for row in range(self.count)
        ]
        for prompt, each in zip(self.prompts, settings, strict=True):
            core.add_request(each.name, {"prompt_token_ids": prompt}, sampling_params(each, [EOS]))
        steps = 0
        while core.has_unfinished_requests():
            core.step()
            steps += 1
            if steps % 7 == 0:
                core.reset_prefix_cache(reset_running_requests=True)
        records = self.engine._rpc("mixing_take", [each.name for each in settings])[0]
        undisturbed = self.generate(self.mixer)
        return {
            "mixed": [sum(record[0]) for record in records],
            "undisturbed": [len(rollout.records.positions) for rollout in undisturbed],
            "preemptions": self.preemptions(),
        }

    def controls(self) -> dict:
        """The replay law notices each of the mistakes that this design avoids."""
        runner = runner_v1 if CONFIG["runner"] == "v1" else runner_v2

        def decode_rows_only(slots, computed, scheduled, prompt_lengths, device):
            return response_tokens(
                slots * (scheduled == 1) - (scheduled != 1), computed, scheduled, prompt_lengths, device
            )

        def forget(self: MixingSlots, request: str, settings: RequestSettings) -> int:
            slot = add(self, request, settings)
            self._tables.mixed[slot] = False
            return slot

        response_tokens, add = runner.response_tokens, MixingSlots.add
        before = self.preemptions()
        result = {}
        with mock.patch.object(runner, "response_tokens", decode_rows_only):
            result["decode_rows_only"] = self.error(self.generate(self.mixer), self.mixer)
        if CONFIG["runner"] == "v2":  # in V1 a request that comes back is not added again
            with mock.patch.object(MixingSlots, "add", forget):
                result["records_reset"] = self.error(self.generate(self.mixer), self.mixer)
        return {"errors": result, "preemptions": self.preemptions() - before}

    def unsalted(self) -> dict:
        """The same as `cache`, without what keeps mixed texts apart."""
        self.engine._llm.reset_prefix_cache()
        with mock.patch.object(scheduler, "_salted", lambda hasher, salt: hasher):
            error = self.cache()["error"]
        self.engine._llm.reset_prefix_cache()
        return {"error": error}

    def library(self) -> dict:
        """The how-to of `mixing_llm`, and what else its `LLM` is asked for; the engine of the other cases has ended by then."""
        self.engine.close()
        with (
            tempfile.TemporaryDirectory() as place,
            chdir(place),
            environment({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
            mock.patch.object(options, "_CPU_CACHE_BYTES", 1 << 26),  # three engines, none of which is asked for much
        ):
            prepare(Path(place))
            values = {"__name__": "__main__"}
            with redirect_stdout(StringIO()) as said:
                exec(how_to(GENERATE), values)
            values["llm"].llm_engine.engine_core.shutdown()
            return use_library(Path(MODEL)) | {"said": said.getvalue()}

    def preemptions(self) -> float:
        return self.metric("vllm:num_preemptions")

    def metric(self, name: str) -> float:
        return sum(metric.value for metric in self.engine._llm.get_metrics() if metric.name == name)


def start_engine(directory: Path) -> VLLMEngine:
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def keep_async(cls, vllm_config):
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    with ExitStack() as stack:
        if CONFIG["async_scheduling"]:
            # vLLM switches it off on a CPU, for speed alone.
            stack.enter_context(mock.patch.object(CpuPlatform, "check_and_update_config", classmethod(keep_async)))
        if CONFIG["kernels"]:
            from ngrpo.rollout.vllm import worker

            stack.enter_context(mock.patch.object(worker, "MixingSlots", partial(MixingSlots, fused=True)))
        return VLLMEngine(
            directory,
            [EOS],
            max_length=128,
            batch_size=8,
            dtype="float32",
            block_size=32,
            in_process=CONFIG["in_process"],
            disable_log_stats=False,
            **CONFIG["options"],
        )


def _with_version(version: str) -> None:
    with mock.patch.object(compatibility.vllm, "__version__", version):
        compatibility.require_hooks({})


def _weights_differ(ours: Rollout, theirs: Rollout) -> float:
    if ours.records.weights.shape != theirs.records.weights.shape:
        return float("inf")
    if ours.records.weights.numel() == 0:
        return 0.0
    return (ours.records.weights - theirs.records.weights).abs().max().item()


def _begin(rollout: Rollout, count: int) -> list[object]:
    assert rollout.records.candidates is not None
    early = rollout.records.positions < count
    return [rollout.token_ids[:count], rollout.records.candidates[early].tolist()]


def _assign(model: torch.nn.Module, values: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)


def main() -> None:
    cases = Cases(Path(sys.argv[1]))
    results = {name: getattr(cases, name)() for name in ["facts", *CONFIG["cases"]]}
    Path(sys.argv[2]).write_text(json.dumps(results))
    if "library" not in CONFIG["cases"]:
        cases.engine.close()


if __name__ == "__main__":
    main()
