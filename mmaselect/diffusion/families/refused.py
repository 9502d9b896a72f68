# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Transformer classes of diffusers that no family reads, each with the reason."""

from __future__ import annotations

_VIDEO = 'it makes videos, and video transformers are out of scope'
_SOUND = 'it makes sound, not images'
_PART = 'it is a part of U-Nets and of other models, not one of its own'
_REFERENCE = 'it makes no sense without a picture to edit, next to the one that is read'

_REASONS: dict[str, tuple[str, ...]] = {
    _VIDEO: (
        'AllegroTransformer3DModel',
        'AnyFlowFARTransformer3DModel',
        'AnyFlowTransformer3DModel',
        'ChronoEditTransformer3DModel',
        'CogVideoXTransformer3DModel',
        'ConsisIDTransformer3DModel',
        'Cosmos3OmniTransformer',
        'EasyAnimateTransformer3DModel',
        'HeliosTransformer3DModel',
        'HunyuanVideo15Transformer3DModel',
        'HunyuanVideoFramepackTransformer3DModel',
        'HunyuanVideoTransformer3DModel',
        'LTX2VideoTransformer3DModel',
        'LTXVideoTransformer3DModel',
        'LatteTransformer3DModel',
        'MiniMaxH3Transformer3DModel',
        'MochiTransformer3DModel',
        'MotifVideoTransformer3DModel',
        'SanaVideoTransformer3DModel',
        'SanaWMLTX2RefinerTransformer3DModel',
        'SanaWMTransformer3DModel',
        'SkyReelsV2Transformer3DModel',
        'WanAnimate2Transformer3DModel',
        'WanAnimateTransformer3DModel',
        'WanVACETransformer3DModel',
    ),
    _SOUND: (
        'AceStepTransformer1DModel',
        'LongCatAudioDiTTransformer',
        'MiniMaxMusic3RVQDepthDecoder',
        'MiniMaxMusic3Transformer1DModel',
        'StableAudio3DiTModel',
        'StableAudioDiTModel',
        'T5FilmDecoder',
    ),
    _PART: (
        'DreamLiteTransformer2DModel',
        'DualTransformer2DModel',
        'TransformerTemporalModel',
    ),
    _REFERENCE: ('JoyImageEditPlusTransformer3DModel', 'JoyImageEditTransformer3DModel'),
    'it enlarges a small picture that it is given, and makes none of its own': (
        'Kandinsky6SRTransformer3DModel',
    ),
    'it makes embeddings of images, not images': ('PriorTransformer',),
    'it makes proteins, not images': ('RFD4ProteinaTransformer',),
    'of the models that this older class holds only DiT (norm_type=ada_norm_zero) and PixArt '
    '(ada_norm_single) are read': ('Transformer2DModel',),
}

#: Class to reason.
REFUSED: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}
