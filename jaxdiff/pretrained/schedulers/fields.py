"""The fields of each scheduler of diffusers, and what it does with those of another.

A `scheduler_config.json` often holds fields of a class that it was made from: Stable Diffusion XL's Euler has
`skip_prk_steps` of PNDM. diffusers ignores them, and so does jaxdiff. A field that no scheduler has is refused.
"""

from __future__ import annotations

from jaxdiff.pretrained.errors import PretrainedError
from jaxdiff.pretrained.fields import Fields, short


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHAIN = _names("num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type")
_SPACED = _CHAIN | _names("timestep_spacing steps_offset")
_LEVELS = _names("use_karras_sigmas use_exponential_sigmas use_beta_sigmas")
_ZERO_SNR = _names("rescale_betas_zero_snr")
_CLIP = _names("clip_sample clip_sample_range")
_THRESHOLD = _names("thresholding dynamic_thresholding_ratio sample_max_value")
_FLOW = _names("use_flow_sigmas flow_shift")
_DYNAMIC = _names("use_dynamic_shifting time_shift_type")
SHIFT_BY_SIZE = _names("base_shift max_shift base_image_seq_len max_image_seq_len")
"""Read by the pipelines, of any scheduler."""
_MULTISTEP = _THRESHOLD | _LEVELS | _FLOW | _names("lower_order_final algorithm_type")
_ORDER = _names("solver_order solver_type")
_TAUGHT = _names("original_inference_steps timestep_scaling set_alpha_to_one")
_EDM = _names("sigma_min sigma_max sigma_data sigma_schedule num_train_timesteps prediction_type rho final_sigmas_type")
_FLOW_MATCH = _DYNAMIC | _LEVELS | _names("num_train_timesteps shift invert_sigmas shift_terminal")

FIELDS: dict[str, frozenset[str]] = {
    "DDIMScheduler": _SPACED | _CLIP | _THRESHOLD | _ZERO_SNR | _names("set_alpha_to_one"),
    "DDIMInverseScheduler": _SPACED | _CLIP | _ZERO_SNR | _names("set_alpha_to_one"),
    "DDPMScheduler": _SPACED | _CLIP | _THRESHOLD | _ZERO_SNR | _names("variance_type"),
    "PNDMScheduler": _SPACED | _names("skip_prk_steps set_alpha_to_one"),
    "LCMScheduler": _SPACED | _CLIP | _THRESHOLD | _ZERO_SNR | _TAUGHT,
    "TCDScheduler": _SPACED | _CLIP | _THRESHOLD | _ZERO_SNR | _TAUGHT,
    "EulerDiscreteScheduler": (
        _SPACED | _LEVELS | _ZERO_SNR | _names("interpolation_type sigma_min sigma_max timestep_type final_sigmas_type")
    ),
    "EulerAncestralDiscreteScheduler": _SPACED | _ZERO_SNR,
    "HeunDiscreteScheduler": _SPACED | _LEVELS | _CLIP,
    "LMSDiscreteScheduler": _SPACED | _LEVELS,
    "KDPM2DiscreteScheduler": _SPACED | _LEVELS,
    "KDPM2AncestralDiscreteScheduler": _SPACED | _LEVELS,
    "DPMSolverSDEScheduler": _SPACED | _LEVELS | _names("noise_sampler_seed"),
    "DPMSolverMultistepScheduler": (
        _SPACED
        | _ZERO_SNR
        | _MULTISTEP
        | _ORDER
        | _DYNAMIC
        | _names("euler_at_final use_lu_lambdas final_sigmas_type lambda_min_clipped variance_type")
    ),
    "DPMSolverSinglestepScheduler": (
        _CHAIN | _MULTISTEP | _ORDER | _DYNAMIC | _names("final_sigmas_type lambda_min_clipped variance_type")
    ),
    "UniPCMultistepScheduler": (
        (_SPACED | _ZERO_SNR | _MULTISTEP | _ORDER | _DYNAMIC) - {"algorithm_type"}
        | _names("predict_x0 disable_corrector solver_p final_sigmas_type sigma_min sigma_max shift_terminal")
    ),
    "DEISMultistepScheduler": _SPACED | _MULTISTEP | _ORDER | _DYNAMIC,
    "SASolverScheduler": (
        _SPACED | _MULTISTEP | _names("predictor_order corrector_order tau_func lambda_min_clipped variance_type")
    ),
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": (
        _EDM | _ORDER | _THRESHOLD | _names("algorithm_type lower_order_final euler_at_final")
    ),
    "CMStochasticIterativeScheduler": _names(
        "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised"
    ),
    "FlowMatchEulerDiscreteScheduler": _FLOW_MATCH | SHIFT_BY_SIZE | _names("stochastic_sampling"),
    "FlowMatchHeunDiscreteScheduler": _names("num_train_timesteps shift"),
    "FlowMatchLCMScheduler": _FLOW_MATCH | SHIFT_BY_SIZE | _names("scale_factors upscale_mode"),
}
"""The fields of each class that jaxdiff knows."""

_EVERY = frozenset().union(*FIELDS.values()) | _names("predict_epsilon")  # an old name, which diffusers ignores too

BETAS: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(
        (
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverSDEScheduler",
        ),
        (0.00085, 0.012, "linear"),
    ),
    "LCMScheduler": (0.00085, 0.012, "scaled_linear"),
    "TCDScheduler": (0.00085, 0.012, "scaled_linear"),
}
"""First and last beta and their schedule where a configuration leaves them out: of the classes that have their own."""

REFUSED = {
    "IPNDMScheduler": "has noise levels of its own, whatever the model was trained on",
    "KarrasVeScheduler": "is no longer in diffusers",
    "ScoreSdeVeScheduler": "takes Langevin steps: sample by jaxdiff's predictor_corrector",
    "DPMSolverMultistepInverseScheduler": "encodes pictures: use Model.invert",
}
"""Why a class is not followed step by step, where there is more to say."""


def class_of(fields: Fields) -> str:
    """The class of a scheduler's configuration."""
    return str(fields.class_name)


def own(fields: Fields) -> Fields:
    """The fields that a scheduler's own class has.

    Args:
      fields: of its `scheduler_config.json`.

    Raises:
      PretrainedError: a class that jaxdiff does not know, or a field that no scheduler has.

    >>> given = {"_class_name": "EulerDiscreteScheduler", "skip_prk_steps": True, "steps_offset": 1}
    >>> sorted(own(Fields(given)).values)
    ['_class_name', 'steps_offset']
    """
    name = class_of(fields)
    if fields.class_name is None:
        raise PretrainedError(f"{fields.where}: names no class, in _class_name")
    if name not in FIELDS:
        known = f"{short(name)} is not followed step by step; jaxdiff follows {', '.join(FIELDS)}"
        raise PretrainedError(f"{fields.where}: {f'{name} {REFUSED[name]}' if name in REFUSED else known}")
    Fields({key: value for key, value in fields.values.items() if key not in _EVERY}, fields.where).done()
    mine = {key: value for key, value in fields.values.items() if key in FIELDS[name] or key.startswith("_")}
    return Fields(mine, fields.where)
