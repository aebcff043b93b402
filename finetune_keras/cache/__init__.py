"""What the frozen part of a model makes of the data, computed once."""
