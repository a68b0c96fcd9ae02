"""The pilot's report: a page for people, files for programs, and a summary for the terminal."""

from kvshift.pilot.report.terminal import print_summary
from kvshift.pilot.report.write import write_report

__all__ = ["print_summary", "write_report"]
