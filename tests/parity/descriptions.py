"""What a golden file says of its model, and which of it a rebuilder has to read.

An option that nobody reads would be ignored, and the numbers compared with those of another model; so every option is
read by the rebuilder, known to have one value only, or listed here as one that cannot matter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

from medmamba.errors import ConfigError

ABOUT_THE_FILE = """
    model what note* source licen?e repo* commit date version format *seed salt layout config ctor extra allow_none
    *shape *resolution *img_size num_param* param_count* *_abs *_max *_rms *_l2 *_mean *_std official_* f32_vs_f64_*
    torch*
"""
TRAINING_ONLY = """
    *drop* *init dt_min dt_max dt_scale dt_init_floor use_checkpoint load_ckpt_path device dtype norm_cfg conv_cfg
    norm_eval with_cp fused_add_norm residual_in_fp32 use_fast_path use_mem_eff_path layer_idx
"""
"""Golden files are made in evaluation mode, with stored parameters."""

TOLD_BY_SHAPES = """
    d_model d_state d_conv conv expand ratio dt_rank bias conv_bias ssm_d_state ssm_conv ssm_ratio ssm_dt_rank
    ssm_conv_bias hidden_dim dim dims dim_scale depth depths dims_decoder depths_decoder embed_dim in_chans channels
    in_channels input_channels num_classes patch_size bottleneck_depth condition_dim unconditional mlp_ratio
    num_modules num_branches num_blocks num_channels num_heads dw_kernel_size output_bias without_pointwise
    dcn_without_pointwise if_cls_token use_double_cls_token rms_norm bimamba_type init_layer_scale kernel_size
    expansion_ratio conv_ratio head_num with_proj headdim window_size sd_unet_decoder_design multiscale_output
"""
UNREAD = (ABOUT_THE_FILE + TRAINING_ONLY + TOLD_BY_SHAPES).split()


def check_options(info: Mapping[str, Any], takes: Collection[str], only: Mapping[str, Collection[Any]]) -> None:
    """Raises ConfigError for an option that is not known, or has another value than those in ``only``.

    Args:
        info: the description; options stand in it, in its ``ctor`` and ``extra``, and in the stages of ``extra``.
        takes: options that the rebuilder reads.
        only: options of which only these values are known here.
    """
    name, extra = info["model"], info.get("extra", {})
    stages = [stage for stage in extra.values() if isinstance(stage, dict) and "block" in stage]
    for key, value in (item for part in (info, info.get("ctor", {}), extra, *stages) for item in part.items()):
        if key in only and value not in only[key]:
            valid = " or ".join(repr(one) for one in only[key])
            raise ConfigError(f"Option {key!r} of golden model {name!r} is {value!r}; known here is {valid}.")
        unread = key in takes or key in only or any(fnmatchcase(key, pattern) for pattern in UNREAD)
        if not unread and value not in stages:
            raise ConfigError(f"Golden model {name!r} has the option {key!r} ({value!r}), which is not known here.")
