# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Train a DiT on a folder of images, and save it as a pipeline for diffusers and ASelecTDiT.

The folder holds images, or one sub-folder of images per class. Labels only condition the
generator; with none, or with --label-dropout 1, the model is unconditional.

Examples:
  # pixels at 32x32, one process (CPU or one GPU)
  python tools/pretrain_dit.py --data cifar10/train --out runs/dit --size 32 --patch 2
  # latents of a VAE at 256x256, 4 GPUs
  accelerate launch --num_processes 4 tools/pretrain_dit.py --data slides --out runs/slides \
      --size 256 --vae stabilityai/sd-vae-ft-ema --patch 2 --width 768 --depth 12 --heads 12
  # train on a model that is there: its weights in place of random ones
  python tools/pretrain_dit.py --data cifar10/train --out runs/more --init runs/dit/pipeline \
      --size 32 --patch 2
  # killed or stopped? the same command goes on from the last checkpoint, exactly
  python tools/pretrain_dit.py --data cifar10/train --out runs/dit --size 32 --patch 2 --resume

Written to --out:
  pipeline/    the finished model (averaged weights): pretrained='runs/dit/pipeline' in a config
  snapshot/    the same at the last checkpoint, to look at while training goes on
  samples/     grids of samples; a row for each class, the last one for the null class
  log.jsonl    loss, speed and probe by step; loss.png draws it
  states/      the two newest checkpoints
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

try:
    from accelerate import Accelerator
    from accelerate.utils import set_seed
except ImportError:
    sys.exit('pre-training needs accelerate: pip install accelerate')

from mmaselect.pretraining.clean import LatentSource, PixelSource, load_vae
from mmaselect.pretraining.images import ImageSet, read_images
from mmaselect.pretraining.initial_weights import has_other_classes, load_initial_weights
from mmaselect.pretraining.network import (
    OPTIMIZERS,
    SCHEDULES,
    build_dit,
    build_optimizers,
    build_schedule,
)
from mmaselect.pretraining.objective import (
    NUM_TRAIN_TIMESTEPS,
    SAMPLINGS,
    TARGETS,
    Objective,
)
from mmaselect.pretraining.parts import TrainOptions, TrainParts
from mmaselect.pretraining.query_probe import ProbeImages
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.pretraining.tokens import TokenDrop
from mmaselect.pretraining.trainer import Trainer
from mmaselect.selection.identity import weights_fingerprint
from mmaselect.terminal.tool import make_tool_parser, run_tool, user_path


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples' line breaks, and shows each default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False):
            return action.help
        return super()._get_help_string(action)


