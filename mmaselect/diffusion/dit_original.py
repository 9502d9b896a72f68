# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checkpoints of DiT, SiT and REPA as their authors publish them.

The three share names and shapes, and have the class ``DiTTransformer2DModel`` of diffusers, which
computes what theirs compute but for two constants that are set here. What differs between them is
the forward process, and what the model is told of the time:

========  ======================================  =========================
``dit``   DDPM, 1000 linear betas to 0.02         the timestep
``sit``   ``(1 - t) noise + t latent``            t: 0 is noise, 1 is clean
``repa``  ``(1 - t) latent + t noise``            t: 0 is clean, 1 is noise
========  ======================================  =========================

DiT: arXiv 2212.09748; SiT: arXiv 2401.08740; REPA: arXiv 2410.06940.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor

from mmaselect.checks import choice, keywords, whole_number
from mmaselect.diffusion.diagnose import PartConfig
from mmaselect.diffusion.parts import refuse_missing

if TYPE_CHECKING:
    from diffusers import ModelMixin

ORIGINALS = ('dit', 'sit', 'repa')

#: Width to attention heads of the published sizes (S, B, L, XL): no shape tells the number.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}

_DDPM = {
    '_class_name': 'DDPMScheduler',
    'num_train_timesteps': 1000,
    'beta_schedule': 'linear',
    'beta_start': 1e-4,
    'beta_end': 0.02,
}
_FLOW = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'num_train_timesteps': 1000}

# Theirs to diffusers'. Every block of diffusers has a copy of the embedders.
_BLOCK = {
    'adaLN_modulation.1': 'norm1.linear',
    'attn.proj': 'attn1.to_out.0',
    'mlp.fc1': 'ff.net.0.proj',
    'mlp.fc2': 'ff.net.2',
}
_EMBEDDERS = {
    't_embedder.mlp.0': 'norm1.emb.timestep_embedder.linear_1',
    't_embedder.mlp.2': 'norm1.emb.timestep_embedder.linear_2',
}
_OUTSIDE = {
    'x_embedder.proj': 'pos_embed.proj',
    'final_layer.adaLN_modulation.1': 'proj_out_1',
    'final_layer.linear': 'proj_out_2',
}
_LABELS = 'y_embedder.embedding_table.weight'
_POSITIONS = 'pos_embed'

_NO_CLASS = 'and no class of diffusers computes that'


def is_of_dit_kind(tensors: Mapping[str, Tensor]) -> bool:
    """Whether names of weights are those of DiT, or of one of the models made from its code."""
    return {'x_embedder.proj.weight', 't_embedder.mlp.0.weight', _LABELS} <= tensors.keys()


