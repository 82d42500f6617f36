"""The user's strategies: read with the preset, tried before use, and the same in rollouts and in training."""

import dataclasses
import json

import pytest
import torch
from test_ngrpo_trainer import rollout_batch, trainer, worst
from test_presets import PRESETS
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.config import NGRPOTrainingConfig, load_config, select
from ngrpo.config.mixing import MixingConfig
from ngrpo.errors import ConfigError, UserCodeError
from ngrpo.mixing.strategies import READY, Gaussian, Neighbor, Token
from ngrpo.mixing.strategy import Decision, Step, Strategy, StrategySource
from ngrpo.rollout.configured_strategy import load_strategy, source_of, strategy_source
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.strategy_trial import try_strategy
from ngrpo.rollout.transformers_engine import TransformersEngine
from own_strategy import documented_code, own_mixer
from replay import replay_error
from tiny import EOS, PAD, mixer_for, save_tiny_model

TEMPERATURE = 0.7
PROMPTS = [[2, 5, 9, 3], [2, 11, 3], [2, 5, 44, 17, 44, 20, 3]] * 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory):
    return AutoModelForCausalLM.from_pretrained(directory)


def loaded(config: MixingConfig) -> Strategy:
    return load_strategy(strategy_source(config))


# --- the documented one -------------------------------------------------------------------------------------------------


def test_ten_lines_are_a_strategy_that_replays(model, tmp_path):
    assert len([line for line in documented_code().splitlines() if line.strip()]) <= 10
    mixer, sampling = own_mixer(model, tmp_path), Sampling(40, TEMPERATURE)
    together = TransformersEngine(model, [EOS], PAD, 64).generate(PROMPTS, range(24), sampling, mixer)
    split = TransformersEngine(model, [EOS], PAD, 5).generate(PROMPTS, range(24), sampling, mixer)
    assert replay_error(model, PROMPTS, together, mixer, TEMPERATURE) <= 1e-4
    assert replay_error(model, PROMPTS, together, None, TEMPERATURE) > 1.0, "replay must depend on the records"
    assert sum(len(rollout.records.positions) for rollout in together) > 100
    for one, other in zip(together, split, strict=True):
        early = one.records.positions < 10
        assert one.token_ids[:10] == other.token_ids[:10]
        assert torch.equal(one.records.candidates[early], other.records.candidates[other.records.positions < 10])


def test_training_sees_what_it_was_mixed_from(model, directory, tmp_path):
    learner = trainer(directory, "neighbor")
    learner._current_mixer = lambda policy: own_mixer(policy, tmp_path)
    batch = rollout_batch(learner)
    assert worst(batch["old_per_token_logps"], batch["sampling_per_token_logps"], batch) <= 1e-4
    assert worst(batch["ref_per_token_logps"], batch["sampling_per_token_logps"], batch) <= 1e-4
    assert batch["mix_candidates"].shape[-1] == 4
    assert batch["mix_mask"].any()


# --- settings -----------------------------------------------------------------------------------------------------------


