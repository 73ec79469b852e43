"""The pipeline's config: one frozen tree of the stages' settings, read from YAML and checked as a whole."""

from magic141.config.pipeline import (
    HOME_VARIABLE,
    LARGEST_SEED,
    PipelineConfig,
    default_home,
    load_config,
    missing_sources,
    named_sources,
    to_yaml,
    validate,
    validate_stored,
    with_overrides,
    working_in,
    workspace_folder,
)

__all__ = [
    "HOME_VARIABLE",
    "LARGEST_SEED",
    "PipelineConfig",
    "default_home",
    "load_config",
    "missing_sources",
    "named_sources",
    "to_yaml",
    "validate",
    "validate_stored",
    "with_overrides",
    "working_in",
    "workspace_folder",
]
