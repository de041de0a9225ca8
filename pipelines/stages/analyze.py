"""Stage analyze: training dynamics, which tokens are up-weighted, and how far RL moves the model.

One process, without a DeepSpeed engine, loads each model of the run once to score held-out text.
Models that take part in token weighting also score the first training sequences, and models along
the annealing also answer questions.
"""

from __future__ import annotations

import gc
import json
import time
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.analysis import heldout as held
from pipelines.analysis.annealing import Asked, first_questions, scores_of
from pipelines.analysis.lineage import BASE, Checkpoint, Lineage, lineage
from pipelines.analysis.token_classes import CLASSES
from pipelines.analysis.token_text import TokenText
from pipelines.analysis.token_weights import by_group, extremes, weights_of
from pipelines.analysis.training_text import TrainingText, excerpts, read_training_text, target_rows
from pipelines.data.packed_set import PackedDataset
from pipelines.evals.questions import heldout_text
from pipelines.models.loading import load_frozen, load_scorer
from pipelines.models.tokenizer import load_tokenizer
from pipelines.objectives.objective import Objective
from pipelines.objectives.token_nll import IGNORE, score_tokens_in_forward
from pipelines.objectives.weights import discrepancy
from pipelines.recipe.schema import pool_factor, post_training_sections
from pipelines.run_dir.job import StageJob
from pipelines.training.packed_data import packed
from pipelines.training.scoring import score


def run(job: StageJob) -> dict[str, Any]:
    """Compare the models of the run; `missing` lists the parts that could not be computed."""
    last_step = [step for step in post_training_sections() if getattr(job.config, step).enabled][-1]
    models = lineage(job.inputs, last_step)
    analysis = Analysis(job, models)
    analysis.score_models()
    return {
        "learner": BASE,
        "dynamics_reference": analysis.rl_model,
        "heldout_tokens": {name: sum(t.counts) for name, t in analysis.heldout.items()},
        "rounds": [analysis.round_weights(number) for number in analysis.weighted_rounds],
        "dynamics": analysis.dynamics(),
        "movement": analysis.movement(),
        "accuracy": analysis.accuracy(),
        "accuracy_missing": analysis.no_accuracy,
        "missing": missing(analysis),
    }


def missing(analysis: Analysis) -> list[str]:
    """The parts of a full analysis that are missing, one sentence each."""
    models = analysis.models
    weighted = any(number >= 1 for number in models.mids)
    parts = [
        (not analysis.heldout,
         "Gaps and movement are missing, because eval.bits_per_byte names no held-out text."),
        (analysis.rl_model is None,
         "Gaps to an RL model are missing, because round 0 has no post-trained model and --ref "
         "was not given."),
        (not weighted,
         "Weights are missing, because no round of weighted mid-training is complete."),
        (weighted and analysis.objective is None,
         "Weights are missing, because the objective does not weight tokens by the reference's "
         "log-probabilities."),
        (bool(analysis.no_accuracy), analysis.no_accuracy),
        *((number not in models.posts,
           f"Movement after mid-training is missing in round {number}, because the round has no "
           "post-trained model.")
          for number in models.mids),
    ]  # fmt: skip
    return [sentence for is_missing, sentence in parts if is_missing]


