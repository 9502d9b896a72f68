# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the toolboxes offer around a model works with ours."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from forks import run_ranks
from mmengine.logging import MMLogger
from mmseg.visualization import SegLocalVisualizer

ROOT = Path(__file__).resolve().parents[2]


def tool(name, *arguments):
    """A tool, in this process."""
    runpy.run_path(str(ROOT / 'tools' / f'{name}.py'))['main']([str(a) for a in arguments])


@pytest.fixture
def demo(tiny_dit, tmp_path):
    """The demo config on a tiny model, at a given timestep, for 2 iterations."""
    path = tmp_path / 'demo.py'
    path.write_text(
        f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
        f'model = dict(backbone=dict(pretrained={tiny_dit!r}, blocks=[2], timestep=100),\n'
        '             decode_head=dict(in_channels=16))\n'
        'train_dataloader = dict(batch_size=2, dataset=dict(num_collages=8))\n'
        'train_cfg = dict(max_iters=2)\n'
        'default_hooks = dict(checkpoint=dict(interval=2))\n'
    )
    return path


def weights(demo, folder, *options):
    flags = ('--cfg-options', *options) if options else ()
    tool('train', demo, '--work-dir', folder, '--no-validate', *flags)
    return torch.load(folder / 'iter_2.pth', weights_only=True)['state_dict']


@pytest.mark.parametrize(
    'options',
    [
        ['compile.backend=eager'],
        ['activation_checkpointing=["decode_head"]'],
    ],
)
def test_a_run_learns_the_same(demo, tmp_path, options):
    expected = weights(demo, tmp_path / 'plain')
    found = weights(demo, tmp_path / 'other', *options)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def two_processes(demo, folder, *options):
    """The weights of a run of two processes, each forked from this one."""
    flags = ('--cfg-options', *options) if options else ()
    arguments = (demo, '--work-dir', folder, '--no-validate', '--launcher', 'pytorch', *flags)
    assert run_ranks(lambda: tool('train', *arguments), demo.parent) == [0, 0]
    return torch.load(folder / 'iter_2.pth', weights_only=True)['state_dict']


def test_ddp_with_a_static_graph_learns_the_same(demo, tmp_path):
    expected = two_processes(demo, tmp_path / 'plain')
    found = two_processes(demo, tmp_path / 'static', 'model_wrapper_cfg.static_graph=True')
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_flops_and_parameters_count_the_frozen_part(demo, capsys):
    tool('analysis_tools/get_flops', demo, '--shape', 32, 32)
    printed = capsys.readouterr().out
    total, frozen = (
        int(number.replace(',', ''))
        for number in re.search(r'parameters: ([\d,]+), of them frozen: ([\d,]+)', printed).groups()
    )
    from mmaselect.models import ASelecTDiT

    pretrained = re.search(r"pretrained='([^']+)'", demo.read_text())[1]
    model = ASelecTDiT(pretrained, blocks=[2], timestep=100)
    assert frozen == sum(parameter.numel() for parameter in model.dit.parameters()) > 5000
    head = 16 * 64 * 9 + 64 * 2 + 64 * 64 * 9 + 64 * 2 + 64 * 9 + 9  # two convolutions, classifier
    assert total - frozen == head
    flops = int(re.search(r'multiply-add\): ([\d,]+)', printed)[1].replace(',', ''))
    # On 8 x 8 tokens: the head's products, and in each of three blocks of width 16 at least the
    # feed-forward layers of the first two.
    head_flops = 2 * 64 * (16 * 64 * 9 + 64 * 64 * 9 + 64 * 9)
    feed_forward = 2 * 64 * (2 * 4 * 16 * 16)
    assert flops > head_flops + 2 * feed_forward
    assert flops < 2 * head_flops
    assert 'frozen' not in dict(model.named_children())


