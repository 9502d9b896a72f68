# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The published models that were checked against their families, and a search over them.

A family's file holds its models (``Family.published``), and ``tools/dev/write_generated.py`` works
out the facts of each once, to ``model_zoo.json``: a list is there at once, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from mmaselect.diffusion.families import Family, Published

#: Made by ``tools/dev/write_generated.py``.
TABLE = Path(__file__).with_suffix('.json')


@dataclass(frozen=True)
class PublishedModel:
    """Facts of one published model.

    Attributes:
        name: What ``pretrained`` takes: a hub id, or ``mmaselect://NAME`` for one in the package.
        family: File in ``mmaselect/diffusion/families`` that reads it.
        transformer_class: Name of the diffusers class.
        width: Channels of a token.
        stacks: Blocks of each of its stacks, in the order in which they run.
        default_block: Block that is read where none is named.
        stride: Image pixels per token, along each side.
        process: Forward process, in words.
        millions: Parameters of the transformer, in millions.
        held: GiB of 16-bit weights that are held when the default block is read.
        whole: GiB of the whole transformer's 16-bit weights.
        license: As the model's page names it, which has the last word; 'see its page' where it is
            not known.
        gated: Whether the page asks for a login and a consent before it gives the weights.
        brief: Whether its card says that it was trained briefly, so that it may be best at t = 0.
    """

    name: str
    family: str
    transformer_class: str
    width: int
    stacks: tuple[int, ...]
    default_block: int
    stride: int
    process: str
    millions: int
    held: float
    whole: float
    license: str
    gated: bool = False
    brief: bool = False

    @property
    def blocks(self) -> int:
        """Number of blocks, all stacks together."""
        return sum(self.stacks)


@cache
def read_table() -> tuple[PublishedModel, ...]:
    """All rows, family by family."""
    rows = json.loads(TABLE.read_text(encoding='utf-8'))
    return tuple(PublishedModel(**{**row, 'stacks': tuple(row['stacks'])}) for row in rows)


def derive_models() -> Iterator[PublishedModel]:
    """The rows of the table, worked out anew from the ``published`` models of all families.

    Builds every model on the meta device, which takes a quarter of a minute.
    """
    from mmaselect.diffusion import known_families

    families = known_families().values()
    for family in sorted(families, key=lambda family: family.__module__):
        for model in family.published:
            yield derive(family, model, build_whole(family, model))


def build_whole(family: type[Family], model: Published) -> ModelMixin:
    """A published model on the meta device, without weights."""
    import diffusers
    import torch

    with torch.device('meta'):
        return getattr(diffusers, family.transformer_class).from_config(dict(model.config))


def derive(family: type[Family], model: Published, whole: ModelMixin) -> PublishedModel:
    """One row: what its family says of a published model, and the sizes of its weights.

    Args:
        family: The family.
        model: One of its models.
        whole: What :func:`build_whole` gives for it.
    """
    import torch

    described = family(dict(whole.config))
    needed = described.default_block + 1
    with torch.device('meta'):
        held = type(whole).from_config({**whole.config, **described.build_overrides(needed)})
        described.trim(held, needed)

    def gib(transformer: torch.nn.Module) -> float:
        # Of tables that are stored with the weights, too.
        numbers = sum(tensor.numel() for tensor in transformer.state_dict().values())
        return round(numbers * 2 / 2**30, 1)

    return PublishedModel(
        name=model.name,
        family=family.__module__.rpartition('.')[2],
        transformer_class=family.transformer_class,
        width=described.width,
        stacks=described.stack_lengths,
        default_block=described.default_block,
        stride=model.stride,
        process=model.process,
        millions=round(sum(parameter.numel() for parameter in whole.parameters()) / 1e6),
        held=gib(held),
        whole=gib(whole),
        license=model.license,
        gated=model.gated,
        brief=model.brief,
    )


def table_json(models: Iterable[PublishedModel]) -> str:
    """The text of the table's file: a row a line."""
    rows = [json.dumps(asdict(model)) for model in models]
    return '[\n' + ',\n'.join(rows) + '\n]\n'


