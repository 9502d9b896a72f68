# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the rest of the package must know of a transformer class, and nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmaselect.checks import is_sequence, is_whole_number, shorten
from mmaselect.diffusion.codec import Codec
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.place_search import BlockSearch
from mmaselect.diffusion.process import ForwardProcess, build_process
from mmaselect.diffusion.single_file import OriginalLayout

#: Where a feature is read in a block: Q, K, V as the projections give them, the output of the
#: attention layer, and the output of the block (Fig. 5 of arXiv 2603.25758).
FEATURES = ('query', 'key', 'value', 'attention', 'output')

#: Q and K as the attention product sees them: after QK norm and rotary embedding. For families
#: whose class has neither of the two they would equal 'query' and 'key', and are not offered.
POST_FEATURES = ('query_post', 'key_post')

#: ``Family.stacks`` of classes that begin with two-stream blocks (image and text apart) and go on
#: with single-stream ones.
TWO_STACKS = (
    ('num_layers', 'transformer_blocks'),
    ('num_single_layers', 'single_transformer_blocks'),
)


@dataclass(frozen=True)
class Tap:
    """Where a feature map comes out of a transformer.

    Attributes:
        module: The submodule whose output is read.
        tokens: Takes that output and the token grid (h, w), and returns the **image** tokens,
            (B, h * w, C): text tokens, registers and padding are left behind here.
        operand: None to read the module's output. ``'query'`` or ``'key'`` to read that operand of
            the ``scaled_dot_product_attention`` which the module calls instead, ``'product'`` to
            read its result; ``tokens`` is then given (B, N, C), the heads concatenated.
        product: Which of the products that the module computes in a pass, counted from 0.
    """

    module: nn.Module
    tokens: Callable[[Any, tuple[int, int]], Tensor]
    operand: str | None = None
    product: int = 0


@dataclass(frozen=True)
class Published:
    """A model that is published, as its page describes it.

    Attributes:
        name: What ``pretrained`` takes: a hub id, or ``mmaselect://NAME`` for one in the package.
        config: What its ``transformer/config.json`` says; entries that equal the defaults of the
            class may be left out.
        stride: Image pixels per token, along each side.
        process: Forward process, in words.
        license: As the model's page names it, which has the last word; 'see its page' where it is
            not known.
        gated: Whether the page asks for a login and a consent before it gives the weights.
        brief: Whether its card says that it was trained briefly, so that it may be best at t = 0.
    """

    name: str
    config: Mapping[str, Any]
    stride: int
    process: str
    license: str
    gated: bool = False
    brief: bool = False


def whole_output(output: Any, grid: tuple[int, int]) -> Tensor:
    """The tokens of a module that works on image tokens only and returns one tensor."""
    return output