class Analysis:
    """Scores of the models of one run, and the results computed from them."""

    def __init__(self, job: StageJob, models: Lineage) -> None:
        self.job, self.models, self.config = job, models, job.config
        self.dtype = self.config.mid_train.dtype
        # By model and domain, summed log-probabilities of held-out windows, [windows].
        self.window_sums: dict[str, dict[str, np.ndarray]] = {}
        # By model, log-probabilities of the training sequences, [sequences, context].
        self.logprobs: dict[str, Tensor] = {}
        # By model along an annealing, its scores on the questions.
        self.answered: dict[str, dict[str, Any]] = {}

    @cached_property
    def tokenizer(self) -> Any:
        found = load_tokenizer(
            self.job.inputs[BASE], trust_remote_code=bool(self.config.trust_remote_code)
        )
        if found.pad_token_id is None:
            found.pad_token = found.eos_token
        return found

    @cached_property
    def objective(self) -> Objective | None:
        """The objective that weights the tokens of the rounds by log-probabilities of a reference;
        None if none does."""
        if not any(number >= 1 for number in self.models.mids):
            return None
        found = Objective.of(self.config.mid_train)
        return found if found.uses_ref_logprobs else None

    @property
    def weighted_rounds(self) -> list[int]:
        if self.objective is None:
            return []
        return [n for n in self.models.mids if n >= 1 and self.models.reference(n) is not None]

    @property
    def rl_model(self) -> str | None:
        """The model that all checkpoints are compared with: the reference of round 1."""
        return self.models.reference(1)

    @cached_property
    def heldout(self) -> dict[str, held.HeldOut]:
        """Held-out text by domain."""
        config = self.config
        return {
            name: held.read_heldout(
                self.tokenizer, heldout_text(name, source, config.data_root), named=name,
                sequence_length=config.sequence_length, max_tokens=config.analysis.heldout_tokens,
            )
            for name, source in config.eval.bits_per_byte.items()
        }  # fmt: skip

    @cached_property
    def questions(self) -> list[Asked]:
        return first_questions(self.config)

    @property
    def no_accuracy(self) -> str:
        """Why accuracy along the annealing is missing; empty if it is not."""
        asks = self.config.analysis.accuracy_questions
        why = "eval.tasks enables no task" if asks else "analysis.accuracy_questions is 0"
        missing = f"Accuracy along the annealing is missing, because {why}."
        return "" if self.questions else missing

    @property
    def along_annealing(self) -> list[Checkpoint]:
        """The base, and the snapshots of each annealing with its final model."""
        every = self.models.checkpoints.values()
        return [made for made in every if made.name == BASE or made.phase == "anneal"]

    @cached_property
    def dataset(self) -> PackedDataset:
        mid = self.config.mid_train
        found = packed(self.job, "mid_train", mid, self.tokenizer, factor=pool_factor(mid))
        found.with_documents = True
        return found

    @cached_property
    def num_sequences(self) -> int:
        """Number of training sequences whose weights are analyzed."""
        wanted = -(-self.config.analysis.tokens // self.config.sequence_length)
        return min(len(self.dataset), wanted)

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        return self.dataset.collate([self.dataset[i] for i in range(self.num_sequences)])

    @cached_property
    def text(self) -> TrainingText:
        return read_training_text(
            self.dataset, self.num_sequences, TokenText(self.tokenizer),
            self.config.mid_train.sources, self.config.data_root, self.config.seed,
        )  # fmt: skip

    def score_models(self) -> None:
        """Load each model once and score the questions and texts that need it."""
        on_training_text = {BASE} if self.weighted_rounds else set()
        for number in self.weighted_rounds:
            on_training_text |= {self.models.mids[number], str(self.models.reference(number))}
        on_heldout: set[str] = set()
        if self.rl_model and self.heldout:
            on_heldout = {*self.models.checkpoints, self.rl_model}
        on_questions = {made.name for made in self.along_annealing} if self.questions else set()
        wanted = on_heldout | on_training_text | on_questions
        order = [*self.models.checkpoints, str(self.models.external_reference)]
        needed = [name for name in order if name in wanted]
        size = self.config.analysis.batch_size
        # Objects that exist now stay alive, so collections after each model can skip them.
        gc.freeze()
        for done, name in enumerate(needed):
            self._progress(done, len(needed))
            model = load_frozen(self.models.folder(name), self.dtype, self.config)
            if name in on_questions:
                self.answered[name] = scores_of(
                    model, self.tokenizer, self.questions, self.config.eval.batch_size
                )
            score_tokens_in_forward(model, len(self.tokenizer), chunk_bytes=self.config.chunk_bytes)
            if name in on_heldout:
                self.window_sums[name] = {
                    domain: held.window_logprobs(model, self.tokenizer, text, size)
                    for domain, text in self.heldout.items()
                }
            if name in on_training_text:
                rows = score(model, self.dataset, range(self.num_sequences), size)
                self.logprobs[name] = torch.from_numpy(rows)
            del model
            _free()
        self._progress(len(needed), len(needed))

    def dynamics(self) -> list[dict[str, Any]]:
        """The gap of every checkpoint to the RL model, by domain."""
        if self.rl_model is None or not self.heldout:
            return []
        found, rl = [], self.window_sums[self.rl_model]
        for made in self.models.checkpoints.values():
            own = self.window_sums[made.name]
            found.append({
                "checkpoint": made.name, "phase": made.phase, "round": made.round,
                "step": made.step, "tokens": made.tokens,
                "gap": {
                    domain: held.gap(own[domain], rl[domain], text.counts)
                    for domain, text in self.heldout.items()
                },
            })  # fmt: skip
        return found

    def accuracy(self) -> list[dict[str, Any]]:
        """The scores of the base and of each model along the annealing of each round."""
        if not self.questions:
            return []
        ends = {number: self.models.checkpoints[mid] for number, mid in self.models.mids.items()}
        found = []
        for made in self.along_annealing:
            # The base is step 0 of every annealing.
            step, end = (made.step, ends[made.round].step) if made.round is not None else (0, 1)
            place = {"checkpoint": made.name, "round": made.round, "step": step, "done": step / end}
            found.append(place | self.answered[made.name])
        return found

    def movement(self) -> list[dict[str, Any]]:
        """KL(base || mid) and KL(mid || post) of each round, mean per held-out token."""
        found: list[dict[str, Any]] = []
        for number, mid in self.models.mids.items() if self.heldout else ():
            post = self.models.posts.get(number)
            entry = {"round": number, "base_to_mid": self._kl(BASE, mid)}
            found.append(entry | ({"mid_to_post": self._kl(mid, post)} if post else {}))
        return found

    def round_weights(self, number: int) -> dict[str, Any]:
        """Statistics of a round's weights, with the base and its final model as the learner."""
        mid, reference = self.models.mids[number], str(self.models.reference(number))
        values = self._token_values(BASE, reference)
        sources, text = self.config.mid_train.sources, TokenText(self.tokenizer)
        published = self.text.published(sources)
        high, low = extremes(np.where(published, values["weights"], np.nan), self.text.ids)
        return {
            "round": number,
            "mid": mid,
            "reference": reference,
            **self._groups(values["weights"]),
            "at_end": self._groups(self._token_values(mid, reference)["weights"]),
            "highest": [_listed(text, *entry) for entry in high],
            "lowest": [_listed(text, *entry) for entry in low],
            "sequences": excerpts(self.text, sources, values),
        }

    def _token_values(self, learner: str, reference: str) -> dict[str, np.ndarray]:
        """Weight, d and both log-probabilities of each training token; NaN for a non-target."""
        assert self.objective is not None
        mask = self.batch["shift_labels"] != IGNORE
        logprobs, ref_logprobs = self.logprobs[learner], self.logprobs[reference]
        weights = weights_of(
            self.objective, logprobs, ref_logprobs, mask, self.batch["documents"],
            self.config.mid_train.micro_batch_size,
        )  # fmt: skip
        found = {
            "weights": weights, "d": discrepancy(logprobs, ref_logprobs, mask),
            "logprobs": logprobs, "ref_logprobs": ref_logprobs,
        }  # fmt: skip
        return {name: target_rows(x.numpy(), mask.numpy()) for name, x in found.items()}

    def _groups(self, weights: np.ndarray) -> dict[str, Any]:
        eps, domains = self.config.mid_train.remit.eps, self.text.domains
        return {
            "domains": by_group(weights, domains, sorted(set(domains)), eps),
            "classes": by_group(weights, self.text.classes, CLASSES, eps),
        }

    def _kl(self, first: str, second: str) -> dict[str, Any]:
        """KL(first || second), overall and by domain."""
        config, num_tokens = self.config, len(self.tokenizer)
        reference = load_scorer(self.models.folder(first), self.dtype, config, num_tokens)
        model = load_frozen(self.models.folder(second), self.dtype, config)
        ref_head = reference.get_output_embeddings()
        score_tokens_in_forward(model, num_tokens, ref_head, config.chunk_bytes)
        size = config.analysis.batch_size
        sums = {
            domain: held.window_kl(model, reference, self.tokenizer, text, size)
            for domain, text in self.heldout.items()
        }
        counts = {domain: text.counts for domain, text in self.heldout.items()}
        del reference, model
        _free()
        return {
            **held.divergence(np.concatenate(list(sums.values())), list(chain(*counts.values()))),
            "domains": {name: held.divergence(sums[name], counts[name]) for name in sums},
        }

    def _progress(self, done: int, of: int) -> None:
        with open(self.job.stage_dir.metrics, "a", encoding="utf-8") as stream:
            line = {"step": done, "max_steps": of, "time": round(time.time(), 3)}
            stream.write(json.dumps(line) + "\n")


def _listed(text: TokenText, token_id: int, count: int, mean: float) -> dict[str, Any]:
    return {"token": text.alone(token_id), "id": token_id, "count": count, "mean_weight": mean}


def _free() -> None:
    """Free a model: its replaced forward is a reference cycle, so it needs a collection."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
