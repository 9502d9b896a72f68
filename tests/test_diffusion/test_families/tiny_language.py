# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Language models that serve as text encoders: true classes, a few thousand parameters each."""

import torch
from tiny_text import LETTERS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    UMT5Config,
    UMT5EncoderModel,
)

_SHAPE = {'num_hidden_layers': 1, 'num_attention_heads': 2}


def gemma2(tokenizer, width=8):
    torch.manual_seed(1)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_key_value_heads=2,
        head_dim=8,
        **_SHAPE,
    )
    return Gemma2Model(config).eval()


def bert(tokenizer, width=8):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, **_SHAPE
    )
    return BertModel(config).eval()


def bert_tokenizer(max_length=77):
    tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *LETTERS, *(f'##{c}' for c in LETTERS)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocab, model_max_length=max_length)


def umt5(tokenizer, width=8):
    torch.manual_seed(1)
    config = UMT5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2
    )
    return UMT5EncoderModel(config).eval()


def llama(tokenizer, width=8, layers=3):
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def smollm3(width=16, layers=3):
    """With the published vocabulary: pipelines name its tokens by number."""
    torch.manual_seed(1)
    config = SmolLM3Config(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return SmolLM3ForCausalLM(config).eval()


def glm(tokenizer, width=8):
    torch.manual_seed(1)
    config = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_key_value_heads=2,
        head_dim=4,
        pad_token_id=0,
        **_SHAPE,
    )
    return GlmModel(config).eval()


def glm_tokenizer(max_length=1024):
    """Every prompt begins with two tokens, so that the empty one is not empty."""
    tokens = ['<|endoftext|>', '[gMASK]', '<sop>', '[UNK]', ' ', *LETTERS]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token='[UNK]')
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split('', 'isolated')
    tokenizer.post_processor = processors.TemplateProcessing(
        single='[gMASK] <sop> $A', special_tokens=[('[gMASK]', 1), ('<sop>', 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token='<|endoftext|>', model_max_length=max_length
    )
