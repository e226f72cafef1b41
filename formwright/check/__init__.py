"""The laws that every part is held to."""

from formwright.check.run import LAWS, Law, Report, run

__all__ = ["LAWS", "Law", "Report", "run"]
