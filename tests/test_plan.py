"""Plans: which stages in which order from which inputs, what they cost, and that none starts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import UserError
from pipelines.models.checkpoint import ModelRef
from pipelines.plan import commands
from pipelines.plan.cost import CHAT_FILL
from pipelines.plan.epochs import counted
from pipelines.plan.estimate import estimate, num_parameters
from pipelines.plan.flywheel import plan_base, plan_flywheel
from pipelines.plan.plan_file import read_flywheel_plan, write_plan
from pipelines.plan.sources import sources_of
from pipelines.plan.stage import Stage
from pipelines.recipe import load as recipes
from pipelines.recipe.schema import Config
from pipelines.run_dir.paths import RunDir

OUTSIDE = ModelRef("models/base", Path("/models/base"))
REFERENCE = ModelRef("models/rl", Path("/models/rl"))
# As a command line names them: models of a hub.
HUB_BASE, HUB_REFERENCE = "org/base", "org/rl"


def recipe(*overrides: str) -> Config:
    return recipes.load("world-tiny", list(overrides))


def wheel(
    *overrides: str,
    iterations: int = 1,
    base: ModelRef | None = None,
    ref: ModelRef | None = None,
) -> dict[str, Stage]:
    config = recipe(f"flywheel.iterations={iterations}", *overrides)
    stages = plan_flywheel(config, base, ref)
    found = {stage.name: stage for stage in stages}
    assert len(found) == len(stages), "every stage has a folder of its own"
    return found


def a_round(number: int) -> list[str]:
    steps = ("10-mid-train", "15-eval", "20-sft", "30-dpo", "40-rlvr", "50-eval")
    return [f"round-{number}/{step}" for step in steps]


def inputs(stages: dict[str, Stage]) -> dict[str, dict[str, Any]]:
    return {name: dict(stage.inputs) for name, stage in stages.items()}


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_order(iterations: int) -> None:
    stages = wheel(iterations=iterations)
    rounds = [name for number in range(iterations + 1) for name in a_round(number)]
    assert list(stages) == ["base", "contamination", "base-eval", *rounds, "analysis"]
    assert len(stages) == 4 + 6 * (iterations + 1)
    without = wheel("analysis.enabled=false", "eval.contamination=none", iterations=iterations)
    assert list(without) == ["base", "base-eval", *rounds]


def test_inputs_of_one_round() -> None:
    assert inputs(wheel(iterations=1)) == {
        "base": {},
        "contamination": {},
        "base-eval": {"model": "base"},
        "round-0/10-mid-train": {"base": "base"},
        "round-0/15-eval": {"model": "round-0/10-mid-train"},
        "round-0/20-sft": {"model": "round-0/10-mid-train"},
        "round-0/30-dpo": {"model": "round-0/20-sft"},
        "round-0/40-rlvr": {"model": "round-0/30-dpo"},
        "round-0/50-eval": {"model": "round-0/40-rlvr"},
        "round-1/10-mid-train": {"base": "base", "ref": "round-0/40-rlvr"},
        "round-1/15-eval": {"model": "round-1/10-mid-train"},
        "round-1/20-sft": {"model": "round-1/10-mid-train"},
        "round-1/30-dpo": {"model": "round-1/20-sft"},
        "round-1/40-rlvr": {"model": "round-1/30-dpo"},
        "round-1/50-eval": {"model": "round-1/40-rlvr"},
        "analysis": {
            name: name
            for name in ("base", *(n for k in (0, 1) for n in a_round(k) if "eval" not in n))
        },
    }


def test_an_analysis_reads_the_tasks_that_it_asks(tmp_path: Path) -> None:
    assert "eval.tasks.world" in sources_of(wheel()["analysis"])
    assert "eval.tasks.world" not in sources_of(wheel("analysis.accuracy_questions=0")["analysis"])
    with_answers, without = (
        estimate(list(wheel(*given).values()), RunDir(tmp_path), None).stages[-1].tokens
        for given in ((), ("analysis.accuracy_questions=0",))
    )
    # 10 questions of 10 families, 8 tokens each, of the base and two models of each round.
    assert with_answers - without == 100 * 8 * 5


def test_contamination_reads_what_the_stages_read() -> None:
    stages = wheel("dpo.enabled=false")
    training = {f"{section}.sources.world" for section in ("pretrain", "mid_train", "sft", "rlvr")}
    held_out = {"eval.bits_per_byte.pretrain", "eval.bits_per_byte.mid_train"}
    assert set(sources_of(stages["contamination"])) == training | held_out | {"eval.tasks.world"}
    adopted = wheel(base=OUTSIDE)["contamination"]
    assert "pretrain.sources.world" not in sources_of(adopted)


def test_contaminated_questions_are_left_out_of_every_eval_or_of_none() -> None:
    def given(mode: str) -> set[str]:
        stages = wheel(f"eval.contamination={mode}").values()
        return {str(s.inputs.get("contamination")) for s in stages if s.kind == "evaluate"}

    assert given("leave_out") == {"contamination"}
    assert given("report") == given("none") == {"None"}
    assert "contamination" not in wheel("eval.contamination=none")
    config = recipe("eval.tasks.world.enabled=false")
    assert len(commands.contamination(config)) == 1
    config = replace(config, eval=replace(config.eval, bits_per_byte={}))
    assert all(s.kind != "contamination" for s in plan_flywheel(config, None, None))
    with pytest.raises(UserError, match="nothing to look for"):
        commands.contamination(config)


def test_every_round_starts_from_the_base_with_the_last_rounds_reference() -> None:
    stages = wheel(iterations=3)
    mids = [stages[f"round-{k}/10-mid-train"] for k in range(4)]
    assert [mid.inputs["base"] for mid in mids] == ["base"] * 4
    assert [mid.inputs.get("ref") for mid in mids] == [
        None, "round-0/40-rlvr", "round-1/40-rlvr", "round-2/40-rlvr"
    ]  # fmt: skip
    objectives = [mid.config.mid_train.objective for mid in mids]
    assert objectives == ["ntp", "remit", "remit", "remit"]


def test_an_input_is_made_before_it_is_used() -> None:
    done: set[str] = set()
    for stage in wheel(iterations=3).values():
        assert {given for given in stage.inputs.values() if isinstance(given, str)} <= done
        done.add(stage.name)


def test_only_post_trained_models_are_asked_through_chat() -> None:
    stages = wheel(iterations=1)
    assert [n for n, s in stages.items() if s.chat] == ["round-0/50-eval", "round-1/50-eval"]


def test_ref_replaces_the_bootstrap() -> None:
    stages = wheel(iterations=2, ref=REFERENCE)
    assert list(stages) == list(wheel(iterations=2)), "round 0 still runs, as the baseline"
    assert "ref" not in stages["round-0/10-mid-train"].inputs
    assert stages["round-1/10-mid-train"].inputs["ref"] is REFERENCE
    assert stages["round-2/10-mid-train"].inputs["ref"] == "round-1/40-rlvr"
    assert stages["analysis"].inputs["ref"] is REFERENCE


def test_no_baseline() -> None:
    stages = wheel("flywheel.baseline=false", iterations=2, ref=REFERENCE)
    expected = [*a_round(1), *a_round(2), "analysis"]
    assert list(stages) == ["base", "contamination", "base-eval", *expected]
    with pytest.raises(UserError, match=r"flywheel.baseline=false.*--ref"):
        wheel("flywheel.baseline=false")


def test_an_adopted_base_is_the_only_stage_that_reads_it() -> None:
    stages = wheel(base=OUTSIDE)
    assert stages["base"].inputs == {"base": OUTSIDE}
    assert all(OUTSIDE not in s.inputs.values() for n, s in stages.items() if n != "base")


@pytest.mark.parametrize(
    ("off", "left", "reference"),
    [
        (["rlvr"], ["20-sft", "30-dpo"], "30-dpo"),
        (["dpo"], ["20-sft", "40-rlvr"], "40-rlvr"),
        (["sft", "dpo"], ["40-rlvr"], "40-rlvr"),
        (["dpo", "rlvr"], ["20-sft"], "20-sft"),
    ],
)
def test_steps_switched_off(off: list[str], left: list[str], reference: str) -> None:
    stages = wheel(*(f"{kind}.enabled=false" for kind in off))
    names = [n.removeprefix("round-0/") for n in stages if n.startswith("round-0/")]
    assert names == ["10-mid-train", "15-eval", *left, "50-eval"]
    chain = ["round-0/10-mid-train", *(f"round-0/{name}" for name in left)]
    for made, user in zip(chain, [*chain[1:], "round-0/50-eval"], strict=True):
        assert stages[user].inputs == {"model": made}
    assert stages["round-1/10-mid-train"].inputs["ref"] == f"round-0/{reference}"


def test_all_steps_off() -> None:
    off = [f"{kind}.enabled=false" for kind in ("sft", "dpo", "rlvr")]
    with pytest.raises(UserError, match=r"sft.enabled, dpo.enabled, rlvr.enabled"):
        wheel(*off)
    with pytest.raises(UserError, match="disabled"):
        commands.post_train(recipe(*off), HUB_BASE)


@pytest.mark.parametrize(
    ("objective", "ref", "decided"),
    [("auto", None, "ntp"), ("auto", HUB_REFERENCE, "remit"), ("ntp", None, "ntp"),
     ("remit", HUB_REFERENCE, "remit")],
)  # fmt: skip
def test_objective(objective: str, ref: str | None, decided: str) -> None:
    (stage,) = commands.mid_train(recipe(f"mid_train.objective={objective}"), HUB_BASE, ref)
    assert stage.config.mid_train.objective == decided
    assert stage.inputs == {
        "base": ModelRef(HUB_BASE, None), **({"ref": ModelRef(ref, None)} if ref else {})
    }  # fmt: skip


@pytest.mark.parametrize(("objective", "ref"), [("remit", None), ("ntp", HUB_REFERENCE)])
def test_objective_against_reference(objective: str, ref: str | None) -> None:
    with pytest.raises(UserError, match=rf"objective={objective}.*--ref"):
        commands.mid_train(recipe(f"mid_train.objective={objective}"), HUB_BASE, ref)


@pytest.mark.parametrize(("name", "tail"), [("", ""), ("lr1e-4", "-lr1e-4")])
def test_single_stage_folders(name: str, tail: str) -> None:
    config = recipe(*([f"stage.name={name}"] if name else []))
    assert [s.name for s in commands.mid_train(config, HUB_BASE, None)] == [f"mid-train{tail}"]
    assert [s.name for s in commands.rl_tune(config, HUB_BASE)] == [f"rl-tune{tail}"]
    assert [s.name for s in commands.evaluate(config, HUB_BASE, chat=True)] == [f"eval{tail}"]
    assert [s.name for s in plan_base(config, None)] == ["base"]
    post = commands.post_train(config, HUB_BASE)
    assert [s.name for s in post] == [
        f"post-train{tail}/{step}" for step in ("20-sft", "30-dpo", "40-rlvr")
    ]
    assert [s.inputs["model"] for s in post] == [
        ModelRef(HUB_BASE, None),
        post[0].name,
        post[1].name,
    ]


@pytest.mark.parametrize("name", ["world-tiny", "gsm8k-small"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_parameters_are_those_of_a_real_model(
    name: str, tied: bool, kv_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setenv("REMIT_DATA", str(tmp_path))
    shape = replace(
        recipes.load(name).model, tie_word_embeddings=tied, num_key_value_heads=kv_heads
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=300, hidden_size=shape.hidden_size, tie_word_embeddings=tied,
            intermediate_size=shape.intermediate_size, num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads, num_key_value_heads=kv_heads,
        )
    )  # fmt: skip
    assert num_parameters(shape, 300) == model.num_parameters()


def test_parameters_of_the_world_use_its_own_vocabulary(tmp_path: Path) -> None:
    from pipelines.data.new_tokenizer import build_tokenizer

    config = recipe()
    vocabulary = len(build_tokenizer(config.tokenizer, {}, ".", 0))
    found = estimate(plan_base(config, None), RunDir(tmp_path), None)
    assert found.parameters == num_parameters(config.model, vocabulary)


def test_estimate_by_hand(tmp_path: Path) -> None:
    config = recipe()
    stages = plan_flywheel(recipe("flywheel.iterations=1"), None, None)
    found = estimate(stages, RunDir(tmp_path), None)
    n = found.parameters
    by_name = {stage.stage: stage for stage in found.stages}
    assert list(by_name) == [stage.name for stage in stages]
    # What is asked for is rounded up to whole steps.
    step = config.pretrain.global_batch_size * config.sequence_length
    base_tokens, mid_tokens = (
        math.ceil(asked / step) * step
        for asked in (config.pretrain.tokens, config.mid_train.tokens)
    )
    assert by_name["base"].tokens == base_tokens
    assert by_name["base"].flops == 6 * n * base_tokens
    plain, weighted = by_name["round-0/10-mid-train"], by_name["round-1/10-mid-train"]
    assert plain.flops == 6 * n * mid_tokens
    assert weighted.flops == 8 * n * mid_tokens, "the reference's forward"
    assert all(stage.seconds > 0 and stage.disk_bytes > 0 for stage in found.stages)
    assert {stage.state for stage in found.stages} == {"to do"}
    assert found.seconds_left == pytest.approx(sum(stage.seconds for stage in found.stages))


def test_an_adopted_base_is_counted_from_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    given = ModelRef(str(tiny_model), tiny_model)
    found = estimate(plan_base(recipe(), given), RunDir(tmp_path), given)
    real = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert found.parameters == pytest.approx(real, rel=0.1), "a file has a header"
    assert found.stages[0].tokens == 0 and found.stages[0].flops == 0


def test_the_command_starts_nothing(remit: Any, tmp_path: Path) -> None:
    done = remit("plan", "--config", "world-tiny", "--iterations", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    assert [s["stage"] for s in done.json["stages"]] == list(wheel(iterations=1))
    assert {s["state"] for s in done.json["stages"]} == {"to do"}
    assert done.json["run_dir"] == str(tmp_path / "runs" / "world-tiny")
    total = done.json["total"]
    for key in ("tokens", "flops", "disk_bytes", "seconds"):
        assert total[key] == pytest.approx(sum(s[key] for s in done.json["stages"]))
    assert "Nothing was started" in done.stderr


def test_the_command_as_text(remit: Any, tmp_path: Path) -> None:
    done = remit("plan", "--config", "world-tiny", "--iterations", "0", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert "round-0/40-rlvr" in done.stdout and "round-1" not in done.stdout
    assert "\x1b" not in done.stdout and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["pretrain-ckpt", "flywheel"])
def test_the_stage_that_adopts_knows_what(command: str, tiny_model: Path) -> None:
    given = str(tiny_model)
    if command == "flywheel":
        base = commands.whole_flywheel(recipe(), 1, given, None)[0]
    else:
        (base,) = commands.pretrain_ckpt(recipe(), given)
    assert base.inputs == {"base": ModelRef(given, tiny_model.resolve())}
    assert base.config.base == given, "the stage records what it adopted"


@pytest.mark.parametrize(
    "override",
    ["seed=3", "mid_train.remit.eps=0.6", "mid_train={remit: {eps: 0.6}}",
    "mid_train[remit][eps]=0.6",
     "eval.suite=quick", "rlvr.enabled=false", "mid_train.sources.world.weight=2",
     "sequence_length=64"],
)  # fmt: skip
def test_an_analysis_cannot_tell_a_training_otherwise(tmp_path: Path, override: str) -> None:
    run = RunDir(tmp_path)
    write_plan(run.flywheel_plan, recipe(), list(wheel().values()))
    with pytest.raises(UserError, match="is a setting of what was trained") as refused:
        read_flywheel_plan(run, ["analysis.tokens=9", override])
    key = override.split("=")[0].replace("[", ".").replace("]", "")
    assert f": {key}" in str(refused.value)


def test_an_analysis_takes_settings_of_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write_plan(run.flywheel_plan, recipe(), list(wheel().values()))
    own = ["analysis.tokens=9", "analysis={batch_size: 2}", "launch.hang_seconds=9",
           "chunk_bytes=99", "eval.batch_size=3", "eval.bits_per_byte_tokens=7",
           "eval.tasks.world.limit=4",
           "eval.bits_per_byte.pretrain.limit=5", "mid_train.sources.world.publish=false",
           f"data_root={tmp_path}"]  # fmt: skip
    config, _ = read_flywheel_plan(run, own)
    assert (config.analysis.tokens, config.analysis.batch_size, config.eval.batch_size) == (9, 2, 3)
    assert not config.mid_train.sources["world"].publish


def test_a_training_by_epochs_is_counted_where_its_records_are_known(tmp_path: Path) -> None:
    path = tmp_path / "ten.jsonl"
    record = '{"prompt": "%d", "response": "%d", "chosen": "%d", "rejected": "no"}\n'
    path.write_text("".join(record % (n, n, n % 2) for n in range(10)))
    run = RunDir(tmp_path / "run")

    def tokens(section: str, *overrides: str) -> tuple[int, bool]:
        config = recipe(
            f"{section}.max_steps=0", f"{section}.num_train_epochs=2",
            f"{section}.global_batch_size=4", f"{section}.sources.world.weight=0",
            f"{section}.sources.own.path={path}", *overrides,
        )  # fmt: skip
        stages = counted([Stage(section, section, config, {"model": "base"})], run)
        (found,) = estimate(stages, run, None).stages
        return found.tokens, found.steps_known

    sequence = 128 * CHAT_FILL
    assert tokens("sft") == (math.ceil(5 * 4 * sequence), True)
    assert tokens("sft", "sft.max_length=64") == (math.ceil(5 * 4 * sequence / 2), True)
    assert tokens("sft", "sft.sources.own.limit=4") == (math.ceil(2 * 4 * sequence), True)
    only = "sft.sources.own.filter.response"
    assert tokens("sft", f"{only}='7'") == (math.ceil(1 * 4 * sequence), True)
    # Two answers a pair, and two pairs are held out.
    assert tokens("dpo", "dpo.heldout_pairs=2") == (math.ceil(2 * 4 * 4 * sequence), True)
    assert tokens("sft", f"sft.sources.own.path={tmp_path}/none.jsonl") == (0, False)
    assert tokens("sft", "sft.sources.own.kind=hub") == (0, False)
