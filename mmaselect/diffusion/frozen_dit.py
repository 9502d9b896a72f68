# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A frozen diffusion transformer that gives the feature maps of any of its blocks.

Nothing of diffusers is copied, patched or overwritten: forward hooks read the features, and an
exception that never leaves this file ends the pass as soon as the last wanted one is there.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmaselect.checks import any_spelling, is_meant, is_sequence, keywords, shorten
from mmaselect.diffusion.attention import AttentionOperands
from mmaselect.diffusion.codec import Codec, PixelCodec, pad_to_multiple
from mmaselect.diffusion.families import Family, Tap, family_of
from mmaselect.diffusion.hub import HubError
from mmaselect.diffusion.loading import PipelineSource, parse_dtype
from mmaselect.diffusion.lora import find_lora, fuse_lora, mention_loras
from mmaselect.diffusion.model_source import ModelSource
from mmaselect.diffusion.place_search import SEARCHED, PlaceSearch, as_arguments, named_cells
from mmaselect.diffusion.placing import count_ranks, of_this_rank
from mmaselect.diffusion.precision import auto_dtype, computed_in
from mmaselect.diffusion.process import ForwardProcess
from mmaselect.diffusion.search_weights import say_what_is_loaded

if TYPE_CHECKING:
    from diffusers import ModelMixin

logger = logging.getLogger(__name__)

#: Pixels that a VAE encodes at a time: at native size, a batch of 16 peaks at 20 to 40 GiB at once.
MAX_ENCODED_PIXELS = 4 * 2**20

#: (block, feature), the key of a feature map.
TapKey = tuple[int, str]


class _PassComplete(Exception):
    """The last wanted feature is there."""


def _as_features(feature: str | Sequence[str], family: Family) -> tuple[str, ...]:
    if not isinstance(feature, str) and not is_sequence(feature):
        raise ValueError(
            f'feature must be one or more of {", ".join(family.features)}, got {shorten(feature)}'
        )
    if isinstance(feature, str) and feature == 'auto':
        # One head fits whatever is picked: all candidates have as many channels as the queries.
        known = [name for name in SEARCHED if name in family.features]
        block = family.default_block
        width = family.channels(block, known[0])
        return tuple(name for name in known if family.channels(block, name) == width)
    names = (feature,) if isinstance(feature, str) else tuple(feature)
    for name in names:
        if not isinstance(name, str) or name not in family.features:
            raise ValueError(
                f'feature {name!r} is not available for {family.title}: choose from '
                f'{", ".join(family.features)}{is_meant(name, family.features)}'
            )
    if not names:
        raise ValueError(f'feature is empty: choose from {", ".join(family.features)}')
    if len(set(names)) < len(names):
        raise ValueError(f'feature {shorten(list(names))} has a name twice: give each once')
    return names


def _resolve_places(
    blocks: Any, feature: Any, family: Family
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[TapKey, ...] | None]:
    """Blocks, features, and the (block, feature) that are joined, where a user named such.

    Raises:
        ValueError: If one of them does not exist.
    """
    cells = named_cells(feature, blocks)
    if cells is None:
        return family.resolve_blocks(blocks), _as_features(feature, family), None
    resolved = family.resolve_blocks([block for block, _ in cells])
    keys = tuple((block, name) for block, (_, name) in zip(resolved, cells, strict=True))
    if len(set(keys)) < len(keys):
        raise ValueError(f'feature {shorten(feature)} has a (block, feature) twice: give each once')
    return resolved, _as_features(list(dict.fromkeys(name for _, name in keys)), family), keys


