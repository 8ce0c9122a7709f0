"""`python -m course_lib.cli` is `course-lib`; processes that Lightning starts come in here."""

import sys

from course_lib.cli import main

__all__ = ["main"]

sys.exit(main())
