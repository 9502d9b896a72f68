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


def renamed(weights, rules, stacked=()):
    """Under other names.

    Args:
        weights: Weights of diffusers.
        rules: (regular expression, what stands in its place), tried one after the other.
        stacked: (parts of names of weights that are one in the original, its part of the name).
    """
    found = {}
    for ours, tensor in weights.items():
        name, value = ours, tensor
        for parts, theirs in stacked:
            if parts[0] in ours:
                value = fused(weights, [ours.replace(parts[0], part) for part in parts])
                name = ours.replace(parts[0], theirs)
        if any(part in ours for parts, _ in stacked for part in parts[1:]):
            continue
        for pattern, theirs in rules:
            name = re.sub(pattern, theirs, name)
        assert name not in found, name
        found[name] = value
    return found


_QKV = ('.attn.to_q.', '.attn.to_k.', '.attn.to_v.')
_ADDED_QKV = ('.attn.add_q_proj.', '.attn.add_k_proj.', '.attn.add_v_proj.')
_FLUX = (
    (r'^transformer_blocks', 'double_blocks'),
    (r'^time_text_embed\.timestep_embedder', 'time_in'),
    (r'^time_text_embed\.text_embedder', 'vector_in'),
    (r'^time_text_embed\.guidance_embedder', 'guidance_in'),
    (r'_in\.linear_1', '_in.in_layer'),
    (r'_in\.linear_2', '_in.out_layer'),
    (r'^context_embedder', 'txt_in'),
    (r'^x_embedder', 'img_in'),
    (r'^proj_out', 'final_layer.linear'),
    (r'^norm_out\.linear', 'final_layer.adaLN_modulation.1'),
    (r'\.norm1\.linear', '.img_mod.lin'),
    (r'\.norm1_context\.linear', '.txt_mod.lin'),
    (r'\.attn\.norm_q\.weight', '.img_attn.norm.query_norm.scale'),
    (r'\.attn\.norm_k\.weight', '.img_attn.norm.key_norm.scale'),
    (r'\.attn\.norm_added_q\.weight', '.txt_attn.norm.query_norm.scale'),
    (r'\.attn\.norm_added_k\.weight', '.txt_attn.norm.key_norm.scale'),
    (r'\.attn\.to_out\.0', '.img_attn.proj'),
    (r'\.attn\.to_add_out', '.txt_attn.proj'),
    (r'\.ff\.net\.0\.proj', '.img_mlp.0'),
    (r'\.ff\.net\.2', '.img_mlp.2'),
    (r'\.ff_context\.net\.0\.proj', '.txt_mlp.0'),
    (r'\.ff_context\.net\.2', '.txt_mlp.2'),
    (r'^(distilled_guidance_layer\.layers\.\d+)\.linear_1', r'\1.in_layer'),
    (r'^(distilled_guidance_layer\.layers\.\d+)\.linear_2', r'\1.out_layer'),
    (r'^(distilled_guidance_layer\.norms\.\d+)\.weight', r'\1.scale'),
)
_FLUX_SINGLE = (
    (r'^single_transformer_blocks', 'single_blocks'),
    (r'\.norm\.linear', '.modulation.lin'),
    (r'\.attn\.norm_q\.weight', '.norm.query_norm.scale'),
    (r'\.attn\.norm_k\.weight', '.norm.key_norm.scale'),
    (r'\.proj_out', '.linear2'),
)


def flux(weights):
    """FLUX.1's and Chroma's."""
    single = {name: value for name, value in weights.items() if name.startswith('single_')}
    other = {name: value for name, value in weights.items() if name not in single}
    found = renamed(other, _FLUX, ((_QKV, '.img_attn.qkv.'), (_ADDED_QKV, '.txt_attn.qkv.')))
    found |= renamed(single, _FLUX_SINGLE, (((*_QKV, '.proj_mlp.'), '.linear1.'),))
    for name in found:
        if name.startswith('final_layer.adaLN_modulation'):
            found[name] = swapped(found[name])
    return found


chroma = flux