def _number(kind: type, low: float, high: float = float('inf')):
    """An argparse type: a number of this kind, from ``low`` to ``high``."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'{text} is not from {low} to {high}')
        return value

    parse.__name__ = kind.__name__
    return parse


_COUNT, _NATURAL = _number(int, 1), _number(int, 0)
_SHARE, _POSITIVE = _number(float, 0, 1), _number(float, 1e-12)


def make_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = make_tool_parser(__doc__, formatter=_Help)

    group = parser.add_argument_group('data')
    group.add_argument('--data', required=True, help='folder of images, or of class folders')
    group.add_argument('--out', type=user_path, required=True, help='folder of the run')
    group.add_argument(
        '--size',
        type=_COUNT,
        help='side of the training images in pixels; others are resized, and the middle cut out. '
        'Default: the size of the images, if all are equal squares',
    )
    group.add_argument(
        '--vae',
        help='train on latents of this diffusers VAE (hub id or folder); all images are encoded '
        'once, at the start, and the latents kept in memory. Default: train on pixels',
    )
    group.add_argument('--no-flip', action='store_true', help='do not mirror half of the images')
    group.add_argument(
        '--label-dropout',
        type=_SHARE,
        default=TrainOptions.label_dropout,
        help='share of the labels replaced by the null class, whose features are read later. 0.1 '
        'makes a generator; towards 1, the network has to see for itself what an image shows',
    )

    group = parser.add_argument_group('network')
    group.add_argument(
        '--patch', type=_COUNT, default=2, help='side of a token, in (latent) pixels'
    )
    group.add_argument('--width', type=_COUNT, default=384, help='channels of a token')
    group.add_argument('--depth', type=_COUNT, default=12, help='blocks')
    group.add_argument('--heads', type=_COUNT, default=6, help='attention heads; must divide width')
    group.add_argument(
        '--init',
        help='start from the weights of this pipeline (folder, hub id, or a model that ships with '
        'the package, such as mmaselect://dit_cifar10), which must be of the same network and '
        '--target. A resumed run keeps its own. Default: random weights',
    )

    group = parser.add_argument_group('objective')
    group.add_argument(
        '--target',
        default='epsilon',
        choices=TARGETS,
        help='what is predicted: the noise or the velocity of a DDPM, or the flow of a straight '
        'path to the noise',
    )
    group.add_argument(
        '--timestep-sampling',
        default='uniform',
        choices=SAMPLINGS,
        help='which timesteps are trained on: all alike, or more of those around '
        'sigmoid(--logit-mean)',
    )
    group.add_argument('--logit-mean', type=float, default=0.0, help='below 0 favors little noise')
    group.add_argument('--logit-std', type=_POSITIVE, default=1.0, help='width of that preference')
    group.add_argument(
        '--token-keep',
        type=_number(float, 1e-6, 1),
        default=1.0,
        help='share of the tokens that a step trains on, drawn at random: less is cheaper. '
        'Resume with 1 for the last part of a run',
    )

    group = parser.add_argument_group('optimization')
    group.add_argument(
        '--steps', type=_COUNT, default=TrainOptions.steps, help='steps of the whole run'
    )
    group.add_argument(
        '--batch', type=_COUNT, default=TrainOptions.batch, help='images a step, over all processes'
    )
    group.add_argument(
        '--accumulate',
        type=_COUNT,
        default=TrainOptions.accumulate,
        help='parts that a process cuts its share of a batch into, one after the other, to save '
        'memory',
    )
    group.add_argument(
        '--optimizer',
        default='adamw',
        choices=OPTIMIZERS,
        help='muon is Muon for the matrices of the blocks and AdamW for the rest; in short runs it '
        'often learns more from as many images',
    )
    group.add_argument('--lr', type=_POSITIVE, default=3e-4, help='learning rate of AdamW')
    group.add_argument('--muon-lr', type=_POSITIVE, default=4e-3, help='learning rate of Muon')
    group.add_argument('--weight-decay', type=_number(float, 0), default=0.01, help='of both')
    group.add_argument(
        '--schedule',
        default='cosine',
        choices=SCHEDULES,
        help='of the learning rate. wsd: warm-up, constant, linear decay to 0 in the last '
        '--decay-steps; where the end is not known yet: stop, and resume with the --steps '
        'and --decay-steps that fit',
    )
    group.add_argument('--warmup-steps', type=_NATURAL, default=1000, help='rise of the rate')
    group.add_argument('--decay-steps', type=_NATURAL, default=0, help='of --schedule wsd')
    group.add_argument(
        '--grad-clip', type=_POSITIVE, default=TrainOptions.grad_clip, help='largest gradient norm'
    )
    group.add_argument(
        '--ema-decay',
        type=_SHARE,
        default=TrainOptions.ema_decay,
        help='of the averaged weights, which are what is saved; 0.999 for less than 20,000 steps',
    )
    group.add_argument(
        '--seed', type=_NATURAL, default=TrainOptions.seed, help='of weights, data order and noise'
    )

    group = parser.add_argument_group('running')
    group.add_argument(
        '--precision', default='bf16', choices=('bf16', 'fp16', 'no'), help='no: float32 throughout'
    )
    group.add_argument('--compile', action='store_true', help='torch.compile the network')
    group.add_argument(
        '--resume', action='store_true', help='resume the run in --out, if there is one'
    )
    group.add_argument(
        '--max-minutes', type=_POSITIVE, help='save and stop after so long (resume later)'
    )
    group.add_argument(
        '--log-every',
        type=_COUNT,
        default=TrainOptions.log_every,
        help='steps between lines of the log',
    )
    group.add_argument(
        '--save-every',
        type=_COUNT,
        default=TrainOptions.save_every,
        help='steps between checkpoints',
    )
    group.add_argument(
        '--export-dtype', default='fp32', choices=('fp32', 'fp16'), help='weights in pipeline/'
    )

    group = parser.add_argument_group('watching it learn (0 switches off)')
    group.add_argument(
        '--sample-every',
        type=_NATURAL,
        default=TrainOptions.sample_every,
        help='steps between grids',
    )
    group.add_argument(
        '--sample-steps',
        type=_COUNT,
        default=TrainOptions.sample_steps,
        help='denoising steps of a sample',
    )
    group.add_argument(
        '--probe-every',
        type=_NATURAL,
        default=TrainOptions.probe_every,
        help='steps between linear probes: accuracy of a logistic regression on the mean query of '
        'a block (null class), fitted on --data, tested on --probe-data',
    )
    group.add_argument('--probe-data', help='folder with the class folders of --data, held out')
    group.add_argument('--probe-blocks', type=_NATURAL, nargs='+', help='default: every second one')
    group.add_argument(
        '--probe-timesteps',
        type=_number(int, 0, NUM_TRAIN_TIMESTEPS - 1),
        nargs='+',
        default=list(TrainOptions.probe_timesteps),
        help='0 (clean) to 999 (noise)',
    )
    group.add_argument('--probe-train', type=_COUNT, default=4000, help='images it is fitted on')
    group.add_argument('--probe-test', type=_COUNT, default=2000, help='images it is tested on')
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and refuse what does not fit together."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.decay_steps and args.schedule != 'wsd':
        parser.error(f'--decay-steps belongs to --schedule wsd, not to {args.schedule!r}')
    if args.probe_every and not args.probe_data:
        parser.error('--probe-every needs --probe-data, a folder with the class folders of --data')
    outside = [b for b in args.probe_blocks or [] if b >= args.depth]
    if outside:
        parser.error(
            f'--probe-blocks {outside} are not blocks of a network of --depth {args.depth}'
        )
    return args


def check_processes(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Refuse processes that do not join, a batch they cannot share, a precision they lack.

    Raises:
        ValueError: If so.
    """
    started = int(os.environ.get('WORLD_SIZE', 1))
    if started != accelerator.num_processes:
        # Otherwise each would train the whole run by itself, in the same folder.
        raise ValueError(
            f'{started} processes were started, and accelerate joins {accelerator.num_processes}: '
            'with GPUs, use "accelerate launch --num_processes N"; without, '
            '"ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"'
        )
    parts = accelerator.num_processes * args.accumulate
    if args.batch % parts:
        raise ValueError(
            f'--batch {args.batch} cannot be shared by {accelerator.num_processes} processes x '
            f'{args.accumulate} parts: give a multiple of {parts}'
        )
    if args.precision == 'fp16' and accelerator.device.type == 'cpu':
        raise ValueError('--precision fp16 needs a GPU: use bf16, or no')


