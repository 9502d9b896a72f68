# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""HiDream-I1 (arXiv 2505.22705): two streams, then one, experts, and four text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mmaselect.diffusion.condition import model_identity
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import first_tokens, usual_taps
from mmaselect.diffusion.hub import Repository
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess

_LLAMA = 'meta-llama/Llama-3.1-8B-Instruct'
_PARTS = ('text_encoder_4', 'tokenizer_4')
#: What a model on the hub is found by, of the arguments that the pipeline was found by.
_HUB = ('cache_dir', 'token', 'local_files_only')


class HiDreamProcess(FlowMatchingProcess):
    """Shifted alike at all sizes: by the tokens of the largest square image.

    Args:
        config: Config of a flow-matching scheduler.
        max_tokens: Tokens of such an image.
    """

    def __init__(self, config: Mapping[str, Any], max_tokens: int) -> None:
        # The pipeline never looks at what the scheduler says of the shift's slope.
        super().__init__(
            {
                **config,
                'base_shift': 0.5,
                'max_shift': 1.15,
                'base_image_seq_len': 256,
                'max_image_seq_len': 4096,
            }
        )
        self.max_tokens_of_square = max_tokens

    def mu(self, num_tokens: int) -> float:
        return super().mu(self.max_tokens_of_square)


# As converted by diffusers.
_CONFIG = {
    'patch_size': 2,
    'in_channels': 16,
    'out_channels': 16,
    'num_layers': 16,
    'num_single_layers': 32,
    'attention_head_dim': 128,
    'num_attention_heads': 20,
    'caption_channels': [4096, 4096],
    'text_emb_dim': 2048,
    'num_routed_experts': 4,
    'num_activated_experts': 2,
    'axes_dims_rope': [64, 32, 32],
    'max_resolution': [128, 128],
    'llama_layers': [*range(32), *[31] * 16],
}


@register_family
class HiDreamFamily(TextFamily):
    """``HiDreamImageTransformer2DModel``: ``HiDream-ai/HiDream-I1-Full``, ``-Dev``, ``-Fast``.

    Blocks are counted through both stacks; the image comes first in the sequence. An image that is
    not square is filled up to the number of tokens of the largest square one, as the class does it.

    Llama 3.1 8B, which reads the prompt next to two CLIPs and T5, is not a part of the model's
    repository: ``condition=dict(prompt='', llama='meta-llama/Llama-3.1-8B-Instruct')``, a hub id
    (its page asks for a login and a consent) or a folder. A folder that holds a ``text_encoder_4``
    and a ``tokenizer_4`` needs none.
    """

    transformer_class = 'HiDreamImageTransformer2DModel'
    title = 'HiDream-I1'
    pipeline_class = 'HiDreamImagePipeline'
    min_diffusers = '0.34'
    stacks = (
        ('num_layers', 'double_stream_blocks'),
        ('num_single_layers', 'single_stream_blocks'),
    )
    features = FEATURES + POST_FEATURES
    condition_options: ClassVar[dict[str, Any]] = {'llama': ''}
    waits_in = 'transformer_hidream_image.py: counts the tokens of each expert'
    published = (
        Published('HiDream-ai/HiDream-I1-Full', _CONFIG, 16, 'flow, shift 3', 'mit'),
        Published('HiDream-ai/HiDream-I1-Dev', _CONFIG, 16, 'flow, shift 6', 'mit'),
        Published('HiDream-ai/HiDream-I1-Fast', _CONFIG, 16, 'flow, shift 3', 'mit'),
    )

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest square image that the model was trained on."""
        height, width = self.config['max_resolution']
        return int(height) * int(width) // self.patch_size**2

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        if grid[0] != grid[1] and grid[0] * grid[1] > self.max_tokens:
            raise ValueError(
                f'{self.title} has room for {self.max_tokens} tokens in an image that is not '
                f'square, and this one makes {grid[0]}x{grid[1]}: resize or crop it to at most '
                f'{self.max_tokens * stride**2} pixels in all'
            )

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        # Projections of the text are counted from the blocks, and the first block reads the last
        # two as well: all are built, and blocks are dropped by `trim` before weights are read.
        return {}

    def trim(self, transformer: nn.Module, num_blocks: int) -> None:
        for (_, stack), length in zip(self.stacks, self.stack_lengths, strict=True):
            del cast(nn.ModuleList, getattr(transformer, stack))[min(num_blocks, length) :]
            num_blocks = max(num_blocks - length, 0)

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        process = super().build_process(source)
        if type(process) is FlowMatchingProcess:
            return HiDreamProcess(source.config('scheduler'), self.max_tokens)
        return process

    # -- the fourth text encoder ------------------------------------------------------------------
    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        _, options = self.parse_condition(spec)
        index = source.pipeline.index()
        if not options['llama'] and not all((index.get(part) or [None])[0] for part in _PARTS):
            raise ValueError(
                f'pretrained={source.name!r}: {self.title} reads its prompt with Llama 3.1 8B as '
                f'well, which is not a part of this pipeline: give its hub id (its page asks for a '
                f"login and a consent) or a folder, condition=dict(prompt='', llama={_LLAMA!r})"
            )
        return super().prepare_condition(spec, source, dtype)

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, **dict.fromkeys(_PARTS)} if options['llama'] else parts

    def options_identity(self, options: Mapping[str, Any], source: PipelineSource) -> Any:
        if not options['llama']:
            return options
        return {**options, 'llama': model_identity(options['llama'], source.hub_kwargs)}

    def late_parts(
        self, source: PipelineSource, options: Mapping[str, Any], dtype: torch.dtype
    ) -> dict[str, Any]:
        if not options['llama']:
            return {}
        from transformers import AutoTokenizer, LlamaForCausalLM

        name = options['llama']
        hub = {key: value for key, value in source.hub_kwargs.items() if key in _HUB}
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = Repository(f'condition llama={name!r}', name, hub).folder(
                None, None, of_diffusers=False
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            encoder = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f'condition llama={name!r}: no Llama with its tokenizer could be loaded there '
                f'({error}). Give a hub id such as {_LLAMA!r}, or a folder with both'
            ) from error
        return dict(zip(_PARTS, (encoder.eval(), tokenizer), strict=True))

    def embed(self, pipeline: Any, prompt: str, llama: str = '') -> dict[str, Tensor]:
        t5, _, layers, _, pooled, _ = pipeline.encode_prompt(
            prompt, device=torch.device('cpu'), do_classifier_free_guidance=False
        )
        return {'t5': t5, 'llama': layers.transpose(0, 1), 'pooled': pooled}

    # -- running ----------------------------------------------------------------------------------
    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            latent,
            timesteps=model_time,
            encoder_hidden_states_t5=condition['t5'],
            # Layer by layer, and each in one piece.
            encoder_hidden_states_llama3=condition['llama'].transpose(0, 1).contiguous(),
            pooled_embeds=condition['pooled'],
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index).block
        if index < self.stack_lengths[0]:
            # Block and attention return (image, text), either filled up.
            taps = usual_taps(block, block.attn1, first_tokens, _image_stream, post=first_tokens)
        else:
            taps = usual_taps(block, block.attn1, first_tokens)
        return taps[feature]


def _image_stream(output: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
    return first_tokens(output[0], grid)
