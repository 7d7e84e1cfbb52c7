"""What experiments with `ka` need: training, many runs, results, views, diagrams, the audit."""