def refuse_others(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise a ValueError with the name of a published model that cannot be read, if it is one.

    Args:
        tensors: The weights.
        name: What the user wrote as ``pretrained``.
    """
    found = _other_model(tensors)
    if found is not None:
        title, reason = found
        raise ValueError(
            f'pretrained={name!r} is a checkpoint of {title}, which cannot be read: {reason}. DiT, '
            f'SiT and REPA can'
        )


def _other_model(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    def has(part: str) -> bool:
        return any(key.startswith(part) or f'.{part}' in key for key in tensors)

    if has('en_inblocks.') or has('sideblocks.'):
        return 'MDT', f'its blocks have long skips and relative positions, {_NO_CLASS}'
    if has('in_blocks.') and has('mid_block.') and has('out_blocks.'):
        return 'U-ViT', f'its blocks have long skips, and time and class are tokens, {_NO_CLASS}'
    labels, time = tensors.get(_LABELS), tensors.get('t_embedder.mlp.2.weight')
    transposed = False
    if labels is not None and time is not None:
        # Classes enter as vectors, through a linear layer.
        transposed = labels.shape[-1] != time.shape[0] and labels.shape[0] == time.shape[0]
    if has('decoder_layer.') or transposed:
        return (
            'MaskDiT',
            'it is preconditioned as EDM has it, with a noise level without end in place of '
            'timesteps, and has blocks of two widths',
        )
    if has('mlp.w12.') or has('feat_rope.'):
        return (
            'LightningDiT',
            f'it has rotary positions, RMS norm, QK norm and SwiGLU, {_NO_CLASS}',
        )
    # Sana, which diffusers converts, has a convolution in its MLP.
    if has('cross_attn.') and has('t_block.') and not has('inverted_conv.'):
        return (
            'PixArt in its original layout',
            'diffusers has no converter for it: give the same model in the layout of diffusers, '
            "such as 'PixArt-alpha/PixArt-XL-2-512x512'",
        )
    return None


class OriginalFile:
    """The weights of a DiT, a SiT, or a SiT that REPA trained.

    Args:
        tensors: Weights by their original names.
        settings: Settings of the training script, where the checkpoint has them.
        file: The file; its name may tell which model it holds.
        name: What the user wrote as ``pretrained``.
        original: ``'dit'``, ``'sit'`` or ``'repa'`` where neither name nor content says so, or a
            dict of ``model`` (one of them) and ``num_heads``, which sizes that are not published
            need.

    Attributes:
        config (PartConfig): Config of the ``DiTTransformer2DModel`` that it becomes.
        scheduler (PartConfig): Scheduler of a scheduler with its forward process.

    Raises:
        ValueError: If it cannot be told which of them it is, or it is a variant that the class of
            diffusers does not cover.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        file: Path,
        name: str,
        original: str | Mapping[str, Any] | None,
    ) -> None:
        given = {'model': original} if isinstance(original, str) else original
        given = keywords('original', given, ('model', 'num_heads'))
        if given.get('model') is not None:
            choice('original', given['model'], ORIGINALS)
        self.where = f'pretrained={name!r}'
        self.tensors = _renumbered(tensors)
        self.model = self._which(given.get('model'), settings, file)
        self.config = PartConfig(self._read_config(given.get('num_heads')), self.where)
        self.scheduler = PartConfig(_DDPM if self.model == 'dit' else _FLOW, self.where)

    @property
    def in_pixels(self) -> bool:
        """Whether it makes pixels, not latents."""
        return self.config['in_channels'] == 3

    def _which(self, given: str | None, settings: Mapping[str, Any], file: Path) -> str:
        trained_as = str(settings.get('model', '')).lower()
        is_repa = any(key.startswith('projectors.') for key in self.tensors)
        if is_repa:
            found: str | None = 'repa'
        elif trained_as.startswith(('dit', 'sit')):
            found = 'repa' if trained_as[0] == 's' and 'enc_type' in settings else trained_as[:3]
        else:
            words = re.findall('dit|sit|repa', file.stem.lower())
            # A SiT that REPA trained is both.
            found = 'repa' if 'repa' in words else words[0] if len({*words}) == 1 else None
        if given is not None and is_repa and given != 'repa':
            raise ValueError(
                f'{self.where}: it was trained by REPA (it has projectors), and original={given!r} '
                f"says otherwise: use original='repa'"
            )
        path = str(settings.get('path_type', 'linear')).lower()
        if path != 'linear':
            raise ValueError(
                f'{self.where} was trained on the path {path!r}; only linear ones can be read'
            )
        chosen = given or found
        if chosen is None:
            raise ValueError(
                f'{self.where}: DiT, SiT and REPA have weights of the same names and shapes, and '
                f"neither content nor name tells which this is: say original='dit', 'sit' or "
                f"'repa'"
            )
        return chosen

    # -- the config -------------------------------------------------------------------------------
    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors:
            raise ValueError(f'{self.where} is incomplete: it has no {name!r}')
        return tuple(self.tensors[name].shape)

    def _read_config(self, num_heads: Any) -> dict[str, Any]:
        self._refuse_variants()
        width, channels, patch, _ = self._shape('x_embedder.proj.weight')
        if num_heads is not None:
            num_heads = whole_number('original: num_heads', num_heads, 1, width)
        elif width not in HEADS:
            raise ValueError(
                f'{self.where} is {width} wide, which is not a published size, and no shape '
                f'tells its '
                f'number of attention heads: say original=dict(model={self.model!r}, num_heads=...)'
            )
        heads = num_heads or HEADS[width]
        if width % heads:
            raise ValueError(f'{self.where} is {width} wide, which {heads} heads do not divide')
        side = math.isqrt(self._shape(_POSITIONS)[1])
        self._check_positions(side, patch)
        return {
            '_class_name': 'DiTTransformer2DModel',
            'num_attention_heads': heads,
            'attention_head_dim': width // heads,
            'in_channels': channels,
            'out_channels': self._shape('final_layer.linear.weight')[0] // patch**2,
            'num_layers': 1 + max(index for index, _ in self._in_blocks()),
            'sample_size': side * patch,
            'patch_size': patch,
            # The last row of the table is the null class.
            'num_embeds_ada_norm': self._shape(_LABELS)[0] - 1,
            # That of the authors; the published conversions have 1e-5.
            'norm_eps': 1e-6,
            'original': self.model,
        }

    def _in_blocks(self) -> Iterator[tuple[int, str]]:
        """Block and name in it of every weight of a block."""
        for key in self.tensors:
            found = re.fullmatch(r'blocks\.(\d+)\.(.+)', key)
            if found:
                yield int(found[1]), found[2]

    def _refuse_variants(self) -> None:
        layers = ['attn.qkv', *_BLOCK]
        known = {f'{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
        odd = {f'blocks.*.{rest}' for _, rest in self._in_blocks()} - {
            f'blocks.*.{rest}' for rest in known
        }
        outside = {
            f'{layer}.{kind}' for layer in (*_OUTSIDE, *_EMBEDDERS) for kind in ('weight', 'bias')
        } | {_LABELS, _POSITIONS}
        odd |= {
            key
            for key in self.tensors
            if not re.match(r'blocks\.\d+\.|projectors\.', key) and key not in outside
        }
        if odd:
            raise ValueError(
                f'{self.where} is a variant of DiT that no class of diffusers covers: it has '
                f'{", ".join(sorted(odd)[:4])}'
            )
        width = self._shape('x_embedder.proj.weight')[0]
        hidden = self._shape('blocks.0.mlp.fc1.weight')[0]
        if hidden != 4 * width:
            raise ValueError(
                f'{self.where} is a variant of DiT that no class of diffusers covers: its MLPs are '
                f'{hidden} wide, and not 4 times {width}'
            )

    def _check_positions(self, side: int, patch: int) -> None:
        table = self.tensors[_POSITIONS]
        size = side * patch
        expected = PatchEmbed(size, size, patch, 1, table.shape[-1]).pos_embed
        # Training scripts average it with the weights, which moves its last bits.
        if table.shape != expected.shape or (table.float() - expected).abs().max() > 1e-2:
            raise ValueError(
                f'{self.where} is a variant of DiT that no class of diffusers covers: its '
                f'positions are not the sines and cosines of a square'
            )

    # -- the weights ------------------------------------------------------------------------------
    def load(
        self,
        cls: type[ModelMixin],
        overrides: Mapping[str, Any],
        dtype: torch.dtype,
        load_kwargs: Mapping[str, Any],
    ) -> ModelMixin:
        """The first blocks with their weights.

        Args:
            cls: Class of diffusers.
            overrides: Config entries that stand instead of its own.
            dtype: Precision of the weights.
            load_kwargs: Must be empty.

        Raises:
            ValueError: If there are ``load_kwargs``.
            RuntimeError: If weights are missing.
        """
        if load_kwargs:
            raise ValueError(
                f'{self.where}: load_kwargs={dict(load_kwargs)!r} are arguments of '
                f'from_pretrained, which does not read this file: leave them out'
            )
        entries = {k: v for k, v in self.config.items() if k not in ('_class_name', 'original')}
        with torch.device('meta'):
            model = cls.from_config({**entries, **overrides})
        renamed = self._renamed(len(model.transformer_blocks))
        refuse_missing(self.where, sorted(key for key in renamed if key not in self.tensors))
        weights = {}
        for key, places in renamed.items():
            # A copy: the file may change while the model is in use. What blocks share stays one.
            tensor = self.tensors[key].to(dtype, copy=True)
            pieces = tensor.chunk(3) if key.startswith('blocks.') and '.qkv.' in key else None
            for number, place in enumerate(places):
                weights[place] = tensor if pieces is None else pieces[number]
        model.load_state_dict(weights, assign=True)
        model.pos_embed.pos_embed = self.tensors[_POSITIONS].to(dtype, copy=True)
        for block in model.transformer_blocks:
            # Frequencies end at 1 / 10000 in diffusers, and one step before that in the original.
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        return model

    def _renamed(self, num_blocks: int) -> dict[str, list[str]]:
        """Original name to one or more names in diffusers, of all that is needed."""
        blocks = [f'transformer_blocks.{index}.' for index in range(num_blocks)]
        names = {_LABELS: [f'{block}norm1.emb.class_embedder.embedding_table.weight'
                           for block in blocks]}  # fmt: skip
        for kind in ('weight', 'bias'):
            for theirs, ours in _OUTSIDE.items():
                names[f'{theirs}.{kind}'] = [f'{ours}.{kind}']
            for theirs, ours in _EMBEDDERS.items():
                names[f'{theirs}.{kind}'] = [f'{block}{ours}.{kind}' for block in blocks]
            for index, block in enumerate(blocks):
                names[f'blocks.{index}.attn.qkv.{kind}'] = [
                    f'{block}attn1.to_{letter}.{kind}' for letter in 'qkv'
                ]
                for theirs, ours in _BLOCK.items():
                    names[f'blocks.{index}.{theirs}.{kind}'] = [f'{block}{ours}.{kind}']
        return names


def _renumbered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first REPA checkpoints count the blocks behind the projectors from 0, apart."""
    if not any(key.startswith('projectors.') for key in tensors):
        return dict(tensors)
    first = {int(key.split('.')[1]) for key in tensors if key.startswith('blocks.')}
    renamed = {}
    for key, value in tensors.items():
        head, _, rest = key.partition('.')
        if head == 'decoder_blocks':
            index, _, rest = rest.partition('.')
            key = f'blocks.{int(index) + len(first)}.{rest}'
        renamed[key] = value
    return renamed
