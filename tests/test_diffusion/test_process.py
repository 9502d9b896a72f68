# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from mmaselect.diffusion import build_process, draw_noise, noise_seed
from mmaselect.diffusion.process import _COGVIDEOX, _DDPMS, _SOLVERS


def process_of(scheduler):
    """From the config as it stands in a pipeline folder."""
    return build_process({**scheduler.config, '_class_name': type(scheduler).__name__})


@pytest.mark.parametrize(
    'options',
    [
        dict(beta_schedule='linear'),
        dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012),
        dict(beta_schedule='squaredcos_cap_v2'),
        dict(beta_schedule='sigmoid'),
        dict(beta_schedule='linear', num_train_timesteps=100),
        dict(beta_schedule='linear', rescale_betas_zero_snr=True),
        dict(trained_betas=np.linspace(1e-4, 0.03, 50).tolist(), num_train_timesteps=50),
    ],
)
def test_ddpm_is_the_schedulers_own_add_noise(options):
    # DDIM's is a class of its own; sigmoid betas are DDPM's alone.
    sigmoid = options.get('beta_schedule') == 'sigmoid'
    scheduler = (diffusers.DDPMScheduler if sigmoid else diffusers.DDIMScheduler)(**options)
    process = process_of(scheduler)
    latent, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    last = process.num_train_timesteps - 1
    for timestep in (0, last // 3, last):
        level = process.at(timestep)
        expected = scheduler.add_noise(latent, noise, torch.tensor([timestep] * 2))
        assert torch.equal(process.add_noise(latent, noise, level), expected)
        assert level.model_time == timestep


def test_multistep_solver_config_gives_the_ddpm_process():
    solver = diffusers.DPMSolverMultistepScheduler(beta_schedule='linear')
    reference = diffusers.DDPMScheduler(beta_schedule='linear')
    level = process_of(solver).at(500)
    assert level.alpha == pytest.approx(reference.alphas_cumprod[500].item() ** 0.5, rel=1e-6)


FLOWS = (
    diffusers.FlowMatchEulerDiscreteScheduler,
    diffusers.FlowMatchHeunDiscreteScheduler,
    diffusers.FlowMatchLCMScheduler,
)


@pytest.mark.parametrize('scheduler', FLOWS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize('shift', [1.0, 1.73, 3.0])
def test_flow_is_the_schedulers_table_bit_for_bit(scheduler, shift):
    scheduler = scheduler(shift=shift)
    process = process_of(scheduler)
    # The table descends: entry i is timestep T - i.
    levels = [process.at(1000 - index) for index in range(1, 1000)]
    sigmas = scheduler.sigmas[1:1000]
    assert [level.sigma for level in levels] == sigmas.tolist()
    assert [level.alpha for level in levels] == (1 - sigmas).tolist()
    assert [level.model_time for level in levels] == scheduler.timesteps[1:1000].tolist()


def test_flow_adds_noise_as_the_scheduler_does():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    process = process_of(scheduler)
    latent, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    for index in (1, 400, 999):
        expected = scheduler.scale_noise(latent, scheduler.timesteps[index : index + 1], noise)
        assert torch.equal(process.add_noise(latent, noise, process.at(1000 - index)), expected)


@pytest.mark.parametrize('kind', ['exponential', 'linear'])
@pytest.mark.parametrize('tokens', [256, 1024, 4096, 777])
def test_dynamic_shift_is_the_pipelines_bit_for_bit(tokens, kind):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind
    )
    process = process_of(scheduler)
    scheduler.set_timesteps(
        sigmas=[t / 1000 for t in range(999, 0, -1)],
        mu=calculate_shift(tokens, base_shift=0.5, max_shift=1.15),
    )
    levels = [process.at(t, tokens) for t in range(999, 0, -1)]
    assert [level.sigma for level in levels] == scheduler.sigmas[:-1].tolist()
    assert [level.model_time for level in levels] == scheduler.timesteps.tolist()
    with pytest.raises(ValueError, match='num_tokens'):
        process.at(300)


@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize(
    'solver',
    [
        diffusers.DEISMultistepScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.DPMSolverSinglestepScheduler,
        diffusers.SASolverScheduler,
        diffusers.UniPCMultistepScheduler,
    ],
    ids=lambda cls: cls.__name__,
)
def test_flow_of_a_solver_is_its_table_bit_for_bit(solver, shift):
    """Whose times are whole numbers, cut down."""
    solver = solver(use_flow_sigmas=True, flow_shift=shift, prediction_type='flow_prediction')
    process = process_of(solver)
    solver.set_timesteps(999)
    # UniPC's table of 999 steps holds T to 2, the others' T - 1 to 1.
    first = 1000 if isinstance(solver, diffusers.UniPCMultistepScheduler) else 999
    levels = [process.at(t) for t in range(999, first - 999, -1)]
    start = first - 999
    assert [lv.sigma for lv in levels] == solver.sigmas[start : start + len(levels)].tolist()
    assert [lv.model_time for lv in levels] == solver.timesteps[start:].tolist()


@pytest.mark.parametrize(
    'options',
    [
        {'use_karras_sigmas': True},
        {'use_exponential_sigmas': True},
        {'use_beta_sigmas': True},
        {'invert_sigmas': True},
        {'shift_terminal': 0.02},
        {'stochastic_sampling': True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_how_a_flow_is_sampled_is_no_part_of_its_training(options):
    plain = process_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    other = process_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **options))
    assert all(plain.at(t) == other.at(t) for t in range(0, 1000, 37))


@pytest.mark.parametrize(
    'options',
    [
        {'use_karras_sigmas': True},
        {'use_beta_sigmas': True},
        {'use_lu_lambdas': True},
        {'timestep_spacing': 'trailing'},
        {'steps_offset': 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_how_a_solver_samples_is_no_part_of_the_training(options):
    plain = process_of(diffusers.DPMSolverMultistepScheduler())
    other = process_of(diffusers.DPMSolverMultistepScheduler(**options))
    assert all(plain.at(t) == other.at(t) for t in range(0, 1000, 37))


@pytest.mark.parametrize('name', [*_DDPMS, *_SOLVERS])
def test_each_scheduler_that_is_taken_for_ddpm_has_its_schedule(name):
    cls = getattr(diffusers, name)
    try:
        scheduler = cls(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012)
    except ImportError as error:  # one of them draws its noise with a package of its own
        pytest.skip(str(error))
    assert torch.equal(process_of(scheduler).alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize('name', _COGVIDEOX)
@pytest.mark.parametrize('options', [{}, {'rescale_betas_zero_snr': True}], ids=['', 'zero-snr'])
def test_cogvideox_schedules_are_its_own(name, options):
    scheduler = getattr(diffusers, name)(snr_shift_scale=4.0, **options)
    process = process_of(scheduler)
    latent, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for timestep in (0, 137, 612, 999):
        level = process.at(timestep)
        assert level.model_time == timestep
        signal = scheduler.alphas_cumprod[timestep].float()
        assert (level.alpha, level.sigma) == ((signal**0.5).item(), ((1 - signal) ** 0.5).item())
    # The figure: far from the DDPM that the same config would make.
    ddpm = build_process({**scheduler.config, '_class_name': 'DDPMScheduler'})
    assert max(abs(ddpm.at(t).alpha - process.at(t).alpha) for t in range(0, 1000, 50)) > 0.2
    expected = scheduler.add_noise(latent, noise, torch.tensor([612]))
    torch.testing.assert_close(process.add_noise(latent, noise, process.at(612)), expected)


@pytest.mark.parametrize(
    'name',
    ['EDMEulerScheduler', 'IPNDMScheduler', 'SCMScheduler', 'UnCLIPScheduler'],
)
def test_a_scheduler_with_noise_levels_of_its_own_is_refused_by_name(name):
    config = {**getattr(diffusers, name)().config, 'beta_schedule': 'linear'}
    with pytest.raises(ValueError, match=rf"'{name}' is not supported.*DDIMScheduler"):
        build_process({**config, '_class_name': name})


def test_timestep_zero_is_clean_and_log_snr_falls():
    flow = process_of(diffusers.FlowMatchEulerDiscreteScheduler())
    assert flow.at(0).sigma == 0 and flow.at(0).log_snr == math.inf
    ddpm = process_of(diffusers.DDPMScheduler())
    for process in (flow, ddpm):
        values = [process.at(step).log_snr for step in range(0, 1000, 50)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize('timestep', [-1, 1000, 3.5, True])
def test_timestep_out_of_range(timestep):
    process = process_of(diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match=r'whole number|0 \(clean\) to 999'):
        process.at(timestep)


def test_noise_of_a_sample_depends_on_its_seed_alone():
    together = draw_noise((3, 8, 8), [5, 7, 11])
    assert torch.equal(together[1], draw_noise((3, 8, 8), [7])[0])
    assert torch.equal(together[[2, 0]], draw_noise((3, 8, 8), [11, 5]))
    assert not torch.equal(together[0], together[1])
    assert abs(draw_noise((1, 100, 100), [1]).std().item() - 1) < 0.05


def test_no_two_noise_draws_have_one_seed():
    # As it was before the rule had a function: stored results stay what they are.
    assert [noise_seed(0, image, draw) for image, draw in ((0, 0), (0, 63), (5, 1))] == [0, 63, 321]
    assert noise_seed(3, 5, 1) == (3 * 1_000_003 + 5) * 64 + 1
    draws = (0, 1, 63, 64, 65, 127, 128, 4095)
    for seed in (0, 1, 2**32 - 1):
        seeds = [noise_seed(seed, i, d) for i in (0, 1, 2, 2**20 - 1) for d in draws]
        assert len(set(seeds)) == len(seeds)
        assert max(seeds) < 2**32  # what PyTorch's generator tells apart
    seeds = [noise_seed(seed, 0, d) for seed in (0, 1, 2, 67, 68, 1000, 2**20 - 1) for d in draws]
    assert len(set(seeds)) == len(seeds)
    for wrong in ((-1,), (2**32,), (0, 2**20), (0, 0, 4096)):
        with pytest.raises(ValueError, match='of a noise draw must be 0 to'):
            noise_seed(*wrong)