def preset(directory, *lines: str) -> NGRPOTrainingConfig:
    text = (PRESETS / "tiny.toml").read_text(encoding="utf-8").partition("[mixing]")
    rest = text[2][text[2].index("\n[") :] if text[1] else ""
    path = directory / "preset.toml"
    path.write_text(text[0] + rest + "\n[mixing]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return select(load_config(path), NGRPOTrainingConfig)


def test_a_preset_names_a_file_beside_it_and_the_text_is_in_the_settings(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(documented_code(), encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = preset(tmp_path, 'strategy = "mine.py:TopTokens"', "k = 4")
    assert config.mixing.strategy == "mine.py:TopTokens"
    assert config.mixing.reference.code == {"mine.py": documented_code()}
    written = config.model_dump_json()
    (tmp_path / "mine.py").unlink()
    again = NGRPOTrainingConfig.model_validate_json(written)
    assert again == config
    assert loaded(again.mixing).k == 4
    (tmp_path / "mine.py").write_text(documented_code() + "# another\n", encoding="utf-8")
    assert preset(tmp_path, 'strategy = "mine.py:TopTokens"', "k = 4").model_dump_json() != written


def own(tmp_path, code: str, **settings) -> MixingConfig:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom ngrpo.mixing.strategy import Decision, Step, Strategy\n" + code, encoding="utf-8"
    )
    return MixingConfig.model_validate({"strategy": f"{tmp_path / 'mine.py'}:Mine"} | settings)


TAKES = """
class Mine(Strategy):
    def __init__(self, k, sharpness, name='x'):
        self.k, self.sharpness, self.name = k, sharpness, name
    def decide(self, step):
        logits, candidates = step.scaled_logits.topk(self.k)
        return Decision(step.sampled, candidates, (logits * self.sharpness).softmax(-1))
"""


def test_options_are_its_arguments_and_k_is_ours(tmp_path):
    strategy = loaded(own(tmp_path, TAKES, k=5, options={"sharpness": 2.5}))
    assert (strategy.k, strategy.sharpness, strategy.name) == (5, 2.5, "x")
    assert loaded(own(tmp_path, TAKES, k=5, options={"sharpness": 2.5})) is strategy, "asked for before every batch"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sharpness": 1.0, "shapness": 2},
            r"mixing\.options\.shapness: mine.py:Mine has no such argument; .*sharpness",
        ),
        ({}, r"mixing\.options\.sharpness: is missing"),
        ({"sharpness": "high"}, r"raised an error on random logits: TypeError"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as refused:
        loaded(own(tmp_path, TAKES, options=options))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["strategy=noise"],
            "mixing.strategy: 'neighbor', 'token', 'gaussian', 'soft' or 'gumbel', or a class of your own: file.py:NAME",
        ),
        (
            ["strategy=missing.py:Mine"],
            "mixing.strategy: no such file: 'missing.py' is relative to",
        ),
        (["strategy=mine.py"], "mixing.strategy: 'neighbor', 'token', 'gaussian', 'soft' or 'gumbel'"),
        (["strategy=a b:c"], "mixing.strategy: "),
        (["strategy=3"], "mixing.strategy"),
        (['options={"k": 2}'], "mixing.options={'k': 2}: only a class of your own has them; strategy='neighbor'"),
        (["strategy=a.b:C", 'options={"k": 2}'], "mixing.options.k=2: is set by mixing.k; leave it out here"),
        (["strategy=a.b:C", 'options={"x": [2]}'], "mixing.options.x: "),
        (["strategy=a.b:C", 'options={"x y": 2}'], "mixing.options.x y"),
        (
            ['reference={"function": "a.b:C"}'],
            "mixing.reference='a.b:C' is not strategy='neighbor': leave reference out",
        ),
        ([f"end_marker={'x' * 101}"], "mixing.end_marker: "),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError) as refused:
        load_config(PRESETS / "tiny.toml", [f"mixing.{setting}" for setting in settings])
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


# --- what cannot be mixed is refused -------------------------------------------------------------------------------------

GOOD = "logits, candidates = step.scaled_logits.topk(2)\n        weights = logits.softmax(-1)"


def mine(body: str = GOOD, result: str = "Decision(step.sampled, candidates, weights)", rest: str = "k = 2") -> str:
    return f"class Mine(Strategy):\n    {rest}\n    def decide(self, step):\n        {body}\n        return {result}\n"


