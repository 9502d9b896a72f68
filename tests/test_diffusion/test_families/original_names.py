# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Weights of diffusers under the names that their authors, and ComfyUI, give them."""

import re

import torch

_TIME = {
    't_embedder.mlp.0': 'time_text_embed.timestep_embedder.linear_1',
    't_embedder.mlp.2': 'time_text_embed.timestep_embedder.linear_2',
    'y_embedder.mlp.0': 'time_text_embed.text_embedder.linear_1',
    'y_embedder.mlp.2': 'time_text_embed.text_embedder.linear_2',
}


def swapped(tensor):
    """Scale before shift is shift before scale in the original."""
    return torch.cat(tensor.chunk(2)[::-1])


def fused(weights, names):
    return torch.cat([weights[name] for name in names])


def sd3(weights, num_layers):
    """Of an SD3 without QK norm and second attention."""
    found = {
        'pos_embed': weights['pos_embed.pos_embed'],
    }
    for kind in ('weight', 'bias'):
        for theirs, ours in {
            'x_embedder.proj': 'pos_embed.proj',
            'context_embedder': 'context_embedder',
            'final_layer.linear': 'proj_out',
            **_TIME,
        }.items():
            found[f'{theirs}.{kind}'] = weights[f'{ours}.{kind}']
        found[f'final_layer.adaLN_modulation.1.{kind}'] = swapped(
            weights[f'norm_out.linear.{kind}']
        )
        for i in range(num_layers):
            ours, last = f'transformer_blocks.{i}', i == num_layers - 1
            x, context = f'joint_blocks.{i}.x_block', f'joint_blocks.{i}.context_block'
            found[f'{x}.attn.qkv.{kind}'] = fused(
                weights, [f'{ours}.attn.to_{n}.{kind}' for n in 'qkv']
            )
            found[f'{context}.attn.qkv.{kind}'] = fused(
                weights, [f'{ours}.attn.add_{n}_proj.{kind}' for n in 'qkv']
            )
            modulation = weights[f'{ours}.norm1_context.linear.{kind}']
            found[f'{context}.adaLN_modulation.1.{kind}'] = (
                swapped(modulation) if last else modulation
            )
            names = {
                f'{x}.attn.proj': 'attn.to_out.0',
                f'{x}.adaLN_modulation.1': 'norm1.linear',
                f'{x}.mlp.fc1': 'ff.net.0.proj',
                f'{x}.mlp.fc2': 'ff.net.2',
            }
            if not last:
                names |= {
                    f'{context}.attn.proj': 'attn.to_add_out',
                    f'{context}.mlp.fc1': 'ff_context.net.0.proj',
                    f'{context}.mlp.fc2': 'ff_context.net.2',
                }
            for theirs, part in names.items():
                found[f'{theirs}.{kind}'] = weights[f'{ours}.{part}.{kind}']
    return found


def z_image(weights):
    found = {}
    for name, value in weights.items():
        name = name.replace('all_final_layer.2-1.', 'final_layer.')
        name = name.replace('all_x_embedder.2-1.', 'x_embedder.')
        name = name.replace('.attention.to_out.0.', '.attention.out.')
        name = re.sub(r'\.attention\.norm_([qk])\.', r'.attention.\1_norm.', name)
        if '.attention.to_q.' in name:
            names = [name.replace('to_q', f'to_{n}') for n in 'qkv']
            found[name.replace('to_q', 'qkv')] = fused(weights, names)
        elif not re.search(r'\.attention\.to_[kv]\.', name):
            found[name] = value
    return found


_FLUX2 = {
    'x_embedder': 'img_in',
    'context_embedder': 'txt_in',
    'time_guidance_embed.timestep_embedder.linear_1': 'time_in.in_layer',
    'time_guidance_embed.timestep_embedder.linear_2': 'time_in.out_layer',
    'double_stream_modulation_img.linear': 'double_stream_modulation_img.lin',
    'double_stream_modulation_txt.linear': 'double_stream_modulation_txt.lin',
    'single_stream_modulation.linear': 'single_stream_modulation.lin',
    'proj_out': 'final_layer.linear',
}
_FLUX2_DOUBLE = {
    'attn.norm_q.weight': 'img_attn.norm.query_norm.scale',
    'attn.norm_k.weight': 'img_attn.norm.key_norm.scale',
    'attn.to_out.0.weight': 'img_attn.proj.weight',
    'ff.linear_in.weight': 'img_mlp.0.weight',
    'ff.linear_out.weight': 'img_mlp.2.weight',
    'attn.norm_added_q.weight': 'txt_attn.norm.query_norm.scale',
    'attn.norm_added_k.weight': 'txt_attn.norm.key_norm.scale',
    'attn.to_add_out.weight': 'txt_attn.proj.weight',
    'ff_context.linear_in.weight': 'txt_mlp.0.weight',
    'ff_context.linear_out.weight': 'txt_mlp.2.weight',
}
_FLUX2_SINGLE = {
    'attn.to_qkv_mlp_proj.weight': 'linear1.weight',
    'attn.to_out.weight': 'linear2.weight',
    'attn.norm_q.weight': 'norm.query_norm.scale',
    'attn.norm_k.weight': 'norm.key_norm.scale',
}


def flux2(weights):
    found = {'final_layer.adaLN_modulation.1.weight': swapped(weights['norm_out.linear.weight'])}
    for name, value in weights.items():
        block = re.fullmatch(r'(single_)?transformer_blocks\.(\d+)\.(.*)', name)
        if block is None:
            module = name.removesuffix('.weight')
            if module in _FLUX2:
                found[f'{_FLUX2[module]}.weight'] = value
            else:
                assert name == 'norm_out.linear.weight', name
        elif block[1]:
            found[f'single_blocks.{block[2]}.{_FLUX2_SINGLE[block[3]]}'] = value
        elif block[3] in _FLUX2_DOUBLE:
            found[f'double_blocks.{block[2]}.{_FLUX2_DOUBLE[block[3]]}'] = value
        else:
            double, ours = f'double_blocks.{block[2]}', f'transformer_blocks.{block[2]}.attn'
            found[f'{double}.img_attn.qkv.weight'] = fused(
                weights, [f'{ours}.to_{n}.weight' for n in 'qkv']
            )
            found[f'{double}.txt_attn.qkv.weight'] = fused(
                weights, [f'{ours}.add_{n}_proj.weight' for n in 'qkv']
            )
    return found