def clean_samples(
    args: argparse.Namespace, images: ImageSet, device: torch.device, vae: torch.nn.Module | None
) -> PixelSource | LatentSource:
    """Bring the images (onto the GPU where they fill less than half of it) into training shape."""
    if vae is not None:
        return LatentSource(vae, images.images, device, mirror=not args.no_flip)
    pixels = images.images
    if device.type == 'cuda' and pixels.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
        pixels = pixels.to(device)
    return PixelSource(pixels)


def prepare(args: argparse.Namespace, accelerator: Accelerator) -> Trainer:
    """Read the data, build the network, and go back to the last checkpoint if there is one."""
    check_processes(args, accelerator)
    say = accelerator.print
    images = read_images(args.data, args.size)
    size = images.images.shape[-1]
    say(f'{len(images)} images of {size}x{size}, {len(images.classes) or "no"} classes')

    vae = None if args.vae is None else load_vae(args.vae)
    clean = clean_samples(args, images, accelerator.device, vae)
    set_seed(args.seed)
    model = build_dit(
        clean.channels,
        clean.size,
        args.patch,
        args.width,
        args.depth,
        args.heads,
        len(images.classes),
    )
    folder = RunFolder(args.out)
    goes_on = args.resume and folder.newest() is not None
    if args.init is not None and not goes_on:
        load_initial_weights(model, args.init, args.target)
        say(f'starting from the weights of {args.init}')
        if has_other_classes(args.init, images.classes):
            say(f'note: its labels stood for other classes than {", ".join(images.classes)}')
    probe_images = None
    if args.probe_every and accelerator.is_main_process:
        test = read_images(args.probe_data, size)
        probe_images = ProbeImages.draw(images, test, args.probe_train, args.probe_test, vae)

    if accelerator.is_main_process:
        fixed = ('vae', 'patch', 'width', 'depth', 'heads', 'target', 'optimizer', 'batch', 'seed')
        settings = {name: getattr(args, name) for name in fixed}
        settings |= {'size': size, 'images': len(images), 'classes': list(images.classes)}
        if vae is not None:
            settings['vae_weights'] = weights_fingerprint(vae)
        folder.prepare(settings, args.resume, images.digests)
        if args.init is not None and not goes_on:
            folder.log({'step': 0, 'images': 0, 'init': args.init})
    accelerator.wait_for_everyone()

    token_drop = TokenDrop(model, args.token_keep)
    parameters = sum(p.numel() for p in model.parameters())
    say(f'{parameters / 1e6:.1f} M parameters, {token_drop.count} of {token_drop.total} tokens')
    if args.compile:
        model.compile()
    objective = Objective(
        args.target, args.timestep_sampling, args.logit_mean, args.logit_std, clip=vae is None
    )
    parts = TrainParts(
        model=model,
        optimizers=build_optimizers(
            model, args.optimizer, args.lr, args.muon_lr, args.weight_decay
        ),
        schedule=build_schedule(args.schedule, args.steps, args.warmup_steps, args.decay_steps),
        objective=objective,
        token_drop=token_drop,
        clean=clean,
        labels=images.labels,
        classes=images.classes,
        folder=folder,
        vae=vae,
        probe_images=probe_images,
    )
    names = {field.name for field in fields(TrainOptions)} - {'flip'}
    options = TrainOptions(flip=not args.no_flip, **{name: getattr(args, name) for name in names})
    trainer = Trainer(accelerator, parts, options)
    if args.resume and trainer.resume():
        say(f'going on after step {trainer.step}')
    return trainer


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and save the pipeline."""
    args = parse_args(argv)
    accelerator = Accelerator(mixed_precision=args.precision)
    trainer = prepare(args, accelerator)
    if not trainer.train():
        accelerator.print(
            f'time is up: saved at step {trainer.step} of {args.steps}; --resume goes on'
        )
    elif accelerator.is_main_process:
        dtype = {'fp32': torch.float32, 'fp16': torch.float16}[args.export_dtype]
        trainer.export('pipeline', dtype)
        print(f'done: {Path(args.out) / "pipeline"}')
    accelerator.end_training()


if __name__ == '__main__':
    run_tool(main)
