# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The published models that were checked against their families, and a search over them.

Knows neither torch nor diffusers, so that a list is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class PublishedModel:
    """Facts of one published model.

    Attributes:
        name: What ``pretrained`` takes: a hub id, or ``mmaselect://NAME`` for one in the package.
        family: File in ``mmaselect/diffusion/families`` that reads it.
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

    @property
    def transformer_class(self) -> str:
        """Name of the diffusers class."""
        return _CLASSES[self.family]


#: Family to the diffusers class that it reads.
_CLASSES = {
    'auraflow': 'AuraFlowTransformer2DModel',
    'bria': 'BriaTransformer2DModel',
    'bria_fibo': 'BriaFiboTransformer2DModel',
    'bria_fibo2': 'BriaFibo2Transformer2DModel',
    'chroma': 'ChromaTransformer2DModel',
    'cogview3_plus': 'CogView3PlusTransformer2DModel',
    'cogview4': 'CogView4Transformer2DModel',
    'cosmos': 'CosmosTransformer3DModel',
    'dit': 'DiTTransformer2DModel',
    'ernie_image': 'ErnieImageTransformer2DModel',
    'flux': 'FluxTransformer2DModel',
    'flux2': 'Flux2Transformer2DModel',
    'glm_image': 'GlmImageTransformer2DModel',
    'hidream': 'HiDreamImageTransformer2DModel',
    'hunyuan_dit': 'HunyuanDiT2DModel',
    'hunyuan_image': 'HunyuanImageTransformer2DModel',
    'ideogram4': 'Ideogram4Transformer2DModel',
    'kandinsky5': 'Kandinsky5Transformer3DModel',
    'kandinsky6': 'Kandinsky6Transformer3DModel',
    'krea2': 'Krea2Transformer2DModel',
    'longcat_image': 'LongCatImageTransformer2DModel',
    'lumina2': 'Lumina2Transformer2DModel',
    'lumina_next': 'LuminaNextDiT2DModel',
    'nucleus_image': 'NucleusMoEImageTransformer2DModel',
    'omnigen': 'OmniGenTransformer2DModel',
    'ovis_image': 'OvisImageTransformer2DModel',
    'pixart': 'PixArtTransformer2DModel',
    'prx': 'PRXTransformer2DModel',
    'qwen_image': 'QwenImageTransformer2DModel',
    'qwen_image21': 'QwenImage21Transformer2DModel',
    'sana': 'SanaTransformer2DModel',
    'sd3': 'SD3Transformer2DModel',
    'wan': 'WanTransformer3DModel',
    'z_image': 'ZImageTransformer2DModel',
}

# To add a model: a row here (test_families_table.py says its figures), its config in PUBLISHED of
# the family's test file, and `python tools/dev/write_generated.py` for the table of the docs.
# Columns: name / family, width, stacks, default block, stride, process / millions, held, whole,
# license.
# fmt: off
_MODELS = (
    PublishedModel(
        'mmaselect://dit_cifar10',
        'dit', 224, (6,), 3, 4, 'DDPM, linear', 6, 0.0, 0.0, 'apache-2.0', brief=True),
    PublishedModel(
        'mmaselect://dit_digits',
        'dit', 96, (5,), 2, 4, 'DDPM, linear', 1, 0.0, 0.0, 'apache-2.0', brief=True),
    PublishedModel(
        'facebook/DiT-XL-2-256',
        'dit', 1152, (28,), 14, 16, 'DDPM, linear', 750, 0.8, 1.4, 'cc-by-nc-4.0'),
    PublishedModel(
        'facebook/DiT-XL-2-512',
        'dit', 1152, (28,), 14, 16, 'DDPM, linear', 750, 0.8, 1.4, 'cc-by-nc-4.0'),
    PublishedModel(
        'stabilityai/stable-diffusion-3-medium-diffusers',
        'sd3', 1536, (24,), 9, 16, 'flow, shift 3', 2028, 1.7, 3.9,
        'stabilityai-ai-community', gated=True),
    PublishedModel(
        'stabilityai/stable-diffusion-3.5-medium',
        'sd3', 1536, (24,), 9, 16, 'flow, shift 3', 2243, 2.3, 4.6,
        'stabilityai-ai-community', gated=True),
    PublishedModel(
        'stabilityai/stable-diffusion-3.5-large',
        'sd3', 2432, (38,), 14, 16, 'flow, shift 3', 8057, 6.2, 15.2,
        'stabilityai-ai-community', gated=True),
    PublishedModel(
        'black-forest-labs/FLUX.1-dev',
        'flux', 3072, (19, 38), 28, 16, 'flow, shift by size', 11901, 14.8, 22.2,
        'flux-1-dev-non-commercial-license', gated=True),
    PublishedModel(
        'black-forest-labs/FLUX.1-schnell',
        'flux', 3072, (19, 38), 28, 16, 'flow', 11891, 14.8, 22.1, 'apache-2.0', gated=True),
    PublishedModel(
        'PixArt-alpha/PixArt-XL-2-512x512',
        'pixart', 1152, (28,), 14, 16, 'DDPM, linear', 611, 0.6, 1.1, 'openrail++'),
    PublishedModel(
        'PixArt-alpha/PixArt-XL-2-1024-MS',
        'pixart', 1152, (28,), 14, 16, 'DDPM, linear', 611, 0.6, 1.1, 'openrail++'),
    PublishedModel(
        'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS',
        'pixart', 1152, (28,), 14, 16, 'DDPM, linear', 611, 0.6, 1.1, 'openrail++'),
    PublishedModel(
        'Efficient-Large-Model/Sana_600M_1024px_diffusers',
        'sana', 1152, (28,), 14, 32, 'flow, shift 3', 592, 0.6, 1.1, 'nscl-v2-custom'),
    PublishedModel(
        'Efficient-Large-Model/Sana_1600M_1024px_diffusers',
        'sana', 2240, (20,), 10, 32, 'flow, shift 3', 1604, 1.7, 3.0, 'nscl-v2-custom'),
    PublishedModel(
        'Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers',
        'sana', 2240, (60,), 30, 32, 'flow, shift 3', 4722, 4.6, 8.8, 'nscl-v2-custom'),
    PublishedModel(
        'Alpha-VLLM/Lumina-Image-2.0',
        'lumina2', 2304, (26,), 13, 16, 'flow, shift 6', 2610, 2.9, 4.9, 'apache-2.0'),
    PublishedModel(
        'fal/AuraFlow-v0.3',
        'auraflow', 3072, (4, 32), 18, 16, 'flow, shift 1.73', 6859, 7.4, 12.8, 'apache-2.0'),
    PublishedModel(
        'Tencent-Hunyuan/HunyuanDiT-v1.1-Diffusers',
        'hunyuan_dit', 1408, (40,), 20, 16, 'DDPM, scaled linear', 1517, 1.5, 2.8,
        'tencent-hunyuan-community'),
    PublishedModel(
        'Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers',
        'hunyuan_dit', 1408, (40,), 20, 16, 'DDPM, scaled linear', 1500, 1.4, 2.8,
        'tencent-hunyuan-community'),
    PublishedModel(
        'THUDM/CogView4-6B',
        'cogview4', 4096, (28,), 14, 16, 'flow, shift by size', 6369, 6.4, 11.9, 'apache-2.0'),
    PublishedModel(
        'Qwen/Qwen-Image',
        'qwen_image', 3072, (60,), 30, 16, 'flow, shift by size', 20430, 19.7, 38.1, 'apache-2.0'),
    PublishedModel(
        'Tongyi-MAI/Z-Image',
        'z_image', 3840, (30,), 15, 16, 'flow, static shift', 6155, 6.7, 11.5, 'apache-2.0'),
    PublishedModel(
        'Tongyi-MAI/Z-Image-Turbo',
        'z_image', 3840, (30,), 15, 16, 'flow, shift 3', 6155, 6.7, 11.5, 'apache-2.0'),
    PublishedModel(
        'black-forest-labs/FLUX.2-dev',
        'flux2', 6144, (8, 48), 28, 16, 'flow, shift by size', 32223, 35.3, 60.0,
        'flux-dev-non-commercial-license', gated=True),
    PublishedModel(
        'black-forest-labs/FLUX.2-klein-4B',
        'flux2', 3072, (5, 20), 12, 16, 'flow, shift by size', 3876, 4.5, 7.2, 'apache-2.0'),
    PublishedModel(
        'black-forest-labs/FLUX.2-klein-9B',
        'flux2', 4096, (8, 24), 16, 16, 'flow, shift by size', 9079, 10.8, 16.9,
        'flux-non-commercial-license', gated=True),
    PublishedModel(
        'lodestones/Chroma1-HD',
        'chroma', 3072, (19, 38), 28, 16, 'flow', 8900, 10.7, 16.6, 'apache-2.0'),
    PublishedModel(
        'krea/Krea-2-Raw',
        'krea2', 6144, (28,), 14, 16, 'flow, shift by size', 12820, 13.4, 23.9,
        'krea-2-community-license'),
    PublishedModel(
        'krea/Krea-2-Turbo',
        'krea2', 6144, (28,), 14, 16, 'flow, shift 3.16', 12820, 13.4, 23.9,
        'krea-2-community-license'),
    PublishedModel(
        'meituan-longcat/LongCat-Image',
        'longcat_image', 3072, (10, 20), 15, 16, 'flow, shift by size', 6271, 8.0, 11.7,
        'apache-2.0'),
    PublishedModel(
        'AIDC-AI/Ovis-Image-7B',
        'ovis_image', 3072, (6, 27), 16, 16, 'flow, shift by size', 7370, 8.4, 13.7, 'apache-2.0'),
    PublishedModel(
        'baidu/ERNIE-Image',
        'ernie_image', 4096, (36,), 18, 16, 'flow, shift 4', 8033, 8.1, 15.0, 'apache-2.0'),
    PublishedModel(
        'baidu/ERNIE-Image-Turbo',
        'ernie_image', 4096, (36,), 18, 16, 'flow, shift 4', 8033, 8.1, 15.0, 'apache-2.0'),
    PublishedModel(
        'THUDM/CogView3-Plus-3B',
        'cogview3_plus', 2560, (30,), 15, 16, 'DDPM, scaled linear, SNR / 4', 2849, 2.8, 5.3,
        'apache-2.0'),
    PublishedModel(
        'Alpha-VLLM/Lumina-Next-SFT-diffusers',
        'lumina_next', 2304, (24,), 12, 16, 'flow', 1755, 1.8, 3.3, 'apache-2.0'),
    PublishedModel(
        'Photoroom/prx-512-t2i-sft',
        'prx', 1792, (16,), 8, 16, 'flow, static shift', 1171, 1.2, 2.2, 'apache-2.0'),
    PublishedModel(
        'Photoroom/prxpixel-t2i',
        'prx', 3584, (24,), 12, 16, 'flow, shift 3, noise x 2', 7004, 7.1, 13.0, 'see its page'),
    PublishedModel(
        'Qwen/Qwen-Image-2.1',
        'qwen_image21', 4096, (32,), 16, 16, 'flow, shift by size', 7115, 7.2, 13.3,
        'qwen-research'),
    PublishedModel(
        'HiDream-ai/HiDream-I1-Full',
        'hidream', 2560, (16, 32), 24, 16, 'flow, shift 3', 17106, 18.8, 31.9, 'mit'),
    PublishedModel(
        'HiDream-ai/HiDream-I1-Dev',
        'hidream', 2560, (16, 32), 24, 16, 'flow, shift 6', 17106, 18.8, 31.9, 'mit'),
    PublishedModel(
        'HiDream-ai/HiDream-I1-Fast',
        'hidream', 2560, (16, 32), 24, 16, 'flow, shift 3', 17106, 18.8, 31.9, 'mit'),
    PublishedModel(
        'briaai/BRIA-3.2',
        'bria', 2304, (8, 28), 18, 16, 'flow, shift by size', 3786, 4.5, 7.1, 'cc-by-nc-4.0',
        gated=True),
    PublishedModel(
        'briaai/FIBO',
        'bria_fibo', 3072, (8, 38), 23, 16, 'flow, shift by size', 8286, 9.5, 15.4, 'bria-fibo',
        gated=True),
    PublishedModel(
        'briaai/Fibo-2.0-dev',
        'bria_fibo2', 3584, (44,), 22, 16, 'flow, shift by size', 8127, 8.7, 15.1,
        'see its page'),
    PublishedModel(
        'NucleusAI/Nucleus-Image',
        'nucleus_image', 2048, (32,), 16, 16, 'flow', 16923, 15.5, 31.5, 'see its page'),
    PublishedModel(
        'hunyuanvideo-community/HunyuanImage-2.1-Diffusers',
        'hunyuan_image', 3584, (20, 40), 30, 32, 'flow, shift 5', 17426, 22.0, 32.5,
        'tencent-hunyuan-community'),
    PublishedModel(
        'Wan-AI/Wan2.1-T2V-1.3B-Diffusers',
        'wan', 1536, (30,), 15, 16, 'flow, shift 3', 1419, 1.4, 2.6, 'apache-2.0'),
    PublishedModel(
        'Wan-AI/Wan2.1-T2V-14B-Diffusers',
        'wan', 5120, (40,), 20, 16, 'flow, shift 3', 14288, 14.2, 26.6, 'apache-2.0'),
    PublishedModel(
        'Wan-AI/Wan2.2-TI2V-5B-Diffusers',
        'wan', 3072, (30,), 15, 32, 'flow, shift 5', 5000, 5.0, 9.3, 'apache-2.0'),
    PublishedModel(
        'zai-org/GLM-Image',
        'glm_image', 4096, (30,), 15, 16, 'flow, shift by size', 6927, 7.0, 12.9, 'mit'),
    PublishedModel(
        'Shitao/OmniGen-v1-diffusers',
        'omnigen', 3072, (32,), 16, 16, 'flow', 3762, 4.1, 7.2, 'mit'),
    PublishedModel(
        'ideogram-ai/ideogram-4-nf4-diffusers',
        'ideogram4', 4608, (34,), 17, 16, 'flow, static shift', 9279, 9.4, 17.3,
        'ideogram-non-commercial', gated=True),
    PublishedModel(
        'kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers',
        'kandinsky5', 2560, (50,), 25, 16, 'flow, shift 5', 6022, 6.0, 11.2, 'mit'),
    PublishedModel(
        'kandinskylab/Kandinsky-6.0-Pro-5s-Diffusers',
        'kandinsky6', 4096, (60,), 30, 16, 'flow, static shift', 30136, 19.5, 56.1, 'mit'),
    PublishedModel(
        'kandinskylab/Kandinsky-6.0-Lite-distill-5s-Diffusers',
        'kandinsky6', 1792, (32,), 16, 16, 'flow, static shift', 3178, 2.1, 5.9, 'mit'),
    PublishedModel(
        'nvidia/Cosmos-Predict2-2B-Text2Image',
        'cosmos', 2048, (28,), 14, 16, 'flow', 1956, 2.0, 3.6, 'nvidia-open-model-license',
        gated=True),
    PublishedModel(
        'nvidia/Cosmos-Predict2-14B-Text2Image',
        'cosmos', 5120, (36,), 18, 16, 'flow', 14265, 14.1, 26.6, 'nvidia-open-model-license',
        gated=True),
)
# fmt: on


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
        for model in _MODELS
        if _fits(model.name, filter, empty=True)
        and not _fits(model.name, exclude_filters, empty=False)
        and _fits(model.family, family, empty=True, anywhere=False)
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
    for model in _MODELS:
        if model.name == name:
            return model
    raise KeyError(
        f'{name!r} is not in the list of published models; list_models() has '
        f'{len(_MODELS)} names. `pretrained` takes others too, if their class has a family'
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
    rows += [[str(cell(model)) for cell in columns.values()] for model in _MODELS]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _weights(model: PublishedModel) -> str:
    return f'{model.held:.1f} of {model.whole:.1f}' if model.whole else 'under 0.1'


def _count(stacks: tuple[int, ...]) -> str:
    """Such as ``'57 (19 + 38)'``."""
    parts = f' ({" + ".join(map(str, stacks))})' if len(stacks) > 1 else ''
    return f'{sum(stacks)}{parts}'


def _fits(text: str, patterns: str | Sequence[str], *, empty: bool, anywhere: bool = True) -> bool:
    """Whether a text fits one of the patterns; ``empty`` is the answer where there are none."""
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    patterns = [pattern.lower() for pattern in patterns if pattern]
    if anywhere:
        patterns = [p if any(char in p for char in '*?[') else f'*{p}*' for p in patterns]
    return any(fnmatchcase(text.lower(), p) for p in patterns) if patterns else empty
