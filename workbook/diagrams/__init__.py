"""Architecture diagrams, drawn from the table of variants."""
