"""Other tools' logs as runs: what is compared need not have been evaluated here."""

from uphold.importers.formats import Choice, LogFormat, LoggedTask, Reading, log_format, log_formats
from uphold.importers.load import import_log, is_log

__all__ = ["Choice", "LogFormat", "LoggedTask", "Reading", "import_log", "is_log", "log_format", "log_formats"]
