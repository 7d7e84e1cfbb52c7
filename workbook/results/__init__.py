"""What finished runs say: stored results, statistics, tables, the study's questions."""
