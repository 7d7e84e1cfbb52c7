"""The models: the table of variants, the KA layer, the backbone, and their weights on disk."""
