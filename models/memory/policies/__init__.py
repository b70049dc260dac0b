"""Memory policies, by name: ``memory.policy=NAME``."""

from models.memory.policies import official
from models.memory.policies.base import POLICIES, Candidate, Evidence, Policy, build_policy, register_policy

__all__ = ["POLICIES", "Candidate", "Evidence", "Policy", "build_policy", "official", "register_policy"]
