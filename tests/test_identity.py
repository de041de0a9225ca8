"""Identity: the same for what cannot change a result, another for what can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.plan import kinds
from pipelines.plan.identity import differing, digest, identity_fields
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import OBJECTIVES, Config

KINDS = [kind.name for kind in kinds.KINDS]


@pytest.fixture
def config() -> Config:
    return recipes.load("world-tiny")


def of(kind: str, config: Config, **inputs: str) -> str:
    return digest(identity_fields(kind, config, inputs))


def test_every_kind_of_stage_has_an_identity(config: Config) -> None:
    assert len({of(kind, config) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "data_root=/elsewhere", "launch.gpus=2", "launch.env.A=b", "stage.name=x",
        "flywheel.iterations=9", "flywheel.expectations=true", "mid_train.zero_stage=3",
        "mid_train.micro_batch_size=1", "mid_train.save_total_limit=3", "mid_train.logging_steps=1",
        "mid_train.save_steps=5", "mid_train.save_seconds=1",
        "mid_train.gradient_checkpointing=true", "mid_train.offload_optimizer=true",
        # Of other stages:
        "pretrain.tokens=40_000", "sft.max_steps=3", "rlvr.temperature=0.5", "eval.batch_size=1",
        "eval.bits_per_byte_tokens=1", "flywheel.baseline=false",
    ],
)  # fmt: skip
def test_these_cannot_change_mid_train(config: Config, override: str) -> None:
    assert of("mid_train", recipes.load("world-tiny", [override])) == of("mid_train", config)


def test_an_analysis_depends_on_the_tasks_that_it_asks(config: Config) -> None:
    none = "analysis.accuracy_questions=0"
    other, without = (recipes.load("world-tiny", o) for o in (["eval.tasks.world.limit=9"], [none]))
    both = recipes.load("world-tiny", ["eval.tasks.world.limit=9", none])
    assert of("analyze", other) != of("analyze", config)
    assert of("analyze", both) == of("analyze", without) != of("analyze", config)
    drawn = recipes.load("world-tiny", ["eval.tasks.world.samples=4"])
    assert of("analyze", drawn) == of("analyze", config)


@pytest.mark.parametrize(
    "objective",
    [
        ("objective=rho1",), ("objective=remit", "remit.divisor=weights"),
        ("objective=remit", "remit.center=batch"),
        ("objective=remit", "remit.center=none", "remit.standardize=true"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("mid_train.micro_batch_size=4", False), ("launch.gpus=2", False),
        # Four sequences each, on one rank or two.
        ("mid_train.micro_batch_size=5", False), ("mid_train.micro_batch_size=9", True),
    ],
)  # fmt: skip
def test_the_micro_batch_counts_where_weights_are_taken_over_it(
    objective: tuple[str, ...], override: str, same: bool
) -> None:
    def own(*more: str) -> str:
        overrides = [*(f"mid_train.{key}" for key in objective), *more]
        return of("mid_train", recipes.load("world-tiny", overrides))

    assert (own(override) == own()) == same
    exactly = "mid_train.scope=step"
    assert own(override, exactly) == own(exactly)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "sequence_length=64", "document_mask=false",
        "mid_train.objective=remit", "mid_train.tokens=40_000", "mid_train.global_batch_size=4",
        "mid_train.learning_rate=1e-5", "mid_train.weight_decay=0", "mid_train.adam_beta2=0.9",
        "mid_train.max_grad_norm=2", "mid_train.warmup_ratio=0.5", "mid_train.dtype=bf16",
        "mid_train.sources.world.weight=2", "mid_train.sources.b.path=b",
        "model.attn_implementation=eager",
        "trust_remote_code=[a]",
    ],
)  # fmt: skip
def test_these_can_change_mid_train(config: Config, override: str) -> None:
    assert of("mid_train", recipes.load("world-tiny", [override])) != of("mid_train", config)


@pytest.mark.parametrize("kind", ["mid_train", "analyze"])
@pytest.mark.parametrize("objective", [kind.name for kind in OBJECTIVES])
@pytest.mark.parametrize(
    ("section", "override"),
    [
        ("remit", "mid_train.remit.eps=0.1"),
        ("rho1", "mid_train.rho1.keep=0.3"),
        ("kd", "mid_train.kd.alpha=0.7"),
    ],
)
def test_settings_of_an_objective_count_where_it_is_used(
    kind: str, objective: str, section: str, override: str
) -> None:
    chosen = f"mid_train.objective={objective}"
    before, after = (recipes.load("world-tiny", [chosen, *more]) for more in ([], [override]))
    assert (of(kind, before) != of(kind, after)) == (objective == section)


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("pretrain", "model.num_hidden_layers=3"), ("pretrain", "tokenizer.vocab_size=512"),
        ("pretrain", "pretrain.tokens=40_000"), ("sft", "sft.max_steps=3"), ("dpo", "dpo.beta=0.2"),
        ("rlvr", "rlvr.temperature=0.5"), ("evaluate", "eval.bits_per_byte_tokens=1"),
        ("evaluate", "eval.tasks.world.max_new_tokens=9"),
        ("evaluate", "eval.contamination=leave_out"), ("contamination", "sft.max_steps=3"),
        ("contamination", "eval.contamination_ngram=8"), ("contamination", "seed=1"),
        ("contamination", "eval.tasks.world.limit=3"),
    ],
)  # fmt: skip
def test_these_can_change_their_stage(config: Config, kind: str, override: str) -> None:
    assert of(kind, recipes.load("world-tiny", [override])) != of(kind, config)


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("evaluate", "eval.contamination=none"), ("evaluate", "eval.contamination_ngram=8"),
        ("contamination", "eval.contamination=leave_out"), ("contamination", "sft.zero_stage=0"),
        ("contamination", "eval.tasks.world.max_new_tokens=9"),
        ("contamination", "mid_train.learning_rate=1e-5"),
    ],
)  # fmt: skip
def test_these_cannot_change_their_stage(config: Config, kind: str, override: str) -> None:
    assert of(kind, recipes.load("world-tiny", [override])) == of(kind, config)


@pytest.mark.parametrize(
    ("kind", "default", "other", "shorter"),
    [
        ("sft", "sft.max_length=128", "sft.max_length=64", "sequence_length=64"),
        ("dpo", "dpo.max_length=128", "dpo.max_length=64", "sequence_length=64"),
        (
            "rlvr",
            "rlvr.max_prompt_length={room}",
            "rlvr.max_prompt_length=40",
            "sequence_length=96",
        ),
    ],
)
def test_a_length_counts_as_it_is_resolved(
    config: Config, kind: str, default: str, other: str, shorter: str
) -> None:
    default = default.format(room=config.sequence_length - config.rlvr.max_completion_length)
    assert config.sequence_length == 128
    assert of(kind, recipes.load("world-tiny", [default])) == of(kind, config)
    assert of(kind, recipes.load("world-tiny", [other])) != of(kind, config)
    assert of(kind, recipes.load("world-tiny", [shorter])) != of(kind, config)
    # With a length of its own, a stage does not depend on the length of packed sequences.
    both = recipes.load("world-tiny", [default, shorter])
    assert of(kind, both) == of(kind, config)


def test_an_input_counts_by_role_and_content(config: Config) -> None:
    found = {
        of("mid_train", config),
        of("mid_train", config, base="a"),
        of("mid_train", config, base="b"),
        of("mid_train", config, ref="a"),
        of("mid_train", config, base="a", ref="b"),
        of("mid_train", config, base="b", ref="a"),
    }
    assert len(found) == 6
    assert of("mid_train", config, ref="b", base="a") in found


def test_an_adopted_base_depends_on_nothing_of_training(config: Config) -> None:
    other = recipes.load(
        "world-tiny", ["seed=3", "pretrain.tokens=40_000", "model.num_hidden_layers=3"]
    )
    assert of("pretrain", other, base="a") == of("pretrain", config, base="a")
    assert of("pretrain", config, base="a") != of("pretrain", config, base="b")


def test_numerics_version_counts(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = of("mid_train", config)
    raised = replace(kinds.kind_of("mid_train"), numerics_version=99)
    monkeypatch.setitem(kinds._BY_NAME, "mid_train", raised)
    assert of("mid_train", config) != before


def test_digest_does_not_depend_on_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_a_resolved_config_has_the_identity_of_the_recipe(config: Config) -> None:
    again = recipes.from_dict(recipes.to_dict(config))
    assert all(of(kind, again) == of(kind, config) for kind in KINDS)


def test_differing_names_key_old_and_new(config: Config) -> None:
    new = recipes.load("world-tiny", ["seed=3", "mid_train.warmup_ratio=0.1"])
    found = differing(identity_fields("mid_train", config, {"base": "a"}),
                      identity_fields("mid_train", new, {"ref": "b"}), {}, {})  # fmt: skip
    assert found == [
        "input base: a -> (not set)",
        "input ref: (not set) -> b",
        "mid_train.warmup_ratio: 0.01 -> 0.1",
        "seed: 0 -> 3",
    ]
    assert differing({"a": "x" * 99}, {"a": 1}, {}, {}) == [f"a: {'x' * 57}... -> 1"]


def test_a_differing_input_is_named_by_its_folder() -> None:
    def said(old: str, new: str) -> list[str]:
        before, now = {"base": {"path": old}}, {"base": {"path": new}}
        return differing({"input base": "ea843816c"}, {"input base": "e469f3e61"}, before, now)

    assert said("/a", "/b") == ["input base: /a (ea8438) -> /b (e469f3)"]
    same = "input base: /a (ea8438) -> /a (e469f3), whose files have changed"
    assert said("/a", "/a") == [same]