def list_models(
    filter: str | Sequence[str] = '',
    *,
    exclude_filters: str | Sequence[str] = '',
    family: str | Sequence[str] = '',
    gated: bool | None = None,
) -> list[str]:
    """Names of the published models that were checked, for ``pretrained``.

    Other models of the same transformer classes work as well: this list holds what the tests build
    and compare.

    Args:
        filter: One or more patterns; a model that fits any of them is listed. ``*``, ``?`` and
            ``[...]`` are wildcards; a pattern without any fits wherever it occurs in a name. Case
            does not matter. Every model fits an empty one.
        exclude_filters: Patterns of models to leave out.
        family: Patterns of the family, such as ``'sd3'`` or ``'flux*'``.
        gated: Only models whose page asks for a consent (True), or only the others (False).

    Returns:
        list[str]: Names, family by family. :func:`model_info` has the facts of each.

    Example:
        >>> from mmaselect import list_models
        >>> list_models('facebook/dit*')
        ['facebook/DiT-XL-2-256', 'facebook/DiT-XL-2-512']
        >>> list_models(family='flux*', gated=False)
        ['black-forest-labs/FLUX.2-klein-4B']
        >>> list_models('stable-diffusion', exclude_filters='*medium*')
        ['stabilityai/stable-diffusion-3.5-large']
    """
    return [
        model.name
        for model in read_table()
        if fits(model.name, filter, empty=True)
        and not fits(model.name, exclude_filters, empty=False)
        and fits(model.family, family, empty=True, anywhere=False)
        and (gated is None or model.gated == gated)
    ]


def model_info(name: str) -> PublishedModel:
    """Facts of a published model.

    Args:
        name: As :func:`list_models` gives it.

    Raises:
        KeyError: If the list has no such model.

    Example:
        >>> from mmaselect import model_info
        >>> model = model_info('stabilityai/stable-diffusion-3.5-medium')
        >>> model.width, model.blocks, model.default_block, model.stride, model.gated
        (1536, 24, 9, 16, True)
    """
    for model in read_table():
        if model.name == name:
            return model
    raise KeyError(
        f'{name!r} is not in the list of published models; list_models() has '
        f'{len(read_table())} names. `pretrained` takes others too, if their class has a family'
    )


def families_table() -> str:
    """The models as the Markdown table of ``docs/families.md``."""
    columns = {
        'model': lambda model: f'`{model.name}`',
        'class': lambda model: f'`{model.transformer_class}`',
        'family': lambda model: f'`{model.family}`',
        'width': lambda model: model.width,
        'blocks': lambda model: _count(model.stacks),
        'default block': lambda model: model.default_block,
        'pixels per token': lambda model: model.stride,
        'forward process': lambda model: model.process,
        'parameters (billions)': lambda model: f'{model.millions / 1000:.3g}',
        'held, of whole (GiB)': _weights,
        'license': lambda model: model.license + (', gated' if model.gated else ''),
    }
    rows = [list(columns), ['---'] * len(columns)]
    rows += [[str(cell(model)) for cell in columns.values()] for model in read_table()]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _weights(model: PublishedModel) -> str:
    return f'{model.held:.1f} of {model.whole:.1f}' if model.whole else 'under 0.1'


def _count(stacks: tuple[int, ...]) -> str:
    """Such as ``'57 (19 + 38)'``."""
    parts = f' ({" + ".join(map(str, stacks))})' if len(stacks) > 1 else ''
    return f'{sum(stacks)}{parts}'


def fits(text: str, patterns: str | Sequence[str], *, empty: bool, anywhere: bool = True) -> bool:
    """Whether a text fits one of the patterns; ``empty`` is the answer where there are none."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    patterns = [pattern.lower() for pattern in patterns if pattern]
    if anywhere:
        patterns = [p if any(char in p for char in '*?[') else f'*{p}*' for p in patterns]
    return any(fnmatchcase(text.lower(), p) for p in patterns) if patterns else empty
