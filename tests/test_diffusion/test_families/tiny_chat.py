# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Chat models that embed prompts: true classes, a few thousand parameters, made in memory."""

import torch
from tiny_text import qwen2_tokenizer
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def chat_tokenizer(max_length=512):
    tokenizer = qwen2_tokenizer(max_length)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _language_model(width, layers):
    return {
        'vocab_size': len(qwen2_tokenizer()),
        'hidden_size': width,
        'intermediate_size': 2 * width,
        'num_hidden_layers': layers,
        'num_attention_heads': 2,
        'num_key_value_heads': 2,
        'head_dim': 8,
    }


def qwen3(width, layers, seed=1):
    torch.manual_seed(seed)
    config = Qwen3Config(**_language_model(width, layers), bos_token_id=0, eos_token_id=1)
    return Qwen3ForCausalLM(config).eval()


def qwen25_vl(tokenizer, width=16, layers=2, seed=1):
    torch.manual_seed(seed)
    rope = {'type': 'default', 'rope_type': 'default', 'mrope_section': [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            'vocab_size': len(tokenizer),
            'hidden_size': width,
            'intermediate_size': 2 * width,
            'num_hidden_layers': layers,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
            'rope_scaling': rope,
        },
        vision_config={
            'depth': 1,
            'hidden_size': width,
            'intermediate_size': width,
            'num_heads': 2,
            'out_hidden_size': width,
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3_vl(tokenizer, width=16, layers=2, seed=1, cls=Qwen3VLModel):
    torch.manual_seed(seed)
    config = Qwen3VLConfig(
        text_config={
            'vocab_size': len(tokenizer),
            'hidden_size': width,
            'intermediate_size': 2 * width,
            'num_hidden_layers': layers,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
            'head_dim': 8,
            'rope_parameters': {'rope_type': 'default', 'mrope_section': [2, 1, 1]},
        },
        vision_config={
            'depth': 1,
            'hidden_size': width,
            'intermediate_size': width,
            'num_heads': 2,
            'out_hidden_size': width,
            'deepstack_visual_indexes': [0],
        },
    )
    return cls(config).eval()


def qwen3_vl_chat(processor, width=16, layers=2):
    return qwen3_vl(processor.tokenizer, width, layers, cls=Qwen3VLForConditionalGeneration)


def qwen3_vl_processor(max_length=512):
    """A tokenizer with the names of images and clips, and processors of both."""
    tokenizer = qwen2_tokenizer(max_length)
    names = ('image_pad', 'video_pad', 'vision_start', 'vision_end')
    tokenizer.add_special_tokens({'additional_special_tokens': [f'<|{name}|>' for name in names]})
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=TEMPLATE
    )


def mistral3(width, layers, seed=1):
    torch.manual_seed(seed)
    config = Mistral3Config(
        text_config={'model_type': 'mistral', **_language_model(width, layers)},
        vision_config={
            'model_type': 'pixtral',
            'hidden_size': 16,
            'intermediate_size': 16,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'head_dim': 8,
        },
        image_token_index=0,
    )
    return Mistral3ForConditionalGeneration(config).eval()


def pixtral_processor():
    """FLUX.2's "tokenizer": it gets messages of typed parts, and the template is its own."""
    tokenizer = qwen2_tokenizer(512)
    tokenizer.add_special_tokens(
        {'additional_special_tokens': ['[IMG]', '[IMG_BREAK]', '[IMG_END]']}
    )
    return PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=TEMPLATE)


def qwen2_vl_processor(max_length=1100, cls=Qwen2VLProcessor):
    """A "tokenizer" that would take images, too."""
    tokenizer = chat_tokenizer(max_length)
    tokenizer.add_special_tokens({'additional_special_tokens': ['<|image_pad|>', '<|video_pad|>']})
    return cls(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())


def qwen25_vl_processor(max_length=1200):
    return qwen2_vl_processor(max_length, Qwen2_5_VLProcessor)
