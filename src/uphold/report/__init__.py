"""Reports: what a comparison or a repair found, for people, for programs and for pull requests."""

from uphold.report.write import write_report as write_report

__all__ = ["write_report"]
