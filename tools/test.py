# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Test a checkpoint of a MMSegmentation, MMPretrain or MMDetection config.

    python tools/test.py configs/aselect_dit_ade20k.py work_dirs/aselect_dit_ade20k/iter_80000.pth
    bash tools/dist_test.sh configs/aselect_dit_ade20k.py CHECKPOINT 8 --tta

The flags are those of the toolboxes' own ``tools/test.py``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from copy import deepcopy
from glob import glob
from typing import TYPE_CHECKING

from mmaselect.launch.cli import build_runner, load_run_config, make_parser, set_dataloaders
from mmaselect.launch.distributed import leave_process_group
from mmaselect.launch.entries import naming_entries
from mmaselect.launch.summary import print_test_summary

# It checks that the toolboxes are installed, and says what to do if not.
from mmaselect.openmmlab.checkpoints import check_checkpoint_file, check_weights_fit
from mmaselect.terminal.tool import run_tool, user_path

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

PICKLES = ('.pkl', '.pickle')
#: What MMDetection's `PackDetInputs` keeps of an image, where a config does not say it.
DETECTION_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
METRIC_FILES = ('.json', '.yaml', '.yml', *PICKLES)
EXAMPLES = """
examples:
  # the metrics of a checkpoint on the test images of its config
  %(prog)s flowers.py work_dirs/flowers/epoch_10.pth

  # also write them to a file
  %(prog)s flowers.py work_dirs/flowers/epoch_10.pth --out metrics.json --out-item metrics
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser('Test a segmentor, a classifier or a detector.', EXAMPLES)
    # Read as the second positional argument, after the config.
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        type=user_path,
        metavar='PATH',
        help='where predictions go: segmentation, a folder for label maps in the format of the '
        'dataset; classification and detection, a .pkl file. With --out-item metrics: a file of '
        'the metrics',
    )
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out holds; default: pred, the predictions',
    )
    parser.add_argument('--amp', action='store_true', help='test with automatic mixed precision')
    parser.add_argument('--tta', action='store_true', help='augment the test images')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', type=user_path, metavar='DIR', help='folder for painted predictions'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that a window is shown; default: 2'
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='paint every n-th image; default: 1'
    )
    args = parser.parse_args(argv)
    if args.out_item and not args.out:
        parser.error('--out-item needs --out')
    return args


def check_checkpoint(path: str, work_dir: str) -> None:
    """Stop before anything is built if there is no such checkpoint.

    Args:
        path (str): A file, or an address with a scheme (``https://``, ...).
        work_dir (str): Where to look for checkpoints that may be meant.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut off, or holds what could run code.
    """
    if '://' in path:
        return
    if os.path.isfile(path):
        check_checkpoint_file(path)
        return
    if os.path.isdir(path):
        raise ValueError(
            f'{path!r} is a folder, with the shards of several processes. DeepSpeed writes '
            f'zero_to_fp32.py next to it, which makes a file of them: `python zero_to_fp32.py . '
            f'OUT -t {os.path.basename(path)}`; then test OUT/pytorch_model.bin. With FSDP, train '
            f"with state_dict_cfg='full', the default"
        )
    found = sorted(glob(os.path.join(work_dir, '*.pth')))
    raise FileNotFoundError(
        f'There is no checkpoint file {path!r}. '
        + (f'In the work dir: {", ".join(found)}.' if found else f'{work_dir!r} holds none either.')
    )


def check_out(args: argparse.Namespace, toolbox: str) -> None:
    """Stop before testing if ``--out`` could not be written after it.

    Args:
        args (Namespace): The command line.
        toolbox (str): ``'mmseg'``, ``'mmpretrain'`` or ``'mmdet'``.

    Raises:
        ValueError: If the file cannot have that suffix.
    """
    if args.out is None:
        return
    if args.out_item == 'metrics':
        suffixes = METRIC_FILES
    elif toolbox != 'mmseg':
        suffixes = PICKLES
    else:
        return
    if not args.out.endswith(suffixes):
        raise ValueError(f'--out must end in one of {", ".join(suffixes)}, not {args.out!r}.')


def set_visualization(config: Config, args: argparse.Namespace, toolbox: str) -> None:
    """Turn the toolbox's visualization hook on.

    Args:
        config (Config): The run's config; changed in place.
        args (Namespace): The command line.
        toolbox (str): ``'mmseg'``, ``'mmpretrain'`` or ``'mmdet'``.

    Raises:
        ValueError: If the config has no such hook.
    """
    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None:
        kind = {
            'mmseg': 'SegVisualizationHook',
            'mmpretrain': 'VisualizationHook',
            'mmdet': 'DetVisualizationHook',
        }[toolbox]
        raise ValueError(
            '--show and --show-dir need a visualization hook: set '
            f"`default_hooks = dict(visualization=dict(type='{kind}'))` in the config."
        )
    hook.interval = args.interval
    hook.show = args.show
    hook.wait_time = args.wait_time
    if toolbox == 'mmseg':
        hook.draw = True
        if args.show_dir:
            config.visualizer.save_dir = args.show_dir
    elif toolbox == 'mmdet':
        hook.draw = True
        if args.show_dir:
            # It joins a relative one to the work dir.
            hook.test_out_dir = os.path.abspath(args.show_dir)
    else:
        hook.enable = True
        hook.out_dir = args.show_dir


def check_image_files(runner: Runner) -> None:
    """MMSegmentation paints on image files and names predictions by them; arrays are not files.

    Raises:
        ValueError: If the test images are not files.
    """
    dataset = runner.test_loop.dataloader.dataset
    if 'img_path' not in dataset.get_data_info(0):
        raise ValueError(
            '--show, --show-dir and --out DIR need image files, and the images of '
            f'{type(dataset).__name__} are in memory. Metrics can be written: '
            '--out FILE.json --out-item metrics.'
        )


def set_tta(config: Config, toolbox: str) -> None:
    """Wrap the model and the pipeline for test-time augmentation.

    Configs without settings of their own get what MMPretrain and MMDetection give them, an image
    and its mirror image: the mean score of both, or the boxes of both after NMS.

    Args:
        config (Config): The run's config; changed in place.
        toolbox (str): ``'mmseg'``, ``'mmpretrain'`` or ``'mmdet'``.

    Raises:
        ValueError: If a segmentation config lacks ``tta_model`` or ``tta_pipeline``.
    """
    missing = [name for name in ('tta_model', 'tta_pipeline') if name not in config]
    if missing and toolbox == 'mmseg':
        raise ValueError(
            f"--tta needs {' and '.join(missing)} in the config: see the toolbox's "
            '_base_/default_runtime.py and _base_/datasets.'
        )
    pipeline = config.test_dataloader.dataset.pipeline
    if toolbox == 'mmdet' and config.model.get('roi_head', {}).get('mask_head') is not None:
        raise ValueError(
            '--tta: MMDetection merges the boxes of several views and no masks, and this model has '
            'a mask_head. Leave --tta out.'
        )
    if 'tta_model' in missing:
        config.tta_model = (
            dict(
                type='DetTTAModel',
                tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
            )
            if toolbox == 'mmdet'
            else dict(type='mmpretrain.AverageClsScoreTTA')
        )
    if 'tta_pipeline' in missing:
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        pack = deepcopy(pipeline[-1])
        if toolbox == 'mmdet':  # what boxes are flipped back by
            pack.meta_keys = (*pack.get('meta_keys', DETECTION_META), 'flip', 'flip_direction')
        config.tta_pipeline = [
            *deepcopy(pipeline[:-1]),
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    config.model = dict(config.tta_model, module=config.model)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline


def set_segmentation_output(config: Config, folder: str) -> None:
    """Have every segmentation metric of the config write the label maps that it is given."""
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        evaluator.output_dir = folder
        evaluator.keep_results = True


def main(argv: Sequence[str] | None = None) -> None:
    """Test, and write what was asked for."""
    from mmengine import dump
    from mmengine.dist import is_main_process
    from mmengine.evaluator import DumpResults

    args = parse_args(argv)
    config, toolbox = load_run_config(args)
    check_checkpoint(args.checkpoint, config.work_dir)
    check_out(args, toolbox)
    config.load_from = args.checkpoint
    config.resume = False
    if args.amp:
        config.test_cfg.fp16 = True
    if args.show or args.show_dir:
        set_visualization(config, args, toolbox)
    if args.tta:
        set_tta(config, toolbox)
    # Hooks of the toolboxes ask a runner for its iteration, which builds the training loop.
    loaders = ('train_dataloader', 'test_dataloader')
    set_dataloaders(config, toolbox, loaders, args.no_pin_memory)

    predictions = args.out if args.out_item != 'metrics' else None
    if predictions and toolbox == 'mmseg':
        set_segmentation_output(config, predictions)
    runner = build_runner(config, args.verbose)
    if os.path.isfile(args.checkpoint) and not args.trust_checkpoint:
        # Ranks and test-time augmentation wrap the model.
        check_weights_fit(getattr(runner.model, 'module', runner.model), args.checkpoint)
    if toolbox == 'mmseg' and (predictions or args.show or args.show_dir):
        check_image_files(runner)
    if predictions and toolbox != 'mmseg':
        dump_results = DumpResults
        if toolbox == 'mmdet':  # masks as runs, not as pixels
            from mmdet.evaluation import DumpDetResults as dump_results
        runner.test_evaluator.metrics.append(dump_results(out_file_path=predictions))
    with naming_entries(config, runner):
        metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        dump(metrics, args.out)
    print_test_summary(runner, args.checkpoint, metrics, (args.out, args.show_dir))
    leave_process_group()


if __name__ == '__main__':
    run_tool(main)
