"""The text that training stages read, passage by passage, for the contamination check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

_View = Callable[[Record, SourceConfig], tuple[str, tuple[str, ...]]]


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
    source = training_source(config, key)
    records = open_source(name, source, config.data_root, config.seed)
    view = _VIEWS[getattr(config, section).RECORDS]
    stream = records.iterate()
    characters = None
    if is_endless(source):
        settings = getattr(config, section)
        if isinstance(settings, (PretrainConfig, MidTrainConfig)):
            pool = 2 if section == "mid_train" else 1
            characters = pool * settings.tokens * characters_per_token(config, source)
        else:
            stream = islice(stream, _num_records(settings))
    read = 0
    for index, record in stream:
        try:
            text, parts = view(record, source)
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


def _document(record: Record, source: SourceConfig) -> tuple[str, tuple[str, ...]]:
    """The document; its fields are parts, since a template may surround a question with words."""
    text = templates.source_text(source.text, record, source)
    strip = templates.pattern(source.strip, "strip") if source.strip else None
    fields = templates.rendered_fields(source.text, record)
    return text, tuple(strip.sub("", field) if strip else field for field in fields)


def _conversation(record: Record, source: SourceConfig) -> tuple[str, tuple[str, ...]]:
    return _joined(record, source, source.prompt, source.response)


def _pair(record: Record, source: SourceConfig) -> tuple[str, tuple[str, ...]]:
    if source.near_miss:
        return _joined(record, source, source.prompt, source.response)
    return _joined(record, source, source.prompt, source.chosen, source.rejected)


def _prompt(record: Record, source: SourceConfig) -> tuple[str, tuple[str, ...]]:
    return templates.source_text(source.prompt, record, source), ()


def _joined(
    record: Record, source: SourceConfig, prompt: str, *answers: str
) -> tuple[str, tuple[str, ...]]:
    """The turns on separate lines. Parts are the prompt, and the prompt with each answer."""
    asked = templates.source_text(prompt, record, source)
    given = [templates.source_text(answer, record, source) for answer in answers]
    return "\n".join([asked, *given]), (asked, *(f"{asked}\n{answer}" for answer in given[1:]))


_VIEWS: dict[str, _View] = {
    "documents": _document,
    "conversations": _conversation,
    "pairs": _pair,
    "problems": _prompt,
}