def test_a_pure_python_config_selects(tiny_dit, photos, tmp_path, capsys):
    config = tmp_path / 'lazy.py'
    config.write_text(
        'from mmaselect.models import ASelecTDiT\n'
        'model = dict(backbone=dict(type=ASelecTDiT,\n'
        f'    pretrained={tiny_dit!r}, blocks=[2], calibration={photos!r},\n'
        '    selection=dict(timesteps=[0, 400], num_images=4, image_size=32)))\n'
    )
    tool('select_timestep', config, '--out', tmp_path / 'out', '--device', 'cpu')
    assert (tmp_path / 'out' / 'selection.json').is_file()
    config.write_text(
        'from mmaselect.models import AttentionPoolClsHead\n'
        'model = dict(backbone=dict(type=AttentionPoolClsHead))\n'
    )
    with pytest.raises(ValueError, match="backbone is 'AttentionPoolClsHead'"):
        tool('select_timestep', config)


@pytest.mark.parametrize(
    'constructor', ['LearningRateDecayOptimizerConstructor', 'mmseg.LayerDecayOptimizerConstructor']
)
def test_layer_decay_says_that_nothing_is_left_to_decay(demo, tmp_path, constructor):
    with pytest.raises(ValueError, match='ASelecTDiT is frozen: nothing is left to decay'):
        weights(demo, tmp_path / 'a', f'optim_wrapper.constructor={constructor}')


def test_the_advice_on_layer_decay_works(demo, tmp_path):
    """A child of a config with layer decay, with what the message says."""
    base = tmp_path / 'base.py'
    base.write_text(
        f'_base_ = {str(demo)!r}\n'
        "optim_wrapper = dict(constructor='LearningRateDecayOptimizerConstructor',\n"
        "    paramwise_cfg=dict(num_layers=12, decay_rate=0.65, decay_type='layer_wise'))\n"
    )
    child = tmp_path / 'child.py'
    child.write_text(
        f'_base_ = {str(base)!r}\n'
        "optim_wrapper = dict(constructor='DefaultOptimWrapperConstructor',\n"
        '    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0))\n'
    )
    assert weights(child, tmp_path / 'run')


def fresh(name, *arguments):
    """A tool in this process, with the log and the visualizer of a new one."""
    MMLogger._instance_dict.clear()
    SegLocalVisualizer._instance_dict.clear()
    tool(name, *arguments)


def test_a_child_config_without_our_hook_shows_its_pick(demo, photos, tmp_path, capsys):
    """As the README's own: a config of a toolbox, with our backbone put into it."""
    demo.write_text(
        demo.read_text().replace(
            'timestep=100',
            f"timestep='auto', calibration={photos!r}, "
            'selection=dict(_delete_=True, timesteps=[0, 400], num_images=4, image_size=32)',
        )
        + 'custom_hooks = []\n'
    )
    work = tmp_path / 'work'
    fresh('train', demo, '--work-dir', work, '--no-validate')
    out = capsys.readouterr().out
    result = json.loads((work / 'selection.json').read_text())
    assert (work / 'selection.png').is_file()
    page = (work / 'selection.html').read_text()
    assert 'The 4 that were used' in page and page.count('data:image/jpeg') == 4
    (scalars,) = work.glob('*/vis_data/scalars.json')
    assert 'selection/InstanceSensitivity' in scalars.read_text()
    assert re.search(rf'^\|A-SelecT picked timestep {result["timestep"]} .*\|$', out, re.M)
    assert re.search(r'^\|selected now: \d+ model evaluations, \d+\.\d s *\|$', out, re.M)
    closing = out[out.rindex('- mmaselect -') :]
    assert f'picked timestep: {result["timestep"]} ' in closing
    assert str(work / 'selection.png') in closing and 'iter_2.pth' in closing

    fresh('train', demo, '--work-dir', tmp_path / 'second', '--no-validate')
    cost = f'it took {result["model_evaluations"]} model evaluations, {result["seconds"]:.1f} s'
    assert f'found in the cache; {cost} then' in capsys.readouterr().out
    fresh('train', demo, '--work-dir', work, '--no-validate', '--resume', '--cfg-options',
          'train_cfg.max_iters=3')  # fmt: skip
    out = capsys.readouterr().out
    assert f'found in the checkpoint; {cost} then' in out and 'selected now' not in out
