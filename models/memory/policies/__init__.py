"""Memory policies, by name: ``memory.policy=NAME``. Every file of this folder is read, so a new rule is a new file."""

import importlib
import pkgutil

from models.memory.policies.base import POLICIES, Candidate, Evidence, Policy, build_policy, register_policy

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["POLICIES", "Candidate", "Evidence", "Policy", "build_policy", "register_policy"]