def embeds(text: str) -> str:
    return mine(rest=f"k = 2\n    def embed(self, vectors, weights, seeds, positions):\n        {text}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def Mine(step): ...", "is no subclass of ngrpo.mixing.strategy.Strategy"),
        ("class Mine: ...", "is no subclass of ngrpo.mixing.strategy.Strategy"),
        ("class Mine(Strategy):\n    k = 2", "has no method decide"),
        (mine(rest="pass"), "k=None is no number of candidates"),
        (mine(rest="k = 0"), "k=0 is no number of candidates"),
        (mine(rest="k = 3"), r"candidates of \(4, 2\) for 4 rows and k=3: return a tensor of \(4, 3\)"),
        (mine(result="(step.sampled, candidates, weights)"), "decide returns tuple"),
        (mine(result="Decision(step.sampled[:, None], candidates, weights)"), r"tokens of \(4, 1\)"),
        (mine(result="Decision(step.sampled, candidates, weights[0])"), r"weights of \(2,\)"),
        (mine(result="Decision(step.sampled.float(), candidates, weights)"), "tokens that are no token ids"),
        (mine(result="Decision(step.sampled, candidates + 1000, weights)"), "candidates that are no token ids"),
        (mine(result="Decision(step.sampled, candidates, weights.log().log())"), "weights that are no finite numbers"),
        (mine(result="Decision(step.sampled, candidates, candidates)"), "weights that are no finite numbers"),
        (mine(body=f"{GOOD}\n        step.scaled_logits.zero_()"), "decide changes the step"),
        (mine(body=f"{GOOD}\n        weights = torch.rand_like(weights)"), "draw from seed and position"),
        (mine(body=f"{GOOD}\n        weights = weights - weights.mean(0)"), "decide each row by itself"),
        (mine(rest="k = 2\n    records_candidates = False"), "records_candidates=False, but"),
        (mine(body=f"{GOOD}\n        1 / 0"), "raised an error on random logits: ZeroDivisionError: division by zero"),
        (embeds("return vectors"), r"embed must return a tensor of \(4, 16\)"),
        (embeds("return vectors[:, 0].detach()"), "passes no gradient on"),
        (embeds("return vectors[:, 0] + torch.randn_like(vectors[:, 0])"), "embed gives a row another result"),
        (embeds("return vectors[:, 0] / 0"), "not finite"),
        (embeds("return (vectors * weights[..., None]).sum(1)"), r"torch.float32 for vectors of bfloat16"),
    ],
)
def test_a_strategy_that_cannot_be_mixed_or_replayed_is_refused(tmp_path, code, message):
    with pytest.raises(ConfigError, match=r"^mixing\.strategy='mine\.py:Mine'.*" + message) as refused:
        loaded(own(tmp_path, code))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module\nclass Mine(Strategy): ...", "no_such_module, which is not installed here"),
        ("class Mine(Strategy): ...\n1 / 0", "mine.py, line 4: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(tmp_path, code, message):
    with pytest.raises(UserCodeError, match=message):
        loaded(own(tmp_path, code))


def test_a_constructor_that_raises_is_told_with_its_line(tmp_path):
    code = mine(rest="def __init__(self, k):\n        raise ValueError('k is odd')")
    with pytest.raises(ConfigError, match=r'refuses its options {"k": 3}: mine.py, line 5: ValueError: k is odd'):
        loaded(own(tmp_path, code))


@pytest.mark.parametrize("strategy", [Neighbor(1), Neighbor(3), Neighbor(40), Gaussian(0.5), Gaussian(0.0), Token()])
def test_those_that_come_with_us_stand_the_trial(strategy):
    try_strategy(strategy)
    with torch.no_grad():
        try_strategy(strategy)  # as before the first rollout of a training


def test_every_ready_strategy_has_a_name_in_the_settings():
    for name, kind in READY.items():
        assert type(loaded(MixingConfig(strategy=name))) is kind


# --- the interface holds what is to come ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GumbelSoftThinking(Strategy):
    """Top tokens with Gumbel noise of the seed and the position on their scores; the label is the most likely token."""

    k: int
    scale: float

    def decide(self, step: Step) -> Decision:
        from ngrpo.mixing.counter import NOISE, random_bits, uniform

        logits, candidates = step.scaled_logits.topk(self.k)
        keys = random_bits(step.seeds, step.positions, NOISE)[:, None]
        noise = -(-uniform(keys, candidates, NOISE).clamp(min=1e-12).log()).log()
        weights = (logits + self.scale * noise.float()).softmax(-1)
        return Decision(step.scaled_logits.argmax(-1), candidates, weights)


def test_a_strategy_that_is_mixed_at_every_step_and_draws_noise_replays(model):
    strategy = GumbelSoftThinking(6, 0.5)
    try_strategy(strategy)
    mixer = mixer_for(model, strategy, 1.0, marker="stop")
    rollouts = TransformersEngine(model, [EOS], PAD, 64).generate(PROMPTS, range(24), Sampling(30, TEMPERATURE), mixer)
    assert replay_error(model, PROMPTS, rollouts, mixer, TEMPERATURE) <= 1e-4
    assert len({tuple(rollout.token_ids) for rollout in rollouts}) > 3, "noise of their seeds makes them differ"


def test_another_process_makes_the_same_strategy():
    for strategy in (Neighbor(3), Gaussian(0.25), Token(), GumbelSoftThinking(4, 1.0)):
        source = json.loads(json.dumps(dataclasses.asdict(source_of(strategy))))
        assert load_strategy(StrategySource(**source)) == strategy


def test_mixing_ends_at_a_text_whatever_token_it_is_in(model):
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    mixer = mixer_for(model, "neighbor", 1.0, marker="9")
    rollouts = TransformersEngine(model, [EOS], PAD, 5).generate(PROMPTS, range(24), Sampling(40, TEMPERATURE), mixer)
    ended = 0
    for rollout in rollouts:
        last = next((at for at, token in enumerate(rollout.token_ids) if "9" in tokenizer.decode([token])), None)
        if last is not None:
            assert (rollout.records.positions <= last).all()
            ended += last + 5 < len(rollout.token_ids)
    assert ended > 3
