# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A narrow Mask2Former with ViTDet's simple feature pyramid on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/mask2former.py']
num_classes = 11
width_of_head = 64
attention = dict(embed_dims=width_of_head, num_heads=4)
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=_base_.base_backbone,
    # The maps' stride is 4; the strides 8, 16 and 32 are made of it.
    # Channels of a diffusion transformer differ in scale by far, hence the norm.
    neck=[
        dict(type='mmaselect.BatchNormNeck', in_channels=[_base_.width]),
        dict(
            type='mmaselect.SimpleFeaturePyramid',
            in_channels=_base_.width,
            out_channels=width_of_head,
            rescales=[1, 0.5, 0.25, 0.125],
            num_outs=4,
        ),
    ],
    decode_head=dict(
        in_channels=[width_of_head] * 4,
        feat_channels=width_of_head,
        out_channels=width_of_head,
        num_classes=num_classes,
        num_queries=30,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    self_attn_cfg=attention,
                    ffn_cfg=dict(embed_dims=width_of_head, feedforward_channels=128),
                ),
            ),
            positional_encoding=dict(num_feats=width_of_head // 2),
        ),
        positional_encoding=dict(num_feats=width_of_head // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(
                self_attn_cfg=attention,
                cross_attn_cfg=attention,
                ffn_cfg=dict(embed_dims=width_of_head, feedforward_channels=128),
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=dict(num_points=2048),
    ),
)
