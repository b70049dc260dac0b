"""The memory: banks that hold tokens, policies that say which frames stay, and the state of one video."""

from models.memory.bank import Bank, TrainingBank
from models.memory.policies import POLICIES, Candidate, Evidence, Policy, build_policy, register_policy
from models.memory.state import State

__all__ = ["POLICIES", "Bank", "Candidate", "Evidence", "Policy", "State", "TrainingBank", "build_policy",
           "register_policy"]
