import re
import tomllib
from pathlib import Path

import pytest

from ngrpo.config import (
    NeighborIndexConfig,
    PrepareDataConfig,
    RunConfig,
    foreign_names,
    load_config,
    select,
)
from ngrpo.config.listing import Table, tables
from ngrpo.errors import ConfigError

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
TINY = PRESETS / "tiny.toml"

# Settings that the expectations below name, whatever the preset is tuned to.
PINNED = [
    "model.source.hidden_size=64",
    "model.source.heads=4",
    "model.source.kv_heads=2",
    "data.train.min_operands=3",
    "data.train.max_operands=4",
    "neighbors.candidates=32",
    "warm_start.steps=600",
    "warm_start.batch_size=64",
    "warm_start.micro_batch_size=64",
    "mixing.k=3",
    "rollout.group_size=8",
    "training.prompts_per_batch=32",
    "training.updates_per_batch=1",
    "training.micro_batch_size=256",
    "training.steps=30",
    "training.save_steps=10",
    "evaluation.samples=16",
    "evaluation.pass_at=[1, 16]",
]


# Each impossible setting, and what its one line of error must name: the field, the value, and what is allowed.
IMPOSSIBLE = {
    "mixing.k=0": ("mixing.k", "greater than or equal to 1", "0"),
    "mixing.k=40": ("mixing.k=40", "neighbors.candidates=32", "raise neighbors.candidates to at least 39"),
    "mixing.rate=1.5": ("mixing.rate", "less than or equal to 1", "1.5"),
    "mixing.rate=-0.1": ("mixing.rate", "greater than or equal to 0", "-0.1"),
    "mixing.strategy=noise": ("mixing.strategy", "'neighbor', 'token', 'gaussian', 'soft' or 'gumbel'", "noise"),
    "rollout.temperature=0": ("rollout.temperature", "greater than 0", "0"),
    "rollout.temperature=-1": ("rollout.temperature", "greater than 0", "-1"),
    "rollout.top_p=0.9": ("rollout.top_p=0.9", "set 1.0"),
    "rollout.group_size=1": ("rollout.group_size", "greater than or equal to 2", "1"),
    "training.micro_batch_size=7": ("training.prompts_per_batch=32", "micro_batch_size = 1 x 7", "multiple"),
    "training.learning_rate=fast": ("training.learning_rate", "valid number", "fast"),
    "evaluation.samples=8": ("evaluation.pass_at", "samples=8", "k <= samples"),
    "warm_start.micro_batch_size=60": ("warm_start.micro_batch_size=60", "divide batch_size=64"),
    "data.warm_start=null": ("warm_start.steps=600", "data.warm_start", "set steps to 0"),
    'training.selection={"benchmark": "aime24"}': (
        "training.selection.benchmark='aime24'",
        "data.benchmarks",
        "arithmetic",
    ),
    'training.selection={"benchmark": "arithmetic"}': (
        "training.selection.benchmark='arithmetic'",
        "promotion decides",
    ),
    "promotion.benchmark=aime24": ("promotion.benchmark='aime24'", "data.benchmarks", "arithmetic"),
    'promotion.tolerated_regression={"aime24": 1}': ("promotion.tolerated_regression.aime24", "arithmetic"),
    "promotion.statistic=median": ("promotion.statistic", "median"),
    "promotion.statistic=pass@17": ("pass@17", "evaluation.samples=16"),
    "data.train.size=0": ("data.train.size", "greater than or equal to 1", "0"),
    "data.train.fold=test": ("data.train.fold", "'held_out'", "test"),
    "data.train.min_operands=5": ("data.train.min_operands=5", "max_operands=4"),
    "data.train.kind=csv": ("data.train.kind", "'arithmetic', 'countdown', 'reasoning_gym', 'hub'", "csv"),
    "data.benchmarks={}": ("data.benchmarks", "at least 1 item", "{}"),
    "model.source.heads=5": ("model.source.hidden_size=64", "heads=5"),
    "model.source.kv_heads=3": ("model.source.kv_heads=3", "divide heads=4"),
    "training.loss_type=cispo": ("training.loss_type='cispo' needs epsilon_high", "set it, for example to 5"),
    "training.loss_type=luspo": ("training.loss_type='luspo'", "importance_sampling_level to 'sequence'"),
    "training.delta=1.1": ("training.delta=1.1 must be above 1 + 0.2", "raise it"),
    "training.delta=1": ("training.delta", "greater than 1", "1"),
    "training.epsilon_high=0": ("training.epsilon_high", "greater than 0", "0"),
    "training.num_iterations=3": (
        "training.save_steps=10 must be a multiple of updates_per_batch=1 x num_iterations=3, 3",
    ),
    "training.num_iterations=0": ("training.num_iterations", "greater than or equal to 1", "0"),
    "training.scale_rewards=true": ("training.scale_rewards", "'group', 'batch' or 'none'", "True"),
    "training.cast_lm_head_to_fp32=true": (
        "training.cast_lm_head_to_fp32=true has no effect",
        "set model.dtype to 'bfloat16'",
    ),
    "mixing.rat=0.2": ("mixing.rat", "unknown setting", "0.2"),
    "seeds=1": ("seeds", "unknown setting", "1"),
}


