# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Text encoders and tokenizers of the true classes, a few thousand parameters each."""

import string

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = string.ascii_lowercase + string.digits + string.punctuation


def clip_tokenizer(max_length=8):
    tokens = ['<|startoftext|>', '<|endoftext|>', *LETTERS, *(f'{c}</w>' for c in LETTERS)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def t5_tokenizer(max_length=8):
    pieces = ['<pad>', '</s>', '<unk>', '▁', *LETTERS]
    vocab = [(piece, 0.0 if i < 3 else -1.0) for i, piece in enumerate(pieces)]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=max_length)


def qwen2_tokenizer(max_length=64):
    """Byte-level: spaces and newlines are the letters that GPT-2 writes for them."""
    tokens = [*LETTERS, *string.ascii_uppercase, 'Ġ', 'Ċ', '<|im_start|>', '<|im_end|>']
    tokens.append('<|endoftext|>')
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=max_length)
    tokenizer.add_special_tokens({'additional_special_tokens': ['<|im_start|>', '<|im_end|>']})
    return tokenizer


def gemma_tokenizer(max_length=64):
    tokens = ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '▁', '\n', *LETTERS]
    vocab = {token: i for i, token in enumerate([*tokens, *string.ascii_uppercase])}
    return GemmaTokenizer(vocab=vocab, merges=[], model_max_length=max_length)


def clip_encoder(width=16, projection=None, max_length=8, seed=0):
    """``CLIPTextModel``, or the class with a projection if its size is given."""
    torch.manual_seed(seed)
    vocab = len(clip_tokenizer())
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5_encoder(width=32, seed=1, vocab=None):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocab or len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj='gated-gelu',
    )
    return T5EncoderModel(config).eval()