def sana(weights):
    rules = (
        (r'^transformer_blocks', 'blocks'),
        (r'\.attn1\.to_out\.0', '.attn.proj'),
        (r'\.attn2\.to_q', '.cross_attn.q_linear'),
        (r'\.attn2\.to_out\.0', '.cross_attn.proj'),
        (r'\.attn1\.norm_([qk])', r'.attn.\1_norm'),
        (r'\.attn2\.norm_([qk])', r'.cross_attn.\1_norm'),
        (r'\.ff\.conv_inverted', '.mlp.inverted_conv.conv'),
        (r'\.ff\.conv_depth', '.mlp.depth_conv.conv'),
        (r'\.ff\.conv_point', '.mlp.point_conv.conv'),
        (r'^patch_embed\.proj', 'x_embedder.proj'),
        (r'^time_embed\.emb\.timestep_embedder\.linear_1', 't_embedder.mlp.0'),
        (r'^time_embed\.emb\.timestep_embedder\.linear_2', 't_embedder.mlp.2'),
        (r'^time_embed\.linear', 't_block.1'),
        (r'^caption_projection\.linear_([12])', r'y_embedder.y_proj.fc\1'),
        (r'^caption_norm', 'attention_y_norm'),
        (r'^proj_out', 'final_layer.linear'),
        (r'^scale_shift_table', 'final_layer.scale_shift_table'),
    )
    stacked = (
        (('.attn1.to_q.', '.attn1.to_k.', '.attn1.to_v.'), '.attn.qkv.'),
        (('.attn2.to_k.', '.attn2.to_v.'), '.cross_attn.kv_linear.'),
    )
    # Of which diffusers has no use.
    unused = {'pos_embed': torch.zeros(1, 4, 8), 'y_embedder.y_embedding': torch.zeros(4, 8)}
    return renamed(weights, rules, stacked) | unused


def auraflow(weights):
    rules = (
        (r'^(joint.*\.)ff\.', r'\1mlpX.'),
        (r'^(joint.*\.)ff_context\.', r'\1mlpC.'),
        (r'^(single.*\.)ff\.', r'\1mlp.'),
        (r'\.linear_([12])\.weight$', r'.c_fc\1.weight'),
        (r'\.out_projection\.', '.c_proj.'),
        (r'^(joint.*)\.norm1\.linear', r'\1.modX.1'),
        (r'^(joint.*)\.norm1_context\.linear', r'\1.modC.1'),
        (r'^(single.*)\.norm1\.linear', r'\1.modCX.1'),
        (r'^(joint.*)\.attn\.to_([qkv])\.', r'\1.attn.w2\2.'),
        (r'^(joint.*)\.attn\.to_out\.0', r'\1.attn.w2o'),
        (r'\.attn\.add_([qkv])_proj', r'.attn.w1\1'),
        (r'\.attn\.to_add_out', '.attn.w1o'),
        (r'^(single.*)\.attn\.to_([qkv])\.', r'\1.attn.w1\2.'),
        (r'^(single.*)\.attn\.to_out\.0', r'\1.attn.w1o'),
        (r'^joint_transformer_blocks', 'double_layers'),
        (r'^single_transformer_blocks', 'single_layers'),
        (r'^time_step_proj\.(?:linear_|c_fc)1', 't_embedder.mlp.0'),
        (r'^time_step_proj\.(?:linear_|c_fc)2', 't_embedder.mlp.2'),
        (r'^context_embedder', 'cond_seq_linear'),
        (r'^proj_out', 'final_linear'),
        (r'^norm_out\.linear', 'modF.1'),
        (r'^pos_embed\.pos_embed', 'positional_encoding'),
        (r'^pos_embed\.proj', 'init_x_linear'),
    )
    found = renamed(weights, rules)
    return found | {'modF.1.weight': swapped(found['modF.1.weight'])}


def lumina2(weights):
    rules = (
        (r'^norm_out\.linear_1', 'final_layer.adaLN_modulation.1'),
        (r'^norm_out\.linear_2', 'final_layer.linear'),
        (r'^time_caption_embed\.caption_embedder', 'cap_embedder'),
        (r'^time_caption_embed\.timestep_embedder\.linear_1', 't_embedder.mlp.0'),
        (r'^time_caption_embed\.timestep_embedder\.linear_2', 't_embedder.mlp.2'),
        (r'\.attn\.to_out\.0\.', '.attention.out.'),
        (r'\.attn\.norm_([qk])\.', r'.attention.\1_norm.'),
        (r'\.feed_forward\.linear_', '.feed_forward.w'),
        (r'\.norm1\.linear', '.adaLN_modulation.1'),
        (r'\.norm1(?:\.norm)?\.', '.attention_norm1.'),
        (r'\.norm2\.', '.attention_norm2.'),
    )
    # Of which the authors have no use, either.
    return renamed(weights, rules, ((_QKV, '.attention.qkv.'),)) | {
        'norm_final.weight': torch.ones(1)
    }


def krea2(weights):
    rules = (
        (r'^img_in\.', 'first.'),
        (r'^time_embed\.linear_1', 'tmlp.0'),
        (r'^time_embed\.linear_2', 'tmlp.2'),
        (r'^time_mod_proj', 'tproj.1'),
        (r'^txt_in\.norm\.weight', 'txtmlp.0.scale'),
        (r'^txt_in\.linear_1', 'txtmlp.1'),
        (r'^txt_in\.linear_2', 'txtmlp.3'),
        (r'^text_fusion', 'txtfusion'),
        (r'^transformer_blocks', 'blocks'),
        (r'^final_layer\.linear', 'last.linear'),
        (r'^final_layer\.norm\.weight', 'last.norm.scale'),
        (r'^final_layer\.scale_shift_table', 'last.modulation.lin'),
        (r'\.attn\.to_([qkv])\.', r'.attn.w\1.'),
        (r'\.attn\.to_out\.0', '.attn.wo'),
        (r'\.attn\.to_gate', '.attn.gate'),
        (r'\.attn\.norm_([qk])\.weight', r'.attn.qknorm.\1norm.scale'),
        (r'\.ff\.', '.mlp.'),
        (r'\.norm1\.weight', '.prenorm.scale'),
        (r'\.norm2\.weight', '.postnorm.scale'),
        (r'\.scale_shift_table', '.mod.lin'),
    )
    found = renamed(weights, rules)
    return {
        name: value.flatten() if name.endswith('.mod.lin') else value
        for name, value in found.items()
    }


