"""What is wrong with a model? Checks that compare it with what would be if all were well."""

from course_lib.evaluation.diagnosis.report import Finding, Report
from course_lib.evaluation.diagnosis.run import diagnose

__all__ = ["Finding", "Report", "diagnose"]