@pytest.mark.parametrize("override", IMPOSSIBLE)
def test_an_impossible_setting_gives_one_line_with_field_value_and_cure(override: str) -> None:
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [*PINNED, override])
    message = str(failure.value)
    assert "\n" not in message
    for part in IMPOSSIBLE[override]:
        assert part in message


@pytest.mark.parametrize(
    ("updates", "save_steps", "steps", "named"),
    [(4, 6, 8, "save_steps=6"), (4, 8, 6, "steps=6")],
)
def test_a_checkpoint_or_an_end_off_a_rollout_boundary_is_refused(updates, save_steps, steps, named) -> None:
    overrides = [
        *PINNED,
        f"training.updates_per_batch={updates}",
        "training.micro_batch_size=64",
        f"training.save_steps={save_steps}",
        f"training.steps={steps}",
    ]
    with pytest.raises(ConfigError, match=rf"{named} must be a multiple of updates_per_batch=4"):
        load_config(TINY, overrides)


@pytest.mark.parametrize(("steps", "fits"), [(4, True), (8, True), (6, False), (16, False), (2, False)])
def test_the_policy_is_measured_between_checkpoints_where_it_can_be_saved_too(steps, fits) -> None:
    settings = ("updates_per_batch=4", "steps=16", "save_steps=8", f"selection.steps={steps}")
    overrides = [*PINNED, "training.micro_batch_size=16", *(f"training.{setting}" for setting in settings)]
    if fits:
        assert load_config(TINY, overrides).training.selection.steps == steps
        return
    with pytest.raises(ConfigError, match=rf"training\.selection\.steps={steps} must be a multiple .* leave it out"):
        load_config(TINY, overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("loss_type=sapo", "epsilon_high=0.3"),
            "epsilon_high=0.3 has no effect with loss_type='sapo', which does not clip: leave it out",
        ),
        (
            ("loss_type=cispo", "epsilon_high=5", "delta=9"),
            "delta=9 has no effect with loss_type='cispo': leave it out",
        ),
        (
            ("delta=1.5", "epsilon_high=0.6"),
            "delta=1.5 must be above 1 + 0.6, where the ratio is clipped already: raise it",
        ),
        (
            ("loss_type=vespo", "importance_sampling_level=sequence"),
            "loss_type='vespo' has weights of sequences of its own: leave importance_sampling_level at 'token'",
        ),
        (
            ("use_bias_correction_kl=false", "kl_coefficient=0"),
            "use_bias_correction_kl=false has no effect with kl_coefficient=0: leave it out",
        ),
    ],
)
def test_settings_of_the_objective_without_effect_are_refused(overrides, said) -> None:
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [*PINNED, *(f"training.{override}" for override in overrides)])
    assert str(failure.value) == f"training.{said}"


@pytest.mark.parametrize("revision", ["main", "ad9f0ae", "AD9F0AE0864D7FBCD1CD905E3C6C5B069CC8B562"])
def test_a_revision_that_is_not_a_commit_is_refused(revision: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.train\.revision: .*40.*value '" + revision):
        load_config(PRESETS / "paper-1.5b.toml", [f"data.train.revision={revision}"])


def test_every_faulty_setting_gets_its_line() -> None:
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, ["mixing.k=0", "rollout.temperature=0"])
    assert [line.split(":")[0] for line in str(failure.value).splitlines()] == ["mixing.k", "rollout.temperature"]


def test_a_list_that_is_too_short_for_its_faulty_items_alone_gets_one_line() -> None:
    webhook = "notifications.team.url_from=TEAM_WEBHOOK"
    with pytest.raises(ConfigError, match=r"^notifications\.team\.on\.0: Input should be 'failed', [^\n]*$"):
        load_config(TINY, [webhook, 'notifications.team.on=["nope"]'])
    with pytest.raises(ConfigError, match=r"^notifications\.team\.on: [^\n]*at least 1 item[^\n]*$"):
        load_config(TINY, [webhook, "notifications.team.on=[]"])


