"""Open answers, judged by others."""
