"""Plans, runs and comparisons as text for people: plain ASCII tables, every size with its unit.

Pure functions: value in, text out. Colour and paging belong to the command line.
"""

from memplan.report.columns import table
from memplan.report.comparison import comparison_text, summary_text
from memplan.report.plan import plan_text, proof_text
from memplan.report.run import run_text

__all__ = ["comparison_text", "plan_text", "proof_text", "run_text", "summary_text", "table"]
