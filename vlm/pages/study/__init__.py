"""The page of a study; see docs/guides/study_report.md."""
