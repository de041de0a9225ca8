"""The guides that extend remit: following one gives what it says."""

from __future__ import annotations

from pathlib import Path

from following import Followed


def test_add_an_objective(tmp_path: Path) -> None:
    followed = Followed("add-an-objective", tmp_path)
    followed.check(
        "import torch\n"
        "from pipelines.comparison.arm_rules import known_arms\n"
        "from pipelines.objectives.objective import Objective\n"
        "from pipelines.objectives.weights import margin_weights\n"
        "from pipelines.plan.flywheel import with_objective\n"
        "from pipelines.recipe.load import load\n"
        f"{followed.tests()}\n"
        "test_margin_by_hand()\n"
        "given = ['mid_train.objective=margin', 'mid_train.margin.least=0.1']\n"
        "config = with_objective(load('world-tiny', given), True)\n"
        "assert 'margin' in known_arms(config)\n"
        "objective = Objective.of(config.mid_train)\n"
        "assert objective.uses_weights and not objective.divides_by_weights\n"
        "logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)\n"
        "ref = torch.tensor([[-2.0, -1.0, -2.5]])\n"
        "mask = torch.ones(1, 3, dtype=torch.bool)\n"
        "weights = objective.weights(logprobs, ref, mask, None)\n"
        "loss = objective.loss({'nll': -logprobs}, weights, mask, 3)\n"
        "loss.backward()\n"
        "assert abs(float(loss) - 5 / 3) < 1e-6\n"
        "assert torch.allclose(logprobs.grad, torch.tensor([[0.0, -1 / 3, -1 / 3]]))\n"
    )


def test_add_a_reward(tmp_path: Path) -> None:
    followed = Followed("add-a-reward", tmp_path)
    followed.check(
        "from pipelines.recipe.load import load\n"
        "from pipelines.rewards import judge_all\n"
        "from pipelines.rewards.contains import reward\n"
        f"{followed.tests()}\n"
        "test_contains()\n"
        "assert judge_all('contains', [('It is Paris.', 'paris'), ('No.', 'rome')]) == [1.0, 0.0]\n"
        "config = load('world-tiny', ['rlvr.sources.world.reward=contains'])\n"
        "assert config.rlvr.sources['world'].reward == 'contains'\n"
    )


def test_add_a_data_source(tmp_path: Path) -> None:
    followed = Followed("add-a-data-source", tmp_path)
    (tmp_path / "notes.csv").write_text('title,body\nOne,1.5\nTwo,"a, b"\n')
    (tmp_path / "broken.csv").write_text("title,body\nOne,1\nTwo\n")
    followed.check(
        "from pathlib import Path\n"
        "from pipelines.data.inspection import inspect_source\n"
        "from pipelines.data.sources import open_source\n"
        "from pipelines.data.templates import source_text\n"
        "from pipelines.errors import UserError\n"
        "from pipelines.recipe.schema import SourceConfig\n"
        "text = '{{ title }}: {{ body }}'\n"
        "source = SourceConfig(kind='csv', path='notes.csv', text=text)\n"
        "facts = inspect_source('mid_train.sources.notes', source, '.', 'documents')\n"
        "records = open_source('notes', source, '.', 0)\n"
        "texts = [source_text(text, record, source) for record in records]\n"
        "assert sorted(texts) == ['One: 1.5', 'Two: a, b'], texts\n"
        "assert 'record 2' in records.locate(1) and facts.records == 2\n"
        "broken = SourceConfig(kind='csv', path='broken.csv', text=text)\n"
        "try:\n"
        "    inspect_source('mid_train.sources.broken', broken, '.', 'documents')\n"
        "except UserError as error:\n"
        "    assert 'broken.csv, record 2' in str(error), error\n"
        "else:\n"
        "    raise AssertionError('a broken record was accepted')\n"
    )


def test_add_a_report_section(tmp_path: Path) -> None:
    followed = Followed("add-a-report-section", tmp_path)
    followed.check(
        "from pathlib import Path\n"
        "from pipelines.recipe.load import load, to_dict\n"
        "from pipelines.report import Wanted, write_report\n"
        "from pipelines.run_dir import ledger\n"
        "from pipelines.run_dir.paths import RunDir, write_json, write_yaml\n"
        "run = RunDir(Path('run'))\n"
        "for name, seconds in (('base', 61.0), ('rl-tune', 7.0)):\n"
        "    stage = run.stage(name)\n"
        "    stage.root.mkdir(parents=True)\n"
        "    kind = {'base': 'pretrain', 'rl-tune': 'score'}[name]\n"
        "    ledger.append(run.ledger, 'start', name, kind=kind, identity='', inputs={})\n"
        "    write_json(stage.result, {'stage': name, 'kind': kind, 'seconds': seconds})\n"
        "    ledger.append(run.ledger, 'finish', name, kind=kind, wall_seconds=seconds)\n"
        "text = write_report(run, Wanted('md')).read_text()\n"
        "part = text.split('Slowest stages')[1]\n"
        "assert part.index('base') < part.index('rl-tune') and '1m01s' in part, part[:400]\n"
        "assert 'Slowest stages' in write_report(run, Wanted('html')).read_text()\n"
    )