def wan(weights):
    rules = (
        (r'^condition_embedder\.time_embedder\.linear_1', 'time_embedding.0'),
        (r'^condition_embedder\.time_embedder\.linear_2', 'time_embedding.2'),
        (r'^condition_embedder\.text_embedder\.linear_1', 'text_embedding.0'),
        (r'^condition_embedder\.text_embedder\.linear_2', 'text_embedding.2'),
        (r'^condition_embedder\.time_proj', 'time_projection.1'),
        (r'\.attn1\.', '.self_attn.'),
        (r'\.attn2\.', '.cross_attn.'),
        (r'\.to_([qkv])\.', r'.\1.'),
        (r'\.to_out\.0\.', '.o.'),
        (r'\.ffn\.net\.0\.proj', '.ffn.0'),
        (r'\.ffn\.net\.2', '.ffn.2'),
        (r'\.norm2\.', '.norm3.'),
        (r'^proj_out', 'head.head'),
        (r'^scale_shift_table', 'head.modulation'),
        (r'\.scale_shift_table', '.modulation'),
    )
    return renamed(weights, rules)


def cosmos(weights):
    """Of Cosmos-Predict2, all in a module ``net``, with the state of its training."""
    rules = (
        (r'^time_embed\.t_embedder', 't_embedder.1'),
        (r'^time_embed\.norm', 't_embedding_norm'),
        (r'^transformer_blocks', 'blocks'),
        (r'\.norm1\.linear_', '.adaln_modulation_self_attn.'),
        (r'\.norm2\.linear_', '.adaln_modulation_cross_attn.'),
        (r'\.norm3\.linear_', '.adaln_modulation_mlp.'),
        (r'\.attn1\.', '.self_attn.'),
        (r'\.attn2\.', '.cross_attn.'),
        (r'\.to_([qkv])\.', r'.\1_proj.'),
        (r'\.to_out\.0\.', '.output_proj.'),
        (r'\.norm_([qk])\.', r'.\1_norm.'),
        (r'\.ff\.net\.0\.proj', '.mlp.layer1'),
        (r'\.ff\.net\.2', '.mlp.layer2'),
        (r'^patch_embed\.proj', 'x_embedder.proj.1'),
        (r'^norm_out\.linear_', 'final_layer.adaln_modulation.'),
        (r'^proj_out', 'final_layer.linear'),
    )
    found = renamed(weights, rules)
    found |= {'pos_embedder.seq': torch.arange(4), 'accum_iteration': torch.zeros(1)}
    return {f'net.{name}': value for name, value in found.items()}


def qwen_image21(weights):
    """As ComfyUI has it."""
    gate_first = ('.img_mlp.gate_layer.', '.img_mlp.proj.')
    return renamed(weights, (), ((gate_first, '.img_mlp.gate_up.'),))


def flux3(weights):
    rules = (
        (r'\.attn\.to_([qkv])\.', r'.\1_proj.'),
        (r'\.attn\.to_out\.0\.', '.attn_out.'),
        (r'\.attn\.norm_q\.weight', '.norm.query_norm.scale'),
        (r'\.attn\.norm_k\.weight', '.norm.key_norm.scale'),
        (r'\.ff\.linear_(in|out)\.', r'.mlp_\1.'),
        (r'^timestep_embedder\.linear_1', 'time_in.in_layer'),
        (r'^timestep_embedder\.linear_2', 'time_in.out_layer'),
        (r'^proj_out', 'final_layer.image.linear'),
        (r'^norm_out\.linear', 'final_layer.image.adaLN_modulation.1'),
        (r'^x_embedders', 'emb_in'),
        (r'^context_embedder', 'txt_in'),
        (r'^mode_blocks', 'content_mode_blocks'),
        (r'^single_transformer_blocks', 'single_blocks'),
        (r'(?<!final_layer\.image)\.linear\.weight', '.lin.weight'),
    )
    found = renamed(weights, rules)
    last = 'final_layer.image.adaLN_modulation.1.weight'
    # The heads are of its training.
    return found | {last: swapped(found[last]), 'repa_projectors.0.weight': torch.ones(1)}
