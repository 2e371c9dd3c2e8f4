"""Measure: which promises did this update break, for whom, and is it more than noise?"""

from uphold.measure.compare import compare as compare
from uphold.measure.comparison import Comparison as Comparison
from uphold.measure.comparison import compare_runs as compare_runs
from uphold.measure.comparison import load_comparison as load_comparison
from uphold.measure.evaluate import evaluate as evaluate
from uphold.measure.flips import FlipMatrix as FlipMatrix
from uphold.measure.paired_test import PairedTest as PairedTest
from uphold.measure.pass_at_k import PassAtK as PassAtK
from uphold.measure.pass_at_k import pass_at_k as pass_at_k
from uphold.measure.rates import Rate as Rate
from uphold.measure.slices import Slice as Slice