class FrozenDiT(nn.Module):
    """A diffusion transformer as a feature extractor: always in eval mode, never trained.

    Use :meth:`from_pretrained`. All images are RGB in [-1, 1].

    Attributes:
        family (Family): How this transformer class is called and read.
        process (ForwardProcess): Timestep to noise level.
        blocks (tuple[int, ...]): Blocks that are read, as 0..L-1, in the order asked for.
        feature_names (tuple[str, ...]): Features that are read in each of them.
        stride (int): Image pixels per token, along each side.

    Example:
        >>> import torch
        >>> from mmaselect import FrozenDiT
        >>> dit = FrozenDiT.from_pretrained('mmaselect://dit_cifar10', blocks=[3])
        >>> latent = dit.encode(torch.zeros(1, 3, 32, 32))
        >>> noise = torch.randn_like(latent)
        >>> dit.features(latent, timestep=100, noise=noise)[3, 'query'].shape
        torch.Size([1, 224, 8, 8])
    """

    @any_spelling
    def __init__(
        self,
        transformer: ModelMixin,
        family: Family,
        process: ForwardProcess,
        codec: Codec,
        condition: Mapping[str, Tensor],
        blocks: Sequence[int] | int | str | None = None,
        feature: str | Sequence[str] = ('query',),
    ) -> None:
        super().__init__()
        #: What a selection has to pick in addition to the timestep; None where blocks and features
        #: are given, or picked already.
        self.search = PlaceSearch.of(blocks, feature, family.published_block)
        #: Name of the source that it was loaded from.
        self.name: str | None = None
        #: The source; its revision is the commit that was read, where the hub's cache says it.
        self.source: ModelSource | None = None
        self.family = family
        self.process = process
        self.transformer = transformer
        self.codec = codec
        #: (block, feature) that do not follow from blocks and features: picked, or named one by
        #: one.
        self._cells: tuple[TapKey, ...] | None
        self.blocks, self.feature_names, self._cells = _resolve_places(blocks, feature, family)
        self._is_joined = self._cells is not None
        self._condition_names = tuple(condition)
        for name, value in condition.items():
            self.register_buffer(f'condition_{name}', value, persistent=False)
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    @any_spelling
    def from_pretrained(
        cls,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        blocks: Sequence[int] | int | str | None = None,
        feature: str | Sequence[str] = ('query',),
        dtype: str | torch.dtype = 'auto',
        condition: Any = None,
        check: Callable[[ForwardProcess], object] | None = None,
        **flat: Any,
    ) -> FrozenDiT:
        """Build the needed part of a pipeline.

        Args:
            pretrained: Hub id, local folder in diffusers' pipeline layout, or ``mmaselect://NAME``;
                or a :class:`ModelSource`, or a dict of its fields, which say where other parts are.
            blocks: Blocks to read, negative ones counted from the end; the family's default block
                if None. Only the blocks up to the deepest of them are built. ``'auto'`` (or
                ``'auto:4'`` for four, ``'auto:<=30'`` for block 30 at most) leaves them to a
                selection: see :meth:`settle`.
            feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'`` (output of
                the attention layer) and ``'output'`` (of the block); where a class has QK norm or
                rotary embedding, also ``'query_post'`` and ``'key_post'``, which come after them.
                ``'auto'`` leaves the choice of one to a selection.
            dtype: Precision of the frozen weights: ``'fp32'``, ``'fp16'`` or ``'bf16'``; or
                ``'auto'``, that
                of the published weights, but fp32 on a CPU that has no units for bf16.
            condition: None for the empty condition; a class label or a prompt otherwise.
            check: Called with the schedule before any weights are read, to raise where timesteps of
                the caller's do not exist in it.
            flat: Fields of :class:`ModelSource`, as in versions before it; a warning shows the new
                form.

        Raises:
            FileNotFoundError: If the folder, or a part of the pipeline, is missing.
            ValueError: If it is not a pipeline, its transformer class is unknown, or an argument is
                out of range.
        """
        is_auto = isinstance(dtype, str) and dtype == 'auto'
        dtype = torch.float32 if is_auto else parse_dtype(dtype)
        description = ModelSource.gather(pretrained, flat, cls.from_pretrained)
        for lora, _ in description.loras:
            find_lora(lora)
        source = PipelineSource(description)
        family = family_of(source)
        if is_auto:
            try:
                with source.naming('transformer'):
                    dtype = computed_in(description.load_kwargs) or auto_dtype(source)
            except HubError:
                raise  # else a hub that is silent would be waited for once more
            except FileNotFoundError:
                pass  # weights that are missing are named when they are read
            logger.info('%s: read in %s', source.name, str(dtype).removeprefix('torch.'))
        resolved, _, _ = _resolve_places(blocks, feature, family)
        with source.naming('scheduler'):
            process = family.build_process(source)
        if check is not None:
            check(process)
        prepared = family.prepare_condition(condition, source, dtype)
        needed = max(resolved) + 1
        if isinstance(blocks, str):
            say_what_is_loaded(family, blocks, dtype)
        load_kwargs = of_this_rank(
            keywords('load_kwargs', description.load_kwargs),
            count_ranks(),
            torch.accelerator.current_device_index,
        )
        transformer = family.load_transformer(source, needed, dtype, **load_kwargs)
        pipeline = getattr(family, 'pipeline_class', None)
        for lora, scale in description.loras:
            fuse_lora(transformer, family.config, pipeline, lora, scale, source.hub_kwargs)
        if not description.loras and source.is_local:
            mention_loras(Path(source.path))
        codec = family.codec(source, dtype)
        if description.vae is not None and codec.channels != family.in_channels:
            raise ValueError(
                f'vae={str(description.vae)!r} gives latents of {codec.channels} channels, and '
                f'{family.title} takes {family.in_channels}: it is the VAE of another model'
            )
        dit = cls(transformer, family, process, codec, prepared, blocks, feature)
        dit.name = source.name
        dit.source = source.as_read()
        return dit

    # -- facts ------------------------------------------------------------------------------------
    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where images and latents go."""
        if not self.is_placed:
            return self.transformer.device
        others = itertools.chain(self.codec.parameters(), self.buffers(recurse=False))
        return next((one.device for one in others), self.transformer.device)

    @property
    def is_placed(self) -> bool:
        """Whether accelerate or bitsandbytes put the transformer where it is, to stay there."""
        return bool(getattr(self.transformer, 'hf_device_map', None)) or any(
            getattr(self.transformer, f'is_loaded_in_{bits}bit', False) for bits in (4, 8)
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that are read."""
        return sum(one.numel() * one.element_size() for one in self.parameters())

    @property
    def stride(self) -> int:
        return self.codec.stride * self.family.patch_size

    @property
    def num_blocks(self) -> int:
        """Blocks of the published model, built or not."""
        return self.family.num_blocks

    @property
    def num_train_timesteps(self) -> int:
        return self.process.num_train_timesteps

    @property
    def native_size(self) -> int:
        """Side, in pixels, of the square images that the model was trained on.

        512 for families whose config does not state it (FLUX, for one).
        """
        size = self.family.config.get('sample_size')
        return int(size) * self.codec.stride if isinstance(size, int) else 512

    def num_tokens(self, image_size: int | tuple[int, int]) -> int:
        """Image tokens of one image.

        Args:
            image_size: Side, or (height, width), in pixels.
        """
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        return math.ceil(height / self.stride) * math.ceil(width / self.stride)

    @property
    def keys(self) -> tuple[TapKey, ...]:
        """(block, feature) of every map that :meth:`features` returns."""
        if self._cells is not None:
            return tuple(dict.fromkeys(self._cells))
        return tuple((b, f) for b in dict.fromkeys(self.blocks) for f in self.feature_names)

    @property
    def maps(self) -> tuple[tuple[TapKey, ...], ...]:
        """(block, feature) of each map that a head gets, in the order asked for.

        The features of one map are joined: several of a block, or all that were named with their
        blocks or picked together. Repeated blocks are there as often.
        """
        if self._is_joined:
            return (self.keys,)
        if self._cells is not None:
            return tuple((cell,) for cell in self._cells)
        if self.search is not None:
            return tuple((key,) for key in self.keys)
        return tuple(tuple((b, f) for f in self.feature_names) for b in self.blocks)

    def settle(self, cells: Sequence[TapKey], joined: bool = False) -> None:
        """Read some of the (block, feature) that were searched, and free the blocks behind them.

        Args:
            cells: What a selection has picked.
            joined: Whether heads get them as one map.

        Raises:
            ValueError: If one of them is not among those that were searched.
        """
        if unknown := [key for key in cells if key not in self.keys]:
            raise ValueError(f'{unknown} are not among the places that were searched')
        built = max(self.blocks) + 1
        self.search, self._cells, self._is_joined = None, tuple(cells), joined
        self.blocks = tuple(block for block, _ in cells)
        self.feature_names = tuple(dict.fromkeys(feature for _, feature in cells))
        self.family.drop_blocks(self.transformer, max(self.blocks) + 1, built)

    @property
    def place_arguments(self) -> tuple[list[int] | None, list[str]]:
        """``blocks`` and ``feature`` that read the same."""
        if self._cells is None:
            return list(self.blocks), list(self.feature_names)
        return as_arguments(self._cells, self._is_joined)

    @property
    def is_joined(self) -> bool:
        """Whether heads get all (block, feature) as one map."""
        return self._is_joined

    def channels(self, key: TapKey) -> int:
        """Channels of a feature map."""
        return self.family.channels(*key)

    def train(self, mode: bool = True) -> FrozenDiT:
        """Stay in eval mode: label dropout and the like would make features random."""
        return super().train(False)

    def compile_blocks(self, **options: Any) -> list[int]:
        """Compile the blocks on the way to those that are read, each by itself.

        Blocks that are read stay as they are: hooks, and an exception that ends the pass early,
        cannot be held by a graph. Compiling happens in the first pass, and again for a few
        other shapes.

        Args:
            options: Of ``torch.compile``: ``mode``, ``dynamic``, ``backend``, ...

        Returns:
            list: The blocks that will be compiled.
        """
        compiled = [index for index in range(max(self.blocks)) if index not in self.blocks]
        for index in compiled:
            self.family.block(self.transformer, index).compile(**options)
        return compiled

    def follow(self, device: str | torch.device) -> FrozenDiT:
        """Move to a device; a transformer that is placed stays, and all else moves.

        Args:
            device: Where images will be.
        """
        device = torch.empty(0, device=device).device  # 'cuda' is 'cuda:0', or another
        return self if self.device == device else self.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenDiT:
        if not self.is_placed:
            return super()._apply(fn, recurse)
        self.codec._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            self._buffers[name] = None if buffer is None else fn(buffer)
        return self

    # -- running ----------------------------------------------------------------------------------
    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Clean latent of RGB images.

        Args:
            images: (B, 3, H, W) in [-1, 1], any H and W: sizes that the token stride does not
                divide are padded by repeating the last row and column.

        Returns:
            Tensor: (B, C, ceil(H / stride) * patch, ceil(W / stride) * patch), float32.

        Raises:
            ValueError: If the shape is not that of RGB images, or the model has no positions for
                so large a latent.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f'expected RGB images (B, 3, H, W), got shape {tuple(images.shape)}')
        images = pad_to_multiple(images.float(), self.stride)
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        self.family.check_grid(grid, self.stride)
        with self._without_autocast(images.device), self._naming_memory('encoding', images):
            latent = torch.cat([self.codec(some).float() for some in self._portions(images)])
        if latent.shape[1] != self.family.in_channels:
            raise ValueError(
                f'{self.family.title} takes latents of {self.family.in_channels} channels, and '
                f'{type(self.codec).__name__} gives {latent.shape[1]}: the vae/ of the pipeline is '
                f'missing, or that of another model'
            )
        return latent

    def _portions(self, images: Tensor) -> Sequence[Tensor]:
        """Images of a batch, as many together as a VAE is given."""
        if isinstance(self.codec, PixelCodec):
            return [images]
        return images.split(max(1, MAX_ENCODED_PIXELS // (images.shape[-2] * images.shape[-1])))

    @contextlib.contextmanager
    def _naming_memory(self, what: str, batch: Tensor) -> Iterator[None]:
        """An error of a device that is full names what can be made smaller."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f'out of memory while {what} a batch of shape {tuple(batch.shape)}: the frozen '
                f'weights take {self.weight_bytes / 2**30:.1f} GiB in '
                f'{str(self.dtype).removeprefix("torch.")}, and the batch comes on top. Lower '
                f'batch_size (of the data loader, or of the selection) or image_size, or set dtype '
                f"to 'bf16' or 'fp16' ({error})"
            ) from error

    @torch.no_grad()
    def features(
        self,
        latent: Tensor,
        timestep: int,
        noise: Tensor,
        keys: Sequence[TapKey] | None = None,
    ) -> dict[TapKey, Tensor]:
        """Feature maps of a noised latent, in one pass that ends at the deepest wanted one.

        Args:
            latent: Clean latent (B, C, H, W) from :meth:`encode`.
            timestep: 0 (clean) to T - 1 (noise), of the unshifted training schedule.
            noise: Standard normal, of the latent's shape.
            keys: Some of :attr:`keys`; the pass ends at the deepest of them. All if None.

        Returns:
            dict: (block, feature) to a map (B, channels, h, w) in the transformer's dtype.

        Raises:
            ValueError: If the timestep is out of range or shapes do not match.
            RuntimeError: If a feature was never produced.
        """
        if noise.shape != latent.shape:
            raise ValueError(
                f'noise {tuple(noise.shape)} and latent {tuple(latent.shape)} differ in shape'
            )
        keys = self.keys if keys is None else tuple(keys)
        grid = self.family.grid(latent)
        level = self.process.at(timestep, num_tokens=grid[0] * grid[1])
        noisy = self.process.add_noise(latent.float(), noise.float(), level)
        batch, home = latent.shape[0], latent.device
        # A transformer that is placed may be elsewhere, or, offloaded, nowhere.
        where = self.transformer.device if self.is_placed else home
        where = home if where.type == 'meta' else where
        # Copies, as the pipelines make them: products of expanded tensors are rounded otherwise.
        condition = {
            name: getattr(self, f'condition_{name}').repeat_interleave(batch, dim=0).to(where)
            for name in self._condition_names
        }
        time = torch.full((batch,), level.model_time, dtype=torch.float32, device=where)
        with (
            self._without_autocast(where),
            self._naming_memory('reading', latent),
            self._capture(grid, keys) as caught,
            contextlib.suppress(_PassComplete),
        ):
            self.family.run(self.transformer, noisy.to(where, self.dtype), time, condition)
        missing = [key for key in keys if key not in caught]
        if missing:
            raise RuntimeError(
                f'{self.family.transformer_class} never produced {missing}. Its projections may '
                f'have been fused (fuse_qkv_projections); an attention backend other than '
                f"PyTorch's own may be set, with which query_post and key_post cannot be read "
                f'(DIFFUSERS_ATTN_BACKEND=native is the one); or the installed diffusers has '
                f'changed this class: please report it with the diffusers version.'
            )
        return {key: self.family.to_map(caught[key], grid).to(home) for key in keys}

    @contextlib.contextmanager
    def _capture(
        self, grid: tuple[int, int], keys: Sequence[TapKey]
    ) -> Iterator[dict[TapKey, Tensor]]:
        caught: dict[TapKey, Tensor] = {}

        def catch(key: TapKey, tokens: Tensor) -> None:
            caught[key] = tokens
            if len(caught) == len(keys):
                raise _PassComplete

        def reader(key: TapKey, tap: Tap) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                catch(key, tap.tokens(output, grid))

            return hook

        with contextlib.ExitStack() as stack:
            attention = None
            for key in keys:
                tap = self.family.tap(self.transformer, *key)
                if tap.operand is None:
                    handle = tap.module.register_forward_hook(reader(key, tap))
                    stack.callback(handle.remove)
                else:
                    attention = attention or stack.enter_context(AttentionOperands())
                    attention.watch(
                        tap.module,
                        tap.operand,
                        lambda operand, key=key, tap=tap: catch(key, tap.tokens(operand, grid)),
                        tap.product,
                    )
            yield caught

    @staticmethod
    @contextlib.contextmanager
    def _without_autocast(device: torch.device) -> Iterator[None]:
        """Autocast off: ``dtype`` alone says how the frozen part computes.

        A pick made in one precision must not be read in another because training uses AMP.
        """
        # The meta device, where shapes and FLOPs are counted, knows no autocast.
        kind = 'cpu' if device.type == 'meta' else device.type
        with torch.autocast(device_type=kind, enabled=False):
            yield
