"""Repair: make a broken promise hold again, without giving up the gain."""

from uphold.repair.adapt import Adaptation as Adaptation
from uphold.repair.adapt import AdaptConfig as AdaptConfig
from uphold.repair.adapt import adapt as adapt
from uphold.repair.muscle import MuscleConfig as MuscleConfig
from uphold.repair.muscle import muscle as muscle
from uphold.repair.result import Repair as Repair
from uphold.repair.result import load_repair as load_repair
