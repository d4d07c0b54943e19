"""Grammars that bind the answers of text models: found in requests, compiled in bounds."""
