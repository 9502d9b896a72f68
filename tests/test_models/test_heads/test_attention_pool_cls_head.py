# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Structure, training, and use inside MMPretrain's classifier."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.models.heads import AttentionPoolClsHead


def build(**kwargs):
    torch.manual_seed(0)
    config = dict(num_classes=4, in_channels=6, embed_dims=16, num_heads=2)
    return AttentionPoolClsHead(**{**config, **kwargs})


def samples(labels):
    return [DataSample().set_gt_label(label) for label in labels]


def test_parameter_count_of_the_reference():
    head = AttentionPoolClsHead(num_classes=200, in_channels=1536)
    width, hidden = 800, 3200
    block = (
        (3 * width * width + 3 * width)  # query, key, value
        + (width * width + width)  # output projection
        + (width * hidden + hidden)
        + (hidden * width + width)
        + 2 * 2 * width  # two LayerNorms
    )
    expected = (1536 * width + width) + width + 2 * block + (width * 200 + 200)
    assert sum(p.numel() for p in head.parameters()) == expected
    assert round(expected / 1e6, 1) == 16.8


@pytest.mark.parametrize('size', [(1, 1), (4, 4), (3, 5)])
def test_any_number_of_tokens(size):
    assert build()((torch.rand(2, 6, *size),)).shape == (2, 4)


def test_reads_the_last_map_unless_told():
    first, last = torch.rand(2, 6, 3, 3), torch.rand(2, 6, 3, 3)
    head = build().eval()
    torch.testing.assert_close(head((first, last)), head((last,)))
    assert not torch.allclose(head((first, last)), head((last, first)))
    picked = build(in_index=0).eval()
    torch.testing.assert_close(picked((first, last)), head((first,)))


def test_several_maps_are_concatenated_along_channels():
    head = build(in_channels=[6, 2], in_index=[0, -1]).eval()
    first, last = torch.rand(2, 6, 3, 3), torch.rand(2, 2, 3, 3)
    reference = build(in_channels=8).eval()
    reference.load_state_dict(head.state_dict())
    torch.testing.assert_close(
        head((first, torch.rand(2, 3, 1, 1), last)), reference((torch.cat([first, last], 1),))
    )


def test_pooling_sees_every_token_and_no_order():
    head = build().eval()
    head.init_weights()
    feature = torch.rand(1, 6, 4, 4)
    shuffled = feature.flatten(2)[..., torch.randperm(16)].view_as(feature)
    torch.testing.assert_close(head((shuffled,)), head((feature,)), atol=1e-5, rtol=1e-4)
    feature.requires_grad_()
    head((feature,)).sum().backward()
    assert (feature.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('num_layers', [1, 3])
def test_computes_nothing_but_the_class_token_at_the_end(training, num_layers):
    """The same logits and gradients as whole blocks, for fewer multiplications."""
    head = build(num_layers=num_layers, final_norm=True).train(training)
    feature = torch.rand(3, 6, 4, 5)

    def whole(feature):
        tokens = head.project(feature.flatten(2).mT)
        tokens = torch.cat([head.cls_token.expand(3, -1, -1), tokens], 1)
        for block in head.blocks:
            tokens = block(tokens)
        return head.fc(head.norm(tokens[:, 0]))

    def run(call):
        one = feature.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            logits = call(one)
        head.zero_grad()
        logits.square().sum().backward()
        return logits, one.grad, [p.grad for p in head.parameters()], counter.get_total_flops()

    ours, theirs = run(lambda one: head((one,))), run(whole)
    torch.testing.assert_close(ours[:3], theirs[:3], atol=1e-6, rtol=1e-4)
    assert ours[3] < (0.6 if num_layers == 1 else 0.9) * theirs[3]
    with torch.no_grad():  # PyTorch's fast path of whole blocks in evaluation
        torch.testing.assert_close(head((feature,)), whole(feature), atol=1e-6, rtol=1e-4)


def test_learns_a_task_that_average_pooling_cannot():
    """The class is where the two channels agree in sign; their means over the map say nothing."""
    torch.manual_seed(0)
    head = build(num_classes=2, in_channels=2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(60):
        labels = torch.randint(2, (64,))
        signs = torch.randint(2, (64, 1, 2, 2)) * 2.0 - 1
        feature = torch.cat([signs, signs * (labels * 2.0 - 1).view(-1, 1, 1, 1)], dim=1)
        logits = head((feature,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    assert (logits.argmax(1) == labels).float().mean() > 0.95


def test_in_an_image_classifier():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
            head=dict(
                type='mmaselect.AttentionPoolClsHead',
                num_classes=4,
                in_channels=32,
                embed_dims=16,
                topk=(1, 2),
                cal_acc=True,
                loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
            ),
        )
    )
    model.init_weights()
    images = torch.rand(2, 3, 64, 64)
    losses = model(images, samples([0, 3]), mode='loss')
    assert set(losses) == {'loss', 'accuracy_top-1', 'accuracy_top-2'}
    predictions = model.eval()(images, samples([0, 3]), mode='predict')
    assert [p.pred_score.shape for p in predictions] == [(4,), (4,)]


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(num_classes=0), 'num_classes is 0; it must be at least 1'),
        (dict(num_layers=0), 'num_layers is 0; it must be at least 1'),
        (dict(embed_dims=15), 'embed_dims is 15; it must be a multiple of num_heads, 2'),
        (dict(in_channels=[6, 6]), r'picks 1 map\(s\)'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r'maps of \(5,\) channels .* in_channels=\(6,\)'):
        build()((torch.rand(2, 5, 3, 3),))
