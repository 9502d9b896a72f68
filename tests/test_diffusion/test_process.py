# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import diffusers
import numpy as np
import pytest
import torch

from mmaselect.diffusion import build_process, draw_noise


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


@pytest.mark.parametrize('shift', [1.0, 3.0])
def test_flow_follows_the_schedulers_shifted_table(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    process = process_of(scheduler)
    # The table descends: entry i is timestep T - i.
    for index in (1, 400, 999):
        level = process.at(1000 - index)
        assert level.sigma == pytest.approx(scheduler.sigmas[index].item(), abs=1e-6)
        assert level.model_time == pytest.approx(scheduler.timesteps[index].item(), abs=1e-3)
        latent, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
        expected = scheduler.scale_noise(latent, scheduler.timesteps[index : index + 1], noise)
        assert torch.allclose(process.add_noise(latent, noise, level), expected, atol=1e-6)


@pytest.mark.parametrize('kind', ['exponential', 'linear'])
@pytest.mark.parametrize('tokens', [256, 1024, 4096])
def test_dynamic_shift_is_the_schedulers_own(tokens, kind):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind
    )
    process = process_of(scheduler)
    slope = (1.15 - 0.5) / (4096 - 256)
    scheduler.set_timesteps(sigmas=[0.9, 0.3], mu=0.5 + slope * (tokens - 256))
    for timestep, sigma in zip((900, 300), scheduler.sigmas.tolist(), strict=False):
        assert process.at(timestep, tokens).sigma == pytest.approx(sigma, abs=1e-5)
    with pytest.raises(ValueError, match='num_tokens'):
        process.at(300)


def test_flow_sigmas_of_a_solver():
    solver = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type='flow_prediction'
    )
    level = process_of(solver).at(500)
    assert level.sigma == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))


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


def test_unknown_scheduler():
    with pytest.raises(ValueError, match='VQDiffusionScheduler'):
        build_process({'_class_name': 'VQDiffusionScheduler', 'num_vec_classes': 3})


def test_noise_of_a_sample_depends_on_its_seed_alone():
    together = draw_noise((3, 8, 8), [5, 7, 11])
    assert torch.equal(together[1], draw_noise((3, 8, 8), [7])[0])
    assert torch.equal(together[[2, 0]], draw_noise((3, 8, 8), [11, 5]))
    assert not torch.equal(together[0], together[1])
    assert abs(draw_noise((1, 100, 100), [1]).std().item() - 1) < 0.05
