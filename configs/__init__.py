"""The configuration: one YAML tree, typed and validated, that every command reads and every run saves."""

from configs.load import differences, dump_config, load_config, model_config_path, model_names
from configs.schema import Config

__all__ = ["Config", "differences", "dump_config", "load_config", "model_config_path", "model_names"]
