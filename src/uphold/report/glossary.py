"""One line on every rate, in the report's own words."""

from __future__ import annotations

DEFINITIONS = {
    "accuracy_old": "Share of instances that the old model answers right.",
    "accuracy_new": "Share of instances that the new model answers right; in an arm's column, that arm.",
    "gain": "Accuracy of the new model minus accuracy of the old: PFR − NFR.",
    "nfr": "Negative flip rate: old right and new wrong, over all instances.",
    "pfr": "Positive flip rate: old wrong and new right, over all instances.",
    "nfr_mc": "Inconsistency flips: new wrong with an answer other than the old one's, over all instances.",
    "correct_but_changed": "Both right, with different answers, over all instances.",
    "flips": "NFR + PFR.",
    "btc": "Backward trust compatibility: share of the old model's right answers that stay right.",
    "bec": "Backward error compatibility: share of the old model's wrong answers that stay wrong.",
    "nfi": "Negative flip impact: NFR over the error rate of the new model.",
    "relative_nfr": "NFR over (accuracy of the old × error rate of the new): 1 when errors fall independently.",
    "score_old": "Mean score of the old model.",
    "score_new": "Mean score of the new model; in an arm's column, of that arm.",
    "mean_difference": "Mean of D, the new score minus the old: PFR · M_g − NFR · M_r.",
    "nfr_score": "Share of instances whose score falls; ties count in neither direction.",
    "pfr_score": "Share of instances whose score rises; ties count in neither direction.",
    "m_g": "Mean rise of the score where it rises.",
    "m_r": "Mean fall of the score where it falls.",
}

KINDS = {
    "negative": "negative flip",
    "positive": "positive flip",
    "both_wrong": "both wrong",
    "both_right": "both right",
    "tie": "equal scores",
    "unscored": "not scored",
}

MARKS = {"negative": "▼", "positive": "▲", "both_wrong": "×", "both_right": "●", "tie": "●", "unscored": "–"}
"""Shapes that tell the kinds apart without colour."""

EFFECTS = {
    "fixed": "Broken by the plain update, whole again after the repair.",
    "still broken": "Broken by the plain update, and by the repaired one.",
    "newly broken": "Whole after the plain update, broken by the repaired one.",
    "gain kept": "Gained by the plain update, and by the repaired one.",
    "gain lost": "Gained by the plain update, not by the repaired one.",
    "extra gain": "Gained by the repaired update only.",
    "stays right": "Right in all three versions.",
    "stays wrong": "Wrong in all three versions.",
    "unchanged": "Equal scores in all three versions.",
    "not scored": "Without a score in one of the versions.",
}