def test_a_renamed_setting_is_named_as_it_is_called_now(tmp_path: Path) -> None:
    preset = tmp_path / "previous.toml"
    preset.write_text(TINY.read_text(encoding="utf-8").replace("[rollout]", "[rollout]\nnum_generations = 8"))
    with pytest.raises(ConfigError) as failure:
        load_config(preset)
    assert str(failure.value) == "rollout.num_generations: unknown setting (value 8); here: rollout.group_size"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainin.steps=3", "did you mean training?"),
        ("training.stesp=3", "did you mean training.steps?"),
        ("training.group_size=3", "did you mean rollout.group_size?"),
        ("data.train.foldd=train", "did you mean data.train.fold?"),
        ("data.benchmarks.arithmetic.sze=3", "did you mean data.benchmarks.arithmetic.size?"),
        ("cluster.gpu.memory=80", "did you mean cluster.gpu.memory_gib?"),
        ("training.selection.sample=3", "did you mean training.selection.samples?"),
        ("sed=3", "did you mean seed?"),
        ("training.xyzzy=3", "`ngrpo config training` lists what there is"),
        ("extends=tiny", "only a file has it, at its top"),
        ("xyzzy=3", "`ngrpo config` lists what there is"),
        ("training.beta=0", "here: training.kl_coefficient"),
        ("training.num_generations=8", "here: rollout.group_size"),
        ("num_generations=8", "here: rollout.group_size"),
        ("warm_start.max_length=8", "here: warm_start.max_tokens"),
        ("warm_start.per_device_train_batch_size=8", "here: warm_start.micro_batch_size"),
        ("rollout.n=8", "here: rollout.group_size"),
        ("training.kl_loss_coef=0", "here: training.kl_coefficient"),
        ("training.ppo_mini_batch_size=8", "here: training.updates_per_batch"),
        ("training.clip_ratio_high=0.28", "here: training.epsilon_high"),
        ("actor_rollout_ref.rollout.n=8", "here: rollout.group_size"),
        ("data.train_batch_size=8", "here: training.prompts_per_batch"),
        ("trainer.nnodes=2", "here: cluster.nodes"),
        ("mixing.rho=0.1", "here: mixing.rate"),
    ],
)
def test_an_unknown_setting_is_told_from_one_that_is_misspelled_or_called_otherwise_elsewhere(override, said) -> None:
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [*PINNED, override])
    (line,) = str(failure.value).splitlines()
    assert "unknown setting" in line
    assert line.endswith(f"; {said}")


def test_what_things_are_called_elsewhere_names_settings_that_are_there() -> None:
    there = {path for table in tables(RunConfig) for place in table.paths for path in _paths(place, table)}
    for names in (
        foreign_names.OURS_OF_GRPO,
        foreign_names.OURS_OF_SFT,
        foreign_names._VERL,
        foreign_names._RENAMED,
    ):
        for theirs, ours in names.items():
            for path in re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)+", ours) or [ours]:
                assert path in there | {"training.rewards"}, (theirs, path)


def _paths(place: str, table: Table) -> list[str]:
    return [re.sub("NAME", "ngrpo_training", f"{place}.{setting.name}".lstrip(".")) for setting in table.settings]


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    lines = TINY.read_text(encoding="utf-8").splitlines()
    preset.write_text("\n".join(line for line in lines if "max_prompt_tokens" not in line), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^data\.max_prompt_tokens: missing"):
        load_config(preset)


def test_a_preset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml.*no such file"):
        load_config(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml.*not TOML"):
        load_config(broken)


def test_overrides_reach_any_depth_and_read_json() -> None:
    config = load_config(
        TINY,
        [
            "seed=3",
            "data.train.size=50",
            "evaluation.pass_at=[1, 2]",
            "mixing.end_marker=null",
            "mixing.strategy=token",
        ],
    )
    assert (config.seed, config.data.train.size, config.evaluation.pass_at) == (3, 50, (1, 2))
    assert config.mixing.end_marker is None
    assert config.mixing.strategy == "token"


@pytest.mark.parametrize("override", ["training.steps", "=3", "training steps=3"])
def test_an_override_without_field_or_value_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.field=value"):
        load_config(TINY, [override])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'steps' is a value, not a section"):
        load_config(TINY, ["training.steps.more=3"])


def test_a_configuration_survives_json() -> None:
    config = load_config(PRESETS / "paper-7b.toml")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "override",
    ["seed=5", "model.dtype=bfloat16", "warm_start.steps=20", "warm_start.learning_rate=0.1", "training.steps=2"],
)
def test_prepared_data_does_not_depend_on_settings_that_cannot_change_it(override: str) -> None:
    changed, before = (
        select(load_config(TINY, overrides), PrepareDataConfig).model_dump(exclude=set(PrepareDataConfig.unkeyed))
        for overrides in ([override], [])
    )
    assert changed == before


@pytest.mark.parametrize("override", ["data.train.size=9", "warm_start.max_tokens=9", "data.prompt_suffix=x"])
def test_prepared_data_depends_on_settings_that_change_it(override: str) -> None:
    assert select(load_config(TINY, [override]), PrepareDataConfig) != select(load_config(TINY), PrepareDataConfig)


def test_the_neighbor_index_does_not_depend_on_the_data() -> None:
    changed = load_config(TINY, ["data.train.size=9", "training.steps=2"])
    assert select(changed, NeighborIndexConfig) == select(load_config(TINY), NeighborIndexConfig)


def test_a_preset_is_named_after_its_file() -> None:
    assert "preset" not in tomllib.loads(TINY.read_text(encoding="utf-8"))
    assert load_config(TINY).preset == "tiny"
