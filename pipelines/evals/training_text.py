"""The text that training stages read, passage by passage, for the contamination check."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from pipelines.data import templates
from pipelines.data.sources import Record, Records, open_source
from pipelines.errors import UserError
from pipelines.evals.contamination import Passage
from pipelines.evals.questions import characters_per_token
from pipelines.recipe.schema import (
    Config,
    DpoConfig,
    MidTrainConfig,
    PostTrainConfig,
    PretrainConfig,
    RlvrConfig,
    SourceConfig,
    is_endless,
)

# The templates of a source, by the kind of its records.
_TEMPLATES = {
    "conversations": ("prompt", "response"),
    "pairs": ("prompt", "chosen", "rejected"),
    "problems": ("prompt",),
}


def training_passages(config: Config, key: str) -> Iterator[Passage]:
    """Yield the records of one source, given its config key such as `sft.sources.books`.

    A finite source is read once in full, even if its stage uses only part of it. A world stream is
    endless. It is read as far as its stage can get: to `tokens` (for mid-training twice as many,
    since MiniPLM selects from a pool of that size), or to the conversations, pairs or prompts of
    all steps.

    Raises:
        UserError: a source cannot be read, or a record lacks a field of a template.
    """
    section, _, name = key.partition(".sources.")
    source, settings = training_source(config, key), getattr(config, section)
    records = open_source(name, source, config.data_root, config.seed)
    stream, characters = records.iterate(), None
    if is_endless(source):
        if isinstance(settings, (PretrainConfig, MidTrainConfig)):
            pool = 2 if section == "mid_train" else 1
            characters = pool * settings.tokens * characters_per_token(config, source)
        else:
            stream = islice(stream, _num_records(settings))
    read = 0
    for index, record in stream:
        try:
            text, parts = _text_and_parts(record, source, settings.RECORDS)
        except UserError as error:
            raise UserError(f"source '{name}', {records.locate(index)}: {error}") from error
        yield Passage(text, partial(_place, records, index, config.data_root), parts)
        read += len(text)
        if characters is not None and read >= characters:
            return


def _place(records: Records, index: int, data_root: str) -> str:
    """File and line of a record; the path is relative to the data root."""
    return records.locate(index).replace(f"{data_root}/", "")


def training_source(config: Config, key: str) -> SourceConfig:
    """The source at a config key such as `sft.sources.books`."""
    section, _, name = key.partition(".sources.")
    source: SourceConfig = getattr(config, section).sources[name]
    return source


def _num_records(settings: PostTrainConfig) -> int:
    """Number of records that all steps of SFT, DPO or RLVR use."""
    count = settings.max_steps * settings.global_batch_size
    if isinstance(settings, RlvrConfig):
        return count // settings.num_generations
    return count + (settings.heldout_pairs if isinstance(settings, DpoConfig) else 0)


def _text_and_parts(record: Record, source: SourceConfig, kind: str) -> tuple[str, tuple[str, ...]]:
    """A record as text, and the parts of it that may be a whole question.

    A document has its fields as parts, since a template may surround a question with words. Turns
    stand on separate lines; their parts are the prompt, and the prompt with each later answer.
    """
    if kind == "documents":
        text = templates.source_text(source.text, record, source)
        strip = templates.pattern(source.strip, "strip") if source.strip else None
        fields = templates.rendered_fields(source.text, record)
        return text, tuple(strip.sub("", field) if strip else field for field in fields)
    near_miss = kind == "pairs" and source.near_miss
    names = _TEMPLATES["conversations" if near_miss else kind]
    asked, *given = (templates.source_text(getattr(source, n), record, source) for n in names)
    parts = (asked, *(f"{asked}\n{answer}" for answer in given[1:])) if given else ()
    return "\n".join([asked, *given]), parts
