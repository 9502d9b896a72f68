# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A sweep: passes and encodings, peak memory by the number of images, two ranks against one.

Every measurement runs in a process of its own, so that peaks do not mix.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from common import describe, parser, save_dit

from mmaselect.diffusion import FrozenDiT
from mmaselect.selection import CalibrationSet, ImageArrays, Sweep


class DrawnImages(ImageArrays):
    """As many images as one likes, drawn when they are asked for."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def load(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def label(self, index: int) -> None:
        return None


def measure(folder: str, number: int, steps: int, device: str) -> dict:
    """One sweep; counts, seconds and the peak."""
    if 'RANK' in os.environ:
        dist.init_process_group('gloo')
    dit = FrozenDiT.from_pretrained(folder, blocks=2).to(device)
    counted = dict(passes=0, encodings=0)
    dit.transformer.register_forward_pre_hook(
        lambda module, inputs: counted.update(passes=counted['passes'] + len(inputs[0]))
    )
    dit.codec.register_forward_pre_hook(
        lambda module, inputs: counted.update(encodings=counted['encodings'] + len(inputs[0]))
    )
    images = CalibrationSet(DrawnImages(number), 32, num_images=number)
    grid = np.linspace(0, 999, steps).astype(int).tolist()
    options = dict(timesteps=grid, criterion='CrossSpectrumHFR', others=[], method='full')
    sweep = Sweep(dit, images, options)
    result = sweep.run(progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.startswith('cuda'):
        peak = torch.cuda.max_memory_allocated() / 2**20
    draws = 2
    return dict(
        images=number,
        timesteps=steps,
        expected=number * steps * draws,
        **counted,
        seconds=result.seconds,
        pick=result.timestep,
        peak=round(peak, 1),
    )


def run_alone(folder: str, number: int, steps: int, device: str, ranks: int = 1) -> list[dict]:
    """:func:`measure` in fresh processes, one thread each."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ['-m', 'torch.distributed.run', f'--nproc_per_node={ranks}', '--standalone']
    command = [*launch, __file__, '--worker', folder, str(number), str(steps), device]
    env = dict(os.environ, OMP_NUM_THREADS='1')
    output = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith('{')]


def main() -> None:
    """Run and print."""
    if sys.argv[1:2] == ['--worker']:
        _, _, folder, number, steps, device = sys.argv
        line = json.dumps(measure(folder, int(number), int(steps), device))
        sys.stdout.write(line + '\n')  # in one write: ranks share the stream
        return
    arguments = parser(__doc__)
    arguments.add_argument('--timesteps', type=int, default=4, help='grid points; default: 4')
    arguments.set_defaults(size='Ti')
    args = arguments.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        save_dit(Path(folder), args.size)
        rows = [run_alone(folder, n, args.timesteps, args.device)[0] for n in (64, 256, 1024)]
        print('| images | timesteps | passes | images x timesteps x draws | encodings | peak, MB |')
        print('|---|---|---|---|---|---|')
        for row in rows:
            print(
                f'| {row["images"]} | {row["timesteps"]} | {row["passes"]} | {row["expected"]} | '
                f'{row["encodings"]} | {row["peak"]:.0f} |'
            )
        print(f'\npeak for 1,024 over 64 images: {rows[2]["peak"] / rows[0]["peak"]:.3f} x\n')
        two = run_alone(folder, 256, args.timesteps, args.device, ranks=2)
        print('| ranks (1 thread each) | seconds | passes of each rank | pick | speed-up |')
        print('|---|---|---|---|---|')
        print(f'| 1 | {rows[1]["seconds"]:.1f} | {rows[1]["passes"]} | {rows[1]["pick"]} | 1 |')
        passes = ' + '.join(str(row['passes']) for row in two)
        picks = ', '.join(sorted({str(row['pick']) for row in two}))
        seconds = max(row['seconds'] for row in two)
        speed_up = rows[1]['seconds'] / seconds
        print(f'| 2 | {seconds:.1f} | {passes} | {picks} | {speed_up:.2f} |')


if __name__ == '__main__':
    main()