class Family(ABC):
    """How one transformer class is built, called and read.

    A family is a stateless description of a class plus one model's config. Subclasses set the
    class attributes, write the abstract methods and say where else they differ from the usual;
    ``families/dit.py`` is the shortest example.

    Args:
        config: The transformer's config (the content of ``transformer/config.json``).
    """

    #: Name of the diffusers class.
    transformer_class: ClassVar[str]
    #: Name in messages and tables.
    title: ClassVar[str]
    #: The kind of original checkpoint that alone it reads (see ``originals.py``); None for a family
    #: that reads its class wherever it comes from.
    original: ClassVar[str | None] = None
    #: First release of diffusers that has the class, called as the family calls it.
    min_diffusers: ClassVar[str] = '0.32'
    #: Whether a prompt conditions the model (otherwise a class label, or nothing, does).
    uses_text: ClassVar[bool] = False
    #: Config entry with the number of blocks, and the transformer's list that holds them; more than
    #: one where different kinds of blocks follow each other. They are counted through.
    stacks: ClassVar[tuple[tuple[str, str], ...]] = (('num_layers', 'transformer_blocks'),)
    #: What ``from_single_file`` of the class converts; None where it converts nothing.
    original_layout: ClassVar[OriginalLayout | None] = None
    #: File of diffusers whose code makes the host wait for the device in each pass, and why; empty
    #: where nothing does.
    waits_in: ClassVar[str] = ''
    #: Models that the tests build and compare; ``list_models()`` names them.
    published: ClassVar[tuple[Published, ...]] = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    @property
    def features(self) -> tuple[str, ...]:
        """Entries of FEATURES and POST_FEATURES that this class offers."""
        return FEATURES

    # -- geometry ---------------------------------------------------------------------------------
    @property
    def stack_lengths(self) -> tuple[int, ...]:
        """Blocks of each of :attr:`stacks` in the published model."""
        return tuple(int(self.config[entry]) for entry, _ in self.stacks)

    @property
    def num_blocks(self) -> int:
        """Blocks that the published model has, whatever part of them is built."""
        return sum(self.stack_lengths)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.config['num_attention_heads']) * int(self.config['attention_head_dim'])

    @property
    def patch_size(self) -> int:
        """Latent pixels per token, along each side."""
        return int(self.config['patch_size'])

    @property
    def in_channels(self) -> int:
        """Channels of the latent."""
        return int(self.config['in_channels'])

    @property
    def default_block(self) -> int:
        """The block that is read where the user names none: the middle one."""
        return self.num_blocks // 2

    @property
    def published_block(self) -> int | None:
        """The block whose queries a paper reads in this family; None where there is no such."""
        return None

    def channels(self, block: int, feature: str) -> int:
        """Channels of a feature map; the width, unless heads are grouped (K and V)."""
        return self.width

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        """Raise a ValueError if the model has no positions for a token grid (h, w).

        Args:
            grid: Rows and columns of tokens.
            stride: Image pixels per token, for a message in the user's units.
        """
        return

    def refuse_beyond(
        self, limit: int, grid: tuple[int, int], stride: int, what: str = 'positions'
    ) -> None:
        """What :meth:`check_grid` does where the positions of both sides end at one number.

        Args:
            limit: Rows, and columns, that there are positions for.
            grid: As in :meth:`check_grid`.
            stride: As in :meth:`check_grid`.
            what: Kind of the positions.
        """
        if max(grid) > limit:
            raise ValueError(
                f'{self.title} has {what} for {limit}x{limit} tokens, and this image makes '
                f'{grid[0]}x{grid[1]}: resize or crop it to at most {limit * stride} pixels a side'
            )

    # -- building ---------------------------------------------------------------------------------
    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        """Config entries that make ``from_pretrained`` build the first blocks only."""
        overrides = {}
        for (entry, _), length in zip(self.stacks, self.stack_lengths, strict=True):
            overrides[entry] = min(num_blocks, length)
            num_blocks -= overrides[entry]
        return overrides

    def trim(self, transformer: nn.Module, num_blocks: int) -> None:
        """Drop what was built beyond the first ``num_blocks`` blocks and is never run."""
        return

    def load_transformer(
        self, source: PipelineSource, num_blocks: int, dtype: torch.dtype, **load_kwargs: Any
    ) -> nn.Module:
        """Build the first ``num_blocks`` blocks of the transformer with their weights.

        Args:
            source: The pipeline.
            num_blocks: Blocks that are needed.
            dtype: Precision of the weights.
            load_kwargs: Passed to ``from_pretrained``: ``quantization_config``, ``device_map``, ...

        Raises:
            RuntimeError: If weights of a needed block are missing from the checkpoint.
        """
        return source.transformer(
            self.transformer_class,
            self.build_overrides(num_blocks),
            lambda transformer: self.trim(transformer, num_blocks),
            dtype,
            self.original_layout,
            **load_kwargs,
        )

    # -- noising ----------------------------------------------------------------------------------
    def build_process(self, source: PipelineSource) -> ForwardProcess:
        """Forward process: the scheduler's, unless the pipeline has a rule of its own."""
        return build_process(source.config('scheduler'))

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        """Image encoder: the VAE's, unless the pipeline scales its latents in a way of its own."""
        return source.codec(dtype)

    # -- conditioning -----------------------------------------------------------------------------
    @abstractmethod
    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Turn the user's ``condition`` into conditioning tensors with a batch dimension of 1.

        Args:
            spec: None for the empty condition (null class, empty prompt); a class label or a
                prompt otherwise.
            source: The pipeline, for families that must embed a prompt.
            dtype: The transformer's dtype.
        """

    def condition_in_words(self, spec: Any) -> str:
        """Text of a ``condition``, the same for all that mean the same.

        Args:
            spec: As in :meth:`prepare_condition`, which accepted it.
        """
        return repr(spec)

    # -- running ----------------------------------------------------------------------------------
    @abstractmethod
    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        """Call the transformer for its side effects (the taps); its output is not used.

        Args:
            transformer: The frozen transformer.
            latent: Noisy latent (B, C, H, W) in the transformer's dtype.
            model_time: (B,), float32, in the scheduler's units (0 to T).
            condition: Conditioning tensors with a batch dimension of B.
        """

    def block(self, transformer: nn.Module, index: int) -> Any:
        """Block ``index``, counted from 0 and through all stacks: its parts differ by class."""
        *earlier, (_, last) = self.stacks
        for (_, stack), length in zip(earlier, self.stack_lengths, strict=False):
            if index < length:
                return getattr(transformer, stack)[index]
            index -= length
        return getattr(transformer, last)[index]

    def drop_blocks(self, transformer: nn.Module, start: int, stop: int) -> None:
        """Free blocks that are never run: the pass ends before them.

        Args:
            transformer: The frozen transformer.
            start: The first of them.
            stop: Behind the last of them that was built.
        """
        dropped = {id(self.block(transformer, index)) for index in range(start, stop)}
        for stack in [m for m in transformer.modules() if isinstance(m, nn.ModuleList)]:
            for place, block in enumerate(stack):
                if id(block) in dropped:
                    stack[place] = nn.Identity()  # some families count their blocks

    @abstractmethod
    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        """Where ``feature`` of block ``index`` comes out."""

    def grid(self, latent: Tensor) -> tuple[int, int]:
        """Token grid (h, w) of a latent (B, C, H, W)."""
        return latent.shape[-2] // self.patch_size, latent.shape[-1] // self.patch_size

    def to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image tokens (B, h * w, C), in row-major order, as a map (B, C, h, w)."""
        if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
            raise RuntimeError(
                f'{self.transformer_class}: expected image tokens (B, {grid[0]}*{grid[1]}, C) '
                f'but a block gave {tuple(tokens.shape)}. The installed diffusers may have '
                f'changed this class; please report it with the diffusers version.'
            )
        return tokens.transpose(1, 2).unflatten(2, grid)

    def resolve_blocks(self, blocks: Sequence[int] | int | str | None) -> tuple[int, ...]:
        """Block indices as given by a user, negative ones counted from the end, as 0..L-1.

        Of a search (``'auto'``): all blocks that may be picked.

        Raises:
            ValueError: If an index is out of range.
        """
        if blocks is None:
            return (self.default_block,)
        if isinstance(blocks, str):
            return BlockSearch.parse(blocks).candidates(self.num_blocks, self.title)
        if not is_whole_number(blocks) and not is_sequence(blocks):
            raise ValueError(
                f'blocks must be one whole number or several, got {shorten(blocks)}: this '
                f'{self.title} has {self.num_blocks} blocks, 0 to {self.num_blocks - 1}'
            )
        listed: Sequence[Any] = list(blocks) if is_sequence(blocks) else [blocks]
        if not listed:
            raise ValueError('blocks is empty: name at least one block')
        resolved = []
        for index in listed:
            if not is_whole_number(index):
                raise TypeError(f'blocks must be whole numbers, got {index!r} in {shorten(blocks)}')
            if not -self.num_blocks <= index < self.num_blocks:
                raise ValueError(
                    f'block {index} is out of range: this {self.title} has {self.num_blocks} '
                    f'blocks, 0 to {self.num_blocks - 1} (or -{self.num_blocks} to -1)'
                )
            resolved.append(int(index) % self.num_blocks)
        return tuple(resolved)
