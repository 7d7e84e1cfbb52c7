"""The explorers: what can be looked at, and the widgets."""
