"""The findings about the study's code and table, each derived live."""
