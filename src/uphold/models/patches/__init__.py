"""Patches: changes of weights with provenance, made, added up, applied, and taken off again byte for byte."""
