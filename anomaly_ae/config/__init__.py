"""The configuration: small frozen sections, each used by one module, with validated ranges.

A configuration is a TOML file; a preset is one of the files in ``configs/``. Unknown keys are refused with the
nearest known one, because a misspelt option that is silently ignored is a wrong result.
"""

from anomaly_ae.config.loading import (
    config_from_dict,
    config_to_dict,
    deciding_settings,
    load_config,
    model_file_config,
    of_channels,
    overridden,
    preset_path,
    with_values,
)
from anomaly_ae.config.sections import (
    MAX_MEMBERS,
    MAX_SCALES,
    MEASURES,
    OWN_LIMITS,
    PICKED_PRESETS,
    PRESETS,
    Config,
    CorruptionConfig,
    GeometryConfig,
    IntensityConfig,
    ModelConfig,
    ScoringConfig,
    SplitConfig,
    TrainingConfig,
)

__all__ = [
    "MAX_MEMBERS",
    "MAX_SCALES",
    "MEASURES",
    "OWN_LIMITS",
    "PICKED_PRESETS",
    "PRESETS",
    "Config",
    "CorruptionConfig",
    "GeometryConfig",
    "IntensityConfig",
    "ModelConfig",
    "ScoringConfig",
    "SplitConfig",
    "TrainingConfig",
    "config_from_dict",
    "config_to_dict",
    "deciding_settings",
    "load_config",
    "model_file_config",
    "of_channels",
    "overridden",
    "preset_path",
    "with_values",
]
