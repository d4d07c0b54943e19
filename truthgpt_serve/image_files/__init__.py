"""Tells image files that take far longer to read than their size or pixels do."""
